"""What is wrong with each image of a dataset."""

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from pycls_std.datasets.decoding import to_rgb


class Faults(Dataset):
    """For each image of a dataset "", or in one line why it cannot be used. classes: labels are below it."""

    def __init__(self, dataset: Dataset, classes: int):
        self.dataset = dataset
        self.classes = classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str:
        try:
            image, label = self.dataset[index]
            to_rgb(image)
        except Exception as error:  # a decoder raises what it likes
            return " ".join(str(error).split()) or f"image {index}: {type(error).__name__}"
        return "" if 0 <= label < self.classes else f"image {index} has the label {label} of {self.classes} classes"


def read_all(dataset: Dataset, *, classes: int, workers: int) -> Iterator[str]:
    """Yield the fault of every image, in their order."""
    loader = DataLoader(Faults(dataset, classes), batch_size=64, num_workers=workers, collate_fn=list)
    return (fault for batch in loader for fault in batch)
