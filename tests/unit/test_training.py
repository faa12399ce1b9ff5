"""Training learns, stops and goes on without a trace, and says so when it cannot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthesis_stand_ins import RandomFeatureMap, StandInRelease, release_of_squares, small_settings
from torch import Tensor

from dpmepf.shared.encoders import BUILTIN_WEIGHTS, file_sha256
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images
from dpmepf.synthesize import training as training_module
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE, Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from dpmepf.synthesize.denoising import denoised_means
from dpmepf.synthesize.generator import Generator
from dpmepf.synthesize.settings import SynthesisSettings
from dpmepf.synthesize.targets import class_targets, length_in_common
from dpmepf.synthesize.training import (
    ClassSchedule,
    GeneratorTraining,
    TrainedGenerator,
    TrainingCallbacks,
    TrainingError,
    TrainingStopped,
    generator_configuration,
    train_generator,
)
from dpmepf.synthesize.variation import Variation


@pytest.fixture(autouse=True)
def recalibrate_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "RECALIBRATION_IMAGES", 20)
    monkeypatch.setattr(training_module, "DENOISING_IMAGES", 40)


def train(release: StandInRelease, settings: SynthesisSettings, **arguments: object) -> TrainedGenerator:
    feature_map = RandomFeatureMap(release.channels)
    return train_generator(release, feature_map, settings, **arguments)  # type: ignore[arg-type]


def weights_of(trained: TrainedGenerator) -> dict[str, Tensor]:
    return trained.generator.state_dict()


def test_training_brings_the_generated_means_to_the_released_ones() -> None:
    settings = small_settings(steps=60, batch_size=30, learning_rate=1e-2)
    losses = train(release_of_squares(RandomFeatureMap()), settings).losses
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


def test_every_class_gets_its_own_images() -> None:
    """The square's place tells the class: the brightest of nine fields must be that of the class."""
    settings = small_settings(steps=120, batch_size=30, learning_rate=1e-2)
    generator = train(release_of_squares(RandomFeatureMap(), noise_std=0.2), settings).generator
    classes = torch.arange(3).repeat_interleave(20)
    with torch.no_grad():
        images = generator(torch.randn(60, 8, generator=torch.Generator().manual_seed(3)), classes)
    fields = torch.nn.functional.avg_pool2d(images[..., :24, :24], 8).flatten(1)
    assert float((fields.argmax(dim=1) == classes).float().mean()) > 0.9


