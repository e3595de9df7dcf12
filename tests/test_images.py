import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmcae import images, limits
from fmcae.errors import ImageError
from fmcae.images import COMMON_FORMATS, IMAGE_SUFFIXES, MAX_PIXELS, OTHER_FORMATS, STRIP_PIXELS, read_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def test_every_exif_orientation_stands_upright(encoded: Callable[..., bytes], item_on_white: Image.Image) -> None:
    upright = item_on_white
    undo = [None, 0, 3, 1, 5, 2, 6, 4]
    for orientation, step in enumerate(undo, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = upright if step is None else upright.transpose(Image.Transpose(step))
        for file_format in ("PNG", "TIFF"):
            assert np.array_equal(np.asarray(read_image(encoded(turned, file_format, exif=exif))), np.asarray(upright))


def test_a_turned_image_of_pillow_is_not_changed(item_on_white: Image.Image) -> None:
    item_on_white.getexif()[0x0112] = 6
    assert read_image(item_on_white).size == (300, 400)
    assert item_on_white.size == (400, 300)


def test_the_first_frame_counts(encoded: Callable[..., bytes], item_on_white: Image.Image) -> None:
    frames = [item_on_white, Image.new("RGB", (400, 300), "black")]
    for file_format in ("GIF", "TIFF", "WEBP", "PNG"):
        content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        difference = np.asarray(read_image(content).convert("RGB")).astype(int) - np.asarray(frames[0])
        assert np.abs(difference).mean() < 3


def test_deep_grey_is_scaled_not_clipped(encoded: Callable[..., bytes]) -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    eight = np.arange(256).reshape(16, 16)
    assert np.array_equal(np.asarray(read_image(levels)), eight)
    assert np.array_equal(np.asarray(read_image(encoded(Image.fromarray(levels)))), eight)
    assert np.array_equal(np.asarray(read_image(levels.astype(">u2"))), eight)
    big_endian = Image.frombytes("I;16B", (16, 16), levels.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(read_image(big_endian)), eight)
    assert np.array_equal(np.asarray(read_image(Image.fromarray(levels.astype(np.int32)))), eight)
    for full in (1, 255):
        assert np.array_equal(
            np.asarray(read_image(Image.fromarray(np.float32(eight) * np.float32(full / 255)))), eight
        )


@pytest.mark.parametrize("mode, top", [("F", 0.7), ("F", 200), ("F", 1e9), ("I", 200), ("I", 1e9)])
def test_deep_grey_is_scaled_in_strips_as_in_one_piece(mode: str, top: float) -> None:
    values = np.random.default_rng(0).uniform(-top / 9, top, (300, 401)).astype({"F": np.float32, "I": np.int32}[mode])
    assert values.size > STRIP_PIXELS
    expected = values.astype(np.float64)
    if mode == "F":
        values[7, :3] = np.nan, np.inf, -np.inf
        expected[7, :3] = 0
    full = next(
        full for full in (1, 255, max(65535, expected.max())) if expected.max() <= full and (full, mode) != (1, "I")
    )
    assert np.array_equal(np.asarray(read_image(Image.fromarray(values))), np.rint(expected.clip(0) * (255 / full)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_deep_grey_takes_little_memory(dtype: Any) -> None:
    image = Image.fromarray(np.ones((1000, 1000), dtype))
    tracemalloc.start()
    read_image(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 1000 * 1000  # bytes; 64-bit floats of all pixels would be 8


# --- what cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated(encoded: Callable[..., bytes], file_format: str, share: float, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    content = encoded(noise, file_format)
    path = tmp_path / f"cut.{file_format.lower()}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=rf"cut\.{file_format.lower()}: (cannot be read as|is not) an image") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 9_000), (8_001, 8_000)])
def test_a_decompression_bomb_is_not_decoded(size: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        read_image(png_header(*size))
    with pytest.raises(ImageError, match="pixels"):
        read_image(np.broadcast_to(np.uint8(0), size))
    assert size[0] * size[1] > MAX_PIXELS


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("empty.png", "is empty"),
        ("text.png", "is not an image"),
        ("folder.png", "cannot be read: Is a directory"),
        ("missing.png", "cannot be read: No such file or directory"),
        ("null\0.png", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=reason) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ImageError, match="image bytes: is empty"):
        read_image(b"")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(encoded: Callable[..., bytes], item_on_white: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(item_on_white))
    path.chmod(0)
    with pytest.raises(ImageError, match=r"secret\.png: cannot be read: Permission denied"):
        read_image(path)


def test_a_large_file_is_not_read(
    encoded: Callable[..., bytes], item_on_white: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(item_on_white) + bytes(1 << 20))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(ImageError, match=r"large\.png: cannot be read: it has more than 1 MiB"):
        read_image(path)


def test_an_empty_path_is_named() -> None:
    with pytest.raises(ImageError, match=r"^path \(=\) must not be empty$"):
        read_image("")


def test_rarer_formats(encoded: Callable[..., bytes], item_on_white: Image.Image) -> None:
    Image.init()
    for file_format in ("PPM", *OTHER_FORMATS):
        if file_format in Image.SAVE:
            assert read_image(encoded(item_on_white, file_format)).mode in ("RGB", "RGBA")


def test_the_suffixes_are_those_that_pillow_registers_for_the_formats() -> None:
    Image.init()
    formats = {suffix: name for suffix, name in Image.EXTENSION.items() if name in COMMON_FORMATS + OTHER_FORMATS}
    unknown_to_this_pillow = IMAGE_SUFFIXES - formats.keys()
    assert formats.keys() <= IMAGE_SUFFIXES
    assert not unknown_to_this_pillow or set(COMMON_FORMATS + OTHER_FORMATS) - Image.OPEN.keys()


@pytest.mark.parametrize("file_format", ["EPS", "TGA", "PCX", "PDF"])
def test_formats_that_other_programs_decode_or_that_have_no_magic_are_refused(
    encoded: Callable[..., bytes], item_on_white: Image.Image, file_format: str
) -> None:
    with pytest.raises(ImageError, match=r"image bytes: is not an image in a format that is read \(PNG, JPEG, "):
        read_image(encoded(item_on_white, file_format))


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF"]),
)
def test_rubbish_is_an_image_error_or_an_image(rubbish: bytes, magic: bytes) -> None:
    try:
        assert read_image(magic + rubbish).mode in ("L", "RGB", "RGBA")
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2), (2, 2, 5), (1, 2, 2, 3), (0, 4), (4, 0, 3)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"array's shape \(=|array: has"):
        read_image(np.zeros(shape, np.uint8))


def test_no_image_at_all_is_named() -> None:
    with pytest.raises(ImageError, match=r"image \(=None\) must be a path, bytes, a file, an array or a PIL image"):
        read_image(None)  # type: ignore[arg-type]


def test_a_large_webp_is_refused_before_pillow_copies_it(encoded: Callable[..., bytes], monkeypatch: Any) -> None:
    content = encoded(Image.new("RGB", (40, 40)), "WEBP") + bytes(200 << 20)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageError, match=r"has 209,\d+,\d+ bytes in .*WEBP.*, which take about"):
        read_image(content)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8, object])
