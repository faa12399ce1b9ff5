"""An image of any mode, size and orientation becomes the uint8 C x R x R array that a viewer would show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmepf.shared.image_decoding import DecodingError, decode_image, read_header
from dpmepf.shared.image_preparation import prepare_array, prepare_image

RANDOM = np.random.default_rng(7)
# 32 x 32 with a bright upper left quarter, so that every orientation is different
CORNER = np.kron(np.array([[220, 60], [120, 10]], np.uint8), np.ones((16, 16), np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded_and_prepared(image: Image.Image, form: str, *, resolution: int = 32, channels: int = 1, **options):
    return prepare_image(decode_image(encoded(image, form, **options)), resolution=resolution, channels=channels)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_grey_values_exactly_in_every_mode(form, mode, channels):
    image = Image.fromarray(CORNER).convert(mode)
    prepared = decoded_and_prepared(image, form, channels=channels)
    assert prepared.shape == (channels, 32, 32)
    assert prepared.dtype == np.uint8
    assert prepared.flags.c_contiguous
    assert (prepared == CORNER).all()


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_are_read_to_within_their_loss(form, options):
    prepared = decoded_and_prepared(Image.fromarray(CORNER).convert("RGB"), form, channels=3, **options)
    assert np.abs(prepared.astype(int) - CORNER).mean() < 3


def test_one_bit_images_become_black_and_white():
    image = Image.fromarray(CORNER > 100).convert("1")
    assert set(np.unique(decoded_and_prepared(image, "PNG"))) == {0, 255}


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(form):
    values = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
    prepared = decoded_and_prepared(Image.fromarray(values), form)
    assert np.array_equal(prepared[0], np.rint(values / 257).astype(np.uint8))
    assert np.unique(prepared).size == 256  # nothing is clipped


def test_big_endian_sixteen_bit_tiff_is_scaled():
    values = (CORNER.astype(np.uint16) * 257).astype(">u2")
    header = b"MM\x00*\x00\x00\x00\x08"
    entries = [
        (256, 3, 32),
        (257, 3, 32),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 110),
        (277, 3, 1),
        (278, 3, 32),
    ]
    directory = len(entries).to_bytes(2, "big")
    for tag, kind, value in [*entries, (279, 4, 2048)]:
        data = value.to_bytes(4, "big") if kind == 4 else value.to_bytes(2, "big") + b"\0\0"
        directory += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + data
    directory = (len(entries) + 1).to_bytes(2, "big") + directory[2:] + b"\0\0\0\0"
    body = (header + directory).ljust(122, b"\0")
    body = body.replace((110).to_bytes(4, "big"), len(body).to_bytes(4, "big"), 1)
    prepared = prepare_image(decode_image(body + values.tobytes()), resolution=32, channels=1)
    assert np.array_equal(prepared[0], CORNER)


def test_sixteen_bit_values_in_a_32_bit_file_are_scaled_and_larger_ones_refused():
    image = Image.fromarray(CORNER.astype(np.int32) * 257)
    assert np.array_equal(prepare_image(image, resolution=32, channels=1)[0], CORNER)
    for bad in (Image.fromarray(CORNER.astype(np.int32) * 100_000), Image.fromarray(CORNER.astype(np.float32))):
        with pytest.raises(DecodingError, match="range is unknown"):
            prepare_image(bad, resolution=32, channels=1)


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 16, 32))
    prepared = decoded_and_prepared(image, "PNG", channels=3)
    assert (prepared[:, :, 16:] == 255).all()
    assert prepared[:, 0, 0].tolist() == [10, 20, 30]


def test_a_transparent_palette_entry_is_laid_on_white():
    image = Image.fromarray((CORNER > 100).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 40, 50, 60])
    prepared = decoded_and_prepared(image, "PNG", channels=3, transparency=0)
    assert prepared[:, 31, 31].tolist() == [255, 255, 255]
    assert prepared[:, 0, 0].tolist() == [40, 50, 60]


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # red
    red, green, blue = decoded_and_prepared(image, "JPEG", channels=3)[:, 16, 16].tolist()
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(form, orientation):
    # rows: what the stored pixels become, as EXIF 2.32 defines the tag
    stored_as = {
        1: CORNER,
        2: CORNER[:, ::-1],
        3: CORNER[::-1, ::-1],
        4: CORNER[::-1],
        5: CORNER.T,
        6: np.rot90(CORNER, 1),
        7: CORNER[::-1, ::-1].T,
        8: np.rot90(CORNER, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    image = Image.fromarray(np.ascontiguousarray(stored_as)).convert("RGB")
    prepared = decoded_and_prepared(image, form, exif=exif, **options)
    assert np.abs(prepared[0].astype(int) - CORNER).mean() < 5


def test_damaged_exif_counts_as_upright():
    data = encoded(Image.fromarray(CORNER), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert np.abs(prepare_image(decode_image(data), resolution=32, channels=1)[0].astype(int) - CORNER).mean() < 5


def test_the_largest_centred_square_is_kept():
    wide = np.zeros((32, 96), np.uint8)
    wide[:, 32:64] = CORNER
    assert np.array_equal(prepare_image(wide, resolution=32, channels=1)[0], CORNER)
    assert np.array_equal(prepare_image(wide.T.copy(), resolution=32, channels=1)[0], CORNER.T)


def test_shrinking_is_antialiased():
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    prepared = prepare_image(checks.astype(np.uint8), resolution=32, channels=1)
    assert np.abs(prepared.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("resolution", [28, 32, 64, 128])
@pytest.mark.parametrize("side", [1, 2, 27, 33, 300])
def test_every_size_reaches_every_resolution_and_a_plain_image_stays_plain(resolution, side):
    prepared = prepare_image(np.full((side, side + 3, 3), 77, np.uint8), resolution=resolution, channels=3)
    assert prepared.shape == (3, resolution, resolution)
    assert (prepared == 77).all()


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    resolution=st.sampled_from([28, 32]),
    channels=st.sampled_from([1, 3]),
    square=st.booleans(),
)
def test_preparing_an_array_equals_preparing_its_images(shape, resolution, channels, square):
    count, height, width, depth = shape
    if square:
        height = width = resolution
    images = RANDOM.integers(0, 256, (count, height, width, depth), np.uint8)
    together = prepare_array(images, resolution=resolution, channels=channels)
    assert together.shape == (count, channels, resolution, resolution)
    for one, image in zip(together, images, strict=True):
        assert np.array_equal(one, prepare_image(image, resolution=resolution, channels=channels))


@pytest.mark.parametrize("depth", [1, 3])
def test_an_image_that_fits_is_unchanged_and_not_shared(depth):
    images = RANDOM.integers(0, 256, (3, 28, 28, depth), np.uint8)
    prepared = prepare_array(images, resolution=28, channels=depth)
    assert np.array_equal(prepared, images.transpose(0, 3, 1, 2))
    assert not np.shares_memory(prepared, images)
    assert np.array_equal(prepare_image(images[0], resolution=28, channels=depth), images[0].transpose(2, 0, 1))


def test_a_large_jpeg_decoded_small_still_looks_the_same():
    large = Image.fromarray(CORNER).resize((1024, 1024), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    small = decode_image(data, at_least=64)
    assert small.size == (128, 128)  # an eighth is as far as JPEG goes
    whole = prepare_image(decode_image(data), resolution=32, channels=1)
    assert np.abs(prepare_image(small, resolution=32, channels=1).astype(int) - whole).mean() < 1


@pytest.mark.parametrize(
    ("mode", "grey"),
    [("1", True), ("L", True), ("LA", True), ("I;16", True), ("P", True), ("RGB", False), ("RGBA", False)],
)
def test_the_header_tells_colour_and_shorter_side(mode, grey):
    image = Image.new("L", (40, 30), 5).convert(mode) if mode != "I;16" else Image.new("I;16", (40, 30), 5)
    header = read_header(encoded(image, "PNG"))
    assert (header.shorter_side, header.grey) == (30, grey)


def test_a_coloured_palette_is_not_grey():
    image = Image.new("P", (8, 8))
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert not read_header(encoded(image, "PNG")).grey
