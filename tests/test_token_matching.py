"""Token matching: its forms against plain formulas, masks, projections, whom gradients reach, processes, and errors."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from methods import Method, batch, options_of, two_steps
from torch.nn.functional import interpolate

from pycls_std import config, runner
from pycls_std.core.structures import Batch, Loaded, Output, Padded, Progress, World
from pycls_std.layers.orthogonal import MAPS
from pycls_std.layers.padding import mask_at
from pycls_std.layers.projection import PROJECTIONS, ChannelScale
from pycls_std.losses.token_matching import DISTANCES, standardize_tokens, token_distance
from pycls_std.models.taps import TapShape
from pycls_std.terms.base import RunDescription
from pycls_std.terms.tokens import Form, Tokens

START = Progress(0, 0, 1, 1)
PLAIN = Batch(torch.zeros(2, 3, 32, 32), None, None)
# A detector of 8 channels in its neck, 5 queries, 3 levels, for images of 32 px.
SIZES = {"stages.0": (4, 8, 8)} | {f"neck.maps.{i}": (8, side, side) for i, side in enumerate((4, 3, 2, 2))}
SIZES |= {"neck.queries": (8, 1, 5), "neck.decoder": (8, 3, 5)}
NAMES = [name for name in SIZES if name.startswith("neck")]


def sized(sizes=SIZES, **changes):
    taps = {name: TapShape(*shape) for name, shape in (sizes | changes).items()}
    return SimpleNamespace(taps=taps, queries={"neck.queries", "neck.decoder"} & taps.keys())


def wide(channels, sizes=SIZES):
    return {name: (channels, *shape[1:]) for name, shape in sizes.items()}


def build(load, trainer="token_matching", student=None, teachers=None, **overrides):
    """The term as the trainer's preset and options of section TOKENS build it, for detectors of these sizes."""
    torch.manual_seed(0)
    own = {f"TOKENS__{key}": value for key, value in overrides.items()}
    if trainer == "vkd":  # what it is with TASK.NAME detection
        trainer, own = "baseline", {"TOKENS__WEIGHT": 4.0} | own
    cfg = load("debug/base_debug", TRAINER=trainer, **own)
    teachers = [sized()] if teachers is None else teachers
    return Tokens.from_cfg(cfg, RunDescription(None, student or sized(), teachers), None)


def output(channels=8, seed=0, size=2, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)
    shapes = wide(channels, sizes).items()
    return Output({}, {name: 2 + 3 * torch.randn(size, *shape, generator=generator) for name, shape in shapes})


def value(term, student, teacher, data=PLAIN):
    return float(term(student, [teacher], data, START)["tokens"].detach())


def tokens(features):
    """Row by row, as (B, H, W, C) is read."""
    return torch.stack(
        [image[:, y, x] for image in features for y in range(image.shape[1]) for x in range(image.shape[2])]
    )


def smooth_l1(first, second):
    """Entry by entry: d^2 / 2 for a distance of less than 1, else d - 1/2."""
    d = (first - second).abs()
    return torch.where(d < 1, d * d / 2, d - 0.5).mean()


def euclidean(first, second):
    return torch.stack([((a - b) ** 2).sum().sqrt() for a, b in zip(first, second, strict=True)]).mean()


def standard(rows):
    return (rows - rows.mean(0)) / rows.std(0)


# ------------------------------------------------------------------------------------------------- the published forms
def test_vkd_as_published(load):
    """6 taps, orthonormal square projections with scale and shift, both sides standardized, smooth L1, times 4."""
    term = build(load, "vkd", EPS=0, MASK="false", ALL_PROCESSES="false")
    student, teacher = output(), output(seed=1)
    with torch.no_grad():
        for projection in term.projections:
            projection[1].weight.uniform_(0.5, 2)
            projection[1].bias.normal_()
        expected = 0
        for name, (projection, scale) in zip(NAMES, term.projections, strict=True):
            projected = tokens(student.features[name]) @ projection.weight().T * scale.weight + scale.bias
            expected += smooth_l1(standard(projected), standard(tokens(teacher.features[name])))
    assert list(term(student, [teacher], PLAIN, START)) == ["tokens"]
    assert value(term, student, teacher) == pytest.approx(4 * float(expected), rel=1e-5)
    assert sum(p.numel() for p in term.parameters()) == 6 * (8 * 8 + 8 + 8)


