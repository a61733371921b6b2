"""The predictions file of a classifier: the logits of all heads and teachers, see `core/prediction_file.py`.

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
    """Collects logits, computed in the run's precision and stored as float32; ties are broken, see `ordered`.

    predictions: function of the task.
    """

    asks_teachers = True

    def __init__(self, predictions):
        self.predictions = predictions
        self.parts: dict[str, list[Tensor]] = {}

    def update(self, output: Output, teachers: dict[str, Output], loaded: Loaded) -> None:
        """Add the logits of a batch."""
        named = {f"{HEAD}{name}": logits for name, logits in output.heads.items()}
        named |= {f"{PREDICTION}{name}": logits for name, logits in self.predictions(output).items()}
        named |= {f"{TEACHER}{name}": said.heads["cls"] for name, said in teachers.items()}
        for name, logits in named.items():
            self.parts.setdefault(name, []).append(ordered(logits.float()).cpu())
        for name, values in {"index": loaded.index, "label": loaded.targets}.items():
            self.parts.setdefault(name, []).append(values.long().cpu())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the logits (N, K) of this process's images by their names in the file, `index` and `label` (N,)."""
        return {name: torch.cat(values).numpy() for name, values in self.parts.items()}

    def packed(self, world: World, describe) -> KeptFile | None:
        """Return the file for the images of all processes in the first process, None in the others."""
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
    """Break ties among the top five of logits (N, K) float32, in the order that the metrics see.

    In bf16 the two largest are equal for about one image in a hundred, and their order in `topk` depends on the device,
    so scores computed from a file could differ from the run's. In rows with ties the top five, as `topk` orders them,
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
        parts = world.gather(own.pop(name))  # one by one, since those of ImageNet take gigabytes
        if world.rank == 0:
            arrays[name] = np.concatenate(parts)
    if world.rank:
        return {}
    order = np.argsort(arrays["index"], kind="stable")
    return {name: array[order] for name, array in arrays.items()}


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
