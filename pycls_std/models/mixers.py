"""MLP-Mixer and ResMLP of any size, patch and resolution, from timm's class.

timm's own entry points (mixer_s16_224, resmlp_24_224, ...) fix the patch, so the named sizes are built here.
"""

from functools import partial

from timm.layers import Mlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

from pycls_std.core.registry import BACKBONES

# name: patch_size, num_blocks, embed_dim, mlp_ratio (hidden units over patches and over channels, both times embed_dim)
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


def mixer(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> MlpMixer:
    """Build an MLP-Mixer of a size of MIXERS; `args` change it and go to timm's MlpMixer."""
    patch_size, num_blocks, embed_dim, mlp_ratio = size
    options = {"patch_size": patch_size, "num_blocks": num_blocks, "embed_dim": embed_dim, "mlp_ratio": mlp_ratio}
    return _build(options | args, num_classes, image_size, drop_path)


def resmlp(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> MlpMixer:
    """Build a ResMLP of a size of RESMLPS: linear over patches, affine transforms for norms, LayerScale."""
    patch_size, num_blocks, embed_dim, init_values = size
    init_values = args.pop("init_values", init_values)
    options = {
        "patch_size": patch_size,
        "num_blocks": num_blocks,
        "embed_dim": embed_dim,
        "mlp_ratio": 4,
        "block_layer": partial(ResBlock, init_values=init_values),
        "norm_layer": Affine,
        "mlp_layer": Mlp,
    }
    return _build(options | args, num_classes, image_size, drop_path)


def _build(options, num_classes, image_size, drop_path):
    return MlpMixer(num_classes=num_classes, img_size=image_size, drop_path_rate=drop_path, **options)


for _name, _size in MIXERS.items():
    BACKBONES.register(_name)(partial(mixer, _size))
for _name, _size in RESMLPS.items():
    BACKBONES.register(_name)(partial(resmlp, _size))
