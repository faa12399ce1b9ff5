"""Size and colour of an image are read from the beginning of its file, and are those that the whole file says."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_examples import write_parquet, write_tar
from test_image_sources import write_tree, write_zip

from dpmepf.shared import image_source_types, parquet_files, tar_files
from dpmepf.shared.image_decoding import DecodingError, ImageHeader, read_header
from dpmepf.shared.image_source_types import HEADER_BYTES, EncodedImageSource
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.schema import infer_schema

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 340, 3), np.uint8))  # which nothing squeezes


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


LARGE = {
    "PNG": encoded(NOISE, "PNG"),
    "PNG with a palette": encoded(NOISE.quantize(), "PNG", compress_level=0),
    "PNG with a grey palette": encoded(NOISE.convert("L").convert("P"), "PNG", compress_level=0),
    "grey PNG": encoded(NOISE.convert("L"), "PNG"),
    "JPEG": encoded(NOISE, "JPEG", quality=100),
    "JPEG with a long profile": encoded(NOISE, "JPEG", quality=100, icc_profile=bytes(3 * HEADER_BYTES)),
    "BMP": encoded(NOISE, "BMP"),
    "WebP": encoded(NOISE, "WEBP", lossless=True),
    "TIFF": encoded(NOISE, "TIFF"),  # which opens when it is cut, and may tell something else then
    "TIFF, described at its end": encoded(NOISE, "TIFF", compression="tiff_lzw"),
}


TWICE_DESCRIBED = (  # grey and small by the header that comes first, and then the other way round
    b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x0a\x00\x0a\x01\x01\x11\x00"
    + bytes(70_000)
    + b"\xff\xc0\x00\x11\x08\x00\x40\x00\x40\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"
)

FORMS = {
    "folder": lambda root, data: write_tree(root / "d", {"a.png": data}),  # whatever it is
    "zip": lambda root, data: write_zip(root / "d.zip", {"a.png": data}),
    "tar": lambda root, data: write_tar(root / "d.tar", [("a.png", data)]),
    "parquet": lambda root, data: write_parquet(root / "d.parquet", [data]),
}


def read_sizes(source: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what `source` is going to read, which fill as it does."""
    lengths: list[int] = []
    members = type(source.members)
    read = members.read

    def counted(self: Any, name: str, *arguments: int) -> bytes:
        data: bytes = read(self, name, *arguments)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(members, "read", counted)
    return lengths


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("image", LARGE)
def test_the_beginning_says_what_the_whole_file_says(tmp_path, form, image, capfd):
    source = open_images(FORMS[form](tmp_path, LARGE[image]))
    assert isinstance(source, EncodedImageSource)
    assert len(LARGE[image]) > HEADER_BYTES
    assert source.header(0) == read_header(LARGE[image])
    assert capfd.readouterr() == ("", "")


def test_what_is_described_again_behind_the_beginning_is_as_the_whole_file_says(tmp_path):
    source = open_images(FORMS["folder"](tmp_path, TWICE_DESCRIBED))
    assert source.header(0) == read_header(TWICE_DESCRIBED) == ImageHeader(shorter_side=64, grey=False)


@pytest.mark.parametrize("form", FORMS)
def test_too_large_a_file_has_no_header(tmp_path, form, monkeypatch):
    source = open_images(FORMS[form](tmp_path, LARGE["PNG"]))
    for module in (image_source_types, tar_files, parquet_files):
        monkeypatch.setattr(module, "LARGEST_FILE", len(LARGE["PNG"]) - 1)
    with pytest.raises(DecodingError, match="million pixels"):
        source.header(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("image", "whole"), [("PNG", False), ("JPEG", False), ("BMP", False), ("WebP", True), ("TIFF", True)]
)
def test_no_more_is_read_than_that_tells(tmp_path, form, image, whole, monkeypatch):
    source = open_images(FORMS[form](tmp_path, LARGE[image]))
    lengths = read_sizes(source, monkeypatch)
    infer_schema(source)
    assert lengths == [HEADER_BYTES, len(LARGE[image])][: 1 + whole]


@pytest.mark.parametrize("form", FORMS)
def test_a_small_image_is_read_once_and_whole(tmp_path, form, monkeypatch):
    data = encoded(NOISE.resize((20, 30)), "PNG")
    source = open_images(FORMS[form](tmp_path, data))
    lengths = read_sizes(source, monkeypatch)
    assert source.header(0) == read_header(data)
    assert lengths == [len(data)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1])
def test_what_is_no_image_has_no_header_whatever_its_length(tmp_path, form, size):
    source = open_images(FORMS[form](tmp_path, bytes(size)))
    with pytest.raises(DecodingError):
        source.header(0)


@pytest.mark.parametrize("form", FORMS)
def test_images_themselves_are_read_whole(tmp_path, form):
    source = open_images(FORMS[form](tmp_path, LARGE["PNG"]))
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(NOISE))


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "parquet"])
@pytest.mark.parametrize("size", [0, 5, 10**6])
def test_members_give_as_many_bytes_as_were_asked_for(tmp_path, form, size):
    source = open_images(FORMS[form](tmp_path, LARGE["PNG"]))
    assert source.members.read(source.names[0], size) == LARGE["PNG"][:size]  # type: ignore[attr-defined]
