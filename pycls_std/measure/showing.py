"""Run a trained student on images that belong to no dataset."""

import torch
from PIL import Image

from pycls_std.builders.checkpoints import trained_on
from pycls_std.builders.data import build_info, build_task, named_normalization
from pycls_std.builders.method import build_backbone, build_student, choose_prediction, describe_run
from pycls_std.builders.training import build_runtime
from pycls_std.core.structures import Sample
from pycls_std.engine import checkpoint


class Viewer:
    """The student of TEST.WEIGHTS, run on one image at a time as `--mode test` would run it.

    weights, saved: of `student_weights`. Classes and normalisation are those in the checkpoint, or, for plain weights,
    those of the dataset. Raises ValueError for weights and options that do not fit each other.
    """

    def __init__(self, cfg, weights: dict, saved: dict):
        source = cfg.TEST.WEIGHTS
        self.info = trained_on(saved, source) if saved else build_info(cfg)
        classes = len(self.info.classes)
        if cfg.MODEL.NUM_CLASSES not in (0, classes):
            raise ValueError(f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, {source} was trained on {classes} classes")
        self.task = build_task(cfg, classes)
        own = named_normalization("DATA.NORMALIZATION", cfg.DATA.NORMALIZATION)
        self.normalization = own or self.info.normalization
        self.view = self.task.pipeline(normalization=self.normalization).test_transform()
        student = build_student(cfg, build_backbone(cfg, classes), describe_run(cfg, self.task))
        checkpoint.load_weights(student, weights, source)
        self.prediction = choose_prediction(cfg, self.task, student)
        self.runtime = build_runtime(cfg)
        self.student = self.runtime.place(student).eval()

    @torch.no_grad()
    def __call__(self, image: Image.Image, image_id: int, *, least: float):
        """Return what the task shows of a prediction (`tasks/contract.py`). Raises ValueError if it is not finite."""
        target = self.task.unlabelled(image_id, (image.height, image.width))
        pixels, target = self.view(image, target)
        loaded = self.runtime.to_device(self.task.collate([Sample(pixels, target, image_id)]))
        with self.runtime.autocast():
            prediction = self.task.predictions(self.student(loaded.images))[self.prediction]
        if not all(bool(values.isfinite().all()) for values in checkpoint.tensors(prediction).values()):
            raise ValueError("what is predicted is not finite")
        return self.task.shown(prediction, loaded.targets[0], self.info, least=least)
