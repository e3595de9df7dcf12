"""What a graph may hold before ONNX Runtime reads it: the operators that fmcae exports, and weights in the file itself.

A picture begins with the preprocessing graph, byte by byte the one of this version of fmcae; what follows it is checked.

ONNX lets a tensor lie in another file, which the seal does not cover and which may be any file of the machine; and a
graph of other operators may allocate or loop without end. Field numbers: onnx.proto, https://github.com/onnx/onnx.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache

from fmcae.card import GRAPH_FIELD, Card, Kind, protobuf_fields, varint
from fmcae.errors import ArtefactError
from fmcae.preprocess import graph_path

_CORE = (
    "Add", "Cast", "Conv", "ConvTranspose", "DequantizeLinear", "Flatten", "Gemm", "MatMul", "MaxPool", "QuantizeLinear",
    "ReduceMax", "Relu", "Reshape", "Sigmoid", "Slice", "Transpose",
)  # fmt: skip
_MICROSOFT = ("MatMulIntegerToFloat", "NhwcMaxPool", "QLinearConv")  # ONNX Runtime's own, in eight bits
OPERATORS = {("", name) for name in _CORE} | {("com.microsoft", name) for name in _MICROSOFT}
_AFTER_CLASSIFIER = {("", name) for name in ("Div", "Gather", "Pad", "Softmax", "Squeeze", "Sub")}  # in a picture
MAX_NODES = 64
MAX_ENLARGING = 4  # transposed convolutions, each of which may multiply both edges by MAX_INTEGER
MAX_INTEGER = 16  # of an attribute: strides, paddings, kernel sizes, axes, types
FROM_ONE = (b"strides", b"dilations", b"kernel_shape", b"group")  # ONNX Runtime 1.19 divides by them unseen

# Left out are functions and training (of a model), sparse weights (of a graph), subgraphs, tensors and references to a
# function's arguments (of an attribute), and data elsewhere (of a tensor).
_MODEL = {1, 2, 3, 4, 5, 6, 7, 8, 14}
_GRAPH = {1, 2, 5, 10, 11, 12, 13, 16}
_NODE = {1, 2, 3, 4, 5, 6, 7, 9}
_ATTRIBUTE = {1, 2, 3, 4, 7, 8, 9, 13, 20}
_TENSOR = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16}
_NODES, _INITIALIZERS, _INPUT, _OUTPUT = 1, 5, 11, 12  # of a graph
_OPERATOR, _DOMAIN, _ATTRIBUTES, _INT, _INTS, _DATA_TYPE, _DATA_LOCATION = 4, 7, 5, 3, 8, 2, 14
_FLOAT16 = 10  # a tensor's data type
_NODE_NAMES, _TENSOR_NAME = (1, 2, 3), 8  # of inputs, of outputs, and a node's own; a tensor's


def check_graph(model: bytes, kind: Kind, x_shape: tuple[int, int, int] = (1, 28, 28)) -> None:
    """Check an ONNX file's bytes, whose card says of which kind it is and of which shape (C, S, S) its x.

    Raises:
        ArtefactError: they hold something that no export of fmcae does; the message names it.
    """
    try:
        operators: Counter[tuple[str, str]] = Counter()
        allowed = OPERATORS | _AFTER_CLASSIFIER if kind == "picture" else OPERATORS
        for graph in _children(model, "the model", _MODEL, GRAPH_FIELD):
            nodes = _children(graph, "the graph", _GRAPH, _NODES)
            tensors = _children(graph, "the graph", _GRAPH, _INITIALIZERS)
            if kind == "picture":
                nodes, tensors = (
                    _without_preprocessing(*parts, x_shape) for parts in ((nodes, _NODES), (tensors, _INITIALIZERS))
                )
            for node in nodes:
                operators[_check_node(node, allowed)] += 1
            for tensor in tensors:
                _check_tensor(tensor)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtefactError(f"is not an ONNX model: {error}") from error
    if operators.total() > MAX_NODES or operators["", "ConvTranspose"] > MAX_ENLARGING:
        raise ArtefactError("is no artefact of fmcae: its graph has more nodes than an export")


def check_interface(model: bytes, card: Card) -> None:
    """Check that the graph of an ONNX file's bytes has the input and the output of its card; a picture has two more.

    Raises:
        ArtefactError: it has not.
    """
    graphs = [content for number, content, _ in protobuf_fields(model) if number == GRAPH_FIELD]
    for name, wanted in (("input", _INPUT), ("output", _OUTPUT)):
        values = [content for graph in graphs for number, content, _ in protobuf_fields(graph) if number == wanted]
        said = getattr(card, name)
        try:
            found = [_name_and_sizes(value) for value in values]
        except ValueError as error:
            raise ArtefactError(f"is not an ONNX model: {error}") from error
        expected = [(said["name"], said["shape"][1:])]
        if card.kind == "picture":
            more = [("known_score", []), ("x", [1, *card.x_shape])]
            expected = [("image", [])] if name == "input" else [(said["name"], said["shape"]), *more]
        if found != expected:
            raise ArtefactError(f"is no artefact of fmcae: the {name} of its graph is not that of its card")


def has_half_weights(model: bytes) -> bool:
    """Whether a weight of an ONNX file's graph is in half precision; False also where the bytes are no ONNX file."""
    try:
        graphs = [content for number, content, _ in protobuf_fields(model) if number == GRAPH_FIELD]
        tensors = [
            content for graph in graphs for number, content, _ in protobuf_fields(graph) if number == _INITIALIZERS
        ]
        fields = [field for tensor in tensors for field in protobuf_fields(tensor)]
    except ValueError:
        return False
    return any(number == _DATA_TYPE and raw[-1] == _FLOAT16 for number, _, raw in fields)


