"""Time what a user waits for: --help, a mistake in the options, and the first step of the demo's first config.

They alternate with `python -c pass`, for comparison. The first step is detected by its progress line. After the warm-up
round, files are in the system's cache.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from pycls_std.core.interleaved import interleaved  # noqa: E402

RUNNER = [sys.executable, str(ROOT / "run_net.py")]
TRAIN = [*RUNNER, "--mode", "train", "--cfg"]
MISTAKE = [*TRAIN, str(ROOT / "configs/digits/mixer-nano_digits_base.yaml"), "OPTIM.NAM=x"]
DEMO = [*TRAIN, str(ROOT / "configs/digits/r-8_digits.yaml"), "LOG_PERIOD=1"]
GOALS = {"--help": 0.5, "a mistake": 0.5, "first step": 10.0}  # seconds


def finish(command: list[str], code: int) -> None:
    """Run a command to its end. Raises RuntimeError with its output if its exit code is not `code`."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{command} ended with {done.returncode}, expected {code}:\n{done.stdout}")


def first_step() -> None:
    """Start the demo's first run, and kill it after its first step. Raises RuntimeError if there is no such step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*DEMO, f"OUT_DIR={folder}/run"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            said = []
            assert process.stdout is not None  # it is a pipe
            for line in process.stdout:
                said.append(line)
                if line.startswith("epoch 1/") and "  1/" in line:
                    process.kill()
                    return
    raise RuntimeError(f"{command} took no step:\n{''.join(said)}")


def main(argv: list[str] | None = None) -> int:
    """Return the exit code, 0."""
    parser = argparse.ArgumentParser(prog="startup.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before, not counted")
    args = parser.parse_args(argv)
    ways = {
        "python -c pass": lambda: finish([sys.executable, "-c", "pass"], 0),
        "--help": lambda: finish([*RUNNER, "--help"], 0),
        "a mistake": lambda: finish(MISTAKE, 2),
        "first step": first_step,
    }
    for name, seconds in interleaved(ways, rounds=args.rounds, warmup=args.warmup).items():
        goal = GOALS.get(name)
        verdict = f"  {'meets' if median(seconds) < goal else 'misses'} {goal:g} s" if goal else ""
        print(f"{name:14s}  {median(seconds):6.3f} s ({min(seconds):.3f} to {max(seconds):.3f}){verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
