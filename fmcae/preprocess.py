"""From an image to the model's input: the one path that training, export, parity, bench and predict share.

A 28×28 grey image is taken as it is. Anything else goes through the pipeline that made Fashion-MNIST from product photos:

1. decode, and turn the picture upright;
2. trim the edges that match the corners' colour;
3. resize the longest edge to 28 pixels;
4. sharpen;
5. centre on 28×28;
6. negate, so that the background is 0;
7. keep 8 bits of grey.

Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2 and figure 1. Made robust here: any background
colour, transparency, noise, size and aspect ratio.
"""

import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from fmcae.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
FloatArray = NDArray[np.float32]

SIZE = 28  # pixels
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which a file is more likely a bomb than a photo
WORKING_SIZE = 1024  # pixels; a longer edge is first reduced to about this, which is still 36 times what is needed
CLOSE = 0.05  # share of the colour range within which a pixel counts as background, at most; the paper's 5%
CLEAN = 0.01  # the same in a picture without any noise
SHARPEN_PERCENT = 50

DESCRIPTION: dict[str, Any] = {
    "size": [SIZE, SIZE],
    "grey 28x28 images": "taken as they are",
    "other images": "upright, trimmed to the item, longest edge to 28 pixels, sharpened, centred, background to 0, 8 bits",
    "scale": "uint8 / 255",
    "source": "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2",
}


def preprocess(source: ImageSource) -> FloatArray:
    """The model's input for one image.

    Args:
        source: a path, encoded bytes, a PIL image, or an array of uint8, uint16 or bool, (H, W), (H, W, 1), (H, W, 3)
            or (H, W, 4).

    Returns:
        (1, 28, 28) float32 in [0, 1].

    Raises:
        ImageError: the source cannot be read as an image; the message names it and why.
    """
    return scale(to_uint8(source))


def scale(images: NDArray[np.uint8]) -> FloatArray:
    """uint8 (28, 28) or (N, 28, 28) -> float32 (1, 28, 28) or (N, 1, 28, 28) in [0, 1]."""
    return np.expand_dims(images, -3).astype(np.float32) / np.float32(255)


def to_uint8(source: ImageSource) -> NDArray[np.uint8]:
    """An image in Fashion-MNIST's form: (28, 28) uint8, the background 0, the item up to 255.

    Args and errors as for :func:`preprocess`.
    """
    image = read_image(source)
    rgba = _reduced(_to_rgba(image))
    if rgba.size == (SIZE, SIZE):
        pixels = np.asarray(rgba)
        if (pixels[..., 3] == 255).all() and (pixels[..., :3] == pixels[..., :1]).all():
            return pixels[..., 0].copy()
    return _fashion_mnist(rgba)


def read_image(source: ImageSource) -> Image.Image:
    """Decode an image, its first frame if it has several, and turn it upright as its EXIF orientation says.

    Raises:
        ImageError: as for :func:`preprocess`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        name, image = "image", source
    else:
        name, content = _read_bytes(source)
        image = _open(name, content)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: has {image.width}×{image.height} pixels; at most {MAX_PIXELS:,} are read")
    if min(image.size) == 0:
        raise ImageError(f"{name}: has no pixels ({image.width}×{image.height})")
    try:
        image.load()
        return _upright(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        raise ImageError(f"{name}: cannot be read as an image: {_reason(error)}") from error


# --- reading -----------------------------------------------------------------------------------------------------

_warnings_lock = threading.Lock()  # warnings.catch_warnings changes state that all threads share


def _read_bytes(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        name, content = "image bytes", source
    else:
        name = os.fspath(source)
        try:
            content = Path(source).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise ImageError(f"{name}: is empty")
    return name, content


def _open(name: str, content: bytes) -> Image.Image:
    try:
        # Pillow warns of large images from here on; read_image has its own rule
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: has too many pixels; at most {MAX_PIXELS:,} are read") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not an image in a format that Pillow reads") from error
    except Exception as error:
        raise ImageError(f"{name}: cannot be read as an image: {_reason(error)}") from error


def _from_array(array: NDArray[Any]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise ImageError(f"array's shape (={array.shape}) must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not empty")
    if array.dtype == np.uint16:
        array = _sixteen_to_eight_bits(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"array's dtype (={array.dtype}) must be uint8, uint16 or bool")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"array: has {array.shape[1]}×{array.shape[0]} pixels; at most {MAX_PIXELS:,} are read")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and channels == 1 else array))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing of how the picture stands
        return image


def _to_rgba(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as 8-bit RGBA."""
    if image.mode in ("RGBA", "RGB", "L"):
        return image.convert("RGBA")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(image)).convert("RGBA")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    elif image.mode in ("CMYK", "YCbCr", "HSV"):
        image = image.convert("RGB")
    return image.convert("RGBA")


