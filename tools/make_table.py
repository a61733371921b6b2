"""Make a table of run records: mean and standard deviation over seeds, and the published results."""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std import config  # noqa: E402
from pycls_std.core.regular import replace_text  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.results.columns import GROUPS  # noqa: E402
from pycls_std.results.read import find_runs  # noqa: E402
from pycls_std.results.render import FORMATS, link_from  # noqa: E402
from pycls_std.results.table import SELECTIONS, aggregate  # noqa: E402


@streams.program("make_table.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 no run is finished, 2 a folder or a config is invalid."""
    parser = argparse.ArgumentParser(prog="make_table.py", description=__doc__)
    parser.add_argument("folders", nargs="*", help="folders with run records, such as logs/cifar10-jpeg_std or runs")
    parser.add_argument(
        "--expect", nargs="+", default=[], metavar="CONFIG", help="configs that have a row even if not yet run"
    )
    parser.add_argument("--baseline", default="", metavar="ROW", help="name of the row to compare the others with")
    parser.add_argument("--apart", nargs="+", default=[], metavar="ROW", help="not compared, such as teachers")
    parser.add_argument(
        "--selection", choices=SELECTIONS, default=SELECTIONS[0], help="epoch whose scores are compared"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME", help=f"{', '.join(GROUPS)}, all")
    parser.add_argument("--link-from", type=Path, metavar="FILE", help="link seeds to their records, as seen from it")
    parser.add_argument("--format", choices=FORMATS, default="md")
    parser.add_argument("--out", metavar="FILE", help="write here instead of to the terminal")
    args = parser.parse_intermixed_args(argv)
    if not args.folders and not args.expect:
        parser.error("name a folder with run records, or configs with --expect")
    try:
        runs = find_runs(args.folders)
        expected = [config.flatten(config.load(path)) for path in args.expect]
        table = aggregate(runs, expected, baseline=args.baseline, selection=args.selection, apart=tuple(args.apart))
    except (ValueError, OSError) as error:
        streams.complain(f"make_table.py: {one_line(error)}")
        return 2
    try:
        text = FORMATS[args.format](table, args.columns, args.link_from and link_from(args.link_from))
        replace_text(args.out, text) if args.out else print(text, end="")
    except (ValueError, OSError) as error:
        streams.complain(f"make_table.py: {one_line(error)}")
        return 2
    for run in runs:
        if run.status != "finished":
            streams.complain(f"make_table.py: warning: {run.folder}: {run.status}")
    return 1 if runs and all(run.status != "finished" for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
