"""The mutual-information regulariser of STD: keep spatial and channel tokens from saying the same.

Shapes: B batch, M tokens, N channels, P patches.
"""

import numpy as np
import torch
from torch import Tensor, nn

from pycls_std.core.structures import Batch, Progress, World
from pycls_std.layers.statistics_net import StatisticsNet
from pycls_std.losses.mine import mutual_information, shifted


class Mine:
    """One critic for each token set, the optimizers of critics and student, and the images of the next step.

    Critics ascend and the student descends on the same estimate, each by plain SGD beside the main optimizer.
    samples: images of one step. period: `epoch` or `step`. repeats: views of an image, which stand side by side.
    Source: Li et al., ICML 2022, algorithm 1; learning rates, momentum and samples as in the reproduction. Its code
    counted chunks for samples and drew them with replacement; here `samples` distinct images make one estimate.
    """

    def __init__(self, critics: nn.ModuleList, optimizers: list, *, samples: int, period: str, repeats: int = 1):
        self.critics = critics
        self.optimizers = optimizers
        self.samples = samples
        self.period = period
        self.repeats = repeats
        self.chosen = torch.empty(0, dtype=torch.long)  # place of each sample in the epoch
        self.kept = torch.empty(0)  # the samples so far

    @classmethod
    def from_cfg(cls, cfg, *, student: nn.Module):
        """Build from section MINE for a student with tokens of both kinds. Raises ValueError for another student."""
        if cfg.STD.TOKENS != "both":
            raise ValueError(f"MINE.SAMPLES is {cfg.MINE.SAMPLES}, STD.TOKENS is {cfg.STD.TOKENS}, MINE needs both")
        mine = cfg.MINE
        critics = nn.ModuleList(
            StatisticsNet(t.spatial.shape[1] + t.channel.shape[0], width=mine.WIDTH, depth=mine.DEPTH)
            for t in student.tokens
        )
        ascent = torch.optim.SGD(critics.parameters(), lr=mine.CRITIC_LR, momentum=mine.MOMENTUM, maximize=True)
        descent = torch.optim.SGD(student.parameters(), lr=mine.STUDENT_LR, momentum=mine.MOMENTUM)
        return cls(critics, [ascent, descent], samples=mine.SAMPLES, period=mine.PERIOD, repeats=cfg.AUG.REPEATS)

    def estimate(self, tokens: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        """Return the mutual information in nats of spatial (B, M, N) and channel (B, P, M) tokens, mean over sets."""
        estimates = []
        for critic, (spatial, channel) in zip(self.critics, tokens, strict=True):
            spatial, channel = spatial.mean(dim=1), channel.mean(dim=2)
            estimates.append(mutual_information(critic(spatial, channel), critic(spatial, shifted(channel))))
        return torch.stack(estimates).mean()

    def collect(self, batch: Batch, progress: Progress, world: World) -> Tensor | None:
        """Keep this batch's share of the samples; return all of them (samples, 3, H, W) when a step is due.

        Every process returns the samples of all.
        Raises ValueError if there are fewer images than samples.
        """
        size = len(batch.unmixed) * world.size  # of a batch of all processes
        first = progress.iteration * size  # place of the batch's first view in the epoch
        every = self.period == "step"
        if every or progress.iteration == 0:
            what, views = ("a batch", size) if every else ("an epoch", size * progress.iterations)
            self.chosen = self._draw(first, views, what)
            self.kept = batch.unmixed.new_zeros(self.samples, *batch.unmixed.shape[1:])
        own = first + torch.tensor(world.positions(size))  # place of each image of this process
        # Places are found on the CPU, where they are made, so nothing waits for the device; nor does it wait for them.
        found = torch.nonzero(self.chosen.unsqueeze(1) == own, as_tuple=True)
        sample, image = (places.to(self.kept.device, non_blocking=True) for places in found)
        self.kept[sample] = batch.unmixed[image]
        # what another process keeps is 0 here
        return world.sum(self.kept) if every or progress.iteration == progress.iterations - 1 else None

    def _draw(self, first: int, views: int, what: str) -> Tensor:
        images = torch.arange(first, first + views) // self.repeats
        places = first + torch.nonzero(images.diff(prepend=images[:1] - 1)).flatten()  # the first view of each image
        if self.samples > len(places):
            raise ValueError(f"MINE.SAMPLES is {self.samples}, {what} has {len(places)} images")
        return places[np.random.permutation(len(places))[: self.samples]]  # numpy's, for all processes draw alike


def refuse_mine(trainer: str, samples: int) -> None:
    """Raise ValueError if samples are asked for, by a method that has no MINE."""
    if samples:
        raise ValueError(f"TRAINER {trainer} has no MINE, MINE.SAMPLES is {samples}")
