"""What an encoded picture may ask of Pillow, so that any file takes at most 2 s, and 500 MB beside its pixels.

A WebP file of 64 megapixels takes 800 MB beside them, since its decoder holds the picture several times.

A small file can keep a decoder busy for hours: a JPEG of thousands of scans, a TIFF whose strips are all the same megabyte.
Each limit depends on the file alone, is checked before the work that it bounds, and lies above what cameras, phones and
editors write. The times are of one busy core of a server of 2023, with Pillow 10.3 and 13.
"""

import io
import re
import struct
from typing import Any, Literal

from PIL import Image

MAX_DECODING_SECONDS = 2.0  # as DECODING_COSTS estimates them
# Nanoseconds for each pixel and for each byte of the file, by format, mode, compression or Pillow's name of the codec. What
# is not here takes less than 10 for a pixel with its bytes. A JPEG's pixels count in each of several scans, and a plain
# PPM's values have two bytes at least.
DECODING_COSTS = {
    "JPEG scans": (1, 45),
    "GIF": (4, 11),
    "WEBP": (22, 60),
    "AVIF": (22, 100),
    "JPEG2000": (55, 200),
    "LAB": (40, 0),
    "LZMA": (8, 45),
    "bmp_rle": (150, 0),  # this and what follows decodes in Python
    "ppm": (0, 750),
    "ppm_plain": (0, 400),
}
# Pillow reads headers, and some pictures, in small pieces in Python, 0.5 to 3 µs each. An ICC profile of 1 MB takes 8,000
# in a GIF; a PNG of 256 MiB in chunks of 8 KiB takes 100,000 in all.
MAX_HEADER_READS, MAX_READS = 10_000, 1_000_000
MAX_EXIF_BYTES = 2**20  # unpacked in Python, up to 0.5 µs a byte; a segment of a JPEG has 64 KiB
MAX_JPEG_SCANS = 100  # libtiff's limit too; encoders write about ten
MAX_JPEG_SEGMENTS = 2_000  # an ICC profile or a depth map takes up to some hundreds
MAX_JPEG_METADATA_BYTES = 16 * 2**20  # unpacked in Python, up to 0.1 µs a byte; a depth map has some MB
MAX_PNG_METADATA_CHUNKS = 500  # each may unpack 1 MB in 2 ms; editors write some tens
# A byte of deflate that unpacks to nothing takes 0.1 µs: only with many pixels, and 20 MB or more, can it be over 2 s.
MAX_DEFLATED_BYTES, MAX_DEFLATED_BYTES_PER_PIXEL = 16 * 2**20, 8
MAX_TIFF_TAGS = 100_000  # up to 10 µs each; cameras and editors write some hundreds, but a pointer may be astray
MAX_TIFF_VALUES = 200_000  # unpacked in Python, up to 5 µs each; 65,535 strips take 131,070
MAX_TIFF_METADATA_BYTES = 64 * 2**20  # of which Pillow keeps up to four copies; Photoshop has its layers there
MAX_TIFF_TILED_PIXELS = 128_000_000  # of all tiles, which may reach beyond the picture at the right and below
MAX_JPEG2000_PIXELS = 10_000_000  # in blocks of 4×4 they take 0.2 µs and 120 bytes each
MAX_JPEG2000_TILES = 10_000  # OpenJPEG 2.5.2 takes 8 ns for the square of their number
MAX_AVIF_EXIF = 4  # other data may look like it by chance
MAX_ICON_BYTES, MAX_ICON_EDGE = 4 * 2**20, 2048  # decoded while it is opened; systems show 256 pixels, and 256 of mask
MAX_PPM_COMMENTS = 1_000  # Pillow copies up to 1 MB for each

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a coded 255, a restart or a fill byte
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG2000_MAGIC = re.compile(rb"\xff\x4f\xff\x51")  # of the coded picture, which a file may begin with or have in a box
_AVIF_BRANDS = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1")
_TIFF_MAGIC = re.compile(rb"II[*+]\0|MM\0[*+]")
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
_TIFF_BYTES = (1, 2, 7)  # the types that Pillow leaves as they are
_TIFF_DIRECTORIES = (34665, 34853, 40965)  # the tags of EXIF, GPS and interoperability
_TIFF_DEFLATE, _TIFF_COSTS = ((8,), (32946,)), {(7,): "JPEG scans", (34925,): "LZMA"}  # by compression


class Refused(Exception):
    """A picture exceeds a limit; the message, which goes after the picture's name, says the value and the rule."""


class PictureFile(io.BytesIO):
    """An encoded picture that can be read in a limited number of pieces."""

    reads, max_reads = 0, MAX_HEADER_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > self.max_reads:
            raise Refused(f"has more parts than the {self.max_reads:,} that are read")
        return super().read(size)


