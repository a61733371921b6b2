"""Train, test, measure or describe a model: parse the command line, check the options, dispatch."""

import argparse
import logging
import sys
from contextlib import nullcontext

from pycls_std import config
from pycls_std.process import signals
from pycls_std.process.errors import one_line
from pycls_std.process.launch import launch
from pycls_std.run.lock import locked

# What gloo and NCCL say when another process has ended.
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
MODES = {
    "train": "train a student and record the run in OUT_DIR; continues where an interrupted run stopped",
    "test": "score the checkpoint TEST.WEIGHTS on the test split",
    "check": "try a run in small before it starts: data, teachers, loss terms, checkpoint, two processes",
    "info": "print parameters, operations and taps of the student and its teachers",
    "time": "print images/s of data, forward passes and steps beside eager fp32 ones, memory, profile",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return mode, cfg and overrides; flags may stand anywhere."""
    parser = argparse.ArgumentParser(
        prog="run_net.py",
        description="A runner for knowledge distillation of vision MLPs and tiny transformers.",
        epilog="modes:\n" + "\n".join(f"  {name:6s} {text}" for name, text in MODES.items()) + "\n\n"
        "Options, their units, what turns them off: pycls_std/config/page.py, and OPTIONS in pycls_std/terms/*.py and "
        "pycls_std/trainers/*.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mode", required=True, choices=MODES, help="what to do")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of options; see configs/")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE | KEY=VALUE", help="options that replace the file's")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the run failed, 2 usage or configuration, 130 and 143 stopped by a signal."""
    args = parse(argv)
    signals.install()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("pycls_std").setLevel(logging.WARNING if launch().rank else logging.INFO)
    logging.raiseExceptions = False  # a reader that has seen enough, such as head, is no error
    try:
        cfg = config.load(args.cfg, args.overrides)
        trains = args.mode == "train" and launch().rank == 0
        with locked(config.out_dir(cfg)) if trains else nullcontext():
            from pycls_std import runner  # here, since torch takes seconds to import

            runner.run(args.mode, cfg)
    except config.ConfigError as error:
        return complain(error, 2)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if args.traceback:
            raise
        return complain(error, 1)
    except signals.Stopped as stopped:
        return complain(stopped, stopped.code)
    return 0


def complain(error: BaseException, code: int) -> int:
    """Print one line about an error; return the exit code."""
    summary = one_line(error)
    hint = " (--traceback shows where)" if isinstance(error, RuntimeError) else ""
    if "DataLoader worker (pid" in summary:
        summary = summary.rstrip(".")
        hint = "; often memory ran out, of the machine or of /dev/shm: try a smaller DATA.NUM_WORKERS"
    if any(text in summary for text in LOST):
        summary, hint = "the connection to another process of this run was lost, its own message says why", ""
    rank = launch().rank
    process = f" [process {rank}]" if rank else ""
    print(f"run_net.py{process}: {summary}{hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
