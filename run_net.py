"""Train, test, measure or describe a model: parse the command line, check the options, dispatch."""

import argparse
import logging
import signal
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

from pycls_std import __version__, config  # noqa: E402
from pycls_std.core.text import printable, shortened  # noqa: E402
from pycls_std.process import console, limits, signals, streams  # noqa: E402
from pycls_std.process.ending import leave  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.process.launch import launch  # noqa: E402
from pycls_std.run.lock import locked  # noqa: E402

# In the errors of gloo and NCCL when another process has ended.
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
PROGRAM = "pycls-std" if Path(sys.argv[0]).name == "pycls-std" else "run_net.py"  # as it was called
PATIENCE = 5.0  # seconds that ranks other than 0 wait before they report an error
MODES = {
    "train": "train a student and record the run in OUT_DIR; continues where an interrupted run stopped",
    "test": "score the checkpoint TEST.WEIGHTS on the images of TEST.SPLIT",
    "check": "try a run in small before it starts: data, teachers, loss terms, checkpoint, two processes",
    "info": "print parameters, operations and taps of the student and its teachers",
    "time": "print images/s of data, forward passes and steps beside eager fp32 ones, memory, profile",
}


class Parser(argparse.ArgumentParser):
    """Reports usage errors in messages of limited length without terminal control characters."""

    def error(self, message: str):
        """Print usage and message; exit with code 2."""
        super().error(printable(shortened(message, 400)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return mode, cfg and overrides; flags may stand anywhere."""
    parser = Parser(
        prog=PROGRAM,
        description="A runner for knowledge distillation of vision MLPs and tiny transformers.",
        epilog="modes:\n" + "\n".join(f"  {name:6s} {text}" for name, text in MODES.items()) + "\n\n"
        "Options, their units, what turns them off: pycls_std/config/page.py, and OPTIONS in pycls_std/terms/*.py and "
        "pycls_std/trainers/*.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pycls-std {__version__}")
    parser.add_argument("--mode", required=True, choices=MODES, help="what to do")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of options; see configs/")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE | KEY=VALUE", help="options that replace the file's")
    return parser.parse_intermixed_args(argv)


@streams.program(PROGRAM)
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the run failed, 2 usage or configuration, 130 and 143 stopped by a signal."""
    args = parse(argv)
    try:
        signals.install(quiet=launch().rank > 0)
        log(sys.stdout)
        trains = args.mode == "train" and launch().rank == 0
        if trains:
            console.listen()
        cfg = config.load(args.cfg, args.overrides, mode=args.mode)
        limits.open_more_files()
        limits.refuse_few_files(cfg.DATA.NUM_WORKERS if args.mode != "info" else 0)
        with locked(config.out_dir(cfg)) if trains else nullcontext():
            from pycls_std import runner  # here, since torch takes seconds to import

            runner.run(args.mode, cfg)
    except config.ConfigError as error:
        if args.traceback:
            raise
        return complain(error, 2)
    except SyntaxError as error:  # in a file that is being edited, such as a new term
        if args.traceback or not error.filename:
            raise
        return complain(ValueError(f"{error.filename}:{error.lineno}: {error.msg}"), 2)
    except (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError) as error:
        if args.traceback:
            raise
        if signals.received():
            stopped = signals.Stopped(signals.received())
            return complain(stopped, stopped.code)
        return complain(error, 1)
    except signals.Stopped as stopped:
        return complain(stopped, stopped.code)
    finally:
        console.stop()
        signals.uninstall()
    return 0


def log(stream) -> None:
    """Send log messages to a stream; on ranks other than 0, errors alone."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(streams.Printable())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pycls_std").setLevel(logging.ERROR if launch().rank else logging.INFO)


def complain(error: BaseException, code: int) -> int:
    """Print one line about an error; return the exit code.

    Most errors occur in all processes, and a process whose peer has ended fails with a lost connection. So all ranks
    but 0 wait before they report: if rank 0 has failed, torchrun ends them meanwhile; the error of a single process is
    still reported.
    """
    signals.uninstall()
    summary = one_line(error)
    hint = limits.hint(error) or (" (--traceback shows where)" if isinstance(error, RuntimeError) else "")
    if "DataLoader worker (pid" in summary:
        summary = summary.rstrip(".")
        hint = "; often memory ran out, of the machine or of /dev/shm: try a smaller DATA.NUM_WORKERS"
    if any(text in summary for text in LOST):
        summary, hint = "the connection to another process of this run was lost, its own message says why", ""
    rank = 0
    with suppress(ValueError):  # then this is the error itself
        rank = launch().rank
    if rank and not isinstance(error, signals.Stopped):
        time.sleep(PATIENCE)
    process = f" [process {rank}]" if rank else ""
    line = f"{PROGRAM}{process}: {summary}{hint}"
    console.add(line)
    streams.complain(line)
    return code


def program() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    leave(main())


if __name__ == "__main__":
    program()
