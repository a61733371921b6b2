"""Weights of other programs' files: their names, which are spelled out here by hand, what is unused, what is refused.

The logits expected of the public networks were computed once by their own code, of the weights and the image below.
"""

import re

import pytest
import torch

from pycls_std.models.create import create_backbone
from pycls_std.models.published_names import SOURCES, renamed

# A small model of each source: its name here, its arguments, and the side of its images.
MODELS = {
    "t2t": ("t2t_vit_7", {"channels": 16, "depth": 2, "heads": 2, "width": 8}, 32),
    "tiny-transformers-t2t": ("t2t_vit_7", {"channels": 16, "depth": 2, "heads": 2, "width": 8}, 32),
    "tiny-transformers": ("deit_tiny_distilled_patch16_224", {"depth": 2, "embed_dim": 24, "patch_size": 8}, 32),
    "pvt": ("pvt_tiny", {"channels": (8, 8, 10, 16)}, 32),
    "pvtv2": ("pvt_v2_b0", {}, 64),
    "cvt": ("cvt_13", {"depths": (1, 2, 1), "channels": (6, 6, 12)}, 32),
    "cyclemlp": ("cyclemlp_b1", {"channels": (8, 8, 8, 8)}, 32),
    "std": ("mixer_s4", {"embed_dim": 16, "num_blocks": 3}, 16),
}
# Names there, and here.
NAMES = {
    "t2t": {
        "cls_token": "embeddings.0.cls_token",
        "tokens_to_token.attention2.kqv.weight": "embeddings.0.layers.1.kqv.weight",
        "tokens_to_token.attention1.w": "embeddings.0.layers.0.directions",
        "tokens_to_token.attention1.mlp.2.bias": "embeddings.0.layers.0.mlp.fc2.bias",
        "tokens_to_token.project.weight": "embeddings.0.layers.2.weight",
        "blocks.1.attn.qkv.weight": "blocks.1.attn.qkv.weight",
    },
    "tiny-transformers-t2t": {
        "t2t_module.attention.1.attn.qkv_transform.weight": "embeddings.0.layers.1.kqv.weight",
        "t2t_module.attention.0.attn.projection.bias": "embeddings.0.layers.0.proj.bias",
        "t2t_module.attention.0.attn.w": "embeddings.0.layers.0.directions",
        "t2t_module.attention.0.mlp.fc2.bias": "embeddings.0.layers.0.mlp.fc2.bias",
        "t2t_module.projection.weight": "embeddings.0.layers.2.weight",
        "layers.1.attn.qkv_transform.weight": "blocks.1.attn.qkv.weight",
    },
    "tiny-transformers": {
        "patch_embed.projection.weight": "patch_embed.proj.weight",
        "layers.1.attn.projection.bias": "blocks.1.attn.proj.bias",
        "distill_token": "dist_token",
        "distill_head.bias": "head_dist.bias",
    },
    "pvt": {
        "cls_token": "embeddings.3.cls_token",
        "patch_embed1.proj.weight": "embeddings.0.proj.weight",
        "pos_embed4": "embeddings.3.pos_embed",
        "block1.1.attn.sr.weight": "blocks.1.attn.sr.weight",
        "block4.0.mlp.fc1.weight": "blocks.6.mlp.fc1.weight",
    },
    "pvtv2": {
        "patch_embed1.norm.weight": "patch_embed.norm.weight",
        "patch_embed3.proj.weight": "stages.2.downsample.proj.weight",
        "block2.1.mlp.dwconv.dwconv.weight": "stages.1.blocks.1.mlp.dwconv.weight",
        "norm4.bias": "stages.3.norm.bias",
    },
    "cvt": {
        "stage2.cls_token": "embeddings.2.cls_token",
        "stage1.patch_embed.proj.weight": "embeddings.1.proj.weight",
        "stage1.blocks.1.attn.conv_proj_k.bn.running_var": "blocks.2.attn.k.bn.running_var",
        "stage2.blocks.0.attn.proj_q.weight": "blocks.3.attn.q.linear.weight",
    },
    "cyclemlp": {
        "patch_embed.proj.weight": "embeddings.0.weight",
        "network.1.proj.bias": "embeddings.1.bias",
        "network.2.1.attn.sfc_h.weight": "blocks.3.attn.sfc_h.weight",
        "network.6.1.attn.reweight.fc1.weight": "blocks.9.attn.reweight.fc1.weight",
    },
    "std": {
        "per_patch_fc.weight": "stem.proj.weight",
        "mixer_blocks.2.token_mixer.fn.dense1.weight": "blocks.2.mlp_tokens.fc1.weight",
        "mixer_blocks.0.channel_mixer.norm.bias": "blocks.0.norm2.bias",
        "ln.weight": "norm.weight",
        "classifier.bias": "head.bias",
    },
}
# The way back for all of a model's names, each an expression and what it becomes there.
BACK = {
    "t2t": {
        r"embeddings\.0\.cls_token": "cls_token",
        r"embeddings\.0\.layers\.2\.": "tokens_to_token.project.",
        r"embeddings\.0\.layers\.0\.": "tokens_to_token.attention1.",
        r"embeddings\.0\.layers\.1\.": "tokens_to_token.attention2.",
        r"directions": "w",
        r"^(tokens.*)mlp\.fc1": r"\1mlp.0",
        r"^(tokens.*)mlp\.fc2": r"\1mlp.2",
    },
    "tiny-transformers-t2t": {
        r"embeddings\.0\.cls_token": "cls_token",
        r"embeddings\.0\.layers\.2\.": "t2t_module.projection.",
        r"embeddings\.0\.layers\.": "t2t_module.attention.",
        r"kqv": "attn.qkv_transform",
        r"directions": "attn.w",
        r"^(t2t.*\d)\.proj\.": r"\1.attn.projection.",
        r"^blocks\.": "layers.",
        r"attn\.qkv\.": "attn.qkv_transform.",
        r"attn\.proj\.": "attn.projection.",
    },
    "tiny-transformers": {
        r"^blocks\.": "layers.",
        r"attn\.qkv\.": "attn.qkv_transform.",
        r"\.proj\.": ".projection.",
        r"dist_token": "distill_token",
        r"head_dist": "distill_head",
    },
    "pvt": {
        r"embeddings\.3\.cls_token": "cls_token",
        **{rf"embeddings\.{i}\.pos_embed": f"pos_embed{i + 1}" for i in range(4)},
        **{rf"embeddings\.{i}\.": f"patch_embed{i + 1}." for i in range(4)},
        **{rf"^blocks\.{i}\.": f"block{i // 2 + 1}.{i % 2}." for i in range(8)},
    },
    "pvtv2": {
        r"^patch_embed\.": "patch_embed1.",
        **{rf"stages\.{i}\.downsample": f"patch_embed{i + 1}" for i in range(1, 4)},
        **{rf"stages\.{i}\.norm": f"norm{i + 1}" for i in range(4)},
        **{rf"stages\.{i}\.blocks": f"block{i + 1}" for i in range(4)},
        r"dwconv": "dwconv.dwconv",
    },
    "cvt": {
        r"embeddings\.2\.cls_token": "stage2.cls_token",
        r"embeddings\.(\d)": r"stage\1.patch_embed",
        r"^blocks\.0\.": "stage0.blocks.0.",
        r"^blocks\.1\.": "stage1.blocks.0.",
        r"^blocks\.2\.": "stage1.blocks.1.",
        r"^blocks\.3\.": "stage2.blocks.0.",
        r"attn\.([qkv])\.linear": r"attn.proj_\1",
        r"attn\.([qkv])\.(conv|bn)": r"attn.conv_proj_\1.\2",
    },
    "cyclemlp": {
        r"embeddings\.0": "patch_embed.proj",
        **{rf"embeddings\.{i}": f"network.{2 * i - 1}.proj" for i in range(1, 4)},
        **{rf"^blocks\.{i}\.": f"network.0.{i}." for i in range(2)},
        **{rf"^blocks\.{i}\.": f"network.2.{i - 2}." for i in range(2, 4)},
        **{rf"^blocks\.{i}\.": f"network.4.{i - 4}." for i in range(4, 8)},
        **{rf"^blocks\.{i}\.": f"network.6.{i - 8}." for i in range(8, 10)},
    },
    "std": {
        r"^stem\.proj": "per_patch_fc",
        r"^blocks": "mixer_blocks",
        r"norm1": "token_mixer.norm",
        r"norm2": "channel_mixer.norm",
        r"mlp_tokens\.fc": "token_mixer.fn.dense",
        r"mlp_channels\.fc": "channel_mixer.fn.dense",
        r"^norm": "ln",
        r"^head": "classifier",
    },
}


