"""Feature distillation: what each form reads, compares and trains, on three families, resumed, on two processes."""

import json
import sys

import numpy as np
import pytest
import torch
from methods import CAPTURES, START, batch, make
from processes import two_ranks
from records import SMALL, assert_same_run, load_state, words
from test_check import check  # noqa: F401  (a fixture)
from torch import nn

from pycls_std import config, runner
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.check.processes import train
from pycls_std.core.registry import FEATURE_LOSSES
from pycls_std.core.structures import Progress, take
from pycls_std.engine.distributed import close
from pycls_std.engine.optim import create_optimizer
from pycls_std.engine.runtime import Runtime
from pycls_std.losses import feature_maps, relations
from pycls_std.models.taps import POOLED

FORMS = ("at", "crd", "fitnet", "nst", "pkt", "reviewkd", "rkd", "rsd", "sp", "vid")
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
def test_all_forms_are_tried_here():
    assert set(FORMS) == set(FEATURE_LOSSES.entries)


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
        ({"FEATURE__TEACHER": 1}, "FEATURE.TEACHER needs teacher 1, DISTILLATION.TEACHERS has 1 entries"),
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
        ({"FEATURE__LOSS": "reviewkd"}, "FEATURE.WARMUP_EPOCHS is 20, expected at most 3"),
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
PURE = {
    "at": lambda pairs: sum(feature_maps.attention_distance(*pair) for pair in pairs),
    "nst": lambda pairs: sum(feature_maps.selectivity_distance(*pair) for pair in pairs),
    "sp": lambda pairs: relations.similarity_distance(*pairs[-1]),
}
POOLS = {"pkt": relations.affinity_divergence, "rkd": relations.relational_distance}


@pytest.mark.parametrize("form", [*PURE, *POOLS])
@pytest.mark.parametrize("name", STUDENTS)
def test_objective_is_the_weighted_loss_of_the_features(load, form, name):
    """Of a mixer, a DeiT without its class token, a ResNet, by timm's own taps, and of what the classifiers read."""
    method, data = build(load, form, name), batch()
    losses = method.losses(data)
    assert losses.keys() == {"ce", "feature"}
    models = method.student.backbone, method.teachers[0].backbone
    with torch.no_grad():
        read = [model.forward_intermediates(data.images, output_fmt="NCHW") for model in models]
        if form in POOLS:
            pooled = [model.forward_head(last, pre_logits=True) for model, (last, _) in zip(models, read, strict=True)]
            expected = POOLS[form](*pooled)
        else:
            own = read[0][1] if name == "resnet14" else [read[0][1][place] for place in (0, 1, 3)]
            expected = PURE[form](list(zip(own, read[1][1], strict=True)))
    torch.testing.assert_close(losses["feature"].detach(), PUBLISHED[form] * expected, rtol=1e-4, atol=1e-5)


def test_a_hint_goes_through_the_regressor(load):
    method, data = build(load, "fitnet", "resnet14"), batch()
    value = method.losses(data)["feature"]
    (regressor,) = method.trainer.terms["feature"].form.regressors
    maps = [
        model.forward_intermediates(data.images)[1][1]
        for model in (method.student.backbone, method.teachers[0].backbone)
    ]
    torch.testing.assert_close(value, 100 * (regressor(maps[0]) - maps[1]).square().mean(), rtol=1e-4, atol=1e-4)


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
@pytest.mark.parametrize("form", FORMS)
def test_a_run_in_small_passes_all_checks(check, method, form):  # noqa: F811
    """Among them that a saved run goes on exactly, and that every parameter is in a loss."""
    found = check(method("feature", FEATURE__LOSS=form, **OWN.get(form, {})))
    assert all(ok for ok, _ in found.values()), found
    assert found["terms"][1] == "ce, feature"


@pytest.mark.slow
def test_two_processes_agree(method, teacher, tmp_path):
    """On student, adapters and memory, after steps of every form, each on its own share of the images."""
    both = two_ranks(tmp_path, [], hook="test_feature:share_steps", arguments=(str(teacher), str(tmp_path)))
    ends = [one.end(patience=240) for one in both]
    assert [code for code, *_ in ends] == [0, 0], ends
    found = json.loads((tmp_path / "apart.json").read_text())
    assert set(found) == set(FORMS)
    assert max(found.values()) < 1e-6, found
    assert json.loads((tmp_path / "seen.json").read_text()) == 2 * 32, "images in the memory, of two steps"


def share_steps(teacher, folder):
    """Hook: take two steps of every form as one of two processes; note how far the processes are apart."""
    apart = {}
    for form in FORMS:
        own = {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]", "FEATURE__LOSS": form, "OUT_DIR": f"{folder}/run"}
        own |= {"TRAIN__BATCH_SIZE": 32, "AUG__REPEATS": 1, "DATA__PER_CLASS": 13, **OWN.get(form, {})}
        cfg = config.load("configs/debug/feature_debug.yaml", words(**own))
        runtime = build_runtime(cfg)
        session, *_ = build_all(cfg, runtime, fetch=False)
        loader = iter(session.train_loader)
        session.train_loader = [next(loader), next(loader)]
        train(session, epoch=0)
        values = {**dict(session.trainer.objective.named_parameters())}
        values |= {key: value for key, value in session.trainer.terms.named_buffers() if "memory" in key}
        apart[form] = max(float((runtime.world.greatest(v.detach()) - v.detach()).abs().max()) for v in values.values())
        apart[form] = max(runtime.world.gather(apart[form]))
        if form == "crd" and runtime.world.rank == 0:
            seen = int((session.trainer.terms["feature"].form.memory.classes >= 0).sum())
            with open(f"{folder}/seen.json", "w") as file:
                json.dump(seen, file)
    if runtime.world.rank == 0:
        with open(f"{folder}/apart.json", "w") as file:
            json.dump(apart, file)
    del session
    close()
    sys.exit(0)


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


@pytest.mark.parametrize("form", ["rkd", "reviewkd"])
def test_what_teachers_say_can_be_kept(method, tmp_path, form):
    """Vectors and maps: a run that asks, one that writes and one that reads end the same, bit for bit."""
    own = {"FEATURE__LOSS": form, "OPTIM__MAX_EPOCH": 1} | SMALL | OWN.get(form, {})
    cache = {"DISTILLATION__CACHE": tmp_path / "kept"}
    for name, more in (("asking", {}), ("writing", cache), ("reading", cache)):
        runner.train(method("feature", OUT_DIR=tmp_path / name, **own, **more))
    assert_same_run(tmp_path / "asking", tmp_path / "writing")
    assert_same_run(tmp_path / "asking", tmp_path / "reading")
    names = np.load(next((tmp_path / "kept").rglob("*1.npy"))).dtype.names
    assert names == (("tap:pooled",) if form == "rkd" else ("tap:layer1", "tap:layer2", "tap:layer3", "tap:pooled"))


def test_it_joins_other_terms(load):
    """With KD and STD beside it, each is what it is alone."""
    data, soft = batch(), {"DISTILLATION__TYPE": "soft"}
    crossed = make(load, "std", teachers=1, KD__WEIGHT=0.5, FEATURE__WEIGHT=1000, FEATURE__LOSS="at", **soft)
    losses = crossed.losses(data)
    assert list(losses) == ["ce", "feature", "kd", "std"]
    torch.testing.assert_close(losses["feature"], build(load, "at").losses(data)["feature"])
    requests = crossed.live.requests
    assert requests[0].head and requests[0].taps == ("layer1", "layer2", "layer3")
