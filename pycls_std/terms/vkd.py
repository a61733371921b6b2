"""VkD: a student's mean patch features, orthogonally projected, are matched to a teacher's normalised features.

Shapes: B batch, N images of all processes, C channels.
"""

import inspect
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

import pycls_std.losses  # noqa: F401  (registers the normalisations)
from pycls_std.core.option import Option
from pycls_std.core.registry import FEATURE_NORMS, TERMS
from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.layers.projection import make_projection
from pycls_std.models.taps import choose_features
from pycls_std.terms.base import Term


@TERMS.register("vkd")
class VkD(Term):
    """weight smooth_l1(P z_s, norm(z_t)), its mean over images and channels, with beta 1.

    z_s is the mean over the patches of the student's last features, z_t the teacher's pooled features (the classifier's
    input). P has orthonormal columns, so it preserves the inner products of the student's features, and the student
    must learn what P cannot. The paper's alpha is the weight; its gamma, of KL(teacher || student) on the distillation
    head, is KD.WEIGHT with DISTILLATION.TYPE soft.
    Source: Miles et al., CVPR 2024 (VkD); taps, weights and normalisation as in its code for DeiT (roymiles/vkd).
    """

    OPTIONS = {
        # Weight of the feature distance (alpha); 0 = off.
        "WEIGHT": Option(0.0, least=0),
        # Position of the teacher in DISTILLATION.TEACHERS.
        "TEACHER": Option(0, least=0),
        # Features of the student that are trained: patches (their mean, without class and distillation tokens, after a
        # final norm if that precedes the pooling), pooled (the classifier's input), or the spatial mean of a tap: last,
        # a position, a share of the depth, or a name as --mode info shows it.
        "STUDENT_TAP": Option("patches", column="student's features"),
        # Features of the teacher that they are matched to, in the same form.
        "TEACHER_TAP": Option("pooled", column="teacher's features"),
        # Normalisation of the teacher's features: over the channels of each image (layer), of each channel over the
        # images of a batch of all processes (standardize), of their covariance (whiten, which synchronizes with the GPU
        # in each step), or none.
        "NORM": Option("layer", registry="FEATURE_NORMS", column="norm"),
        # Shrinkage of whitening's covariance: the share replaced by its mean variance in all directions; needed because
        # a batch may have fewer images than a teacher has channels.
        "SHRINKAGE": Option(0.01, least=0.001, greatest=1, when="VKD.NORM=whiten"),
        # From the student's channels to the teacher's: a linear layer that preserves inner products (orthogonal), a
        # plain one (linear), two with a ReLU between (mlp), or none, if both have the same number of channels.
        "PROJECTION": Option(("orthogonal", "linear", "mlp", "none"), column="projection"),
        # Map from an unconstrained matrix to the orthogonal projection's weight; auto = the fastest measured,
        # on a CPU (docs/speed.md); matrix_exp synchronizes with the GPU in each step.
        "MAP": Option(
            ("auto", "householder", "cayley", "matrix_exp", "qr", "cholesky_qr"), when="VKD.PROJECTION=orthogonal"
        ),
        # Multiply the map's result, which starts at the identity, by a fixed random orthogonal matrix: square, of the
        # larger number of channels, and saved in checkpoints (36 MB at 3024 channels).
        "TRIVIALIZE": Option(False, when="VKD.PROJECTION=orthogonal"),
    }

    def __init__(
        self, taps: tuple[str, str], projection: nn.Module, norm: Callable[..., Tensor], *, weight: float, teacher: int
    ):
        super().__init__(weight, student_taps=taps[:1], teacher_taps={teacher: taps[1:]})
        self.taps = taps
        self.teacher = teacher
        self.projection = projection
        self.norm = norm
        form = getattr(norm, "func", norm)
        self.of_population = getattr(form, "of_population", False)
        self.no_graph = getattr(form, "no_graph", "")

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section VKD. Raises ValueError for unknown taps or teachers, and those that do not fit."""
        run.refuse_padding("VKD.WEIGHT")
        options = cfg.VKD
        models = {"STUDENT_TAP": run.student, "TEACHER_TAP": run.teacher(options.TEACHER, "VKD.TEACHER")}
        taps = [choose_features(f"VKD.{key}", options[key], list(model.taps)) for key, model in models.items()]
        channels = [model.shape(tap)[0] for tap, model in zip(taps, models.values(), strict=True)]
        try:
            projection = make_projection(options.PROJECTION, *channels, kind=options.MAP, trivialize=options.TRIVIALIZE)
        except ValueError as error:
            raise ValueError(f"VKD.PROJECTION is {options.PROJECTION}: {error}") from error
        norm = FEATURE_NORMS.get(options.NORM)
        asked = {name: options[name.upper()] for name in list(inspect.signature(norm).parameters)[2:]}
        norm = partial(norm, **asked) if asked else norm
        return cls(tuple(taps), projection, norm, weight=options.WEIGHT, teacher=options.TEACHER)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"vkd"}."""
        own, other = student.features[self.taps[0]], teachers[self.teacher].features[self.taps[1]]
        own, other = (each.mean(dim=(2, 3)) if each.ndim == 4 else each for each in (own, other))
        population = self.world.concatenated(other) if self.of_population else other
        return {"vkd": self.weight * smooth_l1_loss(self.projection(own).float(), self.norm(other, population))}
