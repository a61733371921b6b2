"""Matching and losses of a detector: closed forms, plain second computations, inputs that are hardly any.

Shapes: B batch, L levels, Q queries, K classes, N boxes of an image.
"""

import itertools
import math

import pytest
import torch
from torch.nn.functional import softplus
from torchvision.ops import box_iou, generalized_box_iou

from pycls_std.losses.detection import detection_losses
from pycls_std.losses.matching import NONE, Weights, corners, gathered_truth, least_cost, match, matching_costs

B, L, Q, K = 3, 2, 6, 4
ONE = torch.ones(())


def targets_of(counts, seed=0):
    """Targets of images with so many boxes."""
    draws = torch.Generator().manual_seed(seed)
    boxes = [torch.rand(count, 4, generator=draws) * 0.4 + 0.3 for count in counts]
    return [{"boxes": own, "labels": torch.randint(0, K, (len(own),), generator=draws)} for own in boxes]


def said(seed=1, batch=B, levels=L, queries=Q):
    """Logits (B, L, Q, K) and boxes (B, L, Q, 4) of a detector, with gradient."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, levels, queries, K, generator=draws)
    boxes = torch.rand(batch, levels, queries, 4, generator=draws) * 0.4 + 0.3
    return logits.requires_grad_(), boxes.requires_grad_()


def losses_of(logits, boxes, targets, num_boxes=ONE, weights=None):
    truth = gathered_truth(targets)
    return detection_losses(logits, boxes, truth, weights=weights or Weights(), num_boxes=num_boxes)


def pairs_of(matches, image, level):
    """{box: query} of a level of an image."""
    return {box: query for query, box in enumerate(matches[image, level].tolist()) if box != NONE}


# ------------------------------------------------------------------------------------------------------------ matching
def test_three_queries_and_three_boxes_by_hand():
    """The least sum takes 1 + 2 + 3 off the diagonal, though the first row's least is elsewhere."""
    costs = torch.tensor([[0.5, 1.0, 9.0], [9.0, 0.0, 2.0], [3.0, 9.0, 9.0]])
    assert least_cost(costs[None, None]).tolist() == [[[1, 2, 0]]]
    absent = torch.full((3, 2), torch.inf)
    assert least_cost(torch.cat([costs[:, :2], absent], dim=1)[None, None]).tolist() == [[[0, 1, NONE]]]
    assert least_cost(absent[None, None]).tolist() == [[[NONE] * 3]]


def test_places_are_a_multiple_of_16():
    """Whatever the number of boxes, of which there is none in what is added."""
    for counts, places in (([0, 0], 16), ([3, 0], 16), ([16, 2], 16), ([17], 32)):
        truth = gathered_truth(targets_of(counts))
        assert truth.boxes.shape == (len(counts), places, 4) and truth.labels.shape == (len(counts), places)
        assert (truth.labels != NONE).sum(dim=1).tolist() == counts


def test_costs_by_hand():
    """A query with logit 0 for a class, in a box that overlaps the other by a third, of an enclosing box as large."""
    logits = torch.zeros(1, 1, 1, 2)
    boxes = torch.tensor([0.4, 0.5, 0.4, 0.4]).view(1, 1, 1, 4)  # from 0.2 to 0.6
    truth = gathered_truth([{"boxes": torch.tensor([[0.6, 0.5, 0.4, 0.4]]), "labels": torch.tensor([1])}])  # 0.4 to 0.8
    cost = matching_costs(logits, boxes, truth, weights=Weights(2.0, 5.0, 3.0))
    focal = (0.25 - 0.75) * 0.25 * math.log(2)
    assert cost.shape == (1, 1, 1, 16) and bool(cost[..., 1:].isinf().all())
    assert float(cost[..., 0]) == pytest.approx(2 * focal + 5 * 0.2 - 3 / 3, abs=1e-6)


def test_the_matching_is_the_best_of_all():
    """Of each image and level alone, by trying all permutations; with a plain second computation of the costs."""
    (logits, boxes), targets = said(), targets_of([3, 0, 2])
    matches = match(logits, boxes, gathered_truth(targets), weights=Weights())
    assert matches.shape == (B, L, Q) and int((matches != NONE).sum()) == 5 * L
    for image, level in itertools.product(range(B), range(L)):
        own, labels = targets[image]["boxes"], targets[image]["labels"]
        said_of = logits[image, level].detach()[:, labels]
        p = said_of.sigmoid()
        classes = 0.25 * (1 - p) ** 2 * softplus(-said_of) - 0.75 * p**2 * softplus(said_of)
        place = boxes[image, level].detach()
        l1 = (place[:, None] - own[None]).abs().sum(dim=2)
        cost = 2 * classes + 5 * l1 - 2 * generalized_box_iou(corners(place), corners(own))
        ways = itertools.permutations(range(Q), len(own))
        best = min(ways, key=lambda way: sum(float(cost[query, box]) for box, query in enumerate(way)))
        assert pairs_of(matches, image, level) == dict(enumerate(best))


