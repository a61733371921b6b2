"""COCO's average precision: detections that equal the truth, a slow second computation, crowds, processes, none.

Shapes: D detections of an image, m annotations of it.
"""

import math

import numpy as np
import pytest
import torch

from pycls_std.core.structures import World
from pycls_std.metrics.coco_ap import CocoAP

ALL, SMALL, MEDIUM, LARGE = (0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)
OVERLAPS = np.linspace(0.5, 0.95, 10)
CLASSES = 3


def image(number, draws, *, boxes=6, found=12, crowd=0.2, ties=False):
    """A prediction and a target of one image of 300 x 200 pixels; the detections are near the boxes, or anywhere."""
    corner = draws.uniform(0, 100, (boxes, 2))
    truth = np.concatenate([corner, corner + draws.uniform(4, 150, (boxes, 2))], axis=1)
    near = truth[draws.integers(0, boxes, found)] if boxes else np.zeros((found, 4))
    places = near + draws.normal(0, 4, (found, 4))
    places[:, 2:] = np.maximum(places[:, 2:], places[:, :2] + 1)
    scores = np.sort(draws.uniform(0, 1, found).round(1 if ties else 6))[::-1].copy()
    sides = truth[:, 2:] - truth[:, :2]
    target = {
        "image_id": number,
        "size": torch.tensor([200, 300]),
        "truth": {
            "boxes": torch.tensor(truth, dtype=torch.float32),
            "labels": torch.tensor(draws.integers(0, CLASSES, boxes), dtype=torch.long),
            "area": torch.tensor(sides.prod(1) * draws.uniform(0.5, 1, boxes), dtype=torch.float32),
            "crowd": torch.tensor(draws.uniform(0, 1, boxes) < crowd),
        },
    }
    prediction = {
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(draws.integers(0, CLASSES, found), dtype=torch.long),
        "boxes": torch.tensor(places / [300, 200, 300, 200], dtype=torch.float32),
    }
    return prediction, target


def of(images, world=None, batch=1):
    """The figures of (prediction, target) pairs, taken in batches."""
    metric = CocoAP()
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        metric.update({key: torch.stack([each[key] for each, _ in part]) for key in part[0][0]}, [t for _, t in part])
    return metric.compute(world or World())


# ------------------------------------------------------------------------------------- the slow second computation
def overlaps_with(box, others, crowd):
    """Overlap of a box with others (m, 4); with a crowd, the share of the box that is in it."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=1)
    own, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    return both / np.where(crowd, own, own + areas - both)


def hits_of(prediction, target, label, overlap, limits, most):
    """(score, 1 hit, 0 miss, None ignored) of an image's detections of a class, and how many boxes it has to find."""
    truth = {name: value.double().numpy() for name, value in target["truth"].items()}
    own = truth["labels"] == label
    boxes, crowd = truth["boxes"][own], truth["crowd"][own] > 0
    ignored = crowd | (truth["area"][own] < limits[0]) | (truth["area"][own] > limits[1])
    order = sorted(range(len(boxes)), key=lambda place: ignored[place])  # those that count come first
    height, width = target["size"].tolist()
    places = prediction["boxes"].double().numpy() * [width, height, width, height]
    mine = [place for place in range(len(places)) if prediction["labels"][place] == label]
    mine = sorted(mine, key=lambda place: -float(prediction["scores"][place]))[:most]
    taken, rows = set(), []
    for place in mine:
        best, chosen = overlap, None
        shares = overlaps_with(places[place], boxes, crowd) if len(boxes) else []
        for box in order:
            if box in taken and not crowd[box]:
                continue
            if chosen is not None and not ignored[chosen] and ignored[box]:
                break
            if shares[box] >= best:
                best, chosen = shares[box], box
        score = float(prediction["scores"][place])
        if chosen is not None:
            taken.add(chosen)
            rows.append((score, None if ignored[chosen] else 1))
        else:
            area = (places[place][2:] - places[place][:2]).prod()
            rows.append((score, 0 if limits[0] <= area <= limits[1] else None))
    return rows, int((~ignored).sum())


def slow(images, *, overlaps=OVERLAPS, limits=ALL, most=100):
    """(AP, AR) in percent: means over classes and overlaps, AP at 101 levels of recall; None without an object."""
    precisions, recalls = [], []
    for label in range(CLASSES):
        for overlap in overlaps:
            rows, count = [], 0
            for prediction, target in sorted(images, key=lambda pair: pair[1]["image_id"]):
                found, own = hits_of(prediction, target, label, overlap, limits, most)
                rows, count = rows + found, count + own
            if not count:
                continue
            hits = [hit for _, hit in sorted(rows, key=lambda row: -row[0]) if hit is not None]
            reached = np.cumsum(hits) if hits else np.zeros(0)
            recall, precision = reached / count, reached / (np.arange(len(hits)) + 1)
            levels = [max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)]
            precisions.append(np.mean(levels))
            recalls.append(recall[-1] if len(recall) else 0.0)
    return (100 * np.mean(precisions), 100 * np.mean(recalls)) if precisions else (None, None)


@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_those_of_a_slow_computation(ties):
    """Detections near the boxes, crowds and all sizes among these; also where many are equally certain."""
    draws = np.random.default_rng(0)
    images = [image(7 * number + 3, draws, boxes=int(draws.integers(0, 8)), ties=ties) for number in range(25)]
    found = of(images[::-1], batch=4)
    expected = {"ap": slow(images)[0]}
    expected |= {f"ap{percent}": slow(images, overlaps=[percent / 100])[0] for percent in (50, 75)}
    sizes = {"s": SMALL, "m": MEDIUM, "l": LARGE}
    expected |= {f"ap_{size}": slow(images, limits=limits)[0] for size, limits in sizes.items()}
    expected |= {f"ar{most}": slow(images, most=most)[1] for most in (1, 10, 100)}
    expected |= {f"ar_{size}": slow(images, limits=limits)[1] for size, limits in sizes.items()}
    assert list(found) == list(CocoAP.SCORES) == list(expected)
    assert found == pytest.approx(expected, abs=1e-4)
    assert 5 < found["ap"] < 90 and len({round(value, 2) for value in found.values()}) > 8


