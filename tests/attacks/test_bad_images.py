"""Damaged and hostile image data: one sentence each, without a private name, a warning, a hang or a decoder's words."""

from __future__ import annotations

import gzip
import io
import os
import struct
import weakref
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.image_decoding import (
    NO_ACCESS,
    NO_FILE,
    NOT_AN_IMAGE,
    TOO_LARGE,
    DecodingError,
    decode_image,
    read_header,
)
from dpmepf.shared.image_errors import (
    ClassesError,
    DataNotFoundError,
    UnreadableDataError,
    UnreadableImageError,
)
from dpmepf.shared.image_loading import find_unreadable, load_all
from dpmepf.shared.image_preparation import prepare_image
from dpmepf.shared.image_sources import open_images

SECRET = "patient-4711"


def image_bytes(form: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels are missing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def gif_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "GIF")
    return buffer.getvalue()


HOSTILE = {
    "text named .png": (b"dear diary", NOT_AN_IMAGE),
    "empty file": (b"", NOT_AN_IMAGE),
    "truncated PNG": (image_bytes()[:200], NOT_AN_IMAGE),
    "truncated JPEG": (image_bytes("JPEG")[:400], NOT_AN_IMAGE),
    "truncated WebP": (image_bytes("WEBP")[:100], NOT_AN_IMAGE),
    "truncated BMP": (image_bytes("BMP")[:100], NOT_AN_IMAGE),
    "truncated TIFF": (image_bytes("TIFF")[:300], NOT_AN_IMAGE),
    "PNG with a wrong check sum": (image_bytes().replace(b"IDAT", b"IDAT\0", 1), NOT_AN_IMAGE),
    "decompression bomb": (png_of(60_000, 60_000), TOO_LARGE),
    "small bomb": (png_of(9_600, 9_600), TOO_LARGE),
    "format that is not listed": (gif_bytes(), NOT_AN_IMAGE),
    "PostScript, which would start a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_AN_IMAGE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_unreadable_image_among_good_ones(tmp_path, name, recwarn, capfd):
    data, reason = HOSTILE[name]
    folder = tmp_path / "cat"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_bytes(image_bytes())
    (folder / f"{SECRET}.png").write_bytes(data)
    source = open_images(tmp_path)
    with pytest.raises(UnreadableImageError) as caught:
        load_all(source, resolution=32, channels=3, workers=0)
    assert caught.value.reason == reason
    assert SECRET not in str(caught.value)
    assert "7" not in str(caught.value).replace(reason, "")  # the number of images
    assert SECRET in caught.value.location
    assert caught.value.__cause__ is None
    images, _ = load_all(source, resolution=32, channels=3, workers=0, skip_unreadable=True)
    assert len(images) == 6
    assert not recwarn.list
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_too_large_a_file_is_not_decoded(monkeypatch):
    monkeypatch.setattr("dpmepf.shared.image_decoding.LARGEST_FILE", 100)
    for function in (decode_image, read_header):
        with pytest.raises(DecodingError, match="million pixels"):
            function(image_bytes())


@settings(max_examples=150)
@given(
    form=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]),
    place=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=8),
    end=st.floats(0, 1),
)
def test_random_damage_is_an_image_or_a_decoding_error_and_nothing_else(form, place, patch, end):
    data = bytearray(image_bytes(form))
    position = int(place * len(data))
    data[position : position + len(patch)] = patch
    damaged = bytes(data[: max(1, int(end * 1.5 * len(data)))])
    try:
        image = decode_image(damaged)
        if image.width * image.height < 10**6:
            assert prepare_image(image, resolution=28, channels=1).shape == (1, 28, 28)
        read_header(damaged)
    except DecodingError as error:
        assert str(error) in (NOT_AN_IMAGE, TOO_LARGE, str(error) if "range is unknown" in str(error) else "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_does_not_block(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes())
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere")
    assert [error.reason for error in find_unreadable(open_images(tmp_path), workers=0)] == [NO_FILE, NO_ACCESS]


def test_file_names_that_are_no_text_are_read_and_located(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    try:
        Path(os.fsdecode(name)).write_bytes(b"bad")
    except OSError:
        pytest.skip("the file system takes no such names")
    (error,) = find_unreadable(open_images(tmp_path), workers=0)
    assert error.location.encode().endswith(b"\\udcff\\udcfe.png")


# Whole data sets


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def text_file(path: Path) -> Path:
    path.write_text("dear diary")
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def cut(path: Path, *, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def folder_of_text(path: Path) -> Path:
    path.mkdir()
    (path / f"{SECRET}.txt").write_text("dear diary")
    return path


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda root: root / "nowhere", DataNotFoundError),
        (lambda root: empty_folder(root / "empty"), DataNotFoundError),
        (lambda root: folder_of_text(root / "texts"), DataNotFoundError),
        (lambda root: text_file(root / "a.txt"), DataNotFoundError),
        (lambda root: text_file(root / "a.tar"), UnreadableDataError),
        (lambda root: text_file(root / "a.parquet"), UnreadableDataError),
        (lambda root: text_file(root / "a.zip"), UnreadableDataError),
        (lambda root: text_file(root / "a.npz"), UnreadableDataError),
        (lambda root: zip_of(root / "a.zip", {}), DataNotFoundError),
        (lambda root: cut(zip_of(root / "a.zip", {f"{SECRET}.png": image_bytes()}), keep=0.5), UnreadableDataError),
        (lambda root: zip_of(root / "a.zip", {f"../{SECRET}/a.png": image_bytes()}), UnreadableDataError),
        (lambda root: zip_of(root / "a.zip", {f"/{SECRET}/a.png": image_bytes()}), UnreadableDataError),
        (lambda root: zip_of(root / "a.zip", {f"{SECRET} /a.png": image_bytes(), "b/a.png": b""}), ClassesError),
    ],
)
def test_a_data_set_that_is_none_is_refused_in_one_sentence(tmp_path, make, error):
    with pytest.raises(error) as caught:
        open_images(make(tmp_path))
    sentence = str(caught.value)
    assert SECRET not in sentence
    assert "\n" not in sentence
    assert caught.value.exit_code == (1 if error is UnreadableDataError else 2)


