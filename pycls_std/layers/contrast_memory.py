"""A memory of what two models said of every training image, by which the features of a batch are told from others.

Shapes: N training images, B images of a batch, K negatives, C channels of an embedding.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pycls_std.core.structures import World


class ContrastMemory(nn.Module):
    """Embeddings of the student and of the teacher, the classes of the images, and the scale of the densities.

    It is saved with the run, and the same in all processes: what they see of a batch is gathered. momentum: share of
    the old embedding in the new one.
    Source: Tian et al., ICLR 2020 (CRD). Negatives are images of other classes, K for each image, drawn with
    replacement; its code draws without. Of an image that no batch has shown yet the class is unknown, and its embedding
    is noise.
    """

    student: Tensor
    teacher: Tensor
    classes: Tensor
    scales: Tensor

    def __init__(self, images: int, channels: int, *, negatives: int, temperature: float, momentum: float):
        super().__init__()
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        bound = math.sqrt(3 / channels)
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(images, channels).uniform_(-bound, bound))
        self.register_buffer("classes", torch.full((images,), -1))
        # Of both densities, by the first batch; -1 = not yet.
        self.register_buffer("scales", torch.full((2,), -1.0, dtype=torch.float64))

    def forward(
        self, student: Tensor, teacher: Tensor, index: Tensor, classes: Tensor, world: World
    ) -> list[tuple[Tensor, Tensor]]:
        """Return how likely each image's own pair is one, (B,), and each negative one, (B, K), in fp64; then remember.

        First the student's embeddings against the teacher's memory, then the teacher's against the student's.
        student, teacher: (B, C) of length 1. index: (B,) positions of the images in the training set. classes: (B,).
        """
        everyone = world.concatenated(torch.stack([index, classes], dim=1))
        self.classes[everyone[:, 0]] = everyone[:, 1]
        places = torch.cat([index.unsqueeze(1), self._draw(classes)], dim=1)
        # A product with the whole memory costs less than fetching K embeddings for each image. A copy of it, for it
        # changes below and the gradient needs what it was. In fp64, which autocast leaves alone, and which holds exp of
        # a cosine over a low temperature.
        pairs = ((student, self.teacher), (teacher, self.student))
        cosines = [own.double() @ memory.detach().double().T for own, memory in pairs]
        scores = [(each.gather(1, places) / self.temperature).exp() for each in cosines]
        means = [score.detach().mean().expand(len(index), 1) for score in scores]
        gathered = world.concatenated(torch.cat([student.detach(), teacher.detach(), *means], dim=1))
        with torch.no_grad():
            fresh = gathered[:, -2:].mean(dim=0) * len(self.student)
            self.scales.copy_(torch.where(self.scales > 0, self.scales, fresh))
            own, other = gathered[:, :-2].chunk(2, dim=1)
            self._remember(own, other, everyone[:, 0])
        scales = self.scales.clone()
        return [(score[:, 0] / scale, score[:, 1:] / scale) for score, scale in zip(scores, scales, strict=True)]

    def _draw(self, classes: Tensor) -> Tensor:
        """Return places (B, K) of images of other classes, each as likely as the others."""
        order = self.classes.argsort(stable=True)
        sorted_classes = self.classes[order]
        start = torch.searchsorted(sorted_classes, classes).unsqueeze(1)
        own = torch.searchsorted(sorted_classes, classes, right=True).unsqueeze(1) - start
        others = (len(order) - own).clamp(min=1)
        uniform = torch.rand(len(classes), self.negatives, dtype=torch.float64, device=order.device)
        draws = (uniform * others).long()
        return order[(draws + own * (draws >= start)).clamp(max=len(order) - 1)]

    def _remember(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Move the memory of these images to their embeddings; to the mean of several views of one image."""
        same = (index.unsqueeze(0) == index.unsqueeze(1)).double()
        same = same / same.sum(dim=1, keepdim=True)
        for memory, embeddings in ((self.student, student), (self.teacher, teacher)):
            seen = (same @ embeddings.double()).to(memory.dtype)
            memory[index] = normalize(self.momentum * memory[index] + (1 - self.momentum) * seen)
