# spox does not say what its opset modules export.
# mypy: disable-error-code="attr-defined,no-any-return"
"""Preprocessing as an ONNX graph: image (H, W, C) uint8 of any size -> x (1, 1, 28, 28) float32, or of another shape.

    python -m fmcae.export.preprocessing    # builds the graphs of all shapes and writes those that ship

A 28×28 grey image is taken as it is. Anything else goes through the pipeline that made Fashion-MNIST of product photos:
trim the edges that are close to the corners' colour, bring the longest edge to 28 pixels by subsampling, sharpen, centre,
and put the item on a background of 0, bright where it is dark. Of an item drawn in lines, each pixel that comes out is the
mean of its whole area instead, because subsampling would miss lines that are thinner than a pixel.

The picture is sampled twice, each time on a square canvas of a fixed size, so that every later tensor has a fixed shape
and a large picture costs hardly more than a small one: first all of it, to find the item, then the item with a margin.
Standard operators of opset 18 alone; nothing loops, so a photo takes no longer than a drawing.

Of another shape an image of ``size``×``size`` pixels is taken as it is too, and each pixel that comes out is the mean of its
whole area. With three channels the item keeps its colours, whether it is lighter or darker than its background: nothing is
negated, and only the background becomes 0. An item's black becomes BLACK instead, or a black item would vanish. Background
is what a flood from the margin reaches, over paper, soft shadows and gradients; paper that an item encloses is a part of it.
What shows through a cut-out is background everywhere. A grey picture has three equal channels.

Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2. Made robust here: any background colour,
transparency, soft edges, noise, any size and shape. ``bench/pictures.py`` measures how well that works.
"""

from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import spox.opset.ai.onnx.v18 as op
from onnx_ir.passes import common
from spox import Tensor, Var, argument, build

from fmcae.export.graph import IR_VERSION
from fmcae.preprocess import graph_path
from fmcae.shape import SHAPES

Map: TypeAlias = Var  # (1, 1, h, w) float32
Pair: TypeAlias = Var  # (2,) float32: of rows and of columns
Places: TypeAlias = Var  # (2, n): of rows and of columns

COARSE = 128  # pixels of the square that the picture is sampled on
SAMPLES = 6  # pixels of the square that the item is sampled on, for each one that comes out
MARGIN = 0.06  # of the item, on each side of its canvas
PIXEL = SAMPLES / (1 + 2 * MARGIN)  # one that comes out, in pixels of the item's canvas: 5.4
OWN_SHARE = 1 / 3  # of a pixel's height and width is sampled for Fashion-MNIST's form, which makes it as sharp
THIN = 0.2  # the share of its box that an item covers, below which it is drawn in lines
CLOSE = 0.05  # a pixel within this share of the range from the corners' colour is background: the paper's 5%
CLEAN = 2.5 / 255  # in a picture without noise, pixels that stand out this much and touch the item belong to it
BLACK = 0.2  # what a coloured item's black becomes, so that it differs from the background
SIMILAR = 0.25  # the most that a coloured picture's background differs from the corners'
SMOOTH = 0.03  # and between neighbours
SWEEPS = 16  # of the flood along rows and columns
SHARPEN = 0.25  # subsampling keeps most of a picture's sharpness, and a picture at hand may be sharpened already
MIXED = 0.15  # a pixel that stands out less than this share of its neighbour may be background beside a soft edge
SOFT = 0.2  # the share of such pixels beside the background from which edges are soft

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"
_GAUSSIAN = np.exp(-(np.arange(-3, 4) ** 2) / 2)  # of radius 1


