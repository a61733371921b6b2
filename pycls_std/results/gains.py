"""How much each row of a table gains over its baseline, with the interval that it is known to."""

from collections.abc import Mapping
from math import isfinite

import numpy as np

from pycls_std.results.rows import other_files
from pycls_std.results.statistics import bootstrap, mcnemar, paired

CLOSE = 0.01  # percent; a score in an event file is of single precision


def compare(rows: list[dict], baselines: Mapping[str, str], selection: str) -> None:
    """Add to each row its gain over its baseline, from the seeds that both have.

    baselines: {`run` of a row: a name of the row that it is compared with}; one that is not there is not compared.
    rows: each with `run`, its name, `planned`, its name before it was told apart from another one's, `data`, `files`,
    those of its dataset as far as they are known, and `conditions`, {what is said of it: value}, and where it has
    results `seeds`, {selection: {seed: score}}, `chosen`, {selection: {seed: epoch}}, and `hits`, {seed: (digest of the
    labels, epoch, (N,) which test images are right)}. It gets `gain`, in words, and `gain_mean`, `gain_low` and
    `gain_high` where it is of several seeds. Raises ValueError if a baseline is no row.
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
    """Return the names that a row goes by: its own, and the one it had before it was told apart from another's."""
    return list(dict.fromkeys((row["planned"], row["run"])))


def _apart(row: dict, own: dict) -> list[tuple]:
    """Return the conditions that are not the same for a row and its baseline: what, the row's, the baseline's."""
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
    """Return for which test images a run is right, None unless they are of the epoch whose score is compared."""
    split, epoch, hits = row["hits"].get(seed) or ("", None, None)
    compared = row.get("chosen", {}).get(selection, {}).get(seed)
    if hits is None or None not in (epoch, compared) and epoch != compared:
        return None
    return (split, hits) if abs(100 * hits.mean() - scores[seed]) < CLOSE else None


def _on_one_seed(hits, ground, gain: float) -> str:
    """Return a gain with what the test images say of it, where the predictions of both are kept."""
    if hits is None or ground is None or hits[0] != ground[0] or len(hits[1]) != len(ground[1]):
        return f"{gain:+.2f}, one seed"
    found, p = bootstrap(hits[1], ground[1]), mcnemar(hits[1], ground[1])
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] over images, one seed, p {p:.2g}{_noise(found)}"


def _noise(found) -> str:
    return ", within noise" if found.noise else ""