@pytest.mark.parametrize("class_count", [1, 2, 7])
@pytest.mark.parametrize(
    ("channels", "mean_memory", "denoised"), [(1, 0.0, False), (1, 0.5, False), (1, 0.0, True), (3, 0.0, False)]
)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    class_count: int, channels: int, mean_memory: float, denoised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, through a checkpoint on disk; with 7 classes and 12 images the classes take turns."""
    if denoised:  # before steps 2, 3 and 5
        monkeypatch.setattr(training_module, "NOISY", 0.0)
    release = release_of_squares(RandomFeatureMap(channels), class_count=class_count, noise_std=0.2)
    settings = small_settings(steps=7, mean_memory=mean_memory, micro_batch_size=5)
    whole = train(release, settings)

    def save(training: GeneratorTraining) -> None:
        state = training.state_dict()
        save_checkpoint(tmp_path, Checkpoint(artifact_sha256="0", settings=settings, state=state, seconds=1.5))

    steps: list[int] = []
    callbacks = TrainingCallbacks(
        on_step=lambda training: steps.append(training.step), on_snapshot=save, stop_requested=lambda: len(steps) == 3
    )
    with pytest.raises(TrainingStopped, match="step 3 of 7"):
        train(release, settings, callbacks=callbacks)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.settings, checkpoint.seconds) == (settings, 1.5)
    resumed = train(release, settings, state=checkpoint.state)
    assert resumed.losses == whole.losses
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name


@pytest.mark.parametrize(("per_class", "denoised"), [(50, False), (2, True)])
def test_means_are_denoised_where_their_noise_is_longer_than_they_can_be(per_class: int, denoised: bool) -> None:
    feature_map = RandomFeatureMap()
    release = release_of_squares(feature_map, per_class=per_class, noise_std=0.5)
    release.noisy_counts[:], release.noise_std_counts = per_class, 0.1
    training = GeneratorTraining(release, feature_map, small_settings(steps=4))  # type: ignore[arg-type]
    truth = torch.from_numpy(release_of_squares(feature_map, per_class=per_class).sums).float() / per_class
    released_error = float((training.objective.aim - truth).square().sum())
    for _ in range(4):
        training.run_step()
    error = float((training.objective.aim - truth).square().sum())
    assert (error < 0.5 * released_error) == denoised
    assert (error == released_error) == (not denoised)


def test_without_a_probe_the_released_means_are_trained_towards_as_they_are() -> None:
    release = release_of_squares(RandomFeatureMap(), noise_std=0.2)
    for probe in (False, True):
        training = GeneratorTraining(release, RandomFeatureMap(), small_settings(probe=probe))  # type: ignore[arg-type]
        assert torch.equal(training.targets.means, class_targets(release).means) == (not probe)  # type: ignore[arg-type]


def test_denoising_looks_at_fewer_images_where_features_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "NOISY", 0.0)
    feature_map = RandomFeatureMap()
    looked_at: list[int] = []

    def count(*arguments: Any) -> Any:
        looked_at.append(arguments[2].shape[0] * arguments[2].shape[1])
        return denoised_means(*arguments)

    monkeypatch.setattr(training_module, "denoised_means", count)
    monkeypatch.setattr(training_module, "DENOISING_IMAGES", 200)
    for numbers in (2**27, 100 * feature_map.dimension):
        monkeypatch.setattr(training_module, "DENOISING_NUMBERS", numbers)
        settings = small_settings(steps=2, micro_batch_size=5)
        release = release_of_squares(feature_map, class_count=4, noise_std=0.2)
        training = GeneratorTraining(release, feature_map, settings)  # type: ignore[arg-type]
        training.run_step()
        training.run_step()
    assert looked_at == [200, 100]


def test_the_seed_decides_the_result_and_torchs_own_seed_does_not() -> None:
    release = release_of_squares(RandomFeatureMap())
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        results.append(train(release, small_settings(seed=seed)).losses)
    assert results[0] == results[1] != results[2]


def test_the_encoder_is_left_as_it_was() -> None:
    feature_map = RandomFeatureMap()
    before = {name: tensor.clone() for name, tensor in feature_map.state_dict().items()}
    train_generator(release_of_squares(feature_map), feature_map, small_settings())  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in feature_map.state_dict().items())
    assert all(parameter.grad is None for parameter in feature_map.parameters())


def test_a_loss_that_is_not_finite_ends_training_before_it_spoils_the_weights() -> None:
    class BreakingFeatureMap(RandomFeatureMap):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images) * (math.nan if self.calls > 2 else 1.0)

    release = release_of_squares(RandomFeatureMap())
    training = GeneratorTraining(release, BreakingFeatureMap(), small_settings())  # type: ignore[arg-type]
    training.run_step()
    training.run_step()
    before = {name: tensor.clone() for name, tensor in training.generator.named_parameters()}
    with pytest.raises(TrainingError, match=r"no longer finite at step 3: .* --learning-rate below 0\.002"):
        training.run_step()
    assert training.step == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.generator.named_parameters())


def test_a_snapshot_is_taken_at_every_interval_and_at_the_end() -> None:
    snapshots: list[int] = []
    callbacks = TrainingCallbacks(on_snapshot=lambda training: snapshots.append(training.step), snapshot_seconds=0.0)
    train(release_of_squares(RandomFeatureMap()), small_settings(steps=3), callbacks=callbacks)
    assert snapshots == [1, 2, 3, 3]


def test_images_in_colour_are_varied_unless_told_and_the_sizes_are_learned() -> None:
    def trained(channels: int, varied: bool | None) -> Generator:
        return train(release_of_squares(RandomFeatureMap(channels)), small_settings(vary=varied)).generator

    grey, colour = trained(1, None), trained(3, None)
    assert grey.variation is None and trained(3, False).variation is None
    assert trained(1, True).variation is not None
    assert colour.variation is not None
    assert not torch.equal(colour.variation.sizes.weight, Variation(3).sizes.weight)


@pytest.mark.parametrize(
    ("length", "normalisation", "weights", "noise_std", "varied"),
    [
        (0.45, "whitened", BUILTIN_WEIGHTS, 0.0, True),
        (0.55, "whitened", BUILTIN_WEIGHTS, 0.0, False),
        (0.45, "per-layer", BUILTIN_WEIGHTS, 0.0, False),  # lengths of features that are not whitened say nothing
        (0.45, "whitened", Path(__file__), 0.0, False),  # nor do those that other images whiten
        (0.45, "whitened", BUILTIN_WEIGHTS, 100.0, False),  # nor does noise
    ],
)
def test_grey_images_are_varied_where_they_have_as_little_in_common_as_photographs(
    length: float, normalisation: str, weights: Path, noise_std: float, varied: bool
) -> None:
    release = release_of_squares(RandomFeatureMap())
    mean = release.sums.sum(axis=0) / release.noisy_counts.sum()
    release.sums *= length / np.linalg.norm(mean)
    release.feature_map.normalisation, release.feature_map.weights_sha256 = normalisation, file_sha256(weights)
    release.noise_std_features = noise_std
    for told, expected in ((None, varied), (True, True), (False, False)):
        configuration = generator_configuration(release, small_settings(vary=told))  # type: ignore[arg-type]
        assert configuration.varied is expected


@pytest.mark.parametrize(
    ("data", "resolution", "length", "varied"), [("cifar10.zip", 32, 0.43, True), ("MNIST", 28, 0.74, False)]
)
def test_photographs_in_grey_are_varied_and_digits_are_not(
    data: str, resolution: int, length: float, varied: bool, shared_data: Path
) -> None:
    source = open_images(shared_data / data, public=True, split="test")
    images, _ = load_all(source, resolution=resolution, channels=1)
    chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:1000]]
    feature_map = build_feature_map(describe_feature_map(resolution=resolution, channels=1))
    with torch.inference_mode():
        features = torch.cat([feature_map(batch) for batch in chosen.split(100)])
    release = StandInRelease(
        sums=features.double().sum(dim=0, keepdim=True).numpy(),
        noisy_counts=np.array([len(chosen)], float),
        noise_std_features=0.0,
        noise_std_counts=0.0,
        classes=("all",),
        resolution=resolution,
    )
    release.feature_map = feature_map.description
    assert length_in_common(release) == pytest.approx(length, abs=0.02)  # type: ignore[arg-type]
    assert generator_configuration(release, small_settings()).varied is varied  # type: ignore[arg-type]


def test_a_checkpoint_of_another_generator_is_refused() -> None:
    release = release_of_squares(RandomFeatureMap())
    state = GeneratorTraining(release, RandomFeatureMap(), small_settings()).state_dict()  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="does not fit"):
        train(release, small_settings(base_channels=4), state=state)


def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    release = release_of_squares(RandomFeatureMap())
    state = GeneratorTraining(release, RandomFeatureMap(), small_settings()).state_dict()  # type: ignore[arg-type]
    save_checkpoint(tmp_path, Checkpoint(artifact_sha256="0", settings=small_settings(), state=state, seconds=0.0))
    path = tmp_path / CHECKPOINT_FILE
    whole = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged: begin again"):
            load_checkpoint(tmp_path)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code in a checkpoint ran",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": 1, "state": RunsCode()}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("class_count", "batch_size", "images_per_class", "classes_per_batch"),
    [(1, 200, 200, 1), (10, 200, 20, 10), (3, 200, 66, 3), (200, 200, 4, 50), (200, 1000, 5, 200), (10, 2, 2, 1)],
)
def test_a_batch_holds_as_many_classes_as_it_has_room_for(
    class_count: int, batch_size: int, images_per_class: int, classes_per_batch: int
) -> None:
    schedule = ClassSchedule(class_count, batch_size)
    assert (schedule.images_per_class, schedule.classes_per_batch) == (images_per_class, classes_per_batch)
    assert schedule.images_per_batch <= batch_size


def test_classes_take_turns_evenly_and_never_twice_in_a_batch() -> None:
    schedule, random = ClassSchedule(7, 12), torch.Generator().manual_seed(0)
    seen = torch.zeros(7, dtype=torch.int64)
    for _ in range(70):
        classes = schedule.next_classes(random)
        assert len(classes.unique()) == schedule.classes_per_batch == 3
        seen[classes] += 1
    assert int(seen.max()) - int(seen.min()) <= 1


def test_the_average_generator_lags_behind_and_forgets_the_beginning() -> None:
    release = release_of_squares(RandomFeatureMap())
    training = GeneratorTraining(release, RandomFeatureMap(), small_settings(average_decay=0.99))  # type: ignore[arg-type]
    beginning = training.generator.last.weight.detach().clone()
    for _ in range(5):
        training.run_step()
    now, average = training.generator.last.weight.detach(), training.averaged_generator().last.weight.detach()
    assert not torch.equal(average, now)
    assert float((average - now).norm()) < float((beginning - now).norm())
