"""Write data sets that defaults are tried on, of those at hand: digits over photographs, and photographs in grey.

Both separate what MNIST and CIFAR-10 confound, colour and photographs. The same images come of the same data each time.

- `mnist-m`: as MNIST-M (Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818), of
  a digit and a piece of a photograph the absolute difference, in each channel. Theirs are pieces of BSDS500's
  photographs; these are of Tiny ImageNet's, which the built-in encoder has seen: figures compare with none on theirs.
- `cifar10-grey`: CIFAR-10, each image by Pillow's weights of red, green and blue.

    .venv/bin/python benchmarks/derived_sets.py mnist-m --data ../shared/data --output /tmp/MNIST-M.zip
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images

SIDE = 28  # pixels
PHOTOGRAPHS = {"train": "part-0.zip", "test": "part-1.zip"}
SEED = 0


def write_mnist_m(data: Path, output: Path) -> None:
    """Write train/<digit>/NNNNN.png and test/<digit>/NNNNN.png into the zip `output`, from the shared data sets."""
    rng = np.random.default_rng(SEED)
    with ZipFile(output, "x") as archive:
        for part, photographs in PHOTOGRAPHS.items():
            source = open_images(data / "MNIST", public=True, split=part)
            digits, labels = (found.numpy() for found in load_all(source, resolution=SIDE, channels=1))
            with ZipFile(data / "tiny-imagenet-32" / photographs) as images:
                names = _photographs(images)
                for number, (digit, label) in enumerate(zip(track(digits, part), labels, strict=True)):
                    piece = _random_piece(images.read(names[rng.integers(len(names))]), rng)
                    blended = np.abs(piece.astype(int) - digit[0, :, :, None]).astype(np.uint8)
                    archive.writestr(f"{part}/{label}/{number:05d}.png", _png(Image.fromarray(blended)))


def write_cifar10_grey(data: Path, output: Path) -> None:
    """Write each image of CIFAR-10 under its name, as PNG in grey, into the zip `output`."""
    with ZipFile(data / "cifar10.zip") as source, ZipFile(output, "x") as archive:
        for name in track(_photographs(source), "images"):
            grey = Image.open(BytesIO(source.read(name))).convert("L")
            archive.writestr(str(Path(name).with_suffix(".png")), _png(grey))


SETS = {"mnist-m": write_mnist_m, "cifar10-grey": write_cifar10_grey}


def _random_piece(jpeg: bytes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return 28×28×3 of a photograph, from a random place."""
    photograph = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB"))
    top, left = (rng.integers(size - SIDE + 1) for size in photograph.shape[:2])
    return photograph[top : top + SIDE, left : left + SIDE]


def _photographs(archive: ZipFile) -> list[str]:
    return sorted(name for name in archive.namelist() if name.endswith(".jpg"))


def _png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST, cifar10.zip and tiny-imagenet-32")
    parser.add_argument("--output", type=Path, required=True, help="zip to write; must not be there")
    options = parser.parse_args()
    SETS[options.set](options.data, options.output)


if __name__ == "__main__":
    main()
