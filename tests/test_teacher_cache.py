"""What teachers say is kept and told again: the same run, other seeds and students, and what makes another cache."""

import errno
import logging

import numpy as np
import pytest
import torch
from processes import Running, two_ranks, wait_for
from records import assert_same_run, load_state, same

from pycls_std import runner
from pycls_std.config import ConfigError
from pycls_std.engine import files
from pycls_std.engine.kept_logits import form, pack, unpack
from pycls_std.models.teacher import Teacher

CPU = torch.device("cpu")


# --------------------------------------------------------------------------------------------------------------- logits
def test_all_logits_are_kept_exactly_or_in_half_the_bytes():
    logits = 5 * torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(logits, form("fp32", 10)), 10, CPU), logits)
    half = unpack(pack(logits, form("fp16", 10)), 10, CPU)
    assert torch.equal(half, logits.half().float())
    assert [form(precision, 100).itemsize for precision in ("fp32", "fp16")] == [400, 200]


def test_the_largest_logits_and_the_probability_of_the_rest():
    """The kept classes have their probabilities, the others share what is left; the argmax stays."""
    logits = 5 * torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    kind = form("fp32", 100, 5)
    kept = unpack(pack(logits, kind), 100, CPU)
    values, places = logits.topk(5, dim=1)
    torch.testing.assert_close(kept.gather(1, places), values, rtol=0, atol=0)
    torch.testing.assert_close(kept.logsumexp(1), logits.logsumexp(1))
    torch.testing.assert_close(kept.softmax(1).gather(1, places), logits.softmax(1).gather(1, places))
    others = kept.scatter(1, places, 0.0)
    assert all(len(row.unique()) == 2 for row in others)
    assert torch.equal(kept.argmax(1), logits.argmax(1))
    assert (kind.itemsize, form("fp16", 100, 5).itemsize) == (5 * 4 + 4 + 5 * 2, 5 * 2 + 2 + 5 * 2)
    with pytest.raises(
        ValueError, match=r"DISTILLATION.CACHE_TOP is 10, expected 0 \(all\) to 9: there are 10 classes"
    ):
        form("fp16", 10, 10)


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.fixture
def train(method, tmp_path, monkeypatch):
    """Return train(name, **overrides): the folder of a run whose cache is in tmp_path/kept, and its teachers' calls."""
    calls = []
    forward = Teacher.forward

    def counted(self, images):
        calls.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)

    def run(name, cache=True, kind="std", **overrides):
        calls.clear()
        own = {"OUT_DIR": tmp_path / name} | ({"DISTILLATION__CACHE": tmp_path / "kept"} if cache else {})
        runner.train(method(kind, **own | overrides))
        return tmp_path / name, sum(size == 128 for size in calls)  # the test split comes in batches of 360

    return run


