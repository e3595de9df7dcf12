"""What a picture may ask of Pillow, so that any file takes a bounded time and memory: at most 2 s and 500 MB.

A small file can keep a decoder busy for hours: a JPEG with thousands of scans, a TIFF whose strips are all the same megabyte.
Every limit here depends on the file alone, is checked before the work that it bounds, and lies well above what cameras,
phones and editors write. The times behind them are of one core of an AMD EPYC at 2.6 GHz with Pillow 13.
"""

import io
import re
import struct
from collections import Counter

from PIL import Image

MAX_PIXELS = 64_000_000  # a larger picture is more likely a decompression bomb than a product photo
MAX_EDGE = 65_535  # a JPEG's longest; a picture of one row or column makes decoders slow, and numpy use far more memory
MAX_NANOSECONDS = 2_000_000_000  # of decoding, as COSTS estimates it

# What Pillow reads in small pieces it reads in Python, at 0.5 to 3 µs a piece.
MAX_HEADER_READS = 10_000  # before it knows the size; an ICC profile of 1 MB takes 8,000 in a GIF, and little elsewhere
MAX_READS = 1_000_000  # in all; a PNG of 256 MiB in chunks of 8 KiB takes 100,000

MAX_EXIF_BYTES = 2**20  # unpacked in Python, at up to 0.5 µs a byte; a JPEG's segment has 64 KiB
MAX_JPEG_METADATA_BYTES = 16 * 2**20  # as well, at up to 0.1 µs a byte; phones put depth maps of a few MB there
MAX_JPEG_SEGMENTS = 2_000  # a large ICC profile or depth map takes some hundreds
MAX_JPEG_SCANS = 100  # as libtiff has it; encoders write about ten
MAX_PNG_CHUNKS = 350_000  # of 12 bytes at least, which is what MAX_READS allows
MAX_PNG_METADATA_CHUNKS = 500  # each may unpack 1 MB in 2.4 ms; editors write some tens
PNG_BYTES = 16 * 2**20, 8  # and for each pixel: deflate may take 0.1 µs for a byte that unpacks to nothing
MAX_TIFF_TAGS = 4_096  # of a directory; cameras and editors write some hundreds
MAX_TIFF_VALUES = 200_000  # in numbers, unpacked in Python at up to 3 µs each; 65,535 strips take 131,070
MAX_TIFF_METADATA_BYTES = 64 * 2**20  # which Pillow holds up to four times; Photoshop keeps layers there
MAX_ICON_BYTES, MAX_ICON_EDGE = 4 * 2**20, 1024  # an icon is decoded before its size is known; Windows's have 256 pixels
MAX_PPM_COMMENTS = 1_000  # Pillow copies up to 1 MB for each

# Nanoseconds that decoding takes for a pixel, for one in each scan of several, and for a byte of the file.
"""
