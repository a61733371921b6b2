"""Analyze the predictions of runs: scores of each head, agreement with teachers, significance of differences.

A run needs predictions.npz, which `--mode test` writes (TEST.PREDICTIONS), or analysis.json, which --save writes.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std import config  # noqa: E402
from pycls_std.core import prediction_file  # noqa: E402
from pycls_std.core.regular import replace_text  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.results import analysis, comparison  # noqa: E402
from pycls_std.results.read import read_run  # noqa: E402


@streams.program("analyze.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 a run cannot be analysed or compared, and nothing is printed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="analyze.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("runs", nargs="+", help="run records, such as runs/mixer-nano_c10jpeg_multi/seed0")
    parser.add_argument("--baseline", metavar="RUN", help="run to compare with, image by image")
    parser.add_argument("--format", choices=comparison.FORMATS, default="md")
    parser.add_argument("--out", metavar="FILE", help="write here instead of to the terminal")
    parser.add_argument("--save", action="store_true", help="write RUN/analysis.json, a small file, for each run")
    args = parser.parse_intermixed_args(argv)
    try:
        found = {run: analysis_of(Path(run)) for run in args.runs}
        base = analysis_of(Path(args.baseline)) if args.baseline else None
        entries = [comparison.entry(run, own, args.baseline, base) for run, own in found.items()]
        if args.save:
            for run, own in found.items():
                analysis.write(own, Path(run) / analysis.ANALYSIS)
        text = comparison.FORMATS[args.format](entries)
        replace_text(args.out, text) if args.out else print(text, end="")
    except (ValueError, OSError, MemoryError) as error:
        streams.complain(f"analyze.py: {one_line(error)}")
        return 2
    return 0


def analysis_of(run: Path) -> dict:
    """Return the analysis of a run, from its predictions if they exist, otherwise from its analysis.json.

    Raises ValueError for a run that has neither, and the errors of `prediction_file.read` and `analysis.read`.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: there is no such folder")
    if (run / prediction_file.PREDICTIONS).exists():
        return analysis.analyze(prediction_file.read(run / prediction_file.PREDICTIONS))
    if (run / analysis.ANALYSIS).exists():
        return analysis.read(run / analysis.ANALYSIS)
    task, kept = read_run(run).options.get("TASK.NAME", "classification"), Path(prediction_file.PREDICTIONS)
    declaration = config.Catalogue().tasks.get(task)
    if not declaration or declaration.attributes["KEEPS"] != kept.suffix:
        raise ValueError(f"{run} is a run of TASK.NAME {task}, analyze.py reads the logits of classifiers")
    raise ValueError(
        f"{run} has neither {prediction_file.PREDICTIONS} nor {analysis.ANALYSIS}, make it with: python run_net.py "
        f"--mode test --cfg {run}/config.yaml TEST.WEIGHTS={run}/checkpoints/best.pt "
        f"TEST.PREDICTIONS={run}/{prediction_file.PREDICTIONS}"
    )


if __name__ == "__main__":
    sys.exit(main())