def preprocessing_graph(channels: int = 1, size: int = 28) -> onnx.ModelProto:
    """Build the graph ``image`` (H, W, 1 | 3 | 4) uint8 -> ``x`` (1, channels, size, size) float32 in [0, 1]."""
    image = argument(Tensor(np.uint8, ("height", "width", "channels")))
    return tidied(build({"image": image}, {"x": _preprocessed(image, channels, size)}))


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without what is there twice or unused: a third smaller, and pooling without indices is faster."""
    passes: list[ir.passes.InPlacePass] = [
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
    ]
    tidied = ir.to_proto(ir.passes.Sequential(*passes)(ir.from_proto(model)).model)
    tidied.ir_version = IR_VERSION
    del tidied.graph.value_info[:]
    onnx.checker.check_model(tidied, full_check=True)
    return tidied


def _f(value: Any) -> Var:
    return op.const(np.asarray(value, np.float32))


def _i(value: Any) -> Var:
    return op.const(np.asarray(value, np.int64))


def _scalar(one: Map) -> Var:
    """(1, 1, 1, 1) -> (); OpenVINO crashes on a Reshape to no dimensions that comes after another one."""
    return op.squeeze(one, _i([0, 1, 2, 3]))


def _float(condition: Var) -> Var:
    return op.cast(condition, to=np.float32)


def _column(pair: Pair) -> Places:
    return op.unsqueeze(pair, _i([1]))  # (2,) -> (2, 1)


def _two(pair: Var) -> tuple[Var, Var]:
    return op.gather(pair, _i(0), axis=0), op.gather(pair, _i(1), axis=0)  # (2, ...) -> (...), (...)


def _preprocessed(image: Var, out_channels: int, size: int) -> Var:
    canvas = SAMPLES * size
    picture = _Picture(image)
    longest = op.reduce_max(picture.edges, keepdims=0)
    step, origin = op.div(longest, _f(COARSE)), op.div(op.sub(picture.edges, longest), _f(2))
    rgb, alpha, inside = picture.canvas(origin, step, COARSE)
    # A transparent picture stands before white, or a white one before black: it is negative already.
    is_white = op.less_or_equal(op.sub(op.reduce_max(rgb, keepdims=0), op.reduce_min(rgb, keepdims=0)), _f(CLOSE))
    is_negative = _float(op.and_(is_white, op.less(op.reduce_min(alpha, keepdims=0), _f(1))))
    picture.backdrop = op.sub(_f(1), is_negative)
    rgb = op.sub(rgb, op.mul(op.sub(_f(1), alpha), is_negative))

    corners, coverage = _corners(picture)
    background = _most_common(corners)  # (1, 3, 1, 1)
    is_cut_out = _float(op.less(_scalar(_most_common(coverage)), _f(CLOSE)))
    noise = op.max([_f(CLEAN), op.mul(_noise(picture), op.sub(_f(1), is_cut_out))])

    def outline(distance: Map, alpha: Map, inside: Map) -> Map:
        """How much each pixel stands out, 0 to 1: from the background, or by the coverage of a cut-out."""
        return op.add(distance, op.mul(op.sub(op.mul(alpha, inside), distance), is_cut_out))

    begin, end = _spans(outline(op.mul(_distance(rgb, background), inside), alpha, inside), noise, COARSE)
    reach = op.mul(
        op.max([op.add(op.mul(op.reduce_max(op.sub(end, begin), keepdims=0), _f(0.5 + MARGIN)), _f(1)), _f(1)]), step
    )
    middle = op.add(origin, op.div(op.mul(op.add(begin, end), step), _f(2)))
    rgb, alpha, inside = picture.canvas(op.sub(middle, reach), op.mul(reach, _f(2 / canvas)), canvas)
    distance = op.mul(_distance(rgb, background), inside)
    standing_out = outline(distance, alpha, inside)
    span = _without_soft_edges(standing_out, *_spans(standing_out, noise, canvas), canvas)
    divisor = _f(2)
    if (out_channels, size) == (1, 28):  # the middles would miss an outline, whose sides lie on the box's edges
        area = op.reduce_prod(op.sub(span[1], span[0]), keepdims=0)
        is_thin = op.less(op.reduce_sum(_float(op.greater(standing_out, noise)), keepdims=0), op.mul(area, _f(THIN)))
        divisor = op.where(is_thin, divisor, _f(2 / OWN_SHARE))
    shrink = _Shrink(*span, canvas, divisor)

    if out_channels == 1:
        paper = _scalar(_grey(background))
        x = _ink(op.mul(op.sub(_grey(rgb), paper), inside), distance, paper, noise, is_negative, shrink)
        x = op.div(x, op.max([op.reduce_max(x, keepdims=0), _f(1e-6)]))
    else:
        own = op.sub(rgb, op.mul(op.mul(op.sub(_f(1), alpha), picture.backdrop), is_cut_out))
        paper = op.mul(background, op.sub(_f(1), is_cut_out))
        x = _colours(own, paper, standing_out, inside, noise, is_cut_out, shrink)
    blur = sum(np.eye(size, k=k - 3) * share for k, share in enumerate(_GAUSSIAN / _GAUSSIAN.sum()))
    blurred = op.matmul(op.matmul(_f(blur), x), _f(blur))
    x = op.mul(op.clip(op.add(x, op.mul(op.sub(x, blurred), _f(SHARPEN))), _f(0), _f(1)), shrink.box)
    is_blank = op.less_or_equal(op.reduce_max(standing_out, keepdims=0), noise)
    return _unless_taken_as_it_is(picture, op.where(is_blank, _f(0), x), out_channels, size)


class _Picture:
    """An image to sample, before a backdrop of 0 or 1 where it is transparent."""

    def __init__(self, image: Var) -> None:
        self.image, self.backdrop = image, _f(1)
        shape = op.shape(image)
        self.edges = op.cast(op.slice(shape, _i([0]), _i([2])), to=np.float32)  # (2,): height and width
        channels = op.slice(shape, _i([2]), _i([3]))
        self.rgb = op.min([_i([0, 1, 2]), op.sub(channels, _i(1))])
        self.alpha = op.min([_i([3]), op.sub(channels, _i(1))])
        self.is_opaque = _float(op.less(channels, _i(4)))  # (1,)

    def at(self, rows: Var, columns: Var) -> tuple[Var, Map]:
        """The pixels in these rows (h,) and columns (w,), 0 to 1: colours (1, 3, h, w) and alpha (1, 1, h, w)."""
        pixels = op.gather(op.gather(self.image, rows, axis=0), columns, axis=1)
        pixels = op.unsqueeze(op.div(_float(op.transpose(pixels, perm=[2, 0, 1])), _f(255)), _i([0]))
        alpha = op.max([op.gather(pixels, self.alpha, axis=1), self.is_opaque])
        return op.add(
            op.mul(op.gather(pixels, self.rgb, axis=1), alpha), op.mul(op.sub(_f(1), alpha), self.backdrop)
        ), alpha

    def canvas(self, origin: Pair, step: Var, size: int) -> tuple[Var, Map, Map]:
        """Sample a square: colours and alpha as of :meth:`at`, and 1 where that is inside the picture."""
        places = op.floor(op.add(_column(origin), op.mul(_f(np.arange(size) + 0.5), step)))  # (2, size)
        nearest = op.max([op.min([places, op.sub(_column(self.edges), _f(1))]), _f(0)])
        inside_rows, inside_columns = _two(_float(op.equal(places, nearest)))
        rgb, alpha = self.at(*_two(op.cast(nearest, to=np.int64)))
        return rgb, alpha, op.mul(op.unsqueeze(inside_rows, _i([0, 1, 3])), inside_columns)


def _unless_taken_as_it_is(picture: _Picture, x: Var, channels: int, size: int) -> Var:
    """The image itself where it has that size, is opaque and, for one channel, grey, otherwise ``x``."""
    places = op.min([_i(np.arange(size)), op.sub(op.cast(op.reduce_min(picture.edges), to=np.int64), _i(1))])
    rgb, alpha = picture.at(places, places)
    own = op.slice(rgb, _i([0]), _i([1]), _i([1])) if channels == 1 else rgb
    differences = [op.sub(rgb, own)] if channels == 1 else []
    differences += [op.sub(alpha, _f(1)), op.sub(picture.edges, _f(size))]
    other = [op.reduce_max(op.abs(difference), keepdims=0) for difference in differences]
    is_taken = op.equal(op.max(other), _f(0))
    return op.reshape(op.where(is_taken, own, x), _i([1, channels, size, size]))


# --- the background ----------------------------------------------------------------------------------------------


def _corners(picture: _Picture) -> tuple[Var, Var]:
    """The medians of nine pixels at each corner: colours (1, 3, 4) and alpha (1, 1, 4)."""
    inwards = op.floor(op.mul(_column(picture.edges), _f([0, 0.01, 0.02])))  # (2, 3)
    places = op.concat([inwards, op.sub(op.sub(_column(picture.edges), _f(1)), inwards)], axis=1)
    rgb, alpha = picture.at(*_two(op.cast(places, to=np.int64)))

    def medians(values: Var) -> Var:  # (1, C, 6, 6) -> (1, C, 4)
        patches = op.transpose(op.reshape(values, _i([1, -1, 2, 3, 2, 3])), perm=[0, 1, 2, 4, 3, 5])
        return _median(op.reshape(patches, _i([1, -1, 4, 9])), 9)

    return medians(rgb), medians(alpha)


def _most_common(corners: Var) -> Var:
    """(1, C, 4) -> (1, C, 1, 1): the corner that is closest to the others; an item may reach into one corner."""
    apart = op.abs(op.sub(op.unsqueeze(corners, _i([3])), op.unsqueeze(corners, _i([2]))))  # (1, C, 4, 4)
    closest = op.arg_min(op.reduce_sum(apart, _i([0, 1, 2]), keepdims=0), axis=0)  # (1,)
    return op.unsqueeze(op.gather(corners, closest, axis=2), _i([3]))


def _noise(picture: _Picture) -> Var:
    """The most that the background differs from its colour: 6.5 times the usual step between neighbours in the margin.

    Steps are whole numbers of 255, so that six times would be a limit that pixels lie on, and rounding would decide.
    """
    last = op.sub(_column(picture.edges), _f(1))
    spread = op.floor(op.mul(_f((np.arange(COARSE) + 0.5) / COARSE), last))  # (2, COARSE)
    ends = _two(op.cast(op.concat([op.mul(last, _f(0)), last], axis=1), to=np.int64))
    lines = []
    for places in (spread, op.min([op.add(spread, _f(1)), last])):
        rows, columns = _two(op.cast(places, to=np.int64))
        margin = [op.reshape(_grey(picture.at(*at)[0]), _i([-1])) for at in ((rows, ends[1]), (ends[0], columns))]
        lines.append(op.concat(margin, axis=0))
    return op.mul(_median(op.abs(op.sub(lines[1], lines[0])), 4 * COARSE), _f(6.5))


def _median(values: Var, count: int) -> Var:
    """(..., count) -> (...)"""
    largest, _ = op.top_k(values, _i([count // 2 + 1]))
    return op.gather(largest, _i(count // 2), axis=-1)


def _mixed(rgb: Var, shares: Any) -> Map:
    """(1, 3, h, w) -> (1, 1, h, w): the channels' weighted sum."""
    height_width = op.slice(op.shape(rgb), _i([2]), _i([4]))
    flat = op.matmul(_f([shares]), op.reshape(rgb, _i([3, -1])))
    return op.reshape(flat, op.concat([_i([1, 1]), height_width], axis=0))


