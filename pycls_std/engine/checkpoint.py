"""Checkpoint files: written atomically, read without running code from them."""

import hashlib
import io
import math
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from torch import nn

from pycls_std.core.regular import read_bytes
from pycls_std.core.text import printable
from pycls_std.engine import files
from pycls_std.engine.structure import differences, refuse, refuse_unreadable

FORMAT = 5  # of the training state; runs with another one are not resumed
# Entries that are read from a checkpoint of this runner, with their types, see `structure.refuse_other_kind`: to test
# it or use it as a teacher; to resume from it, in addition to the training state.
TAUGHT: dict[str, Any] = {
    "config": str,
    "student": {...: torch.Tensor},
    "ema": {...: torch.Tensor},
    "data": {"classes": [str], "mean": [float], "std": [float]},
}
RESUMED = TAUGHT | {
    "processes": int,
    "threads": int,
    "epoch": int,
    "teachers": [str],
    "data": TAUGHT["data"] | {"name": str, "images": [int], "memory": bool},
    "journal": [{...: (int, float)}],
    "events": str,
    "record": {"starts": [dict]},
    "best": {...: (int, float)},  # empty before the first evaluation
    "seconds": [float],
}


class Damaged(ValueError):
    """A file is not a checkpoint, or is corrupt, as its checksum or its structure shows."""


def packed(state: dict) -> memoryview:
    """Return a state of tensors, numbers, strings, lists and dictionaries, serialized.

    Raises ValueError that names the entry for anything else, which could not be read back.
    """
    refuse_unreadable(state)
    buffer = io.BytesIO()  # torch's own writing to a file does not say why it failed
    torch.save({"format": FORMAT, **state}, buffer)
    return buffer.getbuffer()


def save(state: dict, path: Path) -> None:
    """Write a state to a file, replacing it atomically.

    Raises what `packed` does, and OSError that names the path if it cannot be written; the file is then unchanged.
    """
    files.write(path, packed(state))


def read(path: Path) -> dict:
    """Return the content of a file, on the CPU: of torch.save, or safetensors by its extension. No code in it is run.

    Raises Damaged that names the path if the file is damaged or holds more than weights; ValueError if it does not
    exist; OSError if it cannot be read at all, for example for lack of memory, which says nothing about the file.
    """
    content = read_whole(path)
    if path.suffix == ".safetensors":
        return _safetensors(path, content)
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickles without weights, reported below
            state = torch.load(content, map_location="cpu", weights_only=True)
    except (MemoryError, OSError, RuntimeError) as error:
        if not _shows_damage(error):
            raise unreadable(path, error) from error
        reason = str(error).splitlines()[0].partition(". ")[0]  # general advice follows
    except Exception as error:  # a pickle of something else may raise anything, text such as the code of a letter
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if not zipfile.is_zipfile(content):
            reason = "it is no file of weights"
        if "weights_only" in str(error).lower():
            raise Damaged(f"checkpoint {path} {_more_than_weights(path, content, error)}") from error
    else:
        if isinstance(state, dict) and type(state.get("format", 0)) is int:
            return state
        kind = type(state).__name__
        reason = "its format is no number" if isinstance(state, dict) else f"it holds a {kind}"
    raise Damaged(f"checkpoint {path} is corrupt or no checkpoint: {printable(reason)}")


def _more_than_weights(path: Path, content: io.BytesIO, error: Exception) -> str:
    """Return in words why a file is refused although it may be intact, and what to do about it."""
    if not zipfile.is_zipfile(content):
        return (
            "is corrupt or no checkpoint: it is no file of weights, or holds more than weights; if torch before 1.6 "
            "wrote it, load it there, and save its weights alone"
        )
    kind = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
    return f"holds more than weights{f' ({kind[1]})' if kind else ''}; {importing(path)}"


def importing(path: Path | str, options: str = "") -> str:
    """Return a hint on how to make a plain file of weights from one that holds more. options: of the command."""
    checkout = Path(__file__).parents[2] / "tools" / "import_weights.py"
    tool = "-m pycls_std.tools.import_weights"  # where the package is installed without its checkout
    if checkout.is_file():
        here = Path("tools/import_weights.py")
        tool = str(here) if here.is_file() and here.samefile(checkout) else shlex.quote(str(checkout))
    return f"python {tool} {shlex.quote(str(path))} NEW.pt{options} makes a plain one of it, and runs nothing in it"