def test_more_boxes_than_queries():
    """Each query has a box, and no box two queries."""
    (logits, boxes), targets = said(queries=2), targets_of([5, 1, 0])
    matches = match(logits, boxes, gathered_truth(targets), weights=Weights())
    for level in range(L):
        assert [len(pairs_of(matches, image, level)) for image in range(B)] == [2, 1, 0]
    assert all(value.isfinite().all() for value in losses_of(logits, boxes, targets).values())


# -------------------------------------------------------------------------------------------------------------- losses
def test_focal_loss_by_hand():
    """Of one image, one query, one class: there, and not there."""
    logit, boxes = torch.tensor(0.7), torch.full((1, 1, 1, 4), 0.5)
    p = float(logit.sigmoid())
    for labels, expected in (([0], -0.25 * (1 - p) ** 2 * math.log(p)), ([], -0.75 * p**2 * math.log(1 - p))):
        target = {"boxes": torch.full((len(labels), 4), 0.5), "labels": torch.tensor(labels, dtype=torch.long)}
        losses = losses_of(logit.view(1, 1, 1, 1), boxes, [target], num_boxes=torch.tensor(2.0))
        assert float(losses["class"]) == pytest.approx(2 * expected / 2, rel=1e-6)
        assert float(losses["l1"]) == 0 and float(losses["giou"]) == pytest.approx(0, abs=1e-6)


def test_distance_and_overlap_by_hand():
    """Boxes apart: no overlap, and 0.4 of the 0.6 x 0.2 that enclose both is neither's."""
    own, other = torch.tensor([0.2, 0.5, 0.2, 0.2]), torch.tensor([0.6, 0.5, 0.2, 0.2])  # 0.1 to 0.3, 0.5 to 0.7
    target = {"boxes": other[None], "labels": torch.tensor([0])}
    losses = losses_of(torch.zeros(1, 1, 1, K), own.view(1, 1, 1, 4), [target])
    assert float(losses["l1"]) == pytest.approx(5 * 0.4)
    assert float(losses["giou"]) == pytest.approx(2 * (1 + 1 / 3))


def test_overlap_is_learned_by_cross_entropy():
    """Boxes that overlap by a third: -1/3 log p - 2/3 log (1 - p), of a weight of 3, divided by two boxes."""
    own, other = torch.tensor([0.4, 0.5, 0.4, 0.4]), torch.tensor([0.6, 0.5, 0.4, 0.4])
    truth = gathered_truth([{"boxes": other[None], "labels": torch.tensor([0])}])
    boxes, ious = own.view(1, 1, 1, 4).requires_grad_(), torch.tensor(0.7).view(1, 1, 1).requires_grad_()
    weights, logits = Weights(2, 0, 0, iou=3), torch.zeros(1, 1, 1, K)
    losses = detection_losses(logits, boxes, truth, weights=weights, num_boxes=torch.tensor(2.0), ious=ious)
    p = 1 / (1 + math.exp(-0.7))
    expected = -math.log(p) / 3 - 2 * math.log(1 - p) / 3
    assert losses["iou"].tolist() == pytest.approx([3 * expected / 2], rel=1e-5)
    losses["iou"].sum().backward()
    assert float(ious.grad) == pytest.approx(3 * (p - 1 / 3) / 2, rel=1e-5) and boxes.grad is None


def test_overlaps_are_plain_sums_over_the_matches():
    """By loops; queries without a box add nothing and learn nothing, in images without boxes, too."""
    (logits, boxes), targets = said(), targets_of([3, 0, 2])
    ious = torch.randn(B, L, Q, generator=torch.Generator().manual_seed(5)).requires_grad_()
    truth, weights = gathered_truth(targets), Weights(iou=2.0)
    matches = match(logits, boxes, truth, weights=weights)
    losses = detection_losses(logits, boxes, truth, weights=weights, num_boxes=ONE, ious=ious)
    assert losses.keys() == {"class", "l1", "giou", "iou"}
    for level in range(L):
        total = 0.0
        for image, query in itertools.product(range(B), range(Q)):
            if (box := int(matches[image, level, query])) != NONE:
                pair = boxes[image, level, query].detach()[None], targets[image]["boxes"][box][None]
                share, x = float(box_iou(*map(corners, pair))), float(ious[image, level, query].detach())
                total += share * math.log1p(math.exp(-x)) + (1 - share) * math.log1p(math.exp(x))
        assert float(losses["iou"][level].detach()) == pytest.approx(2 * total, rel=1e-5)
    losses["iou"].sum().backward()
    assert torch.equal(ious.grad != 0, matches != NONE)


def test_tiny_boxes_keep_their_overlap():
    """A hundred-thousandth of the image, of which half overlaps: no epsilon is as large as its area."""
    own = torch.tensor([0.5, 0.5, 0.004, 0.0025])
    target = {"boxes": torch.tensor([[0.5, 0.5, 0.002, 0.0025]]), "labels": torch.tensor([0])}
    losses = losses_of(torch.zeros(1, 1, 1, K), own.view(1, 1, 1, 4), [target])
    assert float(losses["giou"]) == pytest.approx(2 * 0.5, rel=1e-3)


