"""Teacher outputs, computed live by a forward pass on each batch."""

from collections.abc import Callable

from torch import Tensor, nn

from pycls_std.core.structures import Batch, Output, Padded, Progress
from pycls_std.teachers.teacher import Request


class LiveTeachers:
    """Runs each teacher's forward pass for its request. `cache.py` and `offline.py` have the same interface."""

    def __init__(self, teachers: nn.ModuleList, requests: list[Request]):
        self.teachers = teachers
        self.requests = requests
        self.ask = self._ask

    def __call__(self, batch: Batch, progress: Progress) -> list[Output]:
        """Return each teacher's outputs for the batch's images."""
        return self.ask(batch.images)

    def _ask(self, images: Tensor | Padded) -> list[Output]:
        return [teacher(images, request) for teacher, request in zip(self.teachers, self.requests, strict=True)]

    def compile(self, compiler: Callable[[Callable], Callable]) -> None:
        """Compile the teachers' forward passes, if there are any."""
        if self.requests:
            self.ask = compiler(self._ask)

    def close(self) -> None:
        """Do nothing: there is nothing to clean up."""