def _safetensors(path: Path, content: io.BytesIO) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(content.getvalue())
    except MemoryError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # of an invalid header: safetensors' own error, or that of a missing dtype
        reason = printable((str(error) or type(error).__name__).splitlines()[0])
        raise Damaged(f"checkpoint {path} is corrupt or no checkpoint: {reason}") from error


def read_whole(path: Path) -> io.BytesIO:
    """Return the content of a file of torch.save after checking its checksums, which torch.load does not.

    A file from before 2020, which is not a zip archive, has none. Raises what `read` raises.
    """
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        content = io.BytesIO(read_bytes(path))
        reason = _damage(content)
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error
    if reason:
        raise Damaged(f"checkpoint {path} is corrupt or no checkpoint: {printable(reason)}")
    content.seek(0)
    return content


def unreadable(path: Path, error: Exception) -> OSError:
    """Return an error that names a file, and why it could not be read."""
    reason = getattr(error, "strerror", None) or str(error) or "there is not enough memory"
    return OSError(f"{path} could not be read: {reason.splitlines()[0]}")


def _damage(content: io.BytesIO) -> str:
    """Return what is damaged in a zip archive of torch.save, "" if nothing is, and for other files."""
    if not zipfile.is_zipfile(content):
        return ""
    try:
        with zipfile.ZipFile(content) as archive:
            names = archive.namelist()
            part = archive.testzip()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a damaged directory, or an unknown compression method
        return (str(error) or type(error).__name__).splitlines()[0]
    if part is not None:
        return f"its part {part} is not what was written"
    return "" if any(name.endswith("data.pkl") for name in names) else "it is a zip archive of something else"


def _shows_damage(error: Exception) -> bool:
    """Return whether an error of torch.load is due to the file, and not to the machine: memory, threads."""
    text = str(error)
    legacy = "magic number" in text or "corrupt" in text
    return ("PytorchStreamReader" in text or legacy) and "alloc" not in text


def load_weights(module: nn.Module, weights: dict, source: str) -> None:
    """Load weights into a module, strictly.

    Raises ValueError that names the source and up to 10 keys that are missing, unexpected, of another shape, or not
    floating-point where the module's are; and if a value is not finite.
    """
    refuse(differences(weights, module.state_dict()), source, "the model")
    own = module.state_dict()
    broken = [key for key, value in weights.items() if not value.to(own[key].dtype).isfinite().all()]
    if broken:
        raise ValueError(f"{source} holds numbers that are not finite: {', '.join(broken[:5])}")
    module.load_state_dict(weights)


def tensors(state, path: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors in nested dictionaries and lists, by their path."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {key: value for name, inner in pairs for key, value in tensors(inner, f"{path}.{name}".strip(".")).items()}


def refuse_not_finite(state, when: str) -> None:
    """Raise FloatingPointError that says when, and names tensors in nested dictionaries and lists that are not finite.

    Tensors of the same device and dtype are checked together, in a few operations.
    """
    alike: dict[tuple, dict[str, torch.Tensor]] = {}
    for name, value in tensors(state).items():
        if value.is_floating_point() and value.numel():
            alike.setdefault((value.device, value.dtype), {})[name] = value
    broken = []
    for part in alike.values():
        greatest = torch.stack(torch._foreach_norm(list(part.values()), math.inf))  # not finite if one number is not
        broken += [name for name, good in zip(part, greatest.isfinite().tolist(), strict=True) if not good]
    if broken:
        raise FloatingPointError(f"not finite {when}: {', '.join(broken[:5])}")


def fingerprint(module: nn.Module, args: Mapping = MappingProxyType({})) -> str:
    """Return the SHA-256 of a module's weights and buffers, and of its constructor's arguments, if given."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    if args:
        digest.update(repr(sorted(args.items())).encode())
    return digest.hexdigest()
