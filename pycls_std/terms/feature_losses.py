"""Feature distillation losses: the taps each reads, its adapters, and its distance.

A class registered in FEATURE_LOSSES can be chosen by FEATURE.LOSS.
Shapes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pycls_std.core.registry import FEATURE_LOSSES
from pycls_std.core.structures import Batch, World, added
from pycls_std.layers.contrast_memory import ContrastMemory
from pycls_std.layers.feature_adapters import GaussianRegressor, hint_regressor, projection_head
from pycls_std.layers.review import Review
from pycls_std.losses.contrast import contrastive_loss
from pycls_std.losses.feature_maps import (
    attention_distance,
    gaussian_distance,
    hierarchical_distance,
    hint_distance,
    selectivity_distance,
    to_smaller_size,
)
from pycls_std.losses.relations import (
    affinity_divergence,
    correlation_distance,
    relational_distance,
    similarity_distance,
)
from pycls_std.models.taps import POOLED, TapShape


class FeatureLoss(nn.Module):
    """A loss summed over pairs of taps.

    student, teacher: the shape of each tap; options: those of section FEATURE that the constructor names, in lower
    case, and `images`, the number of training images, if it names it.
    """

    TAPS = "all"  # default taps, where FEATURE's lists are empty: all, evenly paired; pooled; or one tap of the lists
    VECTORS = False  # it compares vectors (B, C): the pooled features, and maps averaged over their positions
    WITH_POOLED = False  # the pooled features are appended to its maps, as 1x1 maps
    SINGLE_IMAGES = False  # it has a memory of images, so mixup and cutmix are refused
    LEAST_IMAGES = 1  # in a batch of each process: 2 to compare images, or where a batch norm sees 1x1 maps

    def __init__(self, student: list[TapShape], teacher: list[TapShape]):
        super().__init__()

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch, world: World) -> Tensor:
        """Return a scalar. student, teacher: features of each tap, (B, C, H, W), or (B, C) if VECTORS."""
        pairs = zip(student, teacher, strict=True)
        return added(self.compare(number, *pair) for number, pair in enumerate(pairs))

    def compare(self, number: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the scalar loss of one pair of taps, its `distance`; number: index of the pair."""
        return self.distance(student, teacher)

    @staticmethod
    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        """Return the scalar loss, for one without learned adapters; a loss with adapters overrides `compare`."""
        raise NotImplementedError


@FEATURE_LOSSES.register("fitnet")
class FitNet(FeatureLoss):
    """Maps of one intermediate stage, the student's through a regressor."""

    TAPS = "1/2"

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        pairs = zip(student, teacher, strict=True)
        self.regressors = nn.ModuleList(hint_regressor(own.channels, other.channels) for own, other in pairs)

    def compare(self, number, student, teacher):
        """Return `hint_distance`."""
        student, teacher = to_smaller_size(student, teacher)
        return hint_distance(self.regressors[number](student), teacher)


@FEATURE_LOSSES.register("at")
class AttentionTransfer(FeatureLoss):
    """Spatial attention maps of every stage."""

    distance = staticmethod(attention_distance)


@FEATURE_LOSSES.register("nst")
class NeuronSelectivity(FeatureLoss):
    """Distributions of the channels' activations (neuron selectivity) of every stage."""

    distance = staticmethod(selectivity_distance)


@FEATURE_LOSSES.register("vid")
class VariationalInformation(FeatureLoss):
    """Gaussian likelihood of the teacher's maps of every stage, given the student's."""

    def __init__(self, student, teacher, vid_variance=5.0):
        super().__init__(student, teacher)
        pairs = zip(student, teacher, strict=True)
        self.regressors = nn.ModuleList(
            GaussianRegressor(own.channels, other.channels, variance=vid_variance) for own, other in pairs
        )

    def compare(self, number, student, teacher):
        """Return `gaussian_distance`."""
        student, teacher = to_smaller_size(student, teacher)
        return gaussian_distance(*self.regressors[number](student), teacher)


