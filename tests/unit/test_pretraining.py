"""Training of the built-in encoder: splits, augmentation, resuming, the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from dpmepf.shared.encoders import BuiltinEncoder, is_whitened, load_encoder
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_errors import UnreadableImageError
from dpmepf.shared.pretraining import (
    PretrainingProgress,
    PretrainingSettings,
    attacked,
    augment,
    held_out_accuracy,
    pretrain_encoder,
    save_weights,
    split_held_out,
    standardise,
)
from dpmepf.shared.pretraining_command import load_public_images, main, read_weights

CLASSES = 30  # and not the 200 of the packaged weights
SETTINGS = PretrainingSettings(epochs=6, resolutions=(8, 16), batch_size=8, learning_rate=0.02)  # batches of 128: 0.15


def two_colours(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 2
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (count, 3, 16, 16), dtype=torch.uint8, generator=random)
    images[labels == 1] += 150
    return images, labels


def test_every_twentieth_image_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20)
    training, held_out = split_held_out(labels, 0.05)
    assert held_out.tolist() == [0, 20, 40]
    assert sorted(training.tolist() + held_out.tolist()) == list(range(60))


def test_augmentation_is_reproducible_and_changes_each_image_on_its_own() -> None:
    batch = torch.rand(1, 3, 16, 16).repeat(4, 1, 1, 1)
    first = augment(batch, SETTINGS, torch.Generator().manual_seed(3))
    assert torch.equal(first, augment(batch, SETTINGS, torch.Generator().manual_seed(3)))
    assert first.shape == batch.shape
    assert not torch.equal(first[0], first[1])


def test_an_attack_moves_each_image_by_the_radius_and_raises_its_loss() -> None:
    images, labels = two_colours(16)
    pixels = images.float() / 255
    torch.manual_seed(1)
    encoder = BuiltinEncoder(2).eval()
    moved = attacked(encoder, pixels, labels, replace(SETTINGS, attack_radius=0.01))
    torch.testing.assert_close((moved - pixels).flatten(1).norm(dim=1), torch.full((16,), 0.01), rtol=1e-3, atol=0)
    assert not moved.requires_grad and all(parameter.grad is None for parameter in encoder.parameters())
    before, after = (
        cross_entropy(encoder(standardise(batch)), labels, label_smoothing=SETTINGS.label_smoothing, reduction="none")
        for batch in (pixels, moved)
    )
    assert (after > before).all()


def test_training_is_on_attacked_images(tmp_path: Path) -> None:
    images, labels = two_colours(64)

    def first_loss(radius: float) -> float:
        losses: list[float] = []
        pretrain_encoder(
            images,
            labels,
            2,
            replace(SETTINGS, epochs=1, attack_radius=radius),
            checkpoint=tmp_path / f"{radius}",
            report=lambda progress: losses.append(progress.loss),
        )
        return losses[0]

    assert first_loss(0.05) > first_loss(0.0) + 0.1


def test_a_radius_that_is_no_length_is_refused() -> None:
    for radius in (-0.1, math.inf, math.nan):
        with pytest.raises(UsageError, match=f"the attack radius is {radius}; choose 0 or a little more"):
            PretrainingSettings(attack_radius=radius)


def test_training_learns_and_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    images, labels = two_colours(64)
    whole = pretrain_encoder(images, labels, 2, SETTINGS, checkpoint=tmp_path / "whole")
    assert held_out_accuracy(whole, images, labels) > 0.9

    def interrupt(progress: PretrainingProgress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_encoder(images, labels, 2, SETTINGS, checkpoint=tmp_path / "part", report=interrupt)
    resumed = pretrain_encoder(images, labels, 2, SETTINGS, checkpoint=tmp_path / "part")
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, resumed.state_dict()[name], atol=1e-6), name


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    images, labels = two_colours(16)
    short = PretrainingSettings(epochs=1, resolutions=(8,), batch_size=8)
    pretrain_encoder(images, labels, 2, short, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="other settings"):
        pretrain_encoder(images, labels, 2, SETTINGS, checkpoint=tmp_path / "checkpoint")


def test_a_checkpoint_of_training_from_other_weights_is_refused(tmp_path: Path) -> None:
    images, labels = two_colours(16)
    torch.manual_seed(5)
    weights = [BuiltinEncoder(2).state_dict() for _ in range(2)]

    def train(initial: dict[str, torch.Tensor] | None) -> BuiltinEncoder:
        file = tmp_path / "checkpoint"
        return pretrain_encoder(images, labels, 2, SETTINGS, checkpoint=file, initial_state=initial)

    trained = train(weights[0])
    for other in (weights[1], None):
        with pytest.raises(UsageError, match="other weights to start from"):
            train(other)
    again = train(weights[0])
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_training_further_starts_from_the_given_weights(tmp_path: Path) -> None:
    """At a learning rate of almost nothing the weights end where they started."""
    images, labels = two_colours(16)
    torch.manual_seed(5)
    start = BuiltinEncoder(2)
    settings = PretrainingSettings(epochs=1, resolutions=(8,), batch_size=8, learning_rate=1e-12)
    ended = pretrain_encoder(
        images, labels, 2, settings, checkpoint=tmp_path / "further", initial_state=start.state_dict()
    )
    for (name, parameter), expected in zip(ended.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, msg=name)


def test_weights_of_another_encoder_are_refused_as_a_start(tmp_path: Path) -> None:
    images, labels = two_colours(16)
    with pytest.raises(UsageError, match="another number of classes"):
        other = BuiltinEncoder(3).state_dict()
        pretrain_encoder(images, labels, 2, SETTINGS, checkpoint=tmp_path / "checkpoint", initial_state=other)


def test_a_file_that_holds_no_weights_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    for content in (None, b"not weights"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match="not a readable"):
            read_weights(file)


@pytest.fixture
def public_folder(tmp_path: Path) -> Path:
    for index in range(CLASSES):
        folder = tmp_path / "public" / f"class{index:03d}"
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = np.full((32, 32, 3), (index + 7 * number) % 256, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "public"


def test_the_command_writes_weights_that_the_encoder_loads(public_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoder.safetensors"
    arguments = [
        "--data",
        public_folder,
        "--output",
        output,
        "--epochs",
        1,
        "--resolutions",
        "8,16",
        "--batch-size",
        15,
    ]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    reported = json.loads(result.stdout)
    encoder, sha256 = load_encoder("builtin", output)
    assert sha256 == reported["sha256"] and reported["classes"] == CLASSES
    assert encoder(torch.zeros(1, 3, 16, 16)).shape == (1, CLASSES)
    assert isinstance(encoder, BuiltinEncoder) and len(encoder.whitening) == 8
    assert not torch.equal(encoder.whitening[0].matrix, torch.eye(32))
    described = describe_feature_map(resolution=28, channels=1, weights_file=output)
    features = build_feature_map(described, weights_file=output)(torch.zeros(2, 1, 28, 28))
    assert described.preset == "default" and bool(torch.isfinite(features).all())
    assert not output.with_name(output.name + ".checkpoint").exists()
    again = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert again.exit_code == 2 and "--force" in again.stderr


def test_no_epochs_leave_weights_as_they_are_and_measure_their_whitening(public_folder: Path, tmp_path: Path) -> None:
    start, output = tmp_path / "start.safetensors", tmp_path / "whitened.safetensors"
    torch.manual_seed(2)
    save_weights(BuiltinEncoder(CLASSES), start)
    arguments = ["--data", str(public_folder), "--output", str(output), "--epochs", "0", "--resolutions", "32"]
    refused = CliRunner().invoke(main, arguments)
    assert not output.exists() and not output.with_name(output.name + ".checkpoint").exists()
    assert refused.exit_code == 2 and "name them by --start-from" in refused.stderr
    result = CliRunner().invoke(main, [*arguments, "--start-from", str(start)])
    assert result.exit_code == 0, result.output
    before, after = load_file(start), load_file(output)
    assert not is_whitened(before) and is_whitened(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    encoder, _ = load_encoder("builtin", output)
    assert isinstance(encoder, BuiltinEncoder)
    for whitening in encoder.whitening:
        assert not torch.equal(whitening.matrix, torch.eye(len(whitening.shift)))
    # and once more from weights that have one already: of the same images it is the same
    again = CliRunner().invoke(main, [*arguments, "--start-from", str(output), "--force"])
    assert again.exit_code == 0, again.output
    assert all(torch.equal(tensor, after[name]) for name, tensor in load_file(output).items())


def test_images_that_are_all_held_out_are_refused(public_folder: Path, tmp_path: Path) -> None:
    for second in public_folder.glob("*/1.png"):
        second.unlink()
    output = tmp_path / "encoder.safetensors"
    result = CliRunner().invoke(main, ["--data", str(public_folder), "--output", str(output), "--resolutions", "16"])
    assert result.exit_code == 2 and "give at least two images of a class" in result.stderr
    assert sorted(tmp_path.iterdir()) == [public_folder]


def test_images_of_one_class_are_refused(public_folder: Path, tmp_path: Path) -> None:
    one_class = next(path for path in sorted(public_folder.iterdir()) if path.is_dir())
    result = CliRunner().invoke(main, ["--data", str(one_class), "--output", str(tmp_path / "w.safetensors")])
    assert result.exit_code == 2 and "has one class, of which an encoder learns nothing" in result.stderr
    assert not list(tmp_path.glob("w*"))


def test_damaged_public_images_are_named_or_left_out(public_folder: Path, tmp_path: Path) -> None:
    damaged = public_folder / "class000" / "2.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"2\.png"):
        load_public_images((public_folder,), resolution=16)
    images, labels, _ = load_public_images((public_folder,), resolution=16, skip_unreadable=True)
    assert len(images) == len(labels) == 2 * CLASSES


def test_where_no_weights_can_be_written_is_said_before_images_are_read(tmp_path: Path) -> None:
    for output, sentence in ((tmp_path / "missing" / "w.safetensors", "there is no folder"), (tmp_path, "is a folder")):
        result = CliRunner().invoke(main, ["--data", str(tmp_path / "absent"), "--output", str(output), "--force"])
        assert (result.exit_code, sentence in result.stderr) == (2, True)
    assert not list(tmp_path.iterdir())
