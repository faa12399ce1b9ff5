"""The data set has as many images as asked, the same in every format, under names that are safe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpmepf.shared.errors import UsageError
from dpmepf.synthesize import sampling
from dpmepf.synthesize.generator import Generator, GeneratorConfiguration, build_generator
from dpmepf.synthesize.sampling import draw_images, images_per_class, write_image_folders, write_npz


def small_generator(channels: int) -> Generator:
    configuration = GeneratorConfiguration(
        class_count=3, resolution=28, channels=channels, base_channels=4, second_convolution=False, latent_dimension=5
    )
    return build_generator(configuration, seed=0, device="cpu").eval()


def test_by_default_the_released_class_sizes_decide_rounded_and_never_negative() -> None:
    assert images_per_class([10.4, 10.6, -7.0, 0.2]) == (10, 11, 0, 0)


def test_samples_are_spread_like_the_released_class_sizes_and_add_up() -> None:
    assert images_per_class([300.0, 100.0, -50.0], samples=40) == (30, 10, 0)
    assert images_per_class([1.0, 1.0, 1.0], samples=10) == (4, 3, 3)
    assert sum(images_per_class(np.random.default_rng(0).random(17), samples=1003)) == 1003


def test_samples_can_be_drawn_of_a_release_that_says_there_is_nothing() -> None:
    assert images_per_class([-1.0, -2.0], samples=5) == (3, 2)
    with pytest.raises(UsageError, match="--samples"):
        images_per_class([-1.0, 0.3])


def test_a_number_of_samples_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        images_per_class([5.0], samples=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_formats_hold_the_same_images(channels: int, tmp_path: Path) -> None:
    generator, numbers, classes = small_generator(channels), (3, 0, 9), ("a", "b", "c")
    advanced: list[int] = []
    write_image_folders(tmp_path, draw_images(generator, numbers, seed=1), classes, advance=advanced.append)
    write_npz(tmp_path, draw_images(generator, numbers, seed=1), numbers, classes, (channels, 28, 28))
    assert sum(advanced) == 12
    with np.load(tmp_path / "gen.npz") as archive:
        x, y = archive["x"], archive["y"]
        assert archive["classes"].tolist() == ["a", "b", "c"]
    assert x.dtype == np.float32
    assert x.shape == (12, channels, 28, 28)
    assert y.dtype == np.int64
    assert y.tolist() == [0] * 3 + [2] * 9
    assert (tmp_path / "images" / "b").is_dir()  # a class without images is still a class
    paths = [path for name in classes for path in sorted((tmp_path / "images" / name).iterdir())]
    assert [path.name for path in paths[:3]] == ["000000.png", "000001.png", "000002.png"]
    pixels = np.stack([np.asarray(Image.open(path)).reshape(28, 28, channels) for path in paths])
    assert np.array_equal(pixels.transpose(0, 3, 1, 2), np.rint(x * 255))
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


def test_images_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small_generator(1)
    whole = np.concatenate([images for images, _ in draw_images(generator, (5, 6), seed=1)])
    monkeypatch.setattr(sampling, "BATCH", 4)
    parts = np.concatenate([images for images, _ in draw_images(generator, (5, 6), seed=1)])
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1  # rounding of sums in another order


def test_another_seed_draws_other_images() -> None:
    generator = small_generator(1)
    one, two = (next(draw_images(generator, (2,), seed=seed))[0] for seed in (1, 2))
    assert not np.array_equal(one, two)
