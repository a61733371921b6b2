"""The loop: epochs of training steps, each followed by an evaluation, a record and a checkpoint."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from pycls_std.core.meters import Meters
from pycls_std.core.structures import Batch, Loaded, Loader, Progress, take
from pycls_std.engine.checkpoint import refuse_not_finite
from pycls_std.engine.optim import kernels_kept, set_learning_rate
from pycls_std.engine.progress import ProgressBar, duration
from pycls_std.engine.runtime import Runtime
from pycls_std.engine.structure import refuse, training_differences
from pycls_std.process import signals

LOG = logging.getLogger("pycls_std")


@dataclass
class Session:
    """All objects and the state of a training run."""

    trainer: Any  # see `trainers/base.py`
    teacher_outputs: Any  # returns the teachers' outputs for a batch, computed or cached; see `teachers/outputs.py`
    runtime: Runtime
    task: Any  # see `tasks/contract.py`
    train_loader: Loader
    test_loader: Loader
    val_loader: Loader | None  # of the held-out (validation) images, by which the best epoch is chosen
    optimizer: Optimizer
    schedule: Callable[[float], float]  # progress in [0, 1] -> learning rate
    ema: ModelEmaV3 | None
    epochs: int
    clip_norm: float = 0.0
    accumulate: int = 1  # parts of a batch that are computed one after another
    test_period: int = 1
    log_period: int = 50
    best: dict = field(default_factory=dict)  # {"epoch", <result>} of the best evaluation so far
    train_seconds: float = 0.0  # spent in training epochs so far, interruptions not counted
    test_seconds: float = 0.0  # spent in evaluations

    @property
    def judge(self) -> str:
        """The split that selects the best epoch: `val`, or `test` if no images are held out."""
        return "val" if self.val_loader else "test"

    def epoch_images(self) -> int:
        """Return the number of training images in an epoch, of all processes."""
        return len(self.train_loader) * self.train_loader.batch_size * self.runtime.world.size

    def state_dict(self) -> dict:
        """Return the training state that a checkpoint needs to resume, except the epoch."""
        return {
            "student": self.trainer.student.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.runtime.scaler.state_dict(),
            "trainer": self.trainer.state_dict(),
            "best": self.best,
            "seconds": [self.train_seconds, self.test_seconds],
        }

    def load_state_dict(self, state: dict, source: str) -> None:
        """Restore what `state_dict` returned; other entries are ignored.

        Raises ValueError that names the source if its structure is not that of this session's state; nothing is
        restored then.
        """
        own = self.state_dict() | {"best": {"epoch": 0, self.task.RESULT: 0.0} if state.get("best") else {}}
        found = {key: state.get(key) for key in own}
        lines = training_differences(found, own, self.optimizer, self.trainer.auxiliary_optimizers)
        refuse(lines, source, "the run")
        self.trainer.student.load_state_dict(state["student"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        with kernels_kept([self.optimizer, *self.trainer.auxiliary_optimizers]):
            self.optimizer.load_state_dict(state["optimizer"])
            self.trainer.load_state_dict(state["trainer"])
        self.runtime.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.train_seconds, self.test_seconds = state["seconds"]


def fit(session: Session, *, start_epoch: int, record: Callable[[int, dict[str, float], bool], None]) -> None:
    """Train from start_epoch to the end.

    record(epochs done, values, is best) is called after every epoch; its values include `run/epoch_seconds`, the time
    of the whole epoch and of recording the previous one, since an epoch cannot include its own. A signal that asks the
    run to end takes effect after the current batch, or later by as many steps as the runtime lags.
    Raises FloatingPointError before anything of the epoch is recorded if a training loss, a score or a tensor of the
    state is not finite; signals.Stopped if the run is asked to end.
    """
    with signals.deferred():
        before = time.perf_counter()
        for epoch in range(start_epoch, session.epochs):
            session.runtime.start_epoch(epoch)
            values = train_epoch(session, epoch)
            done = epoch + 1
            # The last step of an epoch may make the weights non-finite, and no later loss would show it.
            refuse_not_finite(session.state_dict(), f"after epoch {done}")
            best = False
            if done % session.test_period == 0 or done == session.epochs:
                values |= evaluate_all(session, f"after epoch {done}")
                best = _is_best(session, values)
                if best:
                    result = session.task.RESULT
                    session.best = {"epoch": done, result: values[f"{session.judge}/{result}"]}
            now = time.perf_counter()
            seconds, before = now - before, now
            record(done, values | {"run/epoch_seconds": seconds}, best)
            LOG.info("epoch %d/%d  %s  %s", done, session.epochs, _summary(session, values), duration(seconds))


def _is_best(session, values) -> bool:
    result = session.task.RESULT
    if not session.best:
        return True
    gain = values[f"{session.judge}/{result}"] - session.best[result]
    return gain > 0 if session.task.scores[result]["better"] == "higher" else gain < 0


def train_epoch(session: Session, epoch: int) -> dict[str, float]:
    """Train one epoch; return its mean values by name."""
    trainer, runtime, loader = session.trainer, session.runtime, session.train_loader
    loader.sampler.epoch = epoch
    iterations, meters = len(loader), Meters()
    bar = ProgressBar(
        f"epoch {epoch + 1}/{session.epochs}",
        iterations,
        period=session.log_period,
        done=epoch * iterations,
        run_total=session.epochs * iterations,
        shown=runtime.world.rank == 0,
    )
    trainer.student.train()
    with runtime.watched():
        for iteration, loaded in enumerate(loader):
            progress = Progress(epoch, iteration, iterations, session.epochs)
            batch = session.task.batch(runtime.to_device(loaded), progress)
            rate = session.schedule(progress.fraction)
            set_learning_rate(session.optimizer, rate)
            losses, extra = train_step(session, batch, progress)

            meters.add(losses | trainer.monitors, len(loaded.index))
            meters.add(extra)
            bar.advance()
            if bar.due(iteration):
                bar.show(iteration, f"{_terms(losses)}  lr {rate:.3g}")
    runtime.synchronize()
    seconds = bar.close()
    values = {f"train/{name}": value for name, value in meters.read(runtime.world).items()}
    values["train/loss"] = sum(values[f"train/{name}"] for name in losses)
    values["train/lr"] = rate
    values["train/images_per_second"] = session.epoch_images() / seconds
    session.train_seconds += seconds
    return values


def train_step(session: Session, batch: Batch, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Step on the trainer's losses, then on its auxiliary losses if they are due, then update the moving average."""
    trainer, runtime = session.trainer, session.runtime
    rate = session.optimizer.param_groups[0]["lr"]
    where = f"epoch {progress.epoch + 1} iteration {progress.iteration + 1}, lr {rate:.3g}"
    runtime.start_step()
    with runtime.autocast():
        teachers = session.teacher_outputs(batch, progress)
    if session.accumulate > 1:
        losses = _step_in_parts(session, batch, teachers, progress, where)
    else:
        with runtime.autocast():
            losses = trainer.losses(batch, teachers, progress)
        runtime.step(losses, [session.optimizer], clip_norm=session.clip_norm, where=where)
    with runtime.autocast():
        extra = trainer.auxiliary_losses(batch, progress)
    if extra:
        runtime.step(extra, trainer.auxiliary_optimizers, where=where, average=True)
    if session.ema:
        session.ema.update(trainer.student, step=progress.step + 1)
    return losses, extra


