"""Batch norms folded into convolutions: what is folded, that the numbers stay, and what is left alone."""

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import nn

from pycls_std.models.create import create_backbone
from pycls_std.models.taps import POOLED, tap_names
from pycls_std.teachers.folding import fold_batch_norms
from pycls_std.teachers.teacher import Request, compute


def used(model):
    """The model in eval with statistics, weights and biases of its batch norms as training leaves them: not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.5, generator=generator)
    return model.eval()


def images(size=32, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet8", 32), ("resnet20", 32), ("resnet18", 64), ("regnety_002", 64), ("tf_efficientnet_lite0", 64)],
)
def test_all_batch_norms_are_folded_and_logits_and_features_stay(name, size):
    """Those of the CIFAR ResNets, plain ones of timm, those that act, and those behind convolutions that pad.

    With all taps read, which are behind the batch norms.
    """
    torch.manual_seed(0)
    own = name in ("resnet8", "resnet20")
    model = create_backbone(name, num_classes=10, image_size=32) if own else timm.create_model(name, num_classes=10)
    used(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    request = Request(taps=(*tap_names(model), POOLED))
    folded, count = fold_batch_norms(model, images(size), request.taps)
    assert count == norms(model) > 0
    assert norms(folded) == 0
    assert {p.dtype for p in folded.parameters()} == {torch.float32}
    with torch.no_grad():
        expected, found = (compute(each, images(size, count=3), request) for each in (model, folded))
        torch.testing.assert_close(folded(images(size, count=3)), found.heads["cls"])
    assert [list(part) for part in found] == [["cls"], list(request.taps)]
    for after, now in zip(*((*o.heads.values(), *o.features.values()) for o in (expected, found)), strict=True):
        torch.testing.assert_close(now, after, rtol=1e-4, atol=1e-4 * float(after.abs().max()))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_in_double_precision_they_are_equal():
    torch.manual_seed(0)
    model = used(timm.create_model("resnet18", num_classes=10)).double()
    request = Request(taps=tuple(tap_names(model)))
    folded, count = fold_batch_norms(model, images(64), request.taps)
    assert count == 20
    with torch.no_grad():
        expected, found = (compute(each, images(64, count=3).double(), request) for each in (model, folded))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Tapped(nn.Module):
    """A convolution, its batch norm and a head; what is read at each of the first two is a tap."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.feature_info = [{"module": "conv"}, {"module": "norm"}]

    def forward_intermediates(self, x, indices, output_fmt="NCHW", **_):
        maps = [self.conv(x)]
        maps.append(self.norm(maps[0]))
        return maps[1], [maps[index] for index in indices]

    def forward_head(self, x):
        return self.head(x.mean(dim=(2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_intermediates(x, [])[0])


@pytest.mark.parametrize(
    ("taps", "count"), [((), 1), (("norm",), 1), (("conv",), 0), (("conv", "norm"), 0)], ids=lambda value: str(value)
)
def test_a_tap_that_reads_a_convolution_itself_keeps_its_batch_norm(taps, count):
    model = used(Tapped())
    folded, found = fold_batch_norms(model, images(), taps)
    assert (found, folded is model) == (count, count == 0)
    with torch.no_grad():
        expected, got = (compute(each, images(), Request(taps=taps)) for each in (model, folded))
    torch.testing.assert_close(got, expected)


class Branches(nn.Module):
    """A convolution and its batch norm, and one more thing that the forward pass does."""

    def __init__(self, kind, convolution=nn.Conv2d):
        super().__init__()
        self.kind = kind
        self.conv = convolution(3, 6, (3, 1), stride=2, padding=1, dilation=2)
        self.bn = nn.BatchNorm2d(6, affine=kind != "plain")
        self.other = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        made = self.conv(x)
        if self.kind == "written into":
            made = made.relu_()
        y = self.bn(made)
        if self.kind == "another reader":
            y = y + made
        if self.kind == "two norms":
            y = y + self.other(made)
        if self.kind == "called twice":
            y = y + self.bn(self.conv(x.flip(-1)))
        if self.kind == "its weights are read":
            y = y * self.bn.weight.mean()
        return self.head(y.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *(("plain", 1), ("another reader", 0), ("two norms", 0), ("called twice", 0)),
        *(("written into", 0), ("its weights are read", 0)),
    ],
)
def test_a_batch_norm_that_is_more_than_one_step_of_a_chain_stays(kind, count):
    model = used(Branches(kind))
    folded, found = fold_batch_norms(model, images())
    assert found == count
    assert (folded is model) == (count == 0)
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), model(images()))


def test_a_convolution_that_changes_its_weights_stays():
    model = used(Branches("plain", lambda *args, **options: StdConv2d(*args, **options)))
    assert fold_batch_norms(model, images()) == (model, 0)


def test_a_batch_norm_without_statistics_stays():
    model = Branches("plain").eval()
    model.bn = nn.BatchNorm2d(6, track_running_stats=False).eval()
    assert fold_batch_norms(model, images()) == (model, 0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_nano4"])
def test_models_without_batch_norm_stay(name):
    own = name == "mixer_nano4"
    model = create_backbone(name, num_classes=10, image_size=32) if own else timm.create_model(name, img_size=32)
    assert fold_batch_norms(model.eval(), images(), tuple(tap_names(model)[:1])) == (model, 0)


class Twice(nn.Module):
    """A batch norm that stands under two names and is called under one."""

    def __init__(self, conv, norm, head):
        super().__init__()
        self.conv, self.norm, self.alias, self.head = conv, norm, norm, head

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).flatten(1))


def test_a_module_under_two_names_is_replaced_under_both():
    model = used(Twice(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4 * 32 * 32, 2)))
    folded, count = fold_batch_norms(model, images())
    assert count == 1
    assert isinstance(folded.norm, nn.Identity) and folded.alias is folded.norm
