"""Time what a run would do: data, forward passes, training steps; and where a step's time and memory go."""

import logging
import os
from itertools import count, islice

import torch
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from pycls_std.builders.models import find_pretrained
from pycls_std.builders.teachers import optimize_teachers, set_batch_norm_mode
from pycls_std.builders.training import assemble, build_all, build_runtime
from pycls_std.core.interleaved import interleaved, report
from pycls_std.core.structures import Progress
from pycls_std.engine import loop
from pycls_std.engine.checkpoint import tensors
from pycls_std.engine.optim import set_learning_rate

LOG = logging.getLogger("pycls_std")

START = Progress(0, 0, 1, 1)  # of a run of one step
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product shows the peak
TOP = 10  # operations that are listed


def first_steps(cfg) -> "Steps":
    """Return training steps on the first batch; models whose weights are not available locally have random ones."""
    runtime = build_runtime(cfg)
    session, *_ = build_all(cfg, runtime, fetch=False)
    optimize_teachers(cfg, session, fall_back=False)
    return Steps(session, session.task.batch(runtime.to_device(next(iter(session.train_loader))), START))


def time(cfg) -> None:
    """Print images/s of data, forward passes and training steps, the memory, the share of the peak, and the profile.

    The configured step and an eager step in fp32, with teachers neither folded nor converted, take turns.
    Nothing is downloaded but the data: models whose weights are not available locally are timed with random ones.
    """
    runtime = build_runtime(cfg)
    before = runtime.peak_memory()
    session, data, _ = build_all(cfg, runtime, fetch=False)
    teachers = session.trainer.teachers
    for teacher in teachers:
        LOG.info("%s", teacher.description)
    for line in optimize_teachers(cfg, session, fall_back=False):
        LOG.info("%s", line)
    set_batch_norm_mode(cfg, teachers)
    if cfg.DISTILLATION.CACHE:
        LOG.info("DISTILLATION.CACHE is not used here: the teachers are asked")
    tf32 = ", fp32 is TF32" if cfg.CUDA.TF32 and runtime.device.type == "cuda" else ""
    LOG.info("%s, %s%s, batch %d", runtime.device_name(), cfg.PRECISION, tf32, cfg.TRAIN.BATCH_SIZE)
    batches = endless(session)
    held = session.task.batch(runtime.to_device(next(batches)), START)
    session.trainer.student.train()
    own = Steps(session, held)
    _show_memory(own, runtime, before)  # before anything else is allocated
    plain = Steps(_plain(cfg, data, runtime), held)
    rounds = {"rounds": cfg.TIME.STEPS, "warmup": cfg.TIME.WARMUP, "wait": runtime.synchronize}
    size = session.train_loader.batch_size * runtime.world.size  # all processes are as busy as this one

    block = getattr(session.train_loader, "block", 1)  # batches that are made at once
    _show(
        interleaved({f"data, {block} batches": lambda: [next(batches) for _ in range(block)]}, **rounds), block * size
    )
    forwards = {"student forward": own.forward} | ({"teachers forward": own.teach} if len(teachers) else {})
    for name, forward in forwards.items():
        _show(interleaved({name: forward}, **rounds), size)
    seconds = interleaved({"step in fp32, eager": plain.step, f"step in {cfg.PRECISION}": own.step}, **rounds)
    _show(seconds, size)
    together = -(-cfg.TIME.STEPS // block) * block

    def run():
        for _ in range(together):
            own.step(session.task.batch(runtime.to_device(next(batches)), START))

    name = f"data and step, {together} times"
    whole = interleaved({name: run}, rounds=1, warmup=0, wait=runtime.synchronize)
    _show(whole, together * size)
    iterations, taken = len(session.train_loader), whole[name][0]
    hours = session.epochs * iterations * taken / together / 3600
    LOG.info("%d epochs of %d iterations: about %.3g hours of training steps", session.epochs, iterations, hours)
    _show_peak(plain, min(seconds[f"step in {cfg.PRECISION}"]), runtime)
    _show_profile(own)


class Steps:
    """Steps and forward passes of a session on a fixed batch; the learning rate is 0, as the peak one would diverge."""

    def __init__(self, session: loop.Session, held):
        self.session = session
        self.held = held
        self.steps = count()
        session.trainer.student.train()
        for optimizer in (session.optimizer, *session.trainer.auxiliary_optimizers):
            set_learning_rate(optimizer, 0.0)

    def step(self, batch=None) -> None:
        """Take a training step."""
        session = self.session
        epoch, iteration = divmod(next(self.steps), len(session.train_loader))
        progress = Progress(epoch, iteration, len(session.train_loader), session.epochs)
        loop.train_step(session, self.held if batch is None else batch, progress)

    def forward(self) -> None:
        """Run the student forward, without gradient."""
        with torch.no_grad(), self.session.runtime.autocast():
            self.session.trainer.student(self.held.images, self.session.trainer.objective.taps)

    def teach(self) -> None:
        """Run the teachers forward."""
        with self.session.runtime.autocast():
            self.session.teacher_outputs(self.held, START)


def _plain(cfg, data, runtime) -> loop.Session:
    """Return a session of the same run in fp32, eager, with teachers neither folded nor converted."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.PRECISION, cfg.TRAIN.COMPILE, cfg.CUDA.TOKEN_MIXING = "fp32", "off", "plain"
    return assemble(cfg, data=data, runtime=build_runtime(cfg), weights=find_pretrained(cfg, fetch=False))


def endless(session: loop.Session):
    """Yield the batches of one epoch after the other, without end."""
    for epoch in count():
        session.train_loader.sampler.epoch = epoch
        yield from session.train_loader


def _show(seconds, images) -> None:
    for line in report(seconds, amount=images, unit="images"):
        LOG.info("%s", line)


def _show_peak(plain, seconds, runtime) -> None:
    """Print the share of the device's peak that a step reaches; the peak is measured with a matrix product.

    plain: eager steps, since operations in compiled ones cannot be counted.
    """
    with FlopCounterMode(display=False) as counter:
        plain.step()
    side = SIDE[runtime.device.type]
    matrix = torch.randn(side, side, device=runtime.device, dtype=runtime.dtype)
    with runtime.products():
        product = interleaved({"": lambda: matrix @ matrix}, rounds=5, wait=runtime.synchronize)
    peak, reached = 2 * side**3 / min(product[""]), counter.get_total_flops() / seconds
    LOG.info(
        "%.1f GFLOPs a step, %.0f GFLOP/s: %.0f %% of the %.0f that a product of matrices reaches here",
        *(counter.get_total_flops() / 1e9, reached / 1e9, 100 * reached / peak, peak / 1e9),
    )


def _show_memory(own, runtime, before) -> None:
    """Print the memory of the training state, of the activations kept for the backward pass, and the peak.

    before: the peak before images and models were loaded.
    """
    own.step()  # the first makes the optimizer's state
    held, activations = (size / 2**30 for size in memory(own))
    peak = runtime.peak_memory()
    LOG.info(
        "memory: %.3f GiB weights, gradients, optimizer and average, %.3f GiB kept for the backward pass, peak %.3f "
        "GiB, %.3f of it before images and models were there; the rest is %.2f times those",
        *(held, activations, peak, before, (peak - before) / (held + activations)),
    )


def memory(steps: Steps) -> tuple[int, int]:
    """Return the bytes of weights, gradients, optimizer and moving average, and of activations kept for backward."""
    session, kept = steps.session, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    modules = [session.trainer.objective, *([session.ema.module] if session.ema else [])]
    weights = [p for module in modules for p in module.parameters()]
    held = sum(t.numel() * t.element_size() for t in tensors(session.optimizer.state_dict()).values())
    held += sum(p.numel() * p.element_size() * (2 if p.requires_grad else 1) for p in weights)
    own = {p.untyped_storage().data_ptr() for p in weights}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        steps.step()
    return held, sum(size for place, size in kept.items() if place not in own)


def profiled(steps: Steps) -> tuple[dict[str, float], dict[str, int]]:
    """Return the microseconds of a step's operations, on CUDA of its kernels, longest first; and how often each ran."""
    runtime = steps.session.runtime
    cuda = runtime.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it logs to stderr
    kinds = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if cuda else [])
    with torch.profiler.profile(activities=kinds) as profile:
        steps.step()
        runtime.synchronize()
    rows = profile.key_averages()
    times = (kernel_times if cuda else operator_times)(rows)
    return dict(sorted(times.items(), key=lambda item: -item[1])), {row.key: row.count for row in rows}


def _show_profile(own) -> None:
    """Print the operations that take most of a step's time, on CUDA the kernels."""
    times, _ = profiled(own)
    total = sum(times.values())
    if not total:
        LOG.warning("the profiler saw nothing of a step: what takes its time is not known")
    for name, taken in islice(times.items(), TOP if total else 0):
        LOG.info("%5.1f %%  %9.2f ms  %s", 100 * taken / total, taken / 1e3, name[:80])


def operator_times(rows) -> dict[str, float]:
    """Return the microseconds of each operation on the CPU, without those that it calls."""
    return {row.key: row.self_cpu_time_total for row in rows}


def kernel_times(rows) -> dict[str, float]:
    """Return the microseconds of each kernel and copy on the device.

    rows: of `key_averages()`, which list a kernel three times: under its own name, under that of the operation that
    launched it (a row of the CPU), and under each annotation around that.
    """
    kernels = [row for row in rows if row.device_type != DeviceType.CPU and not row.is_user_annotation]
    return {row.key: row.self_device_time_total for row in kernels}
