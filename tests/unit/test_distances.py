"""FID, KID, precision and recall mean what their definitions say; the extractor is never downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmepf.shared.encoders import BuiltinEncoder, EncoderWeightsError
from dpmepf.shared.errors import UsageError
from dpmepf.synthesize import distances
from dpmepf.synthesize.distances import (
    extract_features,
    load_extractor,
    measure_distances,
    precision_and_recall,
)


def normal(count: int, dimension: int = 8, *, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def test_a_set_is_at_no_distance_from_itself() -> None:
    features = normal(300)
    measured = measure_distances(features, features)
    assert abs(measured.fid) < 1e-6
    assert measured.precision == measured.recall == 1.0


def test_fid_is_the_frechet_distance_of_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "KID_SUBSETS", 2)  # time
    monkeypatch.setattr(distances, "NEIGHBOUR_IMAGES", 100)
    synthetic = normal(20_000, 2, std=2.0, seed=1)
    real = normal(20_000, 2, mean=3.0, seed=2)
    # ‖m1 - m2‖² + Σ (s1 - s2)² for diagonal covariances: 2·9 + 2·1; sampling error about 0.1
    assert measure_distances(synthetic, real).fid == pytest.approx(20.0, abs=0.5)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    synthetic, real = normal(60, 4, mean=0.5, seed=3), normal(60, 4, seed=4)

    def kernel(a: Tensor, b: Tensor) -> NDArray[np.float64]:
        return ((a @ b.T / 4 + 1) ** 3).numpy()

    between, own, other = kernel(synthetic, real), kernel(synthetic, synthetic), kernel(real, real)
    off_diagonal = (own.sum() - np.trace(own) + other.sum() - np.trace(other)) / (60 * 59)
    whole = off_diagonal - 2 * between.mean()
    measured = measure_distances(synthetic, real)
    # Subsets of 30 have this expectation; the mean of 100 is within 4 standard errors of it (rate 6e-5, fixed seed).
    assert measured.kid_mean == pytest.approx(whole, abs=4 * measured.kid_std / 10)
    assert measured.kid_std > 0


def test_precision_and_recall_on_a_line_by_hand() -> None:
    real = torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)[:, None]
    synthetic = torch.tensor([0.5, 3.4, 30.0, 31.0], dtype=torch.float64)[:, None]
    # One neighbour: balls of real points reach 1, 1, 1 and 8; those of synthetic points 2.9, 2.9, 1 and 1.
    precision, recall = precision_and_recall(synthetic, real, neighbours=1)
    assert precision == 2 / 4  # 0.5 and 3.4 (within 8 of 10)
    assert recall == 3 / 4  # 0, 1 and 2, but not 10


def test_a_generator_stuck_on_one_image_has_precision_without_recall() -> None:
    real = normal(400, 4)
    stuck = real[:1] + normal(400, 4, std=1e-3, seed=5)
    precision, recall = precision_and_recall(stuck, real)
    assert precision > 0.99
    assert recall < 0.05


def test_pure_noise_far_away_has_neither() -> None:
    assert precision_and_recall(normal(100, mean=50.0, seed=6), normal(100)) == (0.0, 0.0)


def test_many_rows_are_the_same_as_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic, real = normal(150, 3, mean=0.7, seed=7), normal(150, 3)
    whole = precision_and_recall(synthetic, real)
    monkeypatch.setattr(distances, "ROWS_AT_ONCE", 7)
    assert precision_and_recall(synthetic, real) == whole


def test_the_numbers_depend_on_the_seed_only_through_kid_subsets() -> None:
    synthetic, real = normal(100, mean=0.2, seed=8), normal(100)
    state = torch.random.get_rng_state()
    first, again, other = (measure_distances(synthetic, real, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.kid_mean != other.kid_mean
    assert (first.fid, first.precision, first.recall) == (other.fid, other.precision, other.recall)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_too_few_images_are_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"at least 10 images.*--no-distances"):
        measure_distances(normal(9), normal(100))


@pytest.fixture
def untrained_builtin(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> tuple[BuiltinEncoder, str]:
        torch.manual_seed(0)
        return BuiltinEncoder().eval().requires_grad_(False), "0" * 64

    monkeypatch.setattr(distances, "load_encoder", load)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("untrained_builtin", "empty_cache")
def test_without_inception_weights_the_builtin_encoder_is_used_and_named() -> None:
    extractor = load_extractor("auto")
    assert extractor.label.startswith("builtin encoder 00000000, ")
    images = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    features = extract_features(extractor, images)
    assert features.shape == (7, 512)
    assert features.dtype == torch.float64


@pytest.mark.usefixtures("untrained_builtin")
def test_features_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = load_extractor("builtin")
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    seen: list[int] = []
    together = extract_features(extractor, images, on_images=seen.append)
    monkeypatch.setattr(distances, "FEATURE_BATCH", 2)
    apart = extract_features(extractor, images, on_images=seen.append)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert seen == [9, 2, 2, 2, 2, 1]


@pytest.mark.usefixtures("empty_cache")
def test_asking_for_inception_without_its_weights_says_where_they_belong() -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(EncoderWeightsError, match=r"checkpoints.*inception-2015-12-05.*--extractor builtin"):
        load_extractor("inception")


@pytest.mark.parametrize("choice", ["auto", "inception"])
def test_a_forged_inception_file_is_never_unpickled(empty_cache: Path, choice: str) -> None:
    pytest.importorskip("torch_fidelity")
    weights = distances.inception_weights_file()
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(EncoderWeightsError, match="damaged or not torch-fidelity's"):
        load_extractor(choice)


def test_asking_for_inception_without_torch_fidelity_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "RequirementCache", lambda name: False)
    with pytest.raises(UsageError, match=r"pip install dpmepf\[inception\]"):
        load_extractor("inception")


def test_inception_is_used_and_named_when_its_weights_are_in_the_cache(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity

    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(fidelity, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(distances, "_check_hash", lambda weights: None)
    weights = distances.inception_weights_file()
    weights.parent.mkdir(parents=True)
    with monkeypatch.context() as patch:  # random weights of the right form
        state: dict[str, Tensor] = {}
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: state)
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save(fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict(), weights)
    extractor = load_extractor("auto")
    assert "Inception" in extractor.label
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert extract_features(extractor, images).shape == (2, 2048)


def test_an_unknown_extractor_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="auto, inception, builtin"):
        load_extractor("vgg")