def _grey(rgb: Var) -> Map:
    return _mixed(rgb, _GREY)


def _distance(rgb: Var, background: Var) -> Map:
    """Root mean square over the channels, so that black to white is 1."""
    difference = op.sub(rgb, background)
    return op.sqrt(_mixed(op.mul(difference, difference), np.full(3, 1 / 3)))


# --- the item's box ----------------------------------------------------------------------------------------------


def _profiles(outline: Map) -> Places:
    """The largest value of each row and of each column (2, size)."""
    rows, columns = (op.reduce_max(outline, _i([0, 1, axis]), keepdims=0) for axis in (3, 2))
    return op.concat([op.unsqueeze(rows, _i([0])), op.unsqueeze(columns, _i([0]))], axis=0)


def _first(where: Places, size: int) -> Pair:
    """The first place that is true on each axis; ``size`` if none is."""
    return op.reduce_min(op.where(where, _f(np.arange(size)), _f(size)), _i([1]), keepdims=0)


def _last(where: Places, size: int) -> Pair:
    """The last place that is true on each axis; -1 if none is."""
    return op.reduce_max(op.where(where, _f(np.arange(size)), _f(-1)), _i([1]), keepdims=0)


def _spans(outline: Map, noise: Var, size: int) -> tuple[Pair, Pair]:
    """Where the item begins and ends, on each axis.

    As for Canny's edges there are two tolerances: what stands out more than the paper's 5% is item, and so is what
    touches it and stands out from the margin's noise. Without its faint outer pixels an item's scale would change.
    """
    profiles = _profiles(outline)
    strong = op.min([op.max([_f(CLOSE), noise]), op.div(op.reduce_max(profiles, keepdims=0), _f(2))])
    sure = op.greater(profiles, strong)
    clear = op.less_or_equal(profiles, op.min([noise, strong]))
    before = op.and_(clear, op.less(_f(np.arange(size)), _column(_first(sure, size))))
    after = op.and_(clear, op.greater(_f(np.arange(size)), _column(_last(sure, size))))
    return op.add(_last(before, size), _f(1)), _first(after, size)


