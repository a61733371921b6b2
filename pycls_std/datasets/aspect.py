"""Group images by aspect ratio, so that a batch of one group has little padding.

Shapes: N images.
"""

import numpy as np
from torch.utils.data import Subset

from pycls_std.core.structures import ImageSet
from pycls_std.datasets.subsets import known

WIDEST = 2.0  # largest ratio that separates groups; most photographs are 4:3 and 3:2


def aspect_groups(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return the group (N,) of each image, from 0, the widest, to count - 1, the tallest.

    sizes: (N, 2) height and width, pixels. The boundaries of height / width are equally spaced on a logarithmic scale,
    from 1/2 to 2. So two groups are images wider than high, and all others, as in Detectron2.
    """
    borders = WIDEST ** (np.arange(1, count) * 2 / count - 1)
    return np.searchsorted(borders, sizes[:, 0] / sizes[:, 1], side="right")


def known_sizes(dataset: ImageSet) -> np.ndarray:
    """Return height and width (N, 2) of the images, from the dataset's attribute `sizes`, without reading them.

    Raises ValueError for a dataset without `sizes`.
    """
    sizes = known(dataset, "sizes")
    if sizes is None:
        whole = dataset.dataset if isinstance(dataset, Subset) else dataset
        raise ValueError(f"{type(whole).__name__} does not know the sizes of its images without reading them")
    return sizes
