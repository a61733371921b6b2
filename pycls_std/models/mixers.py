"""MLP-Mixer, ResMLP, gMLP and gMixer of any size, patch and resolution, from timm's class.

timm's own entry points (mixer_s16_224, resmlp_24_224, ...) fix the patch, so the named sizes are built here.
"""

from functools import partial

from timm.layers import GatedMlp, GluMlp, Mlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn

from pycls_std.models.entry_points import register

# name: patch_size, num_blocks, embed_dim, mlp_ratio (hidden units of token and channel MLPs, as multiples of embed_dim)
# Sources: Tolstikhin et al., NeurIPS 2021, table 1; S/4 is S/16 on 32 px; nano/4 is the CIFAR mixer of omihub777.
MIXERS = {
    "mixer_nano4": (4, 8, 128, (0.5, 4.0)),
    "mixer_s4": (4, 8, 512, (0.5, 4.0)),
    "mixer_s16": (16, 8, 512, (0.5, 4.0)),
    "mixer_b16": (16, 12, 768, (0.5, 4.0)),
}

# name: patch_size, num_blocks, embed_dim, initial LayerScale. Source: Touvron et al., 2021; B24 is at patch 16 here.
RESMLPS = {
    "resmlp_s12": (16, 12, 384, 1e-4),
    "resmlp_s24": (16, 24, 384, 1e-5),
    "resmlp_s36": (16, 36, 384, 1e-6),
    "resmlp_b24": (16, 24, 768, 1e-6),
}

# name: patch_size, num_blocks, embed_dim. Sources: Liu et al., NeurIPS 2021; gMixer, a mixer of gated MLPs, is timm's.
GMLPS = {"gmlp_ti": (16, 30, 128), "gmlp_s": (16, 30, 256), "gmlp_b": (16, 30, 512)}
GMIXERS = {"gmixer_12": (16, 12, 384), "gmixer_24": (16, 24, 384)}


def mixer(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> MlpMixer:
    """Build an MLP-Mixer of a size of MIXERS; `args` override and are passed to timm's MlpMixer."""
    *plain, mlp_ratio = size
    return _build(_plain(plain) | {"mlp_ratio": mlp_ratio} | args, num_classes, image_size, drop_path)


def resmlp(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> MlpMixer:
    """Build a ResMLP of a size of RESMLPS: linear over patches, affine transforms instead of norms, LayerScale."""
    *plain, init_values = size
    block = partial(ResBlock, init_values=args.pop("init_values", init_values))
    kind = {"mlp_ratio": 4, "block_layer": block, "norm_layer": Affine, "mlp_layer": Mlp}
    return _build(_plain(plain) | kind | args, num_classes, image_size, drop_path)


def gmlp(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> MlpMixer:
    """Build a gMLP of a size of GMLPS: one MLP in a block, gated by a linear map over patches."""
    kind = {"mlp_ratio": 6, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp}
    return _build(_plain(size) | kind | args, num_classes, image_size, drop_path)


def gmixer(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> MlpMixer:
    """Build a gMixer of a size of GMIXERS: a mixer whose MLPs are gated."""
    kind = {"mlp_ratio": (1.0, 4.0), "mlp_layer": GluMlp, "act_layer": nn.SiLU}
    return _build(_plain(size) | kind | args, num_classes, image_size, drop_path)


def _plain(size):
    return dict(zip(("patch_size", "num_blocks", "embed_dim"), size, strict=True))


def _build(options, num_classes, image_size, drop_path):
    return MlpMixer(num_classes=num_classes, img_size=image_size, drop_path_rate=drop_path, **options)


for _build_one, _sizes in ((mixer, MIXERS), (resmlp, RESMLPS), (gmlp, GMLPS), (gmixer, GMIXERS)):
    for _name, _size in _sizes.items():
        register(_name, partial(_build_one, _size))
