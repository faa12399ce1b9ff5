"""How good a synthetic data set is: classifiers trained on it and tested on real images, and distances between the two.

Real images serve measurement alone: nothing is trained on them or chosen by them. If they are private, the scores are
one more release of them, which no ledger covers; every report says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dpmepf.shared.class_names import UNLABELLED, numbered_classes
from dpmepf.shared.devices import choose_device
from dpmepf.shared.errors import UsageError
from dpmepf.shared.idx_files import find_idx_pairs
from dpmepf.shared.image_errors import ClassesError, LabelOutsideError, UndeclaredClassError
from dpmepf.shared.image_loading import iterate_batches
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.shared.schema import infer_schema
from dpmepf.synthesize.classifiers import CLASSIFIERS, RECIPES, accuracy_of, train_classifier
from dpmepf.synthesize.distances import (
    EXTRACTORS,
    FEWEST_IMAGES,
    extract_features,
    load_extractor,
    measure_distances,
)
from dpmepf.synthesize.evaluation_report import Accuracy, EvaluationReport
from dpmepf.synthesize.output_folder import MARKER_FILE, RUN_FILE

NOTE = (
    "If the real test images are private, these scores and numbers are made from them without noise: they are outside "
    "the ledger, and publishing them is not covered by its (epsilon, delta)."
)
UNLABELLED_NOTE = "The images have no labels to compare, so no classifier was trained."
READ_BATCH = 1000

Watch = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""Given a description, a total and a unit, opens a display of progress and yields what to call with each advance."""


