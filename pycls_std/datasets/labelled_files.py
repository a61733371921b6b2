"""Image files whose labels are known without reading them."""

from torch.utils.data import Dataset

from pycls_std.datasets.decoding import open_image


class LabelledFiles(Dataset):
    """Pairs of an image, not decoded yet, and a label.

    samples: pairs of a path and a label.
    """

    def __init__(self, samples: list[tuple[str, int]]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        return open_image(path), label