def test_token_matching_as_published(load):
    """ViDT: root of the sum of mean lengths of differences, the decoder's times its levels; nothing is projected."""
    term = build(load, EPS=0, MASK="false", ALL_PROCESSES="false")
    student, teacher = output(), output(seed=1)
    lengths = {name: euclidean(tokens(student.features[name]), tokens(teacher.features[name])) for name in NAMES}
    expected = 4 * math.sqrt(sum(lengths.values()) + 2 * lengths["neck.decoder"])
    assert value(term, student, teacher) == pytest.approx(expected, rel=1e-5)
    assert list(term.parameters()) == []


def test_every_other_form(load):
    """What each option changes, alone."""
    student, teacher = output(), output(seed=1)
    plain = {"PROJECTION": "none", "NORM": "none", "STUDENT_MAPS": "[]", "STUDENT_QUERIES": "[neck.decoder]"}
    own, other = (tokens(side.features["neck.decoder"]) for side in (student, teacher))
    for options, expected in (
        ({}, smooth_l1(own, other)),
        ({"DISTANCE": "euclidean"}, euclidean(own, other)),
        ({"NORM": "standardize", "EPS": 0}, smooth_l1(standard(own), standard(other))),
        ({"LEVELS": "sum"}, 3 * smooth_l1(own, other)),
        ({"ROOT": "true"}, smooth_l1(own, other).sqrt()),
        ({"WEIGHT": 0.5}, smooth_l1(own, other) / 8),
    ):
        term = build(load, "vkd", **(plain | options))
        assert value(term, student, teacher) == pytest.approx(4 * float(expected), rel=1e-5)


def test_what_the_options_list_is_what_there_is():
    assert set(Tokens.OPTIONS["MAP"].choices) == {"auto", *MAPS}
    assert set(Tokens.OPTIONS["PROJECTION"].choices) == set(PROJECTIONS)
    assert set(Tokens.OPTIONS["DISTANCE"].choices) == set(DISTANCES)
    assert set(Form._fields) < {key.lower() for key in Tokens.OPTIONS}


# --------------------------------------------------------------------------------------------------------------- epsilo
def test_eps_stands_beside_the_variance():
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    expected = (rows - rows.mean(0)) / (rows.var(0) + 0.25).sqrt()
    torch.testing.assert_close(standardize_tokens(rows, None, World(), eps=0.25), expected)


