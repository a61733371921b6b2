"""run.json: what ran, where, on which versions, how far it came and what it cost."""

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from pycls_std.engine.loop import Session

RECORD = "run.json"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
REPOSITORY = Path(__file__).resolve().parents[2]


class Record:
    """The content of run.json, kept up to date. It contains no environment variables.

    teachers: the result of each, by split and name. fingerprints: of their weights. contents: digest of the files of
    each split that is made of files. flops: operations of an image without branches that do not predict, 2 for a
    multiply-add. start_epoch: epochs done before this start. earlier: the facts as they were then.
    Each start of the run is listed, with its command, commit, device, arithmetic and versions.
    """

    def __init__(
        self,
        session: Session,
        *,
        seed: int,
        teachers: dict[str, dict[str, float]],
        fingerprints: list[str],
        contents: dict[str, str],
        flops: int,
        start_epoch: int,
        earlier: dict,
    ):
        self.session = session
        self.earlier_memory = earlier.get("peak_memory_gib", 0.0)
        trainer, runtime = session.trainer, session.runtime
        deployed = trainer.deployed_parameters()
        trained = trainer.trained_parameters()
        start = {
            "epochs_done": start_epoch,
            "epochs": session.epochs,
            "command": shlex.join([*_as_called(sys.argv[0]), *sys.argv[1:]]),
            "commit": commit(),
            "device": runtime.device_name(),
            "threads": runtime.threads,
            "precision": runtime.precision,
            "compiled": runtime.compiled,
            "token_mixing": runtime.token_mixing,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        }
        self.facts = {
            "starts": _with(start, earlier),
            "seed": seed,
            "processes": runtime.world.size,
            "parameters": {"deployed": deployed, "train_only": trained - deployed},
            "flops": flops,
            "teachers": teachers["test"],
            "held_out_teachers": teachers.get("val", {}),
            "teacher_fingerprints": fingerprints,
            "files": contents,
            "epochs": session.epochs,
        }

    def update(self, done: int) -> None:
        """Update the progress of the run; done: epochs done."""
        session = self.session
        images = done * session.epoch_images()
        self.facts |= {
            "status": "finished" if done == session.epochs else "unfinished",
            "epochs_done": done,
            "best": session.best,
            "images_per_second": round(images / session.train_seconds, 1),
            "peak_memory_gib": max(self.earlier_memory, round(session.runtime.peak_memory(), 3)),  # of all starts
            "hours": round((session.train_seconds + session.test_seconds) / 3600, 4),
        }


def _with(start: dict, earlier: dict) -> list[dict]:
    """Return the earlier starts and this one. Before December 2026, most facts of the last one were not in `starts`."""
    starts = list(earlier.get("starts", ()))
    if starts:
        starts[-1] = {key: earlier[key] for key in start if key in earlier} | starts[-1]
    return [*starts, start]


def record_of(facts: dict) -> bytes:
    """Return the content of run.json."""
    return (json.dumps(facts, indent=2) + "\n").encode()


def _as_called(script: str) -> list[str]:
    """Return the command of a program: its path in this repository, or, for another one, the path that was called."""
    path = Path(script).resolve()
    if path.name == "pycls-std":  # the command of the installed package
        return [path.name]
    return ["python", path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else script]


def commit() -> str:
    """Return the commit of this checkout, or the one that pip installed from; else "unknown".

    The checkout of another project, within which this is installed, is not used. It ends in -dirty if tracked files of
    the checkout differ from it, except for logs/, or if pycls_std/ has untracked files, such as a new method.
    """

    def git(*words):
        return subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=True).stdout

    if not (REPOSITORY / ".git").exists():
        return _installed_commit()
    try:
        changed = git("status", "--porcelain", "-uno", "--", ":!logs") + git("status", "--porcelain", "--", "pycls_std")
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _installed_commit() -> str:
    try:
        installed = distribution("pycls-std")
    except PackageNotFoundError:
        return "unknown"
    origin = installed.read_text("direct_url.json")  # of PEP 610; an index leaves none
    if origin is None or Path(str(installed.locate_file(""))).resolve() != REPOSITORY:  # of another copy
        return "unknown"
    return json.loads(origin).get("vcs_info", {}).get("commit_id", "unknown")
