"""The predictions file of a detector, in COCO's results format, which COCO's tools and server read."""

import json

from pycls_std.core.structures import DatasetInfo, Loaded, Output, World
from pycls_std.metrics.found_boxes import FoundBoxes, found_boxes
from pycls_std.tasks.contract import KeptFile


class KeptBoxes:
    """Collects the student's detections. predictions: function of the task; the first prediction is saved."""

    asks_teachers = False

    def __init__(self, predictions, info: DatasetInfo):
        self.predictions = predictions
        self.info = info
        self.images: list[FoundBoxes] = []

    def update(self, output: Output, teachers: dict[str, Output], loaded: Loaded) -> None:
        """Add the detections in a batch."""
        prediction = next(iter(self.predictions(output).values()))
        self.images += found_boxes(prediction, loaded.targets)

    def packed(self, world: World, describe) -> KeptFile | None:
        """Return, in the first process, [{image_id, category_id, bbox, score}, ...] as JSON.

        bbox is left, top, width and height in pixels of the original image.
        Raises ValueError that names an image with a value that is not finite.
        """
        together = [each for own in world.gather(self.images) for each in own]
        if world.rank:
            return None
        images = sorted(together, key=lambda each: each.image_id)
        broken = [each.image_id for each in images if not each.finite]
        if broken:
            raise ValueError(f"what is found in image {broken[0]} is not finite, and in {len(broken) - 1} more")
        rows = [row for each in images for row in coco_rows(each, self.info)]
        return KeptFile(json.dumps(rows).encode(), len(images), f"{len(rows)} boxes")


def coco_rows(found: FoundBoxes, info: DatasetInfo) -> list[dict]:
    """Return {image_id, category_id, bbox, score} of each box, see `KeptBoxes.packed`; without ids, labels from 0."""
    ids = info.ids or range(len(info.classes))
    columns = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    return [
        {"image_id": found.image_id, "category_id": ids[label], "bbox": box, "score": score}
        for label, box, score in columns
    ]