@pytest.mark.parametrize("eps", [0, 1e-5])
def test_a_channel_that_does_not_vary(load, eps):
    """NaN in the published form; 0 with an epsilon, and the loss and its gradient are numbers."""
    term = build(load, "vkd", EPS=eps, PROJECTION="none")
    student, teacher = output(), output(seed=1)
    for side in (student, teacher):
        side.features["neck.maps.1"][:, 3] = 0.75
    own = student.features["neck.maps.1"].requires_grad_()
    loss = term(student, [teacher], PLAIN, START)["tokens"]
    loss.backward()
    assert bool(loss.isfinite()) == bool(own.grad.isfinite().all()) == (eps > 0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_student_that_is_its_teacher(load, distance):
    """The root of 0 has a gradient of 0, and not NaN."""
    student = output()
    own = student.features["neck.decoder"].requires_grad_()
    loss = build(load, DISTANCE=distance)(student, [output()], PLAIN, START)["tokens"]
    loss.backward()
    assert float(loss.detach()) < 1e-15 and not own.grad.any()


# ------------------------------------------------------------------------------------------------------------------ mas
def padded(side=32):
    """The first image is whole, the second has a third of its height and two thirds of its width."""
    mask = torch.zeros(2, side, side, dtype=torch.bool)
    mask[0], mask[1, : side // 3, : 2 * side // 3] = True, True
    return Batch(Padded(torch.zeros(2, 3, side, side), mask), None, None)


@pytest.mark.parametrize("trainer", ["vkd", "token_matching"])
def test_padding_is_left_out(load, trainer):
    """Of maps, as if its tokens were not there; nothing of the queries."""
    data, student, teacher = padded(), output(), output(seed=1)
    term = build(load, trainer, EPS=0, STUDENT_MAPS="[neck.maps.0]", PROJECTION="none", LEVELS="mean", ROOT="false")
    where = mask_at(data.images.mask, (4, 4)).flatten()
    assert 16 < where.sum() < 32
    form, norm = (smooth_l1, standard) if trainer == "vkd" else (euclidean, lambda rows: rows)
    expected = 0
    for name in ("neck.maps.0", "neck.queries", "neck.decoder"):
        own, other = (tokens(side.features[name]) for side in (student, teacher))
        kept = where if name == "neck.maps.0" else slice(None)
        expected += form(norm(own[kept]), norm(other[kept]))
    assert value(term, student, teacher, data) == pytest.approx(4 * float(expected), rel=1e-5)


def test_more_padding_changes_nothing_unless_it_is_counted(load):
    student, teacher = output(), output(seed=1)
    data, more = padded(), []
    for side, fill in ((student, 5.0), (teacher, -7.0)):
        maps = side.features | {
            "neck.maps.0": torch.nn.functional.pad(side.features["neck.maps.0"], (0, 4, 0, 4), value=fill)
        }
        more.append(Output({}, maps))
    wider = Batch(Padded(*(torch.nn.functional.pad(part, (0, 32, 0, 32)) for part in data.images)), None, None)
    for masked in (True, False):
        term = build(load, "vkd", STUDENT_MAPS="[neck.maps.0]", MASK=masked)
        small, large = value(term, student, teacher, data), value(term, *more, wider)
        assert (small == pytest.approx(large, rel=1e-5)) == masked


def test_a_map_that_is_all_padding_or_one_token_has_a_loss():
    keep = torch.zeros(6)
    for kept in (0, 1):
        keep[:kept] = 1
        own = torch.randn(6, 3, requires_grad=True)
        loss = token_distance(own, torch.randn(6, 3), keep, eps=1e-5)
        loss.backward()
        assert float(loss.detach()) == 0 and own.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------ students, teach
@pytest.mark.parametrize(("own", "other"), [(8, 16), (16, 8)])
def test_a_teacher_of_another_width(load, own, other):
    """Columns, or rows, are orthonormal; the loss is that of the formula."""
    term = build(load, "vkd", student=sized(wide(own)), teachers=[sized(wide(other))])
    student, teacher = output(own), output(other, seed=1)
    expected = 0
    for name, (projection, _) in zip(NAMES, term.projections, strict=True):
        weight = projection.weight().detach()
        assert weight.shape == (other, own)
        tall = weight if other > own else weight.T
        torch.testing.assert_close(tall.T @ tall, torch.eye(tall.shape[1]), rtol=0, atol=1e-5)
        rows = [tokens(student.features[name]) @ weight.T, tokens(teacher.features[name])]
        expected += smooth_l1(*((each - each.mean(0)) / (each.var(0) + 1e-5).sqrt() for each in rows))
    assert value(term, student, teacher) == pytest.approx(4 * float(expected), rel=1e-5)


def test_maps_of_unlike_sizes_are_compared_at_the_larger(load):
    term = build(load, "vkd", STUDENT_MAPS="[neck.maps.1]", TEACHER_MAPS="[neck.maps.0]", PROJECTION="none")
    student, teacher = output(), output(seed=1)
    features = student.features | {"neck.maps.1": interpolate(student.features["neck.maps.1"], (4, 4), mode="bilinear")}
    expected = term(Output({}, features), [teacher], padded(), START)["tokens"]
    torch.testing.assert_close(term(student, [teacher], padded(), START)["tokens"], expected)


def test_the_chosen_teacher_teaches(load):
    term = build(load, "vkd", TEACHER=1, teachers=[sized(), sized(wide(6))])
    assert term.teacher_taps == {1: tuple(NAMES)} and term.teacher_heads == ()
    assert term(output(), [None, output(6)], PLAIN, START)["tokens"].isfinite()


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("width", [8, 12])
def test_projections_stay_orthonormal(load, optimizer, width):
    """After 20 steps with weight decay; and they move."""
    term = build(load, "vkd", teachers=[sized(wide(width))])
    student, teacher = output(), output(width, seed=1)
    before = [projection[0].weight().detach() for projection in term.projections]
    steps = getattr(torch.optim, optimizer)(term.parameters(), lr=0.1, weight_decay=0.05)
    losses = []
    for _ in range(20):
        steps.zero_grad()
        loss = term(student, [teacher], PLAIN, START)["tokens"]
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for start, projection in zip(before, term.projections, strict=True):
        weight = projection[0].weight().detach()
        assert float((weight.T @ weight - torch.eye(8)).abs().max()) < 1e-5
        assert float((weight - start).abs().max()) > 1e-2


def test_gradients_reach_the_student_and_its_projections_alone(load):
    """Scale and shift have none to speak of, for the standardization takes them out."""
    term, student, teacher = build(load, "vkd"), output(), output(seed=1)
    for side in (student, teacher):
        for features in side.features.values():
            features.requires_grad_()
    with torch.no_grad():
        frozen = Output({}, {name: features.detach() for name, features in teacher.features.items()})
    term(student, [frozen], PLAIN, START)["tokens"].backward()
    assert all((student.features[name].grad is not None) == (name in NAMES) for name in SIZES)
    assert all(features.grad is None for features in teacher.features.values())
    for projection, scale in term.projections:
        assert projection.free.grad.abs().max() > 1e-4
        assert scale.weight.grad.abs().max() < 1e-4 and scale.bias.grad.abs().max() < 1e-4


def test_scale_is_that_of_each_channel(load):
    scale = ChannelScale(3)
    features = torch.randn(2, 5, 3)
    assert torch.equal(scale(features), features)
    with torch.no_grad():
        scale.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        scale.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(scale(features)[..., 2], 3 * features[..., 2] + 2)
    assert not any(isinstance(part, ChannelScale) for part in build(load, "vkd", SCALE="false").modules())


@pytest.mark.parametrize("trainer", ["vkd", "token_matching"])
def test_statistics_and_distance_are_fp32(load, trainer):
    """Of features in half precision, within autocast: those of the same numbers in fp32."""
    term, student, teacher = build(load, trainer), output(), output(seed=1)
    half = [Output({}, {name: each.bfloat16() for name, each in side.features.items()}) for side in (student, teacher)]
    full = [Output({}, {name: each.float() for name, each in side.features.items()}) for side in half]
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(half[0], half[1:], PLAIN, START)["tokens"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(full[0], full[1:], PLAIN, START)["tokens"])


# --------------------------------------------------------------------------------------------------------------- proces
class Thread(World):
    """One of two processes, here two threads, which wait for each other to add what both have."""

    size = 2

    def __init__(self, rank, sent, barrier):
        self.rank, self.sent, self.barrier = rank, sent, barrier

    def sum(self, tensor):
        self.sent[self.rank] = tensor.detach()
        self.barrier.wait(60)
        total = self.sent[0] + self.sent[1]
        self.barrier.wait(60)
        return total


def both(run):
    """Return what run(rank, world) returns in each of two processes."""
    sent, barrier = [None, None], threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda rank: run(rank, Thread(rank, sent, barrier)), range(2)))


