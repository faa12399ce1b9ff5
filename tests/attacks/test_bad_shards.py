"""Hostile, damaged and ambiguous tar and parquet files: one sentence, no private name, no other record changed."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_examples import CLASSES, STRUCT, class_folders, images, webdataset, write_parquet, write_tar

from dpmepf.shared import parquet_files, tar_files
from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.image_decoding import NO_FILE, NOT_AN_IMAGE, TOO_LARGE
from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    DataNotFoundError,
    LabelError,
    MissingLibraryError,
    RepeatedImageError,
    SplitError,
    UnlabelledImageError,
    UnreadableDataError,
)
from dpmepf.shared.image_loading import find_unreadable, load_all
from dpmepf.shared.image_sources import open_images

SECRET = "patient-4711"
PNG = images()[0][2]
PAIR = [(f"{SECRET}.png", PNG), (f"{SECRET}.cls", b"0")]


def refusal(path: Path, error: type[DpmepfError], match: str, *, location: bool = True) -> None:
    """One sentence that names nothing of private data, and names the place in public data."""
    with pytest.raises(error, match=match) as caught:
        open_images(path, classes=CLASSES)
    sentence = str(caught.value)
    assert SECRET not in sentence.replace(str(path), "")
    assert "\n" not in sentence
    assert caught.value.__cause__ is None
    with pytest.raises(error, match=match) as caught:
        open_images(path, classes=CLASSES, public=True)
    assert (SECRET in str(caught.value).replace(str(path), "")) == location


def shards(root: Path, **members: list[tuple[str, bytes | None]]) -> Path:
    """A folder of tar files, whose names are secret too."""
    for name, some in members.items():
        write_tar(root / "data" / f"{SECRET}-{name}.tar", some)
    return root / "data"


def changed(path: Path, place: int, new: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[place : place + len(new)] = new
    path.write_bytes(data)
    return path


def with_check_sum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def special(path: Path, kind: bytes, *, name: str = f"cat/{SECRET}.png") -> Path:
    """A tar with a member that is no file."""
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return path


# An image must not count twice, and has one label


def test_a_name_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    members = [(f"cat/{SECRET}.png", PNG)] * 2
    refusal(shards(tmp_path, a=members), RepeatedImageError, "one name twice")
    refusal(shards(tmp_path, a=[*PAIR, PAIR[1]]), RepeatedImageError, "one name twice")
    write_tar(tmp_path / "single.tar", [(f"./cat/{SECRET}.png", PNG), (f"cat/{SECRET}.png", PNG)])
    refusal(tmp_path / "single.tar", RepeatedImageError, "one name twice")


@pytest.mark.parametrize("second", [PAIR, [(f"{SECRET}.jpg", PNG)], [(f"{SECRET}.b.png", PNG)]])
def test_a_key_twice_is_refused_in_one_shard_or_two(tmp_path: Path, second: list[tuple[str, bytes]]) -> None:
    refusal(shards(tmp_path / "two", a=PAIR, b=[*second]), RepeatedImageError, "twice|two images")
    refusal(shards(tmp_path / "one", a=[*PAIR, *second]), RepeatedImageError, "twice|two images")


def test_a_name_in_two_tars_of_class_folders_is_refused(tmp_path: Path) -> None:
    refusal(shards(tmp_path, a=[("cat/1.png", PNG)], b=[("cat/1.png", PNG)]), RepeatedImageError, "one name twice")


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_shard_under_two_names_is_refused(tmp_path: Path, form: str, link: Callable[..., None]) -> None:
    write = write_tar if form == "tar" else lambda path, _: write_parquet(path, [PNG], [0])
    path = write(tmp_path / "data" / f"{SECRET}-1.{form}", PAIR)
    link(path, path.with_name(f"{SECRET}-2.{form}"))
    refusal(tmp_path / "data", RepeatedImageError, "there twice")


@pytest.mark.parametrize(
    "other", ["train-00000-of-00002-b", "train-0-of-00002", "train-00000-of-00001", "train-00001-of-00003"]
)
def test_parts_of_a_set_that_was_written_twice_are_refused(tmp_path: Path, other: str) -> None:
    """The Hub's names hold the number of parts: after another upload, those of the first may lie beside them."""
    for name in ("train-00000-of-00002", other):
        write_parquet(tmp_path / "data" / f"{name}.parquet", [PNG], [0])
    with pytest.raises(RepeatedImageError, match="there twice"):
        open_images(tmp_path / "data", classes=CLASSES)


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_missing_part_of_a_set_is_refused(tmp_path: Path, form: str) -> None:
    write = write_tar if form == "tar" else lambda path, _: write_parquet(path, [PNG], [0])
    for part in (0, 2):
        write(tmp_path / "data" / f"{SECRET}-{part:05}-of-00003.{form}", [(f"{part}.png", PNG), (f"{part}.cls", b"0")])
    with pytest.raises(DataNotFoundError, match="others are missing") as caught:
        open_images(tmp_path / "data", classes=CLASSES)
    assert SECRET not in str(caught.value)
    write(tmp_path / "data" / f"{SECRET}-00001-of-00003.{form}", [("1.png", PNG), ("1.cls", b"0")])
    assert len(open_images(tmp_path / "data", classes=CLASSES)) == 3


