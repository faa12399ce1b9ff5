"""Bytes of one image file to pixels, or to what its header says, by Pillow.

Image files are untrusted: only the listed formats are tried (no PostScript, no plug-in that starts a program), pixel
and byte counts are bounded, and whatever a decoder raises becomes one `DecodingError` with a phrase of ours, because
the decoder's own text may quote the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
HEADER_FIRST = ("PNG", "JPEG", "BMP")  # a file that is cut behind its header opens as the whole one does, or not at all
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
LARGEST_FILE = 512 * 2**20  # bytes
LARGEST_IMAGE = 90_000_000  # pixels; more is taken for a decompression bomb

NOT_AN_IMAGE = "it is damaged, or no PNG, JPEG, BMP, WebP or TIFF image"
TOO_LARGE = f"it has more than {LARGEST_IMAGE // 1_000_000} million pixels or {LARGEST_FILE // 2**20} MiB"
NO_ACCESS = "its file cannot be read"

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})


# A private file must not speak. Pillow logs what it finds in a damaged one, and without a handler Python prints that;
# it also warns; and libtiff writes to stderr itself, past Python (`_Muted`).
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
_TIFF = (b"II", b"MM")  # what such a file begins with
_STDERR = 2


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
    with _mute(data):
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
    with _mute(data):
        try:
            image = _open(data, formats)
            return ImageHeader(shorter_side=min(image.size), grey=_is_grey(image))
        except (DecodingError, MemoryError):
            raise
        except Exception:
            raise DecodingError(NOT_AN_IMAGE) from None


@contextlib.contextmanager
def _mute(data: bytes) -> Iterator[None]:
    """Nothing that is read meanwhile is talked about."""
    with warnings.catch_warnings(), _no_stderr if data.startswith(_TIFF) else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        yield


class _NoStderr:
    """The process's stderr leads nowhere while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                with contextlib.suppress(OSError):  # closed: it leads nowhere already
                    self._kept = os.dup(_STDERR)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, _STDERR)
                    os.close(nowhere)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._kept is not None:
                os.dup2(self._kept, _STDERR)
                os.close(self._kept)
                self._kept = None


_no_stderr = _NoStderr()


def _open(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    if len(data) > LARGEST_FILE:
        raise DecodingError(TOO_LARGE)
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
