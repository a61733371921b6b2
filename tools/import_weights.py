"""Turn a published checkpoint that holds more than weights into a plain file of weights.

run_net.py reads weights only. Many published files also hold objects of the program that wrote them (its options, its
optimizer), which Python would build by running code from the file. This tool runs none either: torch reads the file as
weights only, with an empty stand-in in the place of every other class, and the tool says what was dropped.
With --model vidt_swin_nano, the names of the weights become those of this project's model, which has fewer than the
file.
"""

import argparse
import io
import sys
import warnings
import zipfile
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import pycls_std.models  # noqa: E402, F401  (registers the models)
from pycls_std.core.registry import BACKBONES  # noqa: E402
from pycls_std.core.text import first_of, printable  # noqa: E402
from pycls_std.engine import files  # noqa: E402
from pycls_std.engine.checkpoint import read_whole, unreadable  # noqa: E402
from pycls_std.models.contract import adopted  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402


class StandIn:
    """Takes whatever a file does to an object, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass


def weights_in(path: Path, key: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the weights of a file, and the names of the classes of what was dropped.

    key: entry that holds the weights, such as model or state_dict; "" = the file's only dictionary of tensors.
    Raises ValueError that names the path if it is damaged, cannot be read or the entry is not there.
    """
    source = read_whole(path)  # with its checksums, which torch does not look at
    try:
        zipped = zipfile.is_zipfile(source)
        source.seek(0)
        dropped = get_unsafe_globals_in_checkpoint(source) if zipped else []
        source.seek(0)
        with safe_globals([(StandIn, name) for name in dropped]), warnings.catch_warnings(action="ignore"):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except (MemoryError, OSError) as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged pickle raises anything
        text = str(error)
        reason = (
            text.splitlines()[0] if text and "weights_only" not in text else "it is no zip of tensors by torch.save"
        )
        raise ValueError(f"{path} cannot be read: {reason}") from error
    content = {str(name): entry for name, entry in content.items()} if isinstance(content, dict) else {}
    entries = {name: _tensors(entry) for name, entry in {"": content, **content}.items() if isinstance(entry, dict)}
    found = {name: tensors for name, tensors in entries.items() if tensors}
    if key not in found and key:
        raise ValueError(f"{path} has no weights under {key!r}; it has some under {sorted(found)}")
    if not key and len(found) != 1:
        there = f"weights under {sorted(found)}: choose with --key" if found else f"no weights, but {dropped}"
        raise ValueError(f"{path} has {there}")
    name = key or next(iter(found))
    if lost := [weight for weight, value in (content[name] if name else content).items() if isinstance(value, StandIn)]:
        raise ValueError(
            f"{path}: {first_of(map(str, lost))} among the weights is of a kind that cannot be kept: {dropped}"
        )
    return found[name], dropped


def renamed(weights: dict[str, torch.Tensor], model: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return weights by the names of a model of this project, and the names of those that it has no use for.

    Raises ValueError for a model that has no other names, and for weights that are not all of it.
    """
    if model not in BACKBONES:
        raise ValueError(f"--model is {model!r}, no model of this project")
    with torch.device("meta"):
        found = adopted(BACKBONES.get(model)(num_classes=1, image_size=224), weights)
    if not found:
        raise ValueError(f"{first_of(weights)} are no published names of {model}")
    if found.new:
        raise ValueError(
            f"the weights are not all of {model}, {first_of(found.new)}; MODEL.WEIGHTS reads them as they are"
        )
    return found.state, found.unused


def _tensors(entry: dict) -> dict[str, torch.Tensor]:
    return {str(name): value.detach() for name, value in entry.items() if isinstance(value, torch.Tensor)}


@streams.program("import_weights.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the file cannot be read or written."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="import_weights.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("source", type=Path, help="a published checkpoint")
    parser.add_argument("target", type=Path, help="the file of weights to write, for DISTILLATION.TEACHER_WEIGHTS")
    parser.add_argument("--key", default="", help="entry that holds the weights, where there are several")
    parser.add_argument("--model", default="", help="model of this project whose names the weights take")
    args = parser.parse_args(argv)
    try:
        if args.target.exists():
            raise ValueError(f"{args.target} is there already")
        weights, dropped = weights_in(args.source, args.key)
        weights, unused = renamed(weights, args.model) if args.model else (weights, [])
        save(weights, args.target)
    except (ValueError, OSError, MemoryError) as error:
        streams.complain(f"import_weights.py: {one_line(error)}")
        return 1
    print(f"{args.target}: {len(weights)} tensors, {sum(w.numel() for w in weights.values())} values")
    if dropped:
        print(f"dropped, without running it: {printable(', '.join(sorted(dropped)))}")
    if unused:
        print(f"unused: {len(unused)} tensors: {first_of(unused)}")
    return 0


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights to a file whole. Raises OSError that names it if it cannot be written."""
    buffer = io.BytesIO()
    torch.save({name: value.clone() for name, value in weights.items()}, buffer)
    files.write(path, buffer.getbuffer())


if __name__ == "__main__":
    sys.exit(main())
