"""Compare feature maps of two models: resize to a common size, transform, take the mean squared error.

A function registered in FEATURE_TRANSFORMS can be chosen by LOCALITY.TRANSFORM: it maps features (B, C, H, W) to what
is compared. If it keeps the channels, its attribute `projects` is True, and the student's map is first projected to the
teacher's number of channels.

Shapes: B batch, C channels, H height, W width.
"""

from torch import Tensor
from torch.nn.functional import interpolate, normalize

from pycls_std.core.registry import FEATURE_TRANSFORMS


@FEATURE_TRANSFORMS.register("linear")
def linear(features: Tensor) -> Tensor:
    """Return the features (B, C, H, W) as they are."""
    return features


linear.projects = True


@FEATURE_TRANSFORMS.register("attention")
def attention(features: Tensor) -> Tensor:
    """Return the attention map of features (B, C, H, W): their mean square over channels, (B, H W), L2-normalized.

    Source: Zagoruyko and Komodakis, ICLR 2017.
    """
    return normalize(features.square().mean(dim=1).flatten(1))


@FEATURE_TRANSFORMS.register("similarity")
def similarity(features: Tensor) -> Tensor:
    """Return the Gram matrix (B, B) of the images' features (B, C, H, W), with L2-normalized rows.

    Each process compares its own images of a batch. Computed in fp64, which autocast does not change: the sums are over
    tens of thousands of products, too large for fp16.
    Source: Tung and Mori, ICCV 2019.
    """
    flat = features.flatten(1).double()
    return normalize(flat @ flat.T).float()


def to_common_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (B, C, H, W), of any channels, at the larger height and width of the two, bilinearly enlarged."""
    size = tuple(max(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True))
    first, second = (m if m.shape[2:] == size else interpolate(m, size, mode="bilinear") for m in (first, second))
    return first, second


def feature_distance(student: Tensor, teacher: Tensor, transform=linear) -> Tensor:
    """Return the mean squared error between two transformed feature maps, a scalar in fp32.

    student, teacher: (B, C, H, W), first resized to a common size; the numbers of channels may differ if the transform
    does not keep them.
    """
    pair = to_common_size(student.float(), teacher.float())
    first, second = (transform(features) for features in pair)
    return (second - first).square().mean()
