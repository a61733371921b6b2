"""Checkpoint files: written whole or not at all, read without running code from them."""

import hashlib
import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from pycls_std.engine import files

FORMAT = 4  # of the training state; another one is not continued from


def save(state: dict, path: Path, **options) -> None:
    """Write a state of tensors, numbers, strings, lists and dictionaries to a file, replacing it in one step.

    options: see `files.write`.
    Raises OSError that names the path if it cannot be written; the file is then as it was.
    """
    buffer = io.BytesIO()  # torch's own writing to a file does not say why it failed
    torch.save({"format": FORMAT, **state}, buffer)
    files.write(path, buffer.getbuffer(), **options)


def read(path: Path) -> dict:
    """Return what a file holds, on the CPU. No code in it is run.

    Raises ValueError that names the path if the file is absent, damaged or holds more than weights, and OSError if it
    cannot be read at all, which says nothing about the file.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise OSError(f"{path} could not be read: {error.strerror or error}") from error
    damaged = None
    try:
        if zipfile.is_zipfile(content):
            with zipfile.ZipFile(content) as archive:
                damaged = archive.testzip()  # torch.load does not notice a flipped bit in a tensor
        content.seek(0)
        with warnings.catch_warnings(action="ignore"):  # of pickles that are no weights, which is told below
            state = None if damaged else torch.load(content, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
        reason = f"its part {damaged} is not what was written" if damaged else f"it holds a {type(state).__name__}"
    except MemoryError:
        raise
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


def tensors(state, path: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors of a nest of dictionaries and lists, by their path in it."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {key: value for name, inner in pairs for key, value in tensors(inner, f"{path}.{name}".strip(".")).items()}


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