def _without_soft_edges(outline: Map, begin: Pair, end: Pair, canvas: int) -> tuple[Pair, Pair]:
    """Cut soft edges (of an enlarged picture, a blurred photo) half way up their rise, within a pixel that comes out."""
    profiles, places, reach = _profiles(outline), _f(np.arange(canvas)), _f(int(0.95 * PIXEL))
    after_begin = op.greater_or_equal(places, _column(begin))
    before_end = op.less(places, _column(end))

    def high(near: Places) -> Places:  # at least half as high as the highest near an end
        highest = op.reduce_max(op.where(near, profiles, _f(0)), _i([1]))
        return op.and_(op.greater_or_equal(profiles, op.div(highest, _f(2))), op.and_(after_begin, before_end))

    first = high(op.and_(after_begin, op.less(places, op.add(_column(begin), reach))))
    last = high(op.and_(before_end, op.greater_or_equal(places, op.sub(_column(end), reach))))
    return _first(first, canvas), op.add(_last(last, canvas), _f(1))


class _Shrink:
    """Shrinks the item's box to ``size`` pixels at its longest edge, and centres it.

    Each pixel is the mean of the middle of its area, from the centre to each side by the area's edge divided by ``divisor``.
    Of an odd margin the greater part is above and to the left, as in Fashion-MNIST.
    """

    def __init__(self, begin: Pair, end: Pair, canvas: int, divisor: Var) -> None:
        self.size = canvas // SAMPLES
        extent = op.max([op.sub(end, begin), _f(1)])
        size = op.max([op.floor(op.add(op.div(op.mul(extent, _f(self.size)), op.reduce_max(extent)), _f(0.5))), _f(1)])
        first, pixel = _column(op.floor(op.div(op.sub(_f(self.size + 1), size), _f(2)))), _column(op.div(extent, size))
        places = _f(np.arange(self.size))
        in_box = op.and_(op.greater_or_equal(places, first), op.less(places, op.add(first, _column(size))))
        inside = _float(in_box)  # (2, size)
        centres = op.unsqueeze(
            op.add(_column(begin), op.mul(op.add(op.sub(places, first), _f(0.5)), pixel)), _i([2])
        )  # (2, size, 1)
        half = op.max([op.div(op.unsqueeze(pixel, _i([2])), divisor), _f(0.5)])
        pixels = np.arange(canvas)
        overlap = op.sub(op.min([_f(pixels + 1), op.add(centres, half)]), op.max([_f(pixels), op.sub(centres, half)]))
        weights = op.mul(op.div(op.relu(overlap), op.mul(half, _f(2))), op.unsqueeze(inside, _i([2])))
        self.rows, columns = _two(weights)  # (size, canvas)
        self.columns = op.transpose(columns, perm=[1, 0])
        inside_rows, inside_columns = _two(inside)
        self.box = op.mul(op.unsqueeze(inside_rows, _i([0, 1, 3])), inside_columns)  # (1, 1, size, size)

    def __call__(self, values: Var) -> Var:
        """(1, C, canvas, canvas) -> (1, C, size, size), 0 beside the box."""
        return op.matmul(op.matmul(self.rows, values), self.columns)