@pytest.mark.parametrize("step", ["dpmepf.shared.image_decoding._open", "PIL.Image.Image.load"])
def test_too_little_memory_is_not_taken_for_a_damaged_image(tmp_path, monkeypatch, step):
    """With --skip-unreadable one person's large image would make others be left out."""
    path = zip_of(tmp_path / "a.zip", {"cat/a.png": image_bytes()})

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(step, no_memory)
    with pytest.raises(MemoryError):
        load_all(open_images(path), resolution=8, channels=1, workers=0, skip_unreadable=True)


def test_a_large_image_is_gone_before_the_next_is_read(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "a.zip", {f"cat/{name}.png": image_bytes() for name in "ab"})
    alive = []

    def read(source, index, *, at_least):
        assert all(reference() is None for reference in alive)
        image = decode_image(source._bytes(index))
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr("dpmepf.shared.image_source_types.EncodedImageSource.read", read)
    assert load_all(open_images(path), resolution=8, channels=1, workers=0)[0].shape == (2, 1, 8, 8)
    assert len(alive) == 2


@pytest.mark.parametrize("labels", [None, b"", b"\0\0\x08\x01\0\0\0\x09"])
def test_a_damaged_idx_file_is_refused_without_its_name(tmp_path, labels):
    (tmp_path / f"{SECRET}-train-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 2) + bytes(4)
    )
    if labels is not None:
        (tmp_path / f"{SECRET}-train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(UnreadableDataError) as caught:
        open_images(tmp_path, classes=("a",))
    assert SECRET not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_damaged_zip_member_is_an_unreadable_image(tmp_path):
    good, bad = image_bytes(), image_bytes("BMP")
    path = zip_of(tmp_path / "a.zip", {"cat/a.png": good, f"cat/{SECRET}.bmp": bad})
    data = bytearray(path.read_bytes())
    data[data.index(bad) + 100] ^= 255  # the check sum of the member no longer holds
    path.write_bytes(data)
    (error,) = find_unreadable(open_images(path), workers=0)
    assert error.reason == NOT_AN_IMAGE
    assert SECRET in error.location


def zip_entry(name: str, data: bytes, extra: bytes = b"") -> bytes:
    """A stored member: its header, what may lie before its data, its data."""
    sizes = zlib.crc32(data), len(data), len(data), len(name), len(extra)
    return struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 33, *sizes) + name.encode() + extra + data


