"""ViDT: a Swin with detection tokens, which a decoder without an encoder turns into boxes.

Source: Song et al., ICLR 2022, and its code. Unused parameters of that code are omitted, so that every parameter here
has a gradient: the published models have 198,880 (nano), 590,272 (tiny, small) or 958,720 (base) more, itemized in
tests/test_vidt.py. The published model's windows and group norms include padding, so its detections depend on the
batch; here they do not, unless `mask_padding` is False.
Shapes: B batch, H height, W width, C channels, L prediction levels, Q queries, K classes.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pycls_std.core.precision import full_precision
from pycls_std.core.registry import BACKBONES
from pycls_std.core.structures import Padded
from pycls_std.layers.deformable_decoder import Decoded, Decoder, DecoderSizes, memory_of, three_layers
from pycls_std.layers.masked_projection import MaskedProjection
from pycls_std.models.contract import Adopted
from pycls_std.models.swin_ram import BodySizes, SwinRam
from pycls_std.models.vidt_names import of_swin, of_vidt

# name: embed_dim, depths, num_heads. Published with DROP_PATH 0, 0.2, 0.3 and 0.3.
VIDTS = {
    "nano": (48, (2, 2, 6, 2), (3, 6, 12, 24)),
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
PRIOR = 0.01  # initial probability of a class, so that the loss is not dominated by negatives
RARE = -math.log((1 - PRIOR) / PRIOR)


class Extras(NamedTuple):
    """Auxiliary heads, which are trained but do not predict, of ViDT+ (Song et al., arXiv 2204.07962)."""

    iou_aware: bool = False  # `ious`, the IoU of each query's box with its ground truth
    token_label: bool = False  # `tokens`, the classes at each position of the neck's maps


class Neck(nn.Module):
    """Projections of the backbone's outputs to the decoder's number of channels, and the decoder."""

    def __init__(self, channels: list[int], sizes: DecoderSizes):
        super().__init__()
        self.maps = nn.ModuleList(MaskedProjection(each, sizes.hidden) for each in channels)
        self.queries = MaskedProjection(channels[-2], sizes.hidden)
        self.positions = MaskedProjection(sizes.hidden, sizes.hidden)
        self.decoder = Decoder(sizes, maps=len(channels))


class ViDT(nn.Module):
    """Heads: `classes` (B, L, Q, K) logits, and `boxes` (B, L, Q, 4), centre x, centre y, width, height.

    With `iou_aware` also `ious` (B, L, Q), logits of the IoU of a query's box with the box that it is matched with;
    with `token_label`, only in training mode, `tokens`, (B, H, W, K + 1) logits for each map of the neck: of any object
    (objectness), and of each class. The public code has features of 0 at the border.
    Boxes are fractions of the image without its padding. Level 0 is the backbone's output, followed by the decoder's
    layers; the last one predicts. It takes padded images of any size, or a plain batch.
    Taps: the maps of the stages; in the neck the maps of stages 1 to 3 and one downsampled from the last, the initial
    queries (B, C, 1, Q), and the queries at each level, (B, C, L, Q).
    """

    def __init__(
        self,
        body: BodySizes,
        decoder: DecoderSizes,
        extras: Extras = Extras(),  # noqa: B008  (immutable)
        *,
        num_classes: int,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.mask_padding = body.mask_padding
        self.body = SwinRam(body, positions=decoder.hidden, drop_path=drop_path)
        channels = [*self.body.channels[1:], decoder.hidden]
        self.neck = Neck(channels, decoder)
        heads = len(self.neck.decoder.boxes)
        classes = [nn.Linear(decoder.hidden, num_classes) for _ in range(heads)]
        for head in classes:
            nn.init.constant_(head.bias, RARE)
        self.classes = nn.ModuleList(classes)
        self.ious = nn.ModuleList(three_layers(decoder.hidden, 1) for _ in range(heads if extras.iou_aware else 0))
        self.tokens = _token_head(decoder.hidden, num_classes) if extras.token_label else None
        more = {"ious": extras.iou_aware, "tokens": extras.token_label}
        self.head_names = ("classes", "boxes", *(name for name, there in more.items() if there))
        widths = {f"stages.{index}": width for index, width in enumerate(self.body.channels)}
        widths |= {f"neck.maps.{index}": decoder.hidden for index in range(len(channels))}
        self.feature_info = [{"module": name, "num_chs": width} for name, width in widths.items()]
        tokens = {"num_chs": decoder.hidden, "queries": True}
        self.feature_info += [{"module": f"neck.{name}"} | tokens for name in ("queries", "decoder")]

    def forward(self, images: Tensor | Padded) -> dict[str, Tensor]:
        """images: (B, 3, H, W), or padded ones."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor | Padded) -> Decoded:
        """Return the queries at all levels and their boxes, which the decoder refines layer by layer."""
        return self.forward_intermediates(images, [])[0]

    def forward_head(self, features: Decoded, pre_logits: bool = False) -> Any:
        """Return the heads' outputs; the mean query of the last level, (B, C), if pre_logits."""
        if pre_logits:
            return features.queries[:, -1].mean(dim=1)
        heads = {"classes": _at_levels(self.classes, features.queries), "boxes": features.boxes}
        if self.ious:
            heads["ious"] = _at_levels(self.ious, features.queries)[..., 0]
        return heads if features.tokens is None else heads | {"tokens": features.tokens}

    def forward_intermediates(
        self, images: Tensor | Padded, indices=None, *, stop_early=False, output_fmt="NCHW", intermediates_only=False
    ):
        """Return `forward_features(images)`, None if stopped early, and the taps; see `models/contract.py`."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, a {type(self).__name__} has only NCHW")
        count, stages = len(self.feature_info), len(self.body.stages)
        wanted = range(count) if indices is None else [index % count for index in indices]
        last = max(wanted, default=count - 1) if stop_early else count - 1
        seen = self.body(images, stages=min(last + 1, stages))
        taps, decoded = seen.maps[:stages], None
        if last >= stages:
            masks = seen.masks[1:] if self.mask_padding else [None] * stages
            sources = zip(self.neck.maps, seen.maps[1:], masks, strict=True)
            maps = [project(each, mask) for project, each, mask in sources]
            queries = self.neck.queries(seen.det.transpose(1, 2)[:, :, None])
            taps += [*maps, queries]
        if last == count - 1:
            positions = self.neck.positions(self.body.det_pos_embed.transpose(1, 2)[:, :, None])
            tokens = [each[:, :, 0].transpose(1, 2) for each in (queries, positions)]
            decoded = self.neck.decoder(*tokens, memory_of(maps, seen.masks[1:]))
            taps.append(decoded.queries.permute(0, 3, 1, 2))
            if self.tokens is not None and self.training:
                decoded = decoded._replace(tokens=[self.tokens(each.permute(0, 2, 3, 1)) for each in maps])
        chosen = [taps[index] for index in wanted]
        return chosen if intermediates_only else (decoded, chosen)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Return the layers that output logits: one per level (one in all without refinement), and that of `tokens`."""
        return (*self.classes, *([] if self.tokens is None else [self.tokens[-1]]))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the detection tokens and their positions, as published."""
        return {"body.det_token", "body.det_pos_embed"}

    def adopted(self, state: dict[str, Tensor]) -> Adopted | None:
        """Return the weights of a published ViDT, or of a Swin classifier of timm's or Microsoft's; None for others.

        Weights that a Swin lacks keep their values.
        """
        if "backbone.det_token" in state:
            names = of_vidt(state)
            renamed = {own: state[name] for name, own in names.items() if own}
            unused = [name for name, own in names.items() if not own]
            tokens = {name: value for name, value in self.state_dict().items() if name.startswith("tokens.")}
            args = {"mask_padding": False} if self.mask_padding else {}  # the published model attends to padding
            return Adopted(renamed | tokens, list(tokens), unused, args)
        if "layers.0.blocks.0.attn.qkv.weight" not in state:
            return None
        renamed, unused = of_swin(state)
        own = self.state_dict()
        return Adopted(own | renamed, [name for name in own if name not in renamed], unused)


def _at_levels(heads: nn.ModuleList, queries: Tensor) -> Tensor:
    """Apply the head of each level, or the shared one, to queries (B, L, Q, C), in full precision.

    Half precision has too few distinct scores for the ranking in AP.
    """
    with full_precision(queries.device):
        own = queries.to(next(heads.parameters()).dtype)
        return torch.stack([heads[level % len(heads)](each) for level, each in enumerate(own.unbind(1))], dim=1)


def _token_head(channels: int, classes: int) -> nn.Sequential:
    """Return the head for objectness and classes at each position."""
    first, last = nn.Linear(channels, channels), nn.Linear(channels, classes + 1)
    for layer in (first, last):
        nn.init.xavier_uniform_(layer.weight)
    nn.init.constant_(last.bias, RARE)
    return nn.Sequential(first, nn.LayerNorm(channels), last)


def vidt(size, /, *, num_classes, image_size, drop_path=0.0, **args) -> ViDT:
    """Build a ViDT of a size of VIDTS for images of any size.

    `args` are those of `BodySizes`, `DecoderSizes` and `Extras`. Raises ValueError for others.
    """
    embed_dim, depths, num_heads = size
    args = {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads} | args
    kinds = (BodySizes, DecoderSizes, Extras)
    if unknown := args.keys() - {field for kind in kinds for field in kind._fields}:
        raise ValueError(f"no {', '.join(sorted(unknown))}; there are {', '.join(BodySizes._fields)}, ...")
    for name, value in args.items():
        few = [each for each in (value if isinstance(value, (list, tuple)) else [value]) if type(each) is int]
        if min(few, default=1) < 1 and name != "dropout":
            raise ValueError(f"{name} is {value}, expected at least 1")
    body, decoder, extras = ({key: args[key] for key in kind._fields if key in args} for kind in kinds)
    return ViDT(
        BodySizes(**body), DecoderSizes(**decoder), Extras(**extras), num_classes=num_classes, drop_path=drop_path
    )


# Our own small sizes, for images of 200 pixels and one core; both have the same neck, for distillation between them.
SMALL_NECK = {"hidden": 64, "ffn": 256, "decoder_layers": 2, "queries": 50}
SMALL_VIDTS = {"micro": (24, (2, 2, 2, 2), (1, 2, 4, 8)), "mini": (48, (2, 2, 2, 2), (2, 4, 8, 16))}

for _name, _size in VIDTS.items():
    BACKBONES.register(f"vidt_swin_{_name}")(partial(vidt, _size))
for _name, _size in SMALL_VIDTS.items():
    BACKBONES.register(f"vidt_swin_{_name}")(partial(vidt, _size, **SMALL_NECK))
