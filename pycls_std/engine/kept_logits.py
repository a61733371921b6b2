"""How a teacher's logits are kept: all of them, or the largest and the sum of the rest.

Shapes: B views, K classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

NUMBERS = {"fp32": np.float32, "fp16": np.float16}


def form(precision: str, classes: int, top: int = 0) -> np.dtype:
    """Return the type of one view's entry. top: how many logits of K to keep; 0 = all.

    Raises ValueError if there are not more classes than that.
    """
    number = NUMBERS[precision]
    if not top:
        return np.dtype([("values", number, (classes,))])
    if top >= classes:
        raise ValueError(
            f"DISTILLATION.CACHE_TOP is {top}, expected 0 (all) to {classes - 1}: there are {classes} classes"
        )
    return np.dtype([("values", number, (top,)), ("rest", number), ("places", np.uint16, (top,))])


def pack(logits: Tensor, kind: np.dtype) -> np.ndarray:
    """Return the entries (B,) of logits (B, K)."""
    packed = np.empty(len(logits), kind)
    logits = logits.detach().float()
    if "places" not in kind.names:
        packed["values"] = logits.cpu().numpy()
        return packed
    top = kind["values"].shape[0]
    values, places = logits.topk(top, dim=1)
    others = logits.scatter(1, places, -math.inf).logsumexp(dim=1) - math.log(logits.shape[1] - top)
    packed["values"], packed["rest"], packed["places"] = (t.cpu().numpy() for t in (values, others, places))
    return packed


def unpack(packed: np.ndarray, classes: int, device: torch.device) -> Tensor:
    """Return logits (B, K). Those that were not kept are alike, and their probabilities add up to what they did."""
    values = torch.from_numpy(np.ascontiguousarray(packed["values"])).to(device, non_blocking=True).float()
    if "places" not in packed.dtype.names:
        return values
    rest = torch.from_numpy(np.ascontiguousarray(packed["rest"])).to(device, non_blocking=True).float()
    places = torch.from_numpy(packed["places"].astype(np.int64)).to(device, non_blocking=True)
    return rest.unsqueeze(1).expand(-1, classes).scatter(1, places, values)
