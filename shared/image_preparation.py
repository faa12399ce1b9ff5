"""One decoded image, whatever its mode and size, to the uint8 C x R x R array that every encoder and classifier sees.

Both sides of the release and every evaluation use these functions, so that an image means the same everywhere. They are
deterministic, look at one image at a time, and leave an image that already fits exactly as it is. The steps, in order:
EXIF orientation; 16-bit grey scaled by 257 to 8 bits; transparency laid on white; conversion to grey (ITU-R 601) or
RGB; the largest centred square; antialiased bicubic resampling to the resolution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpmepf.shared.image_decoding import DecodingError

UNKNOWN_PIXELS = "its pixels are floating-point or wider than 16 bits, so that their range is unknown"

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepare_image(image: Image.Image | NDArray[np.uint8], *, resolution: int, channels: int) -> NDArray[np.uint8]:
    """Bring one image to uint8 `channels` x `resolution` x `resolution`.

    Args:
        image: a decoded Pillow image of any mode, or uint8 H x W or H x W x C with C = 1, 3 or 4 (alpha).
        resolution: side of the result in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        A contiguous array of its own. An image of that size and number of channels comes back unchanged.

    Raises:
        DecodingError: the pixels have no known range (floating-point, 32-bit).
    """
    if isinstance(image, np.ndarray):
        pixels = image if image.ndim == 3 else image[:, :, None]
        if pixels.shape == (resolution, resolution, channels):
            return np.array(pixels.transpose(2, 0, 1), order="C")
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    turn = _orientation(image)
    image = _eight_bits(image)
    image = image if turn is None else image.transpose(turn)
    image = _on_white(image)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    image = _centred_square(image, resolution)
    pixels = np.asarray(image).reshape(resolution, resolution, channels)  # H x W x C
    return np.array(pixels.transpose(2, 0, 1), order="C")


def prepare_array(images: NDArray[np.uint8], *, resolution: int, channels: int) -> NDArray[np.uint8]:
    """`prepare_image` of every image in N x H x W x C at once; a mere copy where size and channels fit already."""
    count, height, width, depth = images.shape
    if height == width == resolution and depth in (1, channels):
        channels_first = images.transpose(0, 3, 1, 2)
        return np.array(np.broadcast_to(channels_first, (count, channels, height, width)), order="C")
    prepared = np.empty((count, channels, resolution, resolution), np.uint8)
    for index, image in enumerate(images):
        prepared[index] = prepare_image(image, resolution=resolution, channels=channels)
    return prepared


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says to turn the image; damaged EXIF counts as upright, as in every viewer."""
    if not {"exif", "Raw profile type exif"} & image.info.keys():
        return None
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # the parser raises SyntaxError, struct.error and others
        return None
    return _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DecodingError(UNKNOWN_PIXELS)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):  # Pillow's 32-bit mode also holds 16-bit files
        raise DecodingError(UNKNOWN_PIXELS)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 257 * 255


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _centred_square(image: Image.Image, resolution: int) -> Image.Image:
    if image.size == (resolution, resolution):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == resolution:
        return image.crop(box)
    # The reducing gap averages very large images down first; 3 is visually the same as none and several times faster.
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
