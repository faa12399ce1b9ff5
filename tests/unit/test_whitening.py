"""Whitening of features by public images: how it is measured, what it makes of activations, where it comes from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpmepf.shared import pretraining
from dpmepf.shared import whitening as whitening_module
from dpmepf.shared.encoders import (
    BUILTIN,
    BUILTIN_WEIGHTS,
    WHITENING,
    BuiltinEncoder,
    EncoderWeightsError,
    load_encoder,
)
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import WHITENED_POOLING, FeatureMap, build_feature_map, describe_feature_map, pool
from dpmepf.shared.feature_map_description import FeatureMapDescription, FeatureMapError
from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.pretraining import whiten
from dpmepf.shared.pretraining_command import read_weights
from dpmepf.shared.whitening import RIDGE, Whitening, each_image_alone

CHANNELS, POSITIONS = 6, 16
MIXED = (1,) * 4 + (2,) * 4  # of each layer, by default until 6c1d21e


def activations(count: int, *, seed: int = 0) -> torch.Tensor:
    """As a layer's are: positive, alike for all images, correlated, of other lengths for each."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(9))
    varying = torch.einsum("dc,ncp->ndp", mixing, torch.randn(count, CHANNELS, POSITIONS, generator=random))
    lengths = torch.empty(count, 1, 1).uniform_(0.1, 30, generator=random)
    return (3 + varying).relu() * lengths


def units(vectors: torch.Tensor) -> torch.Tensor:
    """Each image's at norm 1."""
    return vectors / vectors.flatten(1).norm(dim=1)[:, None, None]


def even(vectors: torch.Tensor) -> torch.Tensor:
    """u of the definition: each image's at norm √P."""
    return units(vectors) * vectors.shape[2] ** 0.5


def channel_rows(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.transpose(1, 2).flatten(0, 1).double()


def test_what_all_images_have_in_common_is_gone_and_directions_vary_alike() -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure(activations(3000).split(700))
    batch = activations(3000, seed=1)
    plain = channel_rows(even(batch))
    variances = torch.linalg.eigvalsh(torch.cov(plain.T))
    assert variances[-1] > 20 * variances[0] and plain.mean(dim=0).norm() > plain.std(dim=0).norm()
    whitened = channel_rows(whitening(even(batch)))
    assert whitened.mean(dim=0).norm() < 0.03 * whitened.std(dim=0).norm()
    # what the ridge leaves of each variance v: v/(v + ρ), but for a factor that all share
    ridge = RIDGE * variances.mean()
    expected = (variances / (variances + ridge)).sort().values
    found = torch.linalg.eigvalsh(torch.cov(whitened.T))
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=0.1, atol=0)


