"""How what a teacher says is kept: heads and features, each whole; or of logits the largest and the sum of the rest.

Shapes: B views, K classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.structures import Output

NUMBERS = {"fp32": np.float32, "fp16": np.float16}


def entry_type(shapes: dict[str, tuple[int, ...]], precision: str, top: int = 0) -> np.dtype:
    """Return the type of one view's entry.

    shapes: of each kept tensor, without the batch, by `head:<name>` and `tap:<name>`. top: how many logits of each head
    to keep; 0 = all.
    Raises ValueError if there are not more classes than that.
    """
    number, fields = NUMBERS[precision], []
    for name, shape in shapes.items():
        if top and name.startswith("head:"):
            (classes,) = shape
            if top >= classes:
                raise ValueError(
                    f"DISTILLATION.CACHE_TOP is {top}, expected 0 (all) to {classes - 1}: there are {classes} classes"
                )
            parts = [("values", number, (top,)), ("rest", number), ("places", np.uint16, (top,))]
            fields.append((name, np.dtype(parts), ()))
        else:
            fields.append((name, number, shape))
    return np.dtype(fields)


def pack(output: Output, kind: np.dtype) -> np.ndarray:
    """Return the entries (B,) of what a teacher says."""
    tensors = {f"head:{name}": value for name, value in output.heads.items()}
    tensors |= {f"tap:{name}": value for name, value in output.features.items()}
    packed = np.empty(len(next(iter(tensors.values()))), kind)
    for name in kind.names:
        value = tensors[name].detach().float()
        if kind[name].names:
            packed[name] = _pack_largest(value, kind[name])
        else:
            packed[name] = value.cpu().numpy()
    return packed


def unpack(packed: np.ndarray, shapes: dict[str, tuple[int, ...]], device: torch.device) -> Output:
    """Return what `pack` was given, (B, ...) fp32; shapes: see `entry_type`.

    Logits that were not kept are alike, and their probabilities add up to what they did.
    """
    parts: dict[str, dict[str, Tensor]] = {"head": {}, "tap": {}}
    for name, shape in shapes.items():
        kind, _, own = name.partition(":")
        largest = packed.dtype[name].names
        parts[kind][own] = _unpack_largest(packed[name], *shape, device) if largest else _tensor(packed[name], device)
    return Output(parts["head"], parts["tap"])


def _pack_largest(logits: Tensor, kind: np.dtype) -> np.ndarray:
    packed = np.empty(len(logits), kind)
    top = kind["values"].shape[0]
    values, places = logits.topk(top, dim=1)
    others = logits.scatter(1, places, -math.inf).logsumexp(dim=1) - math.log(logits.shape[1] - top)
    packed["values"], packed["rest"], packed["places"] = (t.cpu().numpy() for t in (values, others, places))
    return packed


def _unpack_largest(packed: np.ndarray, classes: int, device: torch.device) -> Tensor:
    values, rest = _tensor(packed["values"], device), _tensor(packed["rest"], device)
    places = torch.from_numpy(packed["places"].astype(np.int64)).to(device, non_blocking=True)
    return rest.unsqueeze(1).expand(-1, classes).scatter(1, places, values)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True).float()
