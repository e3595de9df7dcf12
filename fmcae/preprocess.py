"""Turn an image into the model's input: the one path of training, export, parity, bench and predict.

A 28×28 grey image is taken as it is. Anything else goes through the pipeline that made Fashion-MNIST of product photos:
turn the picture upright, trim the edges that are close to the corners' colour, bring the longest edge to 28 pixels by
subsampling, sharpen, centre on 28×28, and negate, so that the background is 0 and the item is bright.

Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2. Made robust here: any background colour,
transparency, soft edges, noise, any size and shape. ``bench/preprocess_roundtrip.py`` measures how well that works.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fmcae.images import MAX_PIXELS, ImageSource, read_image, strips

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

SIZE = 28  # pixels
CLOSE = 0.05  # a pixel within this share of the range from the corners' colour is background: the paper's 5%
CLEAN = 2.5 / 255  # in a picture without noise, pixels that stand out this much and touch the item belong to it
SHARPEN_PERCENT = 25  # subsampling keeps most of a picture's sharpness, and a picture at hand may be sharpened already
WORKING_SIZE = 336  # pixels of the longest edge of the picture that an item's edges are found in, 10 for one of 28
MAX_SWEEPS = 100  # of the flood that finds the background, 5 ms each; photos take up to 12, and mazes thousands

DESCRIPTION: dict[str, Any] = {
    "28x28 grey image": "taken as it is",
    "other image": "turned upright, trimmed to the item, longest edge to 28 pixels, sharpened, centred, background to 0",
    "trim_tolerance": CLOSE,
    "sharpen_percent": SHARPEN_PERCENT,
    "scale": "uint8 / 255",
    "source": "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2",
}


def preprocess(source: ImageSource) -> Floats:
    """Return the model's input for one image, (1, 28, 28) float32 in [0, 1].

    Args:
        source: a path, an image file's bytes, a PIL image, or an array of uint8, uint16 or bool of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4).

    Raises:
        ImageError: the source cannot be read as an image; the message names it and says why.
    """
    return scale(to_uint8(source))


def scale(images: Bytes) -> Floats:
    """Scale uint8 (28, 28) or (N, 28, 28) to float32 (1, 28, 28) or (N, 1, 28, 28) in [0, 1]."""
    scaled: Floats = np.divide(np.expand_dims(images, -3), np.float32(255), dtype=np.float32)
    return scaled


def to_uint8(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Bytes:
    """Bring an image into Fashion-MNIST's form: (28, 28) uint8, the background 0, the item up to 255.

    A 28×28 image that is opaque and grey is taken exactly as it is. A blank picture gives zeros. One with more than
    ``max_pixels`` is refused. Errors are those of :func:`preprocess`.
    """
    image = read_image(source, max_pixels)
    if image.size == (SIZE, SIZE):
        if image.mode == "L":
            return np.frombuffer(image.tobytes(), np.uint8).reshape(SIZE, SIZE)  # a copy less than np.array makes
        pixels = np.asarray(image.convert("RGBA"))
        if (pixels[..., 3] == 255).all() and (pixels[..., :3] == pixels[..., :1]).all():
            grey: Bytes = pixels[..., 0].copy()
            return grey
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    picture, is_negative = _opaque(image, alpha)
    del image  # a large one's memory is free from here on
    rgb = _rgb(picture)
    background = _corner_colour(rgb)
    alpha = alpha if alpha and _corner_colour(_rgb(alpha))[0] < CLOSE else None  # a cut-out's, which says where it is
    around = _around(_item_box(*_outline(rgb, alpha, background)), picture)
    if around != (0, 0, *picture.size):
        picture, alpha = picture.crop(around), alpha and alpha.crop(around)
        rgb = _rgb(picture)
    outline, noise = _outline(rgb, alpha, background)
    box = _item_box(outline, noise)
    if box is None:
        return np.zeros((SIZE, SIZE), np.uint8)
    ink = _subsampled(_distance(rgb, background), box) if is_negative else _negated(rgb, background, box, noise)
    return _centred(_sharpened(ink))


def _opaque(image: Image.Image, alpha: Image.Image | None) -> tuple[Image.Image, bool]:
    """Put a transparent picture before white, or a white one before black: it is negative already."""
    if alpha is None:
        return image, False
    picture = Image.new("RGB", image.size)
    for backdrop in ("white", "black"):
        picture.paste(backdrop, (0, 0, *image.size))
        picture.paste(image, mask=alpha)
        ranges = np.array([(pixels.min(), pixels.max()) for pixels in map(np.asarray, strips(picture))], int)
        if ranges.max() - ranges.min() > CLOSE * 255:
            break
    return picture, backdrop == "black"


def _shrunk(picture: Image.Image) -> Image.Image:
    """The picture with its longest edge at the working size if it is larger."""
    zoom = WORKING_SIZE / max(picture.width, picture.height)
    size = max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom))
    return picture.resize(size, Image.Resampling.BOX) if zoom < 1 else picture


def _rgb(picture: Image.Image) -> Floats:
    """(H, W, 3): a picture, shrunk first, in float32 0 to 1."""
    shrunk = _shrunk(picture)
    return _floats(shrunk if shrunk.mode == "RGB" else shrunk.convert("RGB"))


def _floats(picture: Image.Image) -> Floats:
    floats: Floats = np.divide(np.asarray(picture), np.float32(255), dtype=np.float32)
    return floats


def _corner_colour(rgb: Floats) -> Floats:
    """(H, W, 3) -> (3,): the corner colour closest to the three others; an item may reach into one corner."""
    height, width = (max(1, round(edge * 0.02)) for edge in rgb.shape[:2])
    ends = (slice(height), slice(-height, None)), (slice(width), slice(-width, None))
    corners = np.array([np.median(rgb[y, x].reshape(-1, 3), axis=0) for y in ends[0] for x in ends[1]])
    apart = np.abs(corners[:, np.newaxis] - corners).sum(axis=(1, 2))
    colour: Floats = corners[apart.argmin()]
    return colour


def _distance(rgb: Floats, background: Floats) -> Floats:
    """(..., 3) -> (...): root mean square over the channels, so that black to white is 1."""
    difference = rgb - background
    distance: Floats = np.sqrt(np.einsum("...c,...c->...", difference, difference) / np.float32(3))
    return distance


def _outline(rgb: Floats, alpha: Image.Image | None, background: Floats) -> tuple[Floats, float]:
    """How much each pixel (H, W) of the shrunk picture stands out, 0 to 1, and the most that the background does."""
    if alpha is not None:
        return _floats(_shrunk(alpha)), CLEAN
    grey = _luminance(rgb)
    # The limit of the background's distances is six times the usual step between neighbours in the margin.
    steps = [np.abs(np.diff(line)) for line in (grey[0], grey[-1], grey[:, 0], grey[:, -1])]
    noise = 6 * float(np.median(np.concatenate(steps))) if max(grey.shape) > 1 else CLEAN
    return _distance(rgb, background), max(CLEAN, noise)


def _around(box: Box | None, picture: Image.Image) -> tuple[int, int, int, int]:
    """The part of the picture to examine more closely: the item, which may be small, with a margin."""
    if box is None:
        return 0, 0, picture.width, picture.height
    zoom = max(1, max(picture.size) / WORKING_SIZE)
    margin = 2 + 0.1 * max(box[2] - box[0], box[3] - box[1])
    left, top = (max(0, int((edge - margin) * zoom)) for edge in box[:2])
    right, bottom = (int((edge + margin) * zoom) + 1 for edge in box[2:])
    return left, top, min(picture.width, right), min(picture.height, bottom)


def _item_box(ink: Floats, noise: float) -> Box | None:
    """Find the item in a map (H, W) that is about 0 in the background; None if there is nothing.

    As for Canny's edges there are two tolerances: what stands out more than the paper's 5% is item, and so is what
    touches it and stands out from the margin's noise. Without its faint outer pixels an item's scale would change.
    """
    top = float(ink.max())
    if top <= noise:
        return None
    strong = min(max(CLOSE, noise), top / 2)
    profiles = ink.max(axis=0), ink.max(axis=1)
    spans = [_span(profile, min(noise, strong), strong) for profile in profiles]
    pixel = max(end - begin for begin, end in spans) / SIZE
    (left, right), (upper, lower) = (_half_way(*pair, pixel) for pair in zip(profiles, spans, strict=True))
    return left, upper, right, lower


def _span(profile: Floats, weak: float, strong: float) -> tuple[int, int]:
    sure = np.flatnonzero(profile > strong)
    clear_before = np.flatnonzero(profile[: sure[0]] <= weak)
    clear_after = np.flatnonzero(profile[sure[-1] :] <= weak)
    begin = int(clear_before[-1]) + 1 if clear_before.size else 0
    return begin, int(sure[-1] + clear_after[0]) if clear_after.size else len(profile)


def _half_way(profile: Floats, span: tuple[int, int], pixel: float) -> tuple[float, float]:
    """Cut a span's soft edges (of an enlarged picture, a blurred photo) half way up their rise."""
    reach = int(0.95 * pixel) + 1  # ``pixel`` is one of the 28 in pixels of the profile
    begin = span[0] + (_rise(profile[span[0] - 1 :][: reach + 1]) if span[0] > 0 else 0)
    end = span[1] - (_rise(profile[: span[1] + 1][::-1][: reach + 1]) if span[1] < len(profile) else 0)
    return (begin, end) if begin < end else span  # a line may be thinner than what two soft edges take


