"""Feature distillation: what each form reads, compares and trains, on three families, resumed, on two processes."""

import copy
import math

import pytest
import torch
from methods import CAPTURES, START, batch, make
from records import SMALL, load_state
from shares import FEW, IMAGES, STEPS, apart, steps_of, steps_of_two
from test_check import check  # noqa: F401  (a fixture)
from torch import nn
from torch.nn.functional import conv2d

from pycls_std import runner
from pycls_std.core.registry import FEATURE_LOSSES
from pycls_std.core.structures import Progress, take
from pycls_std.engine.optim import create_optimizer
from pycls_std.engine.runtime import Runtime
from pycls_std.losses import feature_maps, relations
from pycls_std.models.taps import POOLED, tap_names

FORMS = sorted(FEATURE_LOSSES.entries)
PUBLISHED = {"fitnet": 100, "at": 1000, "sp": 3000, "pkt": 30000, "rkd": 1, "nst": 50, "vid": 1, "crd": 0.8}
PUBLISHED |= {"reviewkd": 1, "rsd": 0.1}
SINGLE = {"AUG__MIXUP": 0, "AUG__CUTMIX": 0}  # images, as a memory needs them
OWN = {"crd": SINGLE | {"FEATURE__CRD_NEGATIVES": 16}, "reviewkd": {"FEATURE__WARMUP_EPOCHS": 0}}
STUDENTS = ("mixer_nano4", "deit_tiny_patch16_224", "resnet14")


def build(load, form, name="mixer_nano4", **overrides):
    """A method with one form and an untrained ResNet-8; `crd` knows of four images."""
    method = make(load, "feature", name, 1, FEATURE__LOSS=form, **(OWN.get(form, {}) | overrides))
    if form == "crd":
        memory = method.trainer.terms["feature"].form.memory
        for key in ("student", "teacher", "classes"):
            buffer = getattr(memory, key)
            setattr(memory, key, buffer.repeat(8, *[1] * (buffer.ndim - 1)))
        nn.init.normal_(memory.student)
        nn.init.normal_(memory.teacher)
    return method


# --------------------------------------------------------------------------------------------------- options and shapes
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_published_ones(load, form):
    """Of TRAINER feature alone; a config, the command line and other trainers say their own."""
    own = OWN.get(form, {})
    cfg = load("debug/feature_debug", FEATURE__LOSS=form, **({} if form == "reviewkd" else own), OPTIM__MAX_EPOCH=20)
    assert cfg.FEATURE["WEIGHT"] == PUBLISHED[form]
    assert cfg.FEATURE["WARMUP_EPOCHS"] == (20 if form == "reviewkd" else 0)
    assert load("debug/feature_debug", FEATURE__LOSS=form, FEATURE__WEIGHT=7, **own).FEATURE.WEIGHT == 7
    crossed = load("debug/kd_debug", FEATURE__LOSS=form, FEATURE__WEIGHT=2, **own)
    assert (crossed.FEATURE.WEIGHT, crossed.KD.WEIGHT, crossed.FEATURE.WARMUP_EPOCHS) == (2, 1, 0)


ALL = (["blocks.0", "blocks.1", "blocks.3"], ["layer1", "layer2", "layer3"])
TAPS = {
    **{form: ALL for form in ("at", "nst", "vid")},
    "reviewkd": tuple([*taps, POOLED] for taps in ALL),
    "fitnet": (["blocks.2"], ["layer2"]),
    "sp": (["blocks.3"], ["layer3"]),
    **{form: ([POOLED], [POOLED]) for form in ("pkt", "rkd", "crd", "rsd")},
}


@pytest.mark.parametrize("form", FORMS)
def test_taps_are_those_of_the_publication(load, form):
    """Four blocks of a student meet three stages of a teacher: the last of each third."""
    term = build(load, form).trainer.terms["feature"]
    assert (list(term.student_taps), list(term.teacher_taps[0])) == TAPS[form]
    resnet = build(load, form, "resnet14").trainer.terms["feature"]
    assert list(resnet.student_taps) == list(resnet.teacher_taps[0]) == TAPS[form][1]


