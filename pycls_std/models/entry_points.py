"""Register the project's classifiers in timm, too: after `import pycls_std.models` timm finds them."""

from collections.abc import Callable
from typing import Any

from timm.models import register_model

from pycls_std.core.registry import BACKBONES

default_cfgs: dict[str, Any] = {}  # where timm looks up a model's defaults
_FOR_TIMMS_WEIGHTS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register(name: str, build: Callable) -> None:
    """Register a constructor of a backbone here and in timm.

    timm's img_size is the constructor's image_size, 224 if not given; its drop_path_rate is drop_path.
    """
    BACKBONES.register(name)(build)

    def entry_point(pretrained=False, *, num_classes=1000, img_size=224, drop_path_rate=0.0, **args):
        if pretrained:
            raise ValueError(f"pretrained is True, there are no published weights of {name} here")
        args = {key: value for key, value in args.items() if key not in _FOR_TIMMS_WEIGHTS}
        return build(num_classes=num_classes, image_size=img_size, drop_path=drop_path_rate, **args)

    entry_point.__name__ = name
    default_cfgs[name] = {"num_classes": 1000, "input_size": (3, 224, 224)}
    register_model(entry_point)
