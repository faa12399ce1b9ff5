"""The data set has as many images as asked, the same in every format, under names that are safe."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpmepf.shared.errors import UsageError
from dpmepf.synthesize import sampling
from dpmepf.synthesize.generator import Generator, GeneratorConfiguration, build_generator
from dpmepf.synthesize.sampling import LEFT_OUT, draw_images, images_per_class, write_image_folders, write_npz


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


@pytest.mark.parametrize("sizes", [[6e6, 4e6, 1.0, -1e9], [2.0**63, 2.0**63]])
def test_no_more_than_ten_million_images_are_drawn_unless_their_number_is_named(sizes: list[float]) -> None:
    assert sum(images_per_class([6e6, 4e6, 0.4, -1e9])) == 10_000_000
    with pytest.raises(UsageError, match=r"no more than 10,000,000 .*--samples"):
        images_per_class(sizes)
    assert sum(images_per_class(sizes, samples=10_000_001)) == 10_000_001


@pytest.mark.parametrize("samples", [0, 100_000_001, 10**26])
def test_a_number_of_samples_that_cannot_be_drawn_is_refused(samples: int) -> None:
    with pytest.raises(UsageError, match=f"is {samples:,}, but has to be 1 to 100,000,000"):
        images_per_class([5.0], samples=samples)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_formats_hold_the_same_images(channels: int, tmp_path: Path) -> None:
    generator, numbers, classes = small_generator(channels), (3, 0, 9), ("a", "b", "c")
    advanced: list[int] = []
    write_image_folders(tmp_path, draw_images(generator, numbers, seed=1), classes, advance=advanced.append)
    write_npz(tmp_path, draw_images(generator, numbers, seed=1), classes, (12, channels, 28, 28))
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


def brightness_label(images: Tensor, _: Tensor) -> Tensor:
    """Halves of what is drawn, whatever class it was drawn for, are left out or of class 0 or 2; never class 1."""
    brightness = images.float().mean(dim=(1, 2, 3))
    return torch.where(brightness > brightness.median(), 2, torch.where(brightness > brightness.mean(), LEFT_OUT, 0))


def test_labelled_images_have_the_label_and_there_are_as_many_of_each_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "LABELLED_ROUNDS", 100)
    numbers, counts = (40, 0, 90), Counter[int]()
    for images, class_index in draw_images(
        small_generator(1), numbers, seed=1, label=lambda images, _: count_pixels(images)
    ):
        assert set(count_pixels(torch.from_numpy(images)).tolist()) == {class_index}
        counts[class_index] += len(images)
    assert counts == {0: 40, 2: 90}


def test_a_class_that_no_image_is_labelled_with_is_filled_with_what_was_drawn_for_it() -> None:
    unjudged: list[tuple[int, int]] = []
    drawn = list(
        draw_images(
            small_generator(1),
            (5, 7, 5),
            seed=1,
            label=brightness_label,
            on_unjudged=lambda class_index, count: unjudged.append((class_index, count)),
        )
    )
    assert [sum(len(images) for images, found in drawn if found == label) for label in range(3)] == [5, 7, 5]
    unlabelled = [images for images, found in drawn if found == 1]
    assert len(unlabelled) == 1  # at once, in the last round
    assert unjudged == [(1, 7)]
    list(draw_images(small_generator(1), (5, 7, 5), seed=1, on_unjudged=lambda *_: pytest.fail("nobody judges")))


def test_a_long_stretch_that_yields_nothing_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is drawn for the second class is taken for the first, which is complete."""
    monkeypatch.setattr(sampling, "BATCH", 10)
    seen: list[int] = []
    for images, _ in draw_images(
        small_generator(1),
        (10, 100),
        seed=1,
        label=lambda images, asked: torch.zeros_like(asked),
        on_drawn=lambda: seen.append(0),
    ):
        seen.append(len(images))
    assert seen.count(0) == 11 + 5 * 10 + 10  # batches of six rounds, and of the last without labels


def test_labelled_images_are_the_same_in_every_run(tmp_path: Path) -> None:
    one, two = (
        np.concatenate(
            [
                images
                for images, _ in draw_images(
                    small_generator(1), (9, 9, 9), seed=3, label=lambda images, _: count_pixels(images)
                )
            ]
        )
        for _ in range(2)
    )
    assert np.array_equal(one, two)


def count_pixels(images: Tensor) -> Tensor:
    """A label that depends on nothing but the image: 0 or 2."""
    return 2 * (images.flatten(1).sum(dim=1) % 2)
