"""Token distillation at several taps: VkD for detection, and ViDT's token matching.

Shapes: B batch, C channels, H height, W width, L levels of a decoder, Q queries, N tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pycls_std.core.option import Option
from pycls_std.core.registry import TERMS
from pycls_std.core.structures import Batch, Output, Padded, Progress, World, added
from pycls_std.core.text import counted
from pycls_std.layers.padding import mask_at
from pycls_std.layers.projection import ChannelScale, make_projection
from pycls_std.losses.feature import to_common_size
from pycls_std.losses.token_matching import averaged, token_distance
from pycls_std.models.describe import Description
from pycls_std.models.taps import TapShape, choose_taps
from pycls_std.terms.base import Term


class Pair(NamedTuple):
    """A tap of the student, and the teacher's tap that it is matched with."""

    own: str
    other: str
    queries: bool = False  # it holds queries, not a feature map of the image


class Form(NamedTuple):
    """How tokens are compared; see the options of the same names."""

    norm: str = "standardize"
    distance: str = "smooth_l1"
    levels: str = "mean"
    root: bool = False
    eps: float = 1e-5
    mask: bool = True
    all_processes: bool = True


@TERMS.register("tokens")
class Tokens(Term):
    """weight sum over taps of the mean distance between the student's projected tokens and the teacher's.

    Tokens are the positions of feature maps, and a detector's queries; each is matched with the teacher's token at the
    same position, so both models must have the same number of queries. The defaults are VkD's: an orthogonal
    projection, standardization of both sides, smooth L1; ViDT's own token matching is the preset `token_matching`.
    Source: Miles et al., CVPR 2024 (VkD), and Song et al., ICLR 2022 (ViDT): roymiles/vkd and naver-ai/vidt. The code
    of both has no epsilon, includes padded pixels, and computes statistics and means in each process separately:
    EPS 0, MASK false, ALL_PROCESSES false.
    """

    OPTIONS = {
        # Weight of the sum over taps; 0 = off. TRAINER vkd, in detection, and token_matching set the published 4.
        "WEIGHT": Option(0.0, least=0),
        # Position of the teacher in DISTILLATION.TEACHERS.
        "TEACHER": Option(0, least=0),
        # Feature maps of the student that are trained, ascending: taps by name, position or share of the depth;
        # [] = none. If two maps differ in size, the smaller is enlarged.
        "STUDENT_MAPS": Option(["neck.maps.0", "neck.maps.1", "neck.maps.2", "neck.maps.3"], column="maps"),
        # Maps of the teacher, one each, in the same form; [] = those of the same names.
        "TEACHER_MAPS": Option([], of=str, column="teacher's maps"),
        # Taps of the student whose queries are trained, (B, C, L, Q) for L levels of Q queries, in the same form.
        "STUDENT_QUERIES": Option(["neck.queries", "neck.decoder"], column="queries"),
        # Queries of the teacher, one each; [] = those of the same names.
        "TEACHER_QUERIES": Option([], of=str, column="teacher's queries"),
        # From the student's channels to the teacher's, see VKD.PROJECTION; none = if both have the same number.
        "PROJECTION": Option(("orthogonal", "linear", "mlp", "none"), column="projection of tokens"),
        # Map from a free matrix to the orthogonal projection's weight; the published one is matrix_exp.
        "MAP": Option(
            ("auto", "householder", "cayley", "matrix_exp", "qr", "cholesky_qr"), when="TOKENS.PROJECTION=orthogonal"
        ),
        # Multiply the map's result, which starts at the identity, by a fixed random orthogonal matrix, as published.
        "TRIVIALIZE": Option(False, when="TOKENS.PROJECTION=orthogonal"),
        # Learned scale and shift of each channel after the projection, as published; NORM standardize cancels both.
        "SCALE": Option(True, when="TOKENS.PROJECTION!=none", column="scale"),
        # Normalisation of both sides: each channel to mean 0 and variance 1 over all tokens of a batch (standardize),
        # or none.
        "NORM": Option(("standardize", "none"), column="norm of tokens"),
        # Distance of two tokens: smooth L1 with beta 1, its mean over the channels; or Euclidean.
        "DISTANCE": Option(("smooth_l1", "euclidean"), column="distance of tokens"),
        # How the distances of the levels of queries are reduced: by their mean, or their sum.
        "LEVELS": Option(("mean", "sum"), column="levels"),
        # Take the square root of the sum over taps, before the weight.
        "ROOT": Option(False, column="root"),
        # Added to each channel's variance; 0 = as published, and a constant channel gives NaN.
        "EPS": Option(1e-5, least=0, greatest=1, when="TOKENS.NORM=standardize"),
        # Exclude padded positions of the maps; false = as published.
        "MASK": Option(True, column="masked"),
        # Compute statistics and means over the tokens of all processes, as one process with the whole batch would;
        # false = of each process separately, as published, with 2 images per process.
        "ALL_PROCESSES": Option(True),
    }

    def __init__(self, pairs: list[Pair], projections: list[nn.Module], form: Form, *, weight: float, teacher: int = 0):
        own, other, _ = zip(*pairs, strict=True)
        super().__init__(weight, student_taps=own, teacher_taps={teacher: other})
        self.pairs = pairs
        self.projections = nn.ModuleList(projections)
        self.form = form
        self.teacher = teacher

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section TOKENS. Raises ValueError for unknown taps or teachers, and those that do not fit."""
        options, teacher = cfg.TOKENS, run.teacher(cfg.TOKENS.TEACHER, "TOKENS.TEACHER")
        pairs = [pair for kind in ("MAPS", "QUERIES") for pair in _pairs(options, kind, run.student, teacher)]
        if not pairs:
            raise ValueError("TOKENS.STUDENT_MAPS and TOKENS.STUDENT_QUERIES are empty, expected at least one tap")
        projections = [_projection(options, run.student.taps[p.own], teacher.taps[p.other], p.own) for p in pairs]
        form = Form(**{name: options[name.upper()] for name in Form._fields})
        return cls(pairs, projections, form, weight=options.WEIGHT, teacher=options.TEACHER)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"tokens"}."""
        form, world = self.form, self.world if self.form.all_processes else World()
        mask = batch.images.mask if form.mask and isinstance(batch.images, Padded) else None
        values = []
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            both = student.features[pair.own], teachers[self.teacher].features[pair.other]
            own, other = both if pair.queries else to_common_size(*both)
            keep = None if pair.queries or mask is None else mask_at(mask, (own.shape[2], own.shape[3])).flatten()
            distance = token_distance(
                projection(_tokens(own)),
                _tokens(other),
                keep,
                distance=form.distance,
                eps=form.eps if form.norm == "standardize" else None,
                world=world,
            )
            levels = own.shape[2] if pair.queries and form.levels == "sum" else 1
            values.append(levels * distance)
        total = added(values)
        if form.root:
            total = averaged(total, world).clamp(min=torch.finfo(total.dtype).tiny).sqrt()  # no gradient where it is 0
        return {"tokens": self.weight * total}


