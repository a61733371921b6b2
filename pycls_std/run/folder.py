"""The folder of a run: lock, options, journal, checkpoints and record, as one thing."""

from contextlib import contextmanager
from pathlib import Path

from pycls_std.run.lock import locked


class RunFolder:
    """A folder that one process at a time writes; of the processes of a run, the first.

    keep: checkpoints to continue from, at most. What needs torch is imported when it is needed.
    """

    def __init__(self, path: Path, *, keep: int = 2):
        self.path = path
        self.keep = keep
        self.checkpoints = path / "checkpoints"

    def __str__(self):
        return str(self.path)

    @contextmanager
    def lock(self):
        """Make the folder and own it within the block; see `lock.locked`."""
        with locked(self.path):
            yield self

    def continued(self, options: str, processes: int, epochs: int = 0) -> tuple[dict | None, Path | None]:
        """Return the state to continue from, and its path; None, None if there is none.

        options: as YAML. epochs: of the run. Raises ValueError if the folder holds a run of other options.
        """
        from pycls_std.engine import files
        from pycls_std.run.identity import refuse_other_options

        for place in (self.path, self.checkpoints):
            files.clean(place)
        saved, path = self._series().newest(epochs) or (None, None)
        if saved:
            refuse_other_options(saved, options, processes, path)
        return saved, path

    def start(self, session, identity, saved: dict | None, *, seed: int, teachers: dict[str, float]):
        """Return record(epochs done, values, is best), which writes an epoch down.

        identity: what the run is. saved: the state it continues from. teachers: the result of each, by its name.
        """
        from pycls_std.engine import checkpoint, files
        from pycls_std.run.journal import Journal
        from pycls_std.run.record import Record

        series, options = self._series(), identity.config.encode()
        start_epoch, lines = (saved["epoch"], saved["journal"]) if saved else (0, [])
        if not saved:
            files.write(self.path / "config.yaml", options)
        record = Record(self.path, session, seed=seed, teachers=teachers, start_epoch=start_epoch)
        journal = Journal(self.path, lines)
        origin = identity._asdict()

        def write(done: int, values: dict[str, float], best: bool) -> None:
            """Write down an epoch: values, best.pt, options, run.json; last.pt at last, so it is never ahead."""
            journal.epoch(done, values)
            state = session.state_dict() | {"journal": journal.lines}
            if best:  # enough to test, to deploy and to teach
                deployed = {"student": state["student"], "ema": state["ema"]}
                checkpoint.save(origin | {"epoch": done} | deployed, self.checkpoints / "best.pt")
            if done == start_epoch + 1:  # not before, for the options of a finished run belong to its result
                files.write(self.path / "config.yaml", options)
            record.update(done)
            series.save(origin | {"epoch": done} | state)

        return write

    def _series(self):
        from pycls_std.run.series import Series

        return Series(self.checkpoints, keep=self.keep)
