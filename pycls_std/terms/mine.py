"""The mutual-information regulariser of STD, which keeps spatial and channel tokens from being redundant.

Shapes: B batch, M tokens, C channels, P patches, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from pycls_std.core.option import Option
from pycls_std.core.registry import TERMS
from pycls_std.core.sending import send
from pycls_std.core.structures import Batch, Loaded, Progress, World
from pycls_std.layers.statistics_net import StatisticsNet
from pycls_std.losses.mine import mutual_information, shifted
from pycls_std.terms.base import AuxiliaryTerm


@TERMS.register("mine")
class Mine(AuxiliaryTerm):
    """One critic per token set, the optimizers of critics and student, and the sampled images of the next step.

    Critics ascend and the student descends on the same estimate, each by its own SGD in addition to the main optimizer.
    samples: images of one step. period: `epoch` or `step`. repeats: views of an image, adjacent in the epoch.
    Source: Li et al., ICML 2022, algorithm 1; learning rates, momentum and samples as in the reproduction. Its code
    counted chunks as samples and drew them with replacement; here `samples` distinct images make one estimate.
    """

    OPTIONS = {
        # Images of one mutual-information step (distinct, unmixed); 0 = MINE off, otherwise at least 2.
        "SAMPLES": Option(0, least=0),
        # How often such a step is taken: at the end of each epoch, or after every iteration.
        "PERIOD": Option(("epoch", "step")),
        # Learning rate of the critic, which maximizes the estimate.
        "CRITIC_LR": Option(0.01, least=0),
        # Learning rate of the student, which minimizes it; 0 = the estimate is only logged.
        "STUDENT_LR": Option(0.01, least=0),
        # Momentum of both; 0 = off.
        "MOMENTUM": Option(0.0, least=0, greatest=1),
        # Hidden units of the critic.
        "WIDTH": Option(512, least=1, greatest=65536),
        # Linear layers of the critic; 1 = no hidden layer.
        "DEPTH": Option(3, least=1, greatest=1000),
    }
    SWITCH = "SAMPLES"
    WEIGHED_BY = "CRITIC_LR"
    READS = ()

    def __init__(self, critics: nn.ModuleList, optimizers: list, *, samples: int, period: str, repeats: int = 1):
        super().__init__(optimizers)
        self.critics = critics
        self.samples = samples
        self.period = period
        self.repeats = repeats
        self.chosen = np.empty(0, dtype=np.int64)  # position of each sample in the epoch, on the CPU, where it is drawn
        self.kept = torch.empty(0)  # the samples collected so far

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section MINE for a student with tokens of both kinds.

        Raises ValueError for any other student, and for more samples than an epoch or a batch has images.
        """
        mine = cfg.MINE
        branch = dict(student.branches.items()).get("std")
        if branch is None or branch.layout.kind != "both":
            kind = f"STD.TOKENS is {branch.layout.kind}" if branch else "the student has no tokens (STD.WEIGHT)"
            raise ValueError(f"MINE.SAMPLES is {mine.SAMPLES}, {kind}, MINE needs tokens of both kinds")
        what, images = (
            ("a batch", run.batch_images)
            if mine.PERIOD == "step"
            else (
                "an epoch",
                run.epoch_images,
            )
        )
        if mine.SAMPLES == 1:
            raise ValueError("MINE.SAMPLES is 1, expected 0 (off) or at least 2: a sample is paired with another one")
        if images is not None and images < mine.SAMPLES:
            raise ValueError(f"MINE.SAMPLES is {mine.SAMPLES}, {what} has {images} images")
        critics = nn.ModuleList(
            StatisticsNet(t.spatial.shape[1] + t.channel.shape[0], width=mine.WIDTH, depth=mine.DEPTH)
            for t in branch.tokens
        )
        ascent = torch.optim.SGD(critics.parameters(), lr=mine.CRITIC_LR, momentum=mine.MOMENTUM, maximize=True)
        trained = [p for p in student.parameters() if p.requires_grad]
        descent = torch.optim.SGD(trained, lr=mine.STUDENT_LR, momentum=mine.MOMENTUM)
        return cls(critics, [ascent, descent], samples=mine.SAMPLES, period=mine.PERIOD, repeats=cfg.AUG.REPEATS)

    def shrink(self, images: int) -> None:
        """Adapt to a batch of so many distinct images."""
        self.samples = min(self.samples, images)

    def losses(self, student, batch: Batch, progress: Progress, world: World) -> dict[str, Tensor]:
        """Return {"mine"} when a step is due."""
        images = self.collect(batch.loaded, progress, world)
        return {} if images is None else {"mine": self.estimate(student(images).features)}

    def estimate(self, features: dict[str, Tensor]) -> Tensor:
        """Return the mutual information in nats of spatial and channel tokens, mean over sets.

        features: tokens0.spatial (B, M, C), tokens0.channel (B, P, M), and so on.
        """
        estimates = []
        for number, critic in enumerate(self.critics):
            spatial = features[f"tokens{number}.spatial"].mean(dim=1)
            channel = features[f"tokens{number}.channel"].mean(dim=2)
            estimates.append(mutual_information(critic(spatial, channel), critic(spatial, shifted(channel))))
        return torch.stack(estimates).mean()

    def collect(self, loaded: Loaded, progress: Progress, world: World) -> Tensor | None:
        """Store the samples that are in this batch; return all of them (samples, 3, H, W) when a step is due.

        Every process returns the samples of all processes.
        Raises ValueError if there are fewer images than samples.
        """
        size = len(loaded.images) * world.size  # of the global batch
        first = progress.iteration * size  # position of the batch's first view in the epoch
        every = self.period == "step"
        if every or progress.iteration == 0:
            what, views = ("a batch", size) if every else ("an epoch", size * progress.iterations)
            self.chosen = self._draw(first, views, what)
            assert isinstance(loaded.images, Tensor), "a student with tokens is a classifier"
            self.kept = loaded.images.new_zeros(self.samples, *loaded.images.shape[1:])
        own = first + np.array(world.positions(size))  # position of each image of this process
        found = np.nonzero(self.chosen[:, None] == own)
        sample, image = (send(places, self.kept.device) for places in found)
        self.kept[sample] = loaded.images[image]
        # rows of samples that other processes hold are 0 here
        return world.sum(self.kept) if every or progress.iteration == progress.iterations - 1 else None

    def _draw(self, first: int, views: int, what: str) -> np.ndarray:
        images = np.arange(first, first + views) // self.repeats
        places = first + np.flatnonzero(np.diff(images, prepend=images[:1] - 1))  # the first view of each image
        if self.samples > len(places):
            raise ValueError(f"MINE.SAMPLES is {self.samples}, {what} has {len(places)} images")
        return places[np.random.permutation(len(places))[: self.samples]]  # numpy draws alike in all processes
