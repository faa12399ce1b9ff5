"""Sets of synthetic images in every form that `dpmepf-embed` reads: smooth colours with a little noise, ten classes."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = 10
FORMS = ("folder", "zip", "IDX")
_PATTERN = 8  # pixels of the coarse pattern that is enlarged: PNG finds as little to squeeze as in photographs
_NOISE = 6
_BLOCK = 4_096


def synthetic_images(count: int, side: int, channels: int = 3, *, seed: int = 0) -> NDArray[np.uint8]:
    """N×H×W×C."""
    random = np.random.default_rng(seed)
    images = np.empty((count, side, side, channels), np.uint8)
    for image in images:
        coarse = random.integers(0, 256, (_PATTERN, _PATTERN, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))[..., :channels]
        noisy = smooth.astype(np.int16) + random.integers(-_NOISE, _NOISE + 1, smooth.shape, dtype=np.int16)
        image[...] = np.clip(noisy, 0, 255)
    return images


def write_set(form: str, folder: Path, images: NDArray[np.uint8]) -> Path:
    """Write `images` in one of `FORMS`, labels going round; the path that `--data` takes."""
    return {"folder": _write_folder, "zip": _write_zip, "IDX": _write_idx}[form](folder, images)


def write_long_idx(folder: Path, count: int, side: int, channels: int = 1) -> Path:
    """IDX files of any length, a block of images over and over: no more memory or time than writing them takes."""
    folder.mkdir(parents=True)
    block = synthetic_images(min(count, _BLOCK), side, channels)
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    with (folder / f"train-images-idx{len(shape)}-ubyte").open("wb") as file:
        file.write(_idx_header(*shape))
        for start in range(0, count, len(block)):
            file.write(block[: count - start].tobytes())
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx_header(count) + labels.tobytes())
    return folder


def _write_folder(folder: Path, images: NDArray[np.uint8]) -> Path:
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    for index, image in enumerate(images):
        (folder / _name(index)).write_bytes(_png(image))
    return folder


def _write_zip(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for index, image in enumerate(images):
            archive.writestr(_name(index), _png(image))
    return folder / "images.zip"


def _write_idx(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True)
    pixels = images[..., 0] if images.shape[-1] == 1 else images
    (folder / f"train-images-idx{pixels.ndim}-ubyte").write_bytes(_idx_header(*pixels.shape) + pixels.tobytes())
    labels = (np.arange(len(images)) % CLASSES).astype(np.uint8)
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx_header(len(labels)) + labels.tobytes())
    return folder


def _name(index: int) -> str:
    return f"{index % CLASSES}/{index:07}.png"


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _idx_header(*shape: int) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
