"""Token matching."""

from pycls_std.core.registry import TRAINERS
from pycls_std.trainers.base import Preset


@TRAINERS.register("token_matching")
class TokenMatching(Preset):
    """Labels, and a larger detector's tokens as they are, by their Euclidean distance; see `terms/tokens.py`.

    Weight and form as published: 4 times the square root of a sum over taps, in which the decoder's levels are added.
    Source: Song et al., ICLR 2022 (ViDT), branch main of naver-ai/vidt.
    """

    DEFAULTS = {
        # The published coefficient.
        "TOKENS.WEIGHT": 4.0,
        # The necks bring all models to one width: tokens are compared as they are.
        "TOKENS.PROJECTION": "none",
        # See above.
        "TOKENS.NORM": "none",
        # The root of a sum of squares, the mean of which is over tokens.
        "TOKENS.DISTANCE": "euclidean",
        # The mean over the levels, times their number.
        "TOKENS.LEVELS": "sum",
        # Of the sum over taps.
        "TOKENS.ROOT": True,
    }
