"""What a file holds, compared with what would be saved: nothing else is loaded, whoever wrote the file."""

import copy

import torch
from torch import Tensor
from torch.optim import Optimizer


def refuse_other_kind(value, kind, name: str) -> None:
    """Raise ValueError that says where a value is not of its kind.

    kind: a type, exactly; a tuple of those; [kind], a list of such; {...: kind}, a dictionary of such by texts; or
    {"key": kind, ...}, a dictionary with at least these keys. name: of the value, for the error.
    """
    if isinstance(kind, list):
        _refuse_other_type(value, (list,), name)
        for index, each in enumerate(value):
            refuse_other_kind(each, kind[0], f"{name}[{index}]")
    elif isinstance(kind, dict):
        _refuse_other_type(dict(value) if isinstance(value, dict) else value, (dict,), name)
        for key in value if ... in kind else kind:
            if type(key) is not str or key not in value:
                raise ValueError(f"{name} has no {key!r}" if type(key) is str else f"{name} has the key {key!r}")
            refuse_other_kind(value[key], kind[... if ... in kind else key], f"{name}.{key}")
    else:
        _refuse_other_type(value, kind if isinstance(kind, tuple) else (kind,), name)


def refuse(lines: list[str], source: str, what: str) -> None:
    """Raise ValueError that names a source and up to 10 lines on how it differs from what it should be, if any does."""
    if lines:
        more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise ValueError(f"{source} does not fit {what}: {'; '.join(lines[:10])}{more}")


def differences(found, expected, name: str = "") -> list[str]:
    """Return in lines where a nest of dictionaries, lists, tensors and numbers is not built as another one.

    Keys, lengths and kinds must be the same, and of tensors shape and kind; values may be any.
    """
    if isinstance(expected, Tensor):
        return unfit(found, expected, name)
    if _class(found) != _class(expected):
        return [f"{name} is {_kind(found)}, expected {_kind(expected)}"]
    dot = f"{name}." if name else ""
    if isinstance(expected, dict):
        inner = [
            line for key in expected if key in found for line in differences(found[key], expected[key], f"{dot}{key}")
        ]
        missing = [f"missing {dot}{key}" for key in expected if key not in found]
        return inner + missing + [f"unexpected {dot}{key}" for key in found if key not in expected]
    if not isinstance(expected, (list, tuple)):
        return []
    if len(found) != len(expected):
        return [f"{name} has {len(found)} entries, expected {len(expected)}"]
    pairs = enumerate(zip(found, expected, strict=True))
    return [line for index, pair in pairs for line in differences(*pair, f"{dot}{index}")]


def unfit(found, expected: Tensor, name: str) -> list[str]:
    """Return in one line why a tensor cannot take the place of another one, nothing if it can.

    Floating numbers may be of another precision; whole numbers are what they were.
    """
    if not isinstance(found, Tensor):
        return [f"{name} is {_kind(found)}, expected a tensor"]
    if found.shape != expected.shape:
        return [f"{name} is {tuple(found.shape)} in the file, {tuple(expected.shape)} in the model"]
    both_float = found.is_floating_point() and expected.is_floating_point()
    if found.layout != torch.strided or not (both_float or found.dtype == expected.dtype):
        kinds = [str(each.dtype).removeprefix("torch.") for each in (found, expected)]
        layout = "" if found.layout == torch.strided else f" ({found.layout})"
        return [f"{name} is {kinds[0]}{layout} in the file, {kinds[1]} in the model"]
    if sum((size - 1) * step for size, step in zip(found.shape, found.stride(), strict=True)) + 1 < found.numel():
        return [f"{name} has fewer numbers in the file than its shape {tuple(found.shape)}"]
    return []


def optimizer_state(optimizer: Optimizer) -> dict:
    """Return what an optimizer would save after a step: that of a copy, whose step is on zeros.

    Parameters and state are unchanged; what they take is taken once more for a moment.
    """
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin.state_dict()


def optimizer_differences(found: dict, optimizer: Optimizer, name: str) -> list[str]:
    """Return in lines where a state is none of an optimizer: its kernels trust what they are given.

    A parameter that had no gradient has no state. What a first step does not make yet is as large as its parameter.
    """
    expected = optimizer_state(optimizer)
    lines = differences(found, expected | {"state": {}}, name) if not isinstance(found, dict) else []
    if lines or found.keys() != expected.keys() or not isinstance(found["state"], dict):
        return lines or [f"{name} is no state of an optimizer"]
    lines = differences(found["param_groups"], expected["param_groups"], f"{name}.param_groups")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for key, own in found["state"].items():
        place = f"{name}.state.{key}"
        if key not in parameters or not isinstance(own, dict):
            lines.append(f"unexpected {place}")
            continue
        known = expected["state"].get(key, {})
        later = {each: parameters[key] for each, value in own.items() if each not in known and torch.is_tensor(value)}
        lines += differences({each: own[each] for each in own if each in known | later}, known | later, place)
    return lines


def _refuse_other_type(value, types: tuple, name: str) -> None:
    if type(value) not in types:
        raise ValueError(f"{name} is {_kind(value)}, expected {' or '.join(kind.__name__ for kind in types)}")


def _class(value) -> type:
    """Return what counts as the type of a value: an ordered dictionary is one, a whole number may stand for a float."""
    return dict if isinstance(value, dict) else float if type(value) is int else type(value)


def _kind(value) -> str:
    return f"a {type(value).__name__}"
