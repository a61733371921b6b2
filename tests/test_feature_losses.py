"""Losses on features against plain loops, and what leaves them as they are."""

import math

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate, softplus

from pycls_std.core.structures import World
from pycls_std.layers.contrast_memory import ContrastMemory
from pycls_std.layers.feature_adapters import GaussianRegressor, hint_regressor, projection_head
from pycls_std.layers.review import Fusion, Review
from pycls_std.losses.contrast import contrastive_loss
from pycls_std.losses.feature_maps import (
    attention_distance,
    averaged,
    gaussian_distance,
    hierarchical_distance,
    hint_distance,
    selectivity_distance,
    to_smaller_size,
)
from pycls_std.losses.relations import (
    affinity_divergence,
    correlation_distance,
    relational_distance,
    similarity_distance,
)
from pycls_std.measure.operations import Operations
from pycls_std.terms.feature import Feature

GENERATOR = torch.Generator().manual_seed(0)
MAPS = [attention_distance, selectivity_distance, similarity_distance]
VECTORS = [affinity_divergence, relational_distance, similarity_distance]


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def orthogonal(size):
    """An orthogonal matrix."""
    return torch.linalg.qr(torch.randn(size, size, generator=GENERATOR, dtype=torch.float64))[0].float()


def turned(maps):
    """The channels of maps through an orthogonal matrix, at each place."""
    return torch.einsum("dc,bchw->bdhw", orthogonal(maps.shape[1]), maps)


def length(values):
    return math.sqrt(sum(float(value) ** 2 for value in values))


def norm(numbers):
    size = length(numbers)
    return [float(number) / size for number in numbers]


# ---------------------------------------------------------------------------------------------------------------- maps
def test_the_larger_map_is_averaged_to_the_smaller():
    large, small = draw(2, 3, 4, 4), draw(2, 5, 2, 2)
    for pair in ((large, small), (small, large)):
        found = {each.shape[1]: each for each in to_smaller_size(*pair)}
        assert torch.equal(found[5], small)
        expected = large.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
        torch.testing.assert_close(found[3], expected)
    tall, wide = to_smaller_size(draw(1, 1, 4, 2), draw(1, 1, 2, 6))
    assert tall.shape[2:] == wide.shape[2:] == (2, 2)


@pytest.mark.parametrize(
    ("size", "operation"), [((4, 2), "avg_pool2d"), ((1, 1), "avg_pool2d"), ((4, 3), "adaptive_avg_pool2d")]
)
def test_the_gradient_of_an_average_is_deterministic_on_cuda_where_it_can_be(size, operation):
    """adaptive_avg_pool2d's is not: CUDA.DETERMINISTIC refuses it."""
    maps = draw(2, 3, 8, 8).requires_grad_()
    with Operations() as seen:
        found = averaged(maps, size)
    assert list(seen.operations) == [operation]
    expected = adaptive_avg_pool2d(maps, size)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(each.square().sum(), maps)[0] for each in (found, expected))
    torch.testing.assert_close(*gradients)


def test_hints_are_compared_number_by_number():
    student, teacher = draw(2, 3, 4, 4), draw(2, 3, 4, 4)
    pairs = zip(student.flatten(), teacher.flatten(), strict=True)
    assert float(hint_distance(student, teacher)) == pytest.approx(sum(float(a - b) ** 2 for a, b in pairs) / 96)


def test_attention_is_compared_image_by_image():
    student, teacher, total = draw(3, 4, 2, 3), draw(3, 6, 2, 3), 0.0
    for image in range(3):
        sides = []
        for maps in (student, teacher):
            places = [
                sum(float(c[y, x]) ** 2 for c in maps[image]) / len(maps[image]) for y in (0, 1) for x in range(3)
            ]
            sides.append(norm(places))
        total += sum((a - b) ** 2 for a, b in zip(*sides, strict=True))
    assert float(attention_distance(student, teacher)) == pytest.approx(total / 18, rel=1e-4)


def test_selectivity_is_a_mean_discrepancy_of_channels():
    student, teacher = draw(2, 3, 2, 2), draw(2, 4, 2, 2)

    def kernel(image, first, second):
        rows = [[norm(channel.flatten()) for channel in maps[image]] for maps in (first, second)]
        values = [sum(x * y for x, y in zip(a, b, strict=True)) ** 2 for a in rows[0] for b in rows[1]]
        return sum(values) / len(values)

    expected = sum(
        kernel(i, teacher, teacher) + kernel(i, student, student) - 2 * kernel(i, student, teacher) for i in (0, 1)
    )
    assert float(selectivity_distance(student, teacher)) == pytest.approx(expected / 2, rel=1e-4)
    assert float(selectivity_distance(student, student[:, [2, 0, 1]])) == pytest.approx(0, abs=1e-7)
    assert float(selectivity_distance(student, teacher)) > 0


