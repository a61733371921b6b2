"""What the teachers say of a batch, asked as it comes."""

from collections.abc import Callable

from torch import Tensor, nn

from pycls_std.core.structures import Batch, Output, Padded, Progress
from pycls_std.teachers.teacher import Request


class LiveTeachers:
    """Asks each teacher for what is requested of it. Other objects that say the same stand in `teachers/cache.py`."""

    def __init__(self, teachers: nn.ModuleList, requests: list[Request]):
        self.teachers = teachers
        self.requests = requests
        self.ask = self._ask

    def __call__(self, batch: Batch, progress: Progress) -> list[Output]:
        """Return what each teacher says of the batch's images."""
        return self.ask(batch.images)

    def _ask(self, images: Tensor | Padded) -> list[Output]:
        return [teacher(images, request) for teacher, request in zip(self.teachers, self.requests, strict=True)]

    def compile(self, compiler: Callable[[Callable], Callable]) -> None:
        """Compile the teachers' forward passes, if there are any."""
        if self.requests:
            self.ask = compiler(self._ask)

    def close(self) -> None:
        """Leave nothing unfinished."""
