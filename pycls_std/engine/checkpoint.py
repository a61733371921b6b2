"""Checkpoint files: written whole or not at all, read without running code from them."""

import os
import zipfile
from pathlib import Path

import torch
from torch import nn

FORMAT = 1


def save(state: dict, path: Path) -> None:
    """Write a state of tensors, numbers, strings, lists and dictionaries to a file, replacing it in one step.

    Raises OSError that names the path if it cannot be written; the file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where a disk is full
        raise OSError(f"checkpoint {path} could not be written: {str(error).splitlines()[0]}") from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def read(path: Path) -> dict:
    """Return what a file holds, on the CPU. No code in it is run.

    Raises ValueError that names the path if the file is absent, damaged or holds more than weights.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    damaged = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not notice a flipped bit in a tensor
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
        reason = f"its part {damaged} is not what was written" if damaged else f"it holds a {type(state).__name__}"
    except Exception as error:  # torch.load raises whatever the damage leads to
        unsafe = "weights_only" in str(error).lower()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = "it is no file of weights, or holds more than weights" if unsafe else reason
    raise ValueError(f"checkpoint {path} is corrupt or no checkpoint: {reason}")


def load_weights(module: nn.Module, weights: dict, source: str) -> None:
    """Load weights into a module, strictly.

    Raises ValueError that names the source and up to 10 keys that are missing, unexpected or of another shape.
    """
    weights = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    own = module.state_dict()
    missing = [f"missing {key}" for key in own if key not in weights]
    unexpected = [f"unexpected {key}" for key in weights if key not in own]
    mismatched = [
        f"{key} is {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    differences = mismatched + missing + unexpected
    if differences:
        more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise ValueError(f"{source} does not fit the model: {'; '.join(differences[:10])}{more}")
    module.load_state_dict(weights)
