"""Write an HTML page of run records: table, pictures, configs, and links to the runs; no server or network needed."""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.results.columns import GROUPS  # noqa: E402
from pycls_std.results.read import find_runs  # noqa: E402
from pycls_std.results.report import write_report  # noqa: E402
from pycls_std.results.table import SELECTIONS, aggregate  # noqa: E402


@streams.program("report.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 no run is finished, 2 a folder, a row or the file is invalid."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument("folders", nargs="+", help="folders with run records, such as logs/cifar10-jpeg_std or runs")
    parser.add_argument("--baseline", default="", metavar="ROW", help="name of the row to compare with")
    parser.add_argument("--apart", nargs="+", default=[], metavar="ROW", help="not compared, such as teachers")
    parser.add_argument(
        "--selection", choices=SELECTIONS, default=SELECTIONS[0], help="epoch whose scores are compared"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME", help=f"{', '.join(GROUPS)}, all")
    parser.add_argument("--title", help="by default the name of the first folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default report.html in the first folder")
    args = parser.parse_intermixed_args(argv)
    out = args.out or Path(args.folders[0]) / "report.html"
    try:
        runs = find_runs(args.folders)
        table = aggregate(runs, baseline=args.baseline, selection=args.selection, apart=tuple(args.apart))
        title = args.title or Path(args.folders[0]).resolve().name
        write_report(out, table, runs, title=title, notes=[], baseline=args.baseline, columns=args.columns)
    except (ValueError, OSError) as error:
        streams.complain(f"report.py: {one_line(error)}")
        return 2
    print(out)
    for run in runs:
        if run.status != "finished":
            streams.complain(f"report.py: warning: {run.folder}: {run.status}")
    return 1 if all(run.status != "finished" for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
