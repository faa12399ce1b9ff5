"""Bytes of one image file to pixels, or to what its header says, by Pillow.

Image files are untrusted: only the listed formats are tried (no PostScript, no plug-in that starts a program), pixel
and byte counts are bounded, and whatever a decoder raises becomes one `DecodingError` with a phrase of ours, because
the decoder's own text may quote the file.

A decoder has to return nothing but what it makes of the file. Pillow before 13 left pixels of a TIFF that its data do
not reach as memory was: parts of other images.
"""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from dataclasses import dataclass

import PIL
from PIL import Image, features

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
HEADER_FIRST = ("PNG", "JPEG", "BMP")  # a file that is cut behind its header opens as the whole one does, or not at all
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
LARGEST_FILE = 512 * 2**20  # bytes
LARGEST_IMAGE = 90_000_000  # pixels; more is taken for a decompression bomb

NOT_AN_IMAGE = "it is damaged, or no PNG, JPEG, BMP, WebP or TIFF image"
TOO_LARGE = f"it has more than {LARGEST_IMAGE // 1_000_000} million pixels or {LARGEST_FILE // 2**20} MiB"
NO_ACCESS = "its file cannot be read"
NO_FILE = "there is a pipe, a device or nothing in its place"
NO_TIFF = (
    "it is a TIFF image, which the Pillow that is installed here does not read without talking of damage, or leaving "
    "other images' memory in it: install Pillow 13 or later from PyPI, or convert it to PNG"
)

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})


# Pillow logs what it finds in a damaged file, and without a handler Python prints that: a private file must not speak.
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)


def _silence_libtiff() -> bool:
    """Whether libtiff, which writes what it finds to stderr itself, past Python, writes no more; or is not there."""
    if not features.check("libtiff"):
        return True
    try:
        library = ctypes.CDLL(Image.core.__file__)  # with those that it was linked to
        for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler"):
            set_handler = getattr(library, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
    except (OSError, AttributeError):
        return False
    return True


CLEARED_SINCE = 13  # the Pillow whose TIFF decoder clears the memory that it decodes into


def _reads_tiff(version: str) -> bool:
    return int(version.partition(".")[0]) >= CLEARED_SINCE and _silence_libtiff()


READS_TIFF = _reads_tiff(PIL.__version__)


class DecodingError(Exception):
    """The bytes are no usable image; the text is one of the phrases above."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What is known of an image before its pixels are decoded. `grey` is about the form, not about the pixel values."""

    shorter_side: int
    grey: bool


def decode_image(data: bytes, *, at_least: int = 0) -> Image.Image:
    """Decode the first frame of an image file.

    Args:
        data: the whole file.
        at_least: if positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this
            many pixels; large photographs decode several times faster.

    Raises:
        DecodingError: the file is damaged, of another format, or too large.
        MemoryError: there is too little memory, which says nothing of the image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about metadata; a private file is not to be talked about
        try:
            image = _open(data)
            if at_least > 0:
                image.draft(None, (at_least, at_least))
            image.load()
        except (DecodingError, MemoryError):
            raise
        except Exception:  # on damaged input decoders raise nearly every type: SyntaxError, struct.error, …
            raise DecodingError(NOT_AN_IMAGE) from None
        return image


def read_header(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> ImageHeader:
    """Read size and colour from the header of an image file, without decoding its pixels.

    Args:
        data: the whole file, or its beginning where `formats` are among `HEADER_FIRST`.
        formats: those that are tried.

    Raises:
        DecodingError: as `decode_image`; a file that is damaged behind its header passes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _open(data, formats)
            return ImageHeader(shorter_side=min(image.size), grey=_is_grey(image))
        except (DecodingError, MemoryError):
            raise
        except Exception:
            raise DecodingError(NOT_AN_IMAGE) from None


def _open(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    if len(data) > LARGEST_FILE:
        raise DecodingError(TOO_LARGE)
    if not READS_TIFF and data.startswith((b"II", b"MM")):
        raise DecodingError(NO_TIFF)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise DecodingError(TOO_LARGE) from None
    if image.width * image.height > LARGEST_IMAGE:
        raise DecodingError(TOO_LARGE)
    if formats == HEADER_FIRST and not image.tile:  # cut before its pixels begin: until then more may be said of them
        raise DecodingError(NOT_AN_IMAGE)
    return image


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = image.getpalette("RGB") or []  # decodes the image
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode in _GREY_MODES
