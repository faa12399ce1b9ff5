"""What the synthetic images are worth: the whole job several times over, and its accuracy. Run by `make bench-quality`.

Each run is a release of its own (fresh noise) and a generator of its own (another seed), by the commands a user runs:
embed, synth, eval. Quoted are mean and sample standard deviation over the runs of the accuracy of classifiers that were
trained on the synthetic and tested on the real images, of KID, and of the minutes that embed and synth took together.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

console = Console(stderr=True)


def call(command: str, *arguments: object) -> str:
    """Run one of our commands and return what it prints."""
    program = Path(sysconfig.get_path("scripts")) / command
    return subprocess.run(
        [str(part) for part in (program, *arguments)], check=True, stdout=subprocess.PIPE
    ).stdout.decode()


def one_run(
    data: Path, real: Path, epsilon: float, seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Release, train, draw and score once."""
    artifact, synthetic = folder / "artifact.h5", folder / "synthetic"
    begun = time.perf_counter()
    call("dpmepf-embed", "--data", data, "--eps", epsilon, "--delta", options.delta, "--output", artifact)
    choices = ["--preset", options.preset] + ([] if options.steps is None else ["--steps", options.steps])
    for path in options.public:
        choices += ["--public", path]
    call("dpmepf-synth", artifact, "--output", synthetic, "--seed", seed, "--format", "npz", *choices)
    minutes = (time.perf_counter() - begun) / 60
    scores = json.loads(
        call("dpmepf-eval", synthetic, "--real", real, "--seeds", 1, "--classifiers", options.classifiers, "--json")
    )
    accuracies = {name: score["mean"] for name, score in scores["accuracy"].items()}
    kid = scores["kid"]["mean"] if isinstance(scores["kid"], dict) else scores["kid"]
    result = {"epsilon": epsilon, "seed": seed, "minutes": minutes, "kid": kid, "extractor": scores["extractor"]}
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        (synthetic / "preview.png").replace(options.keep / f"{data.stem}-eps{epsilon:g}-{seed}.png")
    return {**result, **accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/MNIST"), help="images to release")
    parser.add_argument("--real", type=Path, help="images to test on, by default the test split of --data")
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0], help="privacy budgets, one table row each")
    parser.add_argument("--delta", type=float, default=1e-5, help="of every release")
    parser.add_argument("--runs", type=int, default=3, help="runs for each budget")
    parser.add_argument("--first-seed", type=int, default=0, help="of the first run; the others count on from it")
    parser.add_argument("--preset", default="standard", help="of dpmepf-synth")
    parser.add_argument("--steps", type=int, help="of dpmepf-synth, by default the preset's")
    parser.add_argument("--public", type=Path, nargs="+", default=[], help="public images, of dpmepf-synth")
    parser.add_argument("--classifiers", default="logistic,mlp,cnn", help="of dpmepf-eval")
    parser.add_argument("--keep", type=Path, help="folder for the preview pictures")
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(f"{options.data} does not exist: name image data with --data")
    real = options.real or options.data
    title = f"{options.data.name}, δ = {options.delta:g}, {options.runs} runs, preset {options.preset}, "
    table = Table(title=title + f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    names = [*options.classifiers.split(","), "kid", "minutes"]
    for heading in ("ε", *names):
        table.add_column(heading, justify="right")
    for epsilon in options.eps:
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.runs):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(one_run(options.data, real, epsilon, seed, options, Path(folder)))
            console.print(json.dumps(runs[-1]), soft_wrap=True)
        table.add_row(f"{epsilon:g}", *(summary([run[name] for run in runs]) for name in names))
    console.print(table)


def summary(values: list[float]) -> str:
    """Mean ± sample standard deviation; the mean alone of one value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
