"""VkD: a student's mean patch, orthogonally projected, learns a teacher's normalised features.

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

    z_s is the mean over the patches of the student's last features, z_t what the teacher's classifier reads. P has
    orthonormal columns, so that it keeps the inner products of the student's features, and what is learned is learned
    by the student and not by P. The publication's alpha is the weight; its gamma, of KL(teacher || student) on the
    distillation head, is KD.WEIGHT with DISTILLATION.TYPE soft.
    Source: Miles et al., CVPR 2024 (VkD); taps, weights and normalisation as in its code for DeiT (roymiles/vkd).
    """

    OPTIONS = {
        # Weight of the features' distance (alpha); 0 = off.
        "WEIGHT": Option(0.0, least=0),
        # Position of the teacher in DISTILLATION.TEACHERS.
        "TEACHER": Option(0, least=0),
        # What learns of the student: patches (their mean, without class and distillation tokens, after a final norm
        # that is before the pooling), pooled (what the classifier reads), or the mean over the places of a tap: last, a
        # position, a share of the depth, or a name as --mode info shows it.
        "STUDENT_TAP": Option("patches", column="student's features"),
        # What teaches of the teacher, in the same form.
        "TEACHER_TAP": Option("pooled", column="teacher's features"),
        # Normalisation of the teacher's features: over the channels of each image (layer), of each channel over the
        # images of a batch of all processes (standardize), of their covariance (whiten, which waits for a GPU in each
        # step), or none.
        "NORM": Option("layer", registry="FEATURE_NORMS", column="norm"),
        # Share of whitening's covariance that is replaced by its mean variance in all directions; needed because a
        # batch has fewer images than a teacher has channels.
        "SHRINKAGE": Option(0.01, least=0.001, greatest=1, when="VKD.NORM=whiten"),
        # From the student's channels to the teacher's: a linear layer that keeps inner products (orthogonal), a plain
        # one (linear), two with a ReLU between (mlp), or nothing, for as many channels (none).
        "PROJECTION": Option(("orthogonal", "linear", "mlp", "none"), column="projection"),
        # Map from a free matrix to the orthogonal projection's weight; auto = the fastest measured,
        # on a CPU (docs/speed.md); matrix_exp waits for a GPU in each step.
        "MAP": Option(
            ("auto", "householder", "cayley", "matrix_exp", "qr", "cholesky_qr"), when="VKD.PROJECTION=orthogonal"
        ),
        # Turn the weight from a fixed random one, a square matrix of the larger number of channels that is kept in
        # checkpoints: at 3024 channels 36 MB.
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
        """Build from section VKD. Raises ValueError for taps and a teacher that are not there, or do not fit."""
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
