"""Train the runs of a table, each after its teachers, and print it: finished runs are skipped, others are resumed."""

import argparse
import logging
import os
import re
import shlex
import sys
import time
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std import config  # noqa: E402
from pycls_std.config.shipped import find_config  # noqa: E402
from pycls_std.core import prediction_file  # noqa: E402
from pycls_std.core.text import first_of  # noqa: E402
from pycls_std.process import signals, streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.reproduce.estimate import plan_lines  # noqa: E402
from pycls_std.reproduce.jobs import RUNS, Changes, folder_name, plan  # noqa: E402
from pycls_std.reproduce.running import MARGIN, Runner, Slot  # noqa: E402
from pycls_std.reproduce.showing import gathered, rendered, write_page  # noqa: E402
from pycls_std.reproduce.state import record_of  # noqa: E402
from pycls_std.reproduce.table_file import read_table  # noqa: E402
from pycls_std.results import analysis  # noqa: E402
from pycls_std.results.columns import chosen  # noqa: E402
from pycls_std.results.render import FORMATS, link_from  # noqa: E402

LOG = logging.getLogger("pycls_std")
UNITS = {"s": 1, "m": 60, "h": 3600}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="reproduce.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("table", type=Path, help="the file of a table, such as configs/tables/c100_std.yaml")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side, on each device")
    parser.add_argument("--gpus", type=_gpus, default=[], metavar="0,1", help="GPUs to spread the runs over")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="i/n", help="train the i-th of n parts, from 1")
    parser.add_argument("--rows", type=lambda text: text.split(","), metavar="A,B", help="train, or show, these alone")
    parser.add_argument("--slurm", type=int, metavar="N", help="print a Slurm job array of N parts, and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with estimated hours, and stop")
    parser.add_argument("--scale", type=_scale, default=1.0, metavar="F", help="multiply all numbers of epochs")
    parser.add_argument("--data", type=_pair, action="append", default=[], metavar="NAME=FOLDER", help="stand-in")
    parser.add_argument(
        "--until", type=_seconds, metavar="25m", help="stop after so many s, m or h; the most important runs are first"
    )
    parser.add_argument("--kept", action="store_true", help="count records in logs/ as done")
    parser.add_argument("--show", action="store_true", help="print the table of the runs so far, and stop")
    parser.add_argument("--logs", action="store_true", help="print the table of the records in logs/ alone, and stop")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME", help="instead of the columns in the file")
    parser.add_argument("--link-from", type=Path, metavar="FILE", help="link seeds to their records, as seen from it")
    parser.add_argument("--format", choices=FORMATS, default="md")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of this machine, such as DATA.ROOT")
    args = parser.parse_intermixed_args(argv)
    for name in ("jobs", "slurm"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least 1")
    return args


@streams.program("reproduce.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a run failed, is unfinished or lacks predictions, 2 usage, 130, 143 signals."""
    start = time.monotonic()
    args = parse(argv)
    logging.basicConfig(handlers=[handler := logging.StreamHandler(sys.stdout)])
    handler.setFormatter(streams.Printable())
    LOG.setLevel(logging.INFO)
    try:
        table = read_table(find_config(str(args.table)))
        chosen(config.Catalogue(), args.columns, table.varied)  # report an unknown column now, not after hours
        changes = Changes(args.scale, dict(args.data))
        jobs = plan(table, changes, args.overrides)
        own = part(of_rows(jobs, args.rows, args.table) if args.rows else jobs, *args.shard)
        runner = Runner(
            own,
            slots(args.gpus, args.jobs),
            deadline=start + args.until if args.until else None,
            kept=args.kept,
            analyze=keep_analysis,
        )
        code = 0
        if args.slurm:
            print(job_array(argv if argv is not None else sys.argv[1:], args.slurm), end="")
            return 0
        if args.dry_run:
            environment = runner.slots[0].environment
            print("\n".join([f"{table.title}", *changes.notes()]), flush=True)
            signals.install()  # a timing that is stopped ends with this process
            try:
                for line in plan_lines(own, environment, kept=args.kept, side_by_side=len(runner.slots)):
                    print(line, flush=True)
            except signals.Stopped as stopped:
                streams.complain(f"reproduce.py: {stopped}")
                code = stopped.code
            finally:
                signals.uninstall()
            return code
        stops = args.show or args.logs
        if not stops:
            signals.install()
            try:
                runner.run()
            except signals.Stopped as stopped:
                code = stopped.code
            finally:
                signals.uninstall()
        records = [record_of(job, kept=args.kept or args.logs, made=not args.logs) for job in jobs]
        frame = gathered(table, jobs, records, runner.failed, runner.unpredicted)
        if stops and args.rows:
            frame = frame[frame["run"].map(lambda name: name.partition(" (")[0] in args.rows)]  # disambiguated, too
        columns = args.columns or list(table.columns)
        text = rendered(table, frame, changes, args.format, columns, args.link_from and link_from(args.link_from))
        if not stops:
            _write_page(RUNS / folder_name(table, changes), table, frame, records, changes, columns)
        print(text, end="")
    except (ValueError, OSError) as error:
        streams.complain(f"reproduce.py: {one_line(error)}")
        return 2
    return code or int(bool(runner.failed or runner.unpredicted) or not (stops or runner.done >= set(own)))


def _write_page(folder: Path, *shown) -> None:
    try:
        page = write_page(folder, *shown)
    except (ValueError, OSError) as error:  # the table is printed anyway
        streams.complain(f"reproduce.py: warning: no page of the table: {one_line(error)}")
        return
    if page:
        LOG.info("%s", page)


def keep_analysis(folder: Path) -> None:
    """Write analysis.json from a run's predictions, next to them. Raises ValueError or OSError that names the file."""
    predictions = prediction_file.read(folder / prediction_file.PREDICTIONS)
    analysis.write(analysis.analyze(predictions), folder / analysis.ANALYSIS)


def part(jobs: list, number: int, parts: int) -> list:
    """Return the runs of one of several parts, and their teachers."""
    return _with_teachers(jobs[number - 1 :: parts], jobs)


def of_rows(jobs: list, names: list[str], table: Path) -> list:
    """Return the runs of the named rows, and their teachers. Raises ValueError for an unknown row."""
    known = list(dict.fromkeys(job.row.name for job in jobs))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--rows names {unknown[0]!r}, the rows of {table} are {first_of(known)}")
    return _with_teachers([job for job in jobs if job.row.name in names], jobs)


def _with_teachers(own: list, jobs: list) -> list:
    wanted = dict.fromkeys(own)
    frontier = own
    while frontier:
        frontier = [teacher for job in frontier for teacher in job.needs if teacher not in wanted]
        wanted |= dict.fromkeys(frontier)
    return [job for job in jobs if job in wanted]


def job_array(words: list[str], parts: int) -> str:
    """Return a script for sbatch: a job array of so many parts; each executes the teachers it needs, or waits for them.

    words: arguments of this command.
    """
    place = next(number for number, word in enumerate(words) if word.partition("=")[0] == "--slurm")
    words = words[:place] + words[place + (1 if "=" in words[place] else 2) :]
    tool = f"-m {__package__}.reproduce" if __package__ else "tools/reproduce.py"  # as this was called
    return (
        "#!/bin/bash\n"
        f"#SBATCH --job-name=reproduce\n#SBATCH --array=1-{parts}\n#SBATCH --gres=gpu:1\n#SBATCH --cpus-per-task=8\n"
        "#SBATCH --requeue\n#SBATCH --signal=B:TERM@120\n#SBATCH --output=slurm-%A_%a.out\n"
        "# Submit it from the repository's root. A part that is cut goes on when it is submitted again.\n"
        f"exec python {tool} {shlex.join(words)} --shard $SLURM_ARRAY_TASK_ID/{parts}\n"
    )


def slots(gpus: list[str], jobs: int) -> list[Slot]:
    """Return the slots for runs: so many on each GPU, or on this machine's single device.

    CPU cores are divided among them, since a run that uses all of them would slow down the others.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // (jobs * max(1, len(gpus))))
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    given = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    if given and len(given) <= max(map(int, gpus), default=0):
        raise ValueError(f"--gpus {','.join(gpus)}: CUDA_VISIBLE_DEVICES names {len(given)}, counted from 0")
    places = [{"CUDA_VISIBLE_DEVICES": given[int(gpu)] if given else gpu} for gpu in gpus] or [{}]
    return [Slot(own | place) for _ in range(jobs) for place in places]


def _gpus(text: str) -> list[str]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of GPUs as 0,1")
    return text.split(",")


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part i/n with i from 1 to n")
    return int(found[1]), int(found[2])


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no factor above 0")
    return value


def _pair(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=PLACE: the name of a dataset, a folder in its place")
    return name, place


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or float(found[1]) * UNITS[found[2]] <= MARGIN:
        raise argparse.ArgumentTypeError(f"{text!r} is no time as 25m, above {MARGIN:.0f}s")
    return float(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    sys.exit(main())