def _without_preprocessing(found: list[bytes], field: int, x_shape: tuple[int, int, int]) -> list[bytes]:
    """The nodes or tensors of a picture's graph behind those of preprocessing."""
    known = _preprocessing(field, *x_shape[:2])
    if found[: len(known)] != known:
        raise ArtefactError("begins with another preprocessing graph than this version's: export it again")
    return found[len(known) :]


@cache
def _preprocessing(field: int, channels: int, size: int) -> list[bytes]:
    model = graph_path(channels, size).read_bytes()
    graph = next(content for number, content, _ in protobuf_fields(model) if number == GRAPH_FIELD)
    return [content for number, content, _ in protobuf_fields(graph) if number == field]


def _check_node(node: bytes, allowed: Collection[tuple[str, str]]) -> tuple[str, str]:
    fields = dict.fromkeys((_OPERATOR, _DOMAIN), b"")
    for number, content, _ in protobuf_fields(node):
        if number in fields:
            fields[number] = content
        elif number in _NODE_NAMES:
            content.decode()  # ONNX Runtime 1.19 prints to stdout where it cannot
    operator = fields[_DOMAIN].decode(), fields[_OPERATOR].decode()
    if operator not in allowed:
        raise ArtefactError(f"is no artefact of fmcae: its graph has the operator {'.'.join(filter(None, operator))!a}")
    for attribute in _children(node, f"a {operator[1]}", _NODE, _ATTRIBUTES):
        name = {number: content for number, content, _ in protobuf_fields(attribute)}.get(1, b"")
        for content, raw in _fields(attribute, "an attribute", _ATTRIBUTE, (_INT, _INTS)):
            numbers = list(_integers(content, raw))
            if any(abs(number) > MAX_INTEGER for number in numbers):
                raise ArtefactError(f"is no artefact of fmcae: an attribute of {operator[1]} is above {MAX_INTEGER}")
            if name in FROM_ONE and any(number < 1 for number in numbers):
                raise ArtefactError(f"is no artefact of fmcae: {name.decode()} of {operator[1]} is below 1")
    return operator


def _check_tensor(tensor: bytes) -> None:
    for content, raw in _fields(tensor, "a tensor", _TENSOR, (_DATA_LOCATION, _TENSOR_NAME)):
        if raw[0] >> 3 == _TENSOR_NAME:
            content.decode()
        elif raw[-1] != 0:  # EXTERNAL
            raise ArtefactError("is no artefact of fmcae: it keeps a tensor in another file")


def _name_and_sizes(value: bytes) -> tuple[str, list[int]]:
    """The name of an input or output, and its shape without the sizes that are free, as the batch's."""
    parts = {number: content for number, content, _ in protobuf_fields(value)}
    shape = parts.get(2, b"")  # its type, whose tensor (1) has the shape (2), which has the dimensions (1)
    for wanted in (1, 2):
        shape = {number: content for number, content, _ in protobuf_fields(shape)}.get(wanted, b"")
    sizes: list[int] = []
    for _, dimension, _ in protobuf_fields(shape):
        for number, content, raw in protobuf_fields(dimension):
            if number == 1:
                sizes += _integers(content, raw)
    return parts.get(1, b"").decode(), sizes


def _integers(content: bytes, raw: bytes) -> Iterator[int]:
    """The signed numbers of a field: packed in its content, or one after its tag."""
    _, position = varint(raw, 0)
    if content:
        raw, position = content, 0
    while position < len(raw):
        value, position = varint(raw, position)
        yield value - (1 << 64 if value >= 1 << 63 else 0)


def _children(message: bytes, where: str, allowed: Collection[int], wanted: int) -> list[bytes]:
    return [content for content, _ in _fields(message, where, allowed, (wanted,))]


def _fields(message: bytes, where: str, allowed: Collection[int], wanted: Collection[int]) -> list[tuple[bytes, bytes]]:
    """The wanted fields of a message, as content and all bytes; a field that is not allowed is an error."""
    found = []
    for number, content, raw in protobuf_fields(message):
        if number not in allowed:
            raise ArtefactError(f"is no artefact of fmcae: {where} has the field {number}, which no export has")
        if number in wanted:
            found.append((content, raw))
    return found