def test_gaussian_distance_is_a_negative_log_likelihood():
    """torch's own, without the constant log(2 pi) / 2."""
    mean, target, variance = draw(2, 3, 2, 2), draw(2, 3, 2, 2), torch.tensor([0.5, 1.0, 4.0])
    normal = torch.distributions.Normal(mean, variance.sqrt().view(1, 3, 1, 1))
    expected = -normal.log_prob(target).mean() - math.log(2 * math.pi) / 2
    torch.testing.assert_close(gaussian_distance(mean, variance, target), expected)


@pytest.mark.parametrize(("side", "weights"), [(8, [1, 1 / 2, 1 / 4, 1 / 8]), (4, [1, 1 / 2, 1 / 4]), (1, [1])])
def test_hierarchical_distance_is_a_weighted_mean_over_the_pyramid(side, weights):
    """At 4 px the levels are the whole, 2x2 and 1x1, which then weigh 1/2 and 1/4."""
    student, teacher = draw(2, 3, side, side), draw(2, 3, side, side)
    levels = [side, *(level for level in (4, 2, 1) if level < side)]
    total = 0.0
    for level, weight in zip(levels, weights, strict=True):
        step = side // level
        pair = [maps.unfold(2, step, step).unfold(3, step, step).mean(dim=(4, 5)) for maps in (student, teacher)]
        total += weight * float((pair[0] - pair[1]).square().mean())
    assert float(hierarchical_distance(student, teacher)) == pytest.approx(total / sum(weights), rel=1e-4)


@pytest.mark.parametrize("loss", MAPS)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_scale_of_the_maps_changes_nothing(loss, side):
    maps = {"student": draw(4, 6, 4, 4), "teacher": draw(4, 8, 4, 4)}
    before = loss(**maps)
    torch.testing.assert_close(loss(**(maps | {side: 3.7 * maps[side]})), before, rtol=1e-4, atol=1e-7)
    assert float(before) > 1e-4
    assert float(loss(maps["student"], 2 * maps["student"])) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("loss", [attention_distance, similarity_distance])
def test_an_orthogonal_map_of_the_channels_changes_nothing(loss):
    student, teacher = draw(4, 6, 4, 4), draw(4, 8, 4, 4)
    torch.testing.assert_close(loss(turned(student), turned(teacher)), loss(student, teacher), rtol=1e-4, atol=1e-7)
    assert float(loss(student, turned(student))) == pytest.approx(0, abs=1e-7)
    assert not torch.allclose(loss(turned(student).relu(), teacher), loss(student, teacher), rtol=1e-2)