def test_an_image_without_its_label_is_refused(tmp_path: Path) -> None:
    some = webdataset(images())
    refusal(shards(tmp_path, a=[*some, (f"{SECRET}.png", PNG)]), UnlabelledImageError, "without its label")
    refusal(shards(tmp_path / "2", a=some, b=[(f"{SECRET}.png", PNG)]), UnlabelledImageError, "without its label")
    write_parquet(tmp_path / "p" / f"{SECRET}.parquet", [PNG] * 2, pa.array([0, None]))
    refusal(tmp_path / "p", UnlabelledImageError, "without its label")
    write_parquet(tmp_path / "q" / f"{SECRET}.parquet", [PNG] * 2, pa.array(["cat", None]))
    refusal(tmp_path / "q", UnlabelledImageError, "without its label")


@pytest.mark.parametrize("text", [b"", b" \n", b"\xff", b"x" * 2000])
def test_a_label_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    refusal(shards(tmp_path, a=[PAIR[0], (f"{SECRET}.cls", text)]), LabelError, "no label")


@pytest.mark.parametrize("text", [b"3", b"-1", b"99999999999", SECRET.encode(), b"cat,dog"])
def test_a_label_that_is_no_class_is_refused_without_its_value(tmp_path: Path, text: bytes) -> None:
    path = shards(tmp_path, a=[*webdataset(images()), (f"{SECRET}.png", PNG), (f"{SECRET}.cls", text)])
    refusal(path, LabelError, "outside")


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], ["cat", SECRET], ["cat", "x" * 2000]])
def test_a_label_in_a_parquet_file_that_is_no_class_is_refused(tmp_path: Path, labels: list[object]) -> None:
    write_parquet(tmp_path / "d" / f"{SECRET}.parquet", [PNG] * 2, labels)
    refusal(tmp_path / "d", LabelError, "outside|no name of a class")
    if not isinstance(labels[0], str):
        write_parquet(tmp_path / "d" / f"{SECRET}.parquet", [PNG] * 2, labels, classes=CLASSES)
        refusal(tmp_path / "d", LabelError, "outside")


def test_removing_a_record_changes_no_other_label(tmp_path: Path) -> None:
    """Of the only image of a class, and of one that is first to have its label."""
    some = images()
    for removed in (0, 8):
        rest = [one for index, one in enumerate(some) if index != removed]
        for name, write in {
            "WebDataset": lambda path, some: write_tar(path.with_suffix(".tar"), webdataset(some, names=True)),
            "tar": lambda path, some: write_tar(path.with_suffix(".tar"), class_folders(some)),
            "text": lambda path, some: write_parquet(
                path.with_suffix(".parquet"), [one[2] for one in some], [CLASSES[one[1]] for one in some]
            ),
            "numbers": lambda path, some: write_parquet(
                path.with_suffix(".parquet"), [one[2] for one in some], [one[1] for one in some], classes=CLASSES
            ),
        }.items():
            before = open_images(write(tmp_path / name / "before", some), classes=CLASSES)
            after = open_images(write(tmp_path / name / "after", rest), classes=CLASSES)
            assert before.classes == after.classes
            assert after.labels.tolist() == np.delete(before.labels, removed).tolist()


