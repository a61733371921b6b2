"""Fold the batch norms of a frozen model into the convolutions before them.

Shapes: B batch, H height, W width.
"""

import copy

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pycls_std.models.contract import Backbone
from pycls_std.teachers.teacher import Request, compute

# Exact types: a subclass may do something else with its weights, such as standardise them at every call.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
TOLERANCE = 1e-8  # of the folded model's outputs, in fp64, relative to the largest value; rounding leaves 1e-13


@torch.no_grad()
def fold_batch_norms(model: Backbone, images: Tensor, taps: tuple[str, ...] = ()) -> tuple[Backbone, int]:
    """Return a copy of a model in eval mode with its batch norms folded, and how many; the model itself and 0 if none.

    images: (B, 3, H, W) of the model's input size, on its device; two are enough. taps: names of those that are read.
    A batch norm is folded if its input is the output of one convolution, and both are called once. The pairs are found
    by running the model, since torch.fx cannot trace all of timm. If anything else reads such an output, the copy's
    logits or features differ, and nothing is folded.
    Everything is computed in fp64: on a GPU, fp32 convolutions may use TF32, whose rounding would hide differences.
    """
    if not any(type(module) in NORMS for module in model.modules()):
        return model, 0
    try:
        folded, images = copy.deepcopy(model).double(), images.double()
        pairs, expected = _pairs(folded, images, taps)
        _replace(folded, pairs)
        same = all(_close(*pair) for pair in zip(_outputs(folded, images, taps), expected, strict=True))
    except Exception:  # a backbone may require fp32 or access its batch norms, and may raise anything
        return model, 0
    if not pairs or not same:
        return model, 0
    return folded.to(next(model.parameters()).dtype), len(pairs)


def _outputs(model: Backbone, images: Tensor, taps: tuple[str, ...]) -> list[Tensor]:
    output = compute(model, images, Request(taps=taps))
    return [*output.heads.values(), *output.features.values()]


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _pairs(
    model: Backbone, images: Tensor, taps: tuple[str, ...]
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], list[Tensor]]:
    """Return the (convolution, batch norm) pairs that may be fused, and the model's outputs."""
    calls: dict[nn.Module, int] = {}
    makers: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # the tensors are held, so that no id is reused
    readers: dict[nn.Conv2d, list[nn.BatchNorm2d]] = {}

    def after_convolution(module, inputs, output):
        calls[module] = calls.get(module, 0) + 1
        makers[id(output)] = module, output, output._version

    def before_norm(module, inputs):
        calls[module] = calls.get(module, 0) + 1
        maker, _, version = makers.get(id(inputs[0]), (None, None, None))
        if maker is not None and inputs[0]._version == version:  # it was not modified in place
            readers.setdefault(maker, []).append(module)

    handles = []
    for module in model.modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(after_convolution))
        elif type(module) in NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        outputs = [output.clone() for output in _outputs(model, images, taps)]
    finally:
        for handle in handles:
            handle.remove()
    pairs = [(convolution, norms[0]) for convolution, norms in readers.items() if len(norms) == 1]
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1], outputs


def _replace(model: nn.Module, pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> None:
    """Replace each convolution by the fused one, and each norm by its own drop and activation, if any."""
    instead: dict[nn.Module, nn.Module] = {}
    for convolution, norm in pairs:
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        instead |= {convolution: fuse_conv_bn_eval(convolution, norm), norm: rest.eval()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children names each only once
            if child in instead:
                setattr(parent, name, instead[child])
