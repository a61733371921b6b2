"""Training steps on given batches, in this process or in two that share each batch."""

import os
import socket
import time
from typing import Any

import torch
from torch import multiprocessing

from pycls_std.builders.data import Data
from pycls_std.builders.models import find_pretrained
from pycls_std.builders.training import assemble, build_runtime
from pycls_std.core.structures import Progress, take
from pycls_std.engine import distributed, loop
from pycls_std.engine.optim import set_learning_rate

PATIENCE = 300  # seconds


def steps(session: loop.Session, epoch: int):
    """Yield (batch, progress) of an epoch whose loader is a list of batches."""
    for iteration, batch in enumerate(session.train_loader):
        progress = Progress(epoch, iteration, len(session.train_loader), max(session.epochs, epoch + 1))
        yield session.task.batch(session.runtime.to_device(batch), progress), progress


def train(session: loop.Session, epoch: int) -> float:
    """Take the steps of an epoch; return the last loss."""
    session.runtime.start_epoch(epoch)
    session.trainer.student.train()
    with session.runtime.watched():
        for batch, progress in steps(session, epoch):
            set_learning_rate(session.optimizer, session.schedule(progress.fraction))
            losses, _ = loop.train_step(session, batch, progress)
    return float(sum(loss.detach() for loss in losses.values()))


def spread_over_two(cfg, data: Data, trial_images: int) -> None:
    """Train a step on each batch in two processes on the CPU.

    data: its training loader is a list of batches. trial_images: distinct images in each.
    Raises ValueError if the processes fail or end with different weights.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DEVICE, cfg.PRECISION, cfg.CUDA.TOKEN_MIXING = "cpu", "fp32", "plain"
    threads = max(1, torch.get_num_threads() // 2)
    try:
        nothing: Any = None  # in place of a loader, which would be pickled for both: they do not test
        arguments = (port, threads, cfg, data._replace(test=nothing, val=None), trial_images)
        both = multiprocessing.start_processes(_train_share, arguments, 2, join=False, start_method=_start_method())
        end = time.monotonic() + PATIENCE
        while not both.join(timeout=1):
            if time.monotonic() > end:
                for process in both.processes:
                    process.kill()
                raise ValueError(f"two processes that share a batch wait for each other for more than {PATIENCE} s")
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from error  # of the process's traceback


def _start_method() -> str:
    """Return the start method: forkserver, which imports libraries once for both, if available, else spawn."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload([__name__])
    return "forkserver"


def _train_share(rank, port, threads, cfg, data, trial_images):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(threads)
    _train_and_compare(cfg, data, trial_images)
    distributed.close()


def _train_and_compare(cfg, data, trial_images):
    runtime = build_runtime(cfg)
    own = runtime.world.positions(cfg.TRAIN.BATCH_SIZE)
    data = data._replace(train=[take(loaded, own) for loaded in data.train])
    weights = find_pretrained(cfg, fetch=False)
    session = assemble(cfg, data=data, runtime=runtime, weights=weights, trial_images=trial_images)
    train(session, epoch=0)
    modules = torch.nn.ModuleDict({name: m for name, m in session.trainer.modules().items() if name != "teachers"})
    for name, value in [*modules.named_parameters(), *_kept_buffers(session.trainer.terms)]:
        apart = float((runtime.world.greatest(value) - value).detach().abs().max())
        apart = float(runtime.world.greatest(torch.tensor(apart)))
        if not apart < 1e-6:
            raise ValueError(f"{name} differs by {apart:.3g} after {len(data.train)} steps")


def _kept_buffers(terms: torch.nn.ModuleDict) -> list[tuple[str, torch.Tensor]]:
    """Return the buffers of terms, such as a memory of embeddings, without those of batch norms, which may differ."""
    norms = [
        name for name, module in terms.named_modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    return [(name, value) for name, value in terms.named_buffers() if name.rpartition(".")[0] not in norms]
