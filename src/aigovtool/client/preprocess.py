"""
A picture becomes a tensor, by the steps of its `ImageInput`, in the order of that module's rule 2.

Rule 1: nothing is guessed. Transparency, several frames and 32-bit pixels have no one meaning in
        values of 0 to 255, so that they are refused with what would mend it.
Rule 2: a file is decoded only after its size, format and number of pixels are known to be sane.
Rule 3: up to the resize all is 8-bit; then one calculation in 64-bit floats, rounded once.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aigovtool.errors import BadTensorError, MalformedError, TooLargeError
from aigovtool.sealing.interface import ImageInput
from aigovtool.wire.tensors import DTYPES, Array

MAX_PIXELS = 64 << 20  # 64 megapixels: 192 MB as RGB; a large X-ray has 10
# Decoders that read pixels and do nothing else: EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

# Pillow promises no one exception for a broken file.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # of damaged metadata or many pixels, where warnings are made errors
)
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def image_tensor(data: bytes, spec: ImageInput) -> Array:
    """
    Turn the bytes of a picture file into a tensor of ``spec.shape`` and ``spec.datatype``.

    Raises:
        MalformedError: not a picture in one of `FORMATS`, or broken.
        TooLargeError: more than `MAX_PIXELS`.
        BadTensorError: a picture whose values would have to be guessed, or results that the
            datatype cannot hold.
    """
    image = _open(data, spec.name)
    image = _resize(_crop(image, spec), spec)
    pixels = np.asarray(image).reshape(spec.height, spec.width, spec.channel_count)
    if spec.channels == "bgr":
        pixels = pixels[..., ::-1]
    values = _values(pixels, spec)
    if spec.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values).reshape(spec.shape)


def _open(data: bytes, name: str) -> Image.Image:
    """Decode the one frame of a picture to 8 bits a channel, upright."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise TooLargeError(
                "the picture is too large",
                expected=f"at most {MAX_PIXELS} pixels",
                came=f"{image.width} x {image.height}",
                mend="make it smaller, or cut out the part that matters",
            )
        several = getattr(image, "is_animated", False)
        image.load()
        image = ImageOps.exif_transpose(image)
        transparent = image.has_transparency_data and _is_transparent(image)
    except _PILLOW_ERRORS:
        raise MalformedError(
            "the input is not a picture that can be read",
            code="input.not_an_image",
            expected=f"one of {', '.join(FORMATS)}",
        ) from None
    if several:
        raise _ambiguous(name, "has several frames", "save the one that matters by itself")
    if transparent:
        raise _ambiguous(name, "is partly transparent", "put it on a ground of one colour")
    if image.mode in ("I", "F"):
        raise _ambiguous(
            name, "has pixels of more than 16 bits", "save it with 8 or 16 bits for each channel"
        )
    if image.mode in _SIXTEEN_BITS:  # Pillow's own conversion would clip all but the darkest
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _is_transparent(image: Image.Image) -> bool:
    alpha: NDArray[np.uint8] = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool(alpha.min() < 255)


def _crop(image: Image.Image, spec: ImageInput) -> Image.Image:
    width, height = image.size
    top = min(int(height * spec.crop_top), height - 1)
    left, right, bottom = 0, width, height
    if spec.centre_crop:
        side = min(width, height - top)
        left, top = (width - side) // 2, top + (height - top - side) // 2
        right, bottom = left + side, top + side
    return image.convert("L" if spec.channels == "grayscale" else "RGB").crop(
        (left, top, right, bottom)
    )


def _resize(image: Image.Image, spec: ImageInput) -> Image.Image:
    size = (spec.width, spec.height)
    if spec.resize == "opencv-linear":
        return _opencv_linear(image, size)
    return image.resize(size, _FILTERS[spec.resize])


def _opencv_linear(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize as OpenCV's INTER_LINEAR: pixel centres at halves, two neighbours a side, no more."""
    pixels = np.asarray(image).astype(np.float32)
    for axis, length in ((0, size[1]), (1, size[0])):
        old = pixels.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        before = np.floor(place).astype(np.intp)
        after = np.minimum(before + 1, old - 1)
        weight = (place - before).astype(np.float32)
        weight = weight.reshape([-1 if one == axis else 1 for one in range(pixels.ndim)])
        pixels = pixels.take(before, axis) * (1 - weight) + pixels.take(after, axis) * weight
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _values(pixels: NDArray[np.uint8], spec: ImageInput) -> Array:
    """Invert, scale, normalise, and round to the datatype."""
    if spec.invert:
        pixels = 255 - pixels
    values = pixels * np.float64(spec.scale)
    if spec.mean:
        values = values - np.array(spec.mean)
    if spec.std:
        values = values / np.array(spec.std)
    dtype: np.dtype[Any] = DTYPES[spec.datatype]
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        smallest = -largest
    else:
        values = np.rint(values)
        smallest, largest = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if values.min() < smallest or values.max() > largest:
        raise BadTensorError(
            f"the interface of input {spec.name!r} gives numbers that {spec.datatype} cannot hold",
            code="input.range",
            mend="the custodian must describe another scale, mean or datatype",
        )
    return values.astype(dtype)


def _ambiguous(name: str, what: str, mend: str) -> BadTensorError:
    return BadTensorError(
        f"the picture for input {name!r} {what}", code="input.ambiguous", mend=mend
    )