def test_taps_are_an_option(load):
    def taps(form, **overrides):
        term = build(load, form, **overrides).trainer.terms["feature"]
        return list(term.student_taps), list(term.teacher_taps[0])

    two = {"FEATURE__STUDENT_TAPS": "[0, last]"}
    assert taps("at", **two) == (["blocks.0", "blocks.3"], ["layer1", "layer3"])
    both = two | {"FEATURE__TEACHER_TAPS": "[layer2, layer3]"}
    assert taps("fitnet", **both) == (["blocks.0", "blocks.3"], ["layer2", "layer3"])
    mixed = {"FEATURE__STUDENT_TAPS": "[last, pooled]", "FEATURE__TEACHER_TAPS": "[layer2, pooled]"}
    assert taps("rsd", **mixed) == (["blocks.3", "pooled"], ["layer2", "pooled"])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"teachers": 0}, "FEATURE.TEACHER needs teacher 0, DISTILLATION.TEACHERS has 0 entries"),
        ({"FEATURE__TEACHER": 1}, "FEATURE.TEACHER needs teacher 1, DISTILLATION.TEACHERS has 1 entry"),
        ({"teachers": 2}, "teacher 1 resnet8 is read by no term"),
        ({"FEATURE__STUDENT_TAPS": "[0, 1]"}, "FEATURE.STUDENT_TAPS has 2 entries, TEACHER_TAPS has 1"),
        ({"FEATURE__TEACHER_TAPS": "[layer4]"}, "FEATURE.TEACHER_TAPS has 'layer4', expected last"),
        ({"FEATURE__STUDENT_TAPS": "[pooled]"}, "FEATURE.STUDENT_TAPS has pooled, FEATURE.LOSS compares maps"),
        ({"FEATURE__LOSS": "hint"}, "FEATURE.LOSS is 'hint', expected one of fitnet, at, nst, vid"),
        ({"FEATURE__LOSS": "crd"}, "FEATURE.LOSS crd remembers single images, AUG.MIXUP and AUG.CUTMIX must be 0"),
        (
            SINGLE | {"FEATURE__LOSS": "crd", "FEATURE__STUDENT_TAPS": "[0, 1]", "FEATURE__TEACHER_TAPS": "[0, 1]"},
            "FEATURE.LOSS crd has one memory, FEATURE.STUDENT_TAPS has 2 entries",
        ),
        (
            {"FEATURE__LOSS": "rkd", "FEATURE__STUDENT_TAPS": "[pooled, last]"},
            "FEATURE.STUDENT_TAPS .* has pooled, expected once and last",
        ),
        (
            {"FEATURE__LOSS": "reviewkd"},
            "^default of TRAINER feature, as it is not set: FEATURE.WARMUP_EPOCHS is 20, expected at most 3, for the",
        ),
    ],
)
def test_options_that_contradict_each_other(load, overrides, text):
    with pytest.raises(ValueError, match=text):
        make(load, "feature", **({"teachers": 1} | overrides))


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_one_image(load, form):
    """What compares images would learn nothing of one, and a batch norm of one place fails; the others learn."""
    method, one = build(load, form, **SINGLE), take(batch(), slice(1))
    if form in ("sp", "pkt", "rkd", "rsd", "reviewkd"):
        text = r"\(FEATURE.LOSS\) needs 2 images in each process, TRAIN.BATCH_SIZE leaves 1"
        with pytest.raises(ValueError, match=text):
            method.losses(one, START)
    else:
        assert torch.isfinite(method.losses(one, START)["feature"])


# -------------------------------------------------------------------------------------------------------- the objective
def side_of(maps, side):
    """Maps (B, C, H, H) averaged to (B, C, side, side)."""
    step = maps.shape[2] // side
    return maps.unfold(2, step, step).unfold(3, step, step).mean(dim=(4, 5))