def _rise(profile: Floats) -> float:
    """The distance in pixels from the second value's outer edge to half the last's height; the first is background."""
    half = float(profile[-1]) / 2
    index = int((profile[1:] >= half).argmax())
    below, above = float(profile[index]), float(profile[index + 1])
    if below >= half or above > 4 * below:  # noise without a rise, or a hard edge, which lies between the pixels
        return index
    return index + (half - below) / (above - below) - 0.5  # between the two pixels' centres


def _subsampled(values: Floats, box: Box) -> Floats:
    """Shrink the box of a map to 28 pixels at its longest edge, each the mean of the middle ninth of its area."""
    width, height = box[2] - box[0], box[3] - box[1]
    zoom = SIZE / max(width, height)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    image = Image.fromarray(values)
    if zoom > 1:  # nothing to skip
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box)).clip(0, 1)
    return np.asarray(image.resize((3 * size[0], 3 * size[1]), Image.Resampling.BOX, box))[1::3, 1::3]


def _negated(rgb: Floats, background: Floats, box: Box, noise: float) -> Floats:
    """(H, W, 3) -> the box shrunk to 28 pixels at its longest edge: how much ink each has, 0 for the background."""
    grey, paper = _luminance(rgb), float(_luminance(background))
    distance = _distance(rgb, background)
    darker: Floats = np.clip(paper - grey, 0, None)
    lighter = np.clip(grey - paper, 0, None)
    is_darker = darker.max() > (1 if paper > 0.5 else 4) * lighter.max()
    has_lighter_parts = (lighter > noise).sum() > 0.05 * (distance > noise).sum()  # a white shirt before light grey
    if is_darker and not (has_lighter_parts and paper > 0.5):
        return _subsampled(darker, box)
    small_grey, small_distance = _subsampled(grey, box), _subsampled(distance, box)
    if not is_darker and (distance.max() < CLOSE or not _rim_is_lighter(small_grey, small_distance)):
        return small_distance
    if paper < 0.25:  # parts of an item may be as dark
        return _subsampled(_photo(grey, distance, max(box[2] - box[0], box[3] - box[1]) / SIZE, noise), box)
    # Seen at 28 pixels an edge is at most one pixel, which differs far less from the background than the next one inwards
    outside = _connected_with_margin(small_distance <= np.maximum(noise, 0.15 * _largest_near(small_distance, 1)))
    return np.where(outside, 0, 1 - small_grey)