def test_a_wrong_dtype_is_named(dtype: Any) -> None:
    for shape in ((4, 4), (5, 1, 4, 4)):  # the second is that of a batch, which float32 alone may be
        with pytest.raises(ImageError, match=r"array's dtype \(=.*\) must be uint8, uint16 or bool"):
            read_image(np.zeros(shape, dtype))


@pytest.mark.parametrize("source", [None, 3, {"a.png"}, (name for name in ["a.png"])])
def test_what_is_no_image_is_named(source: Any) -> None:
    given = None if source is None else f"<{type(source).__name__}>"
    with pytest.raises(ImageError, match=rf"image \(={given}\) must be a path, bytes, a file, an array or a PIL image"):
        read_image(source)


# --- what would take too long -----------------------------------------------------------------------------------------

Encode = Callable[..., bytes]


def segment(kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 255, kind, len(data) + 2) + data


def jpeg(encoded: Encode, *segments: bytes, scans: int = 0, edge: int = 16) -> bytes:
    """A progressive JPEG of ``edge`` squared pixels with more segments at its start and more scans at its end."""
    content = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True))
    frame = content.index(b"\xff\xc2")
    content[frame + 5 : frame + 9] = struct.pack(">HH", edge, edge)
    scan = segment(0xDA, b"\1\1\0\0\0\x10")
    return b"".join((content[:2], *segments, content[2:-2], scan * scans, content[-2:]))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (28, 28), more_data: bytes = b"") -> bytes:
    """A black PNG with more chunks before its data and more data after what its pixels take."""
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)), *chunks
    pixels = zlib.compress(bytes((size[0] + 1) * size[1]))
    return b"\x89PNG\r\n\x1a\n" + b"".join((*parts, chunk(b"IDAT", pixels + more_data), chunk(b"IEND")))


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A TIFF of 28×28 grey pixels with other tags (tag, type, count, value or place of ``data``, which is at 1,000)."""
    numbers = {256: 28, 257: 28, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 28, 279: 784}
    entries = {tag: (tag, 4, 1, value) for tag, value in numbers.items()} | {tag[0]: tag for tag in tags}
    packed = b"".join(struct.pack("<HHLL", *entries[tag]) for tag in sorted(entries))
    return (b"II*\0" + struct.pack("<LH", 8, len(entries)) + packed).ljust(1000, b"\0") + data


def longs(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}L", *values)


MANY_RATIONALS = longs(1, 3) * 200_001
HEAVY: dict[str, tuple[Callable[[Encode], bytes], str]] = {
    "scans.jpg": (lambda e: jpeg(e, scans=1000), "has 101 scans; at most 100 are read"),
    "pixels-in-scans.jpg": (
        lambda e: jpeg(e, scans=60, edge=8000),
        r"has [34],\d{3},000,000 pixels and \d,\d{3} bytes in JPEG scans, which take about 4.\d s to decode; at most 2 s",
    ),
    "starts.jpg": (lambda e: b"\xff\xd8\xff" * 100_000, "has 2,001 segments; at most 2,000 are read"),
    "segments.jpg": (lambda e: jpeg(e, segment(0xE0) * 10_000), "has 2,001 segments; at most 2,000 are read"),
    "fill.jpg": (lambda e: b"\xff\xd8" + b"\xff" * 100_000, "has more parts than the 10,000 that are read"),
    "metadata.jpg": (lambda e: jpeg(e, segment(0xED, bytes(65_000)) * 260), "bytes of metadata; at most 16,777,216"),
    "exif.jpg": (lambda e: jpeg(e, segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 18), "bytes of EXIF data; at most"),
    "tall.png": (lambda e: png(size=(1, 70_000)), "has 1×70000 pixels; at most 65,535 at an edge are read"),
    "texts.png": (lambda e: png(chunk(b"zTXt", b"k\0\0") * 501), "has 501 chunks of metadata; at most 500 are read"),
    "chunks.png": (lambda e: png(chunk(b"IDAT") * 400_000), "has 333,334 chunks; at most 333,333 are read"),
    "data.png": (
        lambda e: png(more_data=bytes(17 << 20)),
        r"has 17,825,\d+ bytes of data for 784 pixels; at most 16,783",
    ),
    "exif.png": (
        lambda e: png(chunk(b"eXIf", tiff(data=bytes(2 << 20)))),
        "has .* bytes of EXIF data; at most 1,048,576",
    ),
    "blocks.gif": (
        lambda e: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1c\0" * 10_000,
        "has more parts than the 10,000 that are read",
    ),
    "directory.tif": (lambda e: b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2**60), "has 1,152,.* tags; at most 100,000"),
    "resolution.tif": (lambda e: tiff((282, 5, 200_001, 1000), data=MANY_RATIONALS), "values in tags; at most 200,000"),
    "exif.tif": (
        lambda e: tiff((34665, 4, 1, 1000), data=struct.pack("<HHHLL", 1, 33434, 5, 200_001, 1014) + MANY_RATIONALS),
        "values in tags; at most 200,000",
    ),
    "layers.tif": (
        lambda e: tiff((37724, 7, 65 << 20, 1000), data=bytes(65 << 20)),
        "bytes in tags; at most 67,108,864",
    ),
    "strips.tif": (
        lambda e: tiff(
            (259, 3, 1, 8),
            (278, 4, 1, 1),
            (273, 4, 28, 1000),
            (279, 4, 28, 1112),
            data=longs(*[1000] * 28, *[200] * 28),
        ),
        "has 5,600 bytes of strips in a file of 1,224 bytes; none may be there twice",
    ),
    "tile.tif": (
        lambda e: tiff((259, 3, 1, 8), (322, 4, 1, 30_000), (323, 4, 1, 30_000)),
        "has 900,000,000 pixels in tiles; at most 128,000,000 are read",
    ),
    "png.ico": (
        lambda e: struct.pack("<3HBBBBHHLL", 0, 1, 1, 32, 32, 0, 0, 1, 32, 99, 22) + png(size=(9000, 1)),
        "has 9,000 pixels at an edge of an icon; at most 2,048 are read",
    ),
    "exif.avif": (
        lambda e: b"\0\0\0 ftypavif" + tiff((274, 5, 200_001, 1000), data=MANY_RATIONALS),
        "values in tags; at most 200,000 are read",
    ),
    "tiles.j2k": (
        lambda e: b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">8I", 250, 250, 0, 0, 1, 1, 0, 0),
        "has 62,500 tiles; at most 10,000 are read",
    ),
    "comments.pgm": (lambda e: b"P2 9 9 255\n" + b"#\n" * 2000, "has 2,000 comments; at most 1,000 are read"),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_picture_that_would_take_too_long_is_refused(encoded: Encode, name: str, tmp_path: Path) -> None:
    make, reason = HEAVY[name]
    (tmp_path / name).write_bytes(make(encoded))
    with pytest.raises(ImageError, match=reason) as error:
        read_image(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: has ")


@pytest.mark.parametrize("name", [*sorted(limits.DECODING_COSTS), "MPO"])
def test_what_is_slow_to_decode_has_a_limit(encoded: Encode, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    if name in ("AVIF", "JPEG2000", "WEBP") and name not in Image.SAVE:
        pytest.skip(f"this Pillow has no {name}")
    image = Image.new("RGB", (40, 40))
    rle = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 0, 0, 0, 62, 40, 8, 1, 1, 8, 1, 0, 0, 0, 2, 0) + bytes(8)
    contents: dict[str, Callable[[], bytes]] = {
        "JPEG scans": lambda: encoded(image, "JPEG", progressive=True),
        "MPO": lambda: encoded(image, "MPO", progressive=True, save_all=True, append_images=[image]),
        "LAB": lambda: encoded(Image.new("LAB", (40, 40)), "TIFF"),
        "LZMA": lambda: encoded(image, "TIFF", compression="lzma"),
        "bmp_rle": lambda: rle + b"\x08\1\0\1",
        "ppm": lambda: b"P5 2 2 99\n1234",
        "ppm_plain": lambda: b"P1 2 2 0 1 1 0",
    }
    content = contents[name]() if name in contents else encoded(image, name)
    assert read_image(content).mode in ("L", "RGB")
    monkeypatch.setattr(limits, "MAX_DECODING_SECONDS", 0)
    with pytest.raises(
        ImageError, match=r"^image bytes: has .* bytes in .*, which take about 0.0 s to decode; at most 0"
    ):
        read_image(content)


def test_pictures_near_the_limits_are_read(encoded: Encode) -> None:
    wide, large = Image.new("L", (65_500, 20)), Image.new("L", (8000, 6000))
    frames = [Image.new("L", (9, 9), number % 256) for number in range(600)]
    strips = tiff(
        (257, 4, 1, 60_000), (273, 4, 60_000, 1000), (278, 4, 1, 1), (279, 4, 60_000, 241_000), data=bytes(2 << 20)
    )
    for content in (
        encoded(wide, "JPEG"),
        encoded(wide, "PNG"),
        encoded(large, "JPEG", progressive=True, exif=tiff((274, 3, 1, 6), data=bytes(60_000))),
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(Image.new("L", (32, 32)), "ICO"),
        png(chunk(b"tEXt", b"k\0") * 400) + bytes(1 << 20),
        jpeg(encoded, segment(0xE2, bytes(65_000)) * 200, scans=20) + b"\xff\xda" * 1000,
        strips,
    ):
        assert read_image(content).mode in ("L", "RGB", "RGBA")


# --- what Pillow and its libraries say --------------------------------------------------------------------------------

DAMAGED = zlib.compress(bytes(784))[:-1] + b"x"
NOISY = {
    "checksum.tif": tiff((259, 3, 1, 8), (273, 4, 1, 1000), (279, 4, 1, len(DAMAGED)), data=DAMAGED),  # libtiff prints
    "samples.tif": tiff((277, 4, 1, 99)),  # Pillow logs an error
    "directory.tif": tiff((34665, 4, 1, 1000), data=b"\1\0"),  # Pillow warns
}


def test_nothing_of_a_damaged_picture_reaches_stderr(tmp_path: Path) -> None:
    for name, content in NOISY.items():
        (tmp_path / name).write_bytes(content)
    script = """import sys
from fmcae.images import read_image
for path in sys.argv[1:]:
    try:
        print(read_image(path).mode)
    except Exception as error:
        print(error)
"""
    command = [sys.executable, "-W", "always", "-c", script, *(str(tmp_path / name) for name in NOISY)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.count("\n") == len(NOISY)
    assert result.stderr == "" or sys.platform == "win32"  # where libtiff's lines cannot be turned off


def test_warnings_are_as_before_when_threads_have_read_pictures(encoded: Encode, item_on_white: Image.Image) -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(read_image, [NOISY["directory.tif"], encoded(item_on_white)] * 50))) == 100
    assert list(warnings.filters) == before
