"""Check after every step whether to go on, and read the answer some steps later, without device synchronization."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from pycls_std.engine.arriving import Arriving
from pycls_std.engine.distributed import Processes
from pycls_std.process import signals


class StepOutcome(NamedTuple):
    """The outcome of a step in all processes."""

    answer: Arriving  # (2,) whether a loss was not finite, and the signal that came, 0 for none
    terms: dict[str, Tensor]
    where: str


class StepMonitor:
    """The steps whose outcomes have not been read yet, oldest first.

    lag: their maximum number; with 0, each outcome is waited for.
    """

    def __init__(self, world: Processes, *, lag: int):
        self.world = world
        self.lag = lag
        self.unread: deque[StepOutcome] = deque()

    def ask(self, total: Tensor, losses: dict[str, Tensor], where: str) -> None:
        """Start to gather the outcome of a step, with these losses and their total, and read the outcomes that are due.

        Raises FloatingPointError if a total was not finite, with the terms and where, and signals.Stopped if the run is
        asked to end.
        """
        own = torch.stack([(~torch.isfinite(total)).float(), torch.full_like(total, signals.pending()).float()])
        answer = Arriving({"answer": self.world.greatest(own).detach()})
        terms = {name: value.detach() for name, value in losses.items()}  # without the graph, which is large
        self.unread.append(StepOutcome(answer, terms, where))
        self.read(most=self.lag)

    def read(self, *, most: int = 0) -> None:
        """Read the oldest outcomes until at most so many are unread; raises what `ask` raises.

        All processes read the outcome of the same step in the same step, so they end together.
        """
        while len(self.unread) > most:
            outcome = self.unread.popleft()
            broken, signal = outcome.answer.values()["answer"].tolist()
            if broken or signal:
                self.unread.clear()
            if broken:
                terms = ", ".join(f"{name} {float(value):.4g}" for name, value in outcome.terms.items())
                raise FloatingPointError(f"loss not finite at {outcome.where}: {terms}")
            if signal:
                raise signals.Stopped(int(signal), f"at {outcome.where}")
