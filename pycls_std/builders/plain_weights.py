"""Weight files of other programs: unwrap the dictionaries around the weights, and restore the bare model's names."""

import logging
import shlex

from timm.models import clean_state_dict
from torch import Tensor

from pycls_std.core.text import first_of
from pycls_std.engine.checkpoint import importing

LOG = logging.getLogger("pycls_std")
# Keys under which programs store weights. The moving average comes first: if there are both, it is the better one, and
# the one that timm loads.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "net")
PREFIXES, BRANCHES = ("backbone.", "model."), "branches."  # names of the model in wrappers; the second is Lightning's


def plain(state: dict, origin: str) -> dict[str, Tensor]:
    """Return the weights in a file's content by name: unwrapped, without prefixes of parallel or compiled modules.

    Raises ValueError that names the origin if it holds anything else, or nothing.
    """
    path = []
    for _ in WRAPPERS:  # a limit: wrappers may be nested, and a hostile one may contain itself
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
    """Return the weights of the backbone among those of a student, or of a wrapper that names it by one of PREFIXES.

    A prefix is removed only if all names have it, branches aside; otherwise the weights are returned as they are.
    """
    own = {key: value for key, value in weights.items() if not key.startswith(BRANCHES)}
    prefix = next((each for each in PREFIXES if own and all(key.startswith(each) for key in own)), "")
    if not prefix:
        return weights
    if len(own) < len(weights):
        LOG.info("%d tensors of the branches of a student are left out", len(weights) - len(own))
    return of_backbone(clean_state_dict({key.removeprefix(prefix): value for key, value in own.items()}))


def _elsewhere(state: dict, origin: str) -> str:
    """Return a hint on which other key of a file has weights, and how to extract them; "" if there is none."""
    inside = [key for key, value in state.items() if isinstance(value, dict) and value and _are_weights(value)]
    if not inside:
        return ""
    how = importing(origin, f" --key {shlex.quote(str(inside[0]))}")
    return f"; it has some under {first_of(map(repr, inside))}: {how}"


def _are_weights(state: dict) -> bool:
    return all(isinstance(value, Tensor) and isinstance(key, str) for key, value in state.items())
