"""Compare the structure of a file's content with what would be saved; nothing else is loaded, whoever wrote it."""

import copy

import torch
from torch import Tensor
from torch.optim import Optimizer

from pycls_std.engine.optim import KERNELS


def refuse_other_kind(value, kind, name: str) -> None:
    """Raise ValueError that says where a value does not have the expected type.

    kind: a type, exactly; a tuple of types; [kind], a list of such; {...: kind}, a dictionary of such with text keys;
    or {"key": kind, ...}, a dictionary with at least these keys. name: of the value, for the error.
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
    """Raise ValueError that names an entry of a type that weights-only loading refuses, such as a NumPy scalar."""
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
        others = [line for line in lines if line not in odd]  # some of each, or a prefix of all names would not be seen
        shown = others[: 10 - min(len(odd), 5)]
        shown += odd[: 10 - len(shown)]
        more = f" and {len(lines) - len(shown)} more" if len(lines) > len(shown) else ""
        raise ValueError(f"{source} does not fit {what}: {'; '.join(shown)}{more}")


def differences(found, expected, name: str = "") -> list[str]:
    """Return lines on where nested dictionaries, lists, tensors and numbers differ in structure from expected ones.

    Keys, lengths and types must be the same, and shape and dtype of tensors (see `unfit`); values may differ.
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
    """Return one line on why a tensor cannot take the place of another one, none if it can.

    Floating-point tensors may have another precision; other dtypes must be the same.
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
    """Return the state of an optimizer after a step, made by a copy of it on gradients of zero.

    Parameters and state are unchanged. It temporarily takes about four times the memory of the parameters.
    """
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin.state_dict()


def _without_kernels(groups):
    """Return parameter groups without the KERNELS, which depend on the device."""
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return groups
    return [{key: value for key, value in group.items() if key not in KERNELS} for group in groups]


def optimizer_differences(found, optimizer: Optimizer, name: str, *, stepped: bool = False) -> list[str]:
    """Return lines on where a state does not fit an optimizer, whose kernels do not check what they are given.

    stepped: whether some parameter must have a state; those without a gradient have none. Tensors that the first step
    does not create yet must have the shape of their parameter.
    """
    expected = optimizer_state(optimizer)
    if not isinstance(found, dict) or found.keys() != expected.keys() or not isinstance(found["state"], dict):
        return [f"{name} is no state of an optimizer, which has {' and '.join(sorted(expected))}"]
    groups, usual_groups = (_without_kernels(state["param_groups"]) for state in (found, expected))
    lines = differences(groups, usual_groups, f"{name}.param_groups")
    for key in expected.keys() - {"state", "param_groups"}:  # such as the generator of timm's kron
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
    """Return lines on where a training state differs in structure from that of a session.

    found, own: as `loop.Session.state_dict` returns it. Optimizer states are compared with what the optimizers save.
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
    """Return what counts as the type of a value: an OrderedDict is a dictionary, an integer may stand for a float."""
    return dict if isinstance(value, dict) else float if type(value) is int else type(value)


def _kind(value) -> str:
    return f"a {type(value).__name__}"
