"""What should be released, and what made of it? Choices at equal ε: `make bench-choices`, table in docs/CHOICES.md.

Of each choice of features (feature_choices.py) the class means are released once and a generator is trained on the
release, by the same code and settings; choices of training (training_choices.py) are of a release of the default's.
Quoted are

- noise / difference: expected length of a class mean's noise over the typical distance of a class's mean from their
  centre, which is what a dimension costs;
- class means: real test images whose class the rule finds that corrects labels (`dpmepf-synth --relabel`), so what the
  means tell, with a little help from generated images;
- CNN: accuracy on real test images of the CNN of `dpmepf-eval`, trained on the synthetic ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby, product
from pathlib import Path

import torch
from baseline_set import draw_set, release_and_train
from feature_choices import BATCH, CHOICES, Form
from public_choices import public_choice
from quality_log import Record, append_to_log, distinct, key_of, read_log
from quality_table import markdown, spread
from run_identity import commit_time_of, machine, require_unchanged, version_of
from synthesis_quality import DATA_NAMES, console, native_bfloat16, scores
from training_choices import AS_BY_DEFAULT, TRAININGS

from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.devices import choose_device
from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.schema import infer_schema
from dpmepf.synthesize.generator import Generator
from dpmepf.synthesize.labelling import MeanDiscriminant, learn_discriminant
from dpmepf.synthesize.probe import probe_for
from dpmepf.synthesize.settings import PRESETS, SynthesisSettings, settings_for
from dpmepf.synthesize.targets import ClassTargets, class_targets

TEMPLATE = Path(__file__).with_name("choices.template.md")
MIXED_UNTIL = "2026-11-30T16:12:14+00:00"
"""Commit time of 6c1d21ef9f. Code before had *mixed* for the default, and called what is today's *2x2*."""
PUBLIC_IMAGES = 5_000
PRIOR_EPSILON = 1_000.0
OWN_FILES = [
    f"benchmarks/{name}.py"
    for name in ("release_choices", "feature_choices", "training_choices", "public_choices", "baseline_set")
]
DESCRIPTIONS = {choice: description for choice, (description, _) in CHOICES.items()} | {
    choice: training.description for choice, training in TRAININGS.items()
}


def planned(choice: str, epsilon: float, seed: int, options: argparse.Namespace) -> Record:
    """What a run is of (`quality_log.KEY`), before it is made."""
    settings = settings_of(choice, seed, options)
    training = {"preset": options.preset, "steps": settings.steps, "bfloat16": native_bfloat16()}
    return {
        "data": DATA_NAMES.get(options.data.stem.lower(), options.data.stem),
        "method": choice,
        "relation": NeighbouringRelation.ADD_OR_REMOVE_ONE.value,
        "epsilon": epsilon,
        "delta": options.delta,
        "seed": seed,
        "settings": {**training, "images": options.images},
        "evaluation": "cnn, 1 seed",
        "version": version_of(*OWN_FILES),
    }


def settings_of(choice: str, seed: int, options: argparse.Namespace, channels: int = 3) -> SynthesisSettings:
    """The preset's, with what the choice is about."""
    length = {} if options.steps is None else {"steps": options.steps}
    settings = settings_for(options.preset, bfloat16=native_bfloat16(), seed=seed, **length)
    changes = TRAININGS.get(choice, AS_BY_DEFAULT).changes(settings, channels)
    return dataclasses.replace(settings, **{"vary": channels == 3} | changes)  # not by what a choice releases


