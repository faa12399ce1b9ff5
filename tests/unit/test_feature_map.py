"""The feature map: what both sides must compute identically."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vision_transformer import MLPBlock
from torchvision.ops import SqueezeExcitation

from dpmepf.shared import encoders
from dpmepf.shared.activations import ACTIVATIONS, CANNOT_TAKE, put_channels_first, too_small, traced, with_positions
from dpmepf.shared.encoders import BUILTIN, BUILTIN_WEIGHTS, PATIENCE, EncoderWeightsError, file_sha256, load_encoder
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import (
    PRESETS,
    SHORTEST,
    FeatureMap,
    _JoinedUnits,
    _pooling_early,
    _rectified,
    build_feature_map,
    describe_feature_map,
    pool,
)
from dpmepf.shared.feature_map_description import FeatureMapDescription, FeatureMapError


def images(count: int, channels: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("resolution", [28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_default_features_have_3840_coordinates_at_every_size(resolution: int, channels: int) -> None:
    feature_map = build_feature_map(describe_feature_map(resolution=resolution, channels=channels))
    assert feature_map.dimension == 3_840
    assert feature_map(images(2, channels, resolution)).shape == (2, 3_840)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_row_has_norm_one_and_no_negative_coordinate_but_of_whitened_ones(preset: str) -> None:
    feature_map = build_feature_map(describe_feature_map(preset=preset, resolution=32, channels=3))
    features = feature_map(images(5, 3, 32))
    assert feature_map.non_negative is (preset != "default") and feature_map.non_negative is bool(features.min() >= 0)
    assert torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-6)


def squared_norms(feature_map: FeatureMap) -> list[torch.Tensor]:
    features = feature_map(images(3, 3, 32)).double()
    return [segment.of(features).flatten(1).square().sum(dim=1) for segment in feature_map.segments]


def test_each_layer_that_is_not_whitened_has_the_same_share_of_the_squared_norm() -> None:
    feature_map = build_feature_map(describe_feature_map(preset="per-layer", resolution=32, channels=3))
    for found in squared_norms(feature_map):
        assert torch.allclose(found, torch.full((3,), 1 / 8).double(), atol=1e-6)


def test_whitened_layers_have_four_positions_and_shares_that_follow_their_channels() -> None:
    feature_map = build_feature_map(describe_feature_map(resolution=32, channels=3))
    assert [segment.positions for segment in feature_map.segments] == [4] * 8
    for found, channels in zip(squared_norms(feature_map), (32, 32, 64, 64, 128, 128, 256, 256), strict=True):
        assert torch.allclose(found, torch.full((3,), channels / 960).double(), atol=1e-6)


def test_second_moments_are_the_pooled_squares_of_the_activations() -> None:
    description = describe_feature_map(preset="two-moments", resolution=32, channels=3)
    feature_map = build_feature_map(description)
    assert feature_map.dimension == 2 * 15_360
    batch = images(2, 3, 32)
    activation = dict(feature_map._activations(batch))[description.layers[-1]]  # 4×4 positions: not pooled
    segment = feature_map.segments[-1]
    assert (segment.moment, segment.channels, segment.positions) == (2, 256, 16)
    squares = activation.square().flatten(1)
    expected = squares / squares.norm(dim=1, keepdim=True) * math.sqrt(1 / 16)
    assert torch.allclose(segment.of(feature_map(batch)).flatten(1), expected, atol=1e-6)


def test_uint8_and_float_images_give_the_same_features() -> None:
    feature_map = build_feature_map(describe_feature_map(resolution=32, channels=3))
    batch = images(2, 3, 32)
    assert torch.equal(feature_map(batch), feature_map(batch.float() / 255))


def test_no_image_influences_the_features_of_another() -> None:
    feature_map = build_feature_map(describe_feature_map(resolution=32, channels=3)).train()
    first, second = images(4, 3, 32), images(4, 3, 32)
    second[1] = first[1]
    assert torch.equal(feature_map(first)[1], feature_map(second)[1])


def test_features_can_be_differentiated_with_respect_to_the_image() -> None:
    feature_map = build_feature_map(describe_feature_map(resolution=28, channels=1))
    batch = torch.rand(2, 1, 28, 28, requires_grad=True)
    feature_map(batch)[:, ::2].sum().backward()
    assert batch.grad is not None and batch.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in feature_map.parameters())


@pytest.mark.parametrize("positions", [1, 2, 4])
def test_the_gradient_of_pooling_is_that_of_average_pooling(positions: int) -> None:
    activation = torch.rand(2, 3, 8, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool(x, positions), activation)


def test_the_gradient_of_an_average_over_the_image_is_not_written_out() -> None:
    activation = torch.rand(2, 3, 8, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(pool(activation, 1).sum(), activation)
    assert gradient.stride()[2:] == (0, 0)


def test_folding_batch_norm_leaves_the_features_as_they_were() -> None:
    description = describe_feature_map(preset="per-layer", resolution=32, channels=3)
    feature_map = build_feature_map(description)
    encoder, _ = load_encoder("builtin")
    unfolded = create_feature_extractor(encoder, return_nodes=list(description.layers))
    batch = torch.rand(2, 3, 32, 32)
    expected = unfolded((batch - feature_map.pixel_mean) / feature_map.pixel_std)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in feature_map.modules())
    for layer, activation in feature_map._activations(batch):
        assert torch.allclose(activation, expected[layer], rtol=1e-4, atol=1e-4)


def test_the_encoder_of_whitened_features_has_parameters_that_bfloat16_holds() -> None:
    exact, rounded = (
        build_feature_map(describe_feature_map(preset=preset, resolution=32, channels=3)).extractor
        for preset in ("per-layer", "default")
    )
    pairs = list(zip(exact.parameters(), rounded.parameters(), strict=True))
    assert all(torch.equal(parameter.bfloat16().float(), expected) for parameter, expected in pairs)
    assert not any(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("resolution", [28, 32])
def test_pooling_where_an_activation_is_computed_changes_no_bit(preset: str, resolution: int) -> None:
    description = describe_feature_map(preset=preset, resolution=resolution, channels=3)
    feature_map = build_feature_map(description)
    batch = images(3, 3, resolution)
    found = feature_map._pooling_extractor(feature_map._standardised(batch))
    for (layer, activation), positions in zip(feature_map._activations(batch), description.pooling, strict=True):
        powers = [activation if moment == 1 else activation.square() for moment in description.moments]
        expected = [pool(power, positions) for power in powers]
        assert all(torch.equal(*pair) for pair in zip(found[layer], expected, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_units_are_normalised_vectors_bit_by_bit_with_their_gradient(dtype: torch.dtype, autocast: bool) -> None:
    random = torch.Generator().manual_seed(0)
    vectors = [torch.rand(6, size, generator=random).to(dtype) for size in (40, 64, 128)]
    vectors[1][2], vectors[2][3] = 0, 1e-20
    scales = [0.3, 0.5, 0.2]
    for vector in vectors:
        vector.requires_grad_()
    units = [torch.nn.functional.normalize(vector.float(), dim=1, eps=SHORTEST) for vector in vectors]
    expected = torch.cat([unit * scale for unit, scale in zip(units, scales, strict=True)], dim=1)
    gradient = torch.randn(expected.shape, generator=random)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = _JoinedUnits.apply(scales, *vectors)
        gradients = torch.autograd.grad(found, vectors, gradient)
    assert torch.equal(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected, vectors, gradient), strict=True):
        assert one.dtype == other.dtype == dtype
        assert torch.allclose(one, other, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


def test_a_relu_overwrites_only_what_nothing_else_reads() -> None:
    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
            self.relu1, self.relu2 = torch.nn.ReLU(), torch.nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            twice = self.first(x)
            return self.relu2(self.second(self.relu1(twice) + twice))

    traced = torch.fx.symbolic_trace(Encoder().eval())
    nodes = {str(node.target): node for node in traced.graph.nodes}
    traced.graph.output({"relu1": nodes["relu1"], "relu2": nodes["relu2"]})
    traced.graph.erase_node(next(node for node in traced.graph.nodes if node.op == "output"))
    traced.recompile()
    batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = traced(batch)
    pooling = _pooling_early(traced, {"relu1": 4, "relu2": 4}, (1,))
    assert sum(node.target is _rectified for node in pooling.graph.nodes) == 1
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            for layer, (found,) in pooling(batch).items():
                assert torch.equal(found, pool(expected[layer], 4))


def test_the_built_in_encoder_is_traced_as_torchvision_would_without_importing_it() -> None:
    encoder, _ = load_encoder(BUILTIN)
    description = describe_feature_map(resolution=28, channels=3)
    layers = (*description.layers, "pool")
    found, expected = traced(encoder, layers), create_feature_extractor(encoder, return_nodes=list(layers)).eval()
    batch = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for layer, activation in expected(batch).items():
        assert torch.equal(found(batch)[layer], activation)
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in expected.named_parameters()]
    code = (
        "import sys, dpmepf.embed.command, dpmepf.synthesize.command as _; from dpmepf.shared.feature_map import *; "
        "build_feature_map(describe_feature_map(resolution=28, channels=1)); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


def test_description_survives_json_unchanged() -> None:
    description = describe_feature_map(resolution=32, channels=3)
    assert FeatureMapDescription.from_json(description.to_json()) == description


@pytest.mark.parametrize("encoder", ["builtin", "resnet18"])
def test_layers_in_any_order_have_positions_of_their_own(encoder: str) -> None:
    """Planted: torchvision returns activations in the order of computation, whatever order they are asked for in."""
    model = load_encoder(BUILTIN)[0] if encoder == BUILTIN else get_model(encoder, weights=None).eval()
    layers = {"builtin": ("stage3.2", "stage1.2"), "resnet18": ("layer2.0.relu", "layer1.0.relu")}[encoder]
    description = dataclasses.replace(
        describe_feature_map(preset="per-layer", resolution=32, channels=3),
        encoder=encoder,
        layers=layers,
        pooling=(1, 2),
        layer_weights=(0.5, 0.5),
    )
    feature_map = FeatureMap(description, model)
    features = feature_map(images(2, 3, 32))
    assert [(segment.layer, segment.positions) for segment in feature_map.segments] == list(
        zip(layers, (1, 4), strict=True)
    )
    assert features.shape[1] == feature_map.dimension
    found = dict(feature_map._activations(images(2, 3, 32)))
    assert [segment.channels for segment in feature_map.segments] == [found[layer].shape[1] for layer in layers]


def test_one_number_for_the_pooling_of_all_layers_is_still_read() -> None:
    description = describe_feature_map(preset="per-layer", resolution=32, channels=3)
    data = json.loads(description.to_json())
    assert data["pooling"] == [4] * 8
    assert FeatureMapDescription.from_json(json.dumps(data | {"pooling": 4})) == description


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "../evil"),
        ("encoder", 3),
        ("weights_sha256", "ab"),
        ("layers", []),
        ("layers", ["stage1.2"] * 8),
        ("layers", ["a b"] * 8),
        ("pooling", 0),
        ("pooling", True),
        ("pooling", 2.0),
        ("pooling", [2]),
        ("pooling", [2] * 7 + [0]),
        ("pooling", [2] * 7 + [True]),
        ("normalisation", "none"),
        ("moments", [3]),
        ("layer_weights", [1.0]),
        ("layer_weights", [float("nan")] * 8),
        ("resolution", 33),
        ("channels", 2),
        ("pixel_std", [0.0, 0.0, 0.0]),
        ("pixel_mean", [float("inf"), 0.0, 0.0]),
        ("preset", "\x1b[31m"),
    ],
)
def test_a_malformed_description_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    data = json.loads(describe_feature_map(resolution=32, channels=3).to_json())
    data[field] = value
    with pytest.raises(FeatureMapError, match=field):
        FeatureMapDescription.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000])
def test_a_description_that_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(FeatureMapError):
        FeatureMapDescription.from_json(text)


def test_weights_with_another_sha256_are_refused() -> None:
    description = describe_feature_map(resolution=32, channels=3)
    with pytest.raises(EncoderWeightsError, match="SHA-256"):
        build_feature_map(dataclasses.replace(description, weights_sha256="0" * 64))


def test_a_layer_that_the_encoder_lacks_is_refused() -> None:
    description = describe_feature_map(resolution=32, channels=3)
    layers = (*description.layers[:-1], "stage9.9")
    with pytest.raises(FeatureMapError, match="lacks a layer"):
        build_feature_map(dataclasses.replace(description, layers=layers))


@pytest.mark.parametrize("arguments", [{"preset": "x"}, {"resolution": 33}, {"channels": 4}, {"encoder": "nonesuch"}])
def test_unknown_presets_sizes_and_encoders_are_usage_errors(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        describe_feature_map(**({"resolution": 32, "channels": 3} | arguments))  # type: ignore[arg-type]


def random_weights(name: str, folder: Path) -> Path:
    file = folder / f"{name}.pth"
    torch.save(get_model(name, weights=None).state_dict(), file)
    return file


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "mobilenet_v2", "mnasnet0_5", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t"],
)
def test_features_of_torchvisions_classifiers_are_averages_of_channels(name: str, tmp_path: Path) -> None:
    """Against the activations of torchvision's own model, seen by hooks; those of some are N×H×W×C.

    Gates (squeeze and excitation) are none.
    """
    channels_last = name in ("convnext_tiny", "swin_t", "swin_v2_t")
    file = random_weights(name, tmp_path)
    description = describe_feature_map(encoder=name, resolution=32, channels=3, weights_file=file)
    assert description.weights_sha256 == file_sha256(file)
    feature_map = build_feature_map(description, weights_file=file)
    model, _ = load_encoder(name, file)
    seen: list[torch.Tensor] = []
    gates = {part for module in model.modules() if isinstance(module, SqueezeExcitation) for part in module.modules()}
    for path, module in model.named_modules():
        biases = ".cpb_mlp." in path  # of positions, the same for all images
        if isinstance(module, ACTIVATIONS) and module not in gates and not biases:
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    batch = images(2, 3, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        model((batch / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert feature_map.non_negative is not channels_last
    found = feature_map(batch)
    assert len(feature_map.segments) == len(seen)
    for segment, activation in zip(feature_map.segments, seen, strict=True):
        if channels_last:
            activation = activation.permute(0, 3, 1, 2)
        if activation.ndim == 4:
            activation = torch.nn.functional.adaptive_avg_pool2d(activation, [min(4, n) for n in activation.shape[2:]])
        assert segment.channels == activation.shape[1]
        expected = torch.nn.functional.normalize(activation.flatten(1), dim=1) / math.sqrt(len(seen))
        torch.testing.assert_close(segment.of(found).flatten(1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["densenet121", "mnasnet0_5"])
def test_weights_load_as_torchvisions_files_name_them_and_without_versions(
    name: str, suffix: str, tmp_path: Path
) -> None:
    """torchvision's DenseNets are of a time of other names; MNASNet refuses weights that tell no version."""
    expected = get_model(name, weights=None).state_dict()
    named_before = expected.copy()  # with the versions
    for part in expected:
        named_before[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", part)] = named_before.pop(part)
    assert (named_before.keys() != expected.keys()) is (name == "densenet121")
    file = tmp_path / f"{name}{suffix}"
    if suffix == ".safetensors":
        save_file(named_before, file)
    else:
        torch.save(named_before, file)
    found = load_encoder(name, file)[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[part], tensor) for part, tensor in expected.items())


