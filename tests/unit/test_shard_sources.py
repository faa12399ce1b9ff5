"""Tar and parquet files give the images, labels and names that a folder of the same images gives."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_examples import (
    CLASSES,
    PARQUETS,
    TARS,
    images,
    webdataset,
    write_folder,
    write_form,
    write_parquet,
    write_tar,
)

from dpmepf.embed.fingerprint import run_fingerprint
from dpmepf.embed.persons import persons_from_folders, persons_from_list
from dpmepf.embed.pipeline import EmbedSettings
from dpmepf.shared import image_loading, parquet_files
from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_errors import ClassesError, DataNotFoundError, SplitError, UndeclaredClassError
from dpmepf.shared.image_loading import iterate_batches, load_all
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.shared.schema import ImageSchema
from dpmepf.synthesize.evaluation import _open_real

FORMS = (*TARS, *PARQUETS)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loading, "_RANGE", 2)


def opened(root: Path, form: str) -> ImageSource:
    return open_images(write_form(root, form), classes=CLASSES)


def batches(source: ImageSource, workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(iterate_batches(source, resolution=28, channels=3, batch_size=4, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_batches_are_bit_identical_to_those_of_a_folder(tmp_path: Path, form: str, workers: int) -> None:
    expected = batches(open_images(write_folder(tmp_path / "folder", images())), 0)
    found = batches(opened(tmp_path, form), workers)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


SPAWNING = """
if __name__ == "__main__":
    import hashlib, multiprocessing, sys
    from pathlib import Path
    from dpmepf.shared import image_loading
    from dpmepf.shared.image_sources import open_images

    multiprocessing.set_start_method("spawn")
    image_loading._RANGE = 2
    for path in sys.argv[1:]:
        source = open_images(Path(path), classes=("cat", "dog", "eel"))
        images, _ = image_loading.load_all(source, resolution=28, channels=3, workers=2)
        print(hashlib.sha256(images.numpy().tobytes()).hexdigest())
