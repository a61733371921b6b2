"""Check every image of a dataset."""

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset

from pycls_std.core.structures import ImageSet
from pycls_std.datasets.decoding import to_rgb


class DatasetScan(Dataset):
    """For each image of a dataset, "" or the reason in one line why it cannot be used.

    check(index, target) raises ValueError for an invalid target.
    """

    def __init__(self, dataset: ImageSet, check: Callable):
        self.dataset = dataset
        self.check = check

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str:
        try:
            image, target = self.dataset[index]
            to_rgb(image)
            self.check(index, target)
        except Exception as error:  # decoders may raise anything
            return " ".join(str(error).split()) or f"image {index}: {type(error).__name__}"
        return ""


def read_all(dataset: ImageSet, *, check: Callable, workers: int) -> Iterator[str]:
    """Yield the fault of every image, in order, "" for none."""
    loader = DataLoader(DatasetScan(dataset, check), batch_size=64, num_workers=workers, collate_fn=list)
    return (fault for batch in loader for fault in batch)
