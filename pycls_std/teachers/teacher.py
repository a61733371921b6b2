"""A frozen teacher, which gets the student's batch in its own normalisation and size.

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
    """The outputs that a teacher must compute; it computes nothing else."""

    head: bool = True  # whether its heads are read
    taps: tuple[str, ...] = ()  # names of the taps whose features are read


class Teacher(nn.Module):
    """A frozen backbone: no gradient, and always in eval mode, even after `train()`.

    normalization: the one its weights were trained with. student: the one the batch has. image_size: side its input is
    resized to, 0 = not resized. args: constructor arguments from the options. description: for the log.
    It computes in the precision of the training step unless it is given its own, see `use`.
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
        self.dtype = torch.float32  # of the backbone's input
        self.precision: Callable[[], AbstractContextManager] = nullcontext  # context of its forward pass
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: a batch norm in training mode would update the teacher's running statistics."""
        return super().train(False)

    def use(self, backbone: Backbone, *, dtype: torch.dtype, precision: Callable[[], AbstractContextManager]) -> None:
        """Replace the backbone; its input has this dtype, whatever the student's precision.

        precision: makes the context of its forward pass.
        """
        self.backbone = backbone.requires_grad_(False).eval()
        self.dtype = dtype
        self.precision = precision

    def use_batch_statistics(self) -> None:
        """Make batch norms use the statistics of each batch from now on, and drop their running statistics.

        The reference implementations of locality guidance and logit standardization put the teacher in train mode
        together with the student, so its outputs depend on batch statistics.
        """
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def own_input(self, images: Tensor | Padded) -> Tensor | Padded:
        """Convert images (B, 3, H, W) from the student's normalisation and size to this teacher's, in its dtype.

        Padded images keep their size.
        There is no antialiasing: a teacher with a smaller input than its student mostly gets small images that were
        enlarged for the student, and point sampling recovers them (exactly from 224 px to 32); antialiasing would blur
        them again, which costs a ResNet-20 5 points on CIFAR-10. The reference implementations do the same.
        """
        if isinstance(images, Padded):
            pixels = self._normalized(images.pixels) * images.mask.unsqueeze(1)  # padding stays 0
            return images._replace(pixels=pixels.to(self.dtype))
        images = self._normalized(images)
        if self.image_size and self.image_size != images.shape[-1]:
            size = (self.image_size, self.image_size)
            images = interpolate(images, size, mode="bilinear", align_corners=False)
        return images.to(self.dtype)

    def _normalized(self, pixels: Tensor) -> Tensor:
        return pixels if self.same_input else pixels * self.scale + self.shift

    def forward(self, images: Tensor | Padded, request: Request = Request()) -> Output:  # noqa: B008  (immutable)
        """images: (B, 3, H, W) in the student's normalisation. Returns the requested outputs, fp32, without gradient.

        The head of a classifier is `cls`, (B, K) logits; one with two heads returns their average. Features are
        (B, C, H, W) of the teacher's own sizes.
        """
        # Not inference_mode: torch before 2.15 cannot compile views of its tensors (pytorch/pytorch 169477).
        with torch.no_grad(), self.precision():
            output = compute(self.backbone, self.own_input(images), request)
            # Contiguous, as outputs read from a cache are, so that sums round alike.
            heads, features = ({name: value.float().contiguous() for name, value in part.items()} for part in output)
        return Output(heads, features)


def compute(backbone: Backbone, images: Tensor | Padded, request: Request) -> Output:
    """Return the requested outputs of a backbone, and compute nothing else. images: in the backbone's own form."""
    if isinstance(backbone, PredictingStudent) and request.head:
        logits, features = backbone.answer(images, request.taps)
        return Output(named_heads(logits), features)
    if not request.taps:
        return Output(named_heads(backbone(images)) if request.head else {}, {})
    last, features = read(backbone, images, request.taps, head=request.head)
    return Output(named_heads(backbone.forward_head(last)) if request.head else {}, features)
