"""How much each row of a table gains over a baseline, with the interval that it is known to."""

import numpy as np

from pycls_std.results.statistics import bootstrap, mcnemar, paired

CLOSE = 0.01  # percent; a score in an event file is of single precision


def compare(rows: list[dict], baseline: str, selection: str) -> None:
    """Add to each row its gain over the baseline, from the seeds that both have.

    rows: each with `run`, its name, and where it has results `seeds`, {selection: {seed: score}}, and `hits`, {seed:
    (N,) which test images are right}. It gets `gain`, in words, and `gain_mean`, `gain_low` and `gain_high` where it is
    of several seeds. Raises ValueError if no row is the baseline.
    """
    own = next((row for row in rows if row["run"] == baseline), None)
    if own is None:
        raise ValueError(f"the baseline {baseline} is no row, there are {', '.join(row['run'] for row in rows)}")
    for row in rows:
        scores, ground = (each.get("seeds", {}).get(selection, {}) for each in (row, own))
        common = scores.keys() & ground.keys() if row is not own else set()
        if len(common) > 1:
            found = paired(scores, ground)
            row["gain"] = f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]{_noise(found)}"
            row |= {"gain_mean": found.mean, "gain_low": found.low, "gain_high": found.high}
        elif common:
            (seed,) = common
            row["gain"] = _on_one_seed(_hits(row, seed, scores), _hits(own, seed, ground), scores[seed] - ground[seed])


def _hits(row: dict, seed: str, scores: dict[str, float]) -> np.ndarray | None:
    """Return for which test images a run is right, None unless they are of the epoch whose score is compared."""
    hits = row["hits"].get(seed)
    return hits if hits is not None and abs(100 * hits.mean() - scores[seed]) < CLOSE else None


def _on_one_seed(hits: np.ndarray | None, ground: np.ndarray | None, gain: float) -> str:
    """Return a gain with what the test images say of it, where the predictions of both are kept."""
    if hits is None or ground is None or len(hits) != len(ground):
        return f"{gain:+.2f}, one seed"
    found, p = bootstrap(hits, ground), mcnemar(hits, ground)
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] over images, one seed, p {p:.2g}{_noise(found)}"


def _noise(found) -> str:
    return ", within noise" if found.noise else ""