@FEATURE_LOSSES.register("reviewkd")
class KnowledgeReview(FeatureLoss):
    """Maps of every stage and the pooled features; each of the student's is fused with those of deeper stages.

    Source: Chen et al., CVPR 2021. Its code reads the teacher's maps before their last ReLU: DISTILLATION.TEACHER_ARGS.
    """

    WITH_POOLED = True
    LEAST_IMAGES = 2

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.review = Review(student, teacher)

    def forward(self, student, teacher, batch, world):
        """Return the sum of `hierarchical_distance` over the stages."""
        pairs = zip(self.review(student), teacher, strict=True)
        return sum(hierarchical_distance(*pair) for pair in pairs)


@FEATURE_LOSSES.register("sp")
class SimilarityPreserving(FeatureLoss):
    """Pairwise similarities of the images of a batch, in the maps of the last stage."""

    TAPS = "last"
    LEAST_IMAGES = 2

    distance = staticmethod(similarity_distance)


@FEATURE_LOSSES.register("pkt")
class ProbabilisticTransfer(FeatureLoss):
    """Conditional neighbour probabilities within a batch, by the pooled features."""

    TAPS = "pooled"
    VECTORS = True
    LEAST_IMAGES = 2

    distance = staticmethod(affinity_divergence)


@FEATURE_LOSSES.register("rkd")
class RelationalKD(FeatureLoss):
    """Distances and angles between the images of a batch, by the pooled features."""

    TAPS = "pooled"
    VECTORS = True
    LEAST_IMAGES = 2

    def __init__(self, student, teacher, rkd_distance=25.0, rkd_angle=50.0):
        super().__init__(student, teacher)
        self.weights = {"distance_weight": rkd_distance, "angle_weight": rkd_angle}

    def compare(self, number, student, teacher):
        """Return `relational_distance`."""
        return relational_distance(student, teacher, **self.weights)


@FEATURE_LOSSES.register("rsd")
class RedundancySuppression(FeatureLoss):
    """Cross-correlations over a batch of the teacher's pooled features and the student's, after a two-layer head."""

    TAPS = "pooled"
    VECTORS = True
    LEAST_IMAGES = 2

    def __init__(self, student, teacher, rsd_kappa=0.01):
        super().__init__(student, teacher)
        pairs = zip(student, teacher, strict=True)
        self.heads = nn.ModuleList(projection_head(own.channels, other.channels) for own, other in pairs)
        self.kappa = rsd_kappa

    def compare(self, number, student, teacher):
        """Return `correlation_distance`."""
        return correlation_distance(self.heads[number](student), teacher, kappa=self.kappa)


@FEATURE_LOSSES.register("crd")
class ContrastiveRepresentation(FeatureLoss):
    """Contrast the two models' pooled features of an image with those of other classes, from a memory bank."""

    TAPS = "pooled"
    VECTORS = True
    SINGLE_IMAGES = True

    def __init__(
        self, student, teacher, images, crd_channels=128, crd_negatives=16384, crd_temperature=0.07, crd_momentum=0.5
    ):
        super().__init__(student, teacher)
        if len(student) > 1:
            raise ValueError(f"FEATURE.LOSS crd has one memory, FEATURE.STUDENT_TAPS has {len(student)} entries")
        self.embed_student = nn.Linear(student[0].channels, crd_channels)
        self.embed_teacher = nn.Linear(teacher[0].channels, crd_channels)
        sizes = {"negatives": crd_negatives, "temperature": crd_temperature, "momentum": crd_momentum}
        self.memory = ContrastMemory(images, crd_channels, **sizes)

    def forward(self, student, teacher, batch, world):
        """Return `contrastive_loss` of the student against the teacher's memory, plus that of the other way."""
        pair = ((self.embed_student, student[0]), (self.embed_teacher, teacher[0]))
        own, other = (normalize(embed(features).float()) for embed, features in pair)
        likely = self.memory(own, other, batch.loaded.index, batch.loaded.targets, world)
        return torch.stack([contrastive_loss(*each, images=len(self.memory.classes)) for each in likely]).sum()


def as_given(features: Tensor, tap: str, *, vectors: bool) -> Tensor:
    """Return features of a tap as a loss compares them: maps (B, C, H, W), or vectors (B, C)."""
    if tap == POOLED:
        return features if vectors else features[:, :, None, None]
    return features.mean(dim=(2, 3)) if vectors else features
