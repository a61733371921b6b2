"""Detection data: files in COCO's format against another reader, what is wrong with them, shapes drawn by code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import IDS, annotation, write_coco
from faster_coco_eval import COCO
from PIL import Image
from torch.utils.data import Subset
from torchvision.tv_tensors import BoundingBoxes

import pycls_std.datasets  # noqa: F401  (registers the datasets)
from pycls_std.core.registry import DATASETS
from pycls_std.datasets.loader import Views
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.scan import read_all
from pycls_std.datasets.shapes import EXTENTS, SHAPES
from pycls_std.datasets.subsets import known, training_parts


def load(root, name="coco", split="train"):
    return DATASETS.get(name)(root=str(root), split=split)


def fails(root, name="coco", split="train"):
    """The one line with which a split is refused."""
    with pytest.raises(ValueError) as error:
        load(root, name, split)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 600
    return str(error.value).replace(str(root), "ROOT")


def unchecked(index, target):
    return target


SIDES = ("xmin", "ymin", "xmax", "ymax")
VOC = """<annotation><size><width>64</width><height>48</height></size>{}</annotation>"""
VOC_BOX = "<object><name>{}</name><bndbox>" + "".join(f"<{side}>{{}}</{side}>" for side in SIDES) + "</bndbox></object>"


def test_the_page_makes_bccd_of_its_public_files(tmp_path, monkeypatch):
    """Its code, on files of that form: a box beyond the image is clipped, one of no width is left out."""
    source = tmp_path / "BCCD_Dataset" / "BCCD"
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (source / folder).mkdir(parents=True)
    boxes = {"train": [("WBC", 1, 2, 70, 20), ("RBC", 5, 5, 5, 9)], "val": [("Platelets", 0, 0, 9, 8)]}
    for split, rows in boxes.items():
        (source / f"ImageSets/Main/{split}.txt").write_text(f"{split}_0\n")
        Image.new("RGB", (64, 48)).save(source / f"JPEGImages/{split}_0.jpg")
        text = VOC.format("".join(VOC_BOX.format(*row) for row in rows))
        (source / f"Annotations/{split}_0.xml").write_text(text)
    page = (Path(__file__).parents[1] / "docs" / "detection.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    for split, label, box in (("train", 1, [1, 2, 64, 20]), ("test", 2, [0, 0, 9, 8])):
        dataset, info = load("data/bccd-coco", split=split)
        truth = dataset[0][1]["truth"]
        assert info.classes == ("RBC", "WBC", "Platelets") and len(dataset) == 1
        assert truth["boxes"].tolist() == [box] and truth["labels"].tolist() == [label]
        assert truth["area"].tolist() == [(box[2] - box[0]) * (box[3] - box[1])]


# --------------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_truth_are_those_of_another_reader(tmp_path, split):
    dataset, info = load(write_coco(tmp_path), split=split)
    own = {"train": "train", "test": "val"}[split]
    other = COCO(str(tmp_path / "annotations" / f"instances_{own}2017.json"))
    assert len(dataset) == len(other.imgs) == {"train": 6, "test": 3}[split]
    assert info.classes == tuple(SHAPES) and info.ids == IDS == tuple(sorted(other.cats))
    assert info.normalization == NORMALIZATIONS["imagenet"] and info.name == tmp_path.name
    for (image, target), number in zip((dataset[i] for i in range(len(dataset))), sorted(other.imgs), strict=True):
        row, rows = other.imgs[number], other.imgToAnns[number]
        with Image.open(tmp_path / f"{own}2017" / row["file_name"]) as expected:
            assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert target["image_id"] == number and target["size"].tolist() == [row["height"], row["width"]]
        truth = target["truth"]
        boxes = np.array([each["bbox"] for each in rows], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert truth["boxes"].numpy().tolist() == boxes.tolist()
        assert [info.ids[label] for label in truth["labels"].tolist()] == [each["category_id"] for each in rows]
        assert truth["area"].tolist() == [each["area"] for each in rows]
        assert truth["crowd"].tolist() == [bool(each["iscrowd"]) for each in rows]
        kinds = {name: values.dtype for name, values in truth.items()}
        assert kinds == {"boxes": torch.float32, "labels": torch.int64, "area": torch.float32, "crowd": torch.bool}


def test_boxes_to_train_on(tmp_path):
    """Clipped; crowds and what has no extent in the image left out; images without boxes kept; as DETR does."""
    wide = [-5, 10, 20, 1000]

    def edit(split, content):
        height, width = content["images"][-1]["height"], content["images"][-1]["width"]
        boxes = [wide, [3, 4, 0, 5], [width, 1, 4, 4], [1, height + 2, 4, 4], [30, 30, -4, 4]]
        content["annotations"] += [annotation(90 + place, 5, 7, box) for place, box in enumerate(boxes)]
        del content["annotations"][-1]["area"], content["annotations"][-1]["iscrowd"]

    plain, _ = load(write_coco(tmp_path / "plain"))
    _, target = plain[0]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == target["truth"]["labels"].shape == (0,)
    _, target = plain[1]
    assert target["truth"]["crowd"].sum() == 1 and len(target["boxes"]) == len(target["truth"]["boxes"]) - 1

    dataset, info = load(write_coco(tmp_path / "odd", edit=edit))
    image, target = dataset[0]
    assert isinstance(target["boxes"], BoundingBoxes) and target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[0, 10, 15, image.height]] and target["labels"].tolist() == [2]
    assert target["boxes"].canvas_size == (image.height, image.width)
    assert target["truth"]["boxes"][:2].tolist() == [[-5, 10, 15, 1010], [3, 4, 3, 9]]  # as the file has them
    assert target["truth"]["area"].tolist()[-1] == -16 and not target["truth"]["crowd"].any()
    expected = "1 boxes of crowds that are not trained on, 4 boxes without extent in the image that are not trained on"
    assert info.left_out == f"coco: train2017 has {expected}"
    (tmp_path / "odd" / "val2017" / "more.JPG").touch()
    (tmp_path / "odd" / "val2017" / "notes.txt").touch()
    assert load(tmp_path / "odd", split="test")[1].left_out == (
        "coco: val2017 has 1 images that the annotations do not list"
    )


def test_classes_that_are_ids(tmp_path):
    by_place, by_id = (load(write_coco(tmp_path / name), name) for name in ("coco", "coco_ids"))
    assert by_id[1].classes == (
        *("unused 0", "unused 1", "square", "disc", "unused 4", "unused 5", "unused 6", "triangle"),
    )
    assert by_id[1].ids == tuple(range(8))
    for index in range(6):
        labels = by_place[0][index][1]["labels"], by_id[0][index][1]["labels"]
        assert [IDS[label] for label in labels[0].tolist()] == labels[1].tolist()
    assert fails(write_coco(tmp_path / "many", ids=(-1, 2, 20_000)), "coco_ids") == (
        "coco_ids: DATA.ROOT ROOT: category ids go from -1 to 20000, coco_ids takes 0 to 9999"
    )
    assert load(tmp_path / "many")[1].ids == (-1, 2, 20_000)


def test_objects_of_each_image_are_known_without_reading_it(tmp_path):
    """Those that are trained on, and those that are to be found at test."""

    def without_extent(split, content):
        content["annotations"].append(annotation(len(content["annotations"]), 25, IDS[0], [500, 0, 10, 10]))

    write_coco(tmp_path, edit=without_extent)
    for split in ("train", "test"):
        dataset, _ = load(tmp_path, split=split)
        targets = [dataset[index][1] for index in range(len(dataset))]
        there = [len(t["boxes"]) if split == "train" else int((~t["truth"]["crowd"]).sum()) for t in targets]
        assert known(dataset, "objects").tolist() == there
        assert there[0] == 0 < there[1] < len(targets[1]["truth"]["crowd"]), "a crowd is beside others"
        assert known(Subset(dataset, [2, 0]), "objects").tolist() == [there[2], 0]
    assert known(DATASETS.get("shapes")(root="", split="train")[0], "objects") is None


def test_images_are_held_out(tmp_path):
    """A share of all, whatever is on them; `samples` are files without a class."""
    dataset, _ = load(write_coco(tmp_path, train=10))
    kept, held = training_parts(dataset, val_fraction=0.2)
    assert len(held) == 2 and sorted([*kept.indices, *held.indices]) == list(range(10))
    assert [path for path, _ in dataset.samples] == [str(tmp_path / "train2017" / f"{i:06d}.png") for i in range(10)]


def test_a_copy_of_the_truth_belongs_to_each_image(tmp_path):
    """A view of all boxes would be sent whole from a worker, with each image."""
    dataset, _ = load(write_coco(tmp_path))
    truth = dataset[2][1]["truth"]
    assert all(values.untyped_storage().nbytes() == values.numel() * values.element_size() for values in truth.values())


# -------------------------------------------------------------------------------------------------------- what is wrong
def changed(part, place, **values):
    """A change of an entry of the training split's file; None leaves a key out."""

    def edit(split, content):
        if split == "train":
            entry = content[part][place]
            entry.update(values)
            for key in [key for key, value in values.items() if value is None]:
                del entry[key]

    return edit


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (
            changed("annotations", 1, image_id=999),
            "entry 1 of annotations has the image_id 999, which none of its images",
        ),
        (changed("annotations", 0, category_id=1), "has the category_id 1, which none of its categories has"),
        (changed("annotations", 2, bbox=[1, 2, 3]), "entry 2 of annotations has the bbox [1, 2, 3], expected 4 finite"),
        (changed("annotations", 2, bbox=[1, 2, 3, "4"]), "expected 4 finite numbers"),
        (changed("annotations", 2, bbox=[1, 2, 3, float("nan")]), "has the bbox [1, 2, 3, NaN], expected 4 finite"),
        (changed("annotations", 2, bbox=[1, 2, 3, 1e300]), "expected 4 finite numbers"),
        (changed("annotations", 2, bbox=None), "entry 2 of annotations has no bbox, expected 4 finite numbers"),
        (changed("annotations", 2, area="big"), 'has the area "big", expected a finite number'),
        (changed("annotations", 2, iscrowd=2), "has the iscrowd 2, expected 0 or 1"),
        (changed("annotations", 2, image_id=[5]), "has the image_id [5], expected a whole number"),
        (changed("images", 0, width=None), "entry 0 of images has no width, expected a whole number above 0"),
        (changed("images", 0, height=0), "entry 0 of images has the height 0, expected a whole number above 0"),
        (changed("images", 0, file_name=7), "entry 0 of images has the file_name 7, expected a text"),
        (changed("images", 0, id=5), "two images have the id 5"),
        (changed("categories", 0, id=2), "two categories have the id 2"),
        (lambda split, content: content.pop("annotations"), "it has no list of annotations"),
        (lambda split, content: content.update(images=[3]), "it has no list of images"),
        (lambda split, content: content.update(categories=[]), "it lists no categories"),
    ],
)
def test_annotations_that_are_wrong(tmp_path, edit, text):
    message = fails(write_coco(tmp_path, edit=edit))
    assert message.startswith("ROOT/annotations/instances_train2017.json: ") and text in message