def _luminance(rgb: Floats) -> Floats:
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


def _rim_is_lighter(grey: Floats, distance: Floats) -> bool:
    """Whether a picture with a dark background is a photo, to be negated, and not negative already.

    An item's rim was partly white background when the photo was taken: in the photo it is lighter than the next pixel
    inwards, in the negative darker. That holds for 99% of Fashion-MNIST.
    """
    item = distance > max(CLOSE, 0.1 * float(distance.max()))
    before = [np.logical_or.accumulate(item, axis=axis) for axis in (0, 1)]
    after = [np.flip(np.logical_or.accumulate(np.flip(item, axis), axis=axis), axis) for axis in (0, 1)]
    item = before[0] & before[1] & after[0] & after[1]  # with what lies between, which may look like the background
    rim = item & _beside(np.pad(~item, 1, constant_values=True))
    next_to_rim = item & ~rim & _beside(np.pad(rim, 1))
    return bool(next_to_rim.any() and grey[rim].mean() > grey[next_to_rim].mean())


def _photo(grey: Floats, distance: Floats, pixel: float, noise: float) -> Floats:
    """1 - grey in the item before a dark background, 0 outside. ``pixel`` is one of the 28 in pixels of the map."""
    outside = _connected_with_margin(distance <= noise)
    reach = max(1, round(0.7 * pixel))
    is_soft = _edge_is_soft(distance, outside, reach)
    if is_soft:
        # The edge's outer part, less than a third as far from the background's colour as what is inwards, is background.
        edge = distance < _largest_near(distance, reach) / 3
        for _ in range(reach):
            outside |= edge & _beside(np.pad(outside, 1, constant_values=True))
    outside = _largest_near(outside, 1)  # the last pixel is a mixture
    if is_soft:
        # Narrow gaps near the outside that look like the background are mixtures too; a larger one may be a dark item.
        gap = ~outside & (distance < 0.3 * float(distance.max()) ** 2)
        large = _largest_near(~_largest_near(~gap, round(0.9 * pixel)), round(1.4 * pixel))
        outside |= gap & ~large & _largest_near(outside, round(1.5 * pixel))
    return np.where(outside, 0, 1 - grey)


