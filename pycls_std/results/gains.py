"""How much each row of a table gains over its baseline, with the interval that it is known to."""

from collections.abc import Mapping
from math import isfinite

import numpy as np

from pycls_std.results.statistics import bootstrap, mcnemar, paired

CLOSE = 0.01  # percent; a score in an event file is of single precision


def compare(rows: list[dict], baselines: Mapping[str, str], selection: str) -> None:
    """Add to each row its gain over its baseline, from the seeds that both have.

    baselines: {row: the row that it is compared with}, by their names; one that is not there is not compared.
    rows: each with `run`, its name, `planned`, its name before it was told apart from another one's, `data` and
    `epochs`, and where it has results `seeds`, {selection: {seed: score}}, and `hits`, {seed: (digest of the labels,
    (N,) which test images are right)}. It gets `gain`, in words, and `gain_mean`, `gain_low` and `gain_high` where it
    is of several seeds. Raises ValueError if a baseline is no row.
    """
    known: dict[str, list[dict]] = {}
    for row in rows:
        for name in dict.fromkeys((row["planned"], row["run"])):
            known.setdefault(name, []).append(row)
    for name in baselines.values():
        if name not in known:
            raise ValueError(f"the baseline {name} is no row, there are {', '.join(known)}")
    for row in [row for row in rows if row["planned"] in baselines]:
        own, *others = known[baselines[row["planned"]]]
        if others:
            row["gain"] = f"not compared, {own['planned']} is {1 + len(others)} rows"
            continue
        scores, ground = (each.get("seeds", {}).get(selection, {}) for each in (row, own))
        scores, ground = ({seed: value for seed, value in each.items() if isfinite(value)} for each in (scores, ground))
        common = scores.keys() & ground.keys() if row is not own else set()
        if common and row.get("data") != own.get("data"):
            row["gain"] = "not compared, other data"
            continue
        if len(common) > 1:
            found = paired(scores, ground)
            fewer = f", {len(common)} seeds in common" if len(common) < max(len(scores), len(ground)) else ""
            row["gain"] = f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]{fewer}{_noise(found)}"
            row |= {"gain_mean": found.mean, "gain_low": found.low, "gain_high": found.high}
        elif common:
            (seed,) = common
            row["gain"] = _on_one_seed(_hits(row, seed, scores), _hits(own, seed, ground), scores[seed] - ground[seed])
        if common and row.get("epochs") != own.get("epochs"):
            row["gain"] += f", {row.get('epochs')} epochs beside {own.get('epochs')}"


def _hits(row: dict, seed: str, scores: dict[str, float]) -> tuple[str, np.ndarray] | None:
    """Return for which test images a run is right, None unless they are of the epoch whose score is compared."""
    hits = row["hits"].get(seed)
    return hits if hits is not None and abs(100 * hits[1].mean() - scores[seed]) < CLOSE else None


def _on_one_seed(hits, ground, gain: float) -> str:
    """Return a gain with what the test images say of it, where the predictions of both are kept."""
    if hits is None or ground is None or hits[0] != ground[0] or len(hits[1]) != len(ground[1]):
        return f"{gain:+.2f}, one seed"
    found, p = bootstrap(hits[1], ground[1]), mcnemar(hits[1], ground[1])
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] over images, one seed, p {p:.2g}{_noise(found)}"


def _noise(found) -> str:
    return ", within noise" if found.noise else ""
