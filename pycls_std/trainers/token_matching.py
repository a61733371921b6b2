"""Token matching."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("token_matching")
class TokenMatching(Preset):
    """Labels, and the Euclidean distance to a larger detector's tokens, without projection; see `terms/tokens.py`.

    Weight and form as published: 4 times the square root of a sum over taps, in which the decoder's levels are summed.
    Source: Song et al., ICLR 2022 (ViDT), branch main of naver-ai/vidt.
    """

    DEFAULTS = {
        "TOKENS.WEIGHT": 4.0,
        "TOKENS.PROJECTION": "none",
        "TOKENS.NORM": "none",
        "TOKENS.DISTANCE": "euclidean",
        "TOKENS.LEVELS": "sum",
        "TOKENS.ROOT": True,
    }
