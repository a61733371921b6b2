"""Time make_table.py, as a process, against the same tool with tensorboard's EventAccumulator as the reader.

The runs are synthetic: 5 configs with 10 seeds each, 300 epochs with 20 values. The goal is 2 s on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from pycls_std.core.interleaved import interleaved, report  # noqa: E402

CONFIGS = (
    *("mixer/mixer-s4_c100_base", "std/mixer-s4_c100_single", "std/mixer-s4_c100_multi"),
    *("std/mixer-s4_c100_inter", "std/mixer-s4_c100_paper"),
)
GOAL = 2.0  # seconds


def write_runs(folder: Path, *, runs: int, epochs: int, tags: int) -> None:
    """Write records of finished runs, a seed of each config in turn: options, run.json and events, as a run does."""
    from pycls_std import config  # here, so that the timed process imports only what it uses
    from pycls_std.run.journal import Journal

    names = ["test/top1", "test/top5", *(f"train/value{i}" for i in range(tags - 2))]
    for number in range(runs):
        seed, kind = divmod(number, len(CONFIGS))
        path = ROOT / "configs" / f"{CONFIGS[kind]}.yaml"
        options = config.load(
            str(path), ["SEED", str(seed), "OPTIM.MAX_EPOCH", str(epochs), "OPTIM.WARMUP_EPOCHS", "0"]
        )
        run = folder / options.NAME / f"seed{seed}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config.dump(options))
        facts = {"starts": [{"epochs_done": 0, "epochs": epochs}], "epochs": epochs, "status": "finished"}
        (run / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
        lines = [
            {"epoch": done, "time": 1e9 + done, "run/epochs": epochs}
            | {name: (done * 7 + seed + i) % 97 / 3 for i, name in enumerate(names)}
            for done in range(1, epochs + 1)
        ]
        Journal(run, config.dump(options), lines)


def table_by_tensorboard(folder: str) -> int:
    """Run make_table.py with its original reader."""
    from pycls_std.results import events, read
    from tools import make_table

    read.read_events = events.read_by_tensorboard
    return make_table.main([folder])


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0, or 1 if the two tables differ."""
    parser = argparse.ArgumentParser(prog="tables.py", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--tags", type=int, default=20, help="values of an epoch, at least 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accumulator", metavar="FOLDER", help=argparse.SUPPRESS)  # the process to compare with
    args = parser.parse_args(argv)
    if args.accumulator:
        return table_by_tensorboard(args.accumulator)
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder), runs=args.runs, epochs=args.epochs, tags=args.tags)
        commands = {
            "EventAccumulator": [sys.executable, __file__, "--accumulator", folder],
            "make_table.py": [sys.executable, str(ROOT / "tools" / "make_table.py"), folder],
        }
        tables = {}

        def way(name):
            tables[name] = subprocess.run(commands[name], capture_output=True, text=True, check=True).stdout

        seconds = interleaved({name: partial(way, name) for name in commands}, rounds=args.rounds)
    print("\n".join(report(seconds)))
    own = seconds["make_table.py"]
    verdict = f"{'meets' if median(own) < GOAL else 'misses'} {GOAL:g} s"
    print(f"{args.runs} runs, {args.epochs} epochs, {args.tags} tags: {min(own):.2f} to {max(own):.2f} s, {verdict}")
    return 0 if tables["EventAccumulator"] == tables["make_table.py"] else 1


if __name__ == "__main__":
    sys.exit(main())