@pytest.mark.parametrize("trainer", ["vkd", "token_matching"])
@pytest.mark.parametrize("together", [True, False])
def test_two_processes_equal_one(load, trainer, together):
    """Loss and gradients, of features and projections; of images that are padded, one more than the other.

    Without ALL_PROCESSES, as published, each has statistics and a mean of its own.
    """
    data, teacher = padded(), output(seed=1)
    built = build(load, trainer, ALL_PROCESSES=together)

    def run(rows, world):
        term, student = deepcopy(built), output()
        term.world = world
        own = [features.requires_grad_() for features in student.features.values()]
        sides = [Output({}, {name: each[rows] for name, each in side.features.items()}) for side in (student, teacher)]
        share = Batch(Padded(data.images.pixels[rows], data.images.mask[rows]), None, None)
        loss = term(sides[0], sides[1:], share, START)["tokens"]
        loss.backward()
        found = [p.grad for p in (*own[1:], *term.parameters())]
        return loss.detach(), torch.cat([gradient.flatten() for gradient in found])

    loss, gradients = run(slice(None), World())
    results = both(lambda rank, world: run(slice(rank, rank + 1), world))
    mean = [sum(pair) / 2 for pair in zip(*results, strict=True)]
    assert torch.allclose(mean[0], loss, rtol=1e-5) == together
    assert torch.allclose(mean[1], gradients, rtol=1e-3, atol=1e-5) == together


