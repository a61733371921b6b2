"""Try a run before it starts: one line for each thing that could spoil it, within a minute on a CPU."""

import logging
from pathlib import Path

from pycls_std.check.trial import Trial
from pycls_std.process.errors import one_line

LOG = logging.getLogger("pycls_std")


def check(cfg, out_dir: Path) -> None:
    """Run all checks and log a line for each. out_dir: where the run will be recorded.

    Raises ValueError with the number of failed checks, if any.
    """
    trial = Trial(cfg, out_dir)
    checks = [trial.data, trial.models, trial.teachers, trial.terms, trial.parameters]
    checks += [trial.steps, trial.checkpoint, trial.processes]
    failed = 0
    for position, carry_out in enumerate(checks):
        name = carry_out.__name__
        try:
            LOG.info("ok    %-10s  %s", name, carry_out())
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            failed += 1
            LOG.error("FAIL  %-10s  %s", name, one_line(error))
            if position < 2:  # without data or models there is nothing to check further
                LOG.error("not checked: %s", ", ".join(each.__name__ for each in checks[position + 1 :]))
                break
    if failed:
        raise ValueError(f"{failed} of {len(checks)} checks failed")
