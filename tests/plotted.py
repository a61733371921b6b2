"""Run records for tests of pictures and reports: any curves, any facts, an analysis."""

import json

import numpy as np
from records import write_record

from pycls_std import config

FACTS = {
    "parameters": {"deployed": 2_000_000, "train_only": 0},
    "starts": [
        {
            "epochs_done": 0,
            "epochs": 3,
            "command": "python run_net.py --cfg <a&b>.yaml",
            "commit": "c0ffee",
            "device": "Abacus, 2 threads",
        }
    ],
}


def write_run(folder, cfg, values, *, analysis=None, done=None, **facts):
    """Record a run in a folder. values: {tag: value of each epoch}. done: epochs done, fewer than planned if it is cut.

    facts: of run.json, beside FACTS. analysis: of analysis.json.
    """
    epochs = cfg.OPTIM.MAX_EPOCH
    each = [{tag: curve[epoch] for tag, curve in values.items()} for epoch in range(done or epochs)]
    facts = FACTS | {"status": "finished" if done in (None, epochs) else "unfinished"} | facts
    write_record(folder, config.dump(cfg), each, plans=[epochs] * len(each), facts=facts)
    if analysis:
        (folder / "analysis.json").write_text(json.dumps(analysis | {"name": cfg.NAME, "seed": cfg.SEED}))
    return folder


def analysis_with(per_class, classes, **more):
    """An analysis.json of one head. per_class: percent."""
    whole = {"format": 1, "name": "", "seed": 0, "images": 1000 * len(classes), "classes": classes, "split": "0"}
    return whole | {"prediction": "cls", "predictions": {"cls": scores_with(per_class)}, "teachers": {}} | more


def scores_with(per_class, **more):
    """The scores of a head or a teacher in an analysis, of 1000 images a class."""
    hits = np.concatenate([np.arange(1000) < round(10 * share) for share in per_class])
    scores = {"top1": 100 * float(hits.mean()), "top5": 99.0, "loss": 0.8, "ece": 3.25, "per_class": per_class}
    return scores | {"correct": np.packbits(hits).tobytes().hex()} | more
