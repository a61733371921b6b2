"""Compare training steps with and without keeping freed memory, in alternating processes.

The student has random weights, the data is scikit-learn's digits, and a warm-up step is not timed. KEY=VALUE sets
options of the run.
"""

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

WORDS = ["DATA.NAME=digits", "MODEL.NUM_CLASSES=10", "DATA.LOADER=memory"]
WAYS = ("as it comes", "kept")


def steps(way: str, count: int, words: list[str]) -> float:
    """Return the median time of a training step in this process, in seconds."""
    from pycls_std import config
    from pycls_std.builders.training import build_all
    from pycls_std.engine import runtime
    from pycls_std.measure.speed import START, Steps

    if way == "as it comes":
        runtime.keep_freed_memory = lambda: None
    logging.getLogger("pycls_std").setLevel(logging.WARNING)
    cfg = config.load(str(ROOT / "configs/mixer/mixer-s4_c100_base.yaml"), [*WORDS, *words])
    session, *_ = build_all(cfg, runtime.Runtime(device="cpu", precision=cfg.PRECISION), fetch=False)
    own = Steps(session, session.task.batch(next(iter(session.train_loader)), START))
    own.step()
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        own.step()
        taken.append(time.perf_counter() - start)
    return median(taken)


def main(argv: list[str] | None = None) -> None:
    """Print both medians, and the median and range of the ratios of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)  # in a separate process
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(argv)
    if options.only:
        print(steps(options.only, options.steps, options.words))
        return

    def run(way):
        command = [sys.executable, __file__, "--only", way, "--steps", str(options.steps), *options.words]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    rounds = [[run(way) for way in WAYS] for _ in range(options.rounds)]
    for way, taken in zip(WAYS, zip(*rounds, strict=True), strict=True):
        print(f"{way:12s} {1e3 * median(taken):10.1f} ms a step")
    ratios = [before / after for before, after in rounds]
    print(f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
