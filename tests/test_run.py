"""Whole runs on digits: what is recorded, that a resume is exact, and what a run refuses."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from image_folders import write_images
from PIL import Image
from records import SMALL, assert_same_run, assert_same_state, curves, load_config, load_state, logged, same, words

from pycls_std import config, runner
from pycls_std.builders import models
from pycls_std.builders.data import build_data
from pycls_std.builders.training import build_described_trainer, build_schedule
from pycls_std.config import catalogue
from pycls_std.config.declared import Declaration
from pycls_std.core.registry import TRAINERS
from pycls_std.engine import checkpoint, loop
from pycls_std.engine.runtime import Runtime
from pycls_std.measure.description import operations
from pycls_std.results.read import read_run
from pycls_std.run import record
from pycls_std.run.folder import RunFolder
from pycls_std.run.identity import refuse_other_options

LENGTH = SMALL | {"OPTIM__MAX_EPOCH": 2}  # of `finished`


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    """Folder of an STD run of 2 epochs with MINE, EMA, mixing and all augmentation."""
    folder = tmp_path_factory.mktemp("finished")
    own = words(DISTILLATION__TEACHER_WEIGHTS=f"[{teacher}]", OUT_DIR=folder, **LENGTH)
    runner.train(config.load(str(ROOT / "configs/debug/std_debug.yaml"), own))
    return folder


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory):
    """Folder of a finished run of one epoch."""
    folder = tmp_path_factory.mktemp("first_epoch")
    own = words(OUT_DIR=folder, OPTIM__MAX_EPOCH=1, **SMALL)
    runner.train(config.load(str(ROOT / "configs/debug/base_debug.yaml"), own))
    return folder


@pytest.fixture
def longer(load, first_epoch, tmp_path):
    """Return longer(**overrides): options of a run of two epochs in tmp_path/run, of which the first is done."""
    shutil.copytree(first_epoch, tmp_path / "run")
    own = SMALL | {"OUT_DIR": tmp_path / "run", "OPTIM__MAX_EPOCH": 2}
    return lambda **overrides: load("debug/base_debug", **(own | overrides))


def test_run_record(finished, teacher):
    names = {path.name for path in finished.iterdir() if "tfevents" not in path.name}
    assert names == {"config.yaml", "run.json", "metrics.jsonl", "checkpoints"}
    facts = json.loads((finished / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["epochs_done"] == facts["epochs"] == 2
    assert [(s["epochs_done"], s["epochs"]) for s in facts["starts"]] == [(0, 2)]
    assert facts["starts"][0]["command"].startswith("python ")
    assert facts.keys() >= {
        "seed",
        "images_per_second",
        "peak_memory_gib",
        "hours",
        "best",
        "teachers",
    }
    student = load_state(finished)["student"]
    critics = load_state(finished)["trainer"]["auxiliary"]
    count = lambda state: sum(value.numel() for value in state.values())  # noqa: E731
    assert facts["parameters"] == {"deployed": count(student), "train_only": count(critics)}
    assert count(critics) > 0
    assert facts["flops"] == operations(build_described_trainer(load_config(finished), 10)[0].student, 8)
    lines = logged(finished)
    assert [line["epoch"] for line in lines] == [1, 2]
    scores = [f"{name}{score}" for name in ("", "avg_", "cls_", "dist_") for score in ("loss", "top1", "top5")]
    assert (
        lines[0].keys() - {"epoch", "time"}
        == read_run(finished).curves.keys()
        == {
            "train/ce",
            "train/std",
            "train/loss",
            "train/lr",
            "train/mine",
            "train/images_per_second",
            "train/teacher_weight/0_resnet8",
            "run/epochs",
            "run/epoch_seconds",
            *(f"{model}/{score}" for model in ("test", "ema") for score in scores),
        }
    )
    schedule = build_schedule(load_config(finished))
    for line in lines:
        # the rate of the last of 8 iterations, not of another epoch
        assert line["train/lr"] == pytest.approx(schedule((8 * line["epoch"] - 1) / 16))
        assert line["run/epoch_seconds"] > 8 * 16 / line["train/images_per_second"] > 0  # and an evaluation
        assert line["train/loss"] == pytest.approx(line["train/ce"] + line["train/std"])
        assert [line[f"test/{score}"] for score in scores[:3]] == [line[f"test/{score}"] for score in scores[3:6]]
    best = max(lines, key=lambda line: line["test/top1"])
    assert facts["best"] == {"epoch": best["epoch"], "top1": best["test/top1"]}
    assert facts["seed"] == 0
    (start,) = facts["starts"]
    assert start["device"].endswith("1 threads")
    assert (start["threads"], start["precision"], start["compiled"]) == (1, "fp32", "off")
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["hours"] > 0 and facts["images_per_second"] > 0 and facts["peak_memory_gib"] > 0.05
    assert facts["teachers"] == {"0_resnet8": pytest.approx(load_state(teacher.parents[1], "last")["best"]["top1"])}
    assert all(list(curve) == [1, 2] for curve in read_run(finished).curves.values())


def test_every_iteration_trains_in_training_mode(teacher):
    """An evaluation leaves the student in eval; batch norm counts the batches it learnt from."""
    assert load_state(teacher.parents[1])["student"]["backbone.bn1.num_batches_tracked"] == 3 * 11


def test_checkpoints_say_what_they_are(finished):
    last, best = load_state(finished), load_state(finished, "best")
    assert last.keys() >= {"optimizer", "scaler", "trainer", "best", "student", "ema", "config", "data"}
    about = {"format", "config", "data", "teachers", "processes", "threads", "epoch"}
    assert best.keys() == about | {"student", "ema"}
    assert best["epoch"] == last["best"]["epoch"]
    assert best["data"]["classes"] == list("0123456789")
    assert yaml.safe_load(best["config"])["TRAINER"] == "std"


# momentum and a step each iteration, so that MINE's optimizers have a state to lose
STATEFUL_MINE = {"MINE__MOMENTUM": 0.9, "MINE__PERIOD": "step", "MINE__SAMPLES": 4, "MINE__STUDENT_LR": 0.0001}
# Where a method has more to keep than weights, average and optimizer; all of them together have all there is.
STATES = {
    "deit": {"DATA__LOADER": "workers", "DATA__NUM_WORKERS": 2},  # and dropout
    "kd": {"PRECISION": "bf16"},
    "feature": {"FEATURE__LOSS": "crd", "FEATURE__CRD_NEGATIVES": 64, "AUG__MIXUP": 0, "AUG__CUTMIX": 0},  # a memory
    "std": {"PRECISION": "fp16", **STATEFUL_MINE},
}


@pytest.mark.defect(8)
@pytest.mark.defect(9)
@pytest.mark.defect(21)
@pytest.mark.parametrize("kind", sorted(TRAINERS.entries))
def test_resume_is_exact(method, tmp_path, monkeypatch, kind):
    """Continued from what its folder held in the midst of epoch 2, a run ends with the numbers of one that went on.

    Mixing, all augmentation and the average of the weights are on. Teachers stay as they are all the while.
    """
    options = LENGTH | STATES.get(kind, {})
    step, teachers = loop.train_step, set()

    def copying_step(session, batch, progress):
        if (progress.epoch, progress.iteration) == (1, 5):
            shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        teachers.add(checkpoint.fingerprint(session.trainer.teachers))
        return step(session, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", copying_step)
        runner.train(method(kind, OUT_DIR=tmp_path / "whole", **options))
    assert len(teachers) == 1
    assert read_run(tmp_path / "broken").status == "unfinished, epoch 1 of 2"
    runner.train(method(kind, OUT_DIR=tmp_path / "broken", **options))

    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert ("train/top1" in curves(tmp_path / "whole")) is (kind == "feature")  # whose labels are unmixed
    state = load_state(tmp_path / "broken")
    assert bool(state["scaler"]) is (kind == "std")
    assert all(optimizer["state"] for optimizer in state["trainer"]["optimizers"])
    starts = json.loads((tmp_path / "broken" / "run.json").read_text())["starts"]
    assert [start["epochs_done"] for start in starts] == [0, 1]
    assert [line["epoch"] for line in logged(tmp_path / "broken")] == [1, 2]


def test_a_run_on_images_in_memory_is_not_continued_from_workers(longer, monkeypatch):
    """With DATA.LOADER auto it may come to that, if there is no room for the images any more."""
    monkeypatch.setattr("pycls_std.datasets.memory.store.LIMIT", 1000)
    with pytest.raises(ValueError, match="is a run on images in memory, now from workers: DATA.LOADER"):
        runner.train(longer())


def test_number_of_workers_does_not_change_a_run(load, tmp_path):
    for workers in (0, 1):
        options = LENGTH | {"DATA__LOADER": "workers", "DATA__NUM_WORKERS": workers}
        runner.train(load("debug/base_debug", OUT_DIR=tmp_path / str(workers), **options))
    assert same(load_state(tmp_path / "0")["student"], load_state(tmp_path / "1")["student"])


def test_seed_changes_a_run(load, first_epoch, tmp_path):
    for seed in (0, 1):
        runner.train(load("debug/base_debug", OUT_DIR=tmp_path / str(seed), SEED=seed, OPTIM__MAX_EPOCH=1, **SMALL))
    first, second = (load_state(tmp_path / str(seed))["student"] for seed in (0, 1))
    assert same(first, load_state(first_epoch)["student"])
    assert not same(first, second)


def test_a_folder_of_other_options_is_refused(std, finished):
    with pytest.raises(ValueError, match="last.pt is a run of other options: OPTIM.BASE_LR was 0.002, is 0.1.*OUT_DIR"):
        runner.train(std(OUT_DIR=finished, OPTIM__BASE_LR=0.1, **LENGTH))


def test_the_refusal_names_a_folder_for_a_second_value_of_an_option(load, tmp_path, monkeypatch):
    """The default folder is not named after options; what is suggested can be run as it stands."""
    monkeypatch.chdir(tmp_path)
    own = SMALL | {"OPTIM__MAX_EPOCH": 1, "OPTIM__WARMUP_EPOCHS": 0}
    runner.train(load("debug/base_debug", **own))
    with pytest.raises(ValueError, match="Choose another OUT_DIR, as with NAME=base_debug_base_lr-0.1$") as caught:
        runner.train(load("debug/base_debug", OPTIM__BASE_LR=0.1, **own))
    key, _, value = str(caught.value).rpartition(" ")[2].partition("=")
    runner.train(load("debug/base_debug", OPTIM__BASE_LR=0.1, **own, **{key: value}))
    assert read_run(tmp_path / "runs/base_debug_base_lr-0.1/seed0").status == "finished"


@pytest.mark.parametrize(
    ("options", "processes", "suggested"),
    [
        ({"OUT_DIR": "a b/", "DATA__PER_CLASS": 7}, 1, "'OUT_DIR=a b_per_class-7'"),
        ({"DISTILLATION__TYPE": "soft", "OPTIM__BASE_LR": 1, "SEED": 3}, 1, "NAME=std_debug_type-soft_base_lr-1.0"),
        ({"MODEL__ARGS__embed_dim": "[8, 9]"}, 1, "NAME=std_debug_embed_dim-8-9"),
        ({}, 2, "NAME=std_debug_processes-2"),
    ],
)
def test_the_folder_that_a_refusal_suggests(load, options, processes, suggested):
    before, now = (config.dump(load("debug/std_debug", **own)) for own in ({}, options))
    with pytest.raises(ValueError) as caught:
        refuse_other_options({"config": before, "processes": 1}, now, processes, Path("last.pt"))
    assert str(caught.value).endswith(f". Choose another OUT_DIR, as with {suggested}")


@pytest.mark.fault(20)
def test_a_finished_run_can_be_continued_for_longer(longer, tmp_path, caplog):
    runner.train(longer())
    assert "objective: task 1" in caplog.messages
    assert load_state(tmp_path / "run")["epoch"] == 2
    status = read_run(tmp_path / "run").status
    assert status == "extended to 2 epochs after epoch 1", "its schedule is no run's of 2 epochs"


@pytest.mark.parametrize("schedule", [{"SCHEDULE": "constant"}, {"SCHEDULE": "step", "STEPS": [0.5], "GAMMA": 0.2}])
def test_a_run_whose_rates_do_not_follow_from_its_length_is_as_if_begun_as_long(load, tmp_path, caplog, schedule):
    own = SMALL | {f"OPTIM__{key}": value for key, value in schedule.items()} | {"OPTIM__WARMUP_EPOCHS": 0}
    for name, epochs in (("once", 2), ("grown", 1), ("grown", 2)):
        runner.train(load("debug/base_debug", **own, OPTIM__MAX_EPOCH=epochs, OUT_DIR=tmp_path / name))
    assert not [message for message in caplog.messages if "extended" in message]
    once, grown = tmp_path / "once", tmp_path / "grown"
    assert_same_state((once, "last"), (grown, "last"))
    assert curves(once) | {"run/epochs": {1: 1.0, 2: 2.0}} == curves(grown)
    assert [read_run(folder).status for folder in (once, grown)] == ["finished", "finished"]


def test_a_warm_up_of_an_extended_run_is_that_of_one_begun_as_long_within_rounding(load):
    own = {"OPTIM__SCHEDULE": "step", "OPTIM__STEPS": [1.5], "OPTIM__WARMUP_EPOCHS": 1}
    shorter, longer = (build_schedule(load("debug/base_debug", **own, OPTIM__MAX_EPOCH=epochs)) for epochs in (2, 3))
    for step in range(2 * 8):
        assert shorter(step / (2 * 8)) == pytest.approx(longer(step / (3 * 8)), rel=1e-12)


@pytest.mark.defect(9)
def test_test_mode_gives_the_recorded_scores(std, finished, caplog):
    last = logged(finished)[-1]
    for ema, prefix in (("false", "test"), ("true", "ema")):
        caplog.clear()
        runner.test(std(TEST__WEIGHTS=finished / "checkpoints" / "last.pt", TEST__EMA=ema))
        for name in ("avg", "cls", "dist"):
            line = next(line for line in caplog.messages if f" {name} " in line)
            top1, top5, loss = (last[f"{prefix}/{name}_{score}"] for score in ("top1", "top5", "loss"))
            assert f"top-1 {top1:6.2f}  top-5 {top5:6.2f}  loss {loss:.4f}" in line
        assert next(line for line in caplog.messages if line.startswith("*")).startswith("* avg")


def as_in_format_3(path, target, upgrade):
    """Write a checkpoint as versions before format 4 had it; upgrade(options) takes them back to their old names."""
    state = torch.load(path, weights_only=True)
    parts = {"tokens": "tokens", "updates": "branches", "classifiers": "heads"}
    for model in ("student", "ema"):
        for new, old in parts.items():
            prefix = f"branches.std.{new}."
            state[model] = {key.replace(prefix, f"{old}."): value for key, value in state[model].items()}
    options = yaml.safe_load(state["config"])
    upgrade(options)
    torch.save(state | {"format": 3, "config": yaml.dump(options)}, target)


def std_of_format_3(options):
    del options["TASK"], options["STD"]["WEIGHT"]
    options["DISTILLATION"]["ALPHA"] = 0.5


def kd_of_format_3(options):
    del options["TASK"]
    options |= {"TRAINER": "kd", "KD": {"CE_WEIGHT": 0.5, "KD_WEIGHT": 1.0, "WARMUP_EPOCHS": 0}}
    options |= {"DISTILLATION": {"ALPHA": 0.5}}


def test_a_checkpoint_of_format_3_is_tested_and_teaches(load, std, finished, first_epoch, teacher, tmp_path, caplog):
    """Its tokens and its weights of terms had other names; a run is not continued from it, unless it is finished."""
    old = [tmp_path / f"{name}.pt" for name in ("std", "kd")]
    as_in_format_3(finished / "checkpoints" / "last.pt", old[0], std_of_format_3)
    as_in_format_3(first_epoch / "checkpoints" / "last.pt", old[1], kd_of_format_3)
    assert "tokens.0.spatial" in torch.load(old[0], weights_only=True)["ema"]
    now = [finished / "checkpoints" / "last.pt", first_epoch / "checkpoints" / "last.pt"]
    taught = {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]"}
    for kind, paths in zip(("std", "kd"), zip(old, now, strict=True), strict=True):
        for ema in ("false", "true"):
            scores = []
            for path in paths:
                caplog.clear()
                runner.test(load(f"debug/{kind}_debug", TEST__WEIGHTS=path, TEST__EMA=ema, **taught))
                scores.append([line for line in caplog.messages if "top-1" in line])
                told = "was trained with other options" in caplog.text
                assert told is (path == now[1]), "which was trained as a baseline"
            assert scores[0] == scores[1] and scores[0]

    teachers = {"TEACHERS": "[mixer_nano4, mixer_nano4]", "TEACHER_WEIGHTS": f"[{old[0]}, {old[1]}]"}
    teachers |= {"TEACHER_MIN_ACC": 0}
    taught = {f"DISTILLATION__{key}": value for key, value in teachers.items()}
    runner.train(std(**SMALL, **taught, OPTIM__MAX_EPOCH=1))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    recorded = [logged(path.parents[1])[-1] for path in now]
    expected = {"0_mixer_nano4": recorded[0]["test/avg_top1"], "1_mixer_nano4": recorded[1]["test/top1"]}
    assert facts["teachers"] == pytest.approx(expected)

    last = tmp_path / "run" / "checkpoints" / "last.pt"
    as_in_format_3(last, last, std_of_format_3)  # of a run that has come to its end
    runner.train(std(**SMALL, **taught, OPTIM__MAX_EPOCH=1))
    assert caplog.messages[-1] == f"{tmp_path}/run: already finished, 1 epochs"
    old[0].replace(last)
    with pytest.raises(ValueError, match="last.pt has no training state of format 5, it cannot be continued from"):
        runner.train(std(**SMALL, **taught, OPTIM__MAX_EPOCH=1))


@pytest.mark.defect(13)
def test_evaluation_counts_every_image_once(load, first_epoch, caplog):
    """Loss and accuracy do not depend on how the test split falls into batches."""
    results = []
    for size in (360, 7):
        caplog.clear()
        own = {"TEST__WEIGHTS": first_epoch / "checkpoints" / "last.pt", "TEST__BATCH_SIZE": size}
        runner.test(load("debug/base_debug", **own))
        results.append(caplog.messages[-1])
    assert results[0] == results[1]


@pytest.mark.fault(19)
def test_weights_that_cannot_be_tested(load, finished):
    last = finished / "checkpoints" / "last.pt"
    with pytest.raises(ValueError, match="last.pt does not fit the model: unexpected branches.std.tokens.0.spatial"):
        runner.test(load("debug/base_debug", TEST__WEIGHTS=last))
    with pytest.raises(
        ValueError, match="last.pt holds a mixer_nano4, MODEL.NAME is resnet8: the options are those of"
    ):
        runner.test(load("debug/teacher_debug", TEST__WEIGHTS=last))


def test_teacher_below_its_floor_is_refused(std, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"teacher 0 resnet8 has top-1 \d+.\d+ .* DISTILLATION.TEACHER_MIN_ACC 99.90"):
        runner.train(std(DISTILLATION__TEACHER_MIN_ACC=99.9))
    assert not (tmp_path / "run").exists()


@pytest.mark.defect(26)
def test_untrained_head_is_below_the_default_floor(std, tmp_path, teacher):
    """The teacher of a published reproduction had a random head: one is refused without a floor being set.

    Every teacher is scored, not the first alone.
    """
    state = torch.load(teacher, weights_only=True)
    state["student"]["backbone.fc.weight"].zero_()  # all images are of one class
    torch.save(state, tmp_path / "untrained_head.pt")
    own = {
        "DISTILLATION__TEACHERS": "[resnet8, resnet8]",
        "DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}, {tmp_path}/untrained_head.pt]",
    }
    with pytest.raises(ValueError, match="teacher 1 resnet8 has top-1 .*TEACHER_MIN_ACC 32.50"):
        runner.train(std(**own))


def test_a_diverged_run_stops_and_keeps_its_last_checkpoint(load, tmp_path):
    cfg = load("debug/base_debug", OUT_DIR=tmp_path, OPTIM__NAME="sgd", OPTIM__BASE_LR=1e30, OPTIM__CLIP_NORM=0)
    with pytest.raises(FloatingPointError, match=r"loss not finite at epoch 1 iteration \d+, lr .*: ce nan"):
        runner.train(cfg)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("broken", ["loss", "evaluation"])
def test_a_run_that_ends_with_numbers_that_are_not_finite_is_not_finished(load, tmp_path, broken):
    """Diverged in its very last step, it has no checkpoint, no best and no result."""
    own = {"OPTIM__MAX_EPOCH": 1, "OPTIM__BASE_LR": 1e38, "OPTIM__CLIP_NORM": 0, "OPTIM__NAME": "sgd"}
    own |= {"OPTIM__WARMUP_EPOCHS": 0, "DATA__PER_CLASS": 13, "TRAIN__BATCH_SIZE": 64 if broken == "loss" else 130}
    text = "loss not finite at epoch 1 iteration 2" if broken == "loss" else "not finite after epoch 1: test/loss nan"
    with pytest.raises(FloatingPointError, match=text):
        runner.train(load("debug/base_debug", OUT_DIR=tmp_path, **own))
    assert not (tmp_path / "checkpoints").exists()
    assert read_run(tmp_path).status == "no results"


def test_lost_and_cut_metrics_come_back_with_a_resume(longer, tmp_path):
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train/ce": 2.')
    for path in (tmp_path / "run").glob("*tfevents*"):
        path.unlink()
    runner.train(longer())
    assert [line["epoch"] for line in logged(tmp_path / "run")] == [1, 2]
    assert list(read_run(tmp_path / "run").curves["train/ce"]) == [1, 2]


def test_a_record_stays_a_config_when_methods_and_terms_come_and_go(longer, tmp_path, monkeypatch):
    """The section of another method or term is neither in a record nor compared at a resume."""
    longer()
    record = tmp_path / "run" / "config.yaml"
    assert not {"STD", "DEIT", "KD", "MINE"} & set(yaml.safe_load(record.read_text()))
    declared = catalogue.declared
    new = {
        "TRAINERS": {"agree": Declaration("agree", {"OPTIONS": {"SHARE": 1.0}})},
        "TERMS": {"angles": Declaration("angles", {"OPTIONS": {"WEIGHT": 0.0, "POWER": 2}})},
    }
    monkeypatch.setattr(catalogue, "declared", lambda registry: declared(registry) | new.get(registry, {}))
    own = words(OPTIM__MAX_EPOCH=2, OUT_DIR=tmp_path / "run")
    runner.train(config.load(str(record), own))
    assert load_state(tmp_path / "run")["epoch"] == 2


def test_a_checkpoint_without_training_state_cannot_be_continued_from(std, finished, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes((finished / "checkpoints" / "best.pt").read_bytes())
    with pytest.raises(ValueError, match="last.pt has no training state of format 5"):
        runner.train(std())


def test_testing_with_other_options_than_in_training_is_told(std, finished, caplog):
    runner.test(std(TEST__WEIGHTS=finished / "checkpoints" / "last.pt", DATA__NORMALIZATION="half"))
    assert "was trained with other options: DATA.NORMALIZATION was '', is 'half'" in caplog.text


def test_what_counts_as_the_result_cannot_change_within_a_run(std, finished):
    own = LENGTH | {"OUT_DIR": finished, "OPTIM__MAX_EPOCH": 3}
    with pytest.raises(ValueError, match="TEST.PREDICTION was '', is 'cls'"):
        runner.train(std(TEST__PREDICTION="cls", **own))
    others = config.dump(std(TEST__BATCH_SIZE=100, DISTILLATION__TEACHER_MIN_ACC=10, **own))
    saved, path = RunFolder(finished).continued(others, processes=1)
    assert (saved["epoch"], path) == (2, finished / "checkpoints" / "last.pt")


def test_a_teacher_of_another_size_does_not_hinder_test_info_and_time(load, tmp_path, caplog):
    """A mixer trained at 16 px teaches at 16 px; test needs no teacher, info and time know its size."""
    short = SMALL | {"OPTIM__MAX_EPOCH": 1}
    runner.train(load("debug/base_debug", OUT_DIR=tmp_path / "big", DATA__IMAGE_SIZE=16, **short))
    own = short | {
        "DISTILLATION__TEACHERS": "[mixer_nano4]",
        "DISTILLATION__TEACHER_WEIGHTS": f"[{tmp_path}/big/checkpoints/last.pt]",
        "DISTILLATION__TEACHER_MIN_ACC": 0,
        "TIME__STEPS": 1,
        "TIME__WARMUP": 1,
    }
    runner.train(load("debug/std_debug", OUT_DIR=tmp_path / "small", **own))
    assert "objective: task 0.5 + std 0.5; auxiliary: mine" in caplog.messages
    caplog.clear()
    runner.test(load("debug/std_debug", TEST__WEIGHTS=tmp_path / "small" / "checkpoints" / "last.pt", **own))
    runner.time(load("debug/std_debug", **(own | {"TRAIN__BATCH_SIZE": 128})))  # which is timed in larger blocks
    runner.info(load("debug/std_debug", **own))
    assert caplog.text.count("last.pt), 16 px") == 2


def test_info_takes_timms_word_for_a_teachers_size(load, caplog):
    words = {"DISTILLATION__TEACHERS": "[resnet18.a1_in1k]", "DISTILLATION__TEACHER_WEIGHTS": "[timm]"}
    runner.info(load("std/mixer-s16_in1k_single", **words))
    assert "teacher 0 resnet18.a1_in1k (timm resnet18.a1_in1k), 224 px" in caplog.text
    assert "resnet18.a1_in1k: 11689512 parameters, 3.628 GFLOPs" in caplog.text


def test_mine_with_more_samples_than_an_epoch_is_refused_before_the_run(std, tmp_path):
    with pytest.raises(ValueError, match="MINE.SAMPLES is 500, an epoch has 469 images"):
        runner.train(std(MINE__SAMPLES=500))
    assert not (tmp_path / "run").exists()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_cuda(std, precision, tmp_path):
    runner.train(std(DEVICE="cuda", PRECISION=precision, OPTIM__MAX_EPOCH=2))
    assert read_run(tmp_path / "run").status == "finished"


def test_info_counts(std, caplog):
    runner.info(std())
    text = caplog.text
    student = build_described_trainer(std(), 10)[0].student
    total = sum(p.numel() for p in student.parameters())
    critics = 2 * ((32 + 16) * 512 + 512 + 512 * 512 + 512 + 512 + 1)
    assert f"{total + critics} in training = {total} deployed + {critics} train-only" in text
    assert "terms       task, std, mine" in text
    assert "tap 3       blocks.3: 32 channels, 4 x 4" in text
    assert "teacher     resnet8: 78042 parameters" in text
    assert "tap 0       " in text[text.index("teacher     resnet8") :], "the teacher's taps are shown, too"


def test_info_counts_operations_in_closed_form(load, caplog):
    """A Mixer's multiply-adds: patch embedding, two two-layer networks a block, the head."""
    runner.info(load("mixer/mixer-s4_c100_base"))
    patches, width, blocks = 64, 512, 8
    each = 2 * width * patches * (width // 2) + 2 * patches * width * 4 * width
    total = patches * 48 * width + blocks * each + width * 100
    assert f"operations  {2 * total / 1e9:.3f} GFLOPs" in caplog.text
    assert "17156196 in training = 17156196 deployed + 0 train-only" in caplog.text


def test_time_prints_images_per_second(std, caplog, tmp_path):
    """At a peak rate that would diverge, too: nothing is learned while time is taken."""
    runner.time(std(TIME__STEPS=2, TIME__WARMUP=1, OPTIM__NAME="sgd", OPTIM__BASE_LR=1e9, OPTIM__CLIP_NORM=0))
    for job in ("data, 16 batches", "student forward", "teachers forward", "step in fp32", "data and step, 16 times"):
        assert any(line.startswith(job) and "images/s" in line for line in caplog.messages), job
    assert any(line.startswith("memory: ") and "peak" in line for line in caplog.messages)
    assert not (tmp_path / "run").exists()


def two_datasets(folder, size=(8, 8)):
    """Folders of class folders a with cats and dogs, b with birds and fish."""
    for name, classes in (("a", ("cat", "dog")), ("b", ("bird", "fish"))):
        write_images(folder / name, classes=classes, size=size)
    return folder


@pytest.mark.fault(20)
def test_a_run_is_not_continued_nor_silently_tested_on_other_classes(load, tmp_path, caplog):
    data = two_datasets(tmp_path)
    options = {"DATA__NAME": "image_folder", "MODEL__NUM_CLASSES": 0, "TRAIN__BATCH_SIZE": 4, "OUT_DIR": data / "run"}

    def train(root, epochs):
        runner.train(load("debug/base_debug", **options, DATA__ROOT=data / root, OPTIM__MAX_EPOCH=epochs))

    train("a", epochs=1)
    for epochs in (1, 2):
        with pytest.raises(ValueError, match="is a run of other options: DATA.ROOT was 'a', is 'b'"):
            train("b", epochs)
    (data / "other").mkdir()
    (data / "b").rename(data / "other" / "a")
    with pytest.raises(ValueError, match="is a run on other classes: cat, dog; the data has bird, fish"):
        train("other/a", epochs=2)
    shutil.copytree(data / "a", data / "moved" / "a")
    train("moved/a", epochs=2)  # the same images elsewhere
    assert load_state(data / "run")["epoch"] == 2
    (data / "a" / "train" / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"is a run on \[8, 8\] images for training and test, now \[7, 8\]"):
        train("a", epochs=3)
    Image.new("RGB", (64, 64), (9, 60, 9)).save(data / "a" / "train" / "cat" / "0.png")
    with pytest.raises(ValueError, match="is a run on other files: names, labels or sizes of those in DATA.ROOT"):
        train("a", epochs=3)
    for name, told in (("a", False), ("other/a", True)):
        caplog.clear()
        weights = {"TEST__WEIGHTS": data / "run" / "checkpoints" / "last.pt", "DATA__ROOT": data / name}
        runner.test(load("debug/base_debug", **options, **weights))
        assert ("was trained on other classes: cat, dog" in caplog.text) is told


@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_a_run_that_squashed_its_images_does_not_go_on_with_cropped_ones(load, tmp_path, size):
    """As all did before DATA.FIT, which their checkpoints do not have; of square images both are the same."""
    data = two_datasets(tmp_path, size)
    options = {"DATA__NAME": "image_folder", "DATA__ROOT": data / "a", "MODEL__NUM_CLASSES": 0, "TRAIN__BATCH_SIZE": 4}

    def train(epochs, **more):
        runner.train(load("debug/base_debug", **options, OUT_DIR=data / "run", OPTIM__MAX_EPOCH=epochs, **more))

    train(1, DATA__FIT="squash")
    last = data / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    assert "  FIT: squash\n" in state["config"]
    torch.save(state | {"config": state["config"].replace("  FIT: squash\n", "")}, last)
    if size == (12, 8):
        with pytest.raises(ValueError, match="last.pt is a run that distorted its images to squares"):
            train(2)
    else:
        train(2)
        assert load_state(data / "run")["epoch"] == 2


@pytest.mark.fault(20)
def test_a_run_is_not_continued_with_other_weights_of_a_teacher(std, teacher, finished, monkeypatch):
    find = models.find_weights

    def found(name, origin):
        weights = find(name, origin)
        weights.state["fc.bias"][0] += 1e-6
        return weights

    monkeypatch.setattr(models, "find_weights", found)
    changed = rf"those of {teacher} have changed since \(DISTILLATION.TEACHER_WEIGHTS\)"
    with pytest.raises(ValueError, match=f"last.pt is a run with other weights of teacher 0: {changed}$"):
        runner.train(std(**(LENGTH | {"OUT_DIR": finished, "OPTIM__MAX_EPOCH": 3})))


def test_a_run_is_not_continued_with_other_arguments_of_a_teacher(std, finished):
    own = {"OUT_DIR": finished, "OPTIM__MAX_EPOCH": 3, "DISTILLATION__TEACHER_ARGS": "[{taps: before_relu}]"}
    with pytest.raises(ValueError, match=r"DISTILLATION.TEACHER_ARGS was \[\], is \[{'taps': 'before_relu'}\]. Choose"):
        runner.train(std(**(LENGTH | own)))


@pytest.mark.parametrize("later", [0.001, 99.0])
def test_peak_memory_is_that_of_all_starts(longer, tmp_path, monkeypatch, later):
    path = tmp_path / "run" / "run.json"
    first = json.loads(path.read_text())["peak_memory_gib"]
    monkeypatch.setattr(Runtime, "peak_memory", lambda _: later)
    runner.train(longer())
    assert json.loads(path.read_text())["peak_memory_gib"] == max(first, later) and 0.001 < first < 99


def test_an_extension_that_does_not_come_to_an_epoch_leaves_the_result(longer, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise Interrupted

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    with pytest.raises(Interrupted):
        runner.train(longer(OPTIM__MAX_EPOCH=5))
    assert read_run(tmp_path / "run").status == "finished"


def test_an_interrupted_run_is_not_finished_by_a_smaller_number_of_epochs(load, tmp_path):
    fit = loop.fit

    def fit_once(session, *, record, **options):
        def record_and_stop(*values):
            record(*values)
            raise Interrupted

        fit(session, record=record_and_stop, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit", fit_once)
        with pytest.raises(Interrupted):
            runner.train(load("debug/base_debug", OUT_DIR=tmp_path, **SMALL))
    with pytest.raises(ValueError, match="OPTIM.MAX_EPOCH was 3, is 1"):
        runner.train(load("debug/base_debug", OUT_DIR=tmp_path, OPTIM__MAX_EPOCH=1, **SMALL))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"DATA__NORMALIZATION": "mnist"}, "DATA.NORMALIZATION is 'mnist'"),
        ({"DISTILLATION__TEACHER_NORMS": "[half, mnist]"}, "DISTILLATION.TEACHER_NORMS is 'mnist'"),
        (
            {"DISTILLATION__TEACHER_ARGS": "[{}, {img_size: 3}]"},
            r"DISTILLATION.TEACHER_ARGS\[1\] has img_size, which is not for it to set",
        ),
        ({"OPTIM__NAME": "adamww"}, "OPTIM.NAME is 'adamww'"),
        ({"MODEL__NAME": "mixer_s5"}, "^MODEL.NAME: no model 'mixer_s5'"),
        ({"MODEL__NAME": "resnet50.tv_in1kk"}, "^MODEL.NAME: timm has no weights 'resnet50.tv_in1kk', but .*resnet50"),
        (
            {"DISTILLATION__TEACHERS": "[resnet32, resnet57]"},
            "^DISTILLATION.TEACHERS: no model 'resnet57' .*: resnet56",
        ),
        ({"STD__TAPS": "[middle]"}, "STD.TAPS has 'middle'"),
        (
            {f"DISTILLATION__{key}": "[]" for key in ("TEACHERS", "TEACHER_WEIGHTS", "TEACHER_NORMS")},
            "needs at least one teacher",
        ),
    ],
)
def test_contradictions_are_told_before_anything_is_fetched(load, tmp_path, overrides, text):
    cfg = load("std/mixer-s4_c100_multi", DATA__ROOT=tmp_path / "data", OUT_DIR=tmp_path / "run", **overrides)
    for mode in ("train", "test"):
        if (mode, *overrides) in (("test", "OPTIM__NAME"), ("test", "DISTILLATION__TEACHERS")):
            text = "TEST.WEIGHTS is empty"  # no optimizer and no teacher is made
        with pytest.raises(config.ConfigError, match=text):
            runner.run(mode, cfg)
    assert list(tmp_path.iterdir()) == []


def test_commit_tells_of_code_beside_it(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    (tmp_path / "pycls_std").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "pycls_std" / "old.py").touch()
    (tmp_path / "logs" / "run.json").touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "note.txt").touch()
    (tmp_path / "logs" / "run.json").unlink()  # a record is no code
    assert len(record.commit()) == 40
    (tmp_path / "pycls_std" / "new.py").touch()
    assert record.commit().endswith("-dirty")


def test_test_split_alone_is_enough_to_test(load):
    assert build_data(load("debug/base_debug"), train=False).train is None
