from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fmcae
from fmcae.card import CARD_KEY, GOLDEN_KEY, SEAL_KEY, protobuf_fields, read_metadata, seal
from fmcae.errors import ArtefactError
from fmcae.runtime.graph_rules import MAX_INTEGER, MAX_NODES, check_graph, check_interface, has_half_weights
from fmcae.runtime.model import SHIPPED, shipped_folder


def field(number: int, content: bytes | int) -> bytes:
    """A protobuf field: length-delimited bytes, or a number."""
    if isinstance(content, int):
        return bytes([*_varint(number << 3), *_varint(content % 2**64)])
    return bytes([*_varint(number << 3 | 2), *_varint(len(content))]) + content


def _varint(value: int) -> list[int]:
    return [value] if value < 0x80 else [value & 0x7F | 0x80, *_varint(value >> 7)]


def model(*fields: bytes) -> bytes:
    return field(7, b"".join(fields))


def node(operator: bytes, *attributes: bytes, domain: bytes = b"") -> bytes:
    return field(1, field(4, operator) + field(7, domain) + b"".join(field(5, attribute) for attribute in attributes))


def test_what_ships_passes() -> None:
    for name in SHIPPED:
        for path in shipped_folder(name).glob("*.onnx"):
            check_graph(path.read_bytes(), "picture" if path.stem == "picture" else "classifier")


@pytest.mark.parametrize(
    ("kind", "shapes", "name"),
    [
        ("classifier", {"output": ["batch", 9]}, "output"),
        ("encoder", {"output": ["batch", 1, 128]}, "output"),
        ("decoder", {"input": ["batch", 127]}, "input"),
        ("encoder", {"input": ["batch", 28, 28]}, "input"),
    ],
)
def test_input_and_output_are_those_of_the_card(
    shipped: Path, kind: str, shapes: dict[str, list[str | int]], name: str
) -> None:
    artefact = fmcae.read_artefact(shipped / f"{kind}.onnx")
    check_interface(artefact.content, artefact.card)
    changed = {side: getattr(artefact.card, side) | {"shape": shape} for side, shape in shapes.items()}
    with pytest.raises(ArtefactError, match=f"the {name} of its graph is not that of its card"):
        check_interface(artefact.content, replace(artefact.card, **changed))
    with pytest.raises(ArtefactError, match=f"{kind}.onnx: its {name} is not what its card says"):
        replace(artefact, card=replace(artefact.card, **changed)).session()
    with pytest.raises(ArtefactError, match="the input of its graph is not that of its card"):
        check_interface(b"", artefact.card)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (model(field(5, field(14, 1) + field(13, field(1, b"location") + field(2, b"w.bin")))), "the field 13"),
        (model(field(5, field(13, b""))), "a tensor has the field 13"),
        (model(field(5, field(14, 1))), "keeps a tensor in another file"),
        (model(field(15, b"")), "the graph has the field 15"),
        (field(25, b""), "the model has the field 25"),
        (field(20, b""), "the model has the field 20"),
        (model(node(b"Loop")), "has the operator 'Loop'"),
        (model(node(b"ConstantOfShape")), "has the operator 'ConstantOfShape'"),
        (model(node(b"Range\x1b]52;c;\x07")), r"has the operator 'Range\\x1b"),
        (model(node(b"Conv", domain=b"other")), r"has the operator 'other\.Conv'"),
        (model(node(b"Conv", field(6, b""))), "an attribute has the field 6"),
        (model(node(b"Conv", field(5, b""))), "an attribute has the field 5"),
        (model(node(b"Conv", field(3, MAX_INTEGER + 1))), "an attribute of Conv is above 16"),
        (model(node(b"Conv", field(3, -(2**62)))), "an attribute of Conv is above 16"),
        (model(node(b"Conv", field(8, bytes([1, 1, 17])))), "an attribute of Conv is above 16"),
        (model(node(b"Relu") * (MAX_NODES + 1)), "more nodes than an export"),
        (model(node(b"ConvTranspose") * 5), "more nodes than an export"),
        (model(node(b"MaxPool", field(1, b"strides") + field(8, bytes([2, 0])))), "strides of MaxPool is below 1"),
        (model(node(b"\xff")), "is not an ONNX model"),
        (model(field(1, field(4, b"Relu") + field(1, b"x\xff"))), "is not an ONNX model"),  # a node's input
        (model(field(5, field(8, b"\x80"))), "is not an ONNX model"),  # a tensor's name
    ],
)
def test_what_no_export_has_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(ArtefactError, match=reason):
        check_graph(content, "classifier")
    with pytest.raises(ArtefactError, match=reason):
        check_graph(
            model(node(b"Relu", field(3, -1), field(8, bytes([2, 2])))) + content, "classifier"
        )  # graphs add up


@pytest.mark.parametrize(("changed", "reason"), [(0, "another preprocessing graph"), (-1, "has the operator 'Loop'")])
def test_a_picture_begins_with_the_preprocessing_graph(shipped: Path, changed: int, reason: str) -> None:
    content = (shipped / "picture.onnx").read_bytes()
    check_graph(content, "picture")
    with pytest.raises(ArtefactError, match="more nodes than an export|has the operator"):
        check_graph(content, "classifier")
    with pytest.raises(ArtefactError, match="begins with another preprocessing graph than this version's"):
        check_graph(content, "picture", (3, 28, 28))
    graph = next(part for number, part, _ in protobuf_fields(content) if number == 7)
    parts = [(number, raw) for number, _, raw in protobuf_fields(graph)]
    nodes = [index for index, (number, _) in enumerate(parts) if number == 1]
    parts[nodes[changed]] = 1, node(b"Loop")
    with pytest.raises(ArtefactError, match=reason):
        check_graph(model(*(raw for _, raw in parts)), "picture")


@given(st.binary(max_size=200))
def test_any_bytes_pass_or_are_an_error_of_ours(content: bytes) -> None:
    for whole in (content, model(content), model(field(1, content)), model(node(b"Conv", content))):
        try:
            check_graph(whole, "classifier")
        except ArtefactError as error:
            assert "\n" not in str(error)


def test_a_sealed_file_with_data_elsewhere_is_refused(shipped: Path, tmp_path: Path) -> None:
    original = (shipped / "classifier.onnx").read_bytes()
    metadata = read_metadata(original)
    content = original + model(field(5, field(8, b"w") + field(13, field(1, b"location") + field(2, b"../w.bin"))))
    sealed = seal(content, metadata[CARD_KEY], metadata[GOLDEN_KEY])
    content += field(14, field(1, SEAL_KEY.encode()) + field(2, sealed.encode()))
    path = tmp_path / "classifier.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"classifier\.onnx: is no artefact of fmcae: a tensor has the field 13"):
        fmcae.load(path)


def test_half_precision_is_told_by_the_weights() -> None:
    full, half = (field(5, field(1, 3) + field(2, data_type) + field(9, b"abc")) for data_type in (1, 10))
    assert has_half_weights(model(node(b"Relu"), full, half))
    assert not has_half_weights(model(node(b"Relu"), full))
    for name in SHIPPED:
        for path in shipped_folder(name).glob("*.onnx"):
            assert not has_half_weights(path.read_bytes())


@given(st.binary(max_size=50))
def test_bytes_that_are_no_model_have_no_half_weights(content: bytes) -> None:
    assert has_half_weights(content) in (False, True)
    assert not has_half_weights(b"\xff" + content)
