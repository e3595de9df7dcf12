"""Decode any image to eight bits: a file, its bytes, a PIL image or an array, in any mode and depth that Pillow reads."""

import ctypes
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging
from PIL.Image import Transpose

from fmcae.errors import ImageError
from fmcae.files import read_at_most
from fmcae.limits import MAX_READS, PictureFile, Refused, check_encoded, check_exif, check_opened

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]

MAX_FILE_BYTES = 256 * 2**20  # more than MAX_PIXELS need in any format
MAX_PIXELS = 64_000_000  # a larger picture is more likely a decompression bomb than a product photo
MAX_EDGE = 65_535  # a JPEG's; a picture of millions of rows takes decoders and numpy long
# The formats that Pillow decodes in this process; it hands EPS to Ghostscript. It knows those of the second line only
# after Image.init(), and AVIF only since Pillow 11.3.
COMMON_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM")
OTHER_FORMATS = ("WEBP", "TIFF", "AVIF", "JPEG2000", "ICO")
# What Pillow registers for those formats, written down because Image.init() takes as long as it takes to read pictures.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".png", ".jfif", ".jpe", ".jpeg", ".jpg", ".gif", ".bmp", ".pbm", ".pfm", ".pgm", ".pnm", ".ppm", ".webp",
    ".tif", ".tiff", ".avif", ".avifs", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".ico",
})  # fmt: skip
HEIC_SUFFIXES = (".heic", ".heif")  # pictures of phones, which Pillow does not decode
EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where an orientation may be
ORIENTATION = 0x0112  # EXIF's tag
TURNS: dict[object, Transpose] = {  # that undo it
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
DRAFT_SIZE = 1344  # pixels of an edge that a JPEG is not decoded below: at least 3.5 times what preprocessing samples
LARGE_PIXELS = 2**22
STRIP_PIXELS = 2**16  # that are computed with at once: few enough for the processor's cache


def heic_not_read(folder: object, count: int) -> str:
    """What is said of a folder's ``count`` HEIC files."""
    return f"{folder}: its HEIC files ({count:,}) are not read: save them as JPEG"


def read_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image (the first frame of several) to mode L, RGB or RGBA, upright as its EXIF orientation says.

    Deeper images are scaled to 8 bits: 16-bit ones by their full range, 32-bit and float ones by the smallest of 1
    (float only), 255 and 65535 that holds all values. A PIL image that needs no change is returned itself. One with more
    than ``max_pixels`` is refused before it is decoded.

    Raises:
        ImageError: the source cannot be read as an image; the message names it and says why.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if isinstance(source, str) and not source:
        raise ImageError("path (=) must not be empty")
    if not isinstance(source, str | bytes | os.PathLike | Image.Image) and not hasattr(source, "read"):
        given = source if source is None else f"<{type(source).__name__}>"  # OpenCV gives None for what it cannot read
        raise ImageError(f"image (={given}) must be a path, bytes, a file, an array or a PIL image")
    name = source_name(source)
    try:
        with _without_warnings:
            image = source if isinstance(source, Image.Image) else _open(_read_bytes(source, name), name, max_pixels)
            _check_size(image.size, name, max_pixels)
            image = _upright(image)  # which may be a copy: the other one's memory is free from here on
            return _to_eight_bits(image)
    except (ImageError, MemoryError):
        raise
    except Refused as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: has too many pixels: at most {MAX_PIXELS:,} are read") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(COMMON_FORMATS + OTHER_FORMATS)
        raise ImageError(f"{name}: is not an image in a format that is read ({formats})") from error
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ImageError(f"{name}: cannot be read as an image: {reason}") from error


def source_name(source: ImageSource) -> str:
    """What an error calls an image: its path, or what it is."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "image bytes"
    return str(source) if isinstance(source, str | os.PathLike) else "image"


def _read_bytes(source: str | os.PathLike[str] | bytes, name: str) -> bytes:
    try:
        content = source if isinstance(source, bytes) else read_at_most(source, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise ImageError(f"{name}: is empty")
    return content


def _open(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """Open a picture that may be decoded. A large JPEG is decoded at a smaller size."""
    check_encoded(content)
    file = PictureFile(content)
    try:
        image: Image.Image = Image.open(file, formats=COMMON_FORMATS)
    except UnidentifiedImageError:
        _silence_other_formats()
        Image.init()
        image = Image.open(file, formats=[name for name in OTHER_FORMATS if name in Image.OPEN])
    _check_size(image.size, name, max_pixels)
    check_opened(image, content)
    file.max_reads = MAX_READS
    image.draft(None, (DRAFT_SIZE, DRAFT_SIZE))
    return image


class _WithoutWarnings:
    """Ignore what Pillow warns of while any thread decodes; ``catch_warnings`` would undo what other threads set."""

    def __init__(self) -> None:
        self.lock, self.threads = threading.Lock(), 0
        self.filters: list[Any] = []
        self.filter = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __enter__(self) -> None:
        with self.lock:
            self.threads += 1
            if self.threads == 1:
                self.filters = cast(list[Any], warnings.filters)
                self.filters.insert(0, self.filter)

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                with suppress(ValueError):  # someone removed all filters
                    self.filters.remove(self.filter)


_without_warnings = _WithoutWarnings()


@cache
def _silence_other_formats() -> None:
    """Keep what Pillow logs, and what libtiff prints, of damaged pictures off stderr."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any handler Python prints errors itself
    with suppress(OSError, AttributeError):  # libtiff is built into Pillow, as on Windows
        library = ctypes.CDLL(_imaging.__file__)  # which finds what it is linked with, too
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    if not 1 <= size[0] * size[1] <= max_pixels:
        raise ImageError(f"{name}: has {size[0]}×{size[1]} pixels; 1 to {max_pixels:,} are read")
    if max(size) > MAX_EDGE:
        raise ImageError(f"{name}: has {size[0]}×{size[1]} pixels; at most {MAX_EDGE:,} at an edge are read")


def _from_array(array: NDArray[Any], max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if (dtype := array.dtype.newbyteorder("=")) not in (np.uint8, np.uint16, np.bool_):
        raise ImageError(f"array's dtype (={array.dtype}) must be uint8, uint16 or bool")
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ImageError(f"array's shape (={array.shape}) must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_size((array.shape[1], array.shape[0]), "array", max_pixels)
    if dtype == np.uint16:
        parts = np.array_split(array, 1 + array.size // STRIP_PIXELS)
        array = np.concatenate([_sixteen_to_eight_bits(part) for part in parts])
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    return Image.fromarray(np.ascontiguousarray(array))


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    if image.format in COMMON_FORMATS and not EXIF_KEYS.intersection(image.info):
        return image  # without the import that looking for EXIF data costs, and without a copy
    check_exif(image)
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged EXIF data say nothing of how the picture stands
        turn = None
    if turn is None:
        return image
    upright = image.transpose(turn)
    upright.format = image.format
    return upright


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode[0] in "IF":
        return Image.fromarray(_grey_to_eight_bits(image))
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    elif mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(mode[:-1] + "A")
    eight_bits = "RGBA" if image.has_transparency_data else "L" if mode in ("1", "L") else "RGB"
    return image if image.mode == eight_bits else image.convert(eight_bits)


def _grey_to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return np.concatenate([_sixteen_to_eight_bits(np.asarray(strip)) for strip in strips(image)])
    top = max(float(_finite(strip).max()) for strip in strips(image))
    if image.mode == "F" and top <= 1:
        full = 1.0
    elif top <= 255 and image.format != "PNG":  # older Pillow opens a 16-bit PNG in mode I
        full = 255.0
    else:
        full = max(65535.0, top)
    return np.concatenate([_scaled(_finite(strip), 255 / full) for strip in strips(image)])


def _finite(image: Image.Image) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # numpy warns of some kinds of NaN
        values = np.array(image, np.float64)
    values[~np.isfinite(values)] = 0
    return values


def _scaled(values: NDArray[np.float64], factor: float) -> NDArray[np.uint8]:
    """Scale non-negative values, in place, to 8 bits; negative ones become 0."""
    values.clip(0, out=values)
    values *= factor
    return np.rint(values, out=values).astype(np.uint8)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels (H, W) or (H, W, C) uint8 of an image as :func:`read_image` gives it."""
    if image.width * image.height < LARGE_PIXELS:
        return np.asarray(image)
    # Pillow holds all that it copies twice for a moment, so a large picture is copied in parts.
    pixels = np.empty((image.height, image.width, *[len(image.mode)] * (image.mode != "L")), np.uint8)
    row = 0
    for strip in strips(image):
        pixels[row : row + strip.height] = np.asarray(strip)
        row += strip.height
    return pixels


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Cut an image into strips of whole rows, so that what is computed of them takes little memory."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _sixteen_to_eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