# --- the item's ink ----------------------------------------------------------------------------------------------


def _ink(lighter: Map, distance: Map, paper: Var, noise: Var, is_negative: Var, shrink: _Shrink) -> Map:
    """How dark the item is in each pixel that comes out, as if it lay on white; 0 for the background.

    Args:
        lighter: by how much grey is lighter than the background; negative where it is darker.
    """
    darker, lighter = op.relu(op.sub(_f(0), lighter)), op.relu(lighter)
    on_light = op.greater(paper, _f(0.5))
    highest = [op.reduce_max(value, keepdims=0) for value in (darker, lighter)]
    is_darker = op.greater(highest[0], op.mul(highest[1], op.where(on_light, _f(1), _f(4))))
    areas = [op.reduce_sum(_float(op.greater(value, noise)), keepdims=0) for value in (lighter, distance)]
    has_lighter_parts = op.greater(areas[0], op.mul(areas[1], _f(0.05)))  # a white shirt before light grey
    is_drawn = op.and_(is_darker, op.not_(op.and_(has_lighter_parts, on_light)))

    in_background = op.mul(
        _near(_float(op.less_or_equal(distance, noise))), op.add(op.sub(darker, lighter), op.sub(_f(1), paper))
    )
    shrunk = shrink(op.concat([lighter, darker, distance, in_background], axis=1))
    small_lighter, small_darker, small_distance, small_background = (
        op.slice(shrunk, _i([k]), _i([k + 1]), _i([1])) for k in range(4)
    )
    small_grey = op.add(op.sub(small_lighter, small_darker), op.mul(paper, shrink.box))
    is_faint = op.less(op.reduce_max(distance, keepdims=0), _f(CLOSE))
    is_light_ink = op.or_(is_faint, op.not_(_rim_is_lighter(small_grey, small_distance, shrink.size)))
    as_it_is = op.or_(op.cast(is_negative, to=np.bool_), op.and_(op.not_(is_darker), is_light_ink))
    outside = _outside(small_distance, noise, shrink.size)
    photo = op.mul(
        op.mul(op.sub(op.sub(_f(1), small_grey), op.mul(small_background, _near(outside))), op.sub(_f(1), outside)),
        shrink.box,
    )
    return op.where(as_it_is, small_distance, op.where(is_drawn, small_darker, photo))