def _to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit, 32-bit and float grey as 8 bits, by the range that the mode or the values stand for."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    top = values.max()
    if image.mode == "F" and top <= 1:
        full = 1.0
    elif image.mode.startswith("I;16") or 255 < top <= 65535 or image.format == "PNG":
        full = 65535.0
    else:
        full = 255.0 if top <= 255 else 2.0**32 - 1
    return np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8)


def _sixteen_to_eight_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.rint(values / 257).astype(np.uint8)


def _reduced(image: Image.Image) -> Image.Image:
    factors = tuple(max(1, edge // WORKING_SIZE) for edge in image.size)
    return image.reduce(factors) if max(factors) > 1 else image


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


# --- Fashion-MNIST's pipeline ------------------------------------------------------------------------------------


def _fashion_mnist(image: Image.Image) -> NDArray[np.uint8]:
    """Steps 2 to 7 for an 8-bit RGBA image of any size."""
    rgb, background, distance = _separate(np.asarray(image, np.float32) / 255)
    if distance.max() < CLEAN:
        return np.zeros((SIZE, SIZE), np.uint8)
    box = _trim(distance, _tolerance(distance))
    ink = _negate(rgb, background, distance, box)
    return _centred(_sharpened(_resized(ink, box)))


def _separate(rgba: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Colours (H, W, 3), the background's (3,), and each pixel's distance from it (H, W), all in [0, 1]."""
    alpha = rgba[..., 3:]
    if alpha.min() < 1:
        # A transparent picture goes in front of white, as in the data set; if nothing shows there, before black.
        for backdrop in (1.0, 0.0):
            rgb = rgba[..., :3] * alpha + backdrop * (1 - alpha)
            background = np.full(3, backdrop, np.float32)
            distance = _distance(rgb, background)
            if distance.max() > CLOSE:
                break
        return rgb, background, distance
    rgb = rgba[..., :3]
    background = _corner_colour(rgb)
    return rgb, background, _distance(rgb, background)


def _corner_colour(rgb: FloatArray) -> FloatArray:
    """The corner colour that is closest to the other corners', so that an item may reach into one of them."""
    height, width = (max(1, round(edge * 0.02)) for edge in rgb.shape[:2])
    corners = np.array(
        [np.median(rgb[y, x].reshape(-1, 3), axis=0) for y in (slice(height), slice(-height, None))
         for x in (slice(width), slice(-width, None))]
    )  # fmt: skip
    apart = np.abs(corners[:, np.newaxis] - corners).sum(axis=(1, 2))
    chosen: FloatArray = corners[apart.argmin()]
    return chosen


def _distance(rgb: FloatArray, background: FloatArray) -> FloatArray:
    difference: FloatArray = np.sqrt(((rgb - background) ** 2).mean(axis=-1))
    return difference


def _tolerance(distance: FloatArray) -> float:
    """How far from the background's colour a pixel of the background may be: the paper's 5%, less in a clean picture.

    The margin shows how noisy the picture is. In a clean one the item's faint outer pixels count, which 5% would trim.
    """
    margin = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    noise = margin[margin < CLOSE]
    level = 2 * float(np.quantile(noise, 0.95)) if noise.size else CLEAN
    return min(CLOSE, max(CLEAN, level))


def _trim(distance: FloatArray, tolerance: float) -> tuple[float, float, float, float]:
    """The item's box (left, top, right, bottom) in pixels."""
    left, right = _extent(distance.max(axis=0), tolerance)
    top, bottom = _extent(distance.max(axis=1), tolerance)
    return left, top, right, bottom


def _extent(profile: FloatArray, tolerance: float) -> tuple[float, float]:
    """Where an item begins and ends along one axis, in pixels.

    A soft edge (an enlarged picture, a blurred photo) begins half way up: the rise is taken over one pixel of the 28.
    """
    inside = np.flatnonzero(profile > tolerance)
    if not inside.size:
        return 0, len(profile)
    begin, end = int(inside[0]), int(inside[-1]) + 1
    rise = 3 * (end - begin) // (4 * SIZE)
    first = profile[begin : begin + rise + 1]
    last = profile[end - rise - 1 : end][::-1]
    begin += int((first >= first[-1] / 2).argmax())
    end -= int((last >= last[-1] / 2).argmax())
    return begin, end


def _negate(
    rgb: FloatArray, background: FloatArray, distance: FloatArray, box: tuple[float, float, float, float]
) -> FloatArray:
    """How much ink (H, W) in [0, 1] each pixel has: 0 for the background."""
    grey, paper = _luminance(rgb), float(_luminance(background))
    if background.min() > 0.5:
        darker = np.clip(paper - grey, 0, None) / paper
        lighter = np.clip(grey - paper, 0, None)
        if darker.max() > lighter.max():
            return darker
    inside = _filled(distance > CLOSE)
    photo = np.where(inside, 1 - grey, 0)
    drawing = distance / distance.max()
    # In front of a dark background stands either a photo, to be negated, or a picture that is negative already.
    # A pixel at an item's rim is partly background, so it has less ink than those inside: in 99% of Fashion-MNIST.
    return photo if _rim_is_fainter(_resized(photo, box)) else drawing


def _luminance(rgb: FloatArray) -> FloatArray:
    grey: FloatArray = rgb @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"
    return grey


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``mask`` with its holes: all that is not connected to the margin outside it."""
    free = Image.fromarray(np.pad(~mask, 1, constant_values=True))
    outside = np.zeros(free.size[::-1], bool)
    outside[0] = outside[-1] = True
    outside[:, 0] = outside[:, -1] = True
    free = np.asarray(free)
    while True:
        before = outside.sum()
        for axis in (0, 1):
            for flip in (slice(None), slice(None, None, -1)):
                index = (flip, slice(None)) if axis == 0 else (slice(None), flip)
                outside[index] = _spread(outside[index], free[index], axis)
        if outside.sum() == before:
            return ~outside[1:-1, 1:-1]


def _spread(outside: NDArray[np.bool_], free: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Carry ``outside`` on along an axis as far as pixels are free."""
    position = np.arange(outside.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
    last_outside = np.maximum.accumulate(np.where(outside, position, -1), axis=axis)
    last_wall = np.maximum.accumulate(np.where(free, -1, position), axis=axis)
    return free & (last_outside > last_wall)


def _rim_is_fainter(ink: FloatArray) -> bool:
    padded = np.pad(ink > 0.02, 1)
    item = padded[1:-1, 1:-1]
    inner = item & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rim = item & ~inner
    return not inner.any() or not rim.any() or bool(ink[rim].mean() < ink[inner].mean())


def _resized(ink: FloatArray, box: tuple[float, float, float, float]) -> FloatArray:
    """The part in ``box`` with its longest edge at 28 pixels."""
    width, height = box[2] - box[0], box[3] - box[1]
    zoom = SIZE / max(width, height)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    resized = Image.fromarray(ink).resize(size, Image.Resampling.LANCZOS, box)
    return np.asarray(resized, np.float32).clip(0, 1)


def _sharpened(ink: FloatArray) -> NDArray[np.uint8]:
    """Sharpened with a Gaussian of radius 1, and brought to the full range, as every image of Fashion-MNIST is."""
    top = ink.max()
    image = Image.fromarray(np.rint(ink * (255 / top if top > 0 else 0)).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.UnsharpMask(radius=1, percent=SHARPEN_PERCENT, threshold=0)))


def _centred(item: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """On 28×28; where the margin is odd, the greater part is above and to the left, as in Fashion-MNIST."""
    height, width = item.shape
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (SIZE - height + 1) // 2, (SIZE - width + 1) // 2
    canvas[top : top + height, left : left + width] = item
    return canvas
