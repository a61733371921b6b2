"""Rename options of earlier versions, in their records, checkpoints and configs.

Until November 2026 the weights of an objective were those of its method: KD.CE_WEIGHT and KD.KD_WEIGHT, and
DISTILLATION.ALPHA for the share of distillation in std and in deit.
"""

from typing import Any

from pycls_std.config.mistake import ConfigError
from pycls_std.config.setting import coerce

ALPHA = 0.5  # its default
# Values of DEIT.MODE with which it was not used.
WITHOUT_ALPHA = ("none", "class", "distill")


def upgraded(settings: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Return settings, {"SECTION.KEY": (value, where)}, by their current names.

    settings: in the order in which they were made; of an old name and the current one, the later setting counts.
    Raises ConfigError for an invalid value of an old option, and for one that had no effect.
    """
    found, order = dict(settings), list(settings)

    def rename(old: str, new: str, pair: tuple[Any, str]) -> None:
        if new not in settings or order.index(new) < order.index(old):
            found[new] = pair

    trainer, mode = (str(found[key][0]) if key in found else "" for key in ("TRAINER", "DEIT.MODE"))
    if trainer == "kd":
        for old, new in {"KD.CE_WEIGHT": "TASK.WEIGHT", "KD.KD_WEIGHT": "KD.WEIGHT"}.items():
            if old in found:
                rename(old, new, found.pop(old))
    if "DISTILLATION.ALPHA" not in found:
        return found
    alpha, where = found.pop("DISTILLATION.ALPHA")
    alpha = coerce(alpha, ALPHA, None, f"{where}: DISTILLATION.ALPHA")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"{where}: DISTILLATION.ALPHA is {alpha}, expected 0 to 1")
    if trainer == "std" or trainer == "deit" and mode not in WITHOUT_ALPHA:
        rename("DISTILLATION.ALPHA", "TASK.WEIGHT", (1 - alpha, where))
        rename("DISTILLATION.ALPHA", "STD.WEIGHT" if trainer == "std" else "KD.WEIGHT", (alpha, where))
    elif where and alpha != ALPHA:  # records of all trainers have it
        raise ConfigError(
            f"{where}: DISTILLATION.ALPHA is {alpha}, which TRAINER {trainer or 'baseline'} does not read; each term "
            "has a WEIGHT of its own"
        )
    if trainer == "deit" and mode in ("soft", "hard"):
        found.pop("DISTILLATION.TYPE", None)  # such a mode set the form itself, whatever this was
    return found


def upgraded_record(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a record, {"SECTION.KEY": value}, by their current names."""
    settings = {key: (value, "") for key, value in flat.items()}
    return {key: value for key, (value, _) in upgraded(settings).items()}