def zip_listing(content: bytes, *members: tuple[str, bytes, int]) -> bytes:
    """An archive of `content` that lists `members`: name, data, and where the header begins."""
    listed = b""
    for name, data, place in members:
        sizes = zlib.crc32(data), len(data), len(data), len(name)
        listed += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, *sizes, 0, 0, 0, 0, 0, place)
        listed += name.encode()
    count = len(members)
    return content + listed + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(listed), len(content), 0)


def test_a_zip_member_with_a_damaged_header_is_an_unreadable_image(tmp_path):
    """And no archive with one file inside another, whatever length of a name it tells."""
    content = bytearray()
    members = []
    for name in "abc":
        members.append((f"cat/{name}.png", image_bytes(), len(content)))
        content += zip_entry(f"cat/{name}.png", image_bytes())
    content[0] ^= 255
    content[members[1][2] + 27] ^= 255  # the upper byte of its name's length
    (tmp_path / "a.zip").write_bytes(zip_listing(bytes(content), *members))
    source = open_images(tmp_path / "a.zip")
    assert len(load_all(source, resolution=28, channels=1, workers=0, skip_unreadable=True)[0]) == 1


@pytest.mark.parametrize("hidden", ["in the data", "before the data", "at the same place"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_zip_member_inside_another_is_refused_whatever_zipfile_makes_of_it(tmp_path, hidden, workers):
    """Newer versions of zipfile do not read the outer one then: with --skip-unreadable one record took another away."""
    inner_data = image_bytes()
    inner = zip_entry(f"dog/{SECRET}.png", inner_data)
    outer_data = image_bytes() + (inner if hidden == "in the data" else b"")  # behind a PNG's end anything may lie
    outer = zip_entry("cat/a.png", outer_data, extra=inner if hidden == "before the data" else b"")
    listed = ("cat/a.png", outer_data, 0), (f"dog/{SECRET}.png", inner_data, max(outer.find(inner), 0))
    for name, members in (("alone.zip", listed[:1]), ("both.zip", listed)):
        (tmp_path / name).write_bytes(zip_listing(outer, *members))
    how = {"resolution": 28, "channels": 1, "workers": workers, "skip_unreadable": True}
    images, _ = load_all(open_images(tmp_path / "alone.zip", classes=("cat", "dog")), **how)
    assert len(images) == 1
    with pytest.raises(UnreadableDataError, match="unpack it and pass the folder") as caught:
        load_all(open_images(tmp_path / "both.zip", classes=("cat", "dog")), **how)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("names", ["av", "avx"])
def test_a_zip_member_behind_the_directory_is_refused(tmp_path, names):
    """In the archive's comment. Newer versions of zipfile read `v` only if `x`, behind it, is there."""
    first, hidden = zip_entry("cat/a.png", image_bytes()), zip_entry("cat/v.png", image_bytes())
    comment = hidden + zip_entry("cat/x.png", image_bytes())
    begin = len(zip_listing(first, *((f"cat/{name}.png", b"", 0) for name in names)))
    places = dict(zip("avx", (0, begin, begin + len(hidden)), strict=True))
    archive = zip_listing(first, *((f"cat/{name}.png", image_bytes(), places[name]) for name in names))
    (tmp_path / "a.zip").write_bytes(archive[:-2] + struct.pack("<H", len(comment)) + comment)
    with pytest.raises(UnreadableDataError, match="unpack it and pass the folder"):
        load_all(open_images(tmp_path / "a.zip"), resolution=28, channels=1, workers=0, skip_unreadable=True)


def test_a_zip_member_that_claims_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "a.zip", {"cat/a.png": image_bytes(), "cat/b.png": bytes(10**6)})
    monkeypatch.setattr("dpmepf.shared.image_source_types.LARGEST_FILE", 10**5)
    (error,) = find_unreadable(open_images(path), workers=0)
    assert error.reason == TOO_LARGE


def idx(*shape: int, data: bytes, element: int = 8, zeros: int = 0) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", zeros, element, len(shape), *shape) + data


IMAGES = idx(2, 4, 4, data=bytes(32))
LABELS = idx(2, data=bytes(2))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[:-1], LABELS),
        (IMAGES + b"\0", LABELS),
        (b"", LABELS),
        (IMAGES[:7], LABELS),
        (idx(2**32 - 1, 2**32 - 1, 2**32 - 1, data=b"\0"), LABELS),  # a shape bomb
        (idx(*[1] * 200, data=b"\0"), LABELS),
        (idx(2, 4, 4, data=bytes(128), element=13), LABELS),
        (idx(2, 4, 4, data=bytes(32), zeros=1), LABELS),
        (idx(2, 0, 4, data=b""), LABELS),
        (idx(0, 2**32 - 1, 2**32 - 1, data=b""), idx(0, data=b"")),
        (IMAGES, idx(3, data=bytes(3))),
        (IMAGES, idx(2, 1, data=bytes(2))),
        (IMAGES, b"dear diary"),
        (IMAGES, None),
    ],
)
def test_malformed_idx_files_are_refused(tmp_path, images, labels, packed):
    for name, data in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        if data is not None:
            (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UnreadableDataError):
        open_images(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_what_is_named_like_an_idx_file_but_is_none_is_refused(tmp_path, make, kind):
    for name, data in (("train-images-idx3-ubyte", IMAGES), ("train-labels-idx1-ubyte", LABELS)):
        if kind in name:
            make(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableDataError):
        open_images(tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_gzip_file_is_refused(tmp_path, keep):
    noise = np.random.default_rng(0).bytes(3200)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(200, data=bytes(200))))
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(idx(200, 4, 4, data=noise)))
    open_images(tmp_path)
    cut(images, keep=keep)
    with pytest.raises(UnreadableDataError, match="truncated"):
        open_images(tmp_path)


