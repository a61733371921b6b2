"""A copy of a training state on the host, made asynchronously while training goes on."""

import copy

import torch
from torch import Tensor

from pycls_std.engine.arriving import Arriving
from pycls_std.engine.checkpoint import tensors


class Snapshot:
    """A copy of nested dictionaries, lists, tensors and values as they are now.

    Each storage is copied whole and once, so tensors that share one also share its copy, and saving either gives the
    same file. It is made on the current stream, which has to be the one that changes the state afterwards.
    """

    def __init__(self, state: dict):
        own = tensors(state)
        memories = {name: tensor.untyped_storage() for name, tensor in own.items()}
        address = {name: f"{memory.data_ptr()} {memory.nbytes()}" for name, memory in memories.items()}
        self.arriving = Arriving({address[name]: _memory(tensor) for name, tensor in own.items()}, kept=True)
        copies = {id(tensor): _placed(tensor, self.arriving.copies[address[name]]) for name, tensor in own.items()}
        self.state = copy.deepcopy(state, copies)

    def values(self) -> dict:
        """Return the copy; wait until it is complete."""
        self.arriving.values()
        return self.state


def _memory(tensor: Tensor) -> Tensor:
    """Return the whole storage of a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _placed(tensor: Tensor, memory: Tensor) -> Tensor:
    """Return a tensor in another memory, with the offset, shape, strides and dtype that a tensor has in its own."""
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return torch.empty(0, dtype=tensor.dtype).set_(memory.untyped_storage(), *place)
