"""Leak scan: whatever a run of `dpmepf-embed` leaves behind holds no name, no count and no value without noise.

The data are canaries: file and folder names, pixels and numbers of records that appear nowhere else. After each run
everything in its folder is searched: the artifact (raw, inflated, and what lies between its numbers), stdout, stderr,
temporary, state and home folders. Planted leaks show that the search finds each kind. By chance the
search sees the counts of three classes in noisy ones with a probability of 2e-5 an artifact.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from embedding_runs import Run, run_all
from PIL import Image
from secrets_scan import IMAGE_BYTES, Secrets, is_nothing_but_what_reading_gives, leaks

from dpmepf.artifacts.sensitivity import lattice_exponent
from dpmepf.embed.pipeline import EmbedSettings, plan, sum_images
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.schema import ImageSchema

CLASSES = ("north", "south", "west")
COUNTS = (113, 29, 15)  # 157 together
SCHEMA = ImageSchema(classes=CLASSES, resolution=28, channels=1, inferred=("classes", "resolution", "channels"))
DECLARED = ("--classes", ",".join(CLASSES), "--resolution", 28, "--channels", 1)
REGISTER = ("--dataset", "clinic", "--budget-eps", 2)


def write_data(root: Path, counts: tuple[int, ...], ward: str, patient: str, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for name, count in zip(CLASSES, counts, strict=True):
        (root / name / ward).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(root / name / ward / f"{patient}-{index}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The canaries; the same with images that cannot be read; a handful of others of the same schema."""
    root = tmp_path_factory.mktemp("private")
    canaries = write_data(root / "canaries", COUNTS, "Ward-Zanzibar", "Anna-Quetzal", 0)
    damaged = write_data(root / "damaged", COUNTS, "Ward-Zanzibar", "Anna-Quetzal", 0)
    for index in range(5):
        (damaged / "west" / "Ward-Zanzibar" / f"Anna-Quetzal-{index}-damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n ")
    other = write_data(root / "other", (7, 5, 2), "w", "p", 1)
    images = np.zeros((157, 28, 28), np.uint8)
    np.savez(root / "mislabelled.npz", x=images, y=np.full(157, 7))
    return {"canaries": canaries, "damaged": damaged, "other": other, "mislabelled": root / "mislabelled.npz"}