MAPS_ALONE = {"TOKENS__WEIGHT": 1.0, "TOKENS__STUDENT_MAPS": "[0, last]", "TOKENS__STUDENT_QUERIES": "[]"}


@pytest.mark.parametrize("way", ["fp32", "bf16", "compiled"])
def test_a_student_learns_by_it(load, way):
    """Whatever the precision, and compiled; a classifier's images are not padded."""
    options = options_of("baseline", "resnet8", teachers=1, **MAPS_ALONE)
    method = Method(load("debug/base_debug", **options))
    losses = two_steps(method, way)
    assert list(losses) == ["ce", "tokens"]
    plain = two_steps(Method(load("debug/base_debug", **options)), "fp32")
    assert float(losses["tokens"].detach()) == pytest.approx(
        float(plain["tokens"].detach()), rel=2e-2 if way == "bf16" else 1e-4
    )


def test_with_features_and_logits_of_the_same_teacher(load):
    options = options_of("vkd", "resnet8", teachers=1, VKD__STUDENT_TAP="pooled", **MAPS_ALONE)
    losses = Method(load("debug/base_debug", **options)).losses(batch())
    assert list(losses) == ["ce", "kd", "tokens", "vkd"]


# --------------------------------------------------------------------------------------------------------- a ViDT of ea
VIDT = {"DISTILLATION__TEACHERS": "[vidt_swin_nano]", "DISTILLATION__TEACHER_WEIGHTS": "[none]"}
VIDT |= {
    "MODEL__ARGS": "null",
    "MODEL__ARGS__embed_dim": 16,
    "MODEL__ARGS__depths": "[1, 1, 1, 1]",
    "MODEL__ARGS__num_heads": "[1, 2, 4, 8]",
}


def test_a_detector_has_it_by_both_presets(load):
    """In place of features and logits, by TRAINER vkd; weighted as published."""
    cfg = load("debug/detection_debug", TRAINER="vkd", **VIDT)
    assert (cfg.VKD.WEIGHT, cfg.KD.WEIGHT, cfg.TOKENS.WEIGHT, cfg.TASK.WEIGHT) == (0, 0, 4, 1)
    assert (cfg.TOKENS.PROJECTION, cfg.TOKENS.DISTANCE, cfg.TOKENS.ROOT) == ("orthogonal", "smooth_l1", False)
    cfg = load("debug/detection_debug", TRAINER="token_matching", **VIDT)
    assert (cfg.TOKENS.WEIGHT, cfg.TOKENS.PROJECTION, cfg.TOKENS.LEVELS) == (4, "none", "sum")
    assert load("debug/vkd_debug").TOKENS.WEIGHT == 0


def test_a_small_vidt_learns_a_larger_one_s_tokens(load):
    """Of padded images: the loss is that of the taps of both models, and reaches all of the student but its heads."""
    method = Method(load("debug/detection_debug", TRAINER="vkd", MODEL__ARGS__hidden=64, **VIDT), classes=3)
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[1, 32:] = False
    images = Padded(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * mask[:, None], mask)
    targets = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), "labels": torch.tensor([1])}] * 2
    data = method.task.batch(Loaded(images, targets, torch.arange(2)), START)
    term = method.trainer.terms["tokens"]
    assert term.student_taps == tuple(NAMES) and sum(p.numel() for p in term.parameters()) == 6 * (64 * 256 + 2 * 256)
    method.student.eval()  # without dropout
    losses = method.losses(data)
    assert list(losses) == ["class", "l1", "giou", "aux", "tokens"]
    student, teacher = method.student(images, term.student_taps), method.live(data, START)[0]
    torch.testing.assert_close(term(student, [teacher], data, START)["tokens"], losses["tokens"], rtol=1e-4, atol=1e-4)
    losses["tokens"].backward()
    reached = {name for name, p in method.student.backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in reached} == {"body", "neck"}
    assert all(p.grad is None for p in method.teachers.parameters())


def test_vidts_that_do_not_fit_are_told(load):
    with pytest.raises(ValueError, match="neck.queries is 1 x 20 queries, TEACHER_QUERIES neck.queries is 1 x 100"):
        Method(load("debug/detection_debug", TRAINER="vkd", MODEL__ARGS__queries=20, **VIDT), classes=3)
    with pytest.raises(ValueError, match="TOKENS.PROJECTION is none, at neck.maps.0: features of 64 channels"):
        Method(load("debug/detection_debug", TRAINER="token_matching", MODEL__ARGS__hidden=64, **VIDT), classes=3)


