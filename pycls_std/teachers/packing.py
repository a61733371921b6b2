"""The format of cached teacher outputs: heads and features in full, or only the top logits and the sum of the rest.

Shapes: B views, K classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.sending import send
from pycls_std.core.structures import Output

NUMBERS = {"fp32": np.float32, "fp16": np.float16}
PRECISIONS = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16}


def entry_type(shapes: dict[str, tuple[int, ...]], precision: str, top: int = 0) -> np.dtype:
    """Return the dtype of one view's entry.

    shapes: of each cached tensor, without the batch, by `head:<name>` and `tap:<name>`. top: number of logits of each
    head to keep; 0 = all.
    Raises ValueError if `top` is not below the number of classes.
    """
    number = NUMBERS[precision]
    fields: list[tuple] = []
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
    """Return the entries (B,) of a teacher's outputs; this synchronizes with the device."""
    return entries({name: part.cpu() for name, part in kept_parts(output, kind).items()}, kind)


def kept_parts(output: Output, kind: np.dtype) -> dict[str, Tensor]:
    """Return the tensors that entries hold, in their precision, on the output's device: by name, or name/field."""
    tensors = {f"head:{name}": value for name, value in output.heads.items()}
    tensors |= {f"tap:{name}": value for name, value in output.features.items()}
    assert kind.names is not None, "see entry_type"
    parts = {}
    for name in kind.names:
        value, fields = tensors[name].detach().float(), kind[name].names
        number = PRECISIONS[(kind[name]["values"] if fields else kind[name]).base]
        if not fields:
            parts[name] = value.to(number).contiguous()  # as when read from a file, so that sums round alike
            continue
        top = kind[name]["values"].shape[0]
        values, places = value.topk(top, dim=1)
        others = value.scatter(1, places, -math.inf).logsumexp(dim=1) - math.log(value.shape[1] - top)
        parts |= {f"{name}/values": values.to(number), f"{name}/rest": others.to(number), f"{name}/places": places}
    return parts


def entries(parts: dict[str, Tensor], kind: np.dtype) -> np.ndarray:
    """Return the entries (B,) of the tensors of `kept_parts`, which are on the CPU.

    Raises ValueError for values that are not finite, such as those that overflow the precision of the entries.
    """
    packed = np.empty(len(next(iter(parts.values()))), kind)
    for place, part in parts.items():
        name, _, field = place.partition("/")
        if not part.isfinite().all():
            raise ValueError(f"{name} of a teacher is not finite in {part.dtype}: DISTILLATION.CACHE_PRECISION")
        (packed[name] if not field else packed[name][field])[...] = part.numpy()
    return packed


def restored(parts: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> Output:
    """Return a teacher's outputs, (B, ...) fp32, from the tensors of `kept_parts`; shapes: see `entry_type`.

    Logits that were not kept are all equal, with the same total probability as before.
    """
    found: dict[str, dict[str, Tensor]] = {"head": {}, "tap": {}}
    for name, shape in shapes.items():
        kind, _, own = name.partition(":")
        found[kind][own] = parts[name].float() if name in parts else _spread(parts, name, *shape)
    return Output(found["head"], found["tap"])


def unpack(packed: np.ndarray, shapes: dict[str, tuple[int, ...]], device: torch.device) -> Output:
    """Return the outputs that `pack` was given, see `restored`."""
    parts: dict[str, Tensor] = {}
    for name in shapes:
        fields = packed.dtype[name].names
        own = {f"{name}/{field}": packed[name][field] for field in fields} if fields else {name: packed[name]}
        parts |= {place: _tensor(values, device) for place, values in own.items()}
    return restored(parts, shapes)


def _spread(parts: dict[str, Tensor], name: str, classes: int) -> Tensor:
    values, rest = parts[f"{name}/values"].float(), parts[f"{name}/rest"].float()
    return rest.unsqueeze(1).expand(-1, classes).scatter(1, parts[f"{name}/places"], values)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    values = values.astype(np.int64) if values.dtype == np.uint16 else np.ascontiguousarray(values)
    return send(values, device)
