"""A small form of a run, and what is checked on it."""

import math
import shutil
import tempfile
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from pycls_std.builders.data import build_data, data_seed
from pycls_std.builders.models import find_given, teacher_floor
from pycls_std.builders.teachers import let_teach, settle_teachers
from pycls_std.builders.training import assemble, build_runtime
from pycls_std.check.processes import spread_over_two, steps, train
from pycls_std.datasets.loader import train_loader
from pycls_std.engine import checkpoint, loop

STEPS = 3
TEST_IMAGES = 200  # that teachers are scored on
TRAIN_IMAGES = 100  # that are read besides those of the steps


class Trial:
    """The run with a few images in a batch. Each public method is a check: it returns what it found or raises.

    They are made to be called in their order. Errors are ValueError, OSError, RuntimeError, FloatingPointError.
    """

    def __init__(self, cfg, out_dir: Path):
        self.cfg = cfg
        self.out_dir = out_dir
        self.runtime = build_runtime(cfg)
        if self.runtime.world.size > 1:
            raise ValueError("--mode check starts two processes of its own, run it without torchrun")
        self.small = reduced(cfg)

    def data(self) -> str:
        """Images of both splits can be read; splits, MODEL.NUM_CLASSES and batch sizes agree."""
        data = build_data(self.cfg, device=self.runtime.device)
        train, test = data.train.dataset, data.test.dataset
        read = len(list(spread(train, TRAIN_IMAGES)))
        self.test_batches = list(DataLoader(spread(test, TEST_IMAGES), batch_size=50))
        loader = train_loader(
            train,
            batch_size=self.small.TRAIN.BATCH_SIZE,
            workers=self.cfg.DATA.NUM_WORKERS,
            seed=data_seed(self.cfg),
            repeats=self.cfg.AUG.REPEATS,
        )
        batches = [(images.cpu(), labels.cpu()) for images, labels in islice(loader, STEPS)]  # for both processes
        self.found = data._replace(train=batches)
        images = f"{len(train)} training and {len(test)} test images, {read} and {self._scored()} of them read"
        return f"{data.info.name}, {len(data.info.classes)} classes, {images}"

    def models(self) -> str:
        """The student can be built, and given weights are there and fit the models and the classes of the data."""
        self.given = find_given(self.cfg)
        self.session = self._build()
        return "; ".join([self.cfg.MODEL.NAME, *(each.description for each in self.session.trainer.teachers)])

    def teachers(self) -> str:
        """Every teacher scores above its floor, but for the error of a sample, folded and converted as in the run."""
        lines, total = self._settle(self.session), len(self.found.test.dataset)
        floor = teacher_floor(self.cfg, len(self.found.info.classes))
        for index, teacher in enumerate(self.session.trainer.teachers):
            scores = loop.evaluate(teacher, lambda out: {"cls": out.logits}, self.test_batches, self.runtime)
            top1 = scores["cls"]["top1"]
            line = f"teacher {index} {teacher.name} top-1 {top1:.2f} on {self._scored()} of {total} test images"
            error = math.sqrt(floor * (100 - floor) / self._scored()) if self._scored() < total else 0.0
            if top1 < floor - 2 * error:
                raise ValueError(f"{line}, below DISTILLATION.TEACHER_MIN_ACC {floor:.2f}")
            lines.append(line)
        let_teach(self.cfg, self.session.trainer.teachers)
        return "; ".join(lines) or "none"

    def terms(self) -> str:
        """Every term of the objective, and of the auxiliary one, changes a parameter."""
        trainer = self.session.trainer
        trained = list(trainer.student.parameters())
        stepped = [p for o in trainer.auxiliary_optimizers for g in o.param_groups if g["lr"] for p in g["params"]]
        names = {}
        trainer.student.train()
        self.runtime.start_epoch(0)
        for batch, progress in steps(self.session, epoch=0):
            losses, extra = trainer.losses(batch, progress), trainer.auxiliary_losses(batch, progress)
            for terms, parameters in ((losses, trained), (extra, stepped)):
                names |= {name: has_gradient(term, parameters) for name, term in terms.items() if name not in names}
        without = [f"the term {name} changes no parameter ({self._key(name)})" for name in names if not names[name]]
        if trainer.auxiliary_optimizers and not extra:
            without.append(f"the auxiliary losses of TRAINER {self.cfg.TRAINER} never come")
        if without:
            raise ValueError("; ".join(without))
        return ", ".join(names)

    def parameters(self) -> str:
        """No parameter of the student is without a gradient: it would not train, and DDP would stop at it."""
        trainer = self.session.trainer
        batch, progress = next(steps(self.session, epoch=0))
        trainer.student.zero_grad()
        sum(trainer.losses(batch, progress).values()).backward()
        named = dict(trainer.student.named_parameters())
        unused = [name for name, p in named.items() if p.requires_grad and p.grad is None]
        if unused:
            raise ValueError(f"{len(unused)} parameters of the student are in no loss: {', '.join(unused[:5])}")
        return f"all {sum(p.numel() for p in named.values())} of the student are in a loss"

    def steps(self) -> str:
        """Training steps are finite, and leave the teachers as they were."""
        teachers = self.session.trainer.teachers
        before = {name: value.clone() for name, value in teachers.state_dict().items()}
        loss = train(self.session, epoch=0)
        moved = [name for name, value in teachers.state_dict().items() if not torch.equal(value, before[name])]
        if moved:
            raise ValueError(f"the teachers changed while they taught: {', '.join(moved[:5])}")
        still = ", the teachers stayed as they were" if len(teachers) else ""
        return f"{STEPS} with {self.small.TRAIN.BATCH_SIZE} images each, last loss {loss:.3f}{still}"

    def checkpoint(self) -> str:
        """A run that is saved and loaded by another goes on as if it had not been, and there is room for it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "last.pt"
            checkpoint.save(self.session.state_dict(), path)
            size = path.stat().st_size
            loaded = self._build()
            self._settle(loaded)
            let_teach(self.cfg, loaded.trainer.teachers)
            loaded.load_state_dict(checkpoint.read(path))
        for session in (self.session, loaded):
            train(session, epoch=1)
        limit = 0.0 if self.runtime.device.type == "cpu" else 1e-2  # CUDA kernels may add in another order
        now, then = (checkpoint.tensors(session.state_dict()) for session in (self.session, loaded))
        for key in now:
            difference = float((now[key].double() - then[key].double()).abs().max()) if now[key].numel() else 0.0
            if not difference <= limit:
                raise ValueError(f"{key} of a loaded run differs by {difference:.3g} after {STEPS} steps")
        place = next(path for path in (self.out_dir, *self.out_dir.absolute().parents) if path.is_dir())
        needed, free = size * (self.cfg.TRAIN.KEEP + 2), shutil.disk_usage(place).free
        if free < needed:
            raise ValueError(f"OUT_DIR {self.out_dir} has {free >> 20} MiB left, checkpoints need {needed >> 20}")
        return f"{size / 2**20:.1f} MiB, saved, loaded and continued without a difference"

    def processes(self) -> str:
        """Two processes that share each batch have the same student after some steps."""
        spread_over_two(self.small, self.found)
        return f"two agree after {STEPS} steps"

    def _build(self):
        return assemble(self.small, data=self.found, runtime=self.runtime, given=self.given)

    def _settle(self, session) -> list[str]:
        return settle_teachers(self.small, session.trainer.teachers, self.test_batches, self.runtime)

    def _scored(self) -> int:
        return sum(len(labels) for _, labels in self.test_batches)

    def _key(self, term: str) -> str:
        key = self.session.trainer.WEIGHED_BY.get(term)
        if key is None:
            return f"TRAINER {self.cfg.TRAINER}"
        section, _, leaf = key.rpartition(".")
        return f"{key} {self.cfg[section][leaf]}"


def reduced(cfg):
    """Return the options with a batch that two processes can share and mix in pairs, and no more samples than it."""
    small = cfg.clone()
    small.defrost()
    small.TRAIN.BATCH_SIZE = max(8, 4 * cfg.AUG.REPEATS)
    small.TRAIN.COMPILE = "off"  # it would take longer than all checks, and gradients are asked for term by term
    small.MINE.SAMPLES = min(cfg.MINE.SAMPLES, small.TRAIN.BATCH_SIZE // cfg.AUG.REPEATS)
    small.freeze()
    return small


def spread(views: Dataset, most: int) -> Subset:
    """Return at most so many images of a dataset, spread over it evenly."""
    count = min(most, len(views))
    return Subset(views, [(0, position * len(views) // count) for position in range(count)])


def has_gradient(term: torch.Tensor, parameters: list[torch.Tensor]) -> bool:
    """Return whether a scalar changes with some of the parameters."""
    if not term.requires_grad or not parameters:
        return False
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)
