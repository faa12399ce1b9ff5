"""Write a data set in colour that nothing of ours was chosen by: MNIST's digits over photographs.

As MNIST-M (Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818): of a digit and
a piece of a photograph the absolute difference, in each channel. Theirs are pieces of BSDS500's photographs; these are
of Tiny ImageNet's, which the built-in encoder has seen, so figures are not comparable with those on the original. The
same images come of the same data every time.

    .venv/bin/python benchmarks/mnist_m.py --data ../shared/data --output /tmp/MNIST-M.zip
"""

from __future__ import annotations

import argparse
import gzip
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

SIDE = 28  # pixels
PARTS = {"train": ("train", "part-0.zip"), "test": ("t10k", "part-1.zip")}  # MNIST's name, photographs
SEED = 0


def write_mnist_m(data: Path, output: Path) -> None:
    """Write train/<digit>/NNNNN.png and test/<digit>/NNNNN.png into the zip `output`, from the shared data sets."""
    rng = np.random.default_rng(SEED)
    with ZipFile(output, "x") as archive:
        for part, (mnist, photographs) in PARTS.items():
            digits, labels = read_mnist(data / "MNIST" / "raw", mnist)
            with ZipFile(data / "tiny-imagenet-32" / photographs) as source:
                names = sorted(name for name in source.namelist() if name.endswith(".jpg"))
                for number, (digit, label) in enumerate(zip(track(digits, part), labels, strict=True)):
                    piece = random_piece(source.read(names[rng.integers(len(names))]), rng)
                    blended = np.abs(piece.astype(int) - digit[:, :, None]).astype(np.uint8)
                    png = BytesIO()
                    Image.fromarray(blended).save(png, "PNG")
                    archive.writestr(f"{part}/{label}/{number:05d}.png", png.getvalue())


def read_mnist(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return uint8 N×28×28 and N labels."""
    images = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, SIDE, SIDE), np.frombuffer(labels, np.uint8, offset=8)


def random_piece(jpeg: bytes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return 28×28×3 of a photograph, from a random place."""
    photograph = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB"))
    top, left = (rng.integers(size - SIDE + 1) for size in photograph.shape[:2])
    return photograph[top : top + SIDE, left : left + SIDE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST and tiny-imagenet-32")
    parser.add_argument("--output", type=Path, required=True, help="zip to write; must not be there")
    options = parser.parse_args()
    write_mnist_m(options.data, options.output)


if __name__ == "__main__":
    main()
