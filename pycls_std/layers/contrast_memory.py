"""The memory bank of contrastive distillation: two models' embeddings of every training image.

Shapes: N training images, B images of a batch, K negatives, C channels of an embedding.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pycls_std.core.structures import World


class ContrastMemory(nn.Module):
    """Embeddings of the student and of the teacher, the classes of the images, and the scale of the densities.

    It is saved in checkpoints, and identical in all processes, which gather each batch. momentum: share of the old
    embedding in the new one.
    Source: Tian et al., ICLR 2020 (CRD). Negatives are images of other classes, K for each image, drawn with
    replacement; its code draws without. An image that was in no batch yet has an unknown class and a random embedding.
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
        # Normalisation of both densities, set by the first batch; -1 = not set.
        self.register_buffer("scales", torch.full((2,), -1.0, dtype=torch.float64))

    def forward(
        self, student: Tensor, teacher: Tensor, index: Tensor, classes: Tensor, world: World
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the densities of each image's positive pair, (B,), and negative pairs, (B, K), fp64; then update.

        First the student's embeddings against the teacher's memory, then the teacher's against the student's.
        student, teacher: (B, C), L2-normalized. index: (B,) positions of the images in the training set. classes: (B,).
        """
        everyone = world.concatenated(torch.stack([index, classes], dim=1))
        self.classes[everyone[:, 0]] = everyone[:, 1]
        places = torch.cat([index.unsqueeze(1), self._draw(classes)], dim=1)
        # A product with the whole memory is cheaper than gathering K embeddings for each image. `double` copies the
        # memory, which changes below, while the gradient needs the old values. In fp64, which autocast does not change,
        # and which does not overflow for exp of a cosine over a low temperature.
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
        """Return positions (B, K) of images of other classes, drawn uniformly."""
        order = self.classes.argsort(stable=True)
        sorted_classes = self.classes[order]
        start = torch.searchsorted(sorted_classes, classes).unsqueeze(1)
        own = torch.searchsorted(sorted_classes, classes, right=True).unsqueeze(1) - start
        others = (len(order) - own).clamp(min=1)
        uniform = torch.rand(len(classes), self.negatives, dtype=torch.float64, device=order.device)
        draws = (uniform * others).long()
        return order[(draws + own * (draws >= start)).clamp(max=len(order) - 1)]

    def _remember(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Update the memory of these images by their embeddings; by the mean over several views of one image."""
        same = (index.unsqueeze(0) == index.unsqueeze(1)).double()
        same = same / same.sum(dim=1, keepdim=True)
        for memory, embeddings in ((self.student, student), (self.teacher, teacher)):
            seen = (same @ embeddings.double()).to(memory.dtype)
            memory[index] = normalize(self.momentum * memory[index] + (1 - self.momentum) * seen)