def by_formula(state):
    """Weights that any program can make: a sine for each element, small, of each tensor's place in the file."""
    made = {}
    for place, (name, value) in enumerate(state.items()):
        waves = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + place).reshape(value.shape)
        positive = name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight"))
        made[name] = (1 + 0.1 * waves if positive else 0.1 * waves).to(value.dtype)
    return made


def image(side):
    """One image, a sine."""
    return torch.sin(torch.arange(3 * side * side) * 0.05).reshape(1, 3, side, side)


def built(source, classes=5):
    """The small model, with weights by the formula, and its side."""
    name, args, side = MODELS[source]
    model = create_backbone(name, num_classes=classes, image_size=side, **args).eval()
    model.load_state_dict(by_formula(model.state_dict()))
    return model, side


def there(name, value):
    """A weight in its shape there: some layers are convolutions there, and patches are flattened, channels last."""
    if name.endswith(("sfc_h.weight", "sfc_w.weight")):
        return value[..., None, None]
    if "token_mixer.fn" in name and name.endswith("weight"):
        return value[..., None]
    return value.permute(0, 2, 3, 1).flatten(1) if name == "per_patch_fc.weight" else value


def published(source, state):
    """Weights by the names that they have there."""
    made = {}
    for name, value in state.items():
        for expression, other in BACK[source].items():
            name = re.sub(expression, other, name)
        made[name] = there(name, value)
    return made


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_of_each_source_gives_the_same_logits(source):
    model, side = built(source)
    state = model.state_dict()
    file = published(source, state) | {"left.over": torch.zeros(1)}
    assert NAMES[source].keys() <= file.keys(), "these are the names that the source's code has"
    for name, own in NAMES[source].items():
        assert torch.equal(file[name], there(name, state[own]))
    found, unused = renamed(source, file, state)
    assert unused == ["left.over"]
    again = create_backbone(MODELS[source][0], num_classes=5, image_size=side, **MODELS[source][1]).eval()
    again.load_state_dict(found)
    with torch.no_grad():
        assert torch.equal(again(image(side)), model(image(side)))


@pytest.mark.parametrize("source", SOURCES)
def test_what_does_not_fit_is_refused_in_one_line(source):
    model, _ = built(source)
    file = published(source, model.state_dict())
    name, own = next(iter(NAMES[source].items()))
    with pytest.raises(ValueError, match=f"^the file lacks what is here {re.escape(own)}") as error:
        renamed(source, {key: value for key, value in file.items() if key != name}, model.state_dict())
    assert "\n" not in str(error.value)
    shape = (*file[name].shape[:-1], file[name].shape[-1] + 1)
    with pytest.raises(ValueError, match=f"^{re.escape(name)} has the shape ") as error:
        renamed(source, file | {name: torch.zeros(shape)}, model.state_dict())
    assert "\n" not in str(error.value)


def test_two_names_for_one_weight_are_refused():
    model, _ = built("t2t")
    file = published("t2t", model.state_dict())
    twice = file | {"embeddings.0.cls_token": file["cls_token"]}
    with pytest.raises(ValueError, match="^cls_token and embeddings.0.cls_token of the file are both"):
        renamed("t2t", twice, model.state_dict())
