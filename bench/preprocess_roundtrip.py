# mypy: disable-error-code="import-untyped"
"""Measure how well ``fmcae.preprocess`` brings pictures back to Fashion-MNIST's form, whatever was done to them.

    python bench/preprocess_roundtrip.py --model exports/fashion-mnist/classifier.onnx --jobs 2

Each test image is turned back into a product photo in many ways: enlarged, negated, coloured, padded unevenly, put in
front of white, off-white, coloured, transparent or dark. Then ``fmcae.preprocess`` does what the data set's authors did
(Xiao et al. 2017, section 2), and the classifier's label is compared with the one that it gives the raw image. The
share of equal labels is the way's agreement; 96% of the images is what each way must reach.

In front of a dark background a picture can be two things: a `photo`, an item with its own shades cut out and put there,
which has to be negated; and a `negative`, ink that is lighter than the paper, which is negative already.

It needs numpy, Pillow and ONNX Runtime. Every image has its own seed, so a way's result does not depend on the others.
"""

import argparse
import io
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
from numpy.typing import NDArray
from PIL import Image
from reports import write_report

from fmcae.data import load_dataset
from fmcae.images import ImageSource
from fmcae.preprocess import scale, to_uint8

ROOT = Path(__file__).parents[1]
TARGET = 0.96  # the share of images that each way must reach
Bytes = NDArray[np.uint8]
Colour = tuple[int, int, int]
Way = Callable[[Bytes, np.random.Generator], ImageSource]