def test_files_that_are_not_there(tmp_path):
    root = write_coco(tmp_path / "data")
    assert fails(tmp_path / "gone") == "coco: there is no folder DATA.ROOT ROOT"
    (root / "train2017" / "000003.png").unlink()
    assert fails(root) == "1 images of the annotations are not in ROOT/train2017: 000003.png"
    file = root / "annotations" / "instances_train2017.json"
    text = file.read_text()
    for damaged in (text[:-20], "", "[" * 100_000, "\0\1\2"):
        file.write_text(damaged)
        assert fails(root).startswith("ROOT/annotations/instances_train2017.json is no JSON file, or not a whole one: ")
    file.write_bytes(b'{"images": "\xff\xfe\xfa"}')
    assert "is no JSON file, or not a whole one" in fails(root)
    file.write_text("[]")
    assert "it has no list of categories" in fails(root)
    file.unlink()
    assert fails(root) == "coco: DATA.ROOT ROOT has no file annotations/instances_train2017.json"
    (root / "val2017").rename(root / "val")
    assert fails(root, split="test") == "coco: DATA.ROOT ROOT has no folder val2017"


@pytest.mark.parametrize("root", [".", "train2017/.."])
def test_the_name_is_the_folder_s_however_it_is_reached(tmp_path, monkeypatch, root):
    monkeypatch.chdir(write_coco(tmp_path / "cells"))
    assert load(root)[1].name == "cells"


