"""The model card of an exported student: the model, its training, its metrics, and how to load it."""

from typing import NamedTuple

FILES = {"pt2": "model.pt2", "onnx": "model.onnx", "safetensors": "model.safetensors"}
CARD = "README.md"


class Facts(NamedTuple):
    """What a card says. parts: names of the branches that are deployed with the backbone."""

    name: str
    model: str
    arguments: dict  # of the backbone's constructor, except the number of classes
    prediction: str
    parts: tuple[str, ...]
    parameters: int
    classes: tuple[str, ...]
    image_size: int  # side, pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str  # what is done to an image before it is normalised, in words
    training: dict[str, str]  # data, teachers, metrics, commit: what is known of each, in words
    apart: dict[str, float]  # difference of each file's logits, relative to the largest one, by kind of file
    timm: dict | None  # arguments of `timm.create_model`, if timm makes the backbone
    same: bool  # whether the backbone with these weights, built as the card says, has the student's logits


def card(facts: Facts) -> str:
    """Return the card, in Markdown."""
    head = [f"# {facts.name}", "", f"{facts.model}, {facts.parameters} parameters, {len(facts.classes)} classes."]
    rows = ["| | |", "| --- | --- |", *(f"| {key} | {_cell(text)} |" for key, text in facts.training.items())]
    loaded = [line for kind in facts.apart for line in ("", f"## {FILES[kind]}", "", *LOADED[kind](facts))]
    return "\n".join([*head, "", *rows, "", *_input(facts), *loaded]) + "\n"


def _input(facts: Facts) -> list[str]:
    numbers = [", ".join(f"{value:g}" for value in values) for values in (facts.mean, facts.std)]
    names = ", ".join(f"{number} {_cell(name)}" for number, name in enumerate(facts.classes))
    return [
        f"Input: (B, 3, {facts.image_size}, {facts.image_size}), fp32, RGB; of an image {facts.resize}; pixels "
        f"from 0 to 1, minus the mean {numbers[0]}, by the standard deviation {numbers[1]}.",
        f"Output: (B, {len(facts.classes)}) logits of the prediction `{facts.prediction}`; any B.",
        "",
        f"Classes: {names}.",
    ]


def _program(facts: Facts) -> list[str]:
    load = "program = torch.export.load('model.pt2').module()"
    images = f"images = torch.zeros(2, 3, {facts.image_size}, {facts.image_size})"
    return _code("import torch", load, images, "logits = program(images)") + _apart("pt2", facts)


def _onnx(facts: Facts) -> list[str]:
    session = "session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])"
    images = f"images = numpy.zeros((2, 3, {facts.image_size}, {facts.image_size}), dtype='float32')"
    run = "(logits,) = session.run(['logits'], {'images': images})"
    return _code("import numpy, onnxruntime", session, images, run) + _apart("onnx", facts)


def _safetensors(facts: Facts) -> list[str]:
    note = "Tried: it says what the student says." if facts.same else OTHERWISE.format(facts.prediction)
    if facts.timm is None or facts.parts:
        whole = f"of the backbone (`backbone.`) and of {', '.join(facts.parts)} (`branches.`)" if facts.parts else ""
        return [
            f"The weights {whole or 'of the backbone'}, by their names in pycls_std, which makes the model; timm alone "
            "does not. The backbone:",
            *_code(
                "import pycls_std.models, safetensors.torch",
                "from pycls_std.models.create import create_backbone",
                f"model = create_backbone({facts.model!r}, num_classes={len(facts.classes)}, **{facts.arguments!r})",
                "weights = safetensors.torch.load_file('model.safetensors')",
                *([OF_BACKBONE] if facts.parts else []),
                "model.load_state_dict(weights)",
                "model.eval()",
            ),
            *([] if facts.parts else [note]),
        ]
    words = ", ".join(f"{key}={value!r}" for key, value in facts.timm.items() if key != "model_name")
    load = "timm.models.load_checkpoint(model, 'model.safetensors')"
    make = f"model = timm.create_model({facts.timm['model_name']!r}, {words})"
    return [
        "The weights by timm's names, which timm alone loads:",
        *_code("import timm", make, load, "model.eval()"),
        note,
    ]


OF_BACKBONE = "weights = {key[9:]: value for key, value in weights.items() if key.startswith('backbone.')}"
OTHERWISE = "Its logits are not those of the student: it averages both heads, the student predicts by `{}`."
LOADED = {"pt2": _program, "onnx": _onnx, "safetensors": _safetensors}


def _code(*lines: str) -> list[str]:
    return ["", "```python", *lines, "```", ""]


def _apart(kind: str, facts: Facts) -> list[str]:
    return [f"Tried: logits are within {facts.apart[kind]:.0e} of the student's, as a share of the largest one."]


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
