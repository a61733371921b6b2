"""The processes of a run: a single one, or those that torchrun started, which share every batch.

Shapes: B images of a batch of all processes, W processes.
"""

import gc
import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pycls_std.core.structures import World
from pycls_std.process.launch import launch

T = TypeVar("T")
# A process group with a long time-out, in which all wait for the work of one: a download, precomputed teacher outputs.
_waiting: list = []
PATIENCE = timedelta(days=2)  # torch's own is half an hour


class Processes(World):
    """Collective operations of the processes; every method but `positions` must be called by all of them.

    kind: `cpu` (by gloo) or `cuda` (by NCCL, and gloo for CPU tensors).
    index: the device of this process among those visible to it, 0 if its launcher makes only one visible.
    Raises ValueError if there are more processes on this machine than it has devices.
    """

    def __init__(self, kind: str):
        self.rank, self.size, self.local_rank = launch()
        self.index = 0
        if self.size == 1:
            return
        seen = torch.cuda.device_count() if kind == "cuda" else 0
        if kind == "cuda" and seen != 1 and self.local_rank >= seen:
            raise ValueError(f"process {self.local_rank} of this machine has no GPU, it has {seen}")
        self.index = self.local_rank if seen > 1 else 0
        if not dist.is_initialized():
            _join("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
        if kind == "cuda":
            self._refuse_shared_devices()

    def _refuse_shared_devices(self) -> None:
        """Raise ValueError in all processes if two of them use the same device, where they would hang."""
        owners: dict[str, int] = {}
        for rank, device in enumerate(self.gather(str(torch.cuda.get_device_properties(self.index).uuid))):
            first = owners.setdefault(device, rank)
            if first != rank:
                raise ValueError(f"processes {first} and {rank} have the same GPU, start one process for each GPU")

    def positions(self, batch_size: int) -> list[int]:
        """Return the positions of this process's images in the batch of all processes, ascending.

        Mixup and cutmix mix the first image with the last, the second with the last but one, and so on. Both of a pair
        go to the same process, so that W processes mix as one would. Pairs are distributed round-robin, so that the
        views of repeated augmentation, which are adjacent, go to different processes, as in DeiT's sampler.
        """
        share = batch_size // self.size
        pairs = [(place, batch_size - 1 - place) for place in range((batch_size + 1) // 2)]  # the middle one twice
        dealt = [place for rank in range(self.size) for pair in pairs[rank :: self.size] for place in pair]
        return sorted(list(dict.fromkeys(dealt))[self.rank * share : (self.rank + 1) * share])

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, without gradient."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def gather(self, value) -> list:
        """Return the values of all processes, in the order of their ranks; a value can be any picklable object."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def concatenated(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape (B, ...), in the order of their ranks, without gradient."""
        own = tensor.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.size > 1 else [own]
        if self.size > 1:
            dist.all_gather(parts, own)
        return torch.cat(parts)

    def greatest(self, tensor: Tensor) -> Tensor:
        """Return the maximum of each element over all processes."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def broadcast_from_rank_zero(self, make: Callable[[], T]) -> T:
        """Call make on rank 0; return its result in all processes."""
        result: list[Any] = [make() if self.rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(result, src=0, device=torch.device("cpu"))
        return result[0]

    def rank_zero_first(self, make: Callable[[], T]) -> T:
        """Call make on rank 0, then in the first process of each other machine, then in the others.

        Downloads then happen only once.
        """
        own = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        for turn in range(3 if self.size > 1 else 1):
            if turn == own:
                result = make()
            if self.size > 1:
                dist.all_reduce(torch.zeros(1), group=_waiting[0])  # a barrier
        return result

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose backward pass averages the gradients of all processes.

        Buffers are not synchronized: neither batch norms' statistics, until `share_buffers`, nor those of terms.
        """
        if self.size == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        named = inspect.signature(DistributedDataParallel).parameters
        share = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"  # before torch 2.15
        options: dict[str, Any] = {"device_ids": devices, "gradient_as_bucket_view": True, share: False}
        return DistributedDataParallel(module, **options)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace the gradients of parameters by their average over all processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def share_buffers(self, module: nn.Module) -> None:
        """Broadcast the buffers of rank 0, such as the statistics of batch norm, to all processes."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def _reduce(self, tensor, operation):
        if self.size == 1:
            return tensor
        result = tensor.detach().clone()
        dist.all_reduce(result, operation)
        return result


def _join(backend: str) -> None:
    """Join the process group.

    When torchrun restarts processes, its store may still hold the addresses of dead ones, and a group that reads these
    hangs: so each attempt has its own key prefix. Several torchruns each count their own attempts, so they cannot agree
    on a prefix; they need a new store for each attempt (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
    """
    store, rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    _waiting.append(dist.new_group(backend="gloo", timeout=PATIENCE))


def close() -> None:
    """Destroy the process group, if there is one. Not after an error: it would wait for processes that are gone.

    No reference to the group may be left, or torch can hang when the last one is released (seen on 2.11).
    """
    if dist.is_initialized():
        _waiting.clear()
        gc.collect()  # a wrapped module refers to itself
        dist.destroy_process_group()
