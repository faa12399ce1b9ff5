"""What the synthetic images are worth: the whole job several times over, and its accuracy. Run by `make bench-quality`.

Each run is a release of its own (fresh noise) and a generator of its own (another seed), by the commands a user runs:
embed, synth, eval. Quoted are mean and sample standard deviation over the runs of the accuracy of classifiers that were
trained on the synthetic and tested on the real images, of KID, and of the minutes that all but the scoring took.

Baselines run in the same table, on the same images and scored by the same command: DP-MERF (dp_merf.py) with the same
generator, and a classifier trained by DP-SGD on the private images themselves (dp_sgd.py). `ours-plain` is ours without
correcting labels, which DP-MERF's features are not good enough for: these two differ by the features and by what needs
good ones (the metric, and changes at random of images as they are drawn).
`real` scores the private images themselves, at no ε: what no synthetic set is expected to exceed.

A long table is made in several sessions: `--log FILE` keeps every run and leaves out those that are in it already, and
`--table FILE…` and `--history FILE…` make docs/RESULTS.md and docs/RESULTS_HISTORY.md of such files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dp_merf
import dp_sgd
import torch
from quality_log import Record, append_to_log, key_of, read_log
from quality_table import document, history
from rich.console import Console
from rich.table import Table
from run_identity import commit_time_of, machine, require_unchanged, version_of

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.claims import recomputed_epsilon
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.devices import choose_device
from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.precision import autocast_dtype
from dpmepf.shared.schema import infer_schema
from dpmepf.synthesize.classifiers import accuracy_of
from dpmepf.synthesize.output_folder import RUN_FILE
from dpmepf.synthesize.settings import PRESETS, SynthesisSettings, settings_for

METHODS = ("ours", "ours-plain", "dp-merf", "dp-sgd", "real")
OWN_FILES = {
    "dp-merf": ["benchmarks/dp_merf.py", "benchmarks/baseline_set.py"],
    "dp-sgd": ["benchmarks/dp_sgd.py"],
}
DATA_NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "fashion": "Fashion-MNIST"}  # of files, as tables call them
console = Console(stderr=True)


def call(command: str, *arguments: object) -> str:
    """Run one of our commands and return what it prints."""
    program = Path(sysconfig.get_path("scripts")) / command
    return subprocess.run(
        [str(part) for part in (program, *arguments)], check=True, stdout=subprocess.PIPE
    ).stdout.decode()


def budgets(method: str, options: argparse.Namespace, *, first: bool = True) -> list[float | None]:
    """The ε that a method is run at with a seed: `real` at none, and once, for nothing in it is random but the CNN."""
    if method == "real":
        return [None] if first else []
    return list(options.eps)


def planned(method: str, epsilon: float | None, seed: int, options: argparse.Namespace) -> Record:
    """What a run is of (`quality_log.KEY`), before it is made."""
    training = training_settings(options, seed)
    ours = {"preset": options.preset, "steps": training.steps, "bfloat16": native_bfloat16()}
    settings: dict[str, Any]
    match method:
        case "dp-merf":
            settings = ours | {
                "features": dp_merf.DIMENSION,
                "squared_bandwidth_per_value": dp_merf.SQUARED_BANDWIDTH_PER_VALUE,
            }
        case "dp-sgd":
            settings = {"preset": options.preset, **dataclasses.asdict(dp_sgd.RECIPES[options.preset])}
        case "real":
            settings = {}
        case _:
            settings = ours | ({"public": [path.name for path in options.public]} if options.public else {})
            settings |= {"prior": options.prior.resolve().name} if options.prior else {}
    real = "" if options.real == options.data else f", on {options.real.name}"
    return {
        "data": DATA_NAMES.get(options.data.stem.lower(), options.data.stem),
        "method": method,
        "relation": None if epsilon is None else options.relation,
        "epsilon": epsilon,
        "delta": None if epsilon is None else options.delta,
        "seed": seed,
        "settings": settings,
        "evaluation": ("cnn" if method == "dp-sgd" else f"{options.classifiers}, 1 seed") + real,
        "version": version_of(*OWN_FILES.get(method, [])),
    }


def training_settings(options: argparse.Namespace, seed: int) -> SynthesisSettings:
    """What `dpmepf-synth` takes for these options where noise is not so large that it makes fewer steps."""
    overrides = {} if options.steps is None else {"steps": options.steps}
    return settings_for(options.preset, bfloat16=native_bfloat16(), seed=seed, **overrides)


def native_bfloat16() -> bool:
    return autocast_dtype(choose_device("auto")) is torch.bfloat16


def one_run(plan: Record, options: argparse.Namespace, folder: Path) -> Record:
    """Make the run that `plan` describes; its outcome is added to the plan."""
    begun = time.perf_counter()
    if plan["method"] == "dp-sgd":
        outcome = private_classifier(plan, options)
        outcome["minutes"] = (time.perf_counter() - begun) / 60
    elif plan["method"] == "real":
        outcome = {"claims": {}, "minutes": 0.0, **scores(options.data, options)}
    else:
        make = dp_merf_set if plan["method"] == "dp-merf" else our_set
        synthetic, release, steps = make(plan, options, folder)
        minutes = (time.perf_counter() - begun) / 60
        outcome = {"claims": claims(release, plan["delta"]), "minutes": minutes, **scores(synthetic, options)}
        outcome["steps_made"] = steps
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            name = f"{options.data.stem}-{plan['method']}-eps{plan['epsilon']:g}-{plan['seed']}.png"
            next(folder.rglob("preview.png")).replace(options.keep / name)
    made = {"machine": machine(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    return {**plan, **outcome, **made, "committed": commit_time_of(plan["version"])}


def our_set(plan: Record, options: argparse.Namespace, folder: Path) -> tuple[Path, Artifact, int]:
    """Release, train and draw by our commands; return the set, the release and the number of steps of the training."""
    artifact, synthetic = folder / "artifact.h5", folder / "synthetic"
    budget = ["--eps", plan["epsilon"], "--delta", plan["delta"], "--relation", plan["relation"]]
    call("dpmepf-embed", "--data", options.data, *budget, "--output", artifact)
    choices = ["--preset", options.preset] + ([] if options.steps is None else ["--steps", options.steps])
    choices += ["--no-relabel"] if plan["method"] == "ours-plain" else []
    for path in options.public:
        choices += ["--public", path]
    choices += ["--prior", options.prior] if options.prior else []
    call("dpmepf-synth", artifact, "--output", synthetic, "--seed", plan["seed"], "--format", "npz", *choices)
    made = json.loads((synthetic / RUN_FILE).read_text("utf-8"))
    return synthetic, read_artifact(artifact), made["settings"]["steps"]


def dp_merf_set(plan: Record, options: argparse.Namespace, folder: Path) -> tuple[Path, Artifact, int]:
    """The same with random Fourier features."""
    settings = training_settings(options, plan["seed"])
    synthetic, release = dp_merf.write_dp_merf_set(
        open_images(options.data, public=True),
        folder,
        settings,
        epsilon=plan["epsilon"],
        delta=plan["delta"],
        relation=NeighbouringRelation(plan["relation"]),
        device=choose_device("auto"),
    )
    return synthetic, release, settings.steps


def claims(release: Artifact, delta: float) -> dict[str, float]:
    """ε at `delta` of what was released, under both relations."""
    return {
        relation.value: recomputed_epsilon(release.ledger, delta, relation, coordinates=release.coordinates)
        for relation in NeighbouringRelation
    }


def scores(synthetic: Path, options: argparse.Namespace) -> Record:
    """What `dpmepf-eval` says of a synthetic set."""
    found = json.loads(
        call(
            *("dpmepf-eval", synthetic, "--real", options.real, "--seeds", 1),
            *("--classifiers", options.classifiers, "--json"),
        )
    )
    return {
        "accuracy": {name: score["mean"] for name, score in found["accuracy"].items()},
        "fid": found["fid"],
        "kid": found["kid"] and found["kid"]["mean"],
        "extractor": found["extractor"],
        "images": found["images"]["synthetic"],
    }


def private_classifier(plan: Record, options: argparse.Namespace) -> Record:
    """Accuracy of a classifier trained by DP-SGD on the private images, and what that spent."""
    private = open_images(options.data, public=True)
    schema, device = infer_schema(private), choose_device("auto")
    form = {"resolution": schema.resolution, "channels": schema.channels}
    trained = dp_sgd.train_private_classifier(
        *load_all(private, **form),
        dp_sgd.RECIPES[options.preset],
        class_count=len(schema.classes),
        epsilon=plan["epsilon"],
        delta=plan["delta"],
        seed=plan["seed"],
        device=device,
    )
    real = open_images(options.real, classes=schema.classes, default_split="test", public=True)
    return {
        "claims": {plan["relation"]: trained.epsilon},
        "accuracy": {"cnn": accuracy_of(trained.network, *load_all(real, **form), device=device)},
        "noise_multiplier": trained.noise_multiplier,
        "sampling": {"rate": trained.sample_rate, "steps": trained.steps},
    }


def arguments_of(command_line: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/MNIST"), help="images to release")
    parser.add_argument("--real", type=Path, help="images to test on, by default the test split of --data")
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0], help="privacy budgets, one table row each")
    parser.add_argument("--delta", type=float, default=1e-5, help="of every release")
    relations = [relation.value for relation in NeighbouringRelation]
    parser.add_argument("--relation", choices=relations, default=relations[0], help="that the budget is under")
    parser.add_argument("--methods", default="ours", help=f"any of {','.join(METHODS)}, separated by commas")
    parser.add_argument("--runs", type=int, default=3, help="runs for each budget")
    parser.add_argument("--first-seed", type=int, default=0, help="of the first run; the others count on from it")
    parser.add_argument("--preset", choices=PRESETS, default="standard", help="of dpmepf-synth, and of baselines")
    parser.add_argument("--steps", type=int, help="of dpmepf-synth, by default the preset's")
    parser.add_argument("--public", type=Path, nargs="+", default=[], help="public images, of dpmepf-synth")
    parser.add_argument("--prior", type=Path, help="folder of synthetic public images, named as these; of dpmepf-synth")
    parser.add_argument("--classifiers", default="logistic,mlp,cnn", help="of dpmepf-eval")
    parser.add_argument("--keep", type=Path, help="folder for the preview pictures")
    parser.add_argument("--log", type=Path, help="file of all runs: those in it are not made again, others are added")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only print the results in these logs")
    parser.add_argument("--history", type=Path, nargs="+", metavar="FILE", help="only print those of earlier code")
    options = parser.parse_args(command_line)
    options.methods = options.methods.split(",")
    if unknown := set(options.methods) - set(METHODS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    if "dp-sgd" in options.methods and options.relation != NeighbouringRelation.ADD_OR_REMOVE_ONE:
        parser.error("the accountant of dp-sgd is for records added or removed: leave it out, or choose that relation")
    if options.table is None and options.history is None and not options.data.exists():
        parser.error(f"{options.data} does not exist: name image data with --data")
    if options.prior is not None and not options.prior.is_dir():
        parser.error(f"{options.prior} is no folder: name one that dpmepf-synth wrote with --prior")
    options.real = options.real or options.data
    return options


def main() -> None:
    options = arguments_of()
    if options.table is not None:
        sys.stdout.write(document([record for path in options.table for record in read_log(path)]))
        return
    if options.history is not None:
        sys.stdout.write(history([record for path in options.history for record in read_log(path)]))
        return
    keep_freed_memory()  # as our commands do
    logged = read_log(options.log) if options.log is not None and options.log.exists() else []
    made = {key_of(record): record for record in logged}
    records = []
    for method in options.methods:
        version_of(*OWN_FILES.get(method, []))  # of what was imported, whatever is changed meanwhile
    for seed in range(options.first_seed, options.first_seed + options.runs):  # so that one run of each comes first
        for method in options.methods:
            for epsilon in budgets(method, options, first=seed == options.first_seed):
                plan = planned(method, epsilon, seed, options)
                if key_of(plan) not in made:
                    with tempfile.TemporaryDirectory() as folder:
                        made[key_of(plan)] = one_run(plan, options, Path(folder))
                    require_unchanged(plan["version"], *OWN_FILES.get(method, []))
                    if options.log is not None:
                        append_to_log(options.log, made[key_of(plan)])
                    console.print(json.dumps(made[key_of(plan)]), soft_wrap=True)
                records.append(made[key_of(plan)])
    console.print(summary_table(records, options))


def summary_table(records: list[Record], options: argparse.Namespace) -> Table:
    """One row for each method and budget."""
    title = f"{options.data.name}, δ = {options.delta:g}, {options.runs} runs, preset {options.preset}, "
    table = Table(title=title + f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    names = [*options.classifiers.split(","), "kid", "minutes"]
    for heading in ("method", "ε", *names):
        table.add_column(heading, justify="right")
    for method in options.methods:
        for epsilon in budgets(method, options):
            runs = [run for run in records if (run["method"], run["epsilon"]) == (method, epsilon)]
            values = [[run["accuracy"].get(name, run.get(name)) for run in runs] for name in names]
            table.add_row(method, "–" if epsilon is None else f"{epsilon:g}", *map(summary, values))
    return table


def summary(values: list[float | None]) -> str:
    """Mean ± sample standard deviation; the mean alone of one value; a dash where there is none."""
    if None in values:
        return "–"
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