# ------------------------------------------------------------------------------------------------------- closed forms
def perfect(number, draws, **more):
    """An image whose detections are its boxes, crowds left out, and nothing else but what is hardly certain."""
    _, target = image(number, draws, **more)
    truth = target["truth"]
    count = len(truth["labels"])
    boxes = truth["boxes"] / torch.tensor([300, 200, 300, 200])
    return {"scores": torch.ones(count), "labels": truth["labels"], "boxes": boxes}, target


def test_detections_that_equal_the_truth():
    draws = np.random.default_rng(1)
    found = of([perfect(number, draws, crowd=0) for number in range(20)], batch=5)
    assert {name: value for name, value in found.items() if name not in ("ar1", "ar10")} == pytest.approx(
        dict.fromkeys(found.keys() - {"ar1", "ar10"}, 100), abs=1e-9
    )
    assert found["ar1"] < found["ar10"] == pytest.approx(100)


def test_nothing_found_and_everything_in_the_wrong_place():
    draws = np.random.default_rng(2)
    images = [image(number, draws, crowd=0) for number in range(4)]
    nothing = [({key: value[:0] for key, value in prediction.items()}, target) for prediction, target in images]
    assert set(of(nothing).values()) == {0.0}
    away = [(prediction | {"boxes": prediction["boxes"] + 5}, target) for prediction, target in images]
    assert set(of(away).values()) == {0.0}


def test_one_box_of_two_is_half_of_the_recall():
    """One class: the surest detection hits, the next misses, so precision is 1 up to a recall of a half: 51 of 101."""
    draws = np.random.default_rng(3)
    prediction, target = image(1, draws, boxes=2, found=2, crowd=0)
    target["truth"]["labels"][:] = prediction["labels"][:] = 0
    prediction["boxes"] = torch.stack([target["truth"]["boxes"][0], torch.tensor([250.0, 150, 299, 199])])
    prediction["boxes"] /= torch.tensor([300, 200, 300, 200])
    found = of([(prediction, target)])
    assert found["ap"] == pytest.approx(100 * 51 / 101) and found["ar100"] == pytest.approx(50)


def test_a_detection_of_a_crowd_counts_neither_way():
    draws = np.random.default_rng(4)
    prediction, target = perfect(1, draws, boxes=4, crowd=0)
    clean = of([(prediction, target)])
    truth = target["truth"]
    crowd = torch.tensor([[0.0, 0, 300, 200]])
    more = {"boxes": crowd, "labels": truth["labels"][:1], "area": torch.tensor([6e4]), "crowd": torch.tensor([True])}
    target = target | {"truth": {name: torch.cat([value, more[name]]) for name, value in truth.items()}}
    extra = {"boxes": torch.tensor([[0.8, 0.8, 0.9, 0.9]]), "labels": truth["labels"][:1], "scores": torch.ones(1)}
    prediction = {name: torch.cat([extra[name], value]) for name, value in prediction.items()}
    found = of([(prediction, target)])
    assert found | {"ar1": clean["ar1"]} == clean, "but for the recall of one detection, where it is that one"
    without = target | {"truth": truth}
    assert of([(prediction, without)])["ap"] < clean["ap"]


def test_sizes_are_those_that_the_file_says():
    """An area of 10 pixels is small, whatever the box."""
    prediction, target = perfect(1, np.random.default_rng(5), crowd=0)
    target["truth"]["area"][:] = 10.0
    found = of([(prediction, target)])
    assert found.keys() == {"ap", "ap50", "ap75", "ap_s", "ar1", "ar10", "ar100", "ar_s"} and found["ap_s"] > 99


# ---------------------------------------------------------------------------------------------- processes and none
class First(World):
    """The first of several processes, each with its metric; of figures it has its own alone."""

    def __init__(self, metrics):
        self.size, self.metrics = len(metrics), metrics

    def gather(self, value):
        return [each.images for each in self.metrics] if value is self.metrics[0].images else [value]


def test_processes_with_odd_numbers_of_images_have_the_figures_of_one():
    """Each image once, and ties in one order: to the last bit."""
    draws = np.random.default_rng(6)
    images = [image(number, draws, ties=True) for number in range(11)]
    expected = of(images)
    metrics = [CocoAP() for _ in range(3)]
    for number, (prediction, target) in enumerate(images):
        metrics[number % 3].update({key: value[None] for key, value in prediction.items()}, [target])
    assert [len(metric.images) for metric in metrics] == [4, 4, 3]
    assert metrics[0].compute(First(metrics)) == expected


def test_no_object_at_all_is_told():
    draws = np.random.default_rng(7)
    for crowd, boxes in ((0, 0), (2, 3)):
        with pytest.raises(ValueError, match="^none of the 2 images that are scored has an object to be found: no AP$"):
            of([image(number, draws, boxes=boxes, crowd=crowd) for number in range(2)])


@pytest.mark.parametrize("key", ["scores", "boxes"])
def test_a_detection_that_is_not_finite_makes_no_figure(key):
    """So the loop tells, and does not record an AP of a detector that is broken."""
    prediction, target = image(1, np.random.default_rng(8), crowd=0)
    prediction[key][3] = math.nan
    found = of([(prediction, target)])
    assert found.keys() == CocoAP.SCORES.keys() and all(math.isnan(value) for value in found.values())