def test_splits_of_other_categories(tmp_path):
    """Of another name, or of another id, which the classes' names do not tell."""
    assert fails(write_coco(tmp_path / "names", edit=changed("categories", 0, name="star"))) == (
        "coco: DATA.ROOT ROOT: the splits differ in categories: "
        "7 star (training split only), 7 triangle (test split only)"
    )

    def other_id(split, content):
        if split == "val":
            content["categories"][0]["id"], content["annotations"] = 9, []

    assert fails(write_coco(tmp_path / "ids", edit=other_id)) == (
        "coco: DATA.ROOT ROOT: the splits differ in categories: "
        "7 triangle (training split only), 9 triangle (test split only)"
    )


def test_images_that_are_wrong(tmp_path):
    """Of another size, and damaged: each is a line of tools/check_data.py, and the others are good."""
    dataset, _ = load(write_coco(tmp_path))
    Image.new("RGB", (50, 40)).save(tmp_path / "train2017" / "000001.png")
    whole = (tmp_path / "train2017" / "000004.png").read_bytes()
    (tmp_path / "train2017" / "000004.png").write_bytes(whole[: len(whole) // 2])
    row = json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text())["images"][-2]
    faults = list(read_all(dataset, check=unchecked, workers=1))
    assert [place for place, fault in enumerate(faults) if fault] == [1, 4]
    said = f"has 50 x 40 pixels, its annotations say {row['width']} x {row['height']}"
    assert faults[1] == f"image {tmp_path}/train2017/000001.png {said}"
    assert faults[4].startswith(f"image {tmp_path}/train2017/000004.png cannot be read: ")
    with pytest.raises(ValueError, match="has 50 x 40 pixels"):
        Views(dataset, None, seed=0, check=unchecked, collate=list)[0, 1]


# --------------------------------------------------------------------------------------------------- shapes of the code
def test_shapes():
    """As many as there are said to be, of several sizes, in their boxes, apart; the same at each call."""
    splits = {split: load("", "shapes", split) for split in ("train", "test")}
    assert {split: len(dataset) for split, (dataset, _) in splits.items()} == {"train": 128, "test": 32}
    assert splits["train"][1] == splits["test"][1] and splits["test"][1].classes == ("square", "disc", "triangle")
    items = [dataset[index] for dataset, _ in splits.values() for index in range(len(dataset))]
    assert len({image.tobytes() for image, _ in items}) == 160
    assert {len(target["boxes"]) for _, target in items} == {1, 2, 3, 4}
    assert {int(label) for _, target in items for label in target["labels"]} == {0, 1, 2}
    sides = torch.stack([target["size"] for _, target in items])
    assert sides.min() == 64 and sides.max() == 96 and (sides[:, 0] != sides[:, 1]).any()
    for image, target in items:
        bright = (np.asarray(image) >= 100).all(axis=2)
        assert bright.sum() == target["truth"]["area"].sum()
        for left, top, right, bottom in target["boxes"].int().tolist():
            assert bright[top:bottom, left:right].any(axis=0).all() and bright[top:bottom, left:right].any(axis=1).all()
            assert EXTENTS[0] - 1 <= right - left < EXTENTS[1]
            bright[top:bottom, left:right] = False
        assert not bright.any()
    again, target = splits["train"][0][5]
    assert again.tobytes() == items[5][0].tobytes() and torch.equal(target["boxes"], items[5][1]["boxes"])


def test_a_shape_fills_its_share_of_its_box():
    """1, pi / 4 and 1 / 2."""
    centres = (np.arange(400) + 0.5) / 400
    shares = {name: shape(centres[None], centres[:, None]).mean() for name, shape in SHAPES.items()}
    assert shares == pytest.approx({"square": 1, "disc": np.pi / 4, "triangle": 0.5}, abs=0.003)
