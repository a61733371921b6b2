"""VGGs with batch norm for 32 px images, with the parameter names of the published CIFAR-100 teachers.

Source: Simonyan and Zisserman, ICLR 2015, with one linear layer; parameter names as in HobbitLong/RepDistiller and
megvii-research/mdistiller, so their files can be loaded. timm's vgg13 is a different model.
Shapes: B batch, C channels, H height, W width, K classes.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from pycls_std.models.entry_points import register
from pycls_std.models.staged import Staged, initialize_convolutions, refuse_drop_path

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages
LAYERS = {8: (1, 1, 1, 1, 1), 13: (2, 2, 2, 2, 2)}  # number of 3x3 convolutions of each stage, by depth


class CifarVgg(Staged):
    """Five stages of 3x3 convolutions, with max pooling before all but the first and the last.

    From 64 px on, there is max pooling before the last, too. The taps are the stages, after the ReLU.
    """

    def __init__(self, *, num_classes: int, layers: tuple[int, ...]):
        super().__init__()
        for i, (width, count) in enumerate(zip(WIDTHS, layers, strict=True)):
            setattr(self, f"block{i}", _stage(WIDTHS[i - 1] if i else 3, width, count))
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        self.num_classes = num_classes
        reductions = (1, 2, 4, 8, 8)
        self.feature_info = [
            {"module": f"block{i}", "num_chs": width, "reduction": reductions[i]} for i, width in enumerate(WIDTHS)
        ]
        initialize_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def stem(self, images: Tensor) -> Tensor:
        """Return the images (B, 3, H, W): there is no stem."""
        return images

    def stages(self):
        """Return the five stages."""
        return tuple(partial(self._stage, i) for i in range(len(WIDTHS)))

    def _stage(self, index: int, x: Tensor) -> Tensor:
        last = index == len(WIDTHS) - 1
        if index and (not last or x.shape[2] >= 8):  # an eighth of 64 px
            x = max_pool2d(x, 2)
        return relu(getattr(self, f"block{index}")(x), inplace=True)

    def get_classifier(self) -> nn.Linear:
        """Return the layer that outputs the logits."""
        return self.classifier


def _stage(channels_in: int, channels_out: int, count: int) -> nn.Sequential:
    """Return convolutions with batch norms and ReLUs, without the last ReLU."""
    layers = []
    for i in range(count):
        convolution = nn.Conv2d(channels_out if i else channels_in, channels_out, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def vgg(depth, /, *, num_classes, image_size, drop_path=0.0) -> CifarVgg:
    """Build a CIFAR VGG; it takes any image size from 8 px on and has no stochastic depth."""
    refuse_drop_path(drop_path, "CIFAR VGG")
    return CifarVgg(num_classes=num_classes, layers=LAYERS[depth])


for _depth in LAYERS:
    register(f"vgg{_depth}_cifar", partial(vgg, _depth))
