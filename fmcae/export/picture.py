# spox does not say what its opset modules export.
# mypy: disable-error-code="attr-defined,no-any-return"
"""``picture.onnx``: preprocessing, a classifier and its temperature in one graph, from pixels to probabilities.

    image (H, W, 1 | 3 | 4) uint8 of any size -> probabilities (K,), known_score (), x (1, C, S, S)

It is made of an exported classifier, whose facts its card keeps, and carries golden pictures: PNG files, and what Python
makes of them. The file has nothing that ONNX Runtime does not run in a browser, on a phone or in C.
"""

import io
from dataclasses import replace

import numpy as np
import onnx
import spox.opset.ai.onnx.v18 as op
from numpy.typing import NDArray
from onnx import compose
from PIL import Image
from spox import Tensor, argument, build

import fmcae
from fmcae.card import Card, GoldenPictures, Kind
from fmcae.export.graph import IR_VERSION, OPSET
from fmcae.export.preprocessing import tidied
from fmcae.export.sealing import seal_graph
from fmcae.metrics import known_score, softmax
from fmcae.preprocess import as_bytes, description, graph_path, preprocess
from fmcae.runtime.model import Artefact, file_name

KIND: Kind = "picture"
ENLARGED, EDGES = 96, (120, 140)  # pixels: an item, and height and width of the picture that it lies in
PAPERS = ((255, 255, 255), (245, 243, 238), (200, 230, 255), (20, 20, 25))  # the last is behind light ink
INKS = ((0, 0, 0), (90, 10, 20), (10, 30, 90), (240, 240, 240))


def picture_artefact(classifier: Artefact) -> Artefact:
    """Make the picture that lies beside a classifier; ``verify`` says whether its graph gives what Python does."""
    shape = classifier.card.x_shape[:2]
    card = replace(
        classifier.card,
        kind=KIND,
        fmcae_version=fmcae.__version__,
        preprocessing=description(*shape),
        input={"name": "image", "shape": ["height", "width", "channels"], "dtype": "uint8", "range": "[0, 255]"},
        output={
            "name": "probabilities",
            "shape": [len(classifier.card.class_names)],
            "dtype": "float32",
            "range": "[0, 1]",
        },
    )
    pictures = golden_pictures([as_bytes(x) for x in classifier.golden.inputs])
    logits = classifier.session().run(np.stack([preprocess(picture, *shape) for picture in pictures]))
    probabilities = softmax(logits, card.temperature)
    labels = tuple(card.class_names[index] for index in logits.argmax(axis=1))
    golden = GoldenPictures(tuple(pictures), labels, probabilities, known_score(logits))
    path = classifier.path.with_name(file_name(KIND))
    return seal_graph(path, picture_graph(classifier.content, card), card, golden)


def picture_graph(classifier: bytes, card: Card) -> bytes:
    """Join the preprocessing graph, unchanged, with a classifier's, and with what makes probabilities of logits."""
    before, network = onnx.load(graph_path(*card.x_shape[:2])), onnx.ModelProto.FromString(classifier)
    after = _after(len(card.class_names), card.temperature)
    names = {"x", "logits", *(value.name for value in after.graph.output)}
    parts = [before.graph]
    for prefix, model in (("classifier/", network), ("result/", after)):
        renamed = compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)
        assert {value.name for value in (*renamed.graph.input, *renamed.graph.output)} <= names
        parts.append(renamed.graph)
    graph = onnx.helper.make_graph(
        [node for part in parts for node in part.node],
        KIND,
        list(before.graph.input),
        [*after.graph.output, *before.graph.output],
        [tensor for part in parts for tensor in part.initializer],
    )
    domains = {item.domain: item.version for item in network.opset_import} | {"": OPSET}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in sorted(domains.items())]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _after(classes: int, temperature: float) -> onnx.ModelProto:
    """``logits`` (1, K) -> ``probabilities`` (K,) and ``known_score`` (), which ``metrics.known_score`` defines."""
    logits = argument(Tensor(np.float32, (1, classes)))
    row = op.const(np.array([0], np.int64))
    probabilities = op.squeeze(op.softmax(op.div(logits, op.const(np.float32(temperature)))), row)
    with_unknown = op.pad(logits, op.const(np.array([0, 0, 0, 1], np.int64)), op.const(np.float32(0)))
    unknown = op.gather(op.squeeze(op.softmax(with_unknown), row), op.const(np.array(classes, np.int64)), axis=0)
    outputs = {"probabilities": probabilities, "known_score": op.sub(op.const(np.float32(1)), unknown)}
    return tidied(build({"logits": logits}, outputs))


def golden_pictures(images: list[NDArray[np.uint8]]) -> list[bytes]:
    """Make a small PNG file of each image (S, S) or (S, S, 3) uint8, the background 0: on papers, cut out, and as it is."""
    pictures = []
    for number, image in enumerate(images):
        is_colour = image.ndim == 3
        share = np.where(image.any(axis=2), 255, 0).astype(np.uint8) if is_colour else image
        alpha = _enlarged(share)
        paper, ink = (np.array(colours[number % len(PAPERS)], np.float64) for colours in (PAPERS, INKS))
        own = _enlarged(image) if is_colour else np.full((*EDGES, 3), 40, np.uint8)
        if is_colour:
            ink = own.astype(np.float64)
        if number == len(images) - 1:
            picture = Image.fromarray(image)
        elif number % 5 == 4:
            picture = Image.fromarray(np.dstack([own, alpha]))
        else:
            colours = paper + (ink - paper) * (alpha[..., np.newaxis] / 255)
            picture = Image.fromarray(np.rint(colours).astype(np.uint8))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        pictures.append(buffer.getvalue())
    return pictures


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image in a picture of EDGES, which is 0 elsewhere."""
    picture = np.zeros((*EDGES, *image.shape[2:]), np.uint8)
    item = Image.fromarray(image).resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC)
    picture[10 : 10 + ENLARGED, 20 : 20 + ENLARGED] = np.asarray(item)
    return picture
