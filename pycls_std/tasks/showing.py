"""The prediction for one image as text, as JSON rows, and as boxes to draw.

Shapes: K classes.
"""

from collections import Counter

from torch import Tensor

from pycls_std.core.structures import DatasetInfo
from pycls_std.metrics.found_boxes import FoundBoxes
from pycls_std.tasks.contract import Shown, ShownBox
from pycls_std.tasks.kept_boxes import coco_rows

MOST = 5  # number of classes shown


def shown_classes(logits: Tensor, info: DatasetInfo) -> Shown:
    """Return the most likely classes of logits (K,), with their probabilities."""
    probabilities, labels = logits.float().softmax(dim=0).topk(min(MOST, len(logits)))
    pairs = list(zip(labels.tolist(), probabilities.tolist(), strict=True))
    ids = info.ids or range(len(info.classes))
    rows = [{"category_id": ids[label], "category": info.classes[label], "score": score} for label, score in pairs]
    return Shown([f"{100 * score:6.2f} %  {info.classes[label]}" for label, score in pairs], rows)


def shown_boxes(found: FoundBoxes, info: DatasetInfo, *, least: float) -> Shown:
    """Return all boxes as rows of COCO's results with class names, and those of at least the score `least` to draw."""
    names = [info.classes[label] for label in found.labels]
    rows = [row | {"category": name} for row, name in zip(coco_rows(found, info), names, strict=True)]
    drawn = [place for place, score in enumerate(found.scores) if score >= least]
    boxes = [
        ShownBox(_corners(rows[place]["bbox"]), int(found.labels[place]), f"{names[place]} {found.scores[place]:.2f}")
        for place in drawn
    ]
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names[place] for place in drawn).most_common())
    return Shown([f"{len(drawn)} boxes of score {least:g} and above" + (f": {counts}" if counts else "")], rows, boxes)


def _corners(box: list[float]) -> list[float]:
    left, top, width, height = box
    return [left, top, left + width, top + height]