def one_run(plan: Record, options: argparse.Namespace, folder: Path, sums: Path) -> Record:
    """Make the run that `plan` describes; its outcome is added to the plan.

    Args:
        sums: folder in which exact sums are kept, so that features are embedded for the first release of them alone.
    """
    begun = time.perf_counter()
    source = open_images(options.data, public=True)
    schema, device = infer_schema(source), choose_device("auto")
    form = Form(schema.resolution, schema.channels)
    choice = plan["method"]
    training = TRAININGS.get(choice, AS_BY_DEFAULT)
    released = choice if choice in CHOICES else "default"
    feature_map = CHOICES[released][1](form, public_images(options.public, form)).to(device)
    settings = settings_of(choice, plan["seed"], options, form.channels)
    release, generator = release_and_train(
        source,
        settings,
        schema=schema,
        feature_map=feature_map,
        epsilon=plan["epsilon"],
        delta=plan["delta"],
        relation=NeighbouringRelation(plan["relation"]),
        device=str(device),
        sums=sums / f"{plan['data']}-{released}",
        callbacks=training.callbacks(),
        prior=public_prior(options.public, form, str(device)) if training.prior else None,
    )
    targets = class_targets(release)
    discriminant = learn_discriminant(
        generator,
        targets,
        feature_map,
        probe=probe_for(targets, seed=settings.seed) if settings.probe else None,
        ridge=settings_for(options.preset).metric_ridge,  # a choice is of training alone
        seed=settings.seed + 1,
    )
    corrects = discriminant.corrects and training.relabels
    label = discriminant if corrects else None
    choose = functools.partial(public_choice, training.public, options.public, discriminant, form=form)
    synthetic = draw_set(
        folder, release, generator, seed=settings.seed, label=label, images=options.images, choose=choose
    )
    minutes = (time.perf_counter() - begun) / 60
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        (folder / "preview.png").replace(options.keep / f"{plan['data']}-{plan['method']}-{plan['seed']}.png")
    real = open_images(options.data, classes=schema.classes, default_split="test", public=True)
    scored = scores(synthetic, argparse.Namespace(real=options.data, classifiers="cnn"))
    return {
        **plan,
        "dimension": feature_map.dimension,
        "noise": relative_noise(targets),
        "class_means": right(discriminant, *load_all(real, **dataclasses.asdict(form))),
        "corrected": corrects,
        "minutes": minutes,
        **scored,
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "committed": commit_time_of(plan["version"]),
    }


