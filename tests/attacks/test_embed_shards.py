"""`dpmepf-embed` on tar and parquet files: what is noised is what a folder gives, and nothing private is left."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from secrets_scan import IMAGE_BYTES, Secrets, leaks
from shard_examples import write_parquet, write_tar

from dpmepf.artifacts.audit import audit_artifact
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.embed import command
from dpmepf.embed.summing import ClassSums, ExactSums

CLASSES = ("north", "south", "east", "west")
COUNTS = (107, 9, 7, 6)  # not 5: five times a count's weight is 2^24 - 1, bytes that any noisy numbers hold
NAMES = ("Anna-Quetzal", "Ward-Zanzibar")
RECORDS = [
    (f"{NAMES[0]}-{index}", int(label), np.random.default_rng(index).integers(0, 256, (28, 28), np.uint8))
    for index, label in enumerate(np.repeat(range(len(CLASSES)), COUNTS))
]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_class_folders(root: Path) -> Path:
    for name, label, pixels in RECORDS:
        path = root / CLASSES[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return root


def write_webdataset(root: Path) -> Path:
    for shard in (0, 1):
        members: list[tuple[str, bytes | None]] = []
        for name, label, pixels in RECORDS[shard::2]:
            members += [(f"{NAMES[1]}/{name}.cls", b"%d" % label), (f"{NAMES[1]}/{name}.png", png(pixels))]
        write_tar(root / f"{NAMES[1]}-{shard}.tar", members)
    return root


def write_hub(root: Path) -> Path:
    for shard in (0, 1):
        some = RECORDS[shard::2]
        labels = [label for _, label, _ in some]
        path = root / "data" / f"train-0000{shard}-of-00002-{NAMES[1]}.parquet"
        write_parquet(path, [png(pixels) for _, _, pixels in some], labels, classes=CLASSES)
    return root


FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": write_class_folders,
    "tar": write_webdataset,
    "parquet": write_hub,
}


def run(folder: Path, data: Path, *arguments: object) -> Result:
    """Everything that the run leaves is in `folder`."""
    folder.mkdir()
    options = ("--eps", 2, "--batch-size", 32, "--device", "cpu", "--data", data, "--output", folder / "artifact.h5")
    result = CliRunner().invoke(command.main, [str(argument) for argument in (*options, *arguments)])
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return result


@pytest.fixture
def noised(monkeypatch: pytest.MonkeyPatch) -> list[ExactSums]:
    """What was handed to the mechanism, run by run."""
    found: list[ExactSums] = []
    take = ClassSums.take

    def recording(self: ClassSums) -> ExactSums:
        sums = take(self)
        found.append(ExactSums(features=sums.features.copy(), weighted_counts=sums.weighted_counts.copy()))
        return sums

    monkeypatch.setattr(ClassSums, "take", recording)
    return found


def test_what_is_noised_is_bit_identical_to_a_folders_and_nothing_private_is_left(
    tmp_path: Path, noised: list[ExactSums]
) -> None:
    arguments = ("--classes", ",".join(CLASSES), "--workers", 2, "--json")
    for form, write in FORMS.items():
        result = run(tmp_path / form, write(tmp_path / f"{form}-data"), *arguments)
        assert result.exit_code == 0, result.stderr
        assert audit_artifact(tmp_path / form / "artifact.h5").valid
    expected = noised[0]
    for sums in noised[1:]:
        assert np.array_equal(sums.features, expected.features)
        assert np.array_equal(sums.weighted_counts, expected.weighted_counts)
    secrets = Secrets(
        names=NAMES,
        images=(RECORDS[0][2][9, :IMAGE_BYTES].tobytes(), png(RECORDS[0][2])[200 : 200 + IMAGE_BYTES]),
        sums=expected.features,
        counts=COUNTS,
        ledger=read_artifact(tmp_path / "folder" / "artifact.h5").ledger,
    )
    for form in FORMS:
        assert leaks(secrets, tmp_path / form) == set()
        (tmp_path / form / "planted").write_text(f"{NAMES[1]}-0.tar holds {COUNTS[0]} images")
        assert leaks(secrets, tmp_path / form) == {"a name in planted", "the number of records in planted"}


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


ONE, KEY = png(RECORDS[0][2]), NAMES[0]
TROUBLE: dict[str, Callable[[Path], Path]] = {
    "a truncated tar": lambda root: truncated(write_tar(root / f"{KEY}.tar", [(f"{KEY}.png", ONE * 9)])),
    "a truncated parquet file": lambda root: truncated(write_parquet(root / f"{KEY}.parquet", [ONE])),
    "a label too many in a tar": lambda root: write_tar(
        root / f"{KEY}.tar", [(f"{KEY}.png", ONE), (f"{KEY}.cls", b"4")]
    ),
    "a label too many in a parquet file": lambda root: write_parquet(root / f"{KEY}.parquet", [ONE], [KEY]),
    "an image twice": lambda root: write_tar(root / f"{KEY}.tar", [(f"{KEY}.png", ONE)] * 2),
    "an unreadable image in a tar": lambda root: write_tar(root / f"{KEY}.tar", [(f"south/{KEY}.png", KEY.encode())]),
    "an unreadable image in a parquet file": lambda root: write_parquet(root / f"{KEY}.parquet", [KEY.encode()], [0]),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_refusal_is_one_sentence_without_a_private_value(tmp_path: Path, trouble: str) -> None:
    TROUBLE[trouble](tmp_path / "data")
    arguments = ("--classes", ",".join(CLASSES), "--resolution", 28, "--channels", 1, "--workers", 0)
    result = run(tmp_path / "out", tmp_path / "data", *arguments)
    assert result.exit_code == 1, result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert not [word for word in (*NAMES, "Traceback") if word in result.output]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"stdout", "stderr"}
