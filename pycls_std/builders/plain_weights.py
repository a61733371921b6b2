"""Weights of a file of another program: out of the dictionaries it wraps them in, by the names of the bare model."""

import logging
import shlex

from timm.models import clean_state_dict
from torch import Tensor

from pycls_std.core.text import first_of
from pycls_std.engine.checkpoint import importing

LOG = logging.getLogger("pycls_std")
# Entries under which programs keep the weights. The moving average is the better one where there are both, and what
# timm itself loads then.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "net")
PREFIXES, BRANCHES = ("backbone.", "model."), "branches."  # what wrappers call the model; Lightning's is the second


def plain(state: dict, origin: str) -> dict[str, Tensor]:
    """Return the weights of a file that holds them by name, also in a wrapper, of a parallel or a compiled module.

    Raises ValueError that names the origin if it holds anything else, or nothing.
    """
    path = []
    for _ in WRAPPERS:  # so often at most: one may be within another, and in a hostile file within itself
        found = next((key for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        if found:
            path.append(found)
            state = state[found]
    if path:
        LOG.info("%s: its weights are those under %s", origin, ".".join(path))
    if not _are_weights(state):
        there = _elsewhere(state, origin)
        raise ValueError(f"{origin} is neither a checkpoint of this runner nor a plain dictionary of weights{there}")
    if not state:
        raise ValueError(f"{origin} holds no weights: it is empty")
    return clean_state_dict(state)


def of_backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a backbone, of those of a student or of a wrapper that calls it one of PREFIXES.

    One whose own names begin so, beside others, is no such wrapper, and stays.
    """
    own = {key: value for key, value in weights.items() if not key.startswith(BRANCHES)}
    prefix = next((each for each in PREFIXES if own and all(key.startswith(each) for key in own)), "")
    if not prefix:
        return weights
    if len(own) < len(weights):
        LOG.info("%d tensors of the branches of a student are left out", len(weights) - len(own))
    return of_backbone(clean_state_dict({key.removeprefix(prefix): value for key, value in own.items()}))


def _elsewhere(state: dict, origin: str) -> str:
    """Return in words under what other entry of a file there are weights, and how to take them out; "" if none."""
    inside = [key for key, value in state.items() if isinstance(value, dict) and value and _are_weights(value)]
    if not inside:
        return ""
    how = importing(origin, f" --key {shlex.quote(str(inside[0]))}")
    return f"; it has some under {first_of(map(repr, inside))}: {how}"


def _are_weights(state: dict) -> bool:
    return all(isinstance(value, Tensor) and isinstance(key, str) for key, value in state.items())
