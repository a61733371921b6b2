"""Device, precision and optimizer steps: all that depends on where and how numbers are computed."""

import logging
import platform
import resource
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pycls_std.core.precision import full_precision
from pycls_std.core.seeding import seed_all, seed_torch
from pycls_std.core.structures import added, mapped
from pycls_std.engine.allocator import keep_freed_memory
from pycls_std.engine.arithmetic import WideAttention, WideProducts, cpu_has_bf16, set_deterministic, set_tf32
from pycls_std.engine.distributed import Processes
from pycls_std.engine.monitor import StepMonitor
from pycls_std.engine.optim import fused

LAG = 8  # steps after which the outcome of one is read on CUDA: the device is done with it by then, so nothing waits
LOG = logging.getLogger("pycls_std")
COMPILING_PAYS = 5000  # iterations from which compiling, which takes one or two minutes, pays off
# Options of inductor by the choice of TRAIN.COMPILE; other backends take no mode.
INDUCTOR: dict[str, dict[str, Any]] = {
    "on": {},
    "autotune": {"mode": "max-autotune-no-cudagraphs"},
    "graphs": {"mode": "reduce-overhead"},
}
Module = TypeVar("Module", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def _compiler_errors():
    """Turn an error of the compiler, of many lines and often from its internals, into one line."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().splitlines()[:2])  # the first says which part of it raised
        raise RuntimeError(f"the compiler failed, TRAIN.COMPILE=off does without it: {reason}") from error


@contextmanager
def _all(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class Runtime:
    """Places modules and tensors on the device, and steps optimizers in the chosen precision.

    device: `auto`, `cpu` or `cuda`. precision: `fp32`, `bf16` or `fp16`, of the forward pass; fp16 scales the loss.
    lag: steps after which the outcome of one is read; by default 0 on a CPU, where reading costs nothing. compiler: the
    backend of torch.compile.
    Raises ValueError if cuda is requested and not available.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: str = "fp32",
        seed: int = 0,
        lag: int | None = None,
        compiler: str = "inductor",
    ):
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("DEVICE is cuda, torch finds no CUDA device here")
        kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.world = Processes(kind)
        self.device = torch.device(kind, self.world.index) if kind == "cuda" else torch.device(kind)
        if kind == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.set_device(self.device)  # for what asks for no device, such as pinned memory
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.seed = seed
        self.scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")
        self.step_monitor = StepMonitor(self.world, lag=lag if lag is not None else LAG if kind == "cuda" else 0)
        self.compiler = compiler
        self.compiled = "off"  # how the losses are compiled: off, on, autotune or graphs
        self.token_mixing = ""  # plain or fused, how the student's token mixing MLPs are computed; "" = not chosen yet
        self.wide_products = self.wide_attention = False  # those of bf16, see `arithmetic`
        self.told = False  # whether the log says so
        self._use(precision)
        self.exact = kind == "cpu"  # whether the same steps always give bitwise equal results

    def set_arithmetic(self, *, tf32: bool, deterministic: bool) -> None:
        """Set the arithmetic switches of CUDA for the whole process; a CPU has none.

        tf32, deterministic: see `arithmetic.set_tf32`, `arithmetic.set_deterministic`.
        """
        if self.device.type == "cuda":
            set_tf32(tf32)
            set_deterministic(deterministic)
        self.exact = self.device.type == "cpu" or deterministic

    def start_epoch(self, epoch: int) -> None:
        """Seed all generators from (seed, epoch), torch's also from the rank.

        So all processes draw the same mixing and samples, by numpy, but their own dropout masks, by torch.
        """
        seed_all(self.seed, epoch)
        if self.world.rank:
            seed_torch(self.seed, epoch, self.world.rank)

    def place(self, module: Module) -> Module:
        """Move a module to the device, in channels_last, which makes convolutions faster, on CPUs and tensor cores."""
        return module.to(self.device).to(memory_format=torch.channels_last)

    def place_optimizers(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        """Return optimizers that step without synchronization, for parameters that are placed: on CUDA, fused ones.

        On a CPU they are returned as they are: a fused step rounds differently there and is not faster.
        """
        return [fused(optimizer) for optimizer in optimizers] if self.device.type == "cuda" else optimizers

    def distribute(self, trainer) -> None:
        """Make a trainer, whose modules are placed, data-parallel, if there are several processes."""
        trainer.share(self.world)
        trainer.forward = self.world.wrap(trainer.objective, self.device)

    def compile(self, session, choice: str, *, iterations: int) -> None:
        """Compile a step's forward pass: the trainer's losses, of student and terms, and the teachers' outputs.

        session: its `trainer.losses` and `teacher_outputs` are replaced.
        choice: `off`; `on`; `autotune`, which times several kernels for each product first; `graphs`, which records
        CUDA graphs and replays them; `auto`, which is on with CUDA if the run has enough iterations for it to pay off.
        Compilation happens in the first step.
        Raises ValueError for graphs on a CPU; the step raises RuntimeError if the compiler fails.
        """
        cuda = self.device.type == "cuda"
        if choice == "graphs" and not cuda:
            raise ValueError("TRAIN.COMPILE is graphs, which needs DEVICE cuda")
        self.compiled, reason = choice, ""
        if choice == "auto":
            self.compiled = "on" if cuda and iterations >= COMPILING_PAYS else "off"
            few = f", {iterations} iterations, it pays from {COMPILING_PAYS} on"
            reason = few if cuda else ", a CPU gains nothing by it"
        if choice != "off":
            LOG.info("TRAIN.COMPILE %s: %s%s", choice, self.compiled, reason)
        if self.compiled == "off":
            return
        if self.wide_attention:
            what, times = ("products", "ten") if self.wide_products else ("attention", "several")
            LOG.warning("TRAIN.COMPILE: %s of bf16 is torch's own then, on this CPU %s times as slow", what, times)
        graphs, trainer = self.compiled == "graphs", session.trainer
        session.teacher_outputs.compile(self.compiled_form)
        own = self.compiled_form(trainer.losses)

        def losses(batch, teachers, progress):
            """Return what the trainer's own `losses` returns."""
            terms = own(batch, teachers, progress)
            if graphs:  # the next replay writes to the same memory
                trainer.copy_monitors()
                terms = {name: value.clone() for name, value in terms.items()}
            return terms

        trainer.losses = losses

    def compiled_form(self, forward: Callable) -> Callable:
        """Return a function compiled as `compile` does with a step's forward pass; as it is if nothing is compiled."""
        if self.compiled == "off":
            return forward
        function = torch.compile(forward, backend=self.compiler, **INDUCTOR[self.compiled])

        def call(*arguments):
            with _compiler_errors():
                return function(*arguments)

        return call

    def start_step(self) -> None:
        """Mark the start of a step for CUDA graphs, which reuse the memory of the step before."""
        if self.compiled == "graphs":
            torch.compiler.cudagraph_mark_step_begin()

    def to_device(self, value):
        """Move tensors to the device, images (B, 3, H, W) to channels_last.

        value: a tensor, or nested ones, see `structures.mapped`.
        """

        def move(tensor):
            memory_format = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
            return tensor.to(self.device, non_blocking=True, memory_format=memory_format)

        return mapped(value, move)

    def _use(self, precision: str) -> None:
        """Prepare for a precision, so that bf16 is not slow on a CPU."""
        if precision == "bf16" and self.device.type == "cpu":
            self.wide_attention = True
            self.wide_products |= not cpu_has_bf16()

    def products(self):
        """Return the context for matrix products, forward and backward; `autocast` and `step` enter it themselves."""
        if not self.wide_products or self.compiled != "off":  # compiled code does not dispatch single products
            return nullcontext()
        if not self.told:
            LOG.info("bf16: this CPU has no instructions for it, its products are computed in fp32 and rounded")
        self.told = True
        return WideProducts()

    def _forward(self, own):
        """Return a forward pass's context: `own`, its precision, with wide products and attention unless compiled."""
        if not self.wide_attention or self.compiled != "off":
            return own
        return _all(self.products(), WideAttention(), own)

    def autocast(self):
        """Return the context in which the forward pass runs."""
        return self._forward(torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32"))

    def full_precision(self):
        """Return the context in which a forward pass runs in the precision of its weights, even within `autocast`.

        It is used for teachers.
        """
        return self._forward(full_precision(self.device))

    def convert(self, module: Module, precision: str) -> Module:
        """Convert a frozen module to fp32, bf16 or fp16, once: autocast would convert its weights at every call.

        Batch norms stay in fp32; they take inputs of any precision.
        """
        self._use(precision)
        norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
        kept = [norm.state_dict() for norm in norms]
        module.to(DTYPES[precision])
        for norm, state in zip(norms, kept, strict=True):
            norm.float().load_state_dict(state)  # the values before rounding
        return module

    def step(
        self,
        losses: dict[str, Tensor],
        optimizers: list[Optimizer],
        *,
        clip_norm: float = 0.0,
        where: str = "",
        average: bool = False,
    ) -> None:
        """Step the optimizers on the sum of the losses.

        clip_norm: maximum gradient norm, 0 = no clipping. average: whether to average the gradients over the processes,
        if no module wrapped by DDP does. All processes agree on whether to go on.
        Raises FloatingPointError if the sum is not finite, and signals.Stopped if the run is asked to end; both texts
        contain where, the first one's also the terms. With a lag of 0, this is before any parameter changes; otherwise
        so many steps later, or at the end of a block of `watched`.
        """
        total = added(losses.values())
        self.step_monitor.ask(total, losses, where)
        for optimizer in optimizers:
            optimizer.zero_grad()
        with _compiler_errors(), self.products():
            self.scaler.scale(total).backward()
        self._update(optimizers, clip_norm=clip_norm, average=average)

    def step_in_parts(
        self, parts: list[Callable[[], dict[str, Tensor]]], optimizer: Optimizer, *, clip_norm: float, where: str
    ) -> dict[str, Tensor]:
        """Step an optimizer on the mean of the losses of equally large parts of a batch.

        parts: each computes its losses; its activations are freed before the next is called. Returns the mean losses.
        clip_norm, where, errors: as for `step`, whose gradients are equally large.
        """
        optimizer.zero_grad()
        found = []
        for losses in (part() for part in parts):
            with _compiler_errors(), self.products():
                self.scaler.scale(added(losses.values()) / len(parts)).backward()
            found.append({name: value.detach() for name, value in losses.items()})
        mean = {name: torch.stack([losses[name] for losses in found]).mean(dim=0) for name in found[0]}
        self.step_monitor.ask(added(mean.values()), mean, where)
        self._update([optimizer], clip_norm=clip_norm)
        return mean

    def _update(self, optimizers: list[Optimizer], *, clip_norm: float, average: bool = False) -> None:
        """Step optimizers on the existing gradients; for the arguments see `step`."""
        for optimizer in optimizers:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if average:
                self.world.average_gradients(parameters)
            if clip_norm:
                self.scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.compiled == "graphs":  # gradients lie in the memory that the next replay writes to
            for optimizer in optimizers:
                optimizer.zero_grad()

    @contextmanager
    def watched(self):
        """Return a context for steps; at its end, the outcomes of all are read, also if something else fails.

        Raises what `step` raises.
        """
        self.step_monitor.unread.clear()
        try:
            yield
        except Exception:  # may be due to numbers that are not finite, which are then reported
            self.step_monitor.read()
            raise
        self.step_monitor.read()

    def device_name(self) -> str:
        """Return the name of the GPU, or of the CPU with the number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{names[0] if names else platform.machine()}, {self.threads} threads"

    @property
    def threads(self) -> int:
        """Number of intra-op threads on the CPU; sums round differently with another number."""
        return torch.get_num_threads()

    def peak_memory(self) -> float:
        """Return the most memory used so far, in GiB: of the device on cuda, of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
