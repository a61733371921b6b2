"""Time crop, flip, RandAugment and erasing of 32 px images on one core: image by image, and in batches from memory.

The images are scikit-learn's digits at 32 px; the cost hardly depends on their content.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import torch
from torchvision.transforms import Compose

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std.core.interleaved import interleaved, report  # noqa: E402
from pycls_std.datasets.digits import Digits  # noqa: E402
from pycls_std.datasets.loader import Views  # noqa: E402
from pycls_std.datasets.memory import store  # noqa: E402
from pycls_std.datasets.memory.augment import BatchAugmentation  # noqa: E402
from pycls_std.datasets.memory.views import MemoryViews  # noqa: E402
from pycls_std.datasets.normalizations import NORMALIZATIONS  # noqa: E402
from pycls_std.datasets.pipeline import ImagePipeline  # noqa: E402
from pycls_std.datasets.transforms import Augmentation, square, train_transform  # noqa: E402
from pycls_std.engine.allocator import keep_freed_memory  # noqa: E402
from pycls_std.tasks.classification import Classification  # noqa: E402

SIZE, GOAL = 32, 30000
NORMALIZATION = NORMALIZATIONS["digits"]
STRONG = "crop, flip, RandAugment, erasing"
RECIPES = {
    "crop, flip": Augmentation(),
    STRONG: Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25),
    "resized crop, flip, RandAugment, erasing": Augmentation(
        "resized", rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25
    ),
}


def compare(augmentation: Augmentation, *, images: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round for both implementations. images: number of augmented views in a round."""
    dataset = Digits("train")
    device = torch.device("cpu")
    augment = BatchAugmentation(SIZE, NORMALIZATION, augmentation, seed=0, device=device)
    task = Classification(10, pipeline=ImagePipeline)  # not used here
    pixels, labels = store.read(dataset, Compose(square(SIZE, "bicubic", "crop")), check=task.check, workers=0)
    memory = MemoryViews(pixels, task.stack(labels), augment, size=SIZE)
    transform = train_transform(SIZE, NORMALIZATION, augmentation)
    one_by_one = Views(dataset, transform, seed=0, check=task.check, collate=task.collate)
    addresses = [(number // len(dataset), number % len(dataset)) for number in range(images)]
    batches = memory.loader(addresses, batch_size=128, workers=0)
    tasks = one_by_one.loader(addresses, batch_size=128, workers=0)
    return interleaved({"one by one": lambda: list(tasks), "in batches": lambda: list(batches)}, rounds=rounds)


def main(argv: list[str] | None = None) -> None:
    """Print a report for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192, help="views in a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    for name, augmentation in RECIPES.items():
        seconds = compare(augmentation, images=options.images, rounds=options.rounds)
        lines = report(seconds, amount=options.images, unit="images")
        print(f"{name}, {SIZE} px, 1 thread", *lines, sep="\n", flush=True)
        if name == STRONG:
            rate = options.images / median(seconds["in batches"])
            print(f"{'meets' if rate >= GOAL else 'misses'} {GOAL} images/s")


if __name__ == "__main__":
    main()