def test_a_whitened_vector_is_w_times_the_unit_vector_less_the_mean() -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure([activations(500)])
    mean = channel_rows(even(activations(500))).mean(dim=0)
    batch = activations(4, seed=2).double().requires_grad_()
    expected = units(whitening.matrix.double() @ (even(batch) - mean[:, None]))
    found = units(whitening(batch))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    gradients = [torch.autograd.grad((features * pull).sum(), batch)[0] for features in (found.double(), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("positions", [1, 4])
def test_what_was_measured_at_some_positions_takes_the_common_mean_away_at_others(positions: int) -> None:
    whitening = Whitening(CHANNELS)
    batch = activations(2000)[:, :, :1].expand(-1, -1, POSITIONS)  # pooling averages nothing out
    whitening.measure([batch])
    pooled = batch[:, :, :positions]
    common = [float(units(features).mean(dim=0).square().sum()) for features in (pooled, whitening(pooled))]
    assert common[0] > 0.5 and common[1] < 0.1


def test_the_scale_of_an_image_s_activations_changes_nothing() -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure([activations(500)])
    batch = activations(3, seed=3)
    torch.testing.assert_close(units(whitening(7 * batch)), units(whitening(batch)), rtol=1e-4, atol=1e-6)


def test_batches_and_their_shape_do_not_matter() -> None:
    whole, parts = Whitening(CHANNELS), Whitening(CHANNELS)
    batch = activations(50)
    whole.measure([batch])
    parts.measure(batch.view(50, CHANNELS, 4, 4).split(7))
    torch.testing.assert_close(whole.matrix, parts.matrix)
    torch.testing.assert_close(whole.shift, parts.shift)
    assert torch.equal(whole(batch), whole(batch.view(50, CHANNELS, 4, 4)))


def test_without_measuring_it_changes_no_direction() -> None:
    batch = activations(3)
    assert torch.equal(Whitening(CHANNELS)(batch), batch)


def test_bfloat16_around_it_does_not_make_it_coarse() -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure([activations(500)])
    batch = activations(3, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = whitening(batch)
    assert found.dtype == torch.float32 and torch.equal(found, whitening(batch))
    assert torch.equal(whitening(batch.bfloat16()), whitening(batch.bfloat16().float()))


def test_activations_that_are_all_zero_have_a_gradient_of_zero() -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure([activations(500)])
    blank = torch.zeros(2, CHANNELS, POSITIONS, requires_grad=True)
    whitening(blank).square().sum().backward()
    assert torch.equal(blank.grad, torch.zeros_like(blank))


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, each_image_alone])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_with_a_gradient_it_gives_the_same_and_the_gradient_of_the_definition(
    memory_format: torch.memory_format, mode: Callable[[], AbstractContextManager[None]], side: int
) -> None:
    whitening = Whitening(CHANNELS)
    random = torch.Generator().manual_seed(3)
    whitening.matrix.copy_(torch.randn(CHANNELS, CHANNELS, generator=random))  # not symmetric, as a measured one is
    whitening.shift.copy_(torch.randn(CHANNELS, generator=random))
    images = activations(20, seed=2).unflatten(2, (4, 4))[..., :side, :side].contiguous(memory_format=memory_format)
    leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()
    weights = torch.randn(20, CHANNELS, side**2, generator=random)

    with mode():
        found = whitening(leaf)
    (found * weights).sum().backward()

    exact = images.double().flatten(2).requires_grad_()
    shift = whitening.shift.double() * exact.flatten(1).norm(dim=1)[:, None] / side
    defined = torch.einsum("dc,ncp->ndp", whitening.matrix.double(), exact) - shift[:, :, None]
    (defined * weights).sum().backward()
    assert exact.grad is not None and leaf.grad is not None
    torch.testing.assert_close(found, whitening(images), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.double(), defined, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(leaf.grad.double().flatten(2), exact.grad, rtol=1e-5, atol=1e-4)


def test_alone_an_image_is_whitened_by_the_same_bits_in_any_company_and_as_with_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure([activations(500)])
    batch = activations(37, seed=2)
    with each_image_alone():
        together = whitening(batch)
        apart = torch.cat([whitening(part) for part in batch.split([1, 5, 31])])
    assert torch.equal(together, apart)
    torch.testing.assert_close(whitening(batch), together, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(whitening_module, "product_of_all", None)
    with each_image_alone():
        assert torch.equal(whitening(batch), together)
    with pytest.raises(TypeError, match="not callable"):
        whitening(batch)


def test_channels_that_never_vary_stay_finite() -> None:
    whitening = Whitening(CHANNELS)
    dead = activations(100)
    dead[:, 2] = 0
    whitening.measure([dead])
    assert torch.isfinite(whitening(dead)).all()


def test_a_layer_that_is_always_zero_is_left_as_it_is() -> None:
    whitening = Whitening(CHANNELS)
    whitening.measure([torch.zeros(5, CHANNELS, POSITIONS)])
    assert torch.equal(whitening.matrix, torch.eye(CHANNELS)) and not whitening.shift.any()


@pytest.mark.parametrize("pooling", [(2,) * 8, MIXED], ids=["default", "former default"])
def test_the_default_features_are_the_whitened_activations_of_each_layer(pooling: tuple[int, ...]) -> None:
    description = dataclasses.replace(describe_feature_map(resolution=32, channels=3), pooling=pooling)
    assert description.normalisation == "whitened"
    feature_map = build_feature_map(FeatureMapDescription.from_json(description.to_json()))
    assert not feature_map.non_negative
    batch = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    features = feature_map(batch)
    state = load_file(BUILTIN_WEIGHTS)
    activations = feature_map._activations(batch)
    for index, (segment, (_, activation), positions) in enumerate(
        zip(feature_map.segments, activations, description.pooling, strict=True)
    ):
        matrix, shift = (state[f"{WHITENING}{index}.{name}"].float() for name in ("matrix", "shift"))
        pooled = even(pool(activation, positions).flatten(2))
        expected = units(matrix @ pooled - shift[:, None]) * description.layer_weights[index] ** 0.5
        torch.testing.assert_close(segment.of(features), expected, rtol=1e-3, atol=1e-5)


def test_the_packaged_whitening_is_that_of_the_packaged_weights(shared_data: Path) -> None:
    """Of the public images that it was measured on, next to nothing is left in common."""
    source = open_images(shared_data / "tiny-imagenet-32" / "part-0.zip", public=True)
    images, _ = load_all(source, resolution=32, channels=3)
    features = build_feature_map(describe_feature_map(resolution=32, channels=3))(images[::50])
    plain = build_feature_map(describe_feature_map(preset="per-layer", resolution=32, channels=3))(images[::50])
    assert plain.mean(dim=0).square().sum() > 0.4
    assert features.mean(dim=0).square().sum() < 0.05
    packaged, measured = (load_encoder(BUILTIN)[0] for _ in range(2))
    assert isinstance(packaged, BuiltinEncoder) and isinstance(measured, BuiltinEncoder)
    whiten(measured, images[::10])
    for expected, found in zip(packaged.whitening, measured.whitening, strict=True):
        assert (found.matrix - expected.matrix).norm() < 0.2 * expected.matrix.norm()
        assert (found.shift - expected.shift).norm() < 0.2 * expected.shift.norm()


def test_bfloat16_does_not_move_the_mean_of_features() -> None:
    """What generators are trained through has the mean that custodians release, but for rounding that averages out."""
    description = describe_feature_map(resolution=32, channels=3)
    random = torch.Generator().manual_seed(4)
    coarse = torch.rand(300, 3, 8, 8, generator=random)
    batch = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    feature_map = build_feature_map(description)
    expected = feature_map(batch).mean(dim=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = feature_map(batch).mean(dim=0)
    assert (found - expected).norm() < 0.01


def test_layers_keep_their_own_whitening_in_any_order() -> None:
    description = dataclasses.replace(describe_feature_map(resolution=32, channels=3), pooling=MIXED)
    layers = description.layers[:2:-2]
    pooling = description.pooling[:2:-2]
    some = dataclasses.replace(
        description, layers=layers, pooling=pooling, layer_weights=(1 / len(layers),) * len(layers)
    )
    batch = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole, part = build_feature_map(description), build_feature_map(some)
    shares = {segment.layer: share for segment, share in zip(whole.segments, description.layer_weights, strict=True)}
    expected = {
        segment.layer: segment.of(whole(batch)) / (shares[segment.layer] * len(layers)) ** 0.5
        for segment in whole.segments
    }
    for segment in part.segments:
        torch.testing.assert_close(segment.of(part(batch)), expected[segment.layer], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["head.2", "stage1.1"])
def test_a_layer_that_is_not_whitened_is_refused(layer: str) -> None:
    description = dataclasses.replace(
        describe_feature_map(resolution=32, channels=3), layers=(layer,), pooling=(1,), layer_weights=(1.0,)
    )
    with pytest.raises(FeatureMapError, match=r"builtin that are not whitened; these are: stage1.2, stage1.5"):
        build_feature_map(description)


def without_whitening(tmp_path: Path) -> Path:
    file = tmp_path / "plain.safetensors"
    save_file({k: v for k, v in load_file(BUILTIN_WEIGHTS).items() if not k.startswith(WHITENING)}, file)
    return file


def test_weights_without_whitening_give_layers_that_are_normalised_alone(tmp_path: Path) -> None:
    file = without_whitening(tmp_path)
    description = describe_feature_map(resolution=32, channels=3, weights_file=file)
    assert (description.preset, description.normalisation) == ("per-layer", "per-layer")
    feature_map = build_feature_map(description, weights_file=file)
    assert feature_map.non_negative
    packaged = build_feature_map(describe_feature_map(preset="per-layer", resolution=32, channels=3))
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(feature_map(batch), packaged(batch))


def test_whitened_features_of_weights_without_whitening_are_refused(tmp_path: Path) -> None:
    file = without_whitening(tmp_path)
    description = describe_feature_map(resolution=32, channels=3, weights_file=file)
    described = dataclasses.replace(description, normalisation="whitened")
    with pytest.raises(FeatureMapError, match=r"builtin come without whitening, .* by --encoder-weights"):
        build_feature_map(described, weights_file=file)


@pytest.mark.parametrize("name", ["whitening.3.matrix", "stage2.0.weight"])
def test_weights_that_are_no_numbers_are_refused(name: str, tmp_path: Path) -> None:
    """Features of them would all be zero: a release of noise, with its budget spent."""
    state = load_file(BUILTIN_WEIGHTS)
    state[name].view(-1)[5] = float("nan")
    file = tmp_path / "damaged.safetensors"
    save_file(state, file)
    with pytest.raises(EncoderWeightsError, match="holds weights that are not finite numbers: give undamaged ones"):
        describe_feature_map(resolution=32, channels=3, weights_file=file)
    with pytest.raises(UsageError, match="holds weights that are not finite numbers: name one that dpmepf-pretrain"):
        read_weights(file)


@pytest.mark.parametrize("moments", [(2,), (1, 2)])
def test_second_moments_are_not_whitened(moments: tuple[int, ...]) -> None:
    description = describe_feature_map(resolution=32, channels=3)
    with pytest.raises(FeatureMapError, match="allowed is 1 alone for whitened"):
        dataclasses.replace(description, moments=moments)


def test_an_encoder_is_whitened_by_its_own_activations() -> None:
    """Measured once more on activations as the feature map takes them, W and Wμ are the same."""
    encoder, _ = load_encoder(BUILTIN)
    assert isinstance(encoder, BuiltinEncoder)
    random = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=random)
    statistics = encoder.stage1[1].running_mean.clone()
    whiten(encoder.train(), images)
    assert torch.equal(encoder.stage1[1].running_mean, statistics)
    description = describe_feature_map(preset="per-layer", resolution=32, channels=3)
    feature_map = FeatureMap(dataclasses.replace(description, pooling=(WHITENED_POOLING,) * 8), encoder)
    features = feature_map(images)
    for whitening, segment in zip(encoder.whitening, feature_map.segments, strict=True):
        expected = Whitening(segment.channels)
        expected.measure([segment.of(features)])
        torch.testing.assert_close(whitening.matrix, expected.matrix, rtol=0.02, atol=0.02)
        torch.testing.assert_close(whitening.shift, expected.shift, rtol=0.02, atol=0.02)


def test_images_of_all_classes_count_where_there_are_more_than_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public sets come class by class."""
    monkeypatch.setattr(pretraining, "WHITENING_IMAGES", 30)
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    images[:30] //= 8
    shifts = []
    for chosen in (images, images, images[:30], images[30:], images[::2]):
        encoder, _ = load_encoder(BUILTIN)
        assert isinstance(encoder, BuiltinEncoder)
        whiten(encoder, chosen)
        shifts.append(encoder.whitening[7].shift)
    assert torch.equal(shifts[0], shifts[1])
    assert (shifts[0] - shifts[4]).norm() < 0.5 * min((shifts[0] - shifts[other]).norm() for other in (2, 3))
