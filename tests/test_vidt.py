"""ViDT: its windows against a dense computation, padding, published counts and numbers, taps, others' weights."""

import re
from types import SimpleNamespace

import pytest
import timm
import torch
from processes import called
from torch.nn.functional import pad
from torch.optim import AdamW

from pycls_std.builders.models import find_teacher_weights, start_from
from pycls_std.builders.teachers import build_teachers
from pycls_std.builders.training import build_optimizer
from pycls_std.builders.weights import Weights, find_weights
from pycls_std.core.structures import Padded
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.engine.checkpoint import load_weights
from pycls_std.engine.optim import create_optimizer
from pycls_std.layers.masked_projection import MaskedProjection
from pycls_std.layers.padding import mask_at
from pycls_std.layers.positions import sine_positions
from pycls_std.layers.reconfigured_attention import ReconfiguredAttention, ReconfiguredBlock, View
from pycls_std.layers.shifted_windows import shifted_mask
from pycls_std.models.contract import adopted
from pycls_std.models.create import create_backbone
from pycls_std.models.describe import Description
from pycls_std.models.published_names import renamed
from pycls_std.models.student import Student
from pycls_std.models.taps import read, tap_names
from pycls_std.models.vidt_names import VIDT

SMALL = {"embed_dim": 16, "depths": (2, 2, 1, 2), "num_heads": (1, 2, 2, 4), "window_size": 4, "queries": 5}
SMALL |= {"hidden": 64, "decoder_layers": 2, "decoder_heads": 4, "ffn": 48}
SIZES = ((50, 71), (93, 40))


def small(**args):
    """Return a small ViDT whose weights are all different from zero."""
    torch.manual_seed(0)
    model = create_backbone("vidt_swin_nano", num_classes=3, image_size=64, **(SMALL | args))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch(sizes=SIZES, height=101, width=77, filling=0.0, images=None):
    """Return images of several sizes, alone, and as a batch that is padded with a number."""
    torch.manual_seed(1)
    images = images or [torch.randn(3, *size) for size in sizes]
    pixels = torch.full((len(images), 3, height, width), filling)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    for place, image in enumerate(images):
        pixels[place, :, : image.shape[1], : image.shape[2]] = image
        mask[place, : image.shape[1], : image.shape[2]] = True
    return [image[None] for image in images], Padded(pixels, mask)