# One form, read in one way


@pytest.mark.parametrize(
    "files",
    [
        ("a.tar", "b.parquet"),
        ("a.tar", "cat/b.png"),
        ("b.parquet", "cat/b.png"),
        ("cat/b.png", f"dog/{SECRET}.tar"),
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "a.tar"),
    ],
)
def test_two_forms_at_once_are_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(AmbiguousLayoutError, match="beside") as caught:
        open_images(tmp_path, classes=CLASSES)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("cat/0.tar", "dog/0.tar"), "several folders"),
        (("train/0.tar", "training/0.tar"), "several ways|several folders"),
        (("train-0.tar", "training-1.tar"), "several ways"),
        (("train/val-0.tar",), "two splits"),
        (("train-0.tar", "more.tar"), "others none"),
    ],
)
def test_names_of_shards_that_can_be_read_in_two_ways_are_refused(
    tmp_path: Path, names: tuple[str, ...], sentence: str
) -> None:
    for name in names:
        write_tar(tmp_path / "data" / name, PAIR)
    with pytest.raises(AmbiguousLayoutError, match=sentence):
        open_images(tmp_path / "data", classes=CLASSES)


def test_the_only_split_of_private_shards_has_to_be_confirmed(tmp_path: Path) -> None:
    """If the last image of `train` is removed, `test` must not be released in its place."""
    write_tar(tmp_path / "data" / "test-0.tar", PAIR)
    with pytest.raises(SplitError, match="--split test"):
        open_images(tmp_path / "data", classes=CLASSES)
    assert len(open_images(tmp_path / "data", classes=CLASSES, split="test")) == 1
    assert len(open_images(tmp_path / "data", classes=CLASSES, public=True)) == 1


def test_folders_named_as_splits_among_keys_are_refused(tmp_path: Path) -> None:
    members = [(f"{split}/{name}", data) for split in ("train", "test") for name, data in PAIR]
    with pytest.raises(AmbiguousLayoutError, match="folders named as splits"):
        open_images(write_tar(tmp_path / "a.tar", members), classes=CLASSES)
    members += [(f"more/{name}", data) for name, data in PAIR]  # one record must not have both splits released
    with pytest.raises(AmbiguousLayoutError, match="folders named as splits"):
        open_images(write_tar(tmp_path / "a.tar", members), classes=CLASSES)


def test_parquet_files_with_other_columns_or_classes_are_refused(tmp_path: Path) -> None:
    for name, classes in (("a", CLASSES), ("b", CLASSES[::-1])):
        write_parquet(tmp_path / "data" / f"{name}.parquet", [PNG], [0], classes=classes)
    with pytest.raises(AmbiguousLayoutError, match="differ"):
        open_images(tmp_path / "data")


# Tar files


@pytest.mark.parametrize(
    "name", ["/cat/1.png", "../cat/1.png", "cat/../1.png", "cat//1.png", "cat/./1.png", "cat\\1.png"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    refusal(shards(tmp_path, a=[(name, PNG)]), UnreadableDataError, "names like|backslashes")


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"M"]
)
def test_links_devices_and_sparse_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / f"{SECRET}.tar"
    special(path, kind)
    with pytest.raises(UnreadableDataError, match=r"links|damaged") as caught:
        open_images(path, classes=CLASSES)
    assert SECRET not in str(caught.value)


def test_a_sparse_file_by_extended_headers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("cat/1.png")
        member.size = 512
        member.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(2**40)}
        archive.addfile(member, io.BytesIO(bytes(512)))
    with pytest.raises(UnreadableDataError):
        open_images(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst", "a.tar"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_compressed_tar_is_refused(tmp_path: Path, name: str, inside: bool) -> None:
    path = write_tar(tmp_path / "data" / "b.tar", PAIR)
    (path.parent / name).write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UnreadableDataError, match="compressed"):
        open_images(path.parent if inside else path.parent / name, classes=CLASSES)
    path.unlink()
    with pytest.raises(UnreadableDataError, match="compressed"):
        open_images(path.parent, classes=CLASSES)