class Exploit:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


X = np.zeros((2, 8, 8), np.uint8)


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.zeros(2, int)},
        {"x": np.zeros((2, 8, 8), int)},
        {"x": np.zeros((2, 64), np.uint8)},
        {"x": np.zeros((2, 8, 8, 2), np.uint8)},
        {"x": np.zeros((2, 3, 8, 3), np.uint8)},
        {"x": np.zeros((2, 0, 8), np.uint8)},
        {"x": np.array(["a"])},
        {"x": X, "y": np.zeros(3, int)},
        {"x": X, "y": np.zeros(2)},
        {"x": X, "y": np.zeros(2, int), "classes": np.zeros(3)},
        {"x": X, "y": np.array([0, -1])},
    ],
)
def test_malformed_npz_files_are_refused(tmp_path, arrays):
    with pytest.raises(DpmepfError):
        open_images(npz(tmp_path / "a.npz", **arrays), classes=("a", "b"))


def test_an_npz_is_never_unpickled(tmp_path):
    mark = tmp_path / "exploited"
    array = np.empty(2, object)
    array[:] = [Exploit(mark), Exploit(mark)]
    for arrays in ({"x": array}, {"x": X, "y": array}, {"x": X, "classes": array}):
        with pytest.raises(UnreadableDataError, match="plain arrays"):
            open_images(npz(tmp_path / "a.npz", **arrays), classes=("a", "b"))
    assert not mark.exists()


def test_an_npz_that_claims_a_giant_array_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)})
    path = zip_of(tmp_path / "a.npz", {"x.npy": buffer.getvalue()})
    with pytest.raises(UnreadableDataError):
        open_images(path)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_a_truncated_npz_is_refused(tmp_path, keep):
    path = cut(npz(tmp_path / "a.npz", x=np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)), keep=keep)
    with pytest.raises(UnreadableDataError):
        open_images(path)


def test_a_folder_that_may_not_be_read_is_no_empty_class(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError):
        open_images(tmp_path)
