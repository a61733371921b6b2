"""Convert a published checkpoint that contains more than weights to a plain file of weights.

run_net.py reads weights only. Many published files also contain objects of the program that wrote them (its options,
its optimizer), which Python would build by running code from the file. This tool runs none either: torch reads the file
as weights only, with an empty stand-in for every other class, and the tool lists what was dropped.
With --source and --cfg the weights are renamed from another program's names to those of the config's student; all of
its weights must be present, in its shapes, and unused ones of the file are listed. Sources:
"""

import argparse
import io
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std.builders.plain_weights import WRAPPERS  # noqa: E402
from pycls_std.core.text import first_of, printable  # noqa: E402
from pycls_std.engine import files  # noqa: E402
from pycls_std.engine.checkpoint import read_whole, unreadable  # noqa: E402
from pycls_std.models import published_names  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.ending import leave  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402


class StandIn:
    """Stands in for any class of a file, and ignores everything that is done to it."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass


def weights_in(path: Path, key: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the weights of a file, and the names of the dropped classes.

    key: entry with the weights, such as model or state_dict; "" = the first of WRAPPERS in the file, otherwise its only
    dictionary of tensors.
    Raises ValueError that names the path if it is damaged, cannot be read or lacks the entry.
    """
    source = read_whole(path)  # verifies its checksums, which torch does not
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
    if isinstance(content, StandIn):
        raise ValueError(f"{path} is a whole object, as a model is; where its code is, save its state_dict()")
    content = {str(name): entry for name, entry in content.items()} if isinstance(content, dict) else {}
    entries = {name: _tensors(entry) for name, entry in {"": content, **content}.items() if isinstance(entry, dict)}
    found = {name: tensors for name, tensors in entries.items() if tensors}
    if key not in found and key:
        raise ValueError(f"{path} has no weights under {key!r}; it has some under {sorted(found)}")
    if not key and len(found) > 1 and (key := next((name for name in WRAPPERS if name in found), "")):
        print(f"the weights are those under {key}, it has some under {first_of(found)}: --key chooses")
    if not key and len(found) != 1:
        there = f"weights under {sorted(found)}: choose with --key" if found else f"no weights, but {dropped}"
        raise ValueError(f"{path} has {there}")
    name = key or next(iter(found))
    if lost := [weight for weight, value in (content[name] if name else content).items() if isinstance(value, StandIn)]:
        raise ValueError(
            f"{path}: {first_of(map(str, lost))} among the weights is of a kind that cannot be kept: {dropped}"
        )
    return found[name], dropped


def of_source(weights: dict[str, torch.Tensor], source: str, path: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return weights by the names of a config's student, and the names of unused ones.

    source: a name of `published_names.SOURCES`. path: of the config. With source `std` they include the tokens, if the
    config has some; otherwise they are the backbone's. Raises ValueError for an unknown source, an invalid config, and
    weights that do not fit.
    """
    from pycls_std import config  # here, and below, since these take seconds to import
    from pycls_std.builders.data import build_task
    from pycls_std.builders.method import build_backbone, build_student, describe_run
    from pycls_std.builders.models import find_pretrained

    if source not in published_names.SOURCES:
        raise ValueError(f"--source is {source!r}, the sources are {', '.join(published_names.SOURCES)}")
    if not path:
        raise ValueError(f"--source {source} needs --cfg, the config of the model that the weights are of")
    options = config.load(path)
    if not options.MODEL.NUM_CLASSES:
        raise ValueError(f"{path}: MODEL.NUM_CLASSES is 0, expected the number of classes that the weights are for")
    task = build_task(options, options.MODEL.NUM_CLASSES)
    run = describe_run(options, task, weights=find_pretrained(options, fetch=False, start=False).teachers)
    with torch.device("meta"):
        student = build_student(options, build_backbone(options, task.classes), run)
    if source != "std" or "std" not in student.branches:
        return published_names.renamed(source, weights, student.backbone.state_dict())
    state = student.state_dict()
    branch: Any = student.branches["std"]  # a `Branch`; a ModuleDict is typed as holding modules
    places = {name.removeprefix("backbone."): name for name in state}
    target = {bare: state[name] for bare, name in places.items()}
    found, unused = published_names.renamed(source, weights, target, taps=branch.taps)
    return {places[bare]: value for bare, value in found.items()}, unused


def _tensors(entry: dict) -> dict[str, torch.Tensor]:
    return {str(name): value.detach() for name, value in entry.items() if isinstance(value, torch.Tensor)}


@streams.program("import_weights.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the file cannot be read or written."""
    formatter = argparse.RawDescriptionHelpFormatter
    known = "\n".join(f"  {name:22} {files_of}" for name, (files_of, _) in published_names.SOURCES.items())
    text = f"{__doc__}{known}"
    parser = argparse.ArgumentParser(prog="import_weights.py", description=text, formatter_class=formatter)
    parser.add_argument("file", type=Path, help="a published checkpoint")
    parser.add_argument("target", type=Path, help="the file of weights to write, for DISTILLATION.TEACHER_WEIGHTS")
    parser.add_argument("--key", default="", help="entry that holds the weights, where there are several")
    parser.add_argument("--source", default="", help="program whose names the weights have, see above")
    parser.add_argument("--cfg", default="", help="config of the model that the weights are of, for --source")
    args = parser.parse_args(argv)
    try:
        if args.target.exists():
            raise ValueError(f"{args.target} is there already")
        weights, dropped = weights_in(args.file, args.key)
        unused: list[str] = []
        if args.source or args.cfg:
            weights, unused = of_source(clean_state_dict(weights), args.source, args.cfg)
        save(weights, args.target)
    except (ValueError, OSError, MemoryError) as error:
        streams.complain(f"import_weights.py: {one_line(error)}")
        return 1
    print(f"{args.target}: {len(weights)} tensors, {sum(w.numel() for w in weights.values())} values")
    if dropped:
        print(f"dropped, without running it: {printable(', '.join(sorted(dropped)))}")
    if unused:
        print(f"unused: {len(unused)} tensors: {printable(', '.join(unused))}")
    return 0


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights to a file atomically. Raises OSError that names it if it cannot be written."""
    buffer = io.BytesIO()
    torch.save({name: value.clone() for name, value in weights.items()}, buffer)
    files.write(path, buffer.getbuffer())


if __name__ == "__main__":
    leave(main())