def test_a_compressed_tar_beside_images_is_passed_over_as_a_zip_is(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(PNG)
    for name in ("fetched.tar.gz", "fetched.zip"):
        (tmp_path / name).write_bytes(b"")
    assert len(open_images(tmp_path)) == 1


def good_tar(root: Path) -> Path:
    return write_tar(root / "data" / f"{SECRET}.tar", webdataset(images()))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("block", [False, True])
def test_a_truncated_tar_is_refused(tmp_path: Path, keep: float, block: bool) -> None:
    """At the end of a member too, where the standard library sees no damage."""
    path = good_tar(tmp_path)
    data = path.read_bytes()
    end = int(keep * len(data.rstrip(b"\0")))
    with tarfile.open(path) as archive:
        ends = [member.offset for member in archive if member.offset <= end and member.offset > 0]
    path.write_bytes(data[: ends[-1] if block else end])
    refusal(path.parent, UnreadableDataError, "truncated|does not end")


def test_every_damaged_header_is_noticed(tmp_path: Path) -> None:
    """The standard library takes a damaged header for the end, and what follows would be missed in silence."""
    path = good_tar(tmp_path)
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        offsets = [member.offset for member in archive]
    for offset in offsets:
        for new in (b"\xff", b"\0" * 512):
            path.write_bytes(data)
            with pytest.raises(UnreadableDataError):
                open_images(changed(path, offset, new), classes=CLASSES)


def test_a_second_archive_behind_the_end_is_noticed(tmp_path: Path) -> None:
    path = good_tar(tmp_path)
    path.write_bytes(path.read_bytes() * 2)
    refusal(path.parent, UnreadableDataError, "behind its end")


@pytest.mark.parametrize("size", [2**33, 2**60, -512, -(2**40)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_any_size_takes_no_memory_and_no_time(tmp_path: Path, size: int, kind: bytes) -> None:
    path = good_tar(tmp_path)
    header = bytearray(path.read_bytes()[:512])
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[156:157] = kind
    changed(path, 0, with_check_sum(bytes(header)))
    tracemalloc.start()
    try:
        refusal(path.parent, UnreadableDataError, "damaged")
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_an_extended_header_cannot_move_a_member_into_another(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"size": "1536"}) as archive:
        for name in "ab":
            archive.addfile(tarfile.TarInfo(f"{name}.png"))
    with pytest.raises(UnreadableDataError, match="damaged"):
        open_images(path)


def test_a_chain_of_extended_headers_is_no_recursion(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("x")
    member.type = tarfile.XHDTYPE
    path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))
    with pytest.raises(UnreadableDataError, match="damaged"):
        open_images(path)


def with_attributes(path: Path, attributes: bytes, kind: bytes = tarfile.XHDTYPE) -> Path:
    """A tar of one image, with an extended header of these very bytes."""
    header, image = tarfile.TarInfo("x"), tarfile.TarInfo(f"cat/{SECRET}.png")
    header.type, header.size, image.size = kind, len(attributes), len(PNG)
    members = ((header, attributes), (image, PNG))
    blocks = [
        one for info, data in members for one in (info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % 512))
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
@pytest.mark.parametrize(
    "attributes",
    [
        b"1" * 2**12,
        b"4108 comment=" + b"1" * 4094 + b"\n",
        b"2 " * 2**11 + b"=",
        b"9 a=b\n",
        b"7 a=bc",
        b"6 a=b\n" + b"\0" * 9 + b"6 a=b\n",
        b"6 a=b\n" * 11_000,
    ],
)
def test_attributes_that_take_time_or_memory_out_of_proportion_are_refused(
    tmp_path: Path, kind: bytes, attributes: bytes
) -> None:
    """A mebibyte of digits takes the standard library ten minutes, one of records within records 200 GiB."""
    path = with_attributes(tmp_path / "d" / f"{SECRET}.tar", attributes, kind)
    refusal(path.parent, UnreadableDataError, "damaged")


def test_attributes_of_every_usual_kind_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "1" * 40}) as archive:
        member = tarfile.TarInfo(f"cat/{'ä' * 120}.png")
        member.size, member.mtime, member.pax_headers = len(PNG), 1.5, {"SCHILY.xattr.user.a": "x=\n\0y" * 500}
        archive.addfile(member, io.BytesIO(PNG))
    assert open_images(path).name(0) == f"cat/{'ä' * 120}.png"