# ------------------------------------------------------------------------------------------------------------- windows
def dense(attention, patches, shift):
    """Return what shifted windows (side 4) of a map (H, W, C) see, place by place, zeros around it.

    Rows and columns belong to the window (place - shift) // 4; where those of the other end are rolled, they are apart.
    """
    window, (height, width) = attention.window_size[0], patches.shape[:2]
    patches = pad(patches, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = (each.flatten() for each in torch.meshgrid(*map(torch.arange, patches.shape[:2]), indexing="ij"))
    same = torch.ones(len(rows), len(rows), dtype=torch.bool)
    bias = torch.zeros(len(rows), len(rows), dtype=torch.long)
    for place, factor in ((rows, 2 * window - 1), (columns, 1)):
        own = torch.div(place - shift, window, rounding_mode="floor")
        same &= own[:, None] == own
        bias += (place[:, None] - place + window - 1).clamp(0, 2 * window - 2) * factor
    qkv = attention.qkv(patches.flatten(0, 1)).view(len(rows), 3, attention.num_heads, -1)
    query, key, value = qkv.permute(1, 2, 0, 3)
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    scores += attention.relative_position_bias_table[bias].permute(2, 0, 1)
    seen = scores.masked_fill(~same, -torch.inf).softmax(dim=2) @ value
    return attention.proj(seen.transpose(0, 1).flatten(1)).view(patches.shape)[:height, :width]


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_of_padded_images_are_those_of_each_alone(shift):
    torch.manual_seed(0)
    block = ReconfiguredBlock(8, heads=2, window=4, shift=shift, positions=6)
    x, mask = torch.randn(3, 11, 13, 8), torch.zeros(3, 11, 13, dtype=torch.bool)
    sizes = (11, 13), (6, 9), (3, 13)
    for place, (height, width) in enumerate(sizes):
        mask[place, :height, :width] = True
    added = shifted_mask((11, 13), window=4, shift=shift, mask=mask, like=x)
    with torch.no_grad():
        seen = block._patches(x, View((11, 13), mask, added, None, None)).view(x.shape)
        for place, (height, width) in enumerate(sizes):
            expected = dense(block.attn, x[place, :height, :width], shift)
            torch.testing.assert_close(seen[place, :height, :width], expected, atol=1e-5, rtol=1e-5)
        whole = shifted_mask((11, 13), window=4, shift=shift, mask=None, like=x)
        seen = block._patches(x[:1], View((11, 13), None, whole, None, None)).view(11, 13, 8)
        torch.testing.assert_close(seen, dense(block.attn, x[0], shift), atol=1e-5, rtol=1e-5)


def test_detection_tokens_see_each_other_and_the_patches_of_the_image():
    torch.manual_seed(0)
    attention = ReconfiguredAttention(8, num_heads=2, window_size=4)
    tokens, patches = torch.randn(2, 5, 8), torch.randn(2, 12, 8)
    attended = torch.arange(12) < torch.tensor([[12], [7]])

    def plain(tokens, context):
        query, key, value = attention.qkv(torch.cat([tokens, context])).view(-1, 3, 2, 4).permute(1, 2, 0, 3)
        weights = (query @ key.transpose(1, 2) / 2).softmax(dim=2)
        return attention.proj((weights @ value).transpose(0, 1).flatten(1))[: len(tokens)]

    torch.testing.assert_close(attention.detect(tokens)[0], plain(tokens[0], patches[0, :0]))
    for place, count in enumerate((12, 7)):
        found = attention.detect(tokens, patches, attended)[place]
        torch.testing.assert_close(found, plain(tokens[place], patches[place, :count]))


# ------------------------------------------------------------------------------------------------------------- padding
@pytest.mark.defect(33)
@pytest.mark.parametrize("refine", [True, False])
def test_padding_changes_nothing(refine):
    """What a batch of two sizes finds is what each image does alone, whatever the padding holds, in the taps, too."""
    model = small(refine=refine)
    alone, padded = batch(filling=7.0)
    with torch.no_grad():
        together, others = model(padded), [model(image) for image in alone]
        maps, expected = model.forward_intermediates(padded)[1], model.forward_intermediates(alone[0])[1]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([each[name] for each in others]), atol=1e-4, rtol=0)
    for found, own in zip(maps, expected, strict=True):
        torch.testing.assert_close(found[:1, :, : own.shape[2], : own.shape[3]], own, atol=1e-4, rtol=1e-4)


def test_published_windows_and_norms_see_the_padding():
    model = small(mask_padding=False)
    alone, padded = batch()
    with torch.no_grad():
        together, first = model(padded), model(alone[0])
        assert (together["boxes"][:1] - first["boxes"]).abs().max() > 1e-3
        torch.testing.assert_close(first, small()(alone[0]), msg="images that are not padded")


