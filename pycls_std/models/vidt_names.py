"""Convert names of published weights to ours: of ViDT, and of timm's and Microsoft's Swin.

Sources: naver-ai/vidt; timm; microsoft/Swin-Transformer.
"""

import re

import torch
from torch import Tensor

# Prefixes of names in ViDT's code, and here.
VIDT = {
    "backbone.layers.": "body.stages.",
    "backbone.": "body.",
    "transformer.decoder.layers.": "neck.decoder.layers.",
    "transformer.reference_points.": "neck.decoder.reference_points.",
    "input_proj.": "neck.maps.",
    "tgt_proj.": "neck.queries.",
    "query_pos_proj.": "neck.positions.",
    "class_embed.": "classes.",
    "bbox_embed.": "neck.decoder.boxes.",
    "iou_embed.": "ious.",
}
# Weights in its files that are unused or duplicates, or of auxiliary heads with other outputs than ours.
LEFT_OVER = re.compile(
    r"backbone\.norm[0-9]+\..*|backbone\.layers\.[0-9]+\.downsample\.(expansion|norm2)\..*|.*\.relative_position_index"
    r"|(patch_projector_[0-9]+|(neck|body)_det_projector)\..*"
    r"|transformer\.(enc_output\..*|enc_output_norm\..*|token_embed\..*|level_embed|decoder\.bbox_embed\..*)"
)
# Weights of a Swin classifier outside its blocks, and buffers.
SWIN_UNUSED = re.compile(r"(norm|head)\..*|.*\.(relative_position_index|attn_mask)")


def of_vidt(state: dict[str, Tensor]) -> dict[str, str]:
    """Return the name here of every weight of a published ViDT, "" for unused ones.

    Without box refinement its file has a copy of the shared heads for each level.
    """
    refined = any(name.startswith("transformer.decoder.bbox_embed.") for name in state)
    names = {}
    for name, value in state.items():
        copied = re.sub(r"^(class|bbox|iou)_embed\.[0-9]+\.", r"\1_embed.0.", name)
        copy = not refined and copied != name and torch.equal(value, state.get(copied, torch.empty(0)))
        names[name] = "" if copy or LEFT_OVER.fullmatch(name) else _of_vidt(name)
    return names


def _of_vidt(name: str) -> str:
    begins = next((begins for begins in VIDT if name.startswith(begins)), "")
    own = VIDT.get(begins, "") + name.removeprefix(begins)
    return re.sub(r"((?:boxes|ious)\.[0-9]+)\.layers\.([0-9]+)", lambda found: f"{found[1]}.{2 * int(found[2])}", own)


def of_swin(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of a Swin classifier by the names here, and the names of unused ones.

    Microsoft's merge patches at the end of a stage, timm's at the start of the next.
    """
    later = 0 if any(name.startswith("layers.0.downsample.") for name in state) else 1
    renamed, unused = {}, []
    for name, value in state.items():
        if SWIN_UNUSED.fullmatch(name):
            unused.append(name)
            continue
        merging = re.fullmatch(r"layers\.([0-9]+)\.(downsample\..*)", name)
        own = f"stages.{int(merging[1]) - later}.{merging[2]}" if merging else re.sub(r"^layers\.", "stages.", name)
        renamed[f"body.{own}"] = value
    return renamed, unused
