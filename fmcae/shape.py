"""The shapes that a model's input may have, beside the study's 1×28×28: its channels, and the pixels of an edge."""

from itertools import product
from numbers import Integral
from typing import Literal, get_args

from fmcae.errors import UsageError

Channels = Literal[1, 3]  # grey, or red, green and blue
Size = Literal[28, 56, 64]  # multiples of 4, which the decoder reaches again
SHAPES: tuple[tuple[int, int], ...] = tuple(product(get_args(Channels), get_args(Size)))


def check_shape(channels: int, size: int) -> None:
    """Raise UsageError if ``channels`` or ``size`` is none of those."""
    for name, value, choices in (("channels", channels, get_args(Channels)), ("size", size, get_args(Size))):
        if not isinstance(value, Integral) or value not in choices:
            raise UsageError(f"{name} (={value}) must be {', '.join(map(str, choices[:-1]))} or {choices[-1]}")
