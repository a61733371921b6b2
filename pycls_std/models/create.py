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

# Arguments that are not for MODEL.ARGS: other options set them, or timm loads files by them.
RESERVED = {"name", "num_classes", "image_size", "img_size", "drop_path", "drop_path_rate", "norm_eps", "source"}
RESERVED |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_custom_load"}
RESERVED |= {"checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "model_name"}


def refuse_reserved(args, source: str) -> None:
    """Raise ValueError that names a source for arguments of a constructor that are not for it to set."""
    if taken := RESERVED & set(args):
        instead = ": MODEL.NORM_EPS does" if "norm_eps" in taken else ""
        raise ValueError(f"{source} has {', '.join(sorted(taken))}, which is not for it to set{instead}")


def refuse_place(name: str) -> None:
    """Raise ValueError for the name of a model that is a place of weights: before one is fetched, it tells nothing."""
    if ":" in name:
        raise ValueError(
            f"no model {name!r}: the name is that of the architecture, such as resnet18; hf-hub:<owner>/<name> stands "
            "in MODEL.WEIGHTS or DISTILLATION.TEACHER_WEIGHTS"
        )


def refuse_unknown(name: str) -> None:
    """Raise ValueError with near names for a model, or a tag of timm's weights, that is not known."""
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
    LayerNorm, 0 = the model's own. args: further keyword arguments of the constructor. source: the option that they
    are of, for the error.
    Raises ValueError for an unknown name, for arguments the constructor cannot take, and for an image size that is no
    multiple of the patch.
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
    if image_size % patch:  # timm would leave out the last pixels
        own = source == "MODEL.ARGS"
        keys = "DATA.IMAGE_SIZE, MODEL.ARGS.patch_size" if own else "DISTILLATION.TEACHER_SIZES"
        raise ValueError(f"image size {image_size} is no multiple of the patch {patch} of {name} ({keys})")
    if norm_eps:
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
    return cast(Backbone, backbone)  # which has what it names, and need not derive from it


def reset_layers(backbone: nn.Module) -> None:
    """Give linear layers and convolutions the weights and biases that PyTorch starts them with.

    Both are uniform within 1 / sqrt(n), n inputs of a unit, so their standard deviation is 1 / sqrt(3 n).
    """
    for module in backbone.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.reset_parameters()


def parameters_within(backbone: nn.Module, patterns: list[str], key: str) -> list[nn.Parameter]:
    """Return the parameters whose name, or the name of a module that they are in, fits a pattern with * and ?.

    Raises ValueError that names the option, key, for a pattern that fits none.
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
    """Let no parameter train that fits a pattern of MODEL.FREEZE.

    Raises ValueError for a pattern that fits none, and if all are frozen.
    """
    for parameter in parameters_within(backbone, patterns, "MODEL.FREEZE"):
        parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in backbone.parameters()):
        raise ValueError(f"MODEL.FREEZE {list(patterns)} leaves no parameter of the backbone to train")


def _within(name: str, pattern: str) -> bool:
    words = name.split(".")
    return any(fnmatchcase(".".join(words[:count]), pattern) for count in range(1, len(words) + 1))


def randomize_zero_heads(backbone: Backbone) -> None:
    """Give classifiers whose weights all start at zero small random ones, std 0.02, as timm's transformers have.

    Logits that are all alike can be neither standardized nor correlated: the gradient there is 1e5 to 1e7 times what it
    should be, and an optimizer that remembers squares of gradients holds the head almost still for thousands of steps.
    timm's mixers start so.
    """
    for name in classifier_names(backbone):
        for module in backbone.get_submodule(name).modules():
            if isinstance(module, nn.Linear) and not module.weight.is_meta and not module.weight.any():
                nn.init.trunc_normal_(module.weight, std=0.02)


def timm_arguments(name: str, image_size: int, args: dict) -> dict:
    """Return keyword arguments with the image size where the model's weights depend on it; others refuse to hear it."""
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