@pytest.mark.parametrize("version", [None, 1, 2])
def test_weights_of_an_earlier_version_of_a_module_are_converted_by_it(
    version: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of vision transformers, whose files call parts otherwise until version 2."""
    monkeypatch.setattr(encoders, "_torchvision_model", lambda name: MLPBlock(4, 8, 0.0))
    state = MLPBlock(4, 8, 0.0).state_dict()
    if version != 2:
        for part in list(state):
            state[part.replace("0.", "linear_1.").replace("3.", "linear_2.")] = state.pop(part)
    if version is None:
        del state._metadata  # type: ignore[attr-defined]
    else:
        state._metadata[""]["version"] = version  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "weights.pth")
    assert isinstance(load_encoder("vit_b_16", tmp_path / "weights.pth")[0], MLPBlock)


def test_an_encoder_that_fails_inside_of_its_own_code_prints_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a MaxViT does, whose windows fit no size that is offered."""

    class Windows(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.relu().reshape(1, 7, 7, -1).relu()

    with pytest.raises(UsageError, match="the encoder windows cannot take 32-pixel images"):
        with_positions(Windows(), ("relu", "relu_1"), encoder="windows", resolution=32)
    assert "Traceback" not in capsys.readouterr().err


def test_activations_that_are_no_images_are_usage_errors() -> None:
    tokens = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Flatten(2), torch.nn.ReLU())
    with pytest.raises(UsageError, match="the activation 2 of the encoder tokens is neither a vector nor an image"):
        put_channels_first(traced(tokens, ("2",)), encoder="tokens", resolution=32)


@pytest.mark.parametrize("error", CANNOT_TAKE)
def test_an_encoder_of_another_image_size_is_a_usage_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vision transformers, which say so by an assertion."""

    def refuse(images: torch.Tensor) -> None:
        raise error("wrong image height")

    extractor = traced(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), ("1",))
    monkeypatch.setattr(extractor, "forward", refuse)
    with pytest.raises(UsageError, match="the encoder vit_b_16 cannot take 64-pixel images"):
        put_channels_first(extractor, encoder="vit_b_16", resolution=64)


def test_the_papers_feature_map_is_all_of_vgg19s_convolutions_each_moment_normalised_together(tmp_path: Path) -> None:
    """Against the activations of torchvision's own model, seen by hooks; random weights."""
    file = tmp_path / "vgg19.pth"
    torch.save(get_model("vgg19", weights=None).state_dict(), file)
    description = describe_feature_map(preset="dp-mepf", encoder="vgg19", resolution=32, channels=3, weights_file=file)
    feature_map = build_feature_map(description, weights_file=file)
    assert len(description.layers) == 16
    assert feature_map.dimension == 2 * 303_104
    model, _ = load_encoder("vgg19", file)
    seen: list[torch.Tensor] = []
    for module in model.features:
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone().flatten(1)))
    batch = images(2, 3, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        model((batch / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    found = feature_map(batch)
    for moment in (1, 2):
        expected = torch.cat(seen, dim=1) ** moment
        expected = expected / expected.norm(dim=1, keepdim=True) / math.sqrt(2)
        ours = torch.cat([s.of(found).flatten(1) for s in feature_map.segments if s.moment == moment], dim=1)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_an_encoder_without_convolutional_activations_is_a_usage_error() -> None:
    """A perceptron in place of an encoder; none of torchvision's that takes small images is one."""
    perceptron = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4), torch.nn.ReLU())
    with pytest.raises(UsageError, match="no activation of the encoder perceptron is an image"):
        with_positions(perceptron, ("2",), encoder="perceptron", resolution=32)


def test_an_encoder_too_deep_for_the_image_size_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "vgg11.pth"
    torch.save(get_model("vgg11", weights=None).state_dict(), file)
    with pytest.raises(UsageError, match="larger --resolution"):
        build_feature_map(
            describe_feature_map(encoder="vgg11", resolution=28, channels=1, weights_file=file), weights_file=file
        )
    with pytest.raises(UsageError, match="larger --resolution"):
        describe_feature_map(preset="dp-mepf", encoder="vgg11", resolution=28, channels=1, weights_file=file)
    assert "choose another --encoder" in too_small("vit_b_16", 128)  # there is no larger one


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_weights_file_is_one_sentence(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(EncoderWeightsError, match="does not hold weights"):
        load_encoder("builtin", file)


def test_weights_of_another_network_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    for state in ({}, torch.zeros(3), {"classifier.bias": torch.tensor(0.0)}, {"classifier.bias": torch.zeros(10)}):
        torch.save(state, file)
        with pytest.raises(EncoderWeightsError, match="does not hold weights"):
            load_encoder("builtin", file)


def test_weights_that_are_nowhere_say_how_to_carry_them_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = []

    def no_network(*arguments: object, **keywords: object) -> None:
        patience.append(socket.getdefaulttimeout())
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(EncoderWeightsError, match="--encoder-weights vgg19"):
        load_encoder("vgg19")
    assert patience == [PATIENCE] and socket.getdefaulttimeout() is None  # a server that says nothing is given up
    with pytest.raises(EncoderWeightsError, match=r"the SHA-256 000000000000…, which are not torchvision's"):
        load_encoder("vgg19", required_sha256="0" * 64)
    assert len(patience) == 1  # what cannot be the right file is not fetched


def test_the_packaged_weights_are_float16_and_at_most_8_mib() -> None:
    assert BUILTIN_WEIGHTS.stat().st_size <= 8 * 2**20


def test_the_model_card_names_the_packaged_weights() -> None:
    card = (BUILTIN_WEIGHTS.parent / "MODEL_CARD.md").read_text()
    assert file_sha256(BUILTIN_WEIGHTS) in card