def _edge_is_soft(distance: Floats, outside: Mask, reach: int) -> bool:
    """Whether, two pixels into the item, most colours are still on their way from the background's."""
    first = _largest_near(outside, 1)
    second = _largest_near(first, 1) & ~first
    full = _largest_near(np.where(_largest_near(outside, reach + 2), distance, 0), reach)
    return bool(np.median(distance[second]) < 0.6 * np.median(full[second])) if second.any() else False


def _largest_near(values: NDArray[Any], reach: int) -> NDArray[Any]:
    """The largest value in the square that extends ``reach`` pixels each way."""
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        values = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis).max(axis=-1)
    return values


def _connected_with_margin(free: Mask) -> Mask:
    """The part of ``free`` that a flood from the margin reaches, row by row and column by column."""
    free = np.pad(free, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0] = True
    count = 0
    for _ in range(MAX_SWEEPS):
        if reached.sum() == count:
            break
        count = reached.sum()
        for view, wall in ((reached, ~free), (reached[::-1, ::-1], ~free[::-1, ::-1])):
            for lines, walls in ((view, wall), (view.T, wall.T)):
                position = np.arange(lines.shape[1])
                last_reached = np.maximum.accumulate(np.where(lines, position, -1), axis=1)
                last_wall = np.maximum.accumulate(np.where(walls, position, -1), axis=1)
                lines |= last_reached > last_wall
    return reached[1:-1, 1:-1]


def _beside(padded: Mask) -> Mask:
    """Where one of the four neighbours is set; the mask has one more pixel on each side."""
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _sharpened(ink: Floats) -> Bytes:
    """Sharpen with a Gaussian of radius 1, after scaling to the full range, which every image of Fashion-MNIST has."""
    image = Image.fromarray(np.rint(ink * (255 / max(float(ink.max()), 1e-6))).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.UnsharpMask(radius=1, percent=SHARPEN_PERCENT, threshold=0)))


def _centred(item: Bytes) -> Bytes:
    """Centre on 28×28; of an odd margin the greater part is above and to the left, as in Fashion-MNIST."""
    height, width = item.shape
    top, left = (SIZE - height + 1) // 2, (SIZE - width + 1) // 2
    return np.pad(item, ((top, SIZE - height - top), (left, SIZE - width - left)))
