"""Drawing a data set from a generator: how many images of each class, their pixels, and writing them."""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpmepf.shared.errors import UsageError
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.generator import Generator

IMAGES_FOLDER = "images"
NPZ_FILE = "gen.npz"
FORMATS = ("folder", "npz")
BATCH = 250
MOST_UNASKED = 10_000_000  # images that the released class sizes alone can ask for
MOST_SAMPLES = 100_000_000  # their classes and order, 8 bytes each, are held in memory
WRITERS = 4
LONGEST_NAME = 100  # bytes of UTF-8, far below the 255 that file systems allow

LEFT_OUT = -1
LABELLED_ROUNDS = 6  # of drawing what is still missing; after that, images keep the class they were drawn for

ImageBatches = Iterator[tuple[np.ndarray, int]]
Label = Callable[[Tensor, Tensor], Tensor]
Advance = Callable[[int], None]


def images_per_class(sizes: Sequence[float] | np.ndarray, *, samples: int | None = None) -> tuple[int, ...]:
    """Return how many images to draw of each class.

    Args:
        sizes: of the classes, as the release tells them (`targets.class_sizes`), possibly negative.
        samples: total to draw, spread like the released class sizes; None: as many as those say, rounded.

    Raises:
        UsageError: `samples` is below 1 or above `MOST_SAMPLES`; or without it, the released sizes say that there are
            no records, or more than `MOST_UNASKED`, which noise or a hostile artifact can make of any number.
    """
    sizes = np.maximum(np.asarray(sizes, dtype=np.float64), 0.0)
    if samples is None:
        total = np.rint(sizes).sum()
        if total == 0:
            raise UsageError("the noisy class sizes say that the data set is empty: name a number of images, --samples")
        if total > MOST_UNASKED:
            raise UsageError(
                f"the noisy class sizes ask for {total:,.0f} images, and no more than {MOST_UNASKED:,} are drawn "
                "unasked: name a number of images, --samples"
            )
        return tuple(int(size) for size in np.rint(sizes))
    if not 1 <= samples <= MOST_SAMPLES:
        raise UsageError(f"--samples is {samples:,}, but has to be 1 to {MOST_SAMPLES:,}")
    shares = sizes / sizes.sum() if sizes.sum() > 0 else np.full(len(sizes), 1.0 / len(sizes))
    exact = shares * samples
    numbers = np.floor(exact).astype(np.int64)
    # the largest remainders get what rounding down left over
    for index in np.argsort(numbers - exact, kind="stable")[: samples - int(numbers.sum())]:
        numbers[index] += 1
    return tuple(int(number) for number in numbers)


def draw_images(
    generator: Generator,
    numbers: Sequence[int],
    *,
    seed: int,
    label: Label | None = None,
    on_drawn: Callable[[], None] = lambda: None,
    on_unjudged: Callable[[int, int], None] = lambda class_index, count: None,
) -> ImageBatches:
    """Yield (uint8 n×C×R×R, class) until there are `numbers` of each class.

    Args:
        generator: in evaluation mode.
        numbers: images of each class.
        seed: of the latent vectors.
        label: the class, or `LEFT_OUT`, of each of n×C×R×R uint8 images that were drawn for n classes; None: the class
            an image was drawn for, class by class. What `label` finds of a class that is complete is left out; what
            is still missing after `LABELLED_ROUNDS` rounds keeps the class it was drawn for.
        on_drawn: called after every few images, also where they are left out and nothing is yielded.
        on_unjudged: called with a class and how many of its images `label` was not asked about any more.
    """
    random = torch.Generator().manual_seed(seed)
    missing = torch.tensor(numbers)
    for round_index in range(LABELLED_ROUNDS + 1):
        if not missing.any():
            return
        labelling = label if round_index < LABELLED_ROUNDS else None
        asked = torch.arange(len(missing)).repeat_interleave(missing)
        if labelling is not None:  # so that what fills a class comes from all that resemble it, not from the first
            asked = asked[torch.randperm(len(asked), generator=random)]
        for classes in asked.split(BATCH):
            images = _generate(generator, classes, random)
            on_drawn()
            labels = classes if labelling is None else labelling(images, classes.to(images.device)).cpu()
            for found in labels[labels != LEFT_OUT].unique().tolist():
                chosen = images[(labels == found).to(images.device)][: int(missing[found])]
                missing[found] -= len(chosen)
                if label is not None and labelling is None:
                    on_unjudged(found, len(chosen))
                if len(chosen):
                    yield chosen.cpu().contiguous().numpy(), found