def test_losses_are_plain_sums():
    """Of every level by itself, by loops over images and queries, divided by what is told."""
    (logits, boxes), targets = said(), targets_of([3, 0, 2])
    matches = match(logits, boxes, gathered_truth(targets), weights=Weights())
    losses = losses_of(logits, boxes, targets, num_boxes=torch.tensor(5.0))
    for level in range(L):
        sums = dict.fromkeys(("class", "l1", "giou"), 0.0)
        for image, query in itertools.product(range(B), range(Q)):
            box = int(matches[image, level, query])
            label = None if box == NONE else int(targets[image]["labels"][box])
            for k, x in enumerate(logits[image, level, query].tolist()):
                p = 1 / (1 + math.exp(-x))
                there, absent = -0.25 * (1 - p) ** 2 * math.log(p), -0.75 * p**2 * math.log(1 - p)
                sums["class"] += there if k == label else absent
            if box != NONE:
                own, other = boxes[image, level, query].detach(), targets[image]["boxes"][box]
                sums["l1"] += float((own - other).abs().sum())
                sums["giou"] += 1 - float(generalized_box_iou(corners(own[None]), corners(other[None])))
        for name, weight in (("class", 2), ("l1", 5), ("giou", 2)):
            assert float(losses[name][level]) == pytest.approx(weight * sums[name] / 5, rel=1e-4), name


def test_permuted_queries_change_nothing():
    (logits, boxes), targets = said(), targets_of([3, 1, 2])
    order = torch.randperm(Q, generator=torch.Generator().manual_seed(0))
    for name, value in losses_of(logits, boxes, targets).items():
        torch.testing.assert_close(losses_of(logits[:, :, order], boxes[:, :, order], targets)[name], value)


def test_permuted_boxes_change_nothing():
    (logits, boxes), targets = said(), targets_of([3, 1, 2])
    turned = [{key: value.flip(0) for key, value in target.items()} for target in targets]
    for name, value in losses_of(logits, boxes, targets).items():
        torch.testing.assert_close(losses_of(logits, boxes, turned)[name], value)


def test_a_batch_of_one_is_a_row_of_a_larger_one():
    (logits, boxes), targets = said(), targets_of([3, 1, 2])
    whole = losses_of(logits, boxes, targets)
    parts = [losses_of(logits[i : i + 1], boxes[i : i + 1], targets[i : i + 1]) for i in range(B)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 2, 0]])
def test_images_without_boxes(counts):
    """Their queries learn that nothing is there; every parameter has a gradient, which DDP asks for."""
    (logits, boxes), targets = said(), targets_of(counts)
    losses = losses_of(logits, boxes, targets)
    sum(value.sum() for value in losses.values()).backward()
    assert bool((logits.grad[0] > 0).all())
    assert boxes.grad is not None and bool(boxes.grad.any()) == any(counts)
    assert any(counts) or not losses["l1"].any() and not losses["giou"].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_what_is_not_finite_is_seen_in_the_loss(where, value):
    """One number of one query, of the level and image it is in; the matching goes on, and the loop is told."""
    (logits, boxes), targets = said(), targets_of([2, 1, 2])
    with torch.no_grad():
        (logits if where == "logits" else boxes)[1, 0, 3, 0] = value
    losses = losses_of(logits, boxes, targets)
    total = sum(losses.values())
    assert total[1].isfinite()
    if math.isnan(value) or where == "logits":
        assert not total[0].isfinite()


def test_everything_not_a_number():
    (logits, boxes), targets = said(), targets_of([2, 1, 2])
    losses = losses_of(logits * math.nan, boxes * math.nan, targets)
    assert all(value.isnan().all() for value in losses.values())


def test_it_is_computed_in_fp32_within_autocast():
    """What a bf16 forward pass says is compared in fp32: sums of a thousand numbers need it."""
    (logits, boxes), targets = said(), targets_of([3, 1, 2])
    low = logits.bfloat16(), boxes.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(*low, targets)
    expected = losses_of(low[0].float(), low[1].float(), targets)
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_weights_are_those_of_the_cost_and_of_the_loss():
    """Without a weight on the boxes the class alone says which query it is."""
    logits = torch.tensor([[-3.0, -3], [3.0, -3]]).view(1, 1, 2, 2)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]).view(1, 1, 2, 4)
    targets = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), "labels": torch.tensor([0])}]
    for weights, query in ((Weights(1.0, 0.0, 0.0), 1), (Weights(0.0, 1.0, 0.0), 0), (Weights(0.0, 0.0, 1.0), 0)):
        assert match(logits, boxes, gathered_truth(targets), weights=weights)[0, 0, query] == 0
        losses = losses_of(logits, boxes, targets, weights=weights)
        assert [bool(value) for value, weight in zip(losses.values(), weights[:3], strict=True) if not weight] == [
            False
        ] * 2
