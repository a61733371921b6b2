"""Copy the parts of finished run records that tables need to logs/: options, cost, values, events, and the analysis."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std.config.checks import NAME  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.reproduce.state import is_whole  # noqa: E402
from pycls_std.results import analysis  # noqa: E402
from pycls_std.results.read import find_runs  # noqa: E402

SMALL = ("config.yaml", "run.json", "metrics.jsonl")
BEST = Path("checkpoints") / "best.pt"
MOST = 8  # maximum MB of copied weights


@streams.program("keep_run.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 a run is incomplete or its target exists, and nothing is copied."""
    parser = argparse.ArgumentParser(prog="keep_run.py", description=__doc__)
    parser.add_argument("table", help="folder to copy to, such as logs/cifar10-jpeg_std")
    parser.add_argument("runs", nargs="+", help="run records, such as runs/mixer-nano_c10jpeg_*")
    parser.add_argument("--weights", action="store_true", help=f"copy {BEST} too, of at most {MOST} MB")
    args = parser.parse_args(argv)
    names = (*SMALL, str(BEST)) if args.weights else SMALL
    places = {}
    try:
        for run in find_runs(args.runs):
            if not all(NAME.fullmatch(str(part)) for part in (run.name, run.seed)):
                raise ValueError(f"{run.folder}: its name {run.name!r} or its seed {run.seed!r} cannot name a folder")
            place = Path(args.table) / str(run.name) / run.seed
            missing = [name for name in names if not (run.folder / name).is_file()]
            if run.status != "finished" or missing:
                raise ValueError(f"{run.folder}: {', '.join(missing) + ' missing' if missing else run.status}")
            if not is_whole(run):
                raise ValueError(f"{run.folder}: run.json is of an unfinished run, which ended in its last record")
            if args.weights and not run.options.get("DATA.VAL_FRACTION"):
                raise ValueError(f"{run.folder}: --weights keeps {BEST}; without DATA.VAL_FRACTION last.pt teaches")
            if place.exists() or place in places:
                raise ValueError(f"{run.folder}: its place {place} is taken")
            size = (run.folder / BEST).stat().st_size / 1e6 if args.weights else 0
            if size > MOST:
                raise ValueError(f"{run.folder / BEST} has {size:.1f} MB, --weights keeps at most {MOST}")
            path = run.folder / analysis.ANALYSIS
            if path.exists():
                analysis.of_run(path, run.name, run.options["SEED"])
            places[place] = run.folder, (*names, path.name) if path.exists() else names
        done = []
        try:
            for place, (folder, names) in places.items():
                done.append(place)
                _copy(folder, place, names)
        except OSError:
            for place in done:
                shutil.rmtree(place, ignore_errors=True)
            raise
    except (ValueError, OSError) as error:
        streams.complain(f"keep_run.py: {one_line(error)}")
        return 2
    return 0


def _copy(folder: Path, place: Path, names: tuple[str, ...]) -> None:
    """Copy a record to its target folder atomically."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".kept-", dir=place.parent))
    try:
        for name in names:
            (beside / name).parent.mkdir(exist_ok=True)
            shutil.copy(folder / name, beside / name)
        for number, path in enumerate(sorted(folder.glob("*tfevents*"))):
            # renamed, without the host and the process id
            shutil.copy(path, beside / f"events.out.tfevents.{number:04d}")
        beside.chmod(0o755)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