@torch.inference_mode()
def _generate(generator: Generator, classes: Tensor, random: torch.Generator) -> Tensor:
    """Draw uint8 n×C×R×R images of n classes; an image depends on its class and on what `random` has drawn before."""
    device = next(generator.parameters()).device
    # one by one: what torch draws for a whole batch depends on its size
    latents = torch.stack([torch.randn(generator.configuration.latent_dimension, generator=random) for _ in classes])
    with autocast(device):
        images = generator(latents.to(device), classes.to(device))
    return (images * 255).round().to(torch.uint8)


def write_image_folders(
    folder: Path, batches: ImageBatches, classes: Sequence[str], *, advance: Advance = lambda count: None
) -> None:
    """Write `images/<class>/NNNNNN.png` below `folder`; a class without images keeps an empty folder."""
    class_folders = [folder / IMAGES_FOLDER / name for name in class_folder_names(classes)]
    for class_folder in class_folders:
        class_folder.mkdir(parents=True)
    written = [0] * len(classes)
    with ThreadPoolExecutor(WRITERS) as pool:
        for images, class_index in batches:
            first = written[class_index]
            written[class_index] += len(images)
            paths = [class_folders[class_index] / f"{first + offset:06d}.png" for offset in range(len(images))]
            parts = [slice(start, None, WRITERS) for start in range(WRITERS)]
            for _ in pool.map(_write_pngs, [images[part] for part in parts], [paths[part] for part in parts]):
                pass
            advance(len(images))


def write_npz(
    folder: Path,
    batches: ImageBatches,
    classes: Sequence[str],
    shape: tuple[int, int, int, int],
    *,
    public: int | None = None,
    advance: Advance = lambda count: None,
) -> None:
    """Write `gen.npz` into `folder`: `x` float32 N×C×H×W in [0, 1], `y` int64, `classes` names; batch by batch.

    `shape` is that of `x`; the batches hold N images in all. If the last `public` of them may be public images, not
    generated ones, a boolean array `public` of length N says which.
    """
    labels: list[np.ndarray] = []
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(folder / NPZ_FILE, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for images, class_index in batches:
                member.write((images.astype("<f4") / np.float32(255)).tobytes())
                labels.append(np.full(len(images), class_index, dtype="<i8"))
                advance(len(images))
        with archive.open("y.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.concatenate(labels), allow_pickle=False)
        if public is not None:
            with archive.open("public.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.arange(shape[0]) >= shape[0] - public, allow_pickle=False)
        with archive.open("classes.npy", "w") as member:
            np.lib.format.write_array(member, np.array(classes, dtype=np.str_), allow_pickle=False)


def class_folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return a folder name for each class: its own name wherever that is safe on every file system.

    Class names come with the artifact, from elsewhere: whatever they hold, the names returned are single components,
    not hidden, free of control characters and separators, and distinct even where upper and lower case are one.
    """
    names: list[str] = []
    taken: set[str] = set()
    for index, original in enumerate(classes):
        name = _safe_name(original)
        if not name or _folded(name) in taken:
            name = f"{index:04d}-{name}".rstrip("-")
            while _folded(name) in taken:
                name += "_"
        taken.add(_folded(name))
        names.append(name)
    return tuple(names)


def _safe_name(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in " ._-+()" else "_" for c in unicodedata.normalize("NFC", name))
    kept = kept.lstrip(". ")
    kept = kept.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore").rstrip(". ")
    reserved = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
    return f"_{kept}" if kept.split(".")[0].casefold() in reserved else kept


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _write_pngs(images: np.ndarray, paths: Sequence[Path]) -> None:
    for pixels, path in zip(images, paths, strict=True):
        picture = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        Image.fromarray(picture).save(path, format="PNG", compress_level=1)
