"""The folder of a run: options, journal, checkpoints and record, kept consistent, and which run owns it."""

import os
from functools import partial
from pathlib import Path

from pycls_std.core.event_options import options_in
from pycls_std.core.regular import read_bytes
from pycls_std.core.text import first_of
from pycls_std.engine import checkpoint, files
from pycls_std.process import console
from pycls_std.run.identity import (
    refuse_no_dump,
    refuse_other_dump,
    refuse_other_options,
    refuse_other_origin,
    same_run,
)
from pycls_std.run.journal import EVENTS, METRICS, Journal, events_of, metrics_of
from pycls_std.run.lock import LOCK
from pycls_std.run.record import RECORD, Record, record_of
from pycls_std.run.series import Series
from pycls_std.run.writes import Writes

CONFIG = "config.yaml"
BEST = "best.pt"
CONSOLE = "console.log"  # of all starts; nothing reads it, and it does not identify a run


class RunFolder:
    """A folder that one process at a time writes; of the processes of a run, rank 0.

    Nothing in it is replaced or removed except what this run wrote. keep: maximum number of checkpoints to resume from.
    period: epochs between them. beside: they are serialized and written while the next epoch is trained; errors are
    raised at its end.
    """

    def __init__(self, path: Path, *, keep: int = 2, period: int = 1, beside: bool = False):
        self.path = path
        self.period = period
        self.writes = Writes(beside=beside)
        self.checkpoints = path / "checkpoints"
        self.series = Series(self.checkpoints, keep=keep)

    def __str__(self):
        return str(self.path)

    # ----------------------------------------------------------------------------------------------------------- start
    def continued(self, options: str, processes: int, epochs: int = 0) -> tuple[dict | None, Path | None]:
        """Return the state to resume from, and its path; None, None if there is none.

        options: as YAML. epochs: of the run. Raises ValueError if the folder holds anything that is not this run's.
        """
        self._clean()
        newest = self.series.newest(epochs, self._refuse_foreign)
        if not newest:
            self._refuse_what_is_not_ours(options)
            return None, None
        saved, path = newest
        refuse_other_origin(saved, path, continued=saved.get("format") == checkpoint.FORMAT)
        refuse_other_options(saved, options, processes, path)
        own = self._own_events(options, saved.get("events", ""))
        foreign = sorted(path.name for path in self.path.glob("*tfevents*") if path not in own)
        if foreign and "events" in saved:
            self._refuse(foreign)
        return saved, path

    def start(
        self, session, identity, saved: dict | None, *, seed: int, teachers: dict[str, dict[str, float]], flops: int
    ):
        """Return record(epochs done, values, is best), which records an epoch.

        identity: of the run. saved: the state that it resumes from. teachers: the result of each, by split and name.
        """
        options = identity.config.encode()
        start_epoch, lines = (saved["epoch"], saved["journal"]) if saved else (0, [])
        outdated = self._own_events(identity.config, saved["events"] if saved else "")
        if not saved:
            files.write(self.path / CONFIG, options)
        earlier = saved["record"] if saved else {}
        record = Record(
            session,
            seed=seed,
            teachers=teachers,
            fingerprints=identity.teachers,
            contents=identity.data["contents"],
            flops=flops,
            start_epoch=start_epoch,
            earlier=earlier,
        )
        before = saved["config"] if saved else ""
        journal = Journal(self.path, identity.config, lines, before=before, outdated=outdated)
        origin = identity._asdict()
        console.keep(self.path / CONSOLE)

        def write(done: int, values: dict[str, float], best: bool) -> None:
            """Record an epoch: first values and options; then last.pt, which has all of it, and best.pt; run.json last.

            The values are written when all of the previous epoch is on the disk, so that a kill leaves the same files
            whether checkpoints are written beside training or not; the state is copied before the next step changes it.

            An epoch without a checkpoint only writes its values, which the next start after a kill drops. An epoch that
            other files refer to has a checkpoint: config.yaml is never ahead of last.pt, and if a kill leaves best.pt
            behind last.pt, the next start writes it.
            """
            self.writes.wait()
            journal.epoch(done, session.epochs, values)
            spoken_of = best or done in (start_epoch + 1, session.epochs)
            if done % self.period and not spoken_of:
                return
            state = session.state_dict() | {"journal": journal.lines, "events": journal.events.name}
            if done == start_epoch + 1:  # not before: the options of a finished run belong to its result
                files.write(self.path / CONFIG, options)
            record.update(done)
            whole = origin | {"epoch": done} | state | {"record": record.facts}
            self.writes.begin(partial(self._keep, best), whole)
            if done == session.epochs:
                self.writes.wait()

        return write

    def _keep(self, best: bool, state: dict) -> None:
        self.series.write(checkpoint.packed(state))
        if best:
            checkpoint.save(deployed(state), self.checkpoints / BEST)
        files.write(self.path / RECORD, record_of(state["record"]))

    # ---------------------------------------------------------------------------------------------------------- finish
    def repair(self, saved: dict) -> list[str]:
        """Rewrite damaged or missing files in the record of a finished run, from its last checkpoint.

        Returns what was done, in words. best.pt can be rewritten if the last epoch is the best one.
        """
        if saved.get("format") != checkpoint.FORMAT:
            return []
        done = []
        options, lines = saved["config"], saved["journal"]
        contents = {CONFIG: options.encode(), METRICS: metrics_of(lines), RECORD: record_of(saved["record"])}
        for name, content in contents.items():
            there = content_of(self.path / name)
            if there != content:
                files.write(self.path / name, content)
                reason = "was gone" if there is None else "was not what the run wrote"
                done.append(f"{name} {reason}, it is written anew")
        events = self._own_events(options, saved["events"])
        if len(events) != 1 or content_of(events[0]) != events_of(events[0].name, options, lines):
            Journal(self.path, options, lines, outdated=events)
            done.append(f"the event file {'was not what the run wrote' if events else 'was gone'}, it is written anew")
        return done + self.repair_best(saved)

    def repair_best(self, saved: dict) -> list[str]:
        """Rewrite best.pt if it is not of the best epoch, and last.pt is; return what was done, in words."""
        path, epoch = self.checkpoints / BEST, saved["best"]["epoch"]
        try:
            if checkpoint.read(path).get("epoch") == epoch:
                return []
            reason = f"{path} is not of epoch {epoch}"
        except checkpoint.Damaged as error:
            reason = str(error)
        except ValueError:
            reason = f"{path} is gone"
        except OSError as error:
            return [str(error)]
        if epoch != saved["epoch"]:
            return [f"{reason}; the best epoch is {epoch} and the last one {saved['epoch']}, so it cannot be made anew"]
        checkpoint.save(deployed(saved), path)
        return [f"{reason}; it is written anew"]

    # ------------------------------------------------------------------------------------------------------- ownership
    def _own_events(self, options: str, name: str) -> list[Path]:
        """Return this run's event files: the one of this name, those with its options, and those without values."""

        def is_own(path):
            written = options_in(path)
            return same_run(written, options) or written and content_of(path) == events_of(path.name, written, [])

        paths = [path for path in sorted(self.path.glob("*tfevents*")) if EVENTS.fullmatch(path.name)]
        return [path for path in paths if path.name == name or is_own(path)]

    def _refuse_what_is_not_ours(self, options: str) -> None:
        """Raise ValueError unless the folder only has what this run leaves if killed before its first checkpoint.

        A record without a checkpoint to resume from is not replaced. A start with other options that completed no epoch
        has recorded nothing, and is replaced.
        """
        own = {LOCK, CONFIG, METRICS, CONSOLE, "checkpoints", *(path.name for path in self._own_events(options, ""))}
        there = {entry.name for entry in os.scandir(self.path)} if self.path.is_dir() else set()
        if RECORD in there:
            raise ValueError(
                f"OUT_DIR {self.path} has the record of a run, and no checkpoint to continue from. "
                "Choose another OUT_DIR"
            )
        lines = (content_of(self.path / METRICS) or b"").splitlines()
        begun = lines or (self.checkpoints / BEST).exists()
        written = content_of(self.path / CONFIG)
        if written is not None and begun:
            refuse_other_dump(written.decode(errors="replace"), options, self.path / CONFIG)
        elif written is not None:
            refuse_no_dump(written.decode(errors="replace"), self.path / CONFIG)
        foreign = there - own
        if begun and written is None:  # which a run writes first
            foreign |= {METRICS} & there | ({f"checkpoints/{BEST}"} if (self.checkpoints / BEST).exists() else set())
        if "checkpoints" in there and self.checkpoints.is_dir():
            foreign |= {f"checkpoints/{entry.name}" for entry in os.scandir(self.checkpoints) if entry.name != BEST}
        if foreign:
            self._refuse(sorted(foreign))
        if len(lines) > 1:
            raise ValueError(
                f"OUT_DIR {self.path} has a record of {len(lines)} epochs, and no checkpoint to continue from. "
                "Choose another OUT_DIR"
            )

    def _refuse_foreign(self, path: Path) -> None:
        """Raise ValueError that names a checkpoint unless the folder has options of a run, which a run writes first."""
        written = content_of(self.path / CONFIG)
        if written is None:
            self._refuse([f"{path.parent.name}/{path.name}"])
        else:
            refuse_no_dump(written.decode(errors="replace"), self.path / CONFIG)

    def _refuse(self, names: list[str]) -> None:
        raise ValueError(
            f"OUT_DIR {self.path} holds what is not this run's: {first_of(names)}. Move it away, or choose another "
            "OUT_DIR"
        )

    def _clean(self) -> None:
        """Remove the temporary files that a killed process has left, and no others."""
        files.clean([self.path / name for name in (CONFIG, METRICS, RECORD)])
        files.clean([self.checkpoints / name for name in ("last.pt", BEST)])
        for path in self.path.glob(files.TEMPORARY.format("events.*")):
            if EVENTS.fullmatch(path.name.removeprefix(".").removesuffix(".tmp")):
                path.unlink()


def content_of(path: Path) -> bytes | None:
    """Return the content of a file, None if it does not exist, is not a regular one, or cannot be read."""
    try:
        return read_bytes(path)
    except OSError:
        return None


def deployed(state: dict) -> dict:
    """Return the part of a checkpoint that suffices to test, to deploy and to teach."""
    return {
        key: state[key] for key in ("epoch", "config", "processes", "threads", "teachers", "data", "student", "ema")
    }
