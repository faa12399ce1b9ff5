"""Data sets made of those at hand: digits over photographs, and photographs in grey; the same every time."""

from __future__ import annotations

import gzip
import struct
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from derived_sets import write_cifar10_grey, write_mnist_m
from PIL import Image

from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images

DIGITS = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Black and white “digits” of all pixels, in turn, and photographs of one colour each part."""
    raw, photographs = tmp_path / "MNIST" / "raw", tmp_path / "tiny-imagenet-32"
    raw.mkdir(parents=True)
    photographs.mkdir()
    images = np.zeros((DIGITS, 28, 28), np.uint8)
    images[1::2] = 255
    for name in ("train", "t10k"):
        header = struct.pack(">4I", 2051, DIGITS, 28, 28)
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        labels = struct.pack(">2I", 2049, DIGITS) + bytes(range(DIGITS))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    for number, colour in enumerate([(200, 100, 0), (0, 100, 200)]):
        with ZipFile(photographs / f"part-{number}.zip", "w") as archive:
            jpeg = BytesIO()
            Image.new("RGB", (32, 32), colour).save(jpeg, "JPEG", quality=100, subsampling=0)
            archive.writestr("n01/n01_0.jpg", jpeg.getvalue())
            archive.writestr("classes.txt", "no photograph")
    return tmp_path


def test_a_digit_inverts_the_photograph_where_it_is_white(data: Path, tmp_path: Path) -> None:
    write_mnist_m(data, tmp_path / "m.zip")
    for split, colour in (("train", (200, 100, 0)), ("test", (0, 100, 200))):
        source = open_images(tmp_path / "m.zip", public=True, split=split)
        images, labels = load_all(source, resolution=28, channels=3)
        assert labels.tolist() == list(range(DIGITS))
        for image, label in zip(images, labels, strict=True):
            expected = np.array(colour) if label % 2 == 0 else 255 - np.array(colour)
            assert np.abs(image.numpy() - expected[:, None, None]).max() <= 2  # of JPEG


def test_it_is_the_same_every_time_and_replaces_nothing(data: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_mnist_m(data, tmp_path / name)
    first, second = (ZipFile(tmp_path / name) for name in ("a.zip", "b.zip"))
    assert first.namelist() == second.namelist() and len(first.namelist()) == 2 * DIGITS
    assert all(first.read(name) == second.read(name) for name in first.namelist())
    with pytest.raises(FileExistsError):
        write_mnist_m(data, tmp_path / "a.zip")


def test_photographs_in_grey_keep_their_classes_and_parts(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "cifar10.zip", "w") as archive:
        for part, colour in (("train", (255, 0, 0)), ("test", (0, 255, 0))):
            jpeg = BytesIO()
            Image.new("RGB", (32, 32), colour).save(jpeg, "JPEG", quality=100, subsampling=0)
            archive.writestr(f"{part}/cat/0000.jpg", jpeg.getvalue())
    write_cifar10_grey(tmp_path, tmp_path / "grey.zip")
    with ZipFile(tmp_path / "grey.zip") as archive:
        assert archive.namelist() == ["test/cat/0000.png", "train/cat/0000.png"]
        for name, weight in (("train/cat/0000.png", 0.299), ("test/cat/0000.png", 0.587)):
            image = Image.open(BytesIO(archive.read(name)))
            assert image.mode == "L" and np.abs(np.asarray(image) - 255 * weight).max() <= 3  # of JPEG
