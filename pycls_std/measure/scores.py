"""Write the scores of a test to test.json, in the folder of the tested checkpoint."""

import json
import logging
import os
from pathlib import Path

from pycls_std.core.regular import read_bytes
from pycls_std.engine import files

LOG = logging.getLogger("pycls_std")
SCORES = "test.json"


def keep_scores(cfg, scores: dict[str, dict[str, float]], *, prediction: str, data, origin: dict) -> None:
    """Write test.json atomically, replacing that of an earlier test; only one process does.

    scores: of every prediction, by name. prediction: the one that counts. data: what was tested on, see
    `builders.data`. origin: `epoch` of the weights, None if their file does not tell, `commit` of the program.
    Raises OSError that names the file if it cannot be written.
    """
    weights = Path(cfg.TEST.WEIGHTS)
    facts = {
        "name": cfg.NAME,
        "seed": cfg.SEED,
        "checkpoint": weights.name,
        "ema": cfg.TEST.EMA,
        **origin,
        "dataset": data.info.name,
        "split": cfg.TEST.SPLIT,
        "images": len(data.test.dataset),
        "prediction": prediction,
        "scores": scores,
    }
    path = weights.parent / SCORES
    files.write(path, (json.dumps(facts, indent=2) + "\n").encode())
    LOG.info("%s: written", path)


def refuse_other_file(cfg) -> None:
    """Raise ValueError if TEST.JSON's test.json is also TEST.PREDICTIONS, or exists and was not written by a test."""
    path = Path(cfg.TEST.WEIGHTS).parent / SCORES
    if not cfg.TEST.JSON:
        return
    if cfg.TEST.PREDICTIONS and Path(cfg.TEST.PREDICTIONS).absolute() == path.absolute():
        raise ValueError(f"TEST.PREDICTIONS is {path}, the file of TEST.JSON: choose another name")
    if os.path.lexists(path):
        try:
            ours = {"checkpoint", "scores"} <= json.loads(read_bytes(path)).keys()
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise ValueError(f"TEST.JSON would replace {path}, which no test wrote: move it away")