def kept(tmp_path):
    return sorted(str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*.*"))


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_a_cached_run_is_the_run(train, tmp_path, form):
    """Without, writing, reading: the same bits, with mixup, cutmix, repeats, MINE, average. Reading asks no teacher."""
    options = {"DISTILLATION__TYPE": form}
    plain, asked = train("plain", cache=False, **options)
    assert asked == 3 * 11
    writing, asked = train("writing", **options)
    assert asked == 3 * 11
    assert [name.split("/")[1] for name in kept(tmp_path)] == [f"epoch-000{epoch}.npy" for epoch in (1, 2, 3)]
    reading, asked = train("reading", **options)
    assert asked == 0
    assert_same_run(plain, writing)
    assert_same_run(plain, reading)


@pytest.mark.parametrize("kind", ["deit", "kd"])
def test_every_method_reads_it(train, kind):
    writing, asked = train("writing", kind=kind, OPTIM__MAX_EPOCH=1)
    assert asked == 11
    reading, asked = train("reading", kind=kind, OPTIM__MAX_EPOCH=1)
    assert asked == 0
    assert_same_run(writing, reading)


def test_what_is_kept_is_what_the_teacher_said_of_the_mixed_images(train, tmp_path, std):
    """Every entry against the teacher on the batches that the run's parts make anew."""
    from pycls_std.builders.training import build_all, build_runtime
    from pycls_std.core.structures import Progress

    train("run")
    cfg = std()
    session, _ = build_all(cfg, build_runtime(cfg))
    session.train_loader.sampler.epoch = 1
    entries = np.load(next((tmp_path / "kept").rglob("epoch-0002.npy")))["values"]
    assert entries.shape == (11 * 128, 10)
    for iteration, (images, labels) in enumerate(session.train_loader):
        batch = session.mixing(images, labels, Progress(1, iteration, 11, 3))
        said = session.trainer.teachers[0](batch.images).logits
        torch.testing.assert_close(torch.from_numpy(entries[128 * iteration :][:128]), said, rtol=1e-4, atol=1e-4)


def test_other_seeds_students_and_lengths_share_it(train, tmp_path):
    train("first", DATA__SEED=0)
    before = kept(tmp_path)
    others = [{"SEED": 1}, {"MODEL__ARGS__embed_dim": 16}, {"DISTILLATION__ALPHA": 0.9}, {"AUG__LABEL_SMOOTHING": 0.2}]
    for number, other in enumerate(
        [*others, {"MINE__SAMPLES": 0}, {"OPTIM__BASE_LR": 0.01}, {"TEST__BATCH_SIZE": 100}]
    ):
        assert train(f"other{number}", DATA__SEED=0, OPTIM__MAX_EPOCH=1, **other)[1] == 0, other
    assert kept(tmp_path) == before
    _, asked = train("longer", DATA__SEED=0, OPTIM__MAX_EPOCH=4)
    assert asked == 11
    assert len(kept(tmp_path)) == len(before) + 1
    first, other = (load_state(tmp_path / name)["student"] for name in ("first", "longer"))
    assert not same(first, other)


@pytest.mark.parametrize(
    "other",
    [
        {"SEED": 1},
        {"DATA__SEED": 1},
        {"AUG__MIXUP": 0.7},
        {"AUG__CUTMIX": 0.5},
        {"AUG__MIX_PROB": 0.5},
        {"AUG__MIX_SWITCH": 0.1},
        {"AUG__FLIP": 0.5},
        {"AUG__CROP": "none"},
        {"AUG__CROP_PADDING": 2},
        {"AUG__RAND_AUGMENT": ""},
        {"AUG__ERASING": 0.1},
        {"DATA__IMAGE_SIZE": 16},
        {"DISTILLATION__TEACHER_SIZES": "[16]"},
        {"DISTILLATION__TEACHER_FOLD": "false"},
        {"AUG__REPEATS": 1},
        {"TRAIN__BATCH_SIZE": 64},
        {"DATA__NORMALIZATION": "half"},
        {"DISTILLATION__TEACHER_PRECISION": "bf16"},
        {"DISTILLATION__TEACHER_NORMS": "[half]"},
        {"DISTILLATION__CACHE_PRECISION": "fp16"},
        {"DISTILLATION__CACHE_TOP": 3},
    ],
    ids=lambda other: " ".join(other),
)
def test_what_changes_the_logits_changes_the_folder(train, tmp_path, other):
    options = {"OPTIM__MAX_EPOCH": 1, "DISTILLATION__TEACHER_MIN_ACC": 0}
    train("first", **options)
    _, asked = train("other", **options | other)
    assert asked or "TRAIN__BATCH_SIZE" in other
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_other_weights_and_other_images_are_another_cache(train, tmp_path, teacher, monkeypatch):
    train("first", OPTIM__MAX_EPOCH=1)
    weights = torch.load(teacher, weights_only=True)
    weights["student"]["backbone.fc.bias"][0] += 1e-3
    torch.save(weights, tmp_path / "moved.pt")
    train("weights", OPTIM__MAX_EPOCH=1, DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path / 'moved.pt'}]")
    assert len(list((tmp_path / "kept").iterdir())) == 2
    from pycls_std.datasets import digits

    before = digits.Digits.__init__

    def changed(self, split):
        before(self, split)
        self.images[5, 0, 0] ^= 1

    monkeypatch.setattr(digits.Digits, "__init__", changed)
    train("images", OPTIM__MAX_EPOCH=1)
    assert len(list((tmp_path / "kept").iterdir())) == 3