@pytest.mark.parametrize("before", [b"", tarfile.TarInfo("a.txt").tobuf()])
def test_a_sparse_file_that_is_cut_is_refused(tmp_path: Path, before: bytes) -> None:
    member = tarfile.TarInfo(f"{SECRET}.png")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more of it follows
    (tmp_path / f"{SECRET}.tar").write_bytes(before + with_check_sum(bytes(header)))
    refusal(tmp_path, UnreadableDataError, "sparse")


def test_a_sparse_map_is_not_read(tmp_path: Path) -> None:
    path = with_attributes(tmp_path / "d" / f"{SECRET}.tar", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    refusal(path.parent, UnreadableDataError, "sparse")


def test_no_name_of_a_first_image_makes_a_tar_a_compressed_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("BZh/1.png", PNG), ("cat/1.png", PNG)])
    assert len(open_images(path)) == 2


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_name_of_many_folders_takes_no_memory_and_no_time(tmp_path: Path, form: str) -> None:
    """Of 8,000 they took more than a minute, of 500,000 they would have taken 200 GiB."""
    name = "a/" * 2_000 + f"{SECRET}.png"
    if form == "tar":
        write_tar(tmp_path / "data", [(name, PNG)], format=tarfile.GNU_FORMAT)
    else:
        with zipfile.ZipFile(tmp_path / "data", "w") as archive:
            archive.writestr(name, PNG)
    with pytest.raises(UnreadableDataError, match="32 folders deep") as caught:
        open_images(tmp_path / "data")
    assert SECRET not in str(caught.value)


def test_more_images_than_the_index_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_files, "MOST_IMAGES", 3)
    monkeypatch.setattr(parquet_files, "MOST_ROWS", 3)
    with pytest.raises(UnreadableDataError, match="more than 3"):
        open_images(good_tar(tmp_path), classes=CLASSES)
    with pytest.raises(UnreadableDataError, match="more than 3"):
        open_images(write_parquet(tmp_path / "a.parquet", [PNG] * 4))


def test_other_members_take_no_memory(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("cat/1.png", PNG), *((f"{i}.txt", b"") for i in range(4_000))])
    tracemalloc.start()
    try:
        assert len(open_images(path)) == 1
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 2**20
    finally:
        tracemalloc.stop()


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), patch=st.binary(min_size=1, max_size=40), keep=st.floats(0.2, 1.5))
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_random_damage_is_an_error_of_ours_or_an_unreadable_image(
    tmp_path_factory: pytest.TempPathFactory, form: str, place: float, patch: bytes, keep: float
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    if form == "tar":
        path = write_tar(folder / "a.tar", webdataset(images(3, side=4)))
    else:
        path = write_parquet(
            folder / "a.parquet", [data for _, _, data in images(3, side=4)], [0, 1, 2], classes=CLASSES
        )
    data = path.read_bytes()
    changed(path, int(place * len(data)), patch)
    path.write_bytes(path.read_bytes()[: int(keep * len(data))])
    try:
        find_unreadable(open_images(path, classes=CLASSES), workers=0)
    except DpmepfError as error:
        assert "\n" not in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_named_pipe_does_not_block_and_a_link_to_nowhere_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"{SECRET}.{form}"
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere")):
        make()
        refusal(tmp_path, UnreadableDataError, "cannot be read|a link that leads nowhere")
        path.unlink()


def test_no_pixels_make_an_npz_a_tar(tmp_path: Path) -> None:
    pixels = np.zeros((1, 32, 32), np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels)
    start = (tmp_path / "a.npz").read_bytes().index(bytes(32))
    pixels.flat[257 - start : 262 - start] = np.frombuffer(b"ustar", np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels)
    assert (tmp_path / "a.npz").read_bytes()[257:262] == b"ustar"
    assert len(open_images(tmp_path / "a.npz")) == 1


# Parquet files


def test_without_pyarrow_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [PNG])
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'dpmepf\[parquet\]'") as caught:
        open_images(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_parquet(tmp_path / "d" / f"{SECRET}.parquet", [PNG] * 9, [0] * 9)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refusal(path.parent, UnreadableDataError, "truncated")


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"picture": [PNG]}, DataNotFoundError),
        ({"image": [SECRET]}, DataNotFoundError),
        ({"image": [[PNG]]}, DataNotFoundError),
        ({"image": [{"path": SECRET}]}, DataNotFoundError),
        ({"image": [PNG], "label": [0.5]}, UnreadableDataError),
        ({"image": [PNG], "label": [[0, 1]]}, UnreadableDataError),
    ],
)
def test_columns_of_other_types_are_refused(
    tmp_path: Path, table: dict[str, list[object]], error: type[DpmepfError]
) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(error) as caught:
        open_images(tmp_path / "a.parquet", classes=CLASSES)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("metadata", [b"[" * 100_000, b"\xff", b"1", b'{"info": 3}', b'{"info": {"features": [1]}}'])