"""


def test_batches_are_the_same_under_spawn(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWNING)
    paths = [write_form(tmp_path / form, form) for form in ("tars of class folders", "parquet shards")]
    output = subprocess.check_output([sys.executable, tmp_path / "script.py", *paths], text=True)
    pixels, _ = load_all(open_images(write_folder(tmp_path / "folder", images())), resolution=28, channels=3, workers=0)
    assert output.split() == [hashlib.sha256(pixels.numpy().tobytes()).hexdigest()] * 2


@pytest.mark.parametrize("form", FORMS)
def test_images_in_another_order_are_the_same_images(tmp_path: Path, form: str) -> None:
    source = opened(tmp_path, form)
    order = np.array([8, 0, 5, 1, 3])
    other = source.rearranged(order)
    for place, index in enumerate(order.tolist()):
        assert other.name(place) == source.name(index)
        assert other.labels[place] == source.labels[index]
        assert np.array_equal(other.read(place), source.read(index))


@pytest.mark.parametrize("form", FORMS)
def test_a_pickled_source_reads_the_same_and_carries_no_pixels(tmp_path: Path, form: str) -> None:
    source = opened(tmp_path, form)
    before = np.asarray(source.read(1))
    data = pickle.dumps(source)
    assert len(data) < 4000 < 9 * len(images()[0][2])
    assert np.array_equal(pickle.loads(data).read(1), before)


@pytest.mark.parametrize(
    ("form", "name", "split", "kind"),
    [
        ("tar", "cat/001.png", None, "tar of class folders"),
        ("tar of .", "cat/001.png", None, "tar of class folders"),
        ("tars of class folders", "a.tar/cat/001.png", None, "folder of tar files of class folders"),
        ("WebDataset", "001.png", None, "tar in WebDataset naming"),
        ("WebDataset shards", "x-train-0000.tar/001.png", "train", "folder of tar files in WebDataset naming"),
        ("WebDataset split folders", "train/0.tar/001.png", "train", "folder of tar files in WebDataset naming"),
        ("parquet", "1", None, "parquet file"),
        ("parquet shards", "data/train-00000-of-00002.parquet/1", "train", "folder of parquet files"),
    ],
)
def test_names_splits_and_kinds_are_those_of_the_manual(
    tmp_path: Path, form: str, name: str, split: str | None, kind: str
) -> None:
    source = opened(tmp_path, form)
    assert (source.name(1), source.split, source.kind) == (name, split, kind)
    assert source.location(1).startswith(str(tmp_path / "data"))
    assert source.location(1).endswith(f"/{name}")


@pytest.mark.parametrize(
    ("form", "split", "count"),
    [("WebDataset shards", "val", 2), ("WebDataset split folders", "test", 1), ("parquet shards", "test", 1)],
)
def test_another_split_is_chosen_by_name_and_a_missing_one_refused(
    tmp_path: Path, form: str, split: str, count: int
) -> None:
    path = write_form(tmp_path, form)
    source = open_images(path, classes=CLASSES, split=split)
    assert (len(source), source.split) == (count, split)
    with pytest.raises(SplitError, match="choose --split"):
        open_images(path, classes=CLASSES, split="val" if split == "test" else "test")


@pytest.mark.parametrize("form", ["tar", "WebDataset", "parquet"])
def test_a_split_of_a_single_file_is_refused(tmp_path: Path, form: str) -> None:
    with pytest.raises(SplitError, match="leave out --split"):
        open_images(write_form(tmp_path, form), classes=CLASSES, split="train")


def test_splits_inside_a_tar_are_chosen_as_in_a_zip(tmp_path: Path) -> None:
    some = images()
    path = write_tar(tmp_path / "a.tar", [("w/train/cat/1.png", some[0][2]), ("w/test/dog/2.png", some[1][2])])
    assert open_images(path).classes == ("cat",)
    assert open_images(path, split="test").classes == ("dog",)


def test_a_file_is_recognised_by_its_content_where_its_name_says_nothing(tmp_path: Path) -> None:
    for form in ("tar", "parquet"):
        path = write_form(tmp_path / form, form)
        nameless = path.rename(path.with_suffix(".data"))
        assert len(open_images(nameless, classes=CLASSES)) == 9


# Classes: from the form of the data, never from which labels occur


@pytest.mark.parametrize("form", ["WebDataset", "parquet of bytes", "parquet of names"])
def test_private_labels_never_tell_the_classes(tmp_path: Path, form: str) -> None:
    path = write_form(tmp_path, form)
    with pytest.raises(ClassesError, match="which labels occur is private"):
        open_images(path)
    assert open_images(path, public=True).classes == (("cat", "dog") if "names" in form else ("0", "1"))


@pytest.mark.parametrize("form", ["tar", "tars of class folders", "parquet"])
def test_classes_of_the_form_include_those_without_an_image(tmp_path: Path, form: str) -> None:
    source = open_images(write_form(tmp_path, form))
    assert source.classes == CLASSES
    assert not source.classes_declared


@pytest.mark.parametrize("form", ["tar", "WebDataset shards", "parquet", "parquet of names"])
def test_declared_classes_set_the_order_of_labels(tmp_path: Path, form: str) -> None:
    path = write_form(tmp_path, form)
    if form == "WebDataset shards":  # of which the second has names, the first numbers
        assert open_images(path, classes=("eel", "dog", "cat")).labels.tolist() == [0] * 5 + [1] * 4
    else:
        assert open_images(path, classes=("eel", "dog", "cat")).labels.tolist() == [2] * 5 + [1] * 4


def test_class_names_of_a_parquet_file_have_to_be_among_the_declared(tmp_path: Path) -> None:
    with pytest.raises(UndeclaredClassError) as caught:
        open_images(write_form(tmp_path, "parquet"), classes=("dog", "eel"))
    assert "cat" not in str(caught.value)
    assert "cat" in caught.value.location


def test_declared_names_that_look_like_numbers_are_those_of_a_count(tmp_path: Path) -> None:
    path = write_form(tmp_path, "WebDataset")
    assert open_images(path, classes=("0", "1", "2")).labels.tolist() == [0] * 5 + [1] * 4
    with pytest.raises(ClassesError, match="name of a class or its number"):
        open_images(path, classes=("1", "0", "2"))


def test_public_labels_that_are_partly_numbers_have_to_be_declared(tmp_path: Path) -> None:
    path = write_form(tmp_path, "WebDataset shards")
    with pytest.raises(ClassesError, match="others names"):
        open_images(path, public=True)


def test_without_labels_the_images_are_unlabelled(tmp_path: Path) -> None:
    some = images()
    tar = write_tar(tmp_path / "a.tar", [(f"{key}.png", data) for key, _, data in some])
    parquet = write_parquet(tmp_path / "a.parquet", [data for _, _, data in some])
    for path in (tar, parquet):
        assert open_images(path).classes == ("unlabelled",)
        assert open_images(path, classes=("scan",)).labels.tolist() == [0] * 9
        with pytest.raises(ClassesError, match="several classes are declared"):
            open_images(path, classes=CLASSES)


def test_a_parquet_file_without_a_row_is_a_data_set_of_no_record(tmp_path: Path) -> None:
    source = open_images(write_parquet(tmp_path / "a.parquet", [], np.zeros(0, np.int64), classes=CLASSES))
    assert (len(source), source.classes) == (0, CLASSES)


def test_a_tar_without_an_image_is_refused(tmp_path: Path) -> None:
    for members in ([], [("readme.txt", b"")]):
        with pytest.raises(DataNotFoundError):
            open_images(write_tar(tmp_path / "a.tar", members))


def test_hidden_members_do_not_exist(tmp_path: Path) -> None:
    some = images()
    hidden = [("__MACOSX/._000.png", b"x"), (".cache/000.png", b"x"), ("__MACOSX/000.cls", b"\xff"), (".002.png", b"x")]
    path = write_tar(tmp_path / "d" / "a.tar", [*webdataset(some), *hidden])
    (tmp_path / "d" / "._b.tar").write_bytes(b"x")
    (tmp_path / "d" / ".cache").mkdir()
    (tmp_path / "d" / ".cache" / "c.parquet").write_bytes(b"x")
    assert len(open_images(path, classes=CLASSES)) == len(open_images(path.parent, classes=CLASSES)) == 9


def test_real_images_of_an_evaluation_are_numbered_as_the_synthetic_ones(tmp_path: Path) -> None:
    for form in ("WebDataset", "parquet of bytes", "parquet of names", "parquet"):
        source, _ = _open_real(write_form(tmp_path / form, form), CLASSES, None)
        assert source.classes == CLASSES


# Persons


@pytest.mark.parametrize("form", FORMS)
def test_a_list_names_the_person_of_each_image(tmp_path: Path, form: str) -> None:
    source = opened(tmp_path, form)
    rows = "".join(f"{source.name(index)},{'ann' if index % 3 else 'bob'}\n" for index in range(9))
    (tmp_path / "persons.csv").write_text("image,person\n" + rows)
    assert persons_from_list(source, tmp_path / "persons.csv").tolist() == [0, 1, 1] * 3


@pytest.mark.parametrize("shards", [False, True])
def test_folders_in_a_tar_name_persons(tmp_path: Path, shards: bool) -> None:
    data = images()[0][2]
    members = [(f"all/{name}/1.png", data) for name in ("cat/ann", "cat/bob", "dog/ann")]
    if shards:
        write_tar(tmp_path / "d" / "s" / "1.tar", members[:2])
        write_tar(tmp_path / "d" / "s" / "2.tar", members[2:])
    path = tmp_path / "d" if shards else write_tar(tmp_path / "a.tar", members)
    assert persons_from_folders(open_images(path, classes=CLASSES)).tolist() == [0, 1, 0]
    with pytest.raises(UsageError, match="need --classes"):
        persons_from_folders(open_images(path))


@pytest.mark.parametrize("form", ["WebDataset shards", "parquet", "parquet shards"])
def test_names_that_lead_through_no_folders_name_no_persons(tmp_path: Path, form: str) -> None:
    """`data/train-00000-of-00002.parquet/1` looks like class/person/image."""
    with pytest.raises(UsageError, match="needs images in folders"):
        persons_from_folders(opened(tmp_path, form))


# What processes have in common


def fingerprint(source: ImageSource) -> bytes:
    schema = ImageSchema(classes=CLASSES, resolution=28, channels=3, inferred=())
    return run_fingerprint(source, schema, None, EmbedSettings(epsilon=1.0), None)  # type: ignore[arg-type]


def test_processes_that_see_other_images_have_another_fingerprint(tmp_path: Path) -> None:
    some = images()
    for form in ("WebDataset shards", "parquet shards"):
        path = write_form(tmp_path / form, form)
        source = open_images(path, classes=CLASSES)
        assert fingerprint(source) == fingerprint(open_images(path, classes=CLASSES))
        assert fingerprint(source) != fingerprint(source.rearranged(np.arange(9)[::-1]))
    files = [write_parquet(tmp_path / f"{size}.parquet", [some[0][2], bytes(size)], [0, 0]) for size in (5, 6)]
    assert len({fingerprint(open_images(file, classes=CLASSES)) for file in files}) == 2  # names and labels are alike


# Memory


def test_a_process_keeps_the_last_row_group_and_earlier_ones_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [bytes([i]) * 100 for i in range(40)], row_group_size=4)
    monkeypatch.setattr(parquet_files, "KEPT_ROW_GROUPS", 1000)
    rows = open_images(path).members  # type: ignore[attr-defined]
    read: list[int] = []
    original = parquet_files.ParquetRows._read_group

    def counting(self: parquet_files.ParquetRows, shard: str, group: int) -> list[bytes | None]:
        read.append(group)
        return original(self, shard, group)

    monkeypatch.setattr(parquet_files.ParquetRows, "_read_group", counting)
    for row in range(40):
        assert rows.read(str(row)) == bytes([row]) * 100
        assert sum(len(data) for group in rows._kept.values() for data in group) <= 1000
    assert read == list(range(10))
    for row in (39, 32, 0):
        rows.read(str(row))
    assert read == [*range(10), 0]
    monkeypatch.setattr(parquet_files, "KEPT_ROW_GROUPS", 100)
    rows.read("20")
    assert list(rows._kept) == [("", 5)]


def test_a_row_group_above_the_limit_is_forgotten_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [bytes(100)] * 12, row_group_size=4)
    monkeypatch.setattr(parquet_files, "KEPT_ROW_GROUPS", 300)
    rows = open_images(path).members  # type: ignore[attr-defined]
    kept: list[int] = []
    original = parquet_files._open

    class Watched:
        def __init__(self, file: Any) -> None:
            self.file, self.metadata = file, file.metadata

        def iter_batches(self, *arguments: Any, **options: Any) -> Any:
            kept.append(sum(len(data) for group in rows._kept.values() for data in group))
            return self.file.iter_batches(*arguments, **options)

    monkeypatch.setattr(parquet_files, "_open", lambda path: Watched(original(path)))
    for row in (0, 4, 8):
        rows.read(str(row))
    assert kept == [0, 0, 0]


def test_the_index_of_a_tar_does_not_grow_with_pixels(tmp_path: Path) -> None:
    small, large = (
        len(
            pickle.dumps(
                open_images(write_tar(tmp_path / f"{size}.tar", [(f"{i}.png", bytes(size)) for i in range(50)]))
            )
        )
        for size in (1, 10**5)
    )
    assert abs(large - small) < 500
