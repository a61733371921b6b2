"""The gain of each row of a table over its baseline, with a confidence interval."""

from collections.abc import Mapping
from math import isfinite

import numpy as np

from pycls_std.results.rows import other_files
from pycls_std.results.statistics import bootstrap, mcnemar, paired

CLOSE = 0.01  # percent; scores in event files are in single precision


def compare(rows: list[dict], baselines: Mapping[str, str], selection: str) -> None:
    """Add to each row its gain over its baseline, from the seeds that both have.

    baselines: {`run` of a row: name of its baseline}; rows without an entry are not compared.
    rows: each with `run`, its name, `planned`, its name before it was disambiguated, `data`, `files`, the known digests
    of its dataset's files, and `conditions`, {description: value}; with results also `seeds`, {selection: {seed:
    score}}, `chosen`, {selection: {seed: epoch}}, and `hits`, {seed: (digest of the labels, epoch, (N,) which test
    images are right)}. It gets `gain`, as text, and with several seeds `gain_mean`, `gain_low` and `gain_high`.
    Raises ValueError if a baseline is not a row.
    """
    known: dict[str, list[dict]] = {}
    for row in rows:
        for name in names_of(row):
            known.setdefault(name, []).append(row)
    for name in baselines.values():
        if name not in known:
            raise ValueError(f"the baseline {name} is no row, there are {', '.join(known)}")
    for row in [row for row in rows if row["run"] in baselines]:
        own, *others = known[baselines[row["run"]]]
        if others:
            row["gain"] = f"not compared, {own['planned']} is {1 + len(others)} rows"
            continue
        if row is own or not (row["n"] and own["n"]):
            continue
        scores, ground = (each.get("seeds", {}).get(selection, {}) for each in (row, own))
        scores, ground = ({seed: value for seed, value in each.items() if isfinite(value)} for each in (scores, ground))
        common = scores.keys() & ground.keys()
        lacking = [each["run"] for each, known_scores in ((row, scores), (own, ground)) if not known_scores]
        if not common:
            why = f"no {selection} scores of {' and '.join(lacking)}" if lacking else "no seed in common"
            row["gain"] = f"not compared, {why}"
        elif row.get("data") != own.get("data"):
            row["gain"] = "not compared, other data"
        elif other_files(row["files"], own["files"]):
            row["gain"] = "not compared, other files"
        else:
            row |= _gain(row, own, scores, ground, selection)
            row["gain"] += "".join(f", {value} {what} beside {other}" for what, value, other in _apart(row, own))


def names_of(row: dict) -> list[str]:
    """Return the names of a row: its own, and the one before it was disambiguated."""
    return list(dict.fromkeys((row["planned"], row["run"])))


def _apart(row: dict, own: dict) -> list[tuple]:
    """Return the conditions that differ between a row and its baseline: name, the row's value, the baseline's."""
    mine, theirs = row.get("conditions", {}), own.get("conditions", {})
    return [(what, value, theirs.get(what)) for what, value in mine.items() if value != theirs.get(what)]


def _gain(row: dict, own: dict, scores: dict, ground: dict, selection: str) -> dict:
    common = sorted(scores.keys() & ground.keys())
    if len(common) > 1:
        found = paired(scores, ground)
        fewer = f", {len(common)} seeds in common" if len(common) < max(len(scores), len(ground)) else ""
        gain = f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]{fewer}{_noise(found)}"
        return {"gain": gain, "gain_mean": found.mean, "gain_low": found.low, "gain_high": found.high}
    (seed,) = common
    hits, others = (_hits(each, seed, known, selection) for each, known in ((row, scores), (own, ground)))
    return {"gain": _on_one_seed(hits, others, scores[seed] - ground[seed])}


def _hits(row: dict, seed: str, scores: dict[str, float], selection: str) -> tuple[str, np.ndarray] | None:
    """Return for which test images a run is right, None unless that is of the epoch whose score is compared."""
    split, epoch, hits = row["hits"].get(seed) or ("", None, None)
    compared = row.get("chosen", {}).get(selection, {}).get(seed)
    if hits is None or None not in (epoch, compared) and epoch != compared:
        return None
    return (split, hits) if abs(100 * hits.mean() - scores[seed]) < CLOSE else None


def _on_one_seed(hits, ground, gain: float) -> str:
    """Return a gain as text, with its interval over test images if the predictions of both are saved."""
    if hits is None or ground is None or hits[0] != ground[0] or len(hits[1]) != len(ground[1]):
        return f"{gain:+.2f}, one seed"
    found, p = bootstrap(hits[1], ground[1]), mcnemar(hits[1], ground[1])
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] over images, one seed, p {p:.2g}{_noise(found)}"


def _noise(found) -> str:
    return ", within noise" if found.noise else ""
