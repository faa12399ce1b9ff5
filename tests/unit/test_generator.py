"""The generator draws images of every supported form, cheaply, and survives being stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpmepf.synthesize.generator import (
    CONFIGURATION_FILE,
    WEIGHTS_FILE,
    Generator,
    GeneratorConfiguration,
    GeneratorError,
    ResidualBlock,
    build_generator,
    load_generator,
    save_generator,
)
from dpmepf.synthesize.settings import PRESETS


def configuration(**overrides: Any) -> GeneratorConfiguration:
    values = {
        "class_count": 3,
        "resolution": 28,
        "channels": 1,
        "base_channels": 8,
        "second_convolution": False,
        "latent_dimension": 6,
    }
    return GeneratorConfiguration(**{**values, **overrides})


def small_generator(**overrides: Any) -> Generator:
    return build_generator(configuration(**overrides), seed=0, device="cpu")


@pytest.mark.parametrize("second_convolution", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [28, 32, 64, 128])
def test_images_have_the_asked_form_and_lie_between_0_and_1(
    resolution: int, channels: int, second_convolution: bool
) -> None:
    generator = small_generator(resolution=resolution, channels=channels, second_convolution=second_convolution)
    images = generator(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    assert images.shape == (4, channels, resolution, resolution)
    assert images.dtype == torch.float32
    assert 0 <= float(images.detach().min()) <= float(images.detach().max()) <= 1


def test_the_standard_generator_costs_a_quarter_of_the_encoder() -> None:
    """The built-in encoder takes 53 million multiply-adds per image; the reference machine has no more to give."""
    standard = PRESETS["standard"]
    generator = small_generator(
        class_count=10,
        resolution=32,
        channels=3,
        base_channels=standard.base_channels,
        second_convolution=standard.second_convolution,
        latent_dimension=standard.latent_dimension,
        varied=True,
    )
    assert generator.multiply_adds_per_image() <= 13.3e6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [28, 32, 64, 128])
def test_varied_images_have_the_asked_form_too(resolution: int, channels: int) -> None:
    generator = small_generator(resolution=resolution, channels=channels, varied=True, latent_dimension=9)
    images = generator(torch.randn(4, 9), torch.tensor([0, 1, 2, 0]))
    assert images.shape == (4, channels, resolution, resolution)
    assert images.dtype == torch.float32
    images.square().mean().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert (generator.variation.sizes.weight.grad != 0).any(dim=0).all()  # of every change


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("numbers", [8, 10])
def test_random_input_of_another_length_is_refused(numbers: int, varied: bool) -> None:
    generator = small_generator(varied=varied, latent_dimension=9)
    with pytest.raises(RuntimeError, match="sum exactly to"):
        generator(torch.randn(3, numbers), torch.arange(3))


def test_what_varies_an_image_is_not_seen_by_what_draws_it() -> None:
    generator = small_generator(varied=True, latent_dimension=9).eval()
    assert generator.first.in_features == small_generator(latent_dimension=3).first.in_features
    latents = torch.randn(2, 9)
    latents[1, :3] = latents[0, :3]
    with torch.no_grad():
        first, second = generator(latents, torch.tensor([1, 1]))
        assert not torch.equal(first, second)
        generator.variation.sizes.weight[:] = -100.0  # no changes
        first, second = generator(latents, torch.tensor([1, 1]))
        torch.testing.assert_close(first, second)


def test_images_that_are_varied_need_random_input_for_it() -> None:
    with pytest.raises(GeneratorError, match="latent_dimension is 6, but has to be at least 7 "):
        configuration(varied=True)
    with pytest.raises(GeneratorError, match="field varied is 1, not true or false"):
        configuration(varied=1)


def test_multiply_adds_are_counted_exactly() -> None:
    generator = small_generator(base_channels=8)
    first = (6 + 64) * 24 * 49
    block1 = 49 * (24 * 16 * 9 + 24 * 16)
    block2 = 196 * 16 * 8 * 9 + 49 * 16 * 8  # the skip connection runs before enlarging
    last = 784 * 8 * 9  # after enlarging
    assert generator.multiply_adds_per_image() == first + block1 + block2 + last


def test_the_class_changes_the_image_of_a_latent_vector() -> None:
    generator = small_generator().eval()
    with torch.no_grad():
        images = generator(torch.zeros(2, 6), torch.tensor([0, 1]))
    assert float((images[0] - images[1]).abs().max()) > 0


def test_initial_weights_depend_on_the_seed_alone_and_leave_torchs_seed_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = small_generator()
    assert torch.equal(torch.rand(1), expected)
    two = small_generator()
    other = build_generator(configuration(), seed=1, device="cpu")
    assert torch.equal(one.first.weight, two.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


def test_recalibration_gives_evaluation_the_statistics_of_training() -> None:
    generator = small_generator()
    latents, classes = torch.randn(300, 6, generator=torch.Generator().manual_seed(1)), torch.arange(300) % 3
    with torch.no_grad():
        trained = generator.train()(latents, classes).mean(dim=0)
        generator.recalibrate(batches=5, images_per_batch=200, random=torch.Generator().manual_seed(2))
        evaluated = generator.eval()(latents, classes).mean(dim=0)
        for module in generator.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        without = generator(latents, classes).mean(dim=0)
    assert float((trained - evaluated).abs().mean()) < 0.2 * float((trained - without).abs().mean())


def test_enlarging_after_norm_and_activation_computes_what_enlarging_first_would() -> None:
    block = ResidualBlock(6, 4, 3, enlarges=True, second_convolution=False).train()
    x, classes = torch.randn(5, 6, 7, 7), torch.tensor([0, 1, 2, 0, 1])
    torch.nn.init.normal_(block.norm1.gain.weight)
    enlarged = torch.nn.functional.interpolate(x, scale_factor=2)
    first = block.convolution1(torch.relu(block.norm1(enlarged, classes))) + block.skip(enlarged)
    torch.testing.assert_close(block(x, classes), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("varied", [False, True])
def test_a_stored_generator_draws_the_same_images(tmp_path: Path, varied: bool) -> None:
    generator = small_generator(second_convolution=True, latent_dimension=9, varied=varied).eval()
    save_generator(tmp_path, generator, classes=("a", "ü", "c"))
    loaded, classes = load_generator(tmp_path)
    assert classes == ("a", "ü", "c")
    assert loaded.configuration == generator.configuration
    latents, labels = torch.randn(3, 9), torch.arange(3)
    with torch.no_grad():
        assert torch.equal(loaded(latents, labels), generator(latents, labels))


def test_a_generator_stored_before_images_were_varied_is_read(tmp_path: Path) -> None:
    generator = small_generator()
    save_generator(tmp_path, generator, classes=("a", "b", "c"))
    description = json.loads((tmp_path / CONFIGURATION_FILE).read_text())
    del description["configuration"]["varied"]
    (tmp_path / CONFIGURATION_FILE).write_text(json.dumps(description))
    assert load_generator(tmp_path)[0].configuration == generator.configuration


def test_a_missing_damaged_or_foreign_generator_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match=r"lacks generator\.json"):
        load_generator(tmp_path)
    save_generator(tmp_path, small_generator(), classes=("a", "b", "c"))
    whole = (tmp_path / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(whole[:-50])
    with pytest.raises(GeneratorError, match="damaged"):
        load_generator(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(GeneratorError, match=r"lacks generator\.safetensors"):
        load_generator(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(whole)
    description = json.loads((tmp_path / CONFIGURATION_FILE).read_text())
    for damage in ({"base_channels": 16}, {"resolution": 31}, {"latent_dimension": "6"}, {"unknown": 1}):
        changed = {**description, "configuration": {**description["configuration"], **damage}}
        (tmp_path / CONFIGURATION_FILE).write_text(json.dumps(changed))
        with pytest.raises(GeneratorError):
            load_generator(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("resolution", 30), ("channels", 2), ("class_count", 0)])
def test_a_form_it_cannot_draw_is_refused(field: str, value: int) -> None:
    with pytest.raises(GeneratorError):
        configuration(**{field: value})