# ---------------------------------------------------------------------------------------------------- images of a batch
def test_similarity_is_compared_pair_by_pair():
    student, teacher = draw(4, 3, 2, 2), draw(4, 5, 1, 1)
    sides = []
    for maps in (student, teacher):
        flat = maps.flatten(1)
        sides.append([norm([(flat[i] * flat[j]).sum() for j in range(4)]) for i in range(4)])
    expected = sum((sides[0][i][j] - sides[1][i][j]) ** 2 for i in range(4) for j in range(4)) / 16
    assert float(similarity_distance(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_affinities_are_compared_by_their_divergence():
    student, teacher = draw(5, 3), draw(5, 7)

    def affinities(features):
        rows = []
        for i in range(5):
            cosines = [float(features[i] @ features[j]) / length(features[i]) / length(features[j]) for j in range(5)]
            scaled = [(c + 1) / 2 for c in cosines]
            rows.append([s / sum(scaled) for s in scaled])
        return rows

    q, p = affinities(student), affinities(teacher)
    expected = sum(p[i][j] * math.log(p[i][j] / q[i][j]) for i in range(5) for j in range(5)) / 25
    assert float(affinity_divergence(student, teacher)) == pytest.approx(expected, rel=1e-3)


def smooth(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_relations_are_distances_of_pairs_and_angles_of_triples():
    student, teacher, count = draw(4, 3), draw(4, 6), 4

    def of(features):
        between = [[length(features[j] - features[i]) for j in range(count)] for i in range(count)]
        apart = [d for row in between for d in row if d > 0]
        distances = [d / (sum(apart) / len(apart)) for row in between for d in row]
        angles = []
        for i in range(count):
            unit = [(features[j] - features[i]) / max(between[i][j], 1e-9) for j in range(count)]
            angles += [float(unit[j] @ unit[k]) for j in range(count) for k in range(count)]
        return distances, angles

    (d, a), (e, b) = of(student), of(teacher)
    distance = sum(smooth(x - y) for x, y in zip(d, e, strict=True)) / 16
    angle = sum(smooth(x - y) for x, y in zip(a, b, strict=True)) / 64
    assert float(relational_distance(student, teacher)) == pytest.approx(25 * distance + 50 * angle, rel=1e-4)
    parts = {"distance_weight": 1.0, "angle_weight": 0.0}, {"distance_weight": 0.0, "angle_weight": 1.0}
    found = [float(relational_distance(student, teacher, **part)) for part in parts]
    assert found == pytest.approx([distance, angle], rel=1e-4)


@pytest.mark.parametrize("loss", VECTORS)
def test_an_orthogonal_map_and_a_scale_of_vectors_change_nothing(loss):
    student, teacher = draw(6, 8), draw(6, 12)
    before = loss(student, teacher)
    after = loss(2.5 * student @ orthogonal(8), 0.3 * teacher @ orthogonal(12))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-7)
    assert float(loss(student, student @ orthogonal(8))) == pytest.approx(0, abs=1e-6)
    assert not torch.allclose(loss(student.relu(), teacher), before, rtol=1e-2)


def test_relations_do_not_change_with_a_shift():
    student, teacher = draw(6, 8), draw(6, 12)
    moved = relational_distance(student + draw(8), teacher - 3 * draw(12))
    torch.testing.assert_close(moved, relational_distance(student, teacher), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", VECTORS)
@pytest.mark.parametrize("kind", ["same", "one", "zero"])
def test_images_that_are_alike_give_no_infinite_gradient(loss, kind):
    """Two views that came out the same, a batch of one, features that are all 0."""
    student = {"same": draw(3, 4)[[0, 1, 1, 2]], "one": draw(1, 4), "zero": torch.zeros(4, 4)}[kind].requires_grad_()
    value = loss(student, draw(len(student), 5))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_correlations_are_compared_with_one_and_with_nothing():
    student, teacher, kappa = draw(9, 3), draw(9, 3), 0.25
    total = 0.0
    for i in range(3):
        for j in range(3):
            pair = (teacher[:, i], student[:, j])
            scores = [(x - x.mean()) / (x.std(correction=0) + 1e-5) for x in pair]
            correlation = float((scores[0] * scores[1]).sum()) / 9
            total += (correlation - 1) ** 2 if i == j else kappa * correlation**2
    assert float(correlation_distance(student, teacher, kappa=kappa)) == pytest.approx(total, rel=1e-4)
    moved = correlation_distance(4 * student + 3, 0.1 * teacher - 1, kappa=kappa)
    assert float(moved) == pytest.approx(total, rel=1e-2)
    assert float(correlation_distance(-teacher, teacher, kappa=0.0)) == pytest.approx(12, rel=1e-3)
    assert float(correlation_distance(teacher, teacher, kappa=0.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [*MAPS, affinity_divergence, relational_distance, correlation_distance])
def test_numbers_are_those_of_fp32_within_autocast(precision, loss):
    shape = (8, 16, 4, 4) if loss in MAPS else (8, 16)
    student, teacher = 30 * draw(*shape), 30 * draw(*shape)
    expected = loss(student, teacher)
    with torch.autocast("cpu", precision):
        found = loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------------------------ adapters
def test_adapters_have_the_shapes_of_the_teacher():
    maps = draw(2, 6, 4, 4)
    assert hint_regressor(6, 9)(maps).shape == (2, 9, 4, 4) and hint_regressor(6, 9)(maps).min() >= 0
    assert projection_head(6, 9)(draw(4, 6)).shape == (4, 9)
    assert sum(p.numel() for p in projection_head(6, 9).parameters()) == 6 * 12 + 2 * 12 + 12 * 9
    regressor = GaussianRegressor(6, 9, variance=5.0)
    mean, variance = regressor(maps)
    assert mean.shape == (2, 9, 4, 4)
    torch.testing.assert_close(variance, torch.full((9,), 5.0))
    assert sum(p.numel() for p in regressor.parameters()) == 6 * 9 + 2 * 81 + 9
    with torch.no_grad():
        regressor.raw_variance.fill_(-50.0)
    torch.testing.assert_close(regressor(maps)[1], softplus(torch.full((9,), -50.0)) + 1e-5)


def test_a_fusion_weighs_a_stage_and_what_comes_later_at_every_place():
    fusion = Fusion(6, 4, 9, last=False).eval()
    features, later = draw(2, 6, 4, 4), draw(2, 4, 2, 2)
    result, passed = fusion(features, later, (8, 8))
    own = fusion.enter[1](fusion.enter[0](features))
    grown = interpolate(later, (4, 4), mode="nearest")
    weights = torch.sigmoid(fusion.weights[0](torch.cat([own, grown], dim=1)))
    mixed = torch.stack([own[i] * weights[i, 0] + grown[i] * weights[i, 1] for i in range(2)])
    torch.testing.assert_close(passed, mixed.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    torch.testing.assert_close(result, fusion.leave[1](fusion.leave[0](passed)))


def test_a_review_goes_from_the_last_stage_to_the_first():
    """Shapes of the teacher; the first stage depends on all, the pooled one on itself alone."""
    student, teacher = [(6, 8, 8), (12, 4, 4), (12, 1, 1)], [(5, 8, 8), (7, 4, 4), (7, 1, 1)]
    review = Review(student, teacher).eval()
    maps = [draw(2, *shape).requires_grad_() for shape in student]
    results = review(maps)
    assert [tuple(each.shape[1:]) for each in results] == teacher
    for number, result in enumerate(results):
        gradients = torch.autograd.grad(result.sum(), maps, allow_unused=True, retain_graph=True)
        assert [gradient is not None for gradient in gradients] == [other >= number for other in range(3)]
    assert Review([(600, 2, 2), (600, 1, 1)], teacher[:2]).stages[0].enter[0].out_channels == 512


# ------------------------------------------------------------------------------------------------------------ contrast
def test_contrast_is_a_cross_entropy_of_two_classes():
    """With the noise K / N beside the density p: log p / (p + K / N) of the pair, log (K / N) / (p + K / N) of each."""
    positive, negatives = draw(3).exp(), draw(3, 4).exp()
    noise, total = 4 / 50, 0.0
    for i in range(3):
        total -= math.log(positive[i] / (positive[i] + noise))
        total -= sum(math.log(noise / (p + noise)) for p in negatives[i])
    assert float(contrastive_loss(positive, negatives, images=50)) == pytest.approx(total / 3, rel=1e-5)


def embeddings(count=4, channels=8):
    return torch.nn.functional.normalize(draw(count, channels))


def memory_of(images=20, negatives=30, momentum=0.5, temperature=0.5):
    torch.manual_seed(0)
    return ContrastMemory(images, 8, negatives=negatives, temperature=temperature, momentum=momentum)


def test_scores_are_those_of_the_memory_before_the_batch():
    memory = memory_of()
    before = {name: value.clone() for name, value in memory.named_buffers()}
    student, teacher, index = embeddings(), embeddings(), torch.tensor([3, 7, 11, 19])
    found = memory(student, teacher, index, torch.tensor([0, 1, 0, 2]), World())
    for own, other, (positive, negatives) in zip((student, teacher), ("teacher", "student"), found, strict=True):
        each = [[math.exp(float(v @ m) / 0.5) for m in before[other]] for v in own]
        ratio = [float(positive[i]) / each[i][index[i]] for i in range(4)]
        scale = 1 / ratio[0]
        assert ratio == pytest.approx([ratio[0]] * 4, rel=1e-4)
        assert negatives.shape == (4, 30)
        sums = float(positive.sum() + negatives.sum()) * scale
        assert scale == pytest.approx(20 * sums / (4 * 31), rel=1e-4), "the mean of the first batch, times the images"
        known = [[value / scale for value in row] for row in each]
        for i, row in enumerate(negatives.tolist()):
            assert all(min(abs(value - one) for one in known[i]) < 1e-4 * value for value in row)
    kept = memory.scales.clone()
    memory(embeddings(), embeddings(), index, torch.tensor([0, 1, 0, 2]), World())
    assert torch.equal(memory.scales, kept), "the scale is that of the first batch"


def test_the_lowest_temperature_overflows_nothing():
    """exp(1 / 0.01) is too large for fp32, exp(-1 / 0.01) too small: of what is in the memory, and of its opposite."""
    least = Feature.OPTIONS["CRD_TEMPERATURE"].least
    memory = memory_of(temperature=least)
    unit = torch.nn.functional.normalize(memory.student)
    memory.student.copy_(unit), memory.teacher.copy_(unit)
    own = torch.cat([unit[:1], -unit[1:2]]).requires_grad_()
    for _ in range(2):  # with the scale of this batch, then with a memory that holds them
        found = memory(own, own.detach(), torch.arange(2), torch.arange(2), World())
        (gradient,) = torch.autograd.grad(sum(contrastive_loss(*each, images=20) for each in found), own)
        assert all(torch.isfinite(value).all() for each in (*found, (gradient,)) for value in each)
        assert min(float(value.detach().min()) for each in found for value in each) > 0


def test_the_memory_moves_to_what_it_saw():
    memory = memory_of(momentum=0.25)
    before = {name: value.clone() for name, value in memory.named_buffers()}
    student, teacher, index = embeddings(), embeddings(), torch.tensor([3, 7, 3, 19])  # image 3 in two views
    memory(student, teacher, index, torch.tensor([0, 1, 0, 2]), World())
    for name, seen in (("student", student), ("teacher", teacher)):
        own = getattr(memory, name)
        for place in range(20):
            views = [seen[i] for i in range(4) if index[i] == place]
            if not views:
                assert torch.equal(own[place], before[name][place])
                continue
            moved = 0.25 * before[name][place] + 0.75 * sum(views) / len(views)
            torch.testing.assert_close(own[place], moved / moved.norm())
    assert [int(c) for c in memory.classes[[3, 7, 19]]] == [0, 1, 2]
    assert int((memory.classes == -1).sum()) == 17


def test_negatives_are_of_other_classes_and_all_as_likely():
    """6 images of class 0, 2 of class 1, 12 not seen yet: 14 others for the first, 18 for the second."""
    memory = memory_of(negatives=20_000)
    memory.classes[torch.tensor([0, 5, 6, 9, 13, 18])] = 0
    memory.classes[torch.tensor([4, 19])] = 1
    drawn = memory._draw(torch.tensor([0, 1]))
    for row, label, others in zip(drawn, (0, 1), (14, 18), strict=True):
        counts = torch.bincount(row, minlength=20)
        assert not counts[memory.classes == label].any()
        found = counts[memory.classes != label].double() / 20_000
        assert len(found) == others
        assert (found - 1 / others).abs().max() < 5 * math.sqrt(1 / others / 20_000)


def test_a_class_that_is_all_there_is_does_not_crash():
    memory = memory_of(images=4)
    memory(embeddings(), embeddings(), torch.arange(4), torch.zeros(4, dtype=torch.long), World())
    assert memory._draw(torch.zeros(2, dtype=torch.long)).max() < 4


def test_gradients_of_contrast_reach_both_embeddings_and_not_the_memory():
    memory = memory_of()
    student, teacher = embeddings().requires_grad_(), embeddings().requires_grad_()
    found = memory(student, teacher, torch.arange(4), torch.arange(4), World())
    sum(contrastive_loss(*each, images=20) for each in found).backward()
    assert student.grad.abs().max() > 0 and teacher.grad.abs().max() > 0
    assert not any(buffer.requires_grad for buffer in memory.buffers())


def test_contrast_is_learned():
    """Embeddings of ten images come to be told from each other; by chance the loss is log(1 + K) + 1 on either side."""
    torch.manual_seed(0)
    memory = ContrastMemory(10, 8, negatives=64, temperature=0.5, momentum=0.5)
    sides = [torch.nn.Embedding(10, 8) for _ in range(2)]
    optimizer = torch.optim.SGD([*sides[0].parameters(), *sides[1].parameters()], lr=1.0)
    index, found = torch.arange(10), []
    for _ in range(100):
        pair = [torch.nn.functional.normalize(side(index)) for side in sides]
        loss = sum(contrastive_loss(*each, images=10) for each in memory(*pair, index, index, World()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[0] == pytest.approx(2 * (math.log(65) + 1), rel=0.25)
    assert found[-1] < 0.8 * found[0]
    cosines = torch.nn.functional.normalize(sides[0].weight) @ torch.nn.functional.normalize(sides[1].weight).T
    assert (cosines.argmax(dim=1) == index).all()
