"""The whole job on real images, without a download: embed, audit, synthesise, evaluate. Run by `make demo`.

Uses MNIST when it is found ($DPMEPF_MNIST, ../shared/data/MNIST, torchvision's ./data/MNIST), else the 1,797 real
handwritten digits that come with scikit-learn, enlarged. Needs some minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

EPSILON = "2"
TRAINING_DIGITS = 1500
SAMPLES = "5000"  # as many as the release says would be 60,000 files of MNIST
DEMO = Path("demo")
console = Console(stderr=True)


def find_mnist() -> Path | None:
    """The folder with MNIST's IDX files, plain or gzipped; None if there is none in the usual places.

    Raises:
        SystemExit: the folder named in $DPMEPF_MNIST holds none.
    """
    named = os.environ.get("DPMEPF_MNIST")
    for root in [named] if named else ["../shared/data/MNIST", "data/MNIST", "~/data/MNIST"]:
        for folder in (Path(root).expanduser(), Path(root).expanduser() / "raw"):
            if any(folder.glob("train-images-idx3-ubyte*")):
                return folder
    if named:
        sys.exit(
            f"Error: DPMEPF_MNIST is {named}, but neither that folder nor raw/ in it holds train-images-idx3-ubyte or "
            "train-images-idx3-ubyte.gz: name the folder that does, or unset it to use scikit-learn's digits"
        )
    return None


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write scikit-learn's digits, enlarged from 8×8 to 28×28, as class folders of PNG: train/ and test/."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "train" if index < TRAINING_DIGITS else "test"
        target = folder / part / str(label)
        target.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((28, 28), Image.Resampling.BICUBIC)
        image.save(target / f"{index:04d}.png")
    return folder / "train", folder / "test"


def run(command: str, *arguments: str | Path) -> None:
    """Show and run one of our commands."""
    console.rule(f"[bold]{command} {' '.join(map(str, arguments))}")
    subprocess.run([Path(sysconfig.get_path("scripts")) / command, *map(str, arguments)], check=True)


def main() -> None:
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    mnist = find_mnist()
    if mnist is None:
        console.print("MNIST was not found (name its folder in DPMEPF_MNIST): using scikit-learn's handwritten digits.")
        train, test = write_digits(DEMO / "digits")
    else:
        train = test = mnist
    artifact, synthetic = DEMO / "artifact.h5", DEMO / "synthetic"
    run("dpmepf-embed", "--data", train, "--eps", EPSILON, "--delta", "1e-5", "--output", artifact)
    run("dpmepf-audit", artifact)
    run("dpmepf-synth", artifact, "--preset", "quick", "--samples", SAMPLES, "--output", synthetic)
    run("dpmepf-eval", synthetic, "--real", test, "--seeds", "1", "--classifiers", "logistic,cnn")
    console.rule("[bold]Look at")
    for name in ("preview.png", "curve.png", "report.html"):
        console.print(f"  {synthetic / name}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failure:
        sys.exit(failure.returncode)