def test_metadata_that_are_none_are_passed_over(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [PNG], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_images(tmp_path / "a.parquet", classes=CLASSES).labels.tolist() == [1]


def test_several_columns_of_one_kind_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [PNG], [0], classes=CLASSES, columns=("left", "fine"))
    table = pq.read_table(path)
    for column, other in (("left", "right"), ("fine", "coarse")):
        metadata = (
            table.schema.metadata[b"huggingface"]
            .decode()
            .replace(
                f'"{column}"', f'"{other}": {{"_type": "{"Image" if column == "left" else "ClassLabel"}"}}, "{column}"'
            )
        )
        doubled = table.append_column(other, table[column]).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(doubled, path)
        with pytest.raises(AmbiguousLayoutError, match="several columns"):
            open_images(path, classes=CLASSES)


def test_two_fields_of_bytes_are_refused(tmp_path: Path) -> None:
    image = pa.StructArray.from_arrays([pa.array([PNG]), pa.array([PNG])], names=["bytes", "bytes"])
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    with pytest.raises(DataNotFoundError, match="no bytes"):
        open_images(tmp_path / "a.parquet")


def test_a_label_that_no_image_has_is_nobodys(tmp_path: Path) -> None:
    """Writers keep a dictionary of labels whose images were taken out."""
    labels = pa.DictionaryArray.from_arrays(pa.array([2, 2, 0], pa.int32()), pa.array(["dog", "x" * 2000, "cat"]))
    path = write_parquet(tmp_path / "a.parquet", [PNG] * 3, labels)
    assert open_images(path, classes=CLASSES).labels.tolist() == [0, 0, 1]


def test_damaged_details_of_a_column_do_not_end_the_process(tmp_path: Path) -> None:
    """pyarrow aborts where it is asked for them, and raises where it reads the column."""
    path = write_parquet(tmp_path / f"{SECRET}.parquet", [PNG] * 3, [0, 1, 2])
    program = (
        "import sys; from pathlib import Path; from dpmepf.shared.image_sources import open_images; "
        "from dpmepf.shared.image_loading import find_unreadable; from dpmepf.shared.errors import DpmepfError\n"
        "for data in map(bytes.fromhex, sys.stdin.read().split()):\n"
        "    Path(sys.argv[1]).write_bytes(data)\n"
        "    try: find_unreadable(open_images(Path(sys.argv[1]), classes=('0', '1', '2')), workers=0)\n"
        "    except DpmepfError: pass\n"
    )
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    damaged = [(data[:place] + b"\x03" + data[place + 1 :]).hex() for place in range(footer, footer + 64)]
    finished = subprocess.run(
        [sys.executable, "-c", program, path], input=" ".join(damaged), capture_output=True, text=True
    )
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [IndexError, KeyError, RuntimeError])
def test_an_error_of_any_type_is_the_files_and_skips_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, error: type[Exception]
) -> None:
    def failing(*_: object) -> None:
        raise error(SECRET)

    monkeypatch.setattr(parquet_files.ParquetRows, "_read_group", failing)
    source = open_images(write_parquet(tmp_path / "a.parquet", [PNG] * 8))
    with pytest.raises(UnreadableDataError, match="damaged") as caught:
        load_all(source, resolution=8, channels=1, workers=workers, skip_unreadable=True)
    assert SECRET not in str(caught.value)


