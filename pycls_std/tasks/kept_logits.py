"""The file of a classifier's predictions: the logits of all heads and teachers, see `core/prediction_file.py`.

Shapes: N images, K classes.
"""

import numpy as np
import torch
from torch import Tensor

from pycls_std.core.prediction_file import HEAD, PREDICTION, TEACHER, Predictions, packed
from pycls_std.core.structures import Loaded, Output, World
from pycls_std.core.text import first_of
from pycls_std.tasks.contract import KeptFile


class KeptLogits:
    """Logits in the precision of the run, and float32 then; for equal ones see `ordered`. predictions: of the task."""

    asks_teachers = True

    def __init__(self, predictions):
        self.predictions = predictions
        self.parts: dict[str, list[Tensor]] = {}

    def update(self, output: Output, teachers: dict[str, Output], loaded: Loaded) -> None:
        """Take the logits of a batch."""
        named = {f"{HEAD}{name}": logits for name, logits in output.heads.items()}
        named |= {f"{PREDICTION}{name}": logits for name, logits in self.predictions(output).items()}
        named |= {f"{TEACHER}{name}": said.heads["cls"] for name, said in teachers.items()}
        for name, logits in named.items():
            self.parts.setdefault(name, []).append(ordered(logits.float()).cpu())
        for name, values in {"index": loaded.index, "label": loaded.targets}.items():
            self.parts.setdefault(name, []).append(values.long().cpu())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the logits (N, K) of this process's images in the names of the file, `index` and `label` (N,)."""
        return {name: torch.cat(values).numpy() for name, values in self.parts.items()}

    def packed(self, world: World, describe) -> KeptFile | None:
        """Return the file, of the images of all processes, in the first of them."""
        arrays = _gathered(self.arrays(), world)
        if world.rank:
            return None
        paths, meta = describe()
        index, labels = arrays.pop("index"), arrays.pop("label")
        own = heads, predictions, teachers = [_named(arrays, prefix) for prefix in (HEAD, PREDICTION, TEACHER)]
        names = [first_of(each, most=20) for each in own]
        text = f"heads {names[0]}; predictions {names[1]}; teachers {names[2] or 'none'}"
        kept = Predictions(index, np.array(paths), labels, heads, predictions, teachers, meta)
        return KeptFile(packed(kept), len(index), text)


def ordered(logits: Tensor) -> Tensor:
    """Return logits (N, K) float32 in which the most likely classes are in the order that the metrics see, and no tie.

    In bf16 the greatest two are equal for an image in a hundred, and which of them is named is left to the device: so
    what is computed of a file would not be the scores of the run. In such rows the first five, as `topk` finds them,
    are raised by 5 to 1 units in the last place.
    """
    values, places = logits.topk(min(6, logits.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1, keepdim=True)
    values, places = logits.topk(min(5, logits.shape[1]), dim=1)  # as the metrics ask
    for step in range(values.shape[1]):
        raised = torch.nextafter(values, torch.full_like(values, torch.inf))
        values[:, : values.shape[1] - step] = raised[:, : values.shape[1] - step]
    return torch.where(tied, logits.scatter(1, places, values), logits)


def _gathered(own: dict[str, np.ndarray], world: World) -> dict[str, np.ndarray]:
    """Return in the first process the arrays of all processes, sorted by index, and nothing in the others."""
    arrays = {}
    for name in list(own):
        parts = world.gather(own.pop(name))  # one after the other, for all of ImageNet takes gigabytes
        if world.rank == 0:
            arrays[name] = np.concatenate(parts)
    if world.rank:
        return {}
    order = np.argsort(arrays["index"], kind="stable")
    return {name: array[order] for name, array in arrays.items()}


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
