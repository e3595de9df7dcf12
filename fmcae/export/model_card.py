"""The model card for people: Markdown, made from the cards that the artefacts carry."""

from collections.abc import Mapping
from typing import Any

from fmcae.card import Card, Kind
from fmcae.runtime.model import file_name


def model_card(cards: Mapping[Kind, Card], files: Mapping[str, bytes | str]) -> str:
    """Markdown of the artefacts' cards; ``files`` are the artefacts' contents by name, for their sizes."""
    first = next(iter(cards.values()))
    config, data = first.training["config"], first.training["data"]
    network = config["network"]
    counts = data["counts"]
    lines = [
        f"# {first.name}",
        "",
        f"A convolutional autoencoder and the classifier built on its encoder, trained on {data['name']} and exported by "
        f"fmcae {first.fmcae_version}. Each file carries this card's facts and its own golden vectors: "
        "`fmcae info FILE` prints them, `fmcae verify FILE` replays them.",
        "",
        "| file | input | output | size (bytes) |",
        "| --- | --- | --- | --- |",
    ]
    for kind, card in cards.items():
        size_bytes = len(files[file_name(kind)])
        lines.append(f"| `{file_name(kind)}` | {_tensor(card.input)} | {_tensor(card.output)} | {size_bytes:,} |")
    lines += ["", "## Input", ""]
    lines += [f"- {key}: {value}" for key, value in first.preprocessing.items()]
    lines += ["", "## Classes", "", ", ".join(f"{index} {name}" for index, name in enumerate(first.class_names))]
    lines += [
        "",
        "## Training",
        "",
        f"- data: {data['name']}, {counts['train']:,} train / {counts['val']:,} val / {counts['test']:,} test, "
        f"split seed {data['split_seed']}, fingerprint `{data['fingerprint'][:16]}`",
        f"- network: latent size {network['latent_dim']}, dropout {network['dropout']} ({network['dropout_position']}, "
        f"output {'dropped' if network['output_dropout'] else 'not dropped'}), "
        f"{'with' if network['pooling'] else 'without'} pooling",
        f"- Adam, learning rate {config['learning_rate']}, batches of {config['batch_size']}, {config['epochs']} epochs "
        f"a stage, encoder {config['encoder_init']} and {config['encoder_training']}, seed {config['seed']}"
        + (f", the classifier on {labels:,} labelled images" if (labels := config.get("labels")) else ""),
        "",
        "## Measured on the test split",
        "",
    ]
    measured = {name: value for card in cards.values() for name, value in card.metrics.items() if name != "confusion"}
    lines += [f"- {name}: {value:.4f}" for name, value in measured.items()]
    lines += _per_class(cards)
    lines += _parity(first.parity) if first.parity else _verdict(first.precision)
    lines += [
        "",
        "## Limits",
        "",
        "The networks know the classes above and nothing else: any image gets one of their labels. They were trained on "
        "single items in front of a plain background, seen in 28×28 grey pixels.",
    ]
    if "decoder" in cards and network["pooling"]:
        lines.append(
            "The output padding of the decoder's two transposed convolutions leaves the last three rows and columns of "
            "every reconstruction the same; test_mse includes them."
        )
    lines.append("")
    return "\n".join(lines)


def _verdict(precision: Mapping[str, Any]) -> list[str]:
    verdict = precision["verdict"]
    machine = verdict["machine"]
    lines = [
        "",
        f"## {precision['name']} against float32",
        "",
        f"On {verdict['images']:,} test images: accuracy {verdict['accuracy']:.4f}, in float32 "
        f"{verdict['fp32_accuracy']:.4f}; {verdict['label_agreement']:.2%} of the labels agree, logits differ by up to "
        f"{verdict['max_abs_difference']:.2g}. Size {verdict['size_bytes']:,} bytes before this card's facts were added, "
        f"in float32 {verdict['fp32_size_bytes']:,}.",
        "",
        f"Times as fast as float32, side by side on one machine ({machine['cpu']}, ONNX Runtime "
        f"{machine['onnxruntime']}, {verdict['provider']}, {verdict['threads']} thread):",
        "",
        "| batch size | median | range of rounds |",
        "| --- | --- | --- |",
    ]
    for size, ratio in verdict["speedup"].items():
        lines.append(f"| {size} | {ratio['median']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} |")
    if "latent_units" in precision:
        lines += [
            "",
            f"The linear layer and the second convolution have int8 weights and uint8 activations, whose scale comes from "
            f"{precision['calibration_images']:,} training images. Latent units that are 0 on all of these are left out; "
            f"{precision['latent_units']} are left.",
        ]
    lines += ["", "Its golden outputs are its own: `fmcae verify` asks whether another machine gives the same."]
    return lines


def _parity(parity: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Parity",
        "",
        f"ONNX Runtime {parity['onnxruntime_version']} ({parity['provider']}) against PyTorch {parity['torch_version']} "
        f"on {parity['images']:,} test images, each from the bytes of a PNG file. Tolerance: atol "
        f"{parity['tolerance']['atol']:g}, rtol {parity['tolerance']['rtol']:g}.",
        "",
        "| output | batch size | largest absolute difference | largest relative difference | labels that agree |",
        "| --- | --- | --- | --- | --- |",
    ]
    for item in parity["comparisons"]:
        agreement = item["label_agreement"]
        labels = "" if agreement is None else f"{round(agreement * parity['images']):,} of {parity['images']:,}"
        difference = item["difference"]
        lines.append(
            f"| {item['output']} | {item['batch_size']} | {difference['max_abs']:.2g} | {difference['max_rel']:.2g} "
            f"| {labels} |"
        )
    return lines


def _tensor(spec: Mapping[str, object]) -> str:
    shape = spec["shape"]
    assert isinstance(shape, list)
    return f"`{spec['name']}` ({', '.join(map(str, shape))}) {spec['dtype']} in {spec['range']}"


def _per_class(cards: Mapping[Kind, Card]) -> list[str]:
    confusion = cards["classifier"].metrics.get("confusion") if "classifier" in cards else None
    if not confusion:
        return []
    lines = ["", "| class | test images | recognized |", "| --- | --- | --- |"]
    for index, (name, row) in enumerate(zip(cards["classifier"].class_names, confusion, strict=True)):
        share = f"{row[index] / sum(row):.3f}" if sum(row) else "none in test"
        lines.append(f"| {name} | {sum(row):,} | {share} |")
    return lines
