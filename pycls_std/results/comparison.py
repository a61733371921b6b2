"""Format analyses of runs: as Markdown for reading, as CSV and JSON for programs."""

import json

import pandas as pd

from pycls_std.results import render
from pycls_std.results.analysis import SHARES, correct
from pycls_std.results.statistics import bootstrap, mcnemar

NAMED = 5  # number of classes that Markdown lists, with the largest and with the smallest gains
SCORES = {"top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "ECE"}
WORDS = dict(
    zip(
        SHARES,
        ("agreement", "only the student right", "only the teacher right", "both right", "both wrong"),
        strict=True,
    )
)


def entry(run: str, own: dict, baseline: str | None = None, base: dict | None = None) -> dict:
    """Return the entry of a run: its analysis, and its difference from a baseline.

    The difference is that of both main predictions, with its interval; and, for each prediction by class, from the
    baseline's prediction of the same name, or its main prediction if there is none.

    run, baseline: names of their folders. own, base: their analyses.
    Raises ValueError if the two were not tested on the same images.
    """
    if base is None:
        return {"run": run, "analysis": own, "difference": None}
    if (own["split"], own["images"], own["classes"]) != (base["split"], base["images"], base["classes"]):
        raise ValueError(
            f"{run} and {baseline} have other test splits: {own['images']} images of {len(own['classes'])} classes and "
            f"{base['images']} of {len(base['classes'])}, whose labels differ"
        )
    hits = correct(own), correct(base)
    found = bootstrap(*hits)
    gains = {}
    for head, scores in own["predictions"].items():
        other = _other(head, own, base)
        pairs = zip(own["classes"], scores["per_class"], base["predictions"][other]["per_class"], strict=True)
        classes = [(name, None if first is None else first - second) for name, first, second in pairs]
        gains[head] = {"over": other, "classes": classes}
    difference = {"baseline": baseline, **found._asdict(), "noise": found.noise, "mcnemar_p": mcnemar(*hits)}
    return {"run": run, "analysis": own, "difference": difference | {"per_class": gains}}


def _other(head: str, own: dict, base: dict) -> str:
    """Return the baseline's prediction that a run's is compared with."""
    return head if head in base["predictions"] and head != own["prediction"] else base["prediction"]


# ------------------------------------------------------------------------------------------------------------ Markdown
def markdown(entries: list[dict]) -> str:
    """Return a section for each run: its predictions (* = the main one), its teachers, its difference."""
    return "\n".join(map(_part, entries))


def _part(entry: dict) -> str:
    own = entry["analysis"]
    epoch = "" if own.get("epoch") is None else f" of epoch {own['epoch']}"
    about = f"{own['name']} seed {own['seed']}, {own.get('checkpoint')}{epoch}, {own['images']} test images"
    lines = [f"**{render.plain(entry['run'])}**: {render.plain(about)}", ""]
    rows = [{"prediction": _marked(name, own)} | _scores(scores) for name, scores in own["predictions"].items()]
    lines.append(render.grid(pd.DataFrame(rows)))
    rows = [{"teacher": name} | _scores(scores) for name, scores in own["teachers"].items()]
    beside = [
        {"prediction": _marked(head, own), "teacher": name} | {WORDS[key]: f"{scores[key][head]:.2f}" for key in SHARES}
        for head in own["predictions"]
        for name, scores in own["teachers"].items()
    ]
    lines += [render.grid(pd.DataFrame(each)) for each in (rows, beside) if each]
    return "\n".join(lines + _difference(entry["difference"]))


def _scores(scores: dict) -> dict[str, str]:
    return {heading: f"{scores[score]:.{4 if score == 'loss' else 2}f}" for score, heading in SCORES.items()}


def _marked(head: str, own: dict) -> str:
    return f"{head} *" if head == own["prediction"] else head


def _difference(found: dict | None) -> list[str]:
    if not found:
        return []
    noise = ", which holds 0" if found["noise"] else ""
    lines = [
        f"top-1 {found['mean']:+.2f} to {render.plain(found['baseline'])}, 95 % interval {found['low']:+.2f} to "
        f"{found['high']:+.2f} (bootstrap over {found['n']} images){noise}; McNemar's p {found['mcnemar_p']:.2g}",
        "",
    ]
    for head, facts in found["per_class"].items():
        gains = sorted((pair for pair in facts["classes"] if pair[1] is not None), key=lambda pair: -pair[1])
        shown = {"largest": gains[:NAMED], "smallest": gains[::-1][: min(NAMED, max(0, len(gains) - NAMED))]}
        for which, some in shown.items():
            named = ", ".join(f"{render.plain(name)} {gain:+.2f}" for name, gain in some)
            heads = f"{render.plain(head)} over the baseline's {render.plain(facts['over'])}"
            lines += [f"{which} gains of {heads} by class: {named}", ""] if some else []
    return lines


# ------------------------------------------------------------------------------------------------------ CSV and JSON
def csv(entries: list[dict]) -> str:
    """Return one row per number: its run, its prediction, teacher or baseline, the score and the value."""
    rows = [row for entry in entries for row in _rows(entry)]
    return render.csv(pd.DataFrame(rows, columns=["run", "of", "name", "score", "value"]))


def _rows(entry: dict):
    run, own, found = entry["run"], entry["analysis"], entry["difference"]
    for kind in ("prediction", "teacher"):
        for name, scores in own[f"{kind}s"].items():
            yield from ((run, kind, name, score, scores[score]) for score in SCORES)
            labels = zip(own["classes"], scores["per_class"], strict=True)
            yield from ((run, kind, name, f"top1 of {label}", value) for label, value in labels)
            for share in SHARES if kind == "teacher" else ():
                yield from ((run, kind, name, f"{share} {other}", value) for other, value in scores[share].items())
    if found:
        keys = ("mean", "low", "high", "n", "mcnemar_p")
        yield from ((run, "difference", found["baseline"], key, float(found[key])) for key in keys)
        for head, facts in found["per_class"].items():
            of = f"{head} over {facts['over']}: top1 of"
            yield from ((run, "difference", found["baseline"], f"{of} {name}", gain) for name, gain in facts["classes"])


def as_json(entries: list[dict]) -> str:
    """Return a list of the runs' analyses and differences, without the per-image hits."""
    return json.dumps([_without_hits(entry) for entry in entries], indent=2, allow_nan=False) + "\n"


def _without_hits(nest):
    if isinstance(nest, dict):
        return {key: _without_hits(part) for key, part in nest.items() if key != "correct"}
    return [_without_hits(part) for part in nest] if isinstance(nest, (list, tuple)) else nest


FORMATS = {"md": markdown, "csv": csv, "json": as_json}