def smaller(pair):
    """A pair of maps, the larger averaged to the smaller."""
    side = min(maps.shape[2] for maps in pair)
    return [side_of(maps, side) for maps in pair]


def through(weight, maps):
    """Maps through a 1x1 convolution."""
    return torch.einsum("dc,bchw->bdhw", weight[:, :, 0, 0], maps)


def normed(norm, features):
    """A batch norm of (B, C, ...) by the batch's own statistics."""
    over = [dim for dim in range(features.ndim) if dim != 1]
    scale, shift = (each.view(-1, *[1] * (features.ndim - 2)) for each in (norm.weight, norm.bias))
    centred = features - features.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + norm.eps).sqrt() * scale + shift


def hint(form, pairs, data):
    (own, other), (convolution, norm, _) = smaller(pairs[0]), form.regressors[0]
    return (normed(norm, through(convolution.weight, own)).clamp(min=0) - other).square().mean()


def likelihood(form, pairs, data):
    """-log of a normal distribution, without its constant, summed over the stages."""
    total = 0.0
    for regressor, pair in zip(form.regressors, pairs, strict=True):
        own, other = smaller(pair)
        first, second, third = (layer.weight for layer in regressor.mean if isinstance(layer, nn.Conv2d))
        mean = through(third, through(second, through(first, own).clamp(min=0)).clamp(min=0))
        variance = ((1 + regressor.raw_variance.exp()).log() + 1e-5).view(-1, 1, 1)
        total = total + ((mean - other) ** 2 / variance + variance.log()).mean() / 2
    return total


