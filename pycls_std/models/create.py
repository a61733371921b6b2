"""Build a backbone by its name: the project's own first, then timm's."""

import difflib
from fnmatch import fnmatchcase
from typing import cast

import timm
from timm.layers import PatchEmbed
from timm.models import get_arch_name, get_pretrained_cfg, is_model
from torch import nn

from pycls_std.core.registry import BACKBONES
from pycls_std.core.text import first_of
from pycls_std.models.contract import Backbone, classifier_names
from pycls_std.models.deit import use_image_token

# Arguments that MODEL.ARGS may not set: other options do, or they make timm load files.
RESERVED = {"name", "num_classes", "image_size", "img_size", "drop_path", "drop_path_rate", "norm_eps", "source"}
RESERVED |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_custom_load"}
RESERVED |= {"checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "model_name"}


def refuse_reserved(args, source: str) -> None:
    """Raise ValueError that names the source option for constructor arguments that it may not set."""
    if taken := RESERVED & set(args):
        instead = ": MODEL.NORM_EPS does" if "norm_eps" in taken else ""
        raise ValueError(f"{source} has {', '.join(sorted(taken))}, which is not for it to set{instead}")


def refuse_place(name: str) -> None:
    """Raise ValueError for a model name that is a location of weights, from which the architecture is not known."""
    if ":" in name:
        raise ValueError(
            f"no model {name!r}: the name is that of the architecture, such as resnet18; hf-hub:<owner>/<name> stands "
            "in MODEL.WEIGHTS or DISTILLATION.TEACHER_WEIGHTS"
        )


def refuse_unknown(name: str) -> None:
    """Raise ValueError, which suggests similar names, for an unknown model or tag of timm's weights."""
    if name in BACKBONES:
        return
    refuse_place(name)
    if is_model(name) and get_arch_name(name) not in BACKBONES:  # ours have no tags
        try:
            get_pretrained_cfg(name)
            return
        except RuntimeError:  # timm's, of an unknown tag
            tags = timm.list_pretrained(f"{get_arch_name(name)}.*")
            raise ValueError(f"timm has no weights {name!r}, but {first_of(tags) or 'none of this model'}") from None
    known = list(dict.fromkeys([*BACKBONES.entries, *timm.list_models()]))
    near = ", ".join(difflib.get_close_matches(name, known, n=3)) or ", ".join(sorted(BACKBONES.entries))
    raise ValueError(f"no model {name!r} here or in timm; near it: {near}")


def create_backbone(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    drop_path: float = 0.0,
    norm_eps: float = 0.0,
    source: str = "MODEL.ARGS",
    **args,
) -> Backbone:
    """Return a backbone with random weights.

    name: a name of BACKBONES, or of timm (a pretrained tag after a dot is allowed). norm_eps: epsilon of every
    LayerNorm, 0 = the model's own. args: further keyword arguments of the constructor. source: the option that sets
    them, for the error message.
    Raises ValueError for an unknown name, for invalid arguments of the constructor, and for an image size that is not a
    multiple of the patch size.
    """
    refuse_unknown(name)
    make = BACKBONES.get(name) if name in BACKBONES else _timm_model(name)
    try:
        backbone = make(num_classes=num_classes, image_size=image_size, drop_path=drop_path, **args)
    except Exception as error:  # a constructor raises whatever a wrong argument leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{source} {args} of {name} at {image_size} px: {reason}") from error
    embedding = getattr(backbone, "patch_embed", getattr(backbone, "stem", None))
    patch = embedding.patch_size[0] if isinstance(embedding, PatchEmbed) else 1
    if image_size % patch:  # timm would ignore the last pixels
        own = source == "MODEL.ARGS"
        keys = "DATA.IMAGE_SIZE, MODEL.ARGS.patch_size" if own else "DISTILLATION.TEACHER_SIZES"
        raise ValueError(f"image size {image_size} is no multiple of the patch {patch} of {name} ({keys})")
    if norm_eps:
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
    return cast(Backbone, backbone)  # it has this interface, without deriving from it


def reset_layers(backbone: nn.Module) -> None:
    """Reset linear layers and convolutions to PyTorch's default initialization.

    Weights and biases are uniform within 1 / sqrt(fan_in), so their standard deviation is 1 / sqrt(3 fan_in).
    """
    for module in backbone.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.reset_parameters()


def parameters_within(backbone: nn.Module, patterns: list[str], key: str) -> list[nn.Parameter]:
    """Return the parameters whose name, or the name of a module that contains them, matches a pattern with * and ?.

    Raises ValueError that names the option, key, for a pattern that matches none.
    """
    found: list[nn.Parameter] = []
    for pattern in patterns:
        fitting = [p for name, p in backbone.named_parameters() if _within(name, pattern)]
        if not fitting:
            parts = ", ".join(dict(backbone.named_children()))
            raise ValueError(f"{key} has {pattern!r}, which no parameter fits; parts of the backbone: {parts}")
        found += fitting
    return found


def freeze(backbone: nn.Module, patterns: list[str]) -> None:
    """Freeze the parameters that match a pattern of MODEL.FREEZE.

    Raises ValueError for a pattern that matches none, and if all are frozen.
    """
    for parameter in parameters_within(backbone, patterns, "MODEL.FREEZE"):
        parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in backbone.parameters()):
        raise ValueError(f"MODEL.FREEZE {list(patterns)} leaves no parameter of the backbone to train")


def _within(name: str, pattern: str) -> bool:
    words = name.split(".")
    return any(fnmatchcase(".".join(words[:count]), pattern) for count in range(1, len(words) + 1))


def randomize_zero_heads(backbone: Backbone) -> None:
    """Give zero-initialized classifiers small random weights, std 0.02, as in timm's transformers.

    Constant logits can be neither standardized nor correlated: the gradient is 1e5 to 1e7 times too large, and an
    optimizer with second moments then hardly updates the head for thousands of steps. timm's mixers are initialized so.
    """
    for name in classifier_names(backbone):
        for module in backbone.get_submodule(name).modules():
            if isinstance(module, nn.Linear) and not module.weight.is_meta and not module.weight.any():
                nn.init.trunc_normal_(module.weight, std=0.02)


def timm_arguments(name: str, image_size: int, args: dict) -> dict:
    """Return keyword arguments with img_size if the model's weights depend on it; other models do not accept it."""
    known = get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": image_size} | args if known and known.fixed_input_size else dict(args)


def _timm_model(name: str):
    def make(*, num_classes, image_size, drop_path, image_token=False, **args):
        args = timm_arguments(name, image_size, args)
        if drop_path:
            args = {"drop_path_rate": drop_path} | args
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **args)
        if image_token:
            use_image_token(model)
        return model

    return make
