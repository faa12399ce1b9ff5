"""Public images enter a data set only where they look like a class, and never more of them than allowed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from synthesis_stand_ins import RandomFeatureMap, squares
from torch import Tensor, nn

from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize import labelling, public_images
from dpmepf.synthesize.generator import Generator, GeneratorConfiguration
from dpmepf.synthesize.labelling import MeanDiscriminant, learn_discriminant
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.public_images import (
    ChosenImages,
    choose_public_images,
    herd,
    open_public_images,
    per_class,
    shares_of,
)
from dpmepf.synthesize.targets import ClassTargets

CLASSES = 3
FORM = {"resolution": 28, "channels": 1}


class PixelFeatureMap(RandomFeatureMap):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.float() / 255)


class GeneratorOfSquares(nn.Module):
    """Draws the square of the class it is asked for, brighter or darker and with some noise."""

    def __init__(self) -> None:
        super().__init__()
        self.configuration = GeneratorConfiguration(
            class_count=CLASSES, base_channels=1, second_convolution=False, latent_dimension=2, **FORM
        )
        self.place = nn.Parameter(torch.zeros(()))
        self.patterns = (squares(CLASSES, 1) > 0).float()

    def forward(self, latents: Tensor, classes: Tensor) -> Tensor:
        drawn = self.patterns[classes] * (0.6 + 0.4 * torch.sigmoid(latents[:, 1]))[:, None, None, None]
        return (drawn + 0.02 * torch.sin(40 * latents[:, 0, None, None, None] * torch.arange(28.0))).clamp(0, 1)


@pytest.fixture(scope="module")
def discriminant() -> MeanDiscriminant:
    feature_map = PixelFeatureMap()
    means = feature_map(squares(CLASSES, 50) * 255).view(CLASSES, 50, -1).mean(dim=1)
    targets = ClassTargets(means=means, counts=np.full(CLASSES, 50.0), noise_variance=np.full(CLASSES, 1e-4))
    generator = cast(Generator, GeneratorOfSquares())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "IMAGES", 900)
        return learn_discriminant(generator, targets, feature_map, ridge=0.3, seed=5)


def save(path: Path, images: Tensor) -> Path:
    np.savez(path, x=(images * 255).round().to(torch.uint8).numpy())
    return path


@pytest.fixture
def squares_and_noise(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of 60 images each: squares of the classes 0, 1, 2 by turns, each followed by noise of a photograph."""
    random = torch.Generator().manual_seed(7)
    pictures = squares(CLASSES, 20).view(CLASSES, 20, 1, 28, 28).transpose(0, 1).flatten(0, 1)
    mixed = torch.stack([pictures, torch.rand(60, 1, 28, 28, generator=random)], dim=1).flatten(0, 1)
    return save(tmp_path / "first.npz", mixed[:60]), save(tmp_path / "second.npz", mixed[60:])


def choose(paths: tuple[Path, ...], discriminant: MeanDiscriminant, numbers: tuple[int, ...]) -> list[ChosenImages]:
    return choose_public_images(open_public_images(paths), discriminant, numbers, **FORM)


