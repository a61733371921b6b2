"""Input normalisations by name."""

from pycls_std.core.structures import Normalization

NORMALIZATIONS = {
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # The statistics that the published CIFAR ResNets were trained with.
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Normalization((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "tiny_imagenet": Normalization((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "digits": Normalization((0.3053,) * 3, (0.3761,) * 3),
}
