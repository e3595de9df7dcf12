"""Decode any image to eight bits: a file, its bytes, a PIL image or an array, in any mode and depth that Pillow reads."""

import io
import os
import threading
import warnings
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fmcae.errors import ImageError
from fmcae.files import read_at_most

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

MAX_FILE_BYTES = 256 * 2**20  # more than MAX_PIXELS need in any format
MAX_PIXELS = 64_000_000  # a larger picture is more likely a decompression bomb than a product photo
# The formats that Pillow decodes in this process; it hands EPS to Ghostscript. It knows those of the second line only
# after Image.init(), and AVIF only since Pillow 11.3.
COMMON_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM")
OTHER_FORMATS = ("WEBP", "TIFF", "AVIF", "JPEG2000", "ICO")
# What Pillow registers for those formats, written down because Image.init() takes as long as it takes to read pictures.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".png", ".jfif", ".jpe", ".jpeg", ".jpg", ".gif", ".bmp", ".pbm", ".pfm", ".pgm", ".pnm", ".ppm", ".webp",
    ".tif", ".tiff", ".avif", ".avifs", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".ico",
})  # fmt: skip
EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where an orientation may be
DRAFT_SIZE = 1344  # pixels of an edge that a JPEG is not decoded below: four times what preprocessing works at
_warnings_lock = threading.Lock()  # warnings.catch_warnings changes what all threads share


def read_image(source: ImageSource) -> Image.Image:
    """Decode an image (the first frame of several) to mode L, RGB or RGBA, upright as its EXIF orientation says.

    Deeper images are scaled to 8 bits: 16-bit ones by their full range, 32-bit and float ones by the smallest of 1
    (float only), 255 and 65535 that holds all values. A PIL image that needs no change is returned itself.

    Raises:
        ImageError: the source cannot be read as an image; the message names it and says why.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, str) and not source:
        raise ImageError("path (=) must not be empty")
    name = "image" if isinstance(source, Image.Image) else "image bytes" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, Image.Image):
            _check_size(source.size, name)
            return _to_eight_bits(_upright(source))
        content = _read_bytes(source, name)
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures
            image = _open(content)
        _check_size(image.size, name)
        image.draft(None, (DRAFT_SIZE, DRAFT_SIZE))  # a large JPEG is decoded at a smaller size
        return _to_eight_bits(_upright(image))
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: has too many pixels: at most {MAX_PIXELS:,} are read") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(COMMON_FORMATS + OTHER_FORMATS)
        raise ImageError(f"{name}: is not an image in a format that is read ({formats})") from error
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ImageError(f"{name}: cannot be read as an image: {reason}") from error


def _read_bytes(source: str | os.PathLike[str] | bytes, name: str) -> bytes:
    try:
        content = source if isinstance(source, bytes) else read_at_most(source, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise ImageError(f"{name}: is empty")
    return content


def _open(content: bytes) -> Image.Image:
    file = io.BytesIO(content)
    try:
        return Image.open(file, formats=COMMON_FORMATS)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(file, formats=[name for name in OTHER_FORMATS if name in Image.OPEN])


def _check_size(size: tuple[int, int], name: str) -> None:
    if not 1 <= size[0] * size[1] <= MAX_PIXELS:
        raise ImageError(f"{name}: has {size[0]}×{size[1]} pixels; 1 to {MAX_PIXELS:,} are read")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ImageError(f"array's shape (={array.shape}) must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_size((array.shape[1], array.shape[0]), "array")
    if array.dtype == np.uint16:
        array = _sixteen_to_eight_bits(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"array's dtype (={array.dtype}) must be uint8, uint16 or bool")
    return Image.fromarray(np.ascontiguousarray(array))


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    if image.format in COMMON_FORMATS and not EXIF_KEYS.intersection(image.info):
        return image  # without the import that looking for EXIF data costs, and without a copy
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing of how the picture stands
        return image
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
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if mode in ("L", "RGB") else image.convert("L" if mode == "1" else "RGB")


def _grey_to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return _sixteen_to_eight_bits(np.asarray(image))
    values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
    top = values.max()
    if image.mode == "F" and top <= 1:
        full = 1.0
    elif top <= 255 and image.format != "PNG":  # older Pillow opens a 16-bit PNG in mode I
        full = 255.0
    else:
        full = max(65535.0, top)
    return np.rint(values.clip(0) * (255 / full)).astype(np.uint8)


def _sixteen_to_eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
