"""Write small detection sets in COCO's format, for tests."""

import json

from pycls_std.datasets.shapes import SHAPES, Shapes

IDS = (2, 3, 7)  # of the categories, with gaps


def write_coco(root, *, train=6, val=3, ids=IDS, edit=None):
    """Write shapes in the layout of COCO 2017 and return root.

    In each split the first image has no boxes, and the second one a box of a crowd, too, if there are so many. Images
    have ids with gaps, and stand in the file in descending order.
    edit(split, content): changes what is written to a split's file in place.
    """
    (root / "annotations").mkdir(parents=True)
    for seed, (split, images) in enumerate({"train": train, "val": val}.items()):
        folder = root / f"{split}2017"
        folder.mkdir()
        content = split_content(Shapes(images, seed), folder, ids)
        if edit:
            edit(split, content)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def split_content(shapes, folder, ids):
    """Write the images of a split to a folder, and return what its file says."""
    images, annotations = [], []
    for place, (image, target) in enumerate(shapes[index] for index in range(len(shapes))):
        number, name = 10 * place + 5, f"{place:06d}.png"
        image.save(folder / name)
        images.insert(0, {"id": number, "file_name": name, "width": image.width, "height": image.height})
        truth = {key: values.tolist() for key, values in target["truth"].items()}
        rows = [] if place == 0 else list(zip(truth["boxes"], truth["labels"], truth["area"], strict=True))
        for (left, top, right, bottom), label, area in rows:
            box = [left, top, right - left, bottom - top]
            annotations.append(annotation(len(annotations), number, ids[label], box, area=area))
        if place == 1:
            annotations.append(annotation(len(annotations), number, ids[0], [1, 2, 30, 40], iscrowd=1))
    categories = [{"id": number, "name": name} for number, name in zip(ids, SHAPES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def annotation(place, image, category, box, area=None, iscrowd=0):
    """A row of a file; box: left, top, width, height; its area is that of the box if None is given."""
    area = box[2] * box[3] if area is None else area
    row = {"id": place + 1, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": iscrowd}
    return row | {"segmentation": []}