@functools.cache
def public_images(path: Path, form: Form) -> torch.Tensor:
    """Public images of the same form, uint8 N×C×R×R: every so-many-th, so that all classes are among them."""
    images, _ = load_all(open_images(path, public=True), **dataclasses.asdict(form))
    return images[:: max(1, len(images) // PUBLIC_IMAGES)]


@functools.cache
def public_prior(path: Path, form: Form, device: str) -> Generator:
    """A generator trained on a release of public images, which noise of so large an ε hardly changes."""
    source = open_images(path, public=True)
    _, generator = release_and_train(
        source,
        settings_for("standard", bfloat16=native_bfloat16(), vary=form.channels == 3),
        schema=dataclasses.replace(infer_schema(source), **dataclasses.asdict(form)),
        feature_map=CHOICES["default"][1](form, torch.empty(0)).to(device),
        epsilon=PRIOR_EPSILON,
        delta=1e-5,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
        device=device,
    )
    return generator


def relative_noise(targets: ClassTargets) -> float:
    """√(E‖noise of a class mean‖²) over the root mean square of ‖mean − centre of means‖, the noise in it taken off."""
    noise = targets.means.shape[1] * float(targets.noise_variance.mean())
    offsets = targets.means - targets.means.mean(dim=0)
    classes = len(targets.means)
    squared = float(offsets.square().sum(dim=1).mean()) - noise * (classes - 1) / classes
    return (noise / max(squared, 1e-12)) ** 0.5


def right(discriminant: MeanDiscriminant, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose label the discriminant finds."""
    found = torch.cat([discriminant.judge(batch)[0].cpu() for batch in images.split(BATCH)])
    return float((found == labels).float().mean())


def table(records: Sequence[Record]) -> str:
    """Markdown: for each data set and budget a table with a row for each choice, in the order of `DESCRIPTIONS`."""
    text = []
    ordered = sorted((_by_names_of_today(run) for run in distinct(records)), key=_table_of)
    for (data, epsilon, delta, preset, steps, images, extractor, version), group in groupby(ordered, key=_table_of):
        here = list(group)
        rows = []
        for choice, description in DESCRIPTIONS.items():
            found = [run for run in here if run["method"] == choice]
            if found:
                rows.append(
                    [
                        choice,
                        description,
                        f"{found[0]['dimension']:,}",
                        spread([run["noise"] for run in found], "{:.2g}"),
                        spread([run["class_means"] for run in found], "{:.1f}", factor=100),
                        spread([run["accuracy"]["cnn"] for run in found], "{:.1f}", factor=100),
                        spread([run["fid"] for run in found], "{:.1f}"),
                        spread([run["kid"] for run in found], "{:.4f}"),
                        str(sum(run["corrected"] for run in found)),
                        str(len(found)),
                        str(sum(not run["settings"]["bfloat16"] for run in found)),
                    ]
                )
        head = ["choice", "what it is", "dimension", "noise / difference", "class means, %", "CNN, %", "FID", "KID"]
        text.append(
            f"## {data}, ε = {epsilon:g}, δ = {delta:g}\n\n{preset} preset, {steps:,} steps, {images:,} images drawn; "
            + f"{extractor}; code {version}. Choices differ from *{_reference(here[0])}*.\n\n"
            + markdown([*head, "labels corrected", "runs", "in float32"], rows)
            + _missing_of(here, ordered)
        )
    return "\n".join(text)


def _reference(run: Record) -> str:
    """What other choices differ from, by the code of a run."""
    return "mixed" if run["committed"] < MIXED_UNTIL else "default"


def _by_names_of_today(run: Record) -> Record:
    names = {"default": "mixed", "2x2": "default"} if _reference(run) == "mixed" else {}
    return run | {"method": names.get(run["method"], run["method"])}


def _missing_of(runs: Sequence[Record], everywhere: Sequence[Record]) -> str:
    """A sentence on the choices that no table has, if any, below those with something to compare them with."""
    missing = [choice for choice in DESCRIPTIONS if choice not in {run["method"] for run in everywhere}]
    compares = any(run["method"] == _reference(run) for run in runs)
    return f"\nNot measured yet: {', '.join(missing)}.\n" if missing and compares else ""


def _table_of(run: Record) -> tuple[str, float, float, str, int, int, str, str]:
    """Runs that differ in these stand in different tables."""
    training = tuple(run["settings"][name] for name in ("preset", "steps", "images"))
    return run["data"], run["epsilon"], run["delta"], *training, run["extractor"].partition(",")[0], run["version"]


def document(records: Sequence[Record]) -> str:
    """The whole of docs/CHOICES.md."""
    return TEMPLATE.read_text("utf-8").rstrip() + "\n\n" + (table(records) or "**Nothing is measured yet.**\n")


def arguments_of(command_line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10.zip"), help="images to release")
    parser.add_argument(
        "--public",
        type=Path,
        default=Path("../shared/data/tiny-imagenet-32/part-0.zip"),
        help="public images, for choices that learn from some",
    )
    parser.add_argument("--choices", default=",".join(DESCRIPTIONS), help="some of these, separated by commas")
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument(
        "--runs", type=int, default=3, help="for each choice and ε: releases and generators of their own"
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="of training")
    parser.add_argument("--steps", type=int, help="of training, by default the preset's")
    parser.add_argument("--images", type=int, default=10_000, help="drawn, for the CNN to be trained on")
    parser.add_argument("--keep", type=Path, help="folder for the preview pictures")
    parser.add_argument("--log", type=Path, required=True, help="all runs: those in it are not made again")
    parser.add_argument("--table", action="store_true", help="only print the document of what the log holds")
    options = parser.parse_args(command_line)
    options.choices = options.choices.split(",")
    if unknown := set(options.choices) - set(DESCRIPTIONS):
        parser.error(f"no such choice: {', '.join(sorted(unknown))}; there are {', '.join(DESCRIPTIONS)}")
    return options


def main() -> None:
    options = arguments_of()
    logged = read_log(options.log) if options.log.exists() else []
    if options.table:
        sys.stdout.write(document(logged))
        return
    keep_freed_memory()
    made = {key_of(record) for record in logged}
    with tempfile.TemporaryDirectory() as sums:
        for seed, epsilon, choice in product(range(options.runs), options.eps, options.choices):
            plan = planned(choice, epsilon, seed, options)
            if key_of(plan) in made:
                continue
            with tempfile.TemporaryDirectory() as folder:
                record = one_run(plan, options, Path(folder), Path(sums))
            require_unchanged(plan["version"], *OWN_FILES)
            append_to_log(options.log, record)
            console.print(json.dumps(record), soft_wrap=True)


if __name__ == "__main__":
    main()
