"""What a file holds, compared with what would be saved: nothing else is loaded, whoever wrote the file."""

import copy

import torch
from torch import Tensor
from torch.optim import Optimizer

from pycls_std.engine.optim import KERNELS


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


def refuse_unreadable(state, name: str = "") -> None:
    """Raise ValueError that names an entry of a kind that weights-only reading refuses, such as a number of numpy's."""
    if isinstance(state, dict):
        for key, value in state.items():
            refuse_unreadable(key, f"{name}.{key}".strip("."))
            refuse_unreadable(value, f"{name}.{key}".strip("."))
    elif type(state) in (list, tuple):
        for index, value in enumerate(state):
            refuse_unreadable(value, f"{name}.{index}".strip("."))
    elif not (state is None or type(state) in (bool, int, float, str) or isinstance(state, Tensor)):
        raise ValueError(f"{name} is {_kind(state)}, a checkpoint holds tensors, numbers and text")


def refuse(lines: list[str], source: str, what: str) -> None:
    """Raise ValueError that names a source and up to 10 lines on how it differs from what it should be, if any does."""
    if lines:
        odd = [line for line in lines if line.startswith("unexpected ")]
        others = [line for line in lines if line not in odd]  # of each kind some, or names with a prefix are not seen
        shown = others[: 10 - min(len(odd), 5)]
        shown += odd[: 10 - len(shown)]
        more = f" and {len(lines) - len(shown)} more" if len(lines) > len(shown) else ""
        raise ValueError(f"{source} does not fit {what}: {'; '.join(shown)}{more}")


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
    if found.is_meta:
        return [f"{name} has no numbers in the file"]
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

    Parameters and state are unchanged. For a moment it takes about four times the memory of the parameters.
    """
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin.state_dict()


def _without_kernels(groups):
    """Return parameter groups without what says how a step is computed, which a device decides."""
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return groups
    return [{key: value for key, value in group.items() if key not in KERNELS} for group in groups]


def optimizer_differences(found, optimizer: Optimizer, name: str, *, stepped: bool = False) -> list[str]:
    """Return in lines where a state is none of an optimizer: its kernels trust what they are given.

    stepped: whether it must have a state of some parameter; one that had no gradient has none. What a first step does
    not make yet is as large as its parameter.
    """
    expected = optimizer_state(optimizer)
    if not isinstance(found, dict) or found.keys() != expected.keys() or not isinstance(found["state"], dict):
        return [f"{name} is no state of an optimizer, which has {' and '.join(sorted(expected))}"]
    groups, usual_groups = (_without_kernels(state["param_groups"]) for state in (found, expected))
    lines = differences(groups, usual_groups, f"{name}.param_groups")
    for key in expected.keys() - {"state", "param_groups"}:  # as the generator of timm's kron
        lines += differences(found[key], expected[key], f"{name}.{key}")
    if stepped and expected["state"] and not found["state"]:
        lines.append(f"{name}.state is empty")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for key, own in found["state"].items():
        place = f"{name}.state.{key}"
        if key not in parameters or not isinstance(own, dict):
            lines.append(f"unexpected {place}")
            continue
        usual = expected["state"].get(key, {})
        later = {each: parameters[key] for each, value in own.items() if each not in usual and torch.is_tensor(value)}
        lines += differences({each: own[each] for each in own if each in usual | later}, usual | later, place)
    return lines


def training_differences(found: dict, own: dict, optimizer: Optimizer, auxiliary: list[Optimizer]) -> list[str]:
    """Return in lines where the state of a training is not built as another one's.

    found, own: as `loop.Session.state_dict` returns it. Each optimizer knows what it saves.
    """
    apart: dict[str, dict] = {"trainer": {}, "optimizer": {}}
    lines = differences(found | apart, own | apart)
    lines += optimizer_differences(found["optimizer"], optimizer, "optimizer", stepped=True)
    trainer = found["trainer"]
    if not isinstance(trainer, dict) or not isinstance(trainer.get("optimizers"), list):
        return [*lines, "trainer is not what a trainer saves"]
    lines += differences(trainer | {"optimizers": []}, own["trainer"] | {"optimizers": []}, "trainer")
    states = trainer["optimizers"]
    if len(states) != len(auxiliary):
        return [*lines, f"trainer.optimizers has {len(states)} entries, expected {len(auxiliary)}"]
    for index, (state, each) in enumerate(zip(states, auxiliary, strict=True)):
        lines += optimizer_differences(state, each, f"trainer.optimizers.{index}")
    return lines


def _refuse_other_type(value, types: tuple, name: str) -> None:
    if type(value) not in types:
        raise ValueError(f"{name} is {_kind(value)}, expected {' or '.join(kind.__name__ for kind in types)}")


def _class(value) -> type:
    """Return what counts as the type of a value: an ordered dictionary is one, a whole number may stand for a float."""
    return dict if isinstance(value, dict) else float if type(value) is int else type(value)


def _kind(value) -> str:
    return f"a {type(value).__name__}"
