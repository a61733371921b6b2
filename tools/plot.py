"""Draw pictures of run records: write one file per picture and format, and print its path."""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.results.picture_style import rendered  # noqa: E402
from pycls_std.results.plots import PICTURES, draw  # noqa: E402
from pycls_std.results.read import find_runs  # noqa: E402
from pycls_std.results.rows import rows_of  # noqa: E402


@streams.program("plot.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 there is nothing to draw, 2 a folder, a row or a path is invalid."""
    formatter = argparse.RawDescriptionHelpFormatter
    listed = "pictures:\n" + "".join(f"  {name:<12}{picture.title}\n" for name, picture in PICTURES.items())
    parser = argparse.ArgumentParser(prog="plot.py", description=__doc__, epilog=listed, formatter_class=formatter)
    parser.add_argument("folders", nargs="+", help="folders with run records, such as logs/cifar10-jpeg_std or runs")
    parser.add_argument("--what", nargs="+", choices=PICTURES, metavar="NAME", help="pictures, by default all below")
    parser.add_argument("--baseline", default="", metavar="ROW", help="name of the row to compare with")
    parser.add_argument("--out", type=Path, default=Path("plots"), metavar="DIR", help="folder to write to: plots")
    parser.add_argument("--format", nargs="+", choices=("png", "svg"), default=["png", "svg"], help="png svg")
    args = parser.parse_intermixed_args(argv)
    try:
        runs = find_runs(args.folders)
        figures = draw(rows_of(runs), baseline=args.baseline, names=args.what or [])
        if figures:
            args.out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for kind in dict.fromkeys(args.format):
                path = args.out / f"{name}.{kind}"
                path.write_bytes(rendered(figure, kind))
                print(path)
    except (ValueError, OSError) as error:
        streams.complain(f"plot.py: {one_line(error)}")
        return 2
    for run in runs:
        if run.status != "finished":
            streams.complain(f"plot.py: warning: {run.folder}: {run.status}")
    missing = [name for name in args.what or [] if name not in figures]
    for name in missing:
        needs = "; it needs --baseline ROW" if PICTURES[name].needs_baseline and not args.baseline else ""
        streams.complain(f"plot.py: no row has values for {name}{needs}")
    if not figures and not missing:
        streams.complain("plot.py: no run has values to draw")
    return 1 if missing or not figures else 0


if __name__ == "__main__":
    sys.exit(main())