def _tokens(features: Tensor) -> Tensor:
    """Return features (B, C, H, W) as tokens (B H W, C)."""
    return features.movedim(1, -1).flatten(end_dim=-2)


def _pairs(options, kind: str, student: Description, teacher: Description) -> list[Pair]:
    """Return the pairs of taps. Raises ValueError for unknown taps, or if the numbers of queries differ."""
    own, queries = options[f"STUDENT_{kind}"], kind == "QUERIES"
    other = options[f"TEACHER_{kind}"] or own
    if len(own) != len(other):
        has = counted(len(own), "entry", "entries")
        raise ValueError(f"TOKENS.STUDENT_{kind} has {has}, TEACHER_{kind} has {len(other)}")
    if not own:
        return []
    own = _chosen(f"TOKENS.STUDENT_{kind}", own, student, queries=queries)
    other = _chosen(f"TOKENS.TEACHER_{kind}", other, teacher, queries=queries)
    for tap, taught_by in zip(own, other, strict=True) if queries else ():
        sizes = [tuple(model.taps[name])[1:] for model, name in ((student, tap), (teacher, taught_by))]
        if sizes[0] != sizes[1]:
            (levels, count), (more, others) = sizes
            raise ValueError(
                f"TOKENS.STUDENT_QUERIES {tap} is {levels} x {count} queries, TEACHER_QUERIES {taught_by} is "
                f"{more} x {others}: each learns one"
            )
    return [Pair(*names, queries) for names in zip(own, other, strict=True)]


def _chosen(key: str, choices: list[str], model: Description, *, queries: bool) -> tuple[str, ...]:
    """Return the names of the chosen taps. Raises ValueError for maps among queries, and for queries among maps."""
    names = choose_taps(key, choices, list(model.taps))
    for choice, name in zip(choices, names, strict=True):
        if (name in model.queries) != queries:
            found, kind = ("a map of the image", "MAPS") if queries else ("queries and no map of the image", "QUERIES")
            raise ValueError(f"{key} has {choice!r}: {name} is {found}, {key.rpartition('_')[0]}_{kind} takes it")
    return names


def _projection(options, own: TapShape, other: TapShape, tap: str) -> nn.Module:
    try:
        projection = make_projection(
            options.PROJECTION, own.channels, other.channels, kind=options.MAP, trivialize=options.TRIVIALIZE
        )
    except ValueError as error:
        raise ValueError(f"TOKENS.PROJECTION is {options.PROJECTION}, at {tap}: {error}") from error
    scaled = options.SCALE and options.PROJECTION != "none"
    return nn.Sequential(projection, ChannelScale(other.channels)) if scaled else projection
