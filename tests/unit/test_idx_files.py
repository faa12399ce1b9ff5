"""Plain IDX files of images are read where and when they are wanted, and only as long as they stay what they were."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from dpmepf.shared.idx_files import IdxPixels, _state_of, open_idx_images
from dpmepf.shared.image_errors import UnreadableDataError
from dpmepf.shared.image_loading import iterate_batches
from dpmepf.shared.image_sources import open_images

SECRET = "patient-4711"
COUNT = 50


def images_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_images(path: Path, images: np.ndarray) -> Path:
    path.write_bytes(struct.pack(f">HBB{images.ndim}I", 0, 8, images.ndim, *images.shape) + images.tobytes())
    return path


def set_of(folder: Path, images: np.ndarray) -> Path:
    """A folder with `images` and labels that go round."""
    write_images(folder / f"{SECRET}-train-images-idx{images.ndim}-ubyte", images)
    write_images(folder / f"{SECRET}-train-labels-idx1-ubyte", (np.arange(len(images)) % 3).astype(np.uint8))
    return folder


@pytest.mark.parametrize("shape", [(COUNT, 5, 7), (COUNT, 4, 6, 3), (COUNT, 3, 3, 4)])
def test_any_selection_of_a_plain_file_is_that_of_the_array(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = images_of(shape)
    pixels = open_idx_images(write_images(tmp_path / "images", array))
    array = array.reshape(*shape[:3], -1)
    assert isinstance(pixels, IdxPixels)
    assert (pixels.shape, len(pixels)) == (array.shape, COUNT)
    for part in (slice(None), slice(3, 9), slice(48, 99), slice(7, 7), slice(-5, None), slice(None, None, -3)):
        assert np.array_equal(pixels[part], array[part])
    random = np.random.default_rng(1)
    for places in ([], [0], [COUNT - 1], [4, 5, 6, 2, 3, 49, 0, 0], random.permutation(COUNT), np.arange(COUNT)[::-1]):
        assert np.array_equal(pixels[np.array(places, np.int64)], array[np.array(places, np.int64)])


def test_a_file_without_images_is_an_empty_array(tmp_path: Path) -> None:
    pixels = open_idx_images(write_images(tmp_path / "images", images_of((0, 28, 28))))
    assert pixels.shape == (0, 28, 28, 1)
    assert pixels[:5].shape == (0, 28, 28, 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resolution", [28, 32])  # cut in the main process, and resampled by others
def test_batches_are_those_of_the_array(tmp_path: Path, workers: int, resolution: int) -> None:
    array = images_of((300, 28, 28))
    np.savez(tmp_path / "same.npz", x=array, y=np.arange(300) % 3)
    (tmp_path / "idx").mkdir()
    sources = [
        open_images(path, classes=("a", "b", "c")) for path in (set_of(tmp_path / "idx", array), tmp_path / "same.npz")
    ]
    assert isinstance(sources[0].pixels, IdxPixels)
    order = np.random.default_rng(2).permutation(300)
    for chosen in (sources, [source.rearranged(order) for source in sources]):
        found, expected = (
            list(iterate_batches(source, resolution=resolution, channels=1, batch_size=128, workers=workers))
            for source in chosen
        )
        for (images, labels), (other_images, other_labels) in zip(found, expected, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def overwrite(path: Path) -> None:
    """In place, of the same length, a second later."""
    changed = path.stat().st_mtime_ns + 10**9
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"other images")
    os.utime(path, ns=(changed, changed))


def put_another_in_its_place(path: Path) -> None:
    times = path.stat()
    other = write_images(path.with_name("other"), images_of((COUNT, 32, 32), seed=9))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


def put_a_pipe_in_its_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def overwrite_and_set_back_its_time(path: Path) -> None:
    times = path.stat()
    overwrite(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = [
    shorten,
    lengthen,
    overwrite,
    overwrite_and_set_back_its_time,
    put_another_in_its_place,
    put_a_pipe_in_its_place,
    Path.unlink,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("resolution", [28, 32])
def test_a_file_that_changes_while_it_is_read_ends_the_run_without_its_name(
    tmp_path: Path, change: Callable[[Path], object], resolution: int
) -> None:
    """Unreadable images may be left out, but this is not one image's fault."""
    source = open_images(set_of(tmp_path, images_of((COUNT, 32, 32))), classes=("a", "b", "c"))
    batches = iterate_batches(source, resolution=resolution, channels=1, batch_size=8, skip_unreadable=True)
    next(batches)
    change(tmp_path / f"{SECRET}-train-images-idx3-ubyte")
    with pytest.raises(UnreadableDataError, match=r"was changed while it was read|cannot be read any more") as caught:
        list(batches)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_written_to_after_the_check_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_images(tmp_path / "images", images_of((COUNT, 40, 40)))
    pixels = open_idx_images(path)
    checks = []

    def check_then_overwrite(file: BinaryIO) -> tuple[int, ...]:
        checks.append(_state_of(file))
        overwrite(path)
        return checks[-1]

    monkeypatch.setattr("dpmepf.shared.idx_files._state_of", check_then_overwrite)
    with pytest.raises(UnreadableDataError, match="was changed while it was read"):
        pixels[:]
    assert len(checks) == 2


def test_a_short_read_is_refused_whatever_the_file_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_images(tmp_path / "images", images_of((COUNT, 4, 4)))
    pixels = open_idx_images(path)
    assert isinstance(pixels, IdxPixels)
    shorten(path)
    monkeypatch.setattr("dpmepf.shared.idx_files._state_of", lambda file: pixels._state)
    assert len(pixels[:40]) == 40
    with pytest.raises(UnreadableDataError, match="changed"):
        pixels[40:]


@pytest.mark.parametrize("places", [[-1], [0, COUNT], [2**62]])
def test_places_outside_the_file_are_no_images(tmp_path: Path, places: list[int]) -> None:
    pixels = open_idx_images(write_images(tmp_path / "images", images_of((COUNT, 4, 4))))
    with pytest.raises(IndexError):
        pixels[np.array(places)]


def test_it_is_found_again_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = images_of((COUNT, 4, 4))
    write_images(tmp_path / "images", array)
    monkeypatch.chdir(tmp_path)
    pixels = open_idx_images(Path("images"))
    monkeypatch.chdir("/")
    assert np.array_equal(pixels[:5], array[:5, :, :, None])


def test_public_images_need_not_stay(tmp_path: Path) -> None:
    array = images_of((COUNT, 28, 28))
    source = open_images(set_of(tmp_path, array), classes=("a", "b", "c"), public=True)
    for file in tmp_path.iterdir():
        file.unlink()
    (images, _), *_ = iterate_batches(source, resolution=28, channels=1, batch_size=COUNT)
    assert np.array_equal(images[:, 0], array)
