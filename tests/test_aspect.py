"""Batches of images of a like ratio of sides: their groups, the order of an epoch, a detector's loader."""

from collections import Counter

import numpy as np
import pytest
import torch
from coco_files import write_coco
from torch.utils.data import Subset

from pycls_std.builders.data import build_data, build_task
from pycls_std.core.structures import World
from pycls_std.datasets.aspect import aspect_groups, known_sizes
from pycls_std.datasets.coco import coco
from pycls_std.datasets.loader import EpochSampler
from pycls_std.datasets.shapes import Shapes

GROUPS = np.array([0] * 12 + [1] * 18 + [2] * 2)  # 32 images; of a batch of 5 each group leaves something


def sampler(positions=range(5), groups=GROUPS, epoch=0, seed=3, **options):
    made = EpochSampler(32, seed=seed, batch_size=5, positions=list(positions), groups=groups, **options)
    made.epoch = epoch
    return made


def batches_of(addresses, size=5):
    rows = list(addresses)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


# -------------------------------------------------------------------------------------------------------------- groups
def test_two_groups_are_wide_and_tall():
    sizes = np.array([[480, 640], [640, 480], [500, 500], [10, 1000], [1000, 10]])
    assert aspect_groups(sizes, 2).tolist() == [0, 1, 1, 0, 1]


def test_borders_are_at_equal_steps_of_the_logarithm():
    """Of four groups at 1 / sqrt 2, 1 and sqrt 2, of three at a half to the third, and two to the third."""
    ratios = np.array([0.5, 0.7, 0.71, 0.99, 1.0, 1.41, 1.42, 5])
    sizes = np.stack([ratios * 1000, np.full(8, 1000)], axis=1)
    assert aspect_groups(sizes, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert aspect_groups(sizes, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert aspect_groups(sizes, 1).tolist() == [0] * 8


def test_sizes_are_known_without_reading_images(tmp_path):
    shapes = Shapes(9, 0)
    expected = [shapes[index][1]["size"].tolist() for index in range(9)]
    assert known_sizes(shapes).tolist() == expected
    assert known_sizes(Subset(Subset(shapes, [7, 2, 5]), [2, 0])).tolist() == [expected[5], expected[7]]
    written = coco(root=str(write_coco(tmp_path / "coco", train=9)), split="train")[0]
    assert known_sizes(written).tolist() == expected
    with pytest.raises(ValueError, match="^list does not know the sizes of its images"):
        known_sizes([1])


# --------------------------------------------------------------------------------------------------------------- order
def test_without_groups_the_order_is_that_of_before():
    """One permutation of all, from (seed, epoch), cut into batches."""
    for epoch, repeats in ((0, 1), (2, 1), (1, 3)):
        order = np.random.default_rng((3, epoch)).permutation(32).repeat(repeats)
        expected = [(epoch * repeats + place % repeats, int(order[place])) for place in range(30)]
        assert list(sampler(groups=None, epoch=epoch, repeats=repeats)) == expected


def test_batches_are_of_one_group_but_those_of_what_is_left():
    """Of 12, 18 and 2 images all but two are seen, which any group may lack; each group has whole batches."""
    for epoch in range(4):
        found = batches_of(sampler(epoch=epoch))
        kinds = [set(GROUPS[[i for _, i in batch]].tolist()) for batch in found]
        seen = Counter(GROUPS[[i for batch in found for _, i in batch]].tolist())
        assert len(found) == 6 and seen.total() == 30
        assert all(kinds.count({group}) == number // 5 for group, number in seen.items())
        assert max(Counter(index for batch in found for _, index in batch).values()) == 1
        assert len(sampler()) == 30 == len(sampler(groups=None)), "as many iterations as without groups"


def test_the_order_is_a_function_of_seed_and_epoch():
    first = list(sampler(epoch=1))
    assert first == list(sampler(epoch=1))
    assert first not in ([*sampler(epoch=0)], [*sampler(epoch=1, seed=4)], [*sampler(epoch=1, groups=None)])
    seen = {index for epoch in range(20) for _, index in sampler(epoch=epoch)}
    assert seen == set(range(32)), "a group that fills no batch, and has no more than is left out, is seen, too"
    kinds = [tuple(GROUPS[batch[0][1]] for batch in batches_of(sampler(epoch=epoch))) for epoch in range(9)]
    assert len(set(kinds)) > 3, "groups do not come in an order of their own"


def test_repeats_are_other_views_of_the_image():
    found = list(sampler(repeats=2, epoch=3))
    assert len(set(found)) == 30 and {view for view, _ in found} == {6, 7}
    assert set(Counter(index for _, index in found).values()) <= {1, 2}


def test_processes_share_the_batches():
    whole = batches_of(sampler(epoch=1))
    parts = [batches_of(sampler(positions, epoch=1), len(positions)) for positions in ([0, 3], [1, 2, 4])]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert [batch[0], batch[3]] == first and [batch[1], batch[2], batch[4]] == second


# -------------------------------------------------------------------------------------------------------------- a task
class Second(World):
    """The second of two processes."""

    rank, size = 1, 2

    def positions(self, batch_size):
        return list(range(batch_size // 2, batch_size))


def padding(data):
    """Share of the batches of an epoch that is padding."""
    masks = [loaded.images.mask for loaded in data.train]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_a_detector_has_less_padding(load):
    """The same number of batches, held-out images left out, and every process its share."""
    own = {"TRAIN__BATCH_SIZE": 8, "DATA__VAL_FRACTION": 0.2, "DATA__IMAGE_SIZE": 32, "DETECTION__CROP": False}
    own |= {"DETECTION__MULTI_SCALE": False}
    plain, grouped = (build_data(load("debug/detection_debug", **own, DETECTION__ASPECT_GROUPS=n)) for n in (0, 6))
    assert len(plain.train) == len(grouped.train) == 12
    assert padding(grouped) < 0.8 * padding(plain)
    sizes = known_sizes(grouped.train.dataset.dataset)
    assert len(sizes) == 102 and torch.equal(
        torch.from_numpy(grouped.train.sampler.groups), torch.from_numpy(aspect_groups(sizes, 6))
    )
    half = build_data(load("debug/detection_debug", **own, DETECTION__ASPECT_GROUPS=6), world=Second())
    for own_share, loaded in zip(half.train, grouped.train, strict=True):
        assert torch.equal(own_share.index, loaded.index[4:])


def test_a_dataset_that_knows_no_sizes_is_refused(load):
    task = build_task(load("debug/detection_debug", DETECTION__ASPECT_GROUPS=2), 3)
    with pytest.raises(ValueError, match="^DETECTION.ASPECT_GROUPS is 2: list does not know the sizes"):
        task.groups([])
    assert build_task(load("debug/detection_debug"), 3).groups([]) is None
