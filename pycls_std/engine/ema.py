"""The moving average of the student's weights, from timm."""

from timm.utils import ModelEmaV3
from torch import nn


def create_ema(student: nn.Module, *, decay: float, warmup: bool) -> ModelEmaV3 | None:
    """Return the average of a student already on its device; None if decay is 0.

    warmup: the average starts short and grows to decay, which it needs in runs much shorter than 1 / (1 - decay)
    iterations.
    """
    return ModelEmaV3(student, decay=decay, use_warmup=warmup) if decay else None
