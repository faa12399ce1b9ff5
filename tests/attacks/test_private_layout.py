"""One private record must not decide how the others are read, and must not speak through other channels."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dpmepf.artifacts import atomic_file
from dpmepf.embed.command import main
from dpmepf.shared.image_errors import AmbiguousLayoutError, DataNotFoundError, SplitError
from dpmepf.shared.image_ranges import prepare_range
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.schema import infer_schema


def save_image(path: Path, mode: str = "RGB", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (32, 32)).save(path, **options)


def test_a_record_beside_inner_class_folders_relabels_no_other_record(tmp_path: Path) -> None:
    for name in ("cat/cat/0.png", "cat/dog/0.png", "cat/dog/1.png"):
        save_image(tmp_path / name)
    before = open_images(tmp_path, classes=("cat", "dog")).labels
    save_image(tmp_path / "cat" / "new.png")
    after = open_images(tmp_path, classes=("cat", "dog")).labels
    assert np.abs(np.bincount(after, minlength=2) - np.bincount(before, minlength=2)).sum() == 1


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_folder_that_an_archive_lists_without_those_above_it_hides_nothing(tmp_path: Path, form: str) -> None:
    """As `tar cf data.tar all/cat` does: an image in another folder of `all` decided whether the run succeeds."""
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    path = tmp_path / f"data.{form}"
    for names in (["all/cat/1.png", "all/dog/2.png"], ["all/cat/1.png"]):
        if form == "zip":
            with zipfile.ZipFile(path, "w") as members:
                members.writestr("all/cat/", b"")
                for name in names:
                    members.writestr(name, png.getvalue())
        else:
            with tarfile.open(path, "w") as archive:
                for name in ("all/cat", *names):
                    member = tarfile.TarInfo(name)
                    member.type = tarfile.DIRTYPE if name == "all/cat" else tarfile.REGTYPE
                    member.size = 0 if name == "all/cat" else len(png.getvalue())
                    archive.addfile(member, io.BytesIO(png.getvalue()))
        assert open_images(path, classes=("cat", "dog")).labels.tolist() == [0, 1][: len(names)]


def test_removing_the_only_record_of_a_split_does_not_release_the_other_split(tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    with zipfile.ZipFile(archive, "w") as members:
        for index in range(3):
            members.writestr(f"test/cat/{index}.png", png.getvalue())
    with pytest.raises(SplitError, match="--split test"):
        open_images(archive, classes=("cat",))
    assert len(open_images(archive, classes=("cat",), split="test")) == 3
    assert len(open_images(archive, classes=("cat",), public=True)) == 3


def test_a_colour_space_that_cannot_be_converted_is_an_unreadable_image_and_no_crash(tmp_path: Path) -> None:
    save_image(tmp_path / "cat" / "0.tif", mode="LAB")
    save_image(tmp_path / "cat" / "1.png")
    prepared = prepare_range(open_images(tmp_path), 0, 2, resolution=32, channels=1)
    assert len(prepared.images) + len(prepared.unreadable) == 2
    assert 1 in prepared.indices


def test_a_damaged_private_file_says_nothing_on_stderr(tmp_path: Path) -> None:
    save_image(tmp_path / "cat" / "0.tif")
    file = tmp_path / "cat" / "0.tif"
    content = file.read_bytes()
    # SamplesPerPixel (tag 277, SHORT, count 1) set to 4321: Pillow logs the number.
    tag = (277).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert tag in content
    place = content.index(tag) + len(tag)
    file.write_bytes(content[:place] + (4321).to_bytes(2, "little") + content[place + 2 :])
    program = (
        "import sys; from pathlib import Path; from dpmepf.shared.image_sources import open_images; "
        "from dpmepf.shared.image_ranges import prepare_range, summarise_headers; "
        "source = open_images(Path(sys.argv[1])); summarise_headers(source, 0, 1); "
        "prepare_range(source, 0, 1, resolution=32, channels=3)"
    )
    finished = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("folder", "table", "declared"),
    [
        ("", "labels.csv", ("unlabelled",)),
        ("", "Labels.txt", ("unlabelled",)),
        ("Jane Doe/", "metadata.jsonl", ("Jane Doe",)),
        ("Jane Doe/", "Jane Doe/train.tsv", ("Jane Doe",)),
        ("Jane Doe/", "labels/labels.xlsx", ("Jane Doe", "labels")),
        ("wrapper/Jane Doe/", "wrapper/labels.csv", ("Jane Doe",)),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_labels_in_a_table_are_not_lost_without_a_word(
    tmp_path: Path, folder: str, table: str, declared: tuple[str, ...], zipped: bool
) -> None:
    """The images would be released as one class, and the budget spent. No name is told."""
    data = tmp_path / "data"
    for name in "ab":
        save_image(data / f"{folder}{name}.png")
    (data / table).parent.mkdir(exist_ok=True)
    (data / table).write_text("patient-4711,1\n")
    if zipped:
        with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
            for file in sorted(path for path in data.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(data))
        data = tmp_path / "d.zip"
    with pytest.raises(AmbiguousLayoutError, match="put every image into the folder of its class") as caught:
        open_images(data, tables_refused=True)
    assert "4711" not in str(caught.value) and "Jane" not in str(caught.value)
    assert ("--classes unlabelled" in str(caught.value)) == (declared == ("unlabelled",))
    assert len(open_images(data, classes=declared, tables_refused=True)) == 2
    assert len(open_images(data)) == 2  # as of dpmepf-eval, which spends nothing


def test_the_command_refuses_a_table_beside_images_of_one_class(tmp_path: Path) -> None:
    save_image(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "labels.csv").write_text("a.png,1")
    options = ["--data", str(tmp_path / "data"), "--eps", "1", "--output", str(tmp_path / "a.h5")]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 2 and "whose labels are not read" in result.stderr
    assert not (tmp_path / "a.h5").exists()


def test_a_table_beside_class_folders_is_passed_over(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save_image(tmp_path / name / "a.png")
    (tmp_path / "labels.csv").write_text("")
    assert open_images(tmp_path, tables_refused=True).classes == ("cat", "dog")
    (tmp_path / "cat" / "LICENSE.txt").write_text("")
    (tmp_path / "cat" / ".labels.csv").write_text("")
    assert len(open_images(tmp_path / "cat", tables_refused=True)) == 1


def test_an_npz_file_in_a_folder_has_to_be_named_itself(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 28, 28), np.uint8))
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(DataNotFoundError, match=r"found an \.npz file: name that itself"):
        open_images(tmp_path, tables_refused=True)


def test_a_folder_that_cannot_be_flushed_does_not_deny_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(atomic_file, "_flush_folder", refuse)
    atomic_file.write_atomically(tmp_path / "artifact.h5", b"content")
    assert (tmp_path / "artifact.h5").read_bytes() == b"content"


def test_an_empty_folder_still_has_nothing_to_infer_from(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError):
        infer_schema(open_images(tmp_path))