@pytest.mark.parametrize("options", [{"DISTILLATION__CACHE_PRECISION": "fp16"}, {"DISTILLATION__CACHE_TOP": 3}])
def test_a_run_that_writes_less_than_everything_is_taught_what_it_writes(train, options):
    """So that the first run and those that read what it kept are one."""
    options = {"DISTILLATION__TYPE": "soft", **options}
    assert_same_run(train("writing", **options)[0], train("reading", **options)[0])


def test_a_killed_run_leaves_no_half_epoch(train, teacher, tmp_path):
    words = ["--mode", "train", "--cfg", "configs/debug/std_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]"]
    words += [f"OUT_DIR={tmp_path / 'run'}", f"DISTILLATION.CACHE={tmp_path / 'kept'}"]
    running = Running(tmp_path, words, hook="processes:pause", arguments=(str(tmp_path), 1, 5, 3600.0))
    wait_for((tmp_path / "paused").exists)
    running.signal(9)
    running.end()
    assert [name.split("/")[1] for name in kept(tmp_path) if ".tmp" not in name] == ["epoch-0001.npy"]
    assert Running(tmp_path, words).end()[0] == 0
    assert_same_run(tmp_path / "run", train("plain", cache=False)[0])
    _, asked = train("reading")
    assert asked == 0


def test_a_stopped_run_leaves_no_part_of_an_epoch(teacher, tmp_path):
    words = ["--mode", "train", "--cfg", "configs/debug/std_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]"]
    words += [f"OUT_DIR={tmp_path / 'run'}", f"DISTILLATION.CACHE={tmp_path / 'kept'}"]
    running = Running(tmp_path, words, hook="processes:pause", arguments=(str(tmp_path), 1, 5, 0.3))
    wait_for((tmp_path / "paused").exists)
    running.signal(15)
    assert running.end()[0] == 143
    assert [name.split("/")[1] for name in kept(tmp_path)] == ["epoch-0001.npy"]


