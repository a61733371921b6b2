"""A frozen teacher that sees the student's batch in its own normalisation and size.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pycls_std.core.structures import Normalization, Output, Padded
from pycls_std.models.contract import Backbone, named_heads
from pycls_std.models.taps import read
from pycls_std.teachers.predicting import PredictingStudent


class Request(NamedTuple):
    """What is asked of a teacher; it computes no more."""

    head: bool = True  # its prediction
    taps: tuple[str, ...] = ()  # names of those whose features are read


class Teacher(nn.Module):
    """A backbone that never trains: no gradient, in eval whatever the trainer calls.

    normalization: what its weights were trained with. student: what the batch arrives with. image_size: side its input
    is resized to, 0 = as it comes. args: those of its constructor that the options give it. description: for the log.
    It computes in the precision of the training step until it is given its own, see `use`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str,
        normalization: Normalization,
        student: Normalization,
        image_size: int = 0,
        args: Mapping = MappingProxyType({}),
        description: str = "",
    ):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.name = name
        self.description = description
        self.image_size = image_size
        self.args = dict(args)
        own, given = ((torch.tensor(n.mean), torch.tensor(n.std)) for n in (normalization, student))
        # (x * given_std + given_mean - own_mean) / own_std as one multiplication and one addition
        self.register_buffer("scale", (given[1] / own[1]).view(3, 1, 1))
        self.register_buffer("shift", ((given[0] - own[0]) / own[1]).view(3, 1, 1))
        self.same_input = normalization == student
        self.dtype = torch.float32  # of what the backbone is given
        self.precision: Callable[[], AbstractContextManager] = nullcontext  # it computes within this
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval: a batch norm in training mode would change the teacher while it teaches."""
        return super().train(False)

    def use(self, backbone: Backbone, *, dtype: torch.dtype, precision: Callable[[], AbstractContextManager]) -> None:
        """Teach by this backbone, given images of this dtype, and whatever the student's precision is.

        precision: makes the context to compute in.
        """
        self.backbone = backbone.requires_grad_(False).eval()
        self.dtype = dtype
        self.precision = precision

    def use_batch_statistics(self) -> None:
        """Let batch norms take mean and variance of each batch from now on, and forget those they were trained with.

        The references of locality guidance and logit standardization put the teacher in train mode together with the
        student, so that it teaches by these.
        """
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def own_input(self, images: Tensor | Padded) -> Tensor | Padded:
        """Return images (B, 3, H, W), in the student's normalisation and size, in this teacher's, of its dtype.

        Padded images keep their size.
        Resized without a filter: a teacher that is smaller than its student mostly sees small images that were enlarged
        for the student, and point samples give back what they were (at 224 px and 32 exactly); a filter would blur them
        once more, which costs a ResNet-20 5 points on CIFAR-10. The references do the same.
        """
        if isinstance(images, Padded):
            pixels = self._normalized(images.pixels) * images.mask.unsqueeze(1)  # what is padded stays 0
            return images._replace(pixels=pixels.to(self.dtype))
        images = self._normalized(images)
        if self.image_size and self.image_size != images.shape[-1]:
            size = (self.image_size, self.image_size)
            images = interpolate(images, size, mode="bilinear", align_corners=False)
        return images.to(self.dtype)

    def _normalized(self, pixels: Tensor) -> Tensor:
        return pixels if self.same_input else pixels * self.scale + self.shift

    def forward(self, images: Tensor | Padded, request: Request = Request()) -> Output:  # noqa: B008  (immutable)
        """images: (B, 3, H, W) in the student's normalisation. Returns what is asked for, fp32, without gradient.

        The head of a classifier is `cls`, (B, K) logits; one with two heads gives their average. Features are
        (B, C, H, W) of the teacher's own sizes.
        """
        # Not inference_mode, whose views torch before 2.15 does not compile (pytorch/pytorch 169477).
        with torch.no_grad(), self.precision():
            output = compute(self.backbone, self.own_input(images), request)
            # Contiguous, as what is read from a cache is, so that sums over it round alike.
            heads, features = ({name: value.float().contiguous() for name, value in part.items()} for part in output)
        return Output(heads, features)


def compute(backbone: Backbone, images: Tensor | Padded, request: Request) -> Output:
    """Return what is asked of a backbone, and compute nothing else. images: as it takes them."""
    if isinstance(backbone, PredictingStudent) and request.head:
        logits, features = backbone.answer(images, request.taps)
        return Output(named_heads(logits), features)
    if not request.taps:
        return Output(named_heads(backbone(images)) if request.head else {}, {})
    last, features = read(backbone, images, request.taps, head=request.head)
    return Output(named_heads(backbone.forward_head(last)) if request.head else {}, features)
