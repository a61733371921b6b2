"""Options as earlier versions called them, in the records, checkpoints and configs of these.

Until November 2026 the weights of an objective were those of its method: KD.CE_WEIGHT and KD.KD_WEIGHT, and
DISTILLATION.ALPHA for the share of distillation in std and in deit.
"""

from typing import Any

from pycls_std.config.mistake import ConfigError
from pycls_std.config.setting import coerce

ALPHA = 0.5  # its default
# Modes of deit in which it had no part.
WITHOUT_ALPHA = ("none", "class", "distill")


def upgraded(settings: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Return settings, {"SECTION.KEY": (value, where)}, by today's names; those that are of today stay as they are.

    settings: in the order in which they were made; of an old name and today's, the later one counts.
    Raises ConfigError for a value that an old option did not take, and for one that had no effect.
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
    elif where and alpha != ALPHA:  # records have it whoever the trainer was
        raise ConfigError(
            f"{where}: DISTILLATION.ALPHA is {alpha}, which TRAINER {trainer or 'baseline'} does not read; each term "
            "has a WEIGHT of its own"
        )
    if trainer == "deit" and mode in ("soft", "hard"):
        found.pop("DISTILLATION.TYPE", None)  # such a mode said the form itself, whatever stood there
    return found


def upgraded_record(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a record, {"SECTION.KEY": value}, by today's names."""
    settings = {key: (value, "") for key, value in flat.items()}
    return {key: value for key, (value, _) in upgraded(settings).items()}
