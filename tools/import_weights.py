"""Turn a published checkpoint that holds more than weights into a plain file of weights.

run_net.py reads weights only. Many published files also hold objects of the program that wrote them (its options, its
optimizer), which Python would build by running code from the file. This tool runs none either: it puts an empty
stand-in in the place of every such object, keeps the tensors, and says what it dropped.
"""

import argparse
import io
import pickle
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from pycls_std.engine import files  # noqa: E402

# What tensors and dictionaries of tensors are made of. All else becomes a stand-in.
HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.serialization", "_get_layout"),
}


class StandIn:
    """Takes whatever a pickle does to an object, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        """Drop an item."""

    def extend(self, items):
        """Drop items."""


def reader(dropped: set[str]) -> types.ModuleType:
    """Return a pickle module for torch.load that builds tensors and plain values alone, and notes what it dropped."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            storage = module in ("torch", "torch.storage") and name.endswith("Storage")
            dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if (module, name) in HARMLESS or storage or dtype:
                return super().find_class(module, name)
            dropped.add(f"{module}.{name}")
            return StandIn

    def load(file, **options):
        return Unpickler(file, **options).load()

    module = types.ModuleType("tensors_only")
    module.Unpickler, module.load, module.UnpicklingError = Unpickler, load, pickle.UnpicklingError
    return module


def weights_in(path: Path, key: str) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return the weights of a file, and the names of the classes of what was dropped.

    key: entry that holds the weights, such as model or state_dict; "" = the file's only dictionary of tensors.
    Raises ValueError that names the path if it cannot be read or the entry is not there.
    """
    dropped: set[str] = set()
    try:
        content = torch.load(path, map_location="cpu", pickle_module=reader(dropped), weights_only=False)
    except Exception as error:  # a damaged pickle raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error
    content = content if isinstance(content, dict) else {}
    entries = {name: _tensors(entry) for name, entry in {"": content, **content}.items() if isinstance(entry, dict)}
    found = {name: tensors for name, tensors in entries.items() if tensors}
    if key not in found and key:
        raise ValueError(f"{path} has no weights under {key!r}; it has some under {sorted(found)}")
    if not key and len(found) != 1:
        raise ValueError(
            f"{path} has weights under {sorted(found)}: choose with --key" if found else f"{path} has none"
        )
    return found[key or next(iter(found))], dropped


def _tensors(entry: dict) -> dict[str, torch.Tensor]:
    return {str(name): value.detach() for name, value in entry.items() if isinstance(value, torch.Tensor)}


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the file cannot be read or written."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="import_weights.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("source", type=Path, help="a published checkpoint")
    parser.add_argument("target", type=Path, help="the file of weights to write, for DISTILLATION.TEACHER_WEIGHTS")
    parser.add_argument("--key", default="", help="entry that holds the weights, where there are several")
    args = parser.parse_args(argv)
    try:
        if args.target.exists():
            raise ValueError(f"{args.target} is there already")
        weights, dropped = weights_in(args.source, args.key)
        save(weights, args.target)
    except (ValueError, OSError) as error:
        print(f"import_weights.py: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: {len(weights)} tensors, {sum(w.numel() for w in weights.values())} values")
    if dropped:
        print(f"dropped, without running it: {', '.join(sorted(dropped))}")
    return 0


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights to a file whole. Raises OSError that names it if it cannot be written."""
    buffer = io.BytesIO()
    torch.save({name: value.clone() for name, value in weights.items()}, buffer)
    files.write(path, buffer.getbuffer())


if __name__ == "__main__":
    sys.exit(main())
