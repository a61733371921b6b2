"""Replace a model's token mixing MLPs by the kernels of `layers/token_mixing.py`, if they support them."""

from typing import Any

from timm.layers import Mlp
from timm.models.mlp_mixer import MixerBlock
from torch import nn

MOST_TOKENS = 256  # with more, tiles do not fit on the chip


def mixer_blocks(model: nn.Module) -> list[MixerBlock]:
    """Return the MLP-Mixer blocks of a model, with any kind of MLP."""
    return [module for module in model.modules() if isinstance(module, MixerBlock)]


def obstacle(model: nn.Module) -> str:
    """Return why the kernels do not support the token mixing of a model, for an error message; "" if they do."""
    mlps: list[Any] = [block.mlp_tokens for block in mixer_blocks(model)]
    if not mlps or not all(map(_has_the_form, mlps)):
        return "which needs a student with token mixing MLPs: two linear layers with biases, and GELU between them"
    dropout = max(float(mlp.drop1.p or mlp.drop2.p) for mlp in mlps)
    if dropout:
        return f"which has no dropout, that of the student's token mixing MLPs is {dropout:g}"
    tokens = max(mlp.fc1.in_features for mlp in mlps)
    return f"which takes at most {MOST_TOKENS} tokens, the student has {tokens}" if tokens > MOST_TOKENS else ""


def _has_the_form(mlp: nn.Module) -> bool:
    if type(mlp) is not Mlp or type(mlp.act) is not nn.GELU or not isinstance(mlp.norm, nn.Identity):
        return False
    linear = [layer for layer in (mlp.fc1, mlp.fc2) if type(layer) is nn.Linear and layer.bias is not None]
    return mlp.act.approximate == "none" and len(linear) == 2 and mlp.fc1.in_features == mlp.fc2.out_features


def fuse(model: nn.Module) -> None:
    """Replace the token mixing MLPs of a model without an `obstacle`; parameters and their names stay the same."""
    from pycls_std.layers.token_mixing import TokenMixing  # here, since it needs triton, which not every torch has

    for block in mixer_blocks(model):
        plain: Any = block.mlp_tokens
        block.mlp_tokens = TokenMixing(plain)