@pytest.fixture(scope="module")
def secrets(data: dict[str, Path]) -> Secrets:
    feature_map = build_feature_map(describe_feature_map(resolution=28, channels=1))
    settings = EmbedSettings(epsilon=2.0, batch_size=16, workers=0)
    sums = sum_images(open_images(data["canaries"]), schema=SCHEMA, feature_map=feature_map, settings=settings)
    file = data["canaries"] / "north" / "Ward-Zanzibar" / "Anna-Quetzal-0.png"
    pixels = np.asarray(Image.open(file))
    content = file.read_bytes()
    return Secrets(
        names=("Ward-Zanzibar", "Anna-Quetzal"),
        images=(pixels[9, :IMAGE_BYTES].tobytes(), content[len(content) // 2 :][:IMAGE_BYTES]),
        sums=sums.take().features,
        counts=COUNTS,
        ledger=plan(SCHEMA, feature_map, settings),
    )


def scenarios(data: dict[str, Path], folder: Path) -> dict[str, Run]:
    """Every run, by what happens in it."""
    canaries, damaged = ("--data", data["canaries"]), ("--data", data["damaged"])
    wanted: dict[str, tuple[tuple[object, ...], str, dict[str, str]]] = {
        "a release": ((*canaries, "--json"), "", {}),
        "another data set": (("--data", data["other"], "--json"), "", {}),
        "a charged release": ((*canaries, *REGISTER, *DECLARED, "--strict"), "", {}),
        "worker processes": ((*canaries, "--workers", 2), "", {}),
        "unreadable images skipped": ((*damaged, "--skip-unreadable"), "", {}),
        "an unreadable image": (damaged, "", {}),
        "an unreadable image in a worker": ((*damaged, *DECLARED, "--workers", 2), "", {}),
        "a folder that is no class": ((*canaries, "--classes", "north,south"), "", {}),
        "a label outside the classes": (("--data", data["mislabelled"], "--classes", "3"), "", {}),
        "a missing encoder": ((*canaries, "--encoder-weights", "nowhere.safetensors"), "", {}),
        "an output that cannot be written": ((*canaries, "--output", "/proc/artifact.h5"), "", {}),
        "over budget": ((*canaries, "--dataset", "clinic", "--budget-eps", 1), "", {}),
        "a full disk": ((*canaries, *REGISTER), "a full disk", {}),
        "no entropy": ((*canaries, *REGISTER), "no entropy", {}),
        "a defect": (canaries, "a defect that quotes private values", {}),
        "a kill after the sums": ((*canaries, *REGISTER), "kill after the sums", {}),
        "a kill before the artifact is named": ((*canaries, *REGISTER), "kill between writing and naming", {}),
        "Ctrl-C between noise and writing": ((*canaries, *REGISTER), "Ctrl-C between noise and writing", {}),
        "a defect, shown on request": (canaries, "a defect that quotes private values", {"DPMEPF_DEBUG": "1"}),
        **{leak: (canaries, leak, {}) for leak in PLANTED},
    }
    return {
        name: Run(folder=folder / str(number), arguments=arguments, event=event, environment=environment)
        for number, (name, (arguments, event, environment)) in enumerate(wanted.items(), start=100)
    }


PLANTED = {
    "a name on stderr": "a name in stderr",
    "the number of records on stderr": "the number of records in stderr",
    "sums in a temporary file": "exact sums in tmp/",
    "features without noise": "exact sums in out/artifact.h5",
    "counts without noise": "exact counts in out/artifact.h5",
    "the number of records in the file's slack": "the number of records in out/artifact.h5",
}
RELEASED = ("a release", "a charged release", "worker processes", "unreadable images skipped")
STOPPED = (
    "an unreadable image",
    "an unreadable image in a worker",
    "a folder that is no class",
    "a label outside the classes",
    "a missing encoder",
    "an output that cannot be written",
    "over budget",
    "a full disk",
    "no entropy",
    "a defect",
    "a kill after the sums",
    "a kill before the artifact is named",
    "Ctrl-C between noise and writing",
)


QUICK = {
    "a release",
    "another data set",
    "a charged release",
    "an unreadable image",
    "a label outside the classes",
    "no entropy",
    "a defect",
    "a defect, shown on request",
    "a kill after the sums",
    "a name on stderr",
    "counts without noise",
}


def each(names: Iterable[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def ended(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A finished run by name. The quick ones are carried out together when one is asked for, and so are the others."""

    @functools.cache
    def together(quick: bool) -> dict[str, Run]:
        runs = scenarios(data, tmp_path_factory.mktemp("runs"))
        runs = {name: run for name, run in runs.items() if (name in QUICK) == quick}
        return dict(zip(runs, run_all(list(runs.values())), strict=True))

    return lambda name: together(name in QUICK)[name]


@pytest.mark.parametrize("name", each(RELEASED))
def test_a_release_leaves_an_artifact_and_no_private_value(
    name: str, ended: Callable[[str], Run], secrets: Secrets
) -> None:
    run = ended(name)
    assert run.exit_status == 0, run.text("stderr")
    assert run.files("out") == {"artifact.h5"}
    assert run.files("tmp") == run.files("home") == set()
    assert leaks(secrets, run.folder) == set()


@pytest.mark.parametrize("name", each(STOPPED))
def test_a_run_that_stops_leaves_nothing_and_no_private_value(
    name: str, ended: Callable[[str], Run], secrets: Secrets
) -> None:
    run = ended(name)
    assert run.exit_status in ({-9} if "kill" in name else {1, 2, 130}), run.text("stderr")
    assert run.files("out") == run.files("tmp") == run.files("home") == set()
    assert leaks(secrets, run.folder) == set()
    if "kill" not in name:
        assert len([line for line in run.text("stderr").splitlines() if line.startswith("Error: ")]) == 1
    assert run.text("stdout") == ""


@pytest.mark.parametrize("leak", each(PLANTED))
def test_the_scan_finds_a_planted_leak(leak: str, ended: Callable[[str], Run], secrets: Secrets) -> None:
    assert any(found.startswith(PLANTED[leak]) for found in leaks(secrets, ended(leak).folder))


def test_the_scan_finds_what_a_traceback_quotes(ended: Callable[[str], Run], secrets: Secrets) -> None:
    """The defect whose details are withheld does quote a name and the count: on request both are shown."""
    assert "RuntimeError" in ended("a defect").text("stderr")
    found = leaks(secrets, ended("a defect, shown on request").folder)
    assert {"a name in stderr", "the number of records in stderr"} <= found


@pytest.mark.parametrize("name", each(RELEASED))
def test_no_byte_of_an_artifact_depends_on_more_than_what_it_publishes(
    name: str, ended: Callable[[str], Run], tmp_path: Path
) -> None:
    """HDF5's slack included: another process that knows the noisy numbers only writes the same file."""
    assert is_nothing_but_what_reading_gives(ended(name).folder / "out" / "artifact.h5", tmp_path / "again.h5")


def test_what_is_said_does_not_depend_on_the_records(ended: Callable[[str], Run]) -> None:
    """157 images and 14 others of the same schema: the same words on stdout and stderr, but for the random id."""

    def said(name: str, stream: str) -> str:
        return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", ended(name).text(stream))

    for stream in ("stdout", "stderr"):
        assert said("a release", stream) == said("another data set", stream) != ""


def test_two_classes_are_too_few_to_tell_exact_counts_from_noisy_ones(secrets: Secrets) -> None:
    with pytest.raises(ValueError, match="2 classes"):
        dataclasses.replace(secrets, counts=secrets.counts[:2])


def test_the_canaries_are_on_the_lattice_that_the_scan_assumes(secrets: Secrets) -> None:
    assert secrets.ledger.lattice_exponent == lattice_exponent(secrets.sums.shape[1])
    assert secrets.sums.max() > 2**secrets.ledger.coarsening_exponent * 16  # no window of zeros
