"""Convert published weights' names to ours: one table of rules for each source.

Shapes: N channels, p side of a patch.
"""

import re
from itertools import accumulate

from torch import Tensor

from pycls_std.core.text import first_of
from pycls_std.models.vidt_names import of_vidt

Rules = tuple[tuple[str, str], ...]
# Rules are regular expression substitutions, applied in order; blocks.1/2 is the third block of the second stage.
LAYERS = (
    (r"^layers\.", "blocks."),
    (r"\.qkv_transform\.", ".qkv."),
    (r"(attn|patch_embed)\.projection\.", r"\1.proj."),
    (r"^distill_token$", "dist_token"),
    (r"^distill_head\.", "head_dist."),
)
T2T = (
    (r"^cls_token$", "embeddings.0.cls_token"),
    (r"^tokens_to_token\.attention1\.", "embeddings.0.layers.0."),
    (r"^tokens_to_token\.attention2\.", "embeddings.0.layers.1."),
    (r"^(tokens_to_token\.project|t2t_module\.projection)\.", "embeddings.0.layers.2."),
    (r"^t2t_module\.attention\.", "embeddings.0.layers."),
    (r"^(embeddings.*)\.attn\.qkv\.", r"\1.kqv."),
    (r"^(embeddings.*)\.attn\.", r"\1."),
    (r"^(embeddings.*)\.w$", r"\1.directions"),
    (r"^(embeddings.*)\.mlp\.0\.", r"\1.mlp.fc1."),
    (r"^(embeddings.*)\.mlp\.2\.", r"\1.mlp.fc2."),
)
PVT = (
    (r"^cls_token$", "pos_embed4.cls_token"),
    *((rf"^(patch|pos)_embed{stage + 1}\.", f"embeddings.{stage}.") for stage in range(4)),
    *((rf"^pos_embed{stage + 1}$", f"embeddings.{stage}.pos_embed") for stage in range(4)),
    *((rf"^block{stage + 1}\.", f"blocks.{stage}/") for stage in range(4)),
)
PVTV2 = (
    (r"^patch_embed1\.", "patch_embed."),
    *((rf"^patch_embed{stage + 1}\.", f"stages.{stage}.downsample.") for stage in range(1, 4)),
    *((rf"^(block|norm){stage + 1}\.", rf"stages.{stage}.\1.") for stage in range(4)),
    (r"\.block\.", ".blocks."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)
PIT = tuple((rf"^pools\.{stage}\.", f"transformers.{stage + 1}.pool.") for stage in range(2))
CVT = (
    (r"^stage([0-9])\.(patch_embed\.)?(proj|norm|cls_token)", r"embeddings.\1.\3"),
    (r"^stage([0-9])\.blocks\.", r"blocks.\1/"),
    (r"\.attn\.conv_proj_([qkv])\.", r".attn.\1."),
    (r"\.attn\.proj_([qkv])\.", r".attn.\1.linear."),
)
CYCLEMLP = (
    (r"^patch_embed\.proj\.", "embeddings.0."),
    *((rf"^network\.{2 * stage}\.", f"blocks.{stage}/") for stage in range(4)),
    *((rf"^network\.{2 * stage - 1}\.proj\.", f"embeddings.{stage}.") for stage in range(1, 4)),
)
# {TAP} is the update of the tokens at a tap, see `renamed`.
STD = (
    (r"^per_patch_fc\.", "stem.proj."),
    (r"^mixer_blocks\.", "blocks."),
    (r"\.token_mixer\.norm\.", ".norm1."),
    (r"\.channel_mixer\.norm\.", ".norm2."),
    (r"\.token_mixer\.fn\.dense([12])\.", r".mlp_tokens.fc\1."),
    (r"\.channel_mixer\.fn\.dense([12])\.", r".mlp_channels.fc\1."),
    (r"^(blocks\.[0-9]+)\.(spatial|channel)_dist\.dense1\.", r"branches.std.updates.{\1}.\2_mlp.0."),
    (r"^(blocks\.[0-9]+)\.(spatial|channel)_dist\.dense2\.", r"branches.std.updates.{\1}.\2_mlp.2."),
    (r"^(blocks\.[0-9]+)\.(spatial|channel)_dist_norm\.", r"branches.std.updates.{\1}.\2_norm."),
    (r"^(spatial|channel)_dist_token$", r"branches.std.tokens.0.\1"),
    (r"^classifier_dist\.", "branches.std.classifiers."),
    (r"^ln\.", "norm."),
    (r"^classifier\.", "head."),
)
# name of a source: description, and its rules.
SOURCES: dict[str, tuple[str, Rules]] = {
    "std": ("devrimcavusoglu/std: the mixer, with or without tokens", STD),
    "tiny-transformers": ("the DeiT, ConViT, PiT and CvT of lkhl/tiny-transformers", (*LAYERS, *CVT, *PIT)),
    "tiny-transformers-t2t": ("the T2T-ViT of lkhl/tiny-transformers", (*LAYERS, *T2T)),
    "t2t": ("yitu-opensource/T2T-ViT, with performers", T2T),
    "pvt": ("whai362/PVT, and the PVT of lkhl/tiny-transformers", PVT),
    "pvtv2": ("PVTv2 of whai362/PVT and of lkhl/tiny-transformers", PVTV2),
    "cvt": ("microsoft/CvT", CVT),
    "cyclemlp": ("ShoufaChen/CycleMLP", CYCLEMLP),
    "vidt": ("naver-ai/vidt, and the ViDT of roymiles/vkd", ()),  # by `vidt_names`
}


def renamed(
    source: str, state: dict[str, Tensor], target: dict[str, Tensor], *, taps: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of a source's file by the names of a model here, and the names that are unused.

    target: the model's state dict, whose names and shapes are used. taps: those that its STD tokens read, as blocks.7.
    Raises ValueError if weights of the model are missing or differ in shape, and for a ViDT with other heads.
    """
    own = of_vidt(state) if source == "vidt" else {name: _renamed(name, SOURCES[source][1]) for name in state}
    own = _flattened(own)
    for position, tap in enumerate(taps):
        own = {name: new.replace(f"{{{tap}}}", str(position)) for name, new in own.items()}
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    unused = []
    for name, new in own.items():
        if new not in target:
            unused.append(name)
        elif new in found:
            raise ValueError(f"{origin[new]} and {name} of the file are both {new} here")
        else:
            found[new], origin[new] = _shaped(state[name], target[new]), name
    if missing := [name for name in target if name not in found]:
        unplaced = f", and has no use for {first_of(unused)}" if unused else ""
        raise ValueError(f"the file lacks what is here {first_of(missing)}{unplaced}")
    if source == "vidt" and (more := [name for name in unused if own[name]]):
        raise ValueError(f"the file has what is not here {first_of(more)}")
    for name, value in found.items():
        if value.shape != target[name].shape:
            shapes = tuple(value.shape), tuple(target[name].shape)
            raise ValueError(f"{origin[name]} has the shape {shapes[0]}, {name} here {shapes[1]}")
    return found, unused


def _renamed(name: str, rules: Rules) -> str:
    for expression, replacement in rules:
        name = re.sub(expression, replacement, name)
    return name


def _flattened(own: dict[str, str]) -> dict[str, str]:
    """Return the names with blocks numbered consecutively, instead of within each stage."""
    placed = {name: re.match(r"blocks\.([0-9]+)/([0-9]+)", new) for name, new in own.items()}
    depths = [0] * 10
    for stage, block in (map(int, place.groups()) for place in placed.values() if place):
        depths[stage] = max(depths[stage], block + 1)
    starts = [0, *accumulate(depths)]
    return {
        name: f"blocks.{starts[int(place[1])] + int(place[2])}{own[name][place.end() :]}" if place else own[name]
        for name, place in placed.items()
    }


def _shaped(value: Tensor, target: Tensor) -> Tensor:
    """Return a weight reshaped to the target's shape, between linear layers and 1x1 or patch convolutions.

    Flattened patches have their channels last: (N, p p 3) becomes (N, 3, p, p).
    """
    if value.ndim > target.ndim and value.shape[target.ndim :].numel() == 1:
        return value.reshape(value.shape[: target.ndim])
    if value.ndim == 2 and target.ndim == 4 and value.shape == (len(target), target[0].numel()):
        channels, height, width = target.shape[1:]
        return value.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return value