def check_encoded(content: bytes) -> None:
    """Check what a picture would have Pillow unpack or decode as soon as it is opened.

    Raises:
        Refused: a limit is exceeded.
    """
    if content.startswith(b"\xff\xd8\xff"):
        _check_jpeg(content)
    elif content.startswith(_PNG_MAGIC):
        _check_png(content)
    elif _TIFF_MAGIC.match(content):
        _check_tiff_tags(content)
    elif content.startswith(b"\0\0\1\0"):
        _check_icon(content)
    elif content[4:12] in _AVIF_BRANDS:
        _check_avif(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        _check_time("WEBP", 0, len(content))  # Pillow copies the whole file before it says how many pixels there are
    elif _JPEG2000_MAGIC.match(content) or content[4:8] == b"jP  ":
        _check_jpeg2000(content)


def check_opened(image: Image.Image, content: bytes) -> None:
    """Check what decoding a picture would take that Pillow opened.

    Raises:
        Refused: a limit is exceeded.
    """
    tiles = getattr(image, "tile", [])
    codec = tiles[0][0] if tiles else ""
    pixels = image.width * image.height
    for name in (image.format, image.mode, codec):
        if name in DECODING_COSTS:
            _check_time(name, pixels, len(content))
    if image.format == "JPEG2000":
        _at_most(pixels, MAX_JPEG2000_PIXELS, "pixels of JPEG 2000")
    if codec == "ppm_plain":
        _at_most(content.count(b"#"), MAX_PPM_COMMENTS, "comments")
    elif codec == "libtiff":
        _check_tiff_strips(getattr(image, "tag_v2", {}), len(content))


def check_exif(image: Image.Image) -> None:
    """Check what looking for a decoded picture's orientation would take.

    Raises:
        Refused: a limit is exceeded.
    """
    for key in ("exif", "Raw profile type exif"):
        _at_most(len(image.info.get(key) or ""), MAX_EXIF_BYTES, "bytes of EXIF data")


def _at_most(value: int, limit: int, things: str) -> None:
    if value > limit:
        raise Refused(f"has {value:,} {things}; at most {limit:,} are read")


def _check_time(name: str, pixels: int, size_bytes: int) -> None:
    per_pixel, per_byte = DECODING_COSTS[name]
    seconds = (pixels * per_pixel + size_bytes * per_byte) / 1e9
    if seconds > MAX_DECODING_SECONDS:
        what = f"{pixels:,} pixels and {size_bytes:,} bytes" if pixels else f"{size_bytes:,} bytes"
        limit = f"at most {MAX_DECODING_SECONDS:g} s are given"
        raise Refused(f"has {what} in {name}, which take about {seconds:.1f} s to decode; {limit}")


def _check_jpeg(content: bytes) -> None:
    """Walk through the segments as Pillow and libjpeg do; the latter ends at the first end of image after a scan."""
    position = segments = scans = metadata = exif = pixels = 0
    while (marker := _JPEG_MARKER.search(content, position)) and not (scans and marker[0] == b"\xff\xd9"):
        kind, position = marker[0][1], marker.end()
        segments += 1
        _at_most(segments, MAX_JPEG_SEGMENTS, "segments")
        if kind in (0x01, 0xD8, 0xD9):  # without a length
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame
            height, width = struct.unpack(">HH", content[position + 3 : position + 7].ljust(4, b"\0"))
            pixels = width * height
        elif kind == 0xDA:
            scans += 1
            _at_most(scans, MAX_JPEG_SCANS, "scans")
        elif kind >= 0xE0:
            metadata += length
            _at_most(metadata, MAX_JPEG_METADATA_BYTES, "bytes of metadata")
            if content[position + 2 : position + 6] == b"Exif":
                exif += length
                _at_most(exif, MAX_EXIF_BYTES, "bytes of EXIF data")
        position += max(2, length)
    if scans > 1:
        _check_time("JPEG scans", pixels * scans, position)


def _check_png(content: bytes) -> None:
    position = len(_PNG_MAGIC)
    chunks = metadata = deflated = 0
    kind = b""
    while kind != b"IEND" and position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IDAT":
            deflated += length
        elif kind not in (b"fcTL", b"fdAT"):  # of frames of an animation
            metadata += 1
            _at_most(metadata, MAX_PNG_METADATA_CHUNKS, "chunks of metadata")
        chunks += 1
        _at_most(chunks, MAX_READS // 3, "chunks")  # Pillow reads three pieces of each
        position += length + 12
    width, height = struct.unpack(">II", content[16:24].ljust(8, b"\0"))
    _check_deflated(deflated, width * height)


def _check_deflated(size_bytes: int, pixels: int) -> None:
    limit = MAX_DEFLATED_BYTES + MAX_DEFLATED_BYTES_PER_PIXEL * pixels
    _at_most(size_bytes, limit, f"bytes of data for {pixels:,} pixels")


def _check_jpeg2000(content: bytes) -> None:
    _check_time("JPEG2000", 0, len(content))
    for match in _JPEG2000_MAGIC.finditer(content):
        sizes = content[match.start() + 8 : match.start() + 40].ljust(32, b"\0")
        right, below, _, _, tile_width, tile_height, left, top = struct.unpack(">8I", sizes)
        tiles = -((left - right) // max(1, tile_width)) * -((top - below) // max(1, tile_height))
        _at_most(tiles, MAX_JPEG2000_TILES, "tiles")


def _check_avif(content: bytes) -> None:
    """Check EXIF data, which Pillow unpacks as it opens an AVIF, wherever they may be in it."""
    _check_time("AVIF", 0, len(content))
    starts = [match.start() for match in _TIFF_MAGIC.finditer(content)]
    _at_most(len(starts), MAX_AVIF_EXIF, "blocks of EXIF data")
    for start in starts:
        _check_tiff_tags(content[start:])


def _check_tiff_tags(content: bytes) -> None:
    """Walk through the directories that Pillow reads, which are those of the first picture."""
    order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
    is_big = 43 in content[2:4]
    word, entry_size, count_size = (8, 20, 8) if is_big else (4, 12, 2)

    def number(position: int, size: int) -> int:
        return int.from_bytes(content[position : position + size], order)

    directories = [number(word, word)]
    tags = values = metadata = 0
    while directories:
        start = directories.pop()
        count = number(start, count_size)
        tags += max(1, count)
        _at_most(tags, MAX_TIFF_TAGS, "tags")
        for position in range(start + count_size, start + count_size + count * entry_size, entry_size):
            tag, kind, length = number(position, 2), number(position + 2, 2), number(position + 4, word)
            size = _TIFF_SIZES.get(kind, 0) * length
            if not 0 < size <= len(content):
                continue  # as Pillow does
            metadata += size
            values += length if kind not in _TIFF_BYTES else 0
            if tag in _TIFF_DIRECTORIES:
                here = position + 4 + word
                directories.append(number(here if size <= word else number(here, word), size // length))
    _at_most(values, MAX_TIFF_VALUES, "values in tags")
    _at_most(metadata, MAX_TIFF_METADATA_BYTES, "bytes in tags")


def _check_tiff_strips(tags: Any, size_bytes: int) -> None:
    """Check a compressed TIFF's strips or tiles: all may unpack the same part of the file, or more than is seen of them."""

    def numbers(*names: int) -> tuple[int, ...]:
        values = next((tags[name] for name in names if name in tags), ())
        return values if isinstance(values, tuple) else (values,)

    (width,), (height,), compression = numbers(256), numbers(257), numbers(259)
    starts, sizes = numbers(273, 324), numbers(279, 325)
    # Where there are no sizes, or one that cannot be, libtiff takes the rest of the file.
    coded = sum(min(size, size_bytes) for size in sizes) if sizes else len(starts) * size_bytes
    if coded > size_bytes:
        raise Refused(f"has {coded:,} bytes of strips in a file of {size_bytes:,} bytes; none may be there twice")
    for tile_width, tile_height in zip(numbers(322), numbers(323), strict=False):
        tiled = -(-width // tile_width) * tile_width * -(-height // tile_height) * tile_height
        _at_most(tiled, MAX_TIFF_TILED_PIXELS, "pixels in tiles")
    if compression in _TIFF_DEFLATE:
        _check_deflated(coded, width * height)
    elif compression in _TIFF_COSTS:
        _check_time(_TIFF_COSTS[compression], width * height, coded)


def _check_icon(content: bytes) -> None:
    """Check every picture in an icon, since its size need not be what the icon's own table says."""
    _at_most(len(content), MAX_ICON_BYTES, "bytes in an icon")
    chunks = sum(content.count(kind) for kind in (b"iCCP", b"iTXt", b"zTXt"))
    _at_most(chunks, MAX_PNG_METADATA_CHUNKS, "chunks of metadata")
    for entry in range(6, 6 + 16 * int.from_bytes(content[4:6], "little"), 16):
        start = int.from_bytes(content[entry + 12 : entry + 16], "little")
        is_png = content.startswith(_PNG_MAGIC, start)
        size = content[start + 16 : start + 24] if is_png else content[start + 4 : start + 12]
        edges = struct.unpack(">II" if is_png else "<II", size.ljust(8, b"\0"))
        _at_most(max(edges), MAX_ICON_EDGE, "pixels at an edge of an icon")