def test_a_folder_that_cannot_be_written_is_told_before_the_run(train, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(OSError, match=r"kept/resnet8-\w+ could not be written: Not a directory"):
        train("run")
    assert not (tmp_path / "run").exists()


def test_two_processes_keep_their_own_shares(teacher, tmp_path):
    words = ["--mode", "train", "--cfg", "configs/debug/std_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]"]
    words += ["OPTIM.MAX_EPOCH=2"]
    for name, own in (
        ("plain", []),
        *[(n, [f"DISTILLATION.CACHE={tmp_path / 'kept'}"]) for n in ("writing", "reading")],
    ):
        for one in two_ranks(tmp_path / f"of {name}", [*words, *own, f"OUT_DIR={tmp_path / name}"]):
            assert one.end()[0] == 0
    names = [f"epoch-000{epoch}-{rank}of2.npy" for epoch in (1, 2) for rank in (0, 1)]
    assert [name.split("/")[1] for name in kept(tmp_path)] == names
    assert_same_run(tmp_path / "plain", tmp_path / "writing")
    assert_same_run(tmp_path / "plain", tmp_path / "reading")


# --------------------------------------------------------------------------------------------------------------- faults
def test_sizes_are_told_before_anything_is_written(train, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="pycls_std"):
        train("first", OPTIM__MAX_EPOCH=1)
        train("second")
    lines = [line for line in caplog.messages if line.startswith("DISTILLATION.CACHE")]
    there = "files are there and will be read (one for each teacher and epoch)"
    assert lines[0].endswith(f"kept: 0 of 1 {there}, 1 will be written, of 1408 views each, 0.1 MiB in all")
    assert lines[1].endswith(f"kept: 1 of 3 {there}, 2 will be written, of 1408 views each, 0.1 MiB in all")


def test_no_room(train, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 2 * 1408 * 40})
    monkeypatch.setattr("pycls_std.engine.teacher_cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="kept has 0.1 MiB free, 0.2 are needed"):
        train("run")
    assert kept(tmp_path) == []
    assert train("run", OPTIM__MAX_EPOCH=2)[1] == 22


def test_a_disk_that_fills_up_names_the_file_and_leaves_nothing(train, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    before = files.Growing.__init__

    def filled(self, path):
        before(self, path)
        self.file = Full(self.file)

    monkeypatch.setattr(files.Growing, "__init__", filled)
    with pytest.raises(OSError, match=r"epoch-0001.npy could not be written: No space left on device"):
        train("run")
    assert kept(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "short", "a byte"])
def test_a_damaged_file_is_named(train, tmp_path, damage):
    train("first", OPTIM__MAX_EPOCH=1)
    path = next((tmp_path / "kept").rglob("*.npy"))
    content = path.read_bytes()
    if damage == "short":
        np.save(path, np.load(path)[:-1])
    else:
        turned = content[:-500] + bytes([content[-500] ^ 1]) + content[-499:]
        path.write_bytes({"cut": content[:-1], "garbage": b"x" * 500, "empty": b"", "a byte": turned}[damage])
    with pytest.raises(ValueError, match=r"epoch-0001.npy is damaged, delete it"):
        train("second", OPTIM__MAX_EPOCH=1)


def test_a_disk_that_is_full_at_last_leaves_nothing(train, tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match=r"could not be written: No space left on device"):
            train("run")
    assert kept(tmp_path) == []


def test_two_teachers_that_are_one(train, teacher, tmp_path):
    """Both write the same file, as two runs in one folder may."""
    both = {"DISTILLATION__TEACHERS": "[resnet8, resnet8]", "DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}, {teacher}]"}
    both |= {"OPTIM__MAX_EPOCH": 1, "STD__TAPS": "[last]"}
    assert train("writing", **both)[1] == 22
    assert train("reading", **both)[1] == 0
    assert_same_run(tmp_path / "writing", tmp_path / "reading")


def test_the_cache_can_be_moved_and_left_between_two_starts(train, tmp_path):
    """Where it changes nothing."""
    train("run", OPTIM__MAX_EPOCH=1)
    train("run", OPTIM__MAX_EPOCH=2, DISTILLATION__CACHE=tmp_path / "elsewhere")
    train("run", OPTIM__MAX_EPOCH=3, cache=False)
    half = {"DISTILLATION__CACHE_PRECISION": "fp16"}
    train("half", OPTIM__MAX_EPOCH=1, **half)
    with pytest.raises(ValueError, match="DISTILLATION.CACHE was"):
        train("half", cache=False, **half)


def test_what_cannot_be_kept_is_refused(train, load, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* for DATA.LOADER is workers"):
        train("run", DATA__LOADER="workers")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* for there are no DISTILLATION.TEACHERS"):
        load("debug/base_debug", DISTILLATION__CACHE=tmp_path / "kept")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE_TOP is 3, expected 0 with LOGIT_STANDARD"):
        train("run", DISTILLATION__CACHE_TOP=3, DISTILLATION__LOGIT_STANDARD="true")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* with TEACHER_BN batch"):
        train("run", DISTILLATION__TEACHER_BN="batch")
    monkeypatch.setattr("pycls_std.datasets.memory.store.LIMIT", 1000)
    with pytest.raises(ValueError, match="DISTILLATION.CACHE is .*, the images are not in memory"):
        train("run")


def test_what_nobody_finished_is_removed_after_a_day(train, tmp_path):
    import os

    train("first", OPTIM__MAX_EPOCH=1)
    folder = next((tmp_path / "kept").iterdir())
    for name, age in (("old", 90000), ("new", 10)):
        path = folder / f".epoch-0002.npy.{name}.tmp"
        path.write_bytes(b"half")
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))
    train("second", OPTIM__MAX_EPOCH=1)
    assert [path.name for path in folder.glob(".*")] == [".epoch-0002.npy.new.tmp"]