def nearest(maps, side):
    places = [place * maps.shape[2] // side for place in range(side)]
    return maps[:, :, places][:, :, :, places]


def review(form, pairs, data):
    """From the last stage to the first, each fused with what the later ones have passed on."""
    pairs = [[each if each.ndim == 4 else each[:, :, None, None] for each in pair] for pair in pairs]
    total, passed = 0.0, None
    for fusion, (own, other) in reversed(list(zip(form.review.stages, pairs, strict=True))):
        fused = normed(fusion.enter[1], through(fusion.enter[0].weight, own))
        if passed is not None:
            passed, gate = nearest(passed, own.shape[2]), fusion.weights[0]
            weights = through(gate.weight, torch.cat([fused, passed], dim=1)) + gate.bias.view(-1, 1, 1)
            weights = 1 / (1 + (-weights).exp())
            fused = fused * weights[:, [0]] + passed * weights[:, [1]]
        passed = nearest(fused, other.shape[2])
        result = normed(fusion.leave[1], conv2d(passed, fusion.leave[0].weight, padding=1))
        sides = [other.shape[2], *(side for side in (4, 2, 1) if side < other.shape[2])]
        apart = [(side_of(result, side) - side_of(other, side)).square().mean() for side in sides]
        shares = [0.5**level for level in range(len(sides))]
        total = total + sum(share * each for share, each in zip(shares, apart, strict=True)) / sum(shares)
    return total


def correlations(form, pairs, data):
    (own, other), (first, norm, _, last) = pairs[0], form.heads[0]
    hidden = normed(norm, own @ first.weight.T)
    own = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2 @ last.weight.T
    own, other = ((x - x.mean(0)) / (x.var(0, correction=0).sqrt() + 1e-5) for x in (own.double(), other.double()))
    found = other.T @ own / len(own)
    squares, diagonal = found.square().sum(), found.diagonal()
    return (diagonal - 1).square().sum() + 0.01 * (squares - diagonal.square().sum())


def contrast(form, pairs, data):
    """The first batch's, by the negatives that the next draw gives; the densities' scale is the mean times images."""
    memory, index, labels = copy.deepcopy(form.memory), data.loaded.index, data.loaded.targets
    memory.classes[index] = labels
    torch.manual_seed(1)
    places = torch.cat([index[:, None], memory._draw(labels)], dim=1)
    noise, total = (places.shape[1] - 1) / len(memory.classes), 0.0
    embeds, known = (form.embed_student, form.embed_teacher), (memory.teacher, memory.student)
    for embed, features, others in zip(embeds, pairs[0], known, strict=True):
        own = (features @ embed.weight.T + embed.bias).double()
        own = own / own.norm(dim=1, keepdim=True)
        scores = torch.einsum("bc,bkc->bk", own, others[places].double()).div(0.07).exp()
        scores = scores / (scores.detach().mean() * len(memory.classes))
        told = torch.cat([scores[:, :1], torch.full_like(scores[:, 1:], noise)], dim=1) / (scores + noise)
        total = total - told.log().sum(dim=1).mean()
    torch.manual_seed(1)
    return total


OBJECTIVES = {  # by the form with its adapters, the features of each pair of taps, student's first, and the batch
    "at": lambda form, pairs, data: sum(feature_maps.attention_distance(*pair) for pair in pairs),
    "nst": lambda form, pairs, data: sum(feature_maps.selectivity_distance(*pair) for pair in pairs),
    "sp": lambda form, pairs, data: relations.similarity_distance(*pairs[0]),
    "pkt": lambda form, pairs, data: relations.affinity_divergence(*pairs[0]),
    "rkd": lambda form, pairs, data: relations.relational_distance(*pairs[0]),
    **{"fitnet": hint, "vid": likelihood, "reviewkd": review, "rsd": correlations, "crd": contrast},
}


def read_pairs(method, data):
    """What both models have at the taps, by timm's own functions: a mixer, a DeiT without its class token, a ResNet."""
    term, (teacher,) = method.trainer.terms["feature"], method.teachers
    sides = []
    for model, taps in ((method.student.backbone, term.student_taps), (teacher.backbone, term.teacher_taps[0])):
        last, maps = model.forward_intermediates(data.images, output_fmt="NCHW")
        known = dict(zip(tap_names(model), maps, strict=True)) | {POOLED: model.forward_head(last, pre_logits=True)}
        sides.append([known[tap] for tap in taps])
    return list(zip(*sides, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STUDENTS)
def test_objective_is_the_weighted_loss_of_the_features(load, form, name):
    """Half way to its weight, and by its gradient too, after the adapters have left the values they start from."""
    method, data = build(load, form, name, FEATURE__WARMUP_EPOCHS=2), batch()
    term = method.trainer.terms["feature"]
    with torch.no_grad():
        for parameter in term.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    expected = PUBLISHED[form] / 2 * OBJECTIVES[form](term.form, read_pairs(method, data), data).float()
    losses = method.losses(data, Progress(0, 0, 1, 3))
    assert losses.keys() == {"ce", "feature"}
    torch.testing.assert_close(losses["feature"], expected, rtol=1e-4, atol=1e-5)
    trained = [*term.parameters(), *method.student.backbone.parameters()]
    gradients = [torch.autograd.grad(each, trained, allow_unused=True) for each in (losses["feature"], expected)]
    reached = [[gradient is not None for gradient in own] for own in gradients]
    assert reached[0] == reached[1]
    found, true = (torch.cat([each.flatten() for each in own if each is not None]) for own in gradients)
    assert float((found - true).norm()) < 1e-4 * float(true.norm())


def test_options_of_a_form_are_read(load):
    data = batch()
    values = [
        float(build(load, "rkd", FEATURE__RKD_DISTANCE=d, FEATURE__RKD_ANGLE=a).losses(data)["feature"].detach())
        for d, a in ((25, 50), (25, 0), (0, 50), (50, 100))
    ]
    assert values[0] == pytest.approx(values[1] + values[2], rel=1e-5) == pytest.approx(values[3] / 2, rel=1e-5)
    kappas = [float(build(load, "rsd", FEATURE__RSD_KAPPA=k).losses(data)["feature"].detach()) for k in (0, 1, 2)]
    assert kappas[2] - kappas[1] == pytest.approx(kappas[1] - kappas[0], rel=1e-4) and kappas[1] > kappas[0]
    form = build(load, "vid", FEATURE__VID_VARIANCE=2).trainer.terms["feature"].form
    torch.testing.assert_close(form.regressors[0].raw_variance.exp().log1p() + 1e-5, torch.full((16,), 2.0))
    sizes = {"FEATURE__CRD_CHANNELS": 6, "FEATURE__CRD_TEMPERATURE": 0.2, "FEATURE__CRD_MOMENTUM": 0.9}
    memory = (
        make(load, "feature", teachers=1, FEATURE__LOSS="crd", **SINGLE, **sizes).trainer.terms["feature"].form.memory
    )
    assert (memory.negatives, memory.temperature, memory.momentum, memory.student.shape[1]) == (16384, 0.2, 0.9, 6)


def test_it_grows_to_its_weight(load):
    method, data = build(load, "at", FEATURE__WARMUP_EPOCHS=2), batch()
    values = [float(method.losses(data, Progress(epoch, 0, 1, 3))["feature"].detach()) for epoch in range(3)]
    assert values[0] * 2 == pytest.approx(values[1]) == pytest.approx(values[2])


# ------------------------------------------------------------------------------------------------------------- training
WAYS = [(name, way) for name in STUDENTS for way in ("fp32", "bf16")] + [("mixer_nano4", "compiled")]


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_it_trains_student_and_adapters_and_nothing_else(load, form, name, way):
    """Two steps: all adapters move, the teacher and the memory have no gradient; below its taps the student has one."""
    if way == "compiled":
        torch._dynamo.reset()
    method = build(load, form, name)
    trainer, runtime = method.trainer, Runtime(device="cpu", precision="bf16" if way == "bf16" else "fp32")
    optimizer = create_optimizer(trainer.objective, name="momentum", lr=1e-4)
    before = {key: value.clone() for key, value in trainer.objective.named_parameters()}
    teacher = {key: value.clone() for key, value in method.teachers.state_dict().items()}
    losses = torch.compile(trainer.losses, backend=CAPTURES) if way == "compiled" else trainer.losses
    trainer.student.train()
    data = batch()
    if way == "compiled":  # as eager, of a method of the same weights; both draw alike
        other = build(load, form, name)
        found = []
        for each, method_of in ((other.trainer.losses, other), (losses, method)):
            torch.manual_seed(1)
            found.append(each(data, method_of.live(data, START), START))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    for _ in range(2):
        with runtime.autocast():
            values = losses(data, method.live(data, START), START)
        runtime.step(values, [optimizer])
    assert all(value.isfinite() and value.ndim == 0 for value in values.values())
    adapters = dict(trainer.terms.named_parameters())
    assert [key for key, p in adapters.items() if not p.grad.any()] == []
    assert [key for key, p in adapters.items() if torch.equal(p, before[f"terms.{key}"])] == []
    assert all(p.grad is not None for p in trainer.objective.parameters())
    assert all(torch.equal(value, teacher[key]) for key, value in method.teachers.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in method.teachers.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_the_student_learns_by_the_term_alone(load, form):
    """Its gradient reaches the first layer of the student; what comes after the last tap has none."""
    method, data = build(load, form, "resnet14"), batch()
    parameters = dict(method.student.backbone.named_parameters())
    value = method.losses(data)["feature"]
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    reached = {key for key, gradient in zip(parameters, found, strict=True) if gradient is not None}
    last = 2 if form == "fitnet" else 3
    assert reached == {key for key in parameters if key[:2] != "fc" and not key.startswith(f"layer{last + 1}")}
    first = dict(zip(parameters, found, strict=True))["conv1.weight"]
    assert first.any() and first.isfinite().all()


# 16 channels of a ResNet-14's stages to 16 of a ResNet-8's, and so on; 64 of the pooled features
VID = sum(3 * c * c + c for c in (16, 32, 64))
REVIEW = sum(c * 64 + 9 * 64 * c + 2 * (64 + c) for c in (16, 32, 64, 64)) + 3 * (2 * 64 * 2 + 2)
ADAPTERS = {"fitnet": 32 * 32 + 2 * 32, "vid": VID, "reviewkd": REVIEW, "crd": 2 * (64 * 128 + 128)}
ADAPTERS |= {"rsd": 64 * 128 + 2 * 128 + 128 * 64}


@pytest.mark.parametrize("form", FORMS)
def test_adapters_are_not_deployed(load, form):
    trainer = build(load, form, "resnet14").trainer
    assert trainer.trained_parameters() - trainer.deployed_parameters() == ADAPTERS.get(form, 0)
    assert trainer.deployed_parameters() == make(load, "baseline", "resnet14").trainer.deployed_parameters()


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_in_small_passes_all_checks(check, method, form, precision):  # noqa: F811
    """Among them that a saved run goes on exactly, and that every parameter is in a loss."""
    found = check(method("feature", FEATURE__LOSS=form, PRECISION=precision, **OWN.get(form, {})))
    assert all(ok for ok, _ in found.values()), found
    assert found["terms"][1] == "ce, feature"


# The images of each process's share are compared with each other, or go through an adapter's batch norm.
BY_SHARES = ("fitnet", "pkt", "reviewkd", "rkd", "rsd", "sp")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(method, tmp_path):
    """Student and adapters, after steps of every form; in both processes they are the same, and so is the memory.

    Each process draws negatives of its own, so that what becomes of `crd` is no more than alike.
    """
    methods = {form: method("feature", FEATURE__LOSS=form, **FEW, **OWN.get(form, {})) for form in FORMS}
    found = steps_of_two(tmp_path, methods)
    seen = int((found.pop("crd")["feature.form.memory.classes"] >= 0).sum())
    assert seen == STEPS * IMAGES, "images in the memory"
    for form, two in found.items():
        assert apart(steps_of(methods[form], parts=2 if form in BY_SHARES else 1), two) < 1e-5, form


def test_the_memory_is_saved_and_grows_with_the_images(method, tmp_path):
    """One entry for each training image, of the classes that the epoch's batches showed; `best.pt` has none of it."""
    own = {"FEATURE__LOSS": "crd", "OPTIM__MAX_EPOCH": 1, "AUG__REPEATS": 1} | OWN["crd"] | SMALL
    runner.train(method("feature", **own))
    state = load_state(tmp_path / "run")
    terms = state["trainer"]["terms"]
    classes = terms["feature.form.memory.classes"]
    assert len(classes) == len(terms["feature.form.memory.student"]) == 130
    assert int((classes >= 0).sum()) == 8 * 16
    counts = torch.bincount(classes[classes >= 0], minlength=10)
    assert counts.min() >= 11 and counts.max() == 13
    assert (terms["feature.form.memory.scales"] > 0).all()
    assert not any("memory" in key for key in (*state["student"], *load_state(tmp_path / "run", "best")["student"]))


def test_it_joins_other_terms(load):
    """With KD and STD beside it, each is what it is alone."""
    data, soft = batch(), {"DISTILLATION__TYPE": "soft"}
    crossed = make(load, "std", teachers=1, KD__WEIGHT=0.5, FEATURE__WEIGHT=1000, FEATURE__LOSS="at", **soft)
    losses = crossed.losses(data)
    assert list(losses) == ["ce", "feature", "kd", "std"]
    torch.testing.assert_close(losses["feature"], build(load, "at").losses(data)["feature"])
    requests = crossed.live.requests
    assert requests[0].head and requests[0].taps == ("layer1", "layer2", "layer3")