def test_chosen_are_images_of_the_right_class_and_none_that_are_far_from_all(
    squares_and_noise: tuple[Path, Path], discriminant: MeanDiscriminant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_images, "LARGEST_SHARE_OF_PUBLIC", 1.0)
    monkeypatch.setattr(public_images, "LARGEST_SHARE_OF_CLASS", 1.0)
    chosen = choose(squares_and_noise, discriminant, (1000, 1000, 1000))
    # Of 20. One of them lies on the edge, within or without by how a processor rounds; noise is 800 times as far off.
    assert all(18 <= count <= 20 for count in per_class(chosen, CLASSES))
    for part in chosen:
        assert (part.places % 2 == 0).all()  # no noise
        assert ((part.places // 2) % 3 == part.classes).all()

    monkeypatch.setattr(public_images, "REACH", np.inf)  # planted: without the limit the noise gets in
    assert any((part.places % 2 == 1).any() for part in choose(squares_and_noise, discriminant, (1000, 1000, 1000)))


def test_batches_give_the_chosen_images_with_their_classes(
    squares_and_noise: tuple[Path, Path], discriminant: MeanDiscriminant
) -> None:
    seen: list[tuple[int, int]] = []
    sources = open_public_images(squares_and_noise)
    chosen = choose_public_images(sources, discriminant, (12, 7, 1), on_images=lambda *step: seen.append(step), **FORM)
    assert seen[:2] == [(60, 120), (60, 120)]
    assert sum(count for count, _ in seen) == seen[-1][1]  # of candidates features are computed twice
    assert 120 < seen[-1][1] <= 180
    assert per_class(chosen, CLASSES).tolist() == [6, 3, 0]  # half of each class; a quarter of a third of 120 is 10
    for part in chosen:
        with np.load(part.path) as archive:
            stored = archive["x"]
        got = [(image, class_index) for images, class_index in part.batches(**FORM) for image in images]
        assert [class_index for _, class_index in got] == part.classes.tolist()
        for (image, _), place in zip(got, part.places, strict=True):
            np.testing.assert_array_equal(image, stored[place])


def test_no_class_takes_more_than_a_quarter_of_its_share_of_the_public_images(
    squares_and_noise: tuple[Path, Path], discriminant: MeanDiscriminant
) -> None:
    assert per_class(choose(squares_and_noise, discriminant, (1000, 1000, 1000)), CLASSES).tolist() == [10, 10, 10]


@pytest.mark.parametrize("seed", range(3))
def test_each_image_that_is_herded_brings_the_mean_nearest(seed: int) -> None:
    """In a metric of features that vary differently; by trying all others each time."""
    metric = WithinClassMetric((Segment("a", 1, 0, 6, channels=6),), ridge=0.1, noise_variance=0.0)
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(100, 6, generator=random) * torch.arange(1.0, 7.0)
    metric.learn(metric.second_moments(rows), rows.mean(dim=0, keepdim=True), 100)
    features = torch.randn(40, 6, generator=random) * torch.rand(40, 1, generator=random) + 1
    mean = torch.tensor([1.3, 0.9, 1.2, 1.0, 1.1, 0.8])
    chosen = herd(features, mean, metric, 10).tolist()

    def distance(of: list[int]) -> float:
        offset = features[of].mean(dim=0, keepdim=True) - mean
        return float((offset * metric.apply(offset)).sum())

    for count in range(10):
        before = chosen[:count]
        others = {row: distance([*before, row]) for row in range(40) if row not in before}
        assert chosen[count] == min(others, key=others.__getitem__)


def test_all_can_be_herded_once() -> None:
    metric = WithinClassMetric((), ridge=1.0, noise_variance=0.0)
    assert sorted(herd(torch.randn(9, 4), torch.zeros(4), metric, 9).tolist()) == list(range(9))


@pytest.mark.parametrize("block", [4096, 7])
def test_the_mean_of_chosen_images_comes_nearer_than_others_do(
    squares_and_noise: tuple[Path, Path], discriminant: MeanDiscriminant, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Than the images of largest margin, and if they are herded at once than nearly all of 100 random choices."""
    monkeypatch.setattr(public_images, "LARGEST_BLOCK", block)
    monkeypatch.setattr(public_images, "SMALLEST_BLOCK", 1)
    pixels = np.concatenate([np.load(path)["x"] for path in squares_and_noise])
    np.savez(squares_and_noise[0], x=pixels)  # those of one source are herded together
    images = torch.from_numpy(pixels)
    classes, margins, _ = discriminant.judge(images)
    features = discriminant.features(images)
    (chosen,) = choose(squares_and_noise[:1], discriminant, (16, 16, 16))
    for label in range(CLASSES):
        found = chosen.places[chosen.classes == label]
        assert len(set(found)) == len(found) == 8
        assert (classes[found] == label).all()
        best = torch.where(classes == label, margins, -torch.inf).topk(8).indices

        def distance(of: Any, label: int = label) -> float:
            offset = features[of].mean(dim=0, keepdim=True) - discriminant.means[label]
            return float((offset * discriminant.metric.apply(offset)).sum())

        assert distance(found) < distance(best)
        candidates = torch.nonzero(classes == label)[:20, 0]
        others = [distance(candidates[torch.randperm(20)[:8]]) for _ in range(100)]
        assert block == 7 or sum(distance(found) < other for other in others) >= 95


@pytest.mark.parametrize("size", range(1, 30))
def test_no_block_is_asked_for_more_than_it_has(size: int) -> None:
    for parts in range(1, size + 1):
        sizes = [len(part) for part in np.array_split(np.arange(size), parts)]
        for limit in range(size + 1):
            shares = shares_of(limit, sizes)
            assert sum(shares) == limit
            assert all(0 <= share <= most for share, most in zip(shares, sizes, strict=True))


def test_what_is_chosen_is_told_by_the_seed(
    squares_and_noise: tuple[Path, Path], discriminant: MeanDiscriminant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_images, "LARGEST_BLOCK", 5)
    monkeypatch.setattr(public_images, "SMALLEST_BLOCK", 1)
    places = [
        choose_public_images(open_public_images(squares_and_noise[:1]), discriminant, (8, 8, 8), seed=seed, **FORM)[0]
        for seed in (0, 0, 1)
    ]
    assert places[0].places.tolist() == places[1].places.tolist() != places[2].places.tolist()


def test_damaged_public_images_are_left_out_and_counted(
    tmp_path: Path,
    discriminant: MeanDiscriminant,
    squares_and_noise: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(public_images, "LARGEST_SHARE_OF_PUBLIC", 1.0)
    with np.load(squares_and_noise[0]) as archive:
        images = archive["x"].astype(np.float32) / 255
    images[0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "damaged.npz", x=images)
    seen: list[tuple[int, int]] = []
    choose_public_images(
        open_public_images([tmp_path / "damaged.npz"]),
        discriminant,
        (9, 9, 9),
        on_images=lambda *step: seen.append(step),
        **FORM,
    )
    assert sum(count for count, _ in seen) == seen[-1][1]  # those left out included
    whole = choose(squares_and_noise[:1], discriminant, (1000, 1000, 1000))[0]
    part = choose((tmp_path / "damaged.npz",), discriminant, (1000, 1000, 1000))[0]
    assert (whole.unreadable, part.unreadable) == (0, 1)
    assert whole.places[0] == 0
    assert set(part.places) == set(whole.places) - {0}


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("empty.npz", "holds no images")])
def test_a_path_without_images_is_refused(tmp_path: Path, name: str, words: str) -> None:
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 28, 28), np.uint8))
    with pytest.raises(DpmepfError, match=words):
        open_public_images([tmp_path / name])


@pytest.mark.parametrize("prefix", ["train", "emnist-letters-train"])
def test_labels_of_public_images_ask_for_no_declaration(tmp_path: Path, prefix: str) -> None:
    """They are not used, and how many there are is no secret."""
    (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 2, 28, 28) + bytes(2 * 28 * 28))
    (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + bytes([3, 25]))
    assert len(open_public_images([tmp_path])[tmp_path]) == 2


def test_an_error_names_the_option_that_it_is_about(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((2, 28, 28), np.uint8), y=np.array([0, -1]))
    with pytest.raises(UsageError, match=f"--public {tmp_path / 'bad.npz'}: .* numbers no class, as -1"):
        open_public_images([tmp_path / "bad.npz"])


def test_an_image_that_vanished_since_it_was_chosen_is_said(tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "0.png")
    source = open_public_images([tmp_path])[tmp_path]
    place = np.zeros(1, np.int64)
    chosen = ChosenImages(path=tmp_path, source=source, unreadable=0, places=place, classes=place)
    (tmp_path / "0.png").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"no longer as it was \(.*0\.png.*\): go on with --resume"):
        list(chosen.batches(workers=0, **FORM))


def test_a_path_that_is_named_twice_is_refused(squares_and_noise: tuple[Path, Path]) -> None:
    path = squares_and_noise[0]
    with pytest.raises(DpmepfError, match="twice"):
        open_public_images([path, path.parent / ".." / path.parent.name / path.name])