def _colours(rgb: Var, paper: Var, standing_out: Map, inside: Map, noise: Var, is_cut_out: Var, shrink: _Shrink) -> Var:
    """The item's colours (1, 3, size, size), its black at BLACK and the background at 0.

    What a flood from the margin reaches is background, and of the pixels beside it the share that is item counts.

    Args:
        rgb: the colours on the item's canvas (1, 3, canvas, canvas); of a cut-out, times the coverage.
        paper: the background's colour (1, 3, 1, 1); 0 behind a cut-out.
        standing_out: how much each pixel of it stands out from the background; of a cut-out, the coverage.
    """
    small = shrink(op.concat([op.mul(op.sub(rgb, paper), inside), standing_out], axis=1))
    change, outline = op.slice(small, _i([0]), _i([3]), _i([1])), op.slice(small, _i([3]), _i([4]), _i([1]))
    outside = _outside_of_colours(change, outline, noise, is_cut_out, shrink.size)
    outside, is_rim = (
        op.slice(value, _i([1, 1]), _i([shrink.size + 1] * 2), _i([2, 3])) for value in (outside, _near(_near(outside)))
    )
    highest = op.max([_near(_near(outline)), _f(1e-6)])
    share = op.sub(_f(1), op.mul(op.sub(_f(1), op.div(outline, highest)), is_rim))
    share = op.add(share, op.mul(op.sub(outline, share), is_cut_out))
    item = op.relu(op.add(change, op.mul(paper, share)))
    lifted = op.add(op.mul(share, _f(BLACK)), op.mul(item, _f(1 - BLACK)))
    return op.mul(lifted, op.mul(op.sub(_f(1), outside), shrink.box))