def test_a_teacher_of_other_queries_whose_file_is_not_there_is_told_of_its_file(load, tmp_path):
    """What the file would say of the teacher is not known, so that its queries may be others."""
    own = {"TRAINER": "vkd", "MODEL__ARGS__queries": 20} | VIDT | {"OUT_DIR": tmp_path}
    own["DISTILLATION__TEACHER_WEIGHTS"] = "[gone.pt]"
    text = "each learns one; DISTILLATION.TEACHER_WEIGHTS: there is no file gone.pt$"
    with pytest.raises(config.ConfigError, match=text):
        runner.run("train", load("debug/detection_debug", **own))


# ------------------------------------------------------------------------------------------------------------------ err
FEWER = {"neck.queries": (8, 1, 4), "neck.decoder": (8, 3, 4)}


@pytest.mark.parametrize(
    ("models", "overrides", "text"),
    [
        ({"teachers": []}, {}, "TOKENS.TEACHER needs teacher 0, DISTILLATION.TEACHERS has 0 entries"),
        ({}, {"TEACHER": 1}, "TOKENS.TEACHER needs teacher 1, DISTILLATION.TEACHERS has 1 entry"),
        ({}, {"STUDENT_MAPS": "[neck.maps.4]"}, "TOKENS.STUDENT_MAPS has 'neck.maps.4', expected last"),
        (
            {},
            {"STUDENT_MAPS": "[stages.0, last]"},
            "^TOKENS.STUDENT_MAPS has 'last': neck.decoder is queries and no map of the image, "
            "TOKENS.STUDENT_QUERIES takes it$",
        ),
        (
            {},
            {"STUDENT_MAPS": "[neck.maps.0]", "TEACHER_MAPS": "[-2]"},
            "^TOKENS.TEACHER_MAPS has '-2': neck.queries is queries",
        ),
        (
            {},
            {"STUDENT_QUERIES": "[neck.maps.3, neck.decoder]"},
            "^TOKENS.STUDENT_QUERIES has 'neck.maps.3': neck.maps.3 is a map of the image, TOKENS.STUDENT_MAPS takes",
        ),
        ({}, {"TEACHER_MAPS": "[neck.maps.0]"}, "TOKENS.STUDENT_MAPS has 4 entries, TEACHER_MAPS has 1"),
        ({}, {"TEACHER_QUERIES": "[layer1, layer2]"}, "TOKENS.TEACHER_QUERIES has 'layer1', expected last"),
        (
            {},
            {"STUDENT_MAPS": "[]", "STUDENT_QUERIES": "[]"},
            "TOKENS.STUDENT_MAPS and TOKENS.STUDENT_QUERIES are empty, expected at least one tap",
        ),
        (
            {"teachers": [sized(**FEWER)]},
            {},
            "TOKENS.STUDENT_QUERIES neck.queries is 1 x 5 queries, TEACHER_QUERIES neck.queries is 1 x 4: each learns",
        ),
        (
            {"teachers": [sized(**{"neck.decoder": (8, 7, 5)})]},
            {},
            "TOKENS.STUDENT_QUERIES neck.decoder is 3 x 5 queries, TEACHER_QUERIES neck.decoder is 7 x 5: each learns",
        ),
        (
            {"teachers": [sized(wide(16))]},
            {},
            "TOKENS.PROJECTION is none, at neck.maps.0: features of 8 channels cannot .* features of 16",
        ),
        ({}, {"EPS": -1}, "TOKENS.EPS is -1.0, expected 0 to 1"),
        ({}, {"WEIGHT": 0, "MAP": "qr"}, "TOKENS.MAP is 'qr', which TRAINER token_matching does not read"),
    ],
)
def test_what_cannot_be(load, models, overrides, text):
    with pytest.raises(ValueError, match=text) as error:
        build(load, **models, **overrides)
    assert "\n" not in str(error.value)


def test_a_classifier_has_no_neck(load):
    with pytest.raises(ValueError, match="TOKENS.STUDENT_MAPS has 'neck.maps.0', expected last"):
        Method(load("debug/base_debug", **options_of("token_matching", "resnet8", teachers=1)))