@contextmanager
def unwatched(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """The `Watch` that shows nothing."""
    yield lambda count: None


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured.

    Fields:
        classifiers: any of `CLASSIFIERS`, none for distances only.
        seeds: number of trainings of each classifier, with seeds 0, 1, ….
        distances: whether FID, KID, precision and recall are computed.
        samples: at most so many images of each side enter the distances, chosen at random.
        extractor: `auto`, `inception` or `builtin`.
        device: `auto` (a CUDA GPU if there is one), or a torch device.
        split: part of the real data to test on; None: `test` if the data are divided, else all.
        workers: decoding processes; None: the default.
        skip_unreadable: leave out images that cannot be decoded.
    """

    classifiers: tuple[str, ...] = CLASSIFIERS
    seeds: int = 3
    distances: bool = True
    samples: int = 10_000
    extractor: str = "auto"
    device: str = "auto"
    split: str | None = None
    workers: int | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for name in self.classifiers:
            if name not in CLASSIFIERS:
                raise UsageError(f"the classifier {name!r} is unknown: choose from {', '.join(CLASSIFIERS)}")
        if len(set(self.classifiers)) < len(self.classifiers):
            raise UsageError("a classifier is named twice: name each once")
        if not self.classifiers and not self.distances:
            raise UsageError("there is nothing to measure: name a classifier or allow distances")
        if self.seeds < 1:
            raise UsageError(f"the number of seeds is {self.seeds}, but has to be at least 1")
        if self.samples < FEWEST_IMAGES:
            raise UsageError(f"the number of samples is {self.samples}, but has to be at least {FEWEST_IMAGES}")
        if self.extractor not in EXTRACTORS:
            raise UsageError(f"the extractor {self.extractor!r} is unknown: choose from {', '.join(EXTRACTORS)}")


def evaluate(
    synthetic: Path, real: Path, settings: EvaluationSettings | None = None, *, watch: Watch = unwatched
) -> EvaluationReport:
    """Measure the synthetic images at `synthetic` against the real ones at `real`.

    Both are anything `open_images` takes. Real images are brought to the resolution and colour of the synthetic ones.
    Classes are matched by name; where one side knows them by number only (IDX, npz), by number.

    Raises:
        UsageError: the paths, classes or settings do not fit each other.
        DpmepfError: data are damaged, or weights are missing.
    """
    settings = settings or EvaluationSettings()
    device = choose_device(settings.device)
    if (synthetic / MARKER_FILE).is_file():
        raise UsageError(f"the data set in {synthetic} is not complete: let dpmepf-synth --resume complete it first")
    synthetic_source = open_images(synthetic, public=True)
    names = _recorded_names(synthetic, synthetic_source.classes)
    real_source, numbered = _open_real(real, tuple(names.values()), settings.split)
    _check_counts(len(synthetic_source), len(real_source), settings)
    labelled = _are_labelled(synthetic_source, real_source)
    classifiers = settings.classifiers if labelled else ()
    if not classifiers and not settings.distances:
        raise UsageError("the images have no labels to compare, so no classifier can be trained: allow distances")
    to_real_label = match_classes(synthetic_source.classes, real_source.classes, names) if classifiers else None
    extractor = load_extractor(settings.extractor) if settings.distances else None
    schema = infer_schema(synthetic_source, workers=settings.workers)

    def read(source: ImageSource, description: str) -> tuple[Tensor, Tensor]:
        with watch(f"Reading {description} images", len(source), "images") as advance:
            return _read(source, schema.resolution, schema.channels, settings, advance)

    images, labels = read(synthetic_source, "synthetic")
    real_images, real_labels = read(real_source, "real")
    _check_counts(len(images), len(real_images), settings)
    counts = {
        "synthetic": len(images),
        "real": len(real_images),
        "skipped": len(synthetic_source) + len(real_source) - len(images) - len(real_images),
    }

    accuracy = {}
    if to_real_label is not None:
        for name in classifiers:
            with watch(f"Training {name}", settings.seeds * RECIPES[name].steps_for(len(images)), "steps") as advance:
                train = partial(
                    train_classifier,
                    name,
                    images,
                    to_real_label[labels],
                    class_count=len(real_source.classes),
                    device=device,
                    on_step=partial(advance, 1),
                )
                seeds = range(settings.seeds)
                scores = (accuracy_of(train(seed=seed), real_images, real_labels, device=device) for seed in seeds)
                accuracy[name] = Accuracy(seeds=tuple(scores))

    distances = None
    if extractor is not None:
        features = []
        for description, side in (("synthetic", images), ("real", real_images)):
            chosen = side[_random_choice(len(side), settings.samples)]
            counts[f"{description}_in_distances"] = len(chosen)
            with watch(f"Features, {description}", len(chosen), "images") as advance:
                features.append(extract_features(extractor, chosen, device=device, on_images=advance))
        distances = measure_distances(*features)

    return EvaluationReport(
        accuracy=accuracy,
        distances=distances,
        extractor=None if extractor is None else extractor.label,
        images=counts,
        classes=real_source.classes,
        resolution=schema.resolution,
        channels=schema.channels,
        device=str(device),
        protocol=_describe_protocol(classifiers, settings),
        note=" ".join([NOTE, *_labels_note(tuple(names.values()), numbered, labelled, classifiers)]),
    )


def match_classes(synthetic: tuple[str, ...], real: tuple[str, ...], names: Mapping[str, str] | None = None) -> Tensor:
    """Real label (int64) of each synthetic label: by name, or by number where one side has numbers for names.

    Args:
        synthetic, real: names of the classes, or of their folders, in the order of labels.
        names: of the classes, by those in `synthetic`, in the order of their numbers; None: the same.

    Raises:
        ClassesError: the two have different classes.
    """
    names = names or dict(zip(synthetic, synthetic, strict=True))
    for called in ([names[name] for name in synthetic], synthetic):
        if set(called) == set(real):
            return torch.tensor([real.index(name) for name in called])
    order, numbers = list(names), numbered_classes(len(real))
    if len(order) == len(real):
        if set(real) == set(numbers):  # folders "0" to "10" are not sorted by number
            return torch.tensor([real.index(str(order.index(name))) for name in synthetic])
        if set(names.values()) == set(numbers):
            return torch.tensor([int(names[name]) for name in synthetic])
    known = set(names.values())
    missing, more = [n for n in names.values() if n not in real], [n for n in real if n not in known]
    raise ClassesError(
        f"the classes differ: of the {len(names)} of the synthetic data the real data lack {_listed(missing)}, and "
        f"have besides {_listed(more)}; call the class folders alike, with an empty one for a class that has no images"
    )


def _recorded_names(folder: Path, found: tuple[str, ...]) -> dict[str, str]:
    """Name of each class by what was found for one, in the order of their numbers.

    Both are as dpmepf-synth recorded them, whose folders of classes may be named otherwise, and are sorted by name;
    of other images the names are those that were found.
    """
    try:
        classes = json.loads((folder / RUN_FILE).read_text("utf-8"))["classes"]
        names = {str(entry["folder"]): str(entry["name"]) for entry in classes}
    except (OSError, ValueError, KeyError, TypeError):
        names = {}
    return names if set(names) == set(found) else dict(zip(found, found, strict=True))


def _labels_note(classes: tuple[str, ...], numbered: bool, labelled: bool, classifiers: tuple[str, ...]) -> list[str]:
    """A sentence if labels were of no use, or found by number, which is right only if both sides count them alike."""
    if not labelled:
        return [UNLABELLED_NOTE]
    if not classifiers or not numbered or set(classes) == set(numbered_classes(len(classes))):
        return []
    return [f"Real labels that are numbers were taken for the classes in this order: {_listed(classes)}."]


def _open_real(path: Path, synthetic_classes: tuple[str, ...], split: str | None) -> tuple[ImageSource, bool]:
    """Also tell whether its labels may be numbers.

    Raises: UsageError, too, for labels that number no class.
    """
    source: ImageSource | None = None
    first: ClassesError | None = None
    is_idx = path.is_dir() and bool(find_idx_pairs(path))
    try:
        source = open_images(path, split=split, default_split="test")
        called_by_number = set(source.classes) == set(numbered_classes(len(source.classes)))
        if not called_by_number or len(source.classes) == len(synthetic_classes) or not is_idx:
            return source, called_by_number
    except ClassesError as error:
        first = error
    except LabelOutsideError as error:
        if not is_idx:
            raise UsageError(
                "the real data have a label that numbers none of the classes they name: correct one of the two"
            ) from error
    # Files that do not name their classes: labels are numbers of the synthetic ones
    numbers = numbered_classes(len(synthetic_classes))  # the folders "0" to "10" are not sorted by number
    classes = numbers if set(numbers) == set(synthetic_classes) else synthetic_classes
    try:
        return open_images(path, classes=classes, split=split, default_split="test"), True
    except UndeclaredClassError as error:
        raise first or error from error
    except LabelOutsideError as error:
        if source is not None:  # of other classes, which distances do not mind
            return source, True
        raise UsageError(
            f"the real data have labels outside 0 to {len(classes) - 1}, the numbers of the {len(classes)} classes of "
            "the synthetic data: test on data of the same classes"
        ) from error


def _are_labelled(synthetic: ImageSource, real: ImageSource) -> bool:
    return (UNLABELLED,) not in (synthetic.classes, real.classes) and max(len(synthetic.classes), len(real.classes)) > 1


def _check_counts(synthetic: int, real: int, settings: EvaluationSettings) -> None:
    if synthetic < FEWEST_IMAGES:
        raise UsageError(f"the synthetic data hold too few images: at least {FEWEST_IMAGES} are needed")
    if real < (FEWEST_IMAGES if settings.distances else 1):
        raise UsageError(
            f"the real data hold too few images: at least {FEWEST_IMAGES} are needed, or one with --no-distances"
        )


def _read(
    source: ImageSource, resolution: int, channels: int, settings: EvaluationSettings, advance: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """All images, uint8 N×C×R×R, and labels, int64 N."""
    images = torch.empty((len(source), channels, resolution, resolution), dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    filled = 0
    for batch, batch_labels in iterate_batches(
        source,
        resolution=resolution,
        channels=channels,
        batch_size=READ_BATCH,
        workers=settings.workers,
        skip_unreadable=settings.skip_unreadable,
    ):
        images[filled : filled + len(batch)] = batch
        labels[filled : filled + len(batch)] = batch_labels
        filled += len(batch)
        advance(len(batch))
    return images[:filled], labels[:filled]


def _random_choice(count: int, most: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def _describe_protocol(names: tuple[str, ...], settings: EvaluationSettings) -> str:
    sentences = []
    if names:
        sentences.append(
            f"Accuracy: {', '.join(names)} by the fixed recipes of dpmepf.synthesize.classifiers (version 1), trained "
            f"on all synthetic images with seeds 0 to {settings.seeds - 1}, tested once on all real images; mean and "
            "sample standard deviation over the seeds."
        )
    if settings.distances:
        sentences.append(
            f"Distances: at most {settings.samples} random images of each side; KID over 100 random subsets; precision "
            "and recall with 3 neighbours on at most 5000 images of each side."
        )
    return " ".join(sentences)


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, … ({len(names)} classes)"