def _outside_of_colours(change: Var, outline: Map, noise: Var, is_cut_out: Var, size: int) -> Map:
    """1 where a flood comes (1, 1, size + 2, size + 2): over the background's colour, and soft light and shadow on it.

    It starts from a frame of one pixel, and runs along whole rows and columns, as far as no step is in its way, so that it
    gets around corners.

    Args:
        change: by how much each colour differs from the background's (1, 3, size, size).
    """
    frame = _i([0, 0, 1, 1, 0, 0, 1, 1])
    change, outline = op.pad(change, frame, _f(0)), op.pad(outline, frame, _f(0))
    highest = op.mul(op.reduce_max(outline, keepdims=0), op.sub(_f(1), is_cut_out))  # a pale item must not be flooded
    is_paper = op.less_or_equal(outline, noise)
    is_like_it = op.or_(is_paper, op.less_or_equal(outline, op.min([_f(SIMILAR), op.div(highest, _f(2))])))
    smooth = op.max([op.min([_f(SMOOTH), op.div(highest, _f(8))]), noise])

    def runs(axis: int) -> Var:
        """(size + 2, size + 2, size + 2): whether two pixels of a row, or of a column, have nothing between them."""
        first, second = (
            [op.slice(value, _i([k]), _i([size + 1 + k]), _i([axis])) for value in (change, is_paper, is_like_it)]
            for k in (0, 1)
        )
        step = op.reduce_max(op.abs(op.sub(first[0], second[0])), _i([1]))
        is_open = op.and_(op.and_(first[2], second[2]), op.less_or_equal(step, smooth))
        is_open = op.or_(is_open, op.and_(first[1], second[1]))
        ids = op.cumsum(op.sub(_f(1), _float(is_open)), _i(axis))
        ids = op.pad(ids, _i([int(k == axis) for k in range(4)] + [0] * 4), _f(0))
        ids = op.squeeze(op.transpose(ids, perm=[0, 1, 2, 3] if axis == 3 else [0, 1, 3, 2]), _i([0, 1]))
        return _float(op.equal(op.unsqueeze(ids, _i([1])), op.unsqueeze(ids, _i([2]))))

    margin = np.pad(np.zeros((size, size, 1)), [(1, 1), (1, 1), (0, 0)], constant_values=1)
    reached, rows, columns = _f(margin), runs(3), runs(2)
    for _ in range(SWEEPS):
        for run in (rows, columns):
            reached = _float(op.greater(op.matmul(run, reached), _f(0)))  # (size + 2, size + 2, 1)
            reached = op.transpose(reached, perm=[1, 0, 2])
    reached = op.unsqueeze(op.transpose(reached, perm=[2, 0, 1]), _i([0]))
    closed = op.sub(_f(1), _near(op.sub(_f(1), _near(reached))))  # without specks, such as JPEG leaves beside an item
    is_faint = _float(op.less_or_equal(outline, op.min([_f(2 * CLOSE), op.div(highest, _f(2))])))
    return op.max([reached, op.min([closed, is_faint])])