NEAREST, BILINEAR, BICUBIC, LANCZOS = (Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS"))
BLACK, WHITE, OFF_WHITE, LIGHT_GREY = (0, 0, 0), (255, 255, 255), (245, 243, 238), (225, 225, 225)
PASTELS = ((255, 240, 200), (200, 230, 255), (220, 255, 220), (255, 215, 225))
SATURATED = ((200, 60, 50), (40, 90, 200), (60, 160, 80))
DARK_INKS = ((90, 10, 20), (10, 30, 90), (10, 70, 40), (60, 30, 10))
MID_INKS = ((200, 30, 40), (30, 60, 180), (30, 120, 60), (128, 0, 128), (180, 100, 20))
TINTS = ((230, 120, 120), (120, 150, 230), (130, 210, 140), (240, 200, 120))
DARKS = ((0, 0, 0), (20, 20, 25), (40, 40, 40), (15, 35, 60))
LIGHTS = ((255, 255, 255), (240, 230, 210), (190, 190, 190))


# --- building blocks; v is the raw image, 0 for the background, enlarged ------------------------------------------


def enlarged(raw: Bytes, size: int, resampling: Image.Resampling = BICUBIC) -> Image.Image:
    return Image.fromarray(raw).resize((size, size), resampling)


def some_size(rng: np.random.Generator) -> int:
    return int(300 * (1000 / 300) ** rng.random())  # as many sizes from 300 to 550 pixels as from 550 to 1000


def pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return colours[rng.integers(len(colours))]


def padded(item: Image.Image, background: Colour | tuple[int, ...], rng: np.random.Generator) -> Image.Image:
    """Add a margin of up to a third of the item on each side."""
    left, top, right, bottom = (int(item.width * share) for share in rng.uniform(0, 0.33, 4))
    picture = Image.new(item.mode, (left + item.width + right, top + item.height + bottom), background)
    picture.paste(item, (left, top))
    return picture


def inked(v: Image.Image, paper: Colour, ink: Colour) -> Image.Image:
    """Colour a picture: paper where v is 0, ink where v is 255, and linearly between."""
    share = np.arange(256) / 255
    return Image.merge("RGB", [v.point(np.rint(p + (i - p) * share).tolist()) for p, i in zip(paper, ink, strict=True)])


def mask_of(raw: Bytes, size: int, resampling: Image.Resampling) -> Image.Image:
    return enlarged((raw > 0).astype(np.uint8) * 255, size, resampling)


def cut_out(
    raw: Bytes, rng: np.random.Generator, background: Colour, edge: str = "bilinear", tint: Colour = WHITE
) -> Image.Image:
    """A photo of the item (the raw image, negated and tinted) cut out by its outline and put on the background."""
    size = some_size(rng)
    v = enlarged(raw, size)
    mask = v.point([0] + [255] * 255) if edge == "full size" else mask_of(raw, size, Image.Resampling[edge.upper()])
    photo = Image.composite(inked(v, tint, BLACK), Image.new("RGB", v.size, background), mask)
    return padded(photo, background, rng)


def with_alpha(raw: Bytes, rng: np.random.Generator, edge: Image.Resampling, hidden: Colour) -> Image.Image:
    size = some_size(rng)
    mask = mask_of(raw, size, edge)
    item = Image.composite(inked(enlarged(raw, size), WHITE, BLACK), Image.new("RGB", mask.size, hidden), mask)
    item.putalpha(mask)
    return padded(item, (*hidden, 0), rng)


def ink_as_alpha(raw: Bytes, rng: np.random.Generator, ink: Colour) -> Image.Image:
    v = enlarged(raw, some_size(rng))
    picture = Image.new("RGB", v.size, ink)
    picture.putalpha(v)
    return padded(picture, (*ink, 0), rng)


def drawn(
    raw: Bytes, rng: np.random.Generator, paper: Colour, ink: Colour = BLACK, resampling: Image.Resampling = BICUBIC
) -> Image.Image:
    return padded(inked(enlarged(raw, some_size(rng), resampling), paper, ink), paper, rng)


def encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg(picture: Image.Image) -> bytes:
    return encoded(picture, "JPEG", quality=85)


def turned(raw: Bytes, rng: np.random.Generator) -> bytes:
    """A camera's JPEG: the pixels lie any way, EXIF says how. Orientations 1 to 8."""
    orientation = int(rng.integers(1, 9))
    undo = [None, 0, 3, 1, 5, 2, 6, 4]  # the Image.Transpose that the orientation takes back
    picture, step = drawn(raw, rng, WHITE), undo[orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upset = picture if step is None else picture.transpose(Image.Transpose(step))
    return encoded(upset, "JPEG", quality=85, exif=exif)


def sixteen_bits(raw: Bytes, rng: np.random.Generator) -> bytes:
    grey = np.asarray(drawn(raw, rng, WHITE).convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG", compress_level=1)


def noisy(picture: Image.Image, rng: np.random.Generator, sigma: float) -> Image.Image:
    pixels = np.asarray(picture)
    noise = rng.standard_normal(pixels.shape, np.float32) * sigma
    return Image.fromarray(np.rint(pixels + noise).clip(0, 255).astype(np.uint8))


def tiny_in_a_large_picture(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    item = inked(enlarged(raw, 120), OFF_WHITE, BLACK)
    picture = Image.new("RGB", (1600, 1200), OFF_WHITE)
    picture.paste(item, (int(rng.integers(1480)), int(rng.integers(1080))))
    return picture


WAYS: dict[str, Way] = {
    "white, nearest": partial(drawn, paper=WHITE, resampling=NEAREST),
    "white, bilinear": partial(drawn, paper=WHITE, resampling=BILINEAR),
    "white, bicubic": partial(drawn, paper=WHITE),
    "white, lanczos": partial(drawn, paper=WHITE, resampling=LANCZOS),
    "white, no margin": lambda raw, rng: inked(enlarged(raw, some_size(rng)), WHITE, BLACK),
    "white, JPEG": lambda raw, rng: jpeg(drawn(raw, rng, WHITE)),
    "white, 16-bit PNG": sixteen_bits,
    "white, noise of 2 levels": lambda raw, rng: noisy(drawn(raw, rng, WHITE), rng, 2),
    "turned by EXIF, JPEG": turned,
    "off-white": partial(drawn, paper=OFF_WHITE),
    "off-white, JPEG": lambda raw, rng: jpeg(drawn(raw, rng, OFF_WHITE)),
    "off-white, noise of 3 levels": lambda raw, rng: noisy(drawn(raw, rng, OFF_WHITE), rng, 3),
    "off-white, cut-out photo": lambda raw, rng: cut_out(raw, rng, OFF_WHITE),
    "off-white, tiny in 1600x1200": tiny_in_a_large_picture,
    "light grey": partial(drawn, paper=LIGHT_GREY),
    "light grey, cut-out photo": lambda raw, rng: cut_out(raw, rng, LIGHT_GREY),
    "pastel": lambda raw, rng: drawn(raw, rng, pick(PASTELS, rng)),
    "saturated, cut-out photo": lambda raw, rng: cut_out(raw, rng, pick(SATURATED, rng)),
    "dark ink on white": lambda raw, rng: drawn(raw, rng, WHITE, pick(DARK_INKS, rng)),
    "coloured ink on white": lambda raw, rng: drawn(raw, rng, WHITE, pick(MID_INKS, rng)),
    "tinted item on white": lambda raw, rng: cut_out(raw, rng, WHITE, tint=pick(TINTS, rng)),
    "tinted item on white, hard edge": lambda raw, rng: cut_out(raw, rng, WHITE, "nearest", pick(TINTS, rng)),
    "transparent, hard edge": partial(with_alpha, edge=NEAREST, hidden=BLACK),
    "transparent, soft edge": partial(with_alpha, edge=BILINEAR, hidden=WHITE),
    "transparent, black ink as alpha": partial(ink_as_alpha, ink=BLACK),
    "transparent, white ink as alpha": partial(ink_as_alpha, ink=WHITE),
    "transparent, light ink as alpha": partial(ink_as_alpha, ink=(230, 220, 200)),
    "dark, photo, hard edge": lambda raw, rng: cut_out(raw, rng, pick(DARKS, rng), "nearest"),
    "dark, photo, soft edge": lambda raw, rng: cut_out(raw, rng, pick(DARKS, rng), "bilinear"),
    "dark, photo, cut at full size": lambda raw, rng: cut_out(raw, rng, pick(DARKS, rng), "full size"),
    "dark, photo, JPEG": lambda raw, rng: jpeg(cut_out(raw, rng, pick(DARKS, rng))),
    "dark, tinted photo": lambda raw, rng: cut_out(raw, rng, pick(DARKS, rng), tint=pick(TINTS, rng)),
    "dark, negative, nearest": lambda raw, rng: drawn(raw, rng, pick(DARKS, rng), WHITE, NEAREST),
    "dark, negative": lambda raw, rng: drawn(raw, rng, pick(DARKS, rng), pick(LIGHTS, rng)),
    "dark, negative, JPEG": lambda raw, rng: jpeg(drawn(raw, rng, pick(DARKS, rng), pick(LIGHTS, rng))),
}


# --- measuring ---------------------------------------------------------------------------------------------------


def restored(job: tuple[str, int, Bytes]) -> Bytes:
    """One raw image (28, 28) uint8, undone the named way and preprocessed again."""
    way, index, raw = job
    return to_uint8(WAYS[way](raw, np.random.default_rng([list(WAYS).index(way), index])))


def predicted_labels(session: onnxruntime.InferenceSession, images: Bytes) -> NDArray[np.int64]:
    name = session.get_inputs()[0].name
    batches = [images[start : start + 1000] for start in range(0, len(images), 1000)]
    return np.concatenate([session.run(None, {name: scale(batch)})[0].argmax(axis=1) for batch in batches])


def measure(model: Path, images: Bytes, ways: list[str], jobs: int) -> dict[str, dict[str, float]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    raw_labels = predicted_labels(session, images)
    results = {}
    with ProcessPoolExecutor(jobs) as pool:
        for way in ways:
            started = time.perf_counter()
            back = np.stack(list(pool.map(restored, [(way, i, raw) for i, raw in enumerate(images)], chunksize=25)))
            results[way] = {
                "agreement": round(float((predicted_labels(session, back) == raw_labels).mean()), 4),
                "mean_absolute_difference_grey_levels": round(float(np.abs(back - images.astype(float)).mean()), 2),
            }
            line = (
                f"{way:34}{results[way]['agreement']:9.2%}{results[way]['mean_absolute_difference_grey_levels']:12.2f}"
            )
            print(f"{line}{time.perf_counter() - started:9.0f} s", flush=True)
    return results


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "exports/fashion-mnist/classifier.onnx")
    parser.add_argument("--data", type=Path, help="gzipped IDX files of Fashion-MNIST")
    parser.add_argument("--limit", type=int, default=10_000, help="number of test images to use")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    images = load_dataset(options.data).test.images[: options.limit]
    print(f"{'way':34}{'agreement':>9}{'difference':>12}   (mean absolute, of 255)")
    results = measure(options.model, images, options.ways, options.jobs)
    worst = min(results, key=lambda way: results[way]["agreement"])
    print(f"lowest: {worst}, {results[worst]['agreement']:.2%} of {len(images)}; target {TARGET:.0%} for each way")
    write_report(
        options.out,
        "share of test images whose label after undoing and redoing the preprocessing is the raw image's",
        target=TARGET,
        n=len(images),
        ways=results,
        model=options.model.name if options.model.is_absolute() else str(options.model),
        versions=versions(),
    )
    return 0 if results[worst]["agreement"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
