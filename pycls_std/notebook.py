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
    """Train a student as `--mode train` does: what was interrupted goes on, what is finished is only told.

    path: of the config. words: options as on the command line, "OPTIM.MAX_EPOCH=3". options: the same by their names,
    with __ for the dot, OPTIM__MAX_EPOCH=3; None for null, which an option that is text is not. Messages go to standard
    output, unless the caller has handlers of its own. Raises ConfigError for a mistake in the options, ValueError and
    OSError as the command line tells them.
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
    """Return a value as it stands on the command line, where YAML reads what JSON writes."""
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=str)


@contextmanager
def _told() -> Iterator[None]:
    """Let messages go to standard output within the block, where nobody takes them."""
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
    """Let the record have the command that does the same, in place of a notebook's kernel."""
    before = sys.argv
    sys.argv = ["run_net.py", "--mode", "train", "--cfg", str(path), *words]
    try:
        yield
    finally:
        sys.argv = before