def test_a_path_in_a_parquet_file_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(PNG)
    outside = [{"bytes": None, "path": str(tmp_path / "outside.png")}, None, {"bytes": PNG, "path": None}]
    pq.write_table(pa.table({"image": pa.array(outside, STRUCT)}), tmp_path / "a.parquet")
    assert [error.reason for error in find_unreadable(open_images(tmp_path / "a.parquet"), workers=0)] == [NO_FILE] * 2


def test_a_large_row_group_is_refused_by_what_it_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "d" / f"{SECRET}.parquet", [os.urandom(1000) for _ in range(9)], row_group_size=5)
    claimed = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    monkeypatch.setattr(parquet_files, "LARGEST_ROW_GROUP", claimed)
    assert len(open_images(path)) == 9
    monkeypatch.setattr(parquet_files, "LARGEST_ROW_GROUP", claimed - 1)
    with pytest.raises(UnreadableDataError, match="row group") as caught:
        open_images(path.parent)
    assert SECRET not in str(caught.value)


def many_rows_from_one_value(path: Path, *, rows: int, size: int) -> Path:
    """As small as a file gets: every image is the same entry of a dictionary."""
    image = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([bytes(size)]))
    pq.write_table(pa.table({"image": image}), path, compression="zstd", store_schema=False, write_statistics=False)
    assert path.stat().st_size < 10_000
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_group_that_turns_out_to_be_large_stops_everything_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Skipped, one large record would take its neighbours with it."""
    monkeypatch.setattr(parquet_files, "LARGEST_ROW_GROUP", 4 * 2**20)
    path = many_rows_from_one_value(tmp_path / "a.parquet", rows=200, size=2**20)
    default = pa.default_memory_pool()
    arrows = pa.proxy_memory_pool(default)
    pa.set_memory_pool(arrows)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableDataError, match="row group"):
            load_all(open_images(path), resolution=8, channels=1, workers=workers, skip_unreadable=True)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        assert arrows.max_memory() < 10 * 2**20
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_row_group_stops_everything_and_skips_nobody(tmp_path: Path, workers: int) -> None:
    path = write_parquet(tmp_path / f"{SECRET}.parquet", [PNG] * 8, compression="zstd", use_dictionary=False)
    data = path.read_bytes()
    changed(path, data.index(b"\x28\xb5\x2f\xfd") + 8, b"\xff" * 40)
    source = open_images(path)
    with pytest.raises(UnreadableDataError, match="damaged") as caught:
        load_all(source, resolution=8, channels=1, workers=workers, skip_unreadable=True)
    assert SECRET not in str(caught.value)


# Single images


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_damaged_image_is_one_unreadable_image_among_good_ones(tmp_path: Path, form: str) -> None:
    some = images()
    data = [one for _, _, one in some]
    if form == "tar":
        path = write_tar(tmp_path / "a.tar", [*class_folders(some), (f"cat/{SECRET}.png", b"dear diary")])
    else:
        path = write_parquet(tmp_path / "a.parquet", [*data, b"dear diary"], [0] * 10, classes=CLASSES)
    source = open_images(path)
    (error,) = find_unreadable(source, workers=0)
    assert error.reason == NOT_AN_IMAGE
    assert SECRET not in str(error) and str(tmp_path) not in str(error)
    assert error.location.endswith(f"cat/{SECRET}.png" if form == "tar" else "a.parquet/9")
    assert len(load_all(source, resolution=8, channels=1, workers=0, skip_unreadable=True)[0]) == 9


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", PNG), ("2.png", bytes(10_000))])
    monkeypatch.setattr(tar_files, "LARGEST_FILE", 9_000)
    (error,) = find_unreadable(open_images(path), workers=0)
    assert error.reason == TOO_LARGE


def test_a_tar_cut_after_it_was_opened_is_unreadable_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", PNG), ("2.png", PNG)])
    source = open_images(path)
    path.write_bytes(path.read_bytes()[: 1024 + len(PNG)])
    (error,) = find_unreadable(source, workers=0)
    assert error.reason == NOT_AN_IMAGE
