"""How a reader of the card builds the student from its weights, by timm alone or by this project; found by trying."""

from pathlib import Path

import timm
from safetensors.torch import load_file
from timm.models import load_checkpoint
from torch import nn

from pycls_std.core.registry import BACKBONES
from pycls_std.export.card import Facts
from pycls_std.export.deployed import CLOSE, Deployed, difference
from pycls_std.models.create import create_backbone, timm_arguments


def plain_timm(name: str, *, num_classes: int, image_size: int, norm_eps: float = 0.0, **args) -> dict | None:
    """Return the arguments of `timm.create_model` that build a backbone; None if only this project can build it.

    Arguments are those of `create_backbone`.
    """
    if name in BACKBONES or args.get("image_token"):
        return None
    own = {key: value for key, value in args.items() if key not in ("drop_path", "image_token")}
    arguments = {"model_name": name, "num_classes": num_classes, **timm_arguments(name, image_size, own)}
    return None if norm_eps and _norms(arguments) - {norm_eps} else arguments


def _norms(arguments: dict) -> set[float]:
    """Return the epsilons of the LayerNorms of a model of timm."""
    return {module.eps for module in timm.create_model(**arguments).modules() if isinstance(module, nn.LayerNorm)}


def says_the_same(facts: Facts, path: Path, model: Deployed) -> bool:
    """Return whether the backbone with the weights of a file, built as the card says, has the logits of the student.

    It does not if the student's prediction is one of two heads, which a backbone by itself averages.
    """
    if facts.timm:
        plain = timm.create_model(**facts.timm)
        load_checkpoint(plain, str(path))
    else:
        plain = create_backbone(facts.model, num_classes=len(facts.classes), **facts.arguments)
        plain.load_state_dict(load_file(path))
    return difference(model, plain.eval(), facts.image_size) <= CLOSE