def _rim_is_lighter(grey: Map, distance: Map, size: int) -> Var:
    """Whether a picture with a dark background is a photo, to be negated, and not negative already.

    An item's rim was partly white background when the photo was taken: in the photo it is lighter than the next pixel
    inwards, in the negative darker. That holds for 99% of Fashion-MNIST.
    """
    tall, wide, before = [size, 1], [1, size], size - 1
    item = _float(op.greater(distance, op.max([_f(CLOSE), op.mul(op.reduce_max(distance, keepdims=0), _f(0.1))])))
    sides = [
        op.max_pool(item, kernel_shape=kernel, pads=pads)[0]
        for kernel, pads in (
            (tall, [before, 0, 0, 0]),
            (tall, [0, 0, before, 0]),
            (wide, [0, before, 0, 0]),
            (wide, [0, 0, 0, before]),
        )
    ]
    item = op.min(sides)  # with what lies between, which may look like the background
    framed = op.pad(op.sub(_f(1), item), _i([0, 0, 1, 1, 0, 0, 1, 1]), _f(1))
    beside = op.slice(_cross(framed), _i([1, 1]), _i([size + 1, size + 1]), _i([2, 3]))
    rim = op.mul(item, beside)
    next_to_rim = op.mul(op.mul(item, op.sub(_f(1), rim)), _cross(rim))

    def mean(mask: Map) -> Var:
        count = op.max([op.reduce_sum(mask, keepdims=0), _f(1)])
        return op.div(op.reduce_sum(op.mul(grey, mask), keepdims=0), count)

    exists = op.greater(op.reduce_sum(next_to_rim, keepdims=0), _f(0))
    return op.and_(exists, op.greater(mean(rim), mean(next_to_rim)))


def _outside(distance: Map, noise: Var, size: int) -> Map:
    """1 where a pixel that comes out shows background, which a flood from the margin reaches, or a mixture with it.

    The middle of a pixel beside the item shows a little of it where edges are soft.
    """
    is_mixed = op.less_or_equal(distance, op.max([noise, op.mul(_near(distance), _f(MIXED))]))
    margin = np.pad(np.zeros((1, 1, size, size)), [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=1)
    free, mixed = (
        op.pad(_float(value), _i([0, 0, 1, 1, 0, 0, 1, 1]), _f(1))
        for value in (op.less_or_equal(distance, noise), is_mixed)
    )
    reached = _f(margin)
    for _ in range(size // 2):  # pixels from the margin inwards
        reached = op.min([_cross(reached), free])
    beside = op.sub(_cross(reached), reached)
    is_soft = op.greater(
        op.reduce_sum(op.mul(beside, mixed), keepdims=0), op.mul(op.reduce_sum(beside, keepdims=0), _f(SOFT))
    )
    free = op.where(is_soft, mixed, free)
    for _ in range(size // 2):  # and from there into soft gaps
        reached = op.min([_cross(reached), free])
    return op.slice(reached, _i([1, 1]), _i([size + 1, size + 1]), _i([2, 3]))


def _near(values: Map) -> Map:
    """The largest of a pixel and its eight neighbours."""
    return op.max_pool(values, kernel_shape=[3, 3], pads=[1, 1, 1, 1])[0]


def _cross(values: Map) -> Map:
    """The largest of a pixel and its four neighbours."""
    tall, _ = op.max_pool(values, kernel_shape=[3, 1], pads=[1, 0, 1, 0])
    wide, _ = op.max_pool(values, kernel_shape=[1, 3], pads=[0, 1, 0, 1])
    return op.max([tall, wide])


if __name__ == "__main__":  # write the graphs that ship
    for shape in SHAPES:
        graph_path(*shape).write_bytes(preprocessing_graph(*shape).SerializeToString(deterministic=True))