def _step_in_parts(session, batch, teachers, progress, where) -> dict[str, Tensor]:
    """Accumulate gradients over the parts of a batch and step; return the mean losses, and merge the monitors."""
    trainer, runtime = session.trainer, session.runtime
    size, seen = len(batch.loaded.index) // session.accumulate, []

    def losses_of(start):
        own, told = (take(each, slice(start, start + size)) for each in (batch, tuple(teachers)))
        own = own._replace(whole=batch)
        with runtime.autocast():
            losses = trainer.losses(own, list(told), progress)
        seen.append({name: term.monitors for name, term in trainer.terms.items()})
        return losses

    parts = [partial(losses_of, number * size) for number in range(session.accumulate)]
    losses = runtime.step_in_parts(parts, session.optimizer, clip_norm=session.clip_norm, where=where)
    for name, term in trainer.terms.items():
        term.monitors = _joined([monitors[name] for monitors in seen])
    return losses


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the values of a batch from those of its parts: scalars averaged, values of each image concatenated."""
    return {
        name: torch.cat([part[name] for part in parts]) if value.ndim else torch.stack([p[name] for p in parts]).mean()
        for name, value in parts[0].items()
    }


@torch.no_grad()
def evaluate(model: nn.Module, task, loader: Iterable[Loaded], runtime: Runtime) -> dict[str, dict[str, float]]:
    """Return the scores of every prediction of a model, by name, over all images of all processes' loaders.

    Each image counts once, however the images are divided into batches and among processes.
    """
    runtime.world.share_buffers(model)
    model.eval()
    evaluators: dict[str, Any] = {}
    for loaded in loader:
        if signals.pending():
            raise signals.Stopped(signals.pending(), "in an evaluation")
        loaded = runtime.to_device(loaded)
        with runtime.autocast():
            predictions = task.predictions(model(loaded.images))
        for name, prediction in predictions.items():
            evaluators.setdefault(name, task.evaluator()).update(prediction, loaded.targets)
    return {name: evaluator.compute(runtime.world) for name, evaluator in evaluators.items()}


def evaluate_all(session: Session, when: str) -> dict[str, float]:
    """Evaluate every prediction of the student, and of its moving average if there is one.

    Returns `test/<score>` of the prediction that counts, `test/<name>_<score>` of each if there are several; the same
    for the moving average under `ema/`, and for the student on the held-out images under `val/`.
    Raises FloatingPointError that says when if a score is not finite.
    """
    trainer = session.trainer
    start = time.perf_counter()
    values: dict[str, float] = {}
    passes = {"test": (trainer.student, session.test_loader)}
    passes |= {"ema": (session.ema.module, session.test_loader)} if session.ema else {}
    passes |= {"val": (trainer.student, session.val_loader)} if session.val_loader else {}
    for prefix, (model, loader) in passes.items():
        scores = evaluate(model, session.task, loader, session.runtime)
        values |= {f"{prefix}/{score}": value for score, value in scores[trainer.prediction].items()}
        if len(scores) > 1:
            values |= {f"{prefix}/{name}_{score}": v for name in scores for score, v in scores[name].items()}
    broken = [f"{tag} {value}" for tag, value in values.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(f"not finite {when}: {', '.join(broken)}")
    session.test_seconds += time.perf_counter() - start
    return values


def _terms(losses: dict[str, Tensor]) -> str:
    numbers = {name: float(value.detach()) for name, value in losses.items()}
    total = sum(numbers.values())
    terms = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
    return f"loss {total:.3f} ({terms})" if len(losses) > 1 else f"loss {total:.3f}"


def _summary(session, values: dict[str, float]) -> str:
    parts = [f"loss {values['train/loss']:.2f}"]
    scores = {name: facts["label"] for name, facts in session.task.scores.items() if facts.get("shown", True)}
    for prefix, said in (("train", "train "), ("test", "")):
        known = {label: values.get(f"{prefix}/{name}") for name, label in scores.items()}
        parts += [f"{said}{label} {value:.2f}" for label, value in known.items() if value is not None]
    result = session.task.RESULT
    if f"ema/{result}" in values:
        parts.append(f"EMA {scores[result]} {values[f'ema/{result}']:.2f}")
    return f"{'  '.join(parts)}  {values['train/images_per_second']:.0f} images/s"
