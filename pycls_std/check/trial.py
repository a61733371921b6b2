"""A small version of a run, and the checks on it."""

import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from pycls_std.builders.cache import check_cache
from pycls_std.builders.data import build_data
from pycls_std.builders.method import describe_run
from pycls_std.builders.models import find_pretrained
from pycls_std.builders.teachers import optimize_teachers, set_batch_norm_mode
from pycls_std.builders.training import assemble, build_runtime
from pycls_std.builders.views import data_seed
from pycls_std.check.processes import spread_over_two, steps, train
from pycls_std.core.structures import mapped
from pycls_std.datasets.loader import Views, train_loader
from pycls_std.datasets.memory.views import MemoryViews
from pycls_std.engine import checkpoint, loop

STEPS = 3
TEST_IMAGES = 200  # on which teachers are scored: of the held-out images, or else of the test split
TRAIN_IMAGES = 100  # that are read, besides those of the steps


class Trial:
    """The run with a small batch. Each public method is a check: it returns a line on what it found, or raises.

    Call them in their order. Errors are ValueError, OSError, RuntimeError, FloatingPointError.
    """

    def __init__(self, cfg, out_dir: Path):
        self.cfg = cfg
        self.out_dir = out_dir
        self.runtime = build_runtime(cfg)
        if self.runtime.world.size > 1:
            raise ValueError("--mode check starts two processes of its own, run it without torchrun")
        self.runtime.token_mixing = "fused"  # for auto, if available: a run times both on its own batches
        self.small = reduced(cfg, self.runtime.device.type)
        self.trial_images = self.small.TRAIN.BATCH_SIZE // cfg.AUG.REPEATS

    def data(self) -> str:
        """Images of both splits can be read; splits, MODEL.NUM_CLASSES and batch sizes agree."""
        data = build_data(self.cfg, device=self.runtime.device)
        assert data.train is not None  # it was asked for
        train, test, judge = data.train.dataset, data.test.dataset, data.judge.dataset
        sample = spread(train, TRAIN_IMAGES)
        read = len([sample[place] for place in range(len(sample))])
        judged = spread(judge, TEST_IMAGES)
        self.judged_batches = list(DataLoader(judged, batch_size=50, collate_fn=judge.collate))
        loader = train_loader(
            train,
            batch_size=self.small.TRAIN.BATCH_SIZE,
            workers=self.cfg.DATA.NUM_WORKERS,
            seed=data_seed(self.cfg),
            repeats=self.cfg.AUG.REPEATS,
        )
        # For both processes; a list can replace the loader, of which only the length and the batches are used.
        batches: Any = [mapped(loaded, torch.Tensor.cpu) for loaded in islice(loader, STEPS)]
        self.found = data._replace(train=batches)
        self.in_memory, self.iterations = data.in_memory, len(data.train)
        held_out = f", {len(judge)} held-out" if data.val else ""
        images = (
            f"{len(train)} training{held_out} and {len(test)} test images, {read} and {self._scored()} of them read"
        )
        return f"{data.info.name}, {len(data.info.classes)} classes, {images}"

    def models(self) -> str:
        """The student can be built, and given weights are there and fit the models and the classes of the data."""
        self.weights = find_pretrained(self.cfg)
        self.session = self._build()
        return "; ".join([self.cfg.MODEL.NAME, *(each.description for each in self.session.trainer.teachers)])

    def teachers(self) -> str:
        """Every teacher, folded and converted as in the run, scores above its floor, within the sampling error.

        With DISTILLATION.CACHE, their outputs can be cached.
        """
        task, total = self.found.task, len(self.found.judge.dataset)
        lines, scored = self._optimize(self.session), self._scored()
        split = "held-out" if self.found.val else "test"
        floor, label = task.floor(self.cfg.DISTILLATION.TEACHER_MIN_ACC), task.scores[task.RESULT]["label"]
        for index, teacher in enumerate(self.session.trainer.teachers):
            scores = loop.evaluate(teacher, task, self.judged_batches, self.runtime)
            result = next(iter(scores.values()))[task.RESULT]
            line = f"teacher {index} {teacher.name} {label} {result:.2f} on {scored} of {total} {split} images"
            error = task.floor_error(floor, scored) if scored < total else 0.0
            if not result >= floor - 2 * error:
                raise ValueError(f"{line}, below DISTILLATION.TEACHER_MIN_ACC {floor:.2f}")
            lines.append(line)
        set_batch_norm_mode(self.cfg, self.session.trainer.teachers)
        live, weights = self.session.teacher_outputs, self.weights.teachers
        check_cache(self.cfg, live, data=self.found, in_memory=self.in_memory, weights=weights)
        return "; ".join(lines) or "none"

    def terms(self) -> str:
        """Every term of the objective, and of the auxiliary losses, has a gradient for some parameter."""
        trainer = self.session.trainer
        trained = [p for p in trainer.objective.parameters() if p.requires_grad]
        stepped = [p for o in trainer.auxiliary_optimizers for g in o.param_groups if g["lr"] for p in g["params"]]
        of_term: dict[str, str] = {}
        effective: dict[str, bool] = {}
        trainer.objective.train()
        self.runtime.start_epoch(0)
        for batch, progress in steps(self.session, epoch=0):
            with self.runtime.products():
                losses = trainer.objective.by_term(batch, self.session.teacher_outputs(batch, progress), progress)
                extra = trainer.auxiliary_by_term(batch, progress)
            for found, parameters in ((losses, trained), (extra, stepped)):
                for term, values in found.items():
                    of_term |= dict.fromkeys(values, term)
                    new = {name: value for name, value in values.items() if name not in effective}
                    effective |= {name: has_gradient(value, parameters) for name, value in new.items()}
        idle = [name for name, found in effective.items() if not found]
        without = [f"the term {name} changes no parameter ({self._key(of_term[name])})" for name in idle]
        if trainer.auxiliary_optimizers and not any(extra.values()):
            without.append(f"the auxiliary losses of {', '.join(trainer.auxiliary)} never come")
        if without:
            raise ValueError("; ".join(without))
        return ", ".join(effective)

    def parameters(self) -> str:
        """Every trainable parameter of student and terms has a gradient: others would not train, and make DDP fail."""
        objective = self.session.trainer.objective
        batch, progress = next(steps(self.session, epoch=0))
        objective.zero_grad()
        sum(objective(batch, self.session.teacher_outputs(batch, progress), progress).values()).backward()
        named = dict(objective.named_parameters())
        unused = [name for name, p in named.items() if p.requires_grad and p.grad is None]
        if unused:
            raise ValueError(f"{len(unused)} parameters are in no loss: {', '.join(unused[:5])}")
        frozen = sum(p.numel() for p in named.values() if not p.requires_grad)
        return f"all {sum(p.numel() for p in named.values()) - frozen} of student and terms are in a loss" + (
            f", {frozen} are frozen" if frozen else ""
        )

    def steps(self) -> str:
        """Training steps are finite and do not change the teachers; an epoch has enough images for the terms."""
        teachers = self.session.trainer.teachers
        before = {name: value.clone() for name, value in teachers.state_dict().items()}
        loss = train(self.session, epoch=0)
        moved = [name for name, value in teachers.state_dict().items() if not torch.equal(value, before[name])]
        if moved:
            raise ValueError(f"the teachers changed while they taught: {', '.join(moved[:5])}")
        self._fit_epoch()
        still = ", the teachers stayed as they were" if len(teachers) else ""
        return f"{STEPS} with {self.small.TRAIN.BATCH_SIZE} images each, last loss {loss:.3f}{still}"

    def checkpoint(self) -> str:
        """A run restored from a checkpoint continues as the original one, and there is disk space for checkpoints."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "last.pt"
            checkpoint.save(self.session.state_dict(), path)
            size = path.stat().st_size
            loaded = self._build()
            self._optimize(loaded)
            set_batch_norm_mode(self.cfg, loaded.trainer.teachers)
            loaded.load_state_dict(checkpoint.read(path), str(path))
        for session in (self.session, loaded):
            train(session, epoch=1)
        compared = self._compare(self.session, loaded)
        place = next(path for path in (self.out_dir, *self.out_dir.absolute().parents) if path.is_dir())
        needed, free = size * (self.cfg.TRAIN.KEEP + 2), shutil.disk_usage(place).free
        if free < needed:
            raise ValueError(f"OUT_DIR {self.out_dir} has {free >> 20} MiB left, checkpoints need {needed >> 20}")
        return f"{size / 2**20:.1f} MiB, saved, loaded and continued; {compared}"

    def processes(self) -> str:
        """Two processes that share each batch have the same student after some steps."""
        spread_over_two(self.small, self.found, self.trial_images)
        return f"two agree after {STEPS} steps"

    def _compare(self, session, loaded) -> str:
        """Return in words how much two sessions differ. Raises ValueError if it is more than their device explains.

        CUDA kernels may sum in another order each time, unless CUDA.DETERMINISTIC is on.
        """
        limit, apart = 0.0 if self.runtime.exact else 1e-2, {}
        now, then = (checkpoint.tensors(each.state_dict()) for each in (session, loaded))
        for key in now:
            apart[key] = float((now[key].double() - then[key].double()).abs().max()) if now[key].numel() else 0.0
            if not apart[key] <= limit:
                allowed = f"at most {limit:g} is allowed"
                raise ValueError(f"{key} of a loaded run differs by {apart[key]:.3g} after {STEPS} steps, {allowed}")
        found = f"after {STEPS} steps all {len(apart)} tensors of the state"
        if self.runtime.exact:
            return f"{found} are the same, bit for bit"
        return f"{found} are within {limit:g}, the largest difference {max(apart.values()):.3g} (CUDA.DETERMINISTIC)"

    def _build(self):
        parts = {"data": self.found, "runtime": self.runtime, "weights": self.weights}
        return assemble(self.small, **parts, trial_images=self.trial_images)

    def _optimize(self, session) -> list[str]:
        return optimize_teachers(self.small, session, loader=self.judged_batches)

    def _fit_epoch(self) -> None:
        """Raise ValueError if an auxiliary term, which is shrunk here, cannot be built for an epoch of the run."""
        task, weights = self.found.task, self.weights.teachers
        run = describe_run(self.cfg, task, images=self.found.images, iterations=self.iterations, weights=weights)
        for term in self.session.trainer.auxiliary.values():
            type(term).from_cfg(self.cfg, run, self.session.trainer.student)

    def _scored(self) -> int:
        return sum(len(loaded.index) for loaded in self.judged_batches)

    def _key(self, term: str) -> str:
        kinds = {**self.session.trainer.terms, **self.session.trainer.auxiliary}
        section, key = term.upper(), kinds[term].WEIGHED_BY or kinds[term].SWITCH
        return f"{section}.{key} {self.cfg[section][key]}"


def reduced(cfg, kind: str = "cpu"):
    """Return the options with a small batch that two processes can share and mix in pairs. kind: cpu or cuda."""
    small = cfg.clone()
    small.defrost()
    small.TRAIN.BATCH_SIZE = max(8, 4 * cfg.AUG.REPEATS)
    # 2 parts of each process's share test as much as more would
    small.TRAIN.ACCUMULATE = min(cfg.TRAIN.ACCUMULATE, 2)
    small.TRAIN.COMPILE = "off"  # it would take longer than all checks, and gradients are computed term by term
    if kind == "cpu":  # which has no fused kernels; the run may be meant for another device
        small.CUDA.TOKEN_MIXING = "plain"
    small.freeze()
    return small


def spread(views: Views | MemoryViews, most: int) -> Subset:
    """Return a subset of at most so many images, evenly spread over a dataset."""
    count = min(most, len(views))
    addresses: list[Any] = [(0, position * len(views) // count) for position in range(count)]  # as views are indexed
    return Subset(views, addresses)


def has_gradient(term: torch.Tensor, parameters: list[torch.Tensor]) -> bool:
    """Return whether a scalar has a nonzero gradient for some of the parameters."""
    if not term.requires_grad or not parameters:
        return False
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)