def test_masks_of_maps():
    """Rows of an image in a map are those of the image alone, whatever the batch is padded to; others as in DETR."""
    for own, length in ((57, 200), (200, 200), (97, 131), (1, 99)):
        mask = (torch.arange(length) < own).view(1, -1, 1)
        for stride in (4, 8, 16, 32, 64):
            found = mask_at(mask, (-(-length // stride), 1))
            assert found.sum() == -(-own // stride)
    assert mask_at(torch.arange(10).view(1, 1, 10) < 5, (1, 7)).tolist() == [[[True] * 4 + [False] * 3]]


def test_group_norm_of_what_is_image():
    torch.manual_seed(0)
    project = MaskedProjection(5, 32)
    torch.nn.init.normal_(project[1].weight)
    x, mask = torch.randn(2, 5, 6, 7), torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[0, :4, :3] = mask[1] = True
    found = project(x, mask)
    torch.testing.assert_close(found[:1, :, :4, :3], project(x[:1, :, :4, :3]))
    torch.testing.assert_close(found[1:], project(x[1:]))


def test_a_group_of_one_value_is_its_bias():
    """One channel of one place of one image, which has no variance, with a mask and without; others as torch's norm."""
    projection = MaskedProjection(6, 32)
    torch.nn.init.normal_(projection[1].bias)
    found = projection(torch.randn(1, 6, 1, 1)), projection(torch.randn(1, 6, 1, 1), torch.ones(1, 1, 1).bool())
    for each in found:
        torch.testing.assert_close(each[0, :, 0, 0], projection[1].bias, atol=1e-4, rtol=0)
    x = torch.randn(2, 6, 3, 5)
    assert torch.equal(projection(x), torch.nn.Sequential.forward(projection, x))
    model = create_backbone("vidt_swin_nano", num_classes=3, image_size=32, **(SMALL | {"hidden": 32})).train()
    assert model(torch.randn(1, 3, 32, 32))["classes"].isfinite().all()


def test_positions_say_row_and_column_as_shares():
    found = sine_positions(torch.ones(1, 2, 4, dtype=torch.bool), 8)[0, 1, 0]
    angles = torch.tensor([1.0, 0.01])  # of the steps 10000^0 and 10000^(1/2)
    row, column = 2 * torch.pi * angles, 2 * torch.pi / 4 * angles
    expected = torch.stack([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    torch.testing.assert_close(found.view(2, 2, 2).transpose(0, 1).flatten(1), expected, atol=1e-4, rtol=0)


# ----------------------------------------------------------------------------------------------------------- published
@pytest.mark.parametrize(
    ("name", "refined", "plain"),
    [
        ("nano", 15_728_677, 14_792_683),
        ("tiny", 37_962_901, 37_026_907),
        ("small", 60_465_061, 59_529_067),
        ("base", 99_959_635, 99_023_641),
    ],
)
def test_published_counts_are_ours_and_what_is_never_used(name, refined, plain):
    for refine, published in ((True, refined), (False, plain)):
        with torch.device("meta"):
            model = create_backbone(f"vidt_swin_{name}", num_classes=91, image_size=224, refine=refine)
        own = sum(parameter.numel() for parameter in model.parameters())
        channels = model.body.channels
        merged = [*channels[1:], 256]
        unused = {
            "expansion of the mergings": sum(a * b for a, b in zip(channels, merged, strict=True)),
            "norm2 of the mergings": sum(2 * each for each in channels),
            "norm1 to norm3 of the stages": sum(2 * each for each in channels[1:]),
            "level_embed": 4 * 256,
        }
        assert own + sum(unused.values()) == published, unused


def noise(count, seed):
    """Return numbers from -1 to 1 that look random, by a formula."""
    return (torch.sin((torch.arange(count, dtype=torch.float64) + 1) * 12.9898 + seed * 78.233) * 43758.5453).frac()


def by_formula(state):
    """Return weights by formula, whatever they were."""
    found = {}
    for seed, name in enumerate(sorted(state)):
        value = state[name]
        norm = value.ndim == 1 and name.endswith("weight")
        found[name] = (noise(value.numel(), seed).view(value.shape) * 0.3 + norm).float()
    return found


# What the public code (naver-ai/vidt) says with these weights of query 3 of an image of 50 x 71 pixels.
PUBLIC = {
    True: (
        [[0.517718, 2.478589, -1.099153], [2.956994, -1.632157, 0.843231], [0.068484, -0.376635, -0.797647]],
        [
            [0.081990, 0.376638, 0.719264, 0.823424],
            [0.030838, 0.112655, 0.801902, 0.886723],
            [0.028609, 0.138855, 0.785749, 0.780852],
        ],
    ),
    False: (
        [[1.681377, -0.444941, 0.110089], [0.508613, 1.297973, 0.432383], [-2.968368, 3.333282, -0.310306]],
        [
            [0.716776, 0.370309, 0.301825, 0.744582],
            [0.513934, 0.479758, 0.455214, 0.698247],
            [0.408105, 0.429085, 0.651142, 0.831393],
        ],
    ),
}


@pytest.mark.parametrize("refine", [True, False])
def test_numbers_of_the_public_code(refine):
    model = small(refine=refine)
    model.load_state_dict(by_formula(model.state_dict()))
    with torch.no_grad():
        found = model(noise(3 * 50 * 71, 1).view(1, 3, 50, 71).float())
    for name, expected in zip(("classes", "boxes"), PUBLIC[refine], strict=True):
        torch.testing.assert_close(found[name][0, :, 3], torch.tensor(expected), atol=1e-4, rtol=1e-4)


# The same of two images of SIZES in a batch, padded to 93 x 71: of each, the three levels.
PUBLIC_PADDED = (
    [
        [[0.517719, 2.478589, -1.099151], [2.937882, -1.794298, 1.014722], [-0.012135, -0.264776, -0.776002]],
        [[0.517713, 2.478588, -1.099146], [3.347307, -1.941385, 0.908484], [0.124568, -0.036850, -1.257794]],
    ],
    [
        [
            [0.081990, 0.376638, 0.719264, 0.823425],
            [0.031550, 0.141160, 0.808906, 0.865972],
            [0.030138, 0.174426, 0.797985, 0.744854],
        ],
        [
            [0.081990, 0.376639, 0.719263, 0.823422],
            [0.031454, 0.157240, 0.827407, 0.860878],
            [0.035793, 0.125907, 0.857021, 0.807438],
        ],
    ],
)


def test_numbers_of_the_public_code_where_images_are_padded():
    """Its windows see the padding, and so do its detection tokens where a side is no multiple of 32 pixels."""
    model = small(mask_padding=False)
    model.load_state_dict(by_formula(model.state_dict()))
    images = [noise(3 * height * width, seed).view(3, height, width) for seed, (height, width) in enumerate(SIZES, 1)]
    with torch.no_grad():
        found = model(batch(images=images, height=93, width=71)[1])
    for name, expected in zip(("classes", "boxes"), PUBLIC_PADDED, strict=True):
        torch.testing.assert_close(found[name][:, :, 3], torch.tensor(expected), atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- model
def test_heads_taps_and_sizes():
    """Maps of the stages, of the neck, the queries as they come and at all levels; no numbers are needed for sizes."""
    model = small()
    described = Description("vidt_swin_nano", num_classes=3, image_size=100, **SMALL)
    stages = [(16, 25, 25), (32, 13, 13), (64, 7, 7), (128, 4, 4)]
    neck = [(64, 13, 13), (64, 7, 7), (64, 4, 4), (64, 2, 2), (64, 1, 5), (64, 3, 5)]
    assert [tuple(shape) for shape in described.taps.values()] == stages + neck
    assert described.queries == {"neck.queries", "neck.decoder"}
    assert described.heads == {"classes": (3, 5, 3), "boxes": (3, 5, 4)} and described.pooled == 64
    names = tap_names(model)
    assert names[3:6] == ["stages.3", "neck.maps.0", "neck.maps.1"] and names[-2:] == ["neck.queries", "neck.decoder"]
    image = torch.randn(1, 3, 100, 100)
    with torch.no_grad():
        features, found = read(model, image, (*names, "pooled"))
        assert [tuple(found[name].shape[1:]) for name in names] == stages + neck
        assert torch.equal(found["neck.decoder"][:, :, 0], found["neck.queries"][:, :, 0])
        assert torch.equal(found["pooled"], found["neck.decoder"][:, :, -1].mean(dim=2))
        torch.testing.assert_close(model.forward_head(features), model(image), atol=0, rtol=0)
        for name in ("stages.1", "neck.maps.2", "neck.queries"):
            nothing, stopped = read(model, image, (name,), head=False)
            assert nothing is None and torch.equal(stopped[name], found[name])
    with pytest.raises(ValueError, match="only NCHW"):
        model.forward_intermediates(image, output_fmt="NLC")


@pytest.mark.parametrize("refine", [True, False])
def test_a_head_says_how_well_boxes_overlap(refine):
    """Three layers to a logit of each level, or of all without refinement; all else stays as it is."""
    model, plain = small(refine=refine, iou_aware=True), small(refine=refine)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert model.head_names == ("classes", "boxes", "ious") and plain.head_names == ("classes", "boxes")
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert len(model.ious) == (3 if refine else 1) and more == len(model.ious) * (2 * (64 * 64 + 64) + 65)
    images = batch()[1]
    with torch.no_grad():
        found, expected = model(images), plain(images)
        queries = model.forward_features(images).queries
        for level in range(3):
            x, head = queries[:, level], model.ious[level if refine else 0]
            for index in (0, 2):
                x = (x @ head[index].weight.T + head[index].bias).clamp(min=0)
            torch.testing.assert_close(found["ious"][:, level], (x @ head[4].weight.T + head[4].bias)[..., 0])
    assert found["ious"].shape == (2, 3, 5) and found.keys() - expected.keys() == {"ious"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("refine", [True, False])
def test_the_loss_reaches_every_parameter(refine):
    model = small(refine=refine, dropout=0.0, iou_aware=True).train()
    found = model(batch()[1])
    sum(found[name].square().mean() for name in ("classes", "boxes", "ious")).backward()
    still = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_boxes_are_refined_from_where_the_layer_before_left_them():
    """No gradient goes back through that; without refinement all start from the same points."""
    model = small()
    gradients = torch.autograd.grad(model(batch()[1])["boxes"][:, 2].sum(), [*model.neck.decoder.boxes[1].parameters()])
    assert not any(gradient.any() for gradient in gradients)
    with torch.no_grad():
        for head in model.neck.decoder.boxes[1:]:
            torch.nn.init.zeros_(head[-1].weight)
            torch.nn.init.zeros_(head[-1].bias)
        found = model(batch()[1])["boxes"]
    torch.testing.assert_close(found[:, 0], found[:, 2], atol=1e-5, rtol=0)


def test_what_a_fresh_model_says():
    """Classes are rare, first boxes lie where the points are, an eighth of the image wide and high."""
    torch.manual_seed(0)
    found = create_backbone("vidt_swin_nano", num_classes=3, image_size=64, **SMALL).eval()(batch()[1])
    assert abs(found["classes"].sigmoid().mean() - 0.01) < 0.005
    torch.testing.assert_close(found["boxes"][..., 2:], torch.full((2, 3, 5, 2), 0.1192), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_compiles_whole():
    model, (_, padded) = small(depths=(2, 1, 1, 1), decoder_layers=1), batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(padded), model(padded), atol=1e-5, rtol=1e-5)


def test_half_precision():
    """Within autocast, and with weights that are halved themselves; boxes stay in full precision."""
    model, (_, padded) = small(), batch()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            half = model(padded)
        assert {half[name].dtype for name in ("classes", "boxes")} == {torch.float32}  # AP sorts by them: no ties
        torch.testing.assert_close(half["boxes"], model(padded)["boxes"], atol=0.03, rtol=0)
        assert model.bfloat16()(Padded(padded.pixels.bfloat16(), padded.mask))["boxes"].isfinite().all()


def test_weight_decay_spares_tokens_and_their_positions():
    model = small()
    optimizer = create_optimizer(model, name="adamw", lr=1e-4, weight_decay=0.1)
    assert isinstance(optimizer, AdamW)
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, value in model.named_parameters() if id(value) in spared and value.ndim > 1}
    assert names == {"body.det_token", "body.det_pos_embed"}


def test_weight_decay_of_the_recipe_spares_the_backbone_alone(load):
    """Vectors and biases of Swin, its detection tokens and their positions; none of the neck and the heads."""
    model = small()
    cfg = load("vidt/swin-nano_coco_base")
    trainer = SimpleNamespace(objective=Student(model), student=SimpleNamespace(backbone=model))
    decays = {}
    for group in build_optimizer(cfg, trainer).param_groups:
        decays |= {p: group["weight_decay"] for p in group["params"]}
    tokens = {"body.det_token", "body.det_pos_embed"}
    expected = {
        p: 0.0 if name.startswith("body.") and (p.ndim == 1 or name.endswith(".bias") or name in tokens) else 1e-4
        for name, p in model.named_parameters()
    }
    assert decays == expected
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.ndim == 1 and decays[p]} == {
        *("neck", "classes")
    }
    cfg = load("vidt/swin-nano_coco_base", OPTIM__DECAY_ALL_OF="[nec]")
    text = r"OPTIM.DECAY_ALL_OF has 'nec', which no parameter fits; parts of the backbone: body, neck, classes"
    with pytest.raises(ValueError, match=text):
        build_optimizer(cfg, trainer)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"depths": (2, 2)}, "depths has 2 entries, num_heads 4"),
        ({"num_heads": (3, 2, 2, 4)}, "num_heads has 3, which does not divide the 16 channels of stage 0"),
        ({"decoder_layers": 0}, "decoder_layers is 0, expected at least 1"),
        ({"decoder_heads": 3}, "divisible|divide"),
        ({"layers": 3}, "no layers; there are embed_dim"),
        ({"depths": (2,), "num_heads": (2,)}, "depths has 1 entries, expected at least 2"),
        ({"depths": (2, 0, 1, 1)}, "depths is .*, expected at least 1"),
        *(({name: 0}, f"{name} is 0, expected at least 1") for name in ("queries", "window_size", "points", "ffn")),
    ],
)
def test_arguments_that_do_not_fit(args, text):
    with pytest.raises(ValueError, match=text):
        small(**args)


# ------------------------------------------------------------------------------------------------------------- weights
def published(model):
    """Return the weights of a ViDT by the names of the public code, with what that has beside and never uses."""
    state, own = {}, {ours: theirs for theirs, ours in VIDT.items() if theirs != "backbone.layers."}
    for name, value in model.state_dict().items():
        name = re.sub(r"^body\.stages\.", "backbone.layers.", name)
        name = re.sub(
            r"((?:boxes|ious)\.[0-9]+)\.([0-9])", lambda found: f"{found[1]}.layers.{int(found[2]) // 2}", name
        )
        begins = next((begins for begins in own if name.startswith(begins)), "")
        state[own.get(begins, "") + name.removeprefix(begins)] = value
    if model.neck.decoder.refine:
        boxes = [name for name in state if name.startswith("bbox_embed.")]
        state |= {f"transformer.decoder.{name}": state[name] for name in boxes}
    else:
        heads = [name for name in state if re.match(r"(bbox|class|iou)_embed\.0\.", name)]
        state |= {name.replace(".0.", f".{level}.", 1): state[name] for name in heads for level in (1, 2)}
    state["backbone.layers.0.downsample.expansion.weight"] = torch.zeros(32, 16)
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    # of VkD's release, whose projections are the model's own
    state |= {
        "patch_projector_1.parametrizations.weight.original": torch.zeros(4),
        "neck_det_projector.bias": torch.ones(4),
    }
    return state | {"backbone.norm1.bias": torch.zeros(32), "transformer.level_embed": torch.zeros(4, 64)}


@pytest.mark.parametrize(("refine", "aware"), [(True, False), (False, False), (True, True), (False, True)])
def test_published_weights_load(refine, aware, caplog):
    model, other = (small(refine=refine, iou_aware=aware) for _ in range(2))
    other.load_state_dict(by_formula(model.state_dict()))
    start_from(model, Weights(published(other), "vidt.pth"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert f"it is another model's; {24 if refine else 34 if aware else 22} tensors unused: " in caplog.messages[0]
    assert "computes as this one with MODEL.ARGS {'mask_padding': False}" in caplog.messages[1]
    assert not adopted(small(refine=refine, mask_padding=False), published(other)).args
    start_from(model, Weights(model.state_dict(), "own"))
    with pytest.raises(ValueError, match="missing neck.decoder.boxes|unexpected neck.decoder.boxes"):
        start_from(model, Weights(published(small(refine=not refine)), "vidt.pth"))


def test_published_files_are_imported(tmp_path):
    """A training script's file of a whole ViDT: weights beside its options and optimizer. A part of it is refused."""
    with torch.no_grad():
        model = create_backbone("vidt_swin_nano", num_classes=91, image_size=64)
    whole = published(model)
    words = ("--key=model", "--source=vidt", "--cfg=configs/vidt/swin-nano_coco_base.yaml")
    part = {name: whole[name] for name in ("backbone.det_token", "backbone.det_pos_embed")}
    results = []
    for name, weights in (("whole", whole), ("part", part)):
        content = {"model": weights, "optimizer": {"param_groups": []}, "epoch": 49}
        torch.save(content, tmp_path / f"{name}.pth")
        results.append(called("tools/import_weights.py", tmp_path / f"{name}.pth", tmp_path / f"{name}.pt", *words))
    (code, output, errors), (refused, _, told) = results
    assert (code, errors) == (0, "")
    assert "\nunused: 48 tensors: " in output and "transformer.decoder.bbox_embed.0.layers.0.weight, " in output
    load_weights(model, find_weights("vidt_swin_nano", str(tmp_path / "whole.pt")).state, "plain.pt")
    assert (refused, told[:57]) == (1, "import_weights.py: the file lacks what is here body.patch")
    assert not (tmp_path / "part.pt").exists()


@pytest.mark.parametrize(("refine", "text"), [(True, "lacks what is here"), (False, "has what is not here")])
def test_a_published_file_of_other_heads_is_refused(refine, text):
    """Heads that are not alike, of a file with refinement, are no copies that can be left out."""
    file = published(small(refine=not refine))
    with pytest.raises(ValueError, match=f"^the file {text} .*(neck.decoder.boxes|bbox_embed).1."):
        renamed("vidt", file, small(refine=refine).state_dict())


def test_a_teacher_of_a_file_sees_padding_if_it_is_told_to(load, tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    args = ", ".join(f"{name}: {list(value) if isinstance(value, tuple) else value}" for name, value in SMALL.items())
    own = {"TRAINER": "token_matching", "DISTILLATION__TEACHERS": "[vidt_swin_nano]"}
    own |= {"DISTILLATION__TEACHER_WEIGHTS": f"[{tmp_path}/plain.pt]", "TOKENS__STUDENT_QUERIES": "[]"}
    for more, sees in (("", False), (", mask_padding: false", True)):
        cfg = load("debug/detection_debug", DISTILLATION__TEACHER_ARGS=f"[{{{args}{more}}}]", **own)
        (teacher,) = build_teachers(cfg, 3, NORMALIZATIONS["half"], find_teacher_weights(cfg))
        expected = small(mask_padding=not sees)
        images = batch()[1]
        with torch.no_grad():
            found = teacher.backbone(images)["classes"]
            assert torch.equal(found, expected(images)["classes"])
            assert torch.equal(found, model(images)["classes"]) is not sees


SWIN = {"embed_dim": 16, "depths": (2, 2, 1, 2), "num_heads": (1, 2, 2, 4), "window_size": 4}


@pytest.mark.parametrize("origin", ["timm", "microsoft"])
def test_a_swin_classifier_is_a_start(origin, caplog, monkeypatch):
    """All of its blocks and mergings are taken; the stages before the last merging say what timm's do."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=128, num_classes=5, **SWIN).eval()
    state = swin.state_dict()
    if origin == "microsoft":  # merging at the end of a stage, another name of the head, buffers
        state = {
            re.sub(r"layers\.(.)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name).replace(
                "head.fc", "head"
            ): value
            for name, value in state.items()
        }
        state |= {"layers.0.blocks.1.attn_mask": torch.zeros(1)}
    else:
        monkeypatch.setattr("timm.create_model", lambda name, pretrained: swin)
        state = find_weights("vidt_swin_tiny", "timm:swin_tiny_patch4_window7_224").state
    model = small()
    tokens = model.body.det_token.clone()
    start_from(model, Weights(state, "swin"))
    assert "tensors unused: norm.weight" in caplog.messages[0] and "head." in caplog.messages[0]
    assert "tensors are new: body.det_token" in caplog.messages[1]
    assert torch.equal(model.body.det_token, tokens)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = swin.forward_intermediates(image, intermediates_only=True)
        found = model.body(image).maps
    for index in range(3):  # in the last one timm leaves out the shift, for its map is one window
        torch.testing.assert_close(found[index], expected[index], atol=1e-5, rtol=1e-5)
