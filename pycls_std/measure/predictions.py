"""Keep what a student and its teachers say of every test image, in a file to be analysed.

Shapes: N images, K classes.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pycls_std.builders.data import Data, test_files
from pycls_std.builders.method import teacher_requests
from pycls_std.builders.training import build_described_trainer, build_scored_teachers
from pycls_std.core.prediction_file import HEAD, PREDICTION, TEACHER, Predictions, packed
from pycls_std.core.text import first_of
from pycls_std.engine import files
from pycls_std.engine.runtime import Runtime
from pycls_std.measure.description import operations
from pycls_std.models.student import Student
from pycls_std.process import signals
from pycls_std.process.launch import launch

LOG = logging.getLogger("pycls_std")


def check_predictions(cfg, task) -> None:
    """Raise ValueError if TEST.PREDICTIONS cannot be written, or if the predictions of the task are no class logits.

    The file is the first process's, and so is its folder.
    """
    path = Path(cfg.TEST.PREDICTIONS)
    if not cfg.TEST.PREDICTIONS:
        return
    if "cls" not in task.HEADS:
        raise ValueError(
            f"TEST.PREDICTIONS needs class logits, the task has the heads {', '.join(task.HEADS)} (TASK.NAME)"
        )
    if path.suffix != ".npz":  # so that no checkpoint is replaced by mistake
        raise ValueError(f"TEST.PREDICTIONS is {path}, expected a name that ends in .npz")
    if launch().rank == 0 and not path.parent.is_dir():
        raise ValueError(f"TEST.PREDICTIONS is {path}, there is no folder {path.parent}")


def keep_predictions(cfg, *, student: Student, data: Data, runtime: Runtime, origin: dict) -> None:
    """Write TEST.PREDICTIONS, whole or not at all; all processes predict, the first one writes.

    student: with the weights of TEST.WEIGHTS, on the device. origin: `epoch` of the weights, `commit` of the program.
    Teachers are prepared as for training, where the options name some; see `build_scored_teachers`.
    Raises ValueError if a teacher cannot be had, OSError that names the file if it cannot be written.
    """
    trainer, run = build_described_trainer(cfg, data.task.classes)
    requests = teacher_requests(dict(trainer.terms.items()), len(run.teachers))
    teachers = build_scored_teachers(cfg, data=data, runtime=runtime, requests=requests) if requests else []
    arrays = _gathered(predict(student, teachers, data.task, data.test, runtime), runtime.world)
    if runtime.world.rank:
        return
    predictions = Predictions(
        arrays.pop("index"),
        np.array(test_files(cfg)),
        arrays.pop("label"),
        *(_named(arrays, prefix) for prefix in (HEAD, PREDICTION, TEACHER)),
        meta=_meta(cfg, data, trainer, origin),
    )
    path = Path(cfg.TEST.PREDICTIONS)
    files.write(path, packed(predictions))
    LOG.info(
        "%s: written, of %d test images: heads %s; predictions %s; teachers %s",
        *(path, len(predictions.index), first_of(predictions.heads, most=20), first_of(predictions.predictions)),
        first_of(predictions.teachers) or "none",
    )


@torch.no_grad()
def predict(
    student: Student, teachers: list[nn.Module], task, loader: DataLoader, runtime: Runtime
) -> dict[str, np.ndarray]:
    """Return the logits (N, K) of this process's images in the names of the file, their `index` and `label` (N,).

    Logits are computed in the precision of the run, and float32 then; for equal ones see `ordered`.
    """
    student.eval()
    parts: dict[str, list[Tensor]] = {}
    for loaded in loader:
        if signals.pending():
            raise signals.Stopped(signals.pending(), "in a test")
        loaded = runtime.to_device(loaded)
        with runtime.autocast():
            output = student(loaded.images)
            named = {f"{HEAD}{name}": logits for name, logits in output.heads.items()}
            named |= {f"{PREDICTION}{name}": logits for name, logits in task.predictions(output).items()}
            for index, teacher in enumerate(teachers):
                named[f"{TEACHER}{index}_{teacher.name}"] = teacher(loaded.images).heads["cls"]
        for name, logits in named.items():
            parts.setdefault(name, []).append(ordered(logits.float()).cpu())
        for name, values in {"index": loaded.index, "label": loaded.targets}.items():
            parts.setdefault(name, []).append(values.long().cpu())
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


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


def _gathered(own: dict[str, np.ndarray], world) -> dict[str, np.ndarray]:
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


def _meta(cfg, data: Data, trainer, origin: dict) -> dict:
    deployed = trainer.deployed_parameters()
    return {
        "name": cfg.NAME,
        "seed": cfg.SEED,
        "checkpoint": Path(cfg.TEST.WEIGHTS).name,
        "ema": cfg.TEST.EMA,
        "trainer": cfg.TRAINER,
        "dataset": data.info.name,
        "classes": list(map(str, data.info.classes)),
        "prediction": trainer.prediction,
        "parameters": {"deployed": deployed, "train_only": trainer.trained_parameters() - deployed},
        "flops": operations(trainer.student, cfg.DATA.IMAGE_SIZE),
        "image_size": cfg.DATA.IMAGE_SIZE,
        **origin,
    }
