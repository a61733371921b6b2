"""Choose how the token mixing MLPs of a student are computed: by plain layers, or fused, where that is faster."""

import copy
import logging
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from statistics import median

import torch
from torch import nn

from pycls_std.core.interleaved import interleaved
from pycls_std.engine.loop import Session
from pycls_std.engine.runtime import Runtime
from pycls_std.models.token_mixing import fuse, mixer_blocks, obstacle
from pycls_std.process.errors import one_line

LOG = logging.getLogger("pycls_std")
FORMS = ("plain", "fused")
CALLS = 10  # consecutive calls that are timed together, so that the host runs ahead of the device as in training


def refuse_unfit_student(cfg, student: nn.Module) -> None:
    """Raise ValueError if CUDA.TOKEN_MIXING is fused and the student has no such MLPs."""
    found = obstacle(student) if cfg.CUDA.TOKEN_MIXING == "fused" else ""
    if found:
        raise ValueError(f"CUDA.TOKEN_MIXING is fused, {found}")


def choose_token_mixing(cfg, session: Session) -> None:
    """Set the form of token mixing of a session's student and its moving average by CUDA.TOKEN_MIXING, and log it.

    With auto, a form that the runtime already has, as in a resumed run, is kept; otherwise rank 0 times both on a block
    of the student, compiled as the session is, and all processes take the faster one. If the kernels are unavailable or
    fail, auto is plain. Call it before the first step.
    Raises ValueError if they are unavailable or fail, and CUDA.TOKEN_MIXING is fused.
    """
    choice, runtime, student = cfg.CUDA.TOKEN_MIXING, session.runtime, session.trainer.student
    form = choice
    if choice != "plain":
        form, reason = _form(choice, student, cfg.TRAIN.BATCH_SIZE // runtime.world.size // session.accumulate, runtime)
        LOG.info("CUDA.TOKEN_MIXING %s: %s%s", choice, form, f", {reason}" if reason else "")
    if form == "fused":
        for model in (student, *([session.ema.module] if session.ema else [])):
            fuse(model)
    runtime.token_mixing = form


def _form(choice, student, images, runtime) -> tuple[str, str]:
    """Return the form for fused or auto, the same in all processes, and the reason in words."""
    form = runtime.token_mixing if choice == "auto" else choice
    own = _missing(runtime) or obstacle(student)
    if not own and form != "plain":
        own = _failure(mixer_blocks(student)[0], images, runtime)
    found = next(filter(None, runtime.world.gather(own)), "")
    if found and choice == "fused":
        raise ValueError(f"CUDA.TOKEN_MIXING is fused, {found}")
    if found:
        return "plain", f"not fused, {found}"
    if form in FORMS:
        return form, "not timed here" if choice == "auto" else ""
    return runtime.world.broadcast_from_rank_zero(partial(_faster, mixer_blocks(student)[0], images, runtime))


def _missing(runtime) -> str:
    if runtime.device.type != "cuda":
        return "which needs DEVICE cuda"
    return "" if find_spec("triton") else "which needs triton, and it is not installed"


def _failure(block, images, runtime) -> str:
    """Return a message on how the kernels fail here, "" if they do not: a tile may not fit on the chip."""
    try:
        time_forms(block, images, runtime, forms=["fused"], rounds=1)
    except Exception as error:  # a kernel compiler may raise anything
        return f"which fails here: {one_line(error)}"
    return ""


def _faster(block, images, runtime) -> tuple[str, str]:
    """Return the faster form, plain if the two cannot be timed, and the reason in words."""
    try:
        plain, fused = (median(seconds) for seconds in time_forms(block, images, runtime).values())
    except Exception as error:  # out of memory, with both at once; not raised, as other processes wait for the result
        return "plain", f"not fused, for the two could not be timed: {one_line(error)}"
    times = [f"{1e3 * seconds / CALLS:.3f} ms" for seconds in (plain, fused)]
    told = f"fused is {plain / fused:.2f} times as fast on a block, forward and backward, {times[0]} and {times[1]}"
    return ("fused" if fused < plain else "plain"), told


def time_forms(
    block: nn.Module, images: int, runtime: Runtime, *, forms: Iterable[str] = FORMS, rounds: int = 10
) -> dict[str, list[float]]:
    """Return for each form the seconds of CALLS forward and backward passes of a Mixer block, one value a round.

    images: in a batch. rounds: the forms take turns. The block is not changed.
    """
    ways = {form: _calls(block, form, images, runtime) for form in forms}
    return interleaved(ways, rounds=rounds, wait=runtime.synchronize)


def _calls(block, form, images, runtime) -> Callable[[], None]:
    own = copy.deepcopy(block).train()
    if form == "fused":
        fuse(own)
    shape = images, block.mlp_tokens.fc1.in_features, block.mlp_channels.fc1.in_features
    x = torch.randn(shape, device=runtime.device, dtype=runtime.dtype, requires_grad=True)
    inputs, grad = [x, *(p for p in own.parameters() if p.requires_grad)], torch.ones_like(x)
    forward = runtime.compiled_form(own)

    def calls() -> None:
        for _ in range(CALLS):
            runtime.start_step()
            with runtime.autocast():
                y = forward(x)
            torch.autograd.grad(y, inputs, grad.to(y.dtype))

    return calls
