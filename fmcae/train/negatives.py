"""Negatives: pictures of nothing that a classifier knows, so that it learns to say "unknown".

They are drawn with a fixed seed (symbols, pages of text, shapes, compositions, line drawings, textures cut to shapes,
noise), go through preprocessing like any user's picture, and are joined by garments put together wrongly. The fonts,
the photograph (Grace Hopper's portrait, public domain) and the elevation map come with matplotlib.

Source of the idea: Hendrycks, Mazeika and Dietterich 2019, arXiv:1812.04606.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
from matplotlib import cbook, font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fmcae.preprocess import to_uint8

Bytes: TypeAlias = NDArray[np.uint8]
Random: TypeAlias = np.random.Generator
SIDE = 112  # pixels of a drawn picture's edge
FONTS = ("DejaVu Sans", "DejaVu Serif", "STIXGeneral", "DejaVu Sans Mono")
SYMBOLS = ((0x2190, 0x2400), (0x2460, 0x2800), (0x2900, 0x2C00), (0x21, 0x250), (0x370, 0x530))  # ranges of Unicode


def negatives(images: Bytes, count: int, seed: int) -> Bytes:
    """Draw ``count`` negatives, (count, 28, 28) uint8 with the background 0.

    Two thirds are drawn; one third are made of ``images`` (N, 28, 28) uint8, the garments or other items of the classes.
    The same arguments and versions give the same pictures.
    """
    random = np.random.default_rng(seed)
    kinds = list(DRAWN)
    drawn = [to_uint8(DRAWN[kinds[index % len(kinds)]](random)) for index in range(count - count // 3)]
    mixed = [_mixed(images, random) for _ in range(count // 3)]
    return np.stack(drawn + mixed)


def _mixed(images: Bytes, random: Random) -> Bytes:
    """Two items half and half, the quarters of one exchanged, or several small copies of one."""
    first, second = images[random.integers(len(images), size=2)]
    kind = random.integers(4)
    if kind == 0:  # the upper half of one, the lower half of another that is turned
        return np.concatenate([first[:14], np.rot90(second)[14:]])
    if kind == 1:
        return np.concatenate([first[:, :14], second[::-1][:, 14:]], axis=1)
    if kind == 2:
        quarters = [first[y : y + 14, x : x + 14] for y in (0, 14) for x in (0, 14)]
        order = random.permutation(4)
        while (order == np.arange(4)).sum() > 1:
            order = random.permutation(4)
        a, b, c, d = (quarters[index] for index in order)
        return np.block([[a, b], [c, d]])
    small = Image.fromarray(first).resize((14, 14), Image.Resampling.BOX)  # several small ones
    sheet = np.zeros((28, 28), np.uint8)
    for _ in range(random.integers(2, 5)):
        y, x = random.integers(15, size=2)
        sheet[y : y + 14, x : x + 14] = np.maximum(sheet[y : y + 14, x : x + 14], np.asarray(small))
    return sheet


def _colour(random: Random) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 235, size=3).tolist()
    return red, green, blue


def _sheet(random: Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    return sheet, ImageDraw.Draw(sheet)


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    return [ImageFont.truetype(font_manager.findfont(name), size) for name in FONTS]


@cache
def _symbols() -> list[str]:
    """Every character of SYMBOLS that DejaVu Sans draws."""
    known = font_manager.get_font(font_manager.findfont(FONTS[0])).get_charmap()
    return [
        chr(code) for low, high in SYMBOLS for code in range(low, high) if code in known and chr(code).isprintable()
    ]


def _symbol(random: Random) -> Image.Image:
    sheet, draw = _sheet(random)
    symbols = _symbols()
    text = "".join(symbols[index] for index in random.integers(len(symbols), size=random.choice([1, 1, 1, 2, 3])))
    font = _fonts(int(random.integers(40, 90)))[0]
    draw.text(
        (SIDE / 2, SIDE / 2), text, _colour(random), font=font, anchor="mm", stroke_width=int(random.integers(0, 4))
    )
    return sheet.rotate(random.uniform(-25, 25), Image.Resampling.BILINEAR, fillcolor="white")


def _text(random: Random) -> Image.Image:
    sheet, draw = _sheet(random)
    font, ink = _fonts(int(random.integers(7, 22)))[random.integers(4)], _colour(random)
    for y in range(random.integers(4, 40), SIDE - random.integers(4, 40), int(font.size * 1.3)):
        words = ["".join(map(chr, random.integers(97, 123, size=random.integers(1, 9)))) for _ in range(8)]
        draw.text((random.choice([6, 6, 6, 14]), y), " ".join(words)[: random.integers(6, 24)], ink, font=font)
    return sheet


def _outline(random: Random, centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """A closed line about a centre: a polygon, a star, a wheel's rim or a rounded blob."""
    corners = int(random.integers(3, 13))
    points = random.choice([corners, 60])
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False) + random.uniform(0, 2 * np.pi)
    waves = sum(random.uniform(-0.35, 0.35) / k * np.cos(k * angle + random.uniform(0, 6)) for k in (1, 2, 3, corners))
    reach = radius * (1 + waves * random.choice([0, 1, 1]))
    squeeze = random.uniform(0.3, 1)
    x, y = centre[0] + reach * np.cos(angle), centre[1] + reach * squeeze * np.sin(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _shape(random: Random) -> Image.Image:
    sheet, draw = _sheet(random)
    outline = _outline(random, (SIDE / 2, SIDE / 2), random.uniform(25, 50))
    fill = _colour(random) if random.random() < 0.7 else None
    draw.polygon(outline, fill, _colour(random), width=int(random.integers(1, 7)))
    return sheet.rotate(random.uniform(0, 360), Image.Resampling.BILINEAR, fillcolor="white")


def _composition(random: Random) -> Image.Image:
    """Several shapes on and beside each other, often symmetric, as a drawn thing is."""
    sheet, draw = _sheet(random)
    for _ in range(random.integers(2, 9)):
        centre = random.uniform(25, SIDE - 25), random.uniform(25, SIDE - 25)
        radius = random.uniform(5, 42)
        if random.random() < 0.4:
            edge = random.uniform(3, 60, size=2)
            draw.rectangle((*centre, centre[0] + edge[0], centre[1] + edge[1]), _colour(random))
        elif random.random() < 0.5:
            draw.ellipse(
                (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius), _colour(random)
            )
        else:
            draw.polygon(_outline(random, centre, radius), _colour(random))
    if random.random() < 0.6:
        half = sheet.crop((0, 0, SIDE // 2, SIDE))
        sheet.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (SIDE // 2, 0))
    return sheet.rotate(random.choice([0, 0, 90, 45, 180]), Image.Resampling.BILINEAR, fillcolor="white")


def _lines(random: Random) -> Image.Image:
    sheet, draw = _sheet(random)
    for _ in range(random.integers(1, 12)):
        start, bend, end = random.uniform(6, SIDE - 6, size=(3, 2))
        t = np.linspace(0, 1, 20)[:, np.newaxis]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        draw.line([(x, y) for x, y in curve.tolist()], _colour(random), width=int(random.integers(1, 9)))
        if random.random() < 0.4:
            draw.polygon(_outline(random, (start[0], start[1]), random.uniform(5, 25)), None, _colour(random), width=3)
    return sheet


@cache
def _photographs() -> list[NDArray[np.float32]]:
    """Grey pictures (H, W) in [0, 1]: a photograph and a map of elevations."""
    photograph = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("L")
    with np.load(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as arrays:
        elevation = arrays["elevation"].astype(np.float32)
    elevation = (elevation - elevation.min()) / np.ptp(elevation)
    return [np.asarray(photograph, np.float32) / 255, elevation]


def _texture(random: Random) -> NDArray[np.float32]:
    """(SIDE, SIDE) in [0, 1]: part of a photograph, clouds, stripes or checks."""
    kind = random.integers(4)
    if kind < 2:
        source = _photographs()[random.integers(2)]
        edge = int(random.integers(40, min(source.shape)))
        y, x = (int(random.integers(size - edge + 1)) for size in source.shape)
        part = Image.fromarray(source[y : y + edge, x : x + edge]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        values = np.asarray(part)
    elif kind == 2:
        frequency = np.hypot(np.fft.fftfreq(SIDE)[:, np.newaxis], np.fft.rfftfreq(SIDE)) + 1 / SIDE
        phase = random.standard_normal(frequency.shape) + 1j * random.standard_normal(frequency.shape)
        values = np.fft.irfft2(phase / frequency ** random.uniform(0.5, 2), (SIDE, SIDE))
    else:
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        angle, waves = random.uniform(0, np.pi), random.uniform(2, 9)
        values = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
        if random.random() < 0.5:
            values = values * np.sin(2 * np.pi * waves * (y * np.cos(angle) - x * np.sin(angle)))
    spread = max(float(np.ptp(values)), 1e-6)
    scaled: NDArray[np.float32] = ((values - values.min()) / spread).astype(np.float32)
    return scaled


def _cut_texture(random: Random) -> Image.Image:
    """A texture in the whole frame, or cut to a shape before white."""
    low, high = np.sort(random.uniform(0, 1, size=2))
    grey = Image.fromarray(np.rint((low + (high - low) * _texture(random)) * 255).astype(np.uint8))
    if random.random() < 0.35:
        return grey.convert("RGB")
    mask = Image.new("L", (SIDE, SIDE))
    for _ in range(random.integers(1, 4)):
        centre = random.uniform(35, SIDE - 35), random.uniform(35, SIDE - 35)
        ImageDraw.Draw(mask).polygon(_outline(random, centre, random.uniform(15, 45)), 255)
    return Image.composite(grey.convert("RGB"), Image.new("RGB", (SIDE, SIDE), "white"), mask)


def _noise(random: Random) -> Image.Image:
    """Noise of any grain, a ramp, or next to nothing."""
    cells = int(random.integers(3, SIDE))
    values = random.integers(0, 256, size=(cells, cells)) if random.random() < 0.8 else np.zeros((cells, cells))
    ramp = np.linspace(0, random.uniform(0, 120), cells)
    grey = Image.fromarray(((values * random.uniform(0.1, 1) + ramp) % 256).astype(np.uint8))
    return grey.resize((SIDE, SIDE), random.choice([Image.Resampling.NEAREST, Image.Resampling.BICUBIC]))


DRAWN: dict[str, Callable[[Random], Image.Image]] = {
    "symbol": _symbol, "text": _text, "shape": _shape, "composition": _composition, "lines": _lines,
    "composition too": _composition, "texture": _cut_texture, "texture too": _cut_texture, "noise": _noise,
}  # fmt: skip
