"""Average precision and recall of boxes, as COCO defines them.

Shapes: D detections of an image, m annotations of it.
Source: Lin et al., ECCV 2014; computed by faster-coco-eval, whose results equal those of pycocotools.
"""

import math

import numpy as np

from pycls_std.core.registry import METRICS
from pycls_std.core.structures import World
from pycls_std.metrics.found_boxes import FoundBoxes, found_boxes

NONE = -1  # COCO's value if there is no such object


@METRICS.register("coco_ap")
class CocoAP:
    """COCO's twelve scores: average precision (AP) at IoU .50 to .95, .50 and .75, average recall (AR) at .50 to .95.

    S, M, L: objects of up to 32^2, up to 96^2 and more pixels, by the annotated area; AR1, AR10 and AR100: of so many
    detections per image, all other scores of 100. Detections of crowds are ignored.
    Each image counts once, and ties in score are ordered by image id, however images are distributed over batches and
    processes. A score without objects (-1 in COCO, such as AP S) is omitted in every epoch, and a dash in tables. If a
    detection is NaN all scores are, which ends the run.
    """

    TASK = "detection"
    SCORES = {
        "ap": {"label": "AP", "unit": "%", "better": "higher"},
        "ap50": {"label": "AP50", "unit": "%", "better": "higher"},
        "ap75": {"label": "AP75", "unit": "%", "better": "higher"},
        "ap_s": {"label": "AP S", "unit": "%", "better": "higher"},
        "ap_m": {"label": "AP M", "unit": "%", "better": "higher"},
        "ap_l": {"label": "AP L", "unit": "%", "better": "higher"},
        "ar1": {"label": "AR1", "unit": "%", "better": "higher", "shown": False},
        "ar10": {"label": "AR10", "unit": "%", "better": "higher", "shown": False},
        "ar100": {"label": "AR100", "unit": "%", "better": "higher", "shown": False},
        "ar_s": {"label": "AR S", "unit": "%", "better": "higher", "shown": False},
        "ar_m": {"label": "AR M", "unit": "%", "better": "higher", "shown": False},
        "ar_l": {"label": "AR L", "unit": "%", "better": "higher", "shown": False},
    }

    def __init__(self):
        self.images: list[tuple[FoundBoxes, dict[str, np.ndarray]]] = []

    def update(self, prediction: dict, targets: list[dict]) -> None:
        """Add the detections in a batch, see `found_boxes`; targets also have the `truth`, see `datasets/`."""
        truths = [{name: value.cpu().numpy() for name, value in target["truth"].items()} for target in targets]
        self.images += zip(found_boxes(prediction, targets), truths, strict=True)

    def compute(self, world: World) -> dict[str, float]:
        """Return the scores in percent. Raises ValueError if no image has an object that is not a crowd."""
        together = [each for own in world.gather(self.images) for each in own]
        images = sorted(together, key=lambda each: each[0].image_id)
        if all(truth["crowd"].all() for _, truth in images):
            raise ValueError(f"none of the {len(images)} images that are scored has an object to be found: no AP")
        if not all(found.finite for found, _ in images):
            return dict.fromkeys(self.SCORES, math.nan)
        own = figures(images) if world.rank == 0 else []  # once: for all of COCO it takes a while, and a GiB
        shares = zip(self.SCORES, world.gather(own)[0], strict=True)
        return {name: 100 * share for name, share in shares if share != NONE}


def figures(images: list[tuple[FoundBoxes, dict[str, np.ndarray]]]) -> list[float]:
    """Return COCO's twelve scores in [0, 1], or -1, for detections and ground truth of images with ascending ids.

    truth: `boxes` (m, 4) left, top, right, bottom in pixels, `labels`, `area`, `crowd` (m,).
    """
    from faster_coco_eval import COCO, COCOeval_faster  # here, since it takes a second to import

    truths, detections = [], []
    for found, truth in images:
        corners = truth["boxes"]
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        crowd = truth["crowd"].astype(int)
        truths += _annotations(found.image_id, sides, truth["labels"], area=truth["area"], iscrowd=crowd)
        area = found.boxes[:, 2] * found.boxes[:, 3]
        detections += _annotations(found.image_id, found.boxes, found.labels, area=area, score=found.scores)
    labels = sorted({row["category_id"] for row in truths})  # precision is undefined for other classes
    shared = {"images": [{"id": found.image_id} for found, _ in images], "categories": [{"id": k} for k in labels]}
    both = [COCO(shared | {"annotations": _numbered(rows)}, print_function=_silent) for rows in (truths, detections)]
    evaluation = COCOeval_faster(*both, "bbox", print_function=_silent)
    evaluation.run()
    return evaluation.stats[:12].tolist()


def _annotations(image_id: int, boxes: np.ndarray, labels: np.ndarray, **facts: np.ndarray) -> list[dict]:
    """Return COCO's form of an image's boxes: left, top, width, height. facts: of each box, by COCO's names."""
    columns = zip(boxes.tolist(), labels.tolist(), *(values.tolist() for values in facts.values()), strict=True)
    names = ("bbox", "category_id", *facts)
    return [{"image_id": image_id, "iscrowd": 0, **dict(zip(names, row, strict=True))} for row in columns]


def _numbered(rows: list[dict]) -> list[dict]:
    return [row | {"id": number} for number, row in enumerate(rows, start=1)]  # COCO takes id 0 for "no match"


def _silent(*_) -> None:
    pass
