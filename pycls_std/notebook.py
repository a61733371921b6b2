"""Train from Python, such as a notebook, as the command line does."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pycls_std import config, runner
from pycls_std.process import console, limits, streams
from pycls_std.run.journal import METRICS
from pycls_std.run.lock import locked

LOG = logging.getLogger("pycls_std")


class Run(NamedTuple):
    """A finished run."""

    folder: Path  # of its record
    scores: dict[str, float]  # of the last epoch, by their names in metrics.jsonl, such as test/top1


def train(path: str, *words: str, **options) -> Run:
    """Train a student as `--mode train` does: an interrupted run is resumed, a finished one only reported.

    path: of the config. words: options as on the command line, "OPTIM.MAX_EPOCH=3". options: the same as keyword
    arguments, with __ for the dot, OPTIM__MAX_EPOCH=3; None = null, which is refused for text options. Messages are
    printed to standard output, unless the caller has logging handlers. Raises ConfigError for a mistake in the options,
    and ValueError and OSError where the command line reports them.
    """
    path = str(path)
    for key in [key.replace("__", ".") for key, value in options.items() if value is None]:
        option = config.Catalogue().of(key)
        if option and isinstance(option.value, str):
            raise config.ConfigError(f"{key} is None, expected text; '' is what an option that is not set has")
    overrides = [*words, *(f"{key.replace('__', '.')}={_text(value)}" for key, value in options.items())]
    with _told(), _called_by(path, overrides):
        cfg = config.load(path, overrides, mode="train")
        limits.open_more_files()
        limits.refuse_few_files(cfg.DATA.NUM_WORKERS)
        folder = config.out_dir(cfg).resolve()
        with locked(config.out_dir(cfg)):
            runner.run("train", cfg)
    *_, last = (folder / METRICS).read_text().splitlines()
    scores = {key: value for key, value in json.loads(last).items() if key.startswith(("test/", "val/"))}
    return Run(folder, scores)


def _text(value) -> str:
    """Return a value as it is written on the command line: in JSON, which is valid YAML."""
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=str)


@contextmanager
def _told() -> Iterator[None]:
    """Print log messages to standard output within the block, unless the caller has handlers."""
    level, handler = LOG.level, logging.StreamHandler(sys.stdout)
    handler.setFormatter(streams.Printable())
    alone = not LOG.hasHandlers()
    if alone:
        LOG.addHandler(handler)
    console.listen()
    if LOG.level == logging.NOTSET:
        LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        console.stop()
        LOG.removeHandler(handler)
        LOG.setLevel(level)


@contextmanager
def _called_by(path: str, words: list[str]) -> Iterator[None]:
    """Set sys.argv to the equivalent command, so that the run record has it instead of a notebook kernel's."""
    before = sys.argv
    sys.argv = ["run_net.py", "--mode", "train", "--cfg", str(path), *words]
    try:
        yield
    finally:
        sys.argv = before
