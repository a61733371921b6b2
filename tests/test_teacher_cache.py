"""What teachers say is kept and told again: the same run, other seeds and students, and what makes another cache."""

import errno
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from processes import Running, finish, paused, two_ranks
from records import assert_same_run, same
from waits import NoReads

from pycls_std import config, runner
from pycls_std.builders.cache import build_cache
from pycls_std.builders.teachers import optimize_teachers
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.config import ConfigError
from pycls_std.core.structures import Batch, Output, Progress, World
from pycls_std.datasets import digits
from pycls_std.engine import arriving, files
from pycls_std.engine.arriving import Arriving
from pycls_std.run.identity import refuse_other_options
from pycls_std.teachers import cache as caches
from pycls_std.teachers.cache import EpochCache
from pycls_std.teachers.packing import entries, entry_type, pack, unpack
from pycls_std.teachers.teacher import Request, Teacher

CPU = torch.device("cpu")
EPOCHS = 2  # of a run: one more than the first
ASKED = 11  # batches of an epoch
TAPS = ("layer1", "layer3", "pooled")  # of a ResNet-8


# ------------------------------------------------------------------------------------------------------------- entries
SHAPES = {"head:cls": (100,), "tap:layer2": (3, 4, 2), "tap:pooled": (6,)}


def said(count=7):
    """What a teacher says of some images, in the memory formats that it may have."""
    generator = torch.Generator().manual_seed(0)
    logits, maps, pooled = (5 * torch.randn(count, *shape, generator=generator) for shape in SHAPES.values())
    return Output({"cls": logits}, {"layer2": maps.to(memory_format=torch.channels_last), "pooled": pooled})


@pytest.mark.parametrize(("precision", "kept", "size"), [("fp32", torch.float32, 4), ("fp16", torch.float16, 2)])
def test_all_is_kept_exactly_or_in_half_the_bytes(precision, kept, size):
    """Heads and features, or one of them; parts of a batch are told alike."""
    kind, output = entry_type(SHAPES, precision), said()
    assert kind.itemsize == size * (100 + 3 * 4 * 2 + 6)
    entries = pack(output, kind)
    assert (entries.shape, entries.dtype) == ((7,), kind)
    assert same(unpack(entries, SHAPES, CPU), as_kept(output, kept))
    part = Output(*({name: value[2:5] for name, value in part.items()} for part in output))
    assert same(unpack(entries[2:5], SHAPES, CPU), as_kept(part, kept))
    for name, shape in SHAPES.items():
        kind, own = entry_type({name: shape}, precision), name.partition(":")[2]
        alone = Output(*({n: value for n, value in part.items() if n == own} for part in output))
        assert same(unpack(pack(alone, kind), {name: shape}, CPU), as_kept(alone, kept))
        assert kind.itemsize == size * math.prod(shape)


def test_the_largest_logits_and_the_probability_of_the_rest():
    """The kept classes have their probabilities, the others share what is left; the argmax stays. So do features."""
    kind, output = entry_type(SHAPES, "fp32", 5), said(64)
    told = unpack(pack(output, kind), SHAPES, CPU)
    logits, kept = output.heads["cls"], told.heads["cls"]
    values, places = logits.topk(5, dim=1)
    torch.testing.assert_close(kept.gather(1, places), values, rtol=0, atol=0)
    torch.testing.assert_close(kept.logsumexp(1), logits.logsumexp(1))
    torch.testing.assert_close(kept.softmax(1).gather(1, places), logits.softmax(1).gather(1, places))
    others = kept.scatter(1, places, 0.0)
    assert all(len(row.unique()) == 2 for row in others)
    assert torch.equal(kept.argmax(1), logits.argmax(1))
    assert same(told.features, output.features)
    half = entry_type(SHAPES, "fp16", 5)
    assert (kind.itemsize, half.itemsize) == (5 * 4 + 4 + 5 * 2 + 30 * 4, 5 * 2 + 2 + 5 * 2 + 30 * 2)
    with pytest.raises(
        ValueError, match=r"DISTILLATION.CACHE_TOP is 10, expected 0 \(all\) to 9: there are 10 classes"
    ):
        entry_type({"head:cls": (10,)}, "fp16", 10)


# --------------------------------------------------------------------------------------------------------------- caches
@pytest.fixture
def build(method, tmp_path):
    """Return build(..., **overrides): a session whose cache is in tmp_path/kept, and its cache.

    kind: of method. taps, head: what it asks of its teachers. epochs: of the run.
    """

    def one(kind="std", taps=(), head=True, epochs=3, **overrides):
        cfg = method(kind, **({"DISTILLATION__CACHE": tmp_path / "kept"} | overrides))
        session, data, weights = build_all(cfg, build_runtime(cfg))
        live = session.teacher_outputs
        live.requests = [request._replace(head=head, taps=taps) for request in live.requests]
        optimize_teachers(cfg, session)
        return session, build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=range(epochs))

    return one


@pytest.fixture
def folder(build):
    """Return folder(**options): where a run keeps what its teacher says, which stands for all that it depends on."""
    return lambda **options: build(DATA__PER_CLASS=30, **options)[1].specs[0].folder


def tell(session, teachers, epoch=0):
    """What teachers say in an epoch, batch by batch."""
    loader, told = session.train_loader, []
    loader.sampler.epoch = epoch
    for iteration, loaded in enumerate(loader):
        progress = Progress(epoch, iteration, len(loader), 3)
        told.append(teachers(session.task.batch(loaded, progress), progress))
    return told


def as_kept(output, number):
    """An output as numbers of this type keep it."""
    return Output(*({name: value.to(number).float() for name, value in part.items()} for part in output))


def kept_files(tmp_path):
    return sorted(str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*.*"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"taps": TAPS},
        {"taps": TAPS[:1], "head": False},
        {"taps": TAPS, "DISTILLATION__CACHE_PRECISION": "fp16"},
        {"taps": TAPS, "DISTILLATION__CACHE_TOP": 3},
    ],
    ids=str,
)
def test_what_is_kept_is_what_the_teacher_said_of_the_mixed_images(build, tmp_path, options):
    """Exactly, or as it is kept: then the epoch that writes it is taught that as well, and no later one differs."""
    session, kept = build(**options)
    live, asked = tell(session, session.teacher_outputs, epoch=1), []
    session.trainer.teachers[0].register_forward_hook(lambda *_: asked.append(1))
    writing = tell(session, kept, epoch=1)
    assert len(asked) == ASKED
    reading = tell(session, kept, epoch=1)
    assert len(asked) == ASKED
    assert same(writing, reading)
    if options.get("DISTILLATION__CACHE_TOP"):
        assert same([output.features for (output,) in writing], [output.features for (output,) in live])
        logits = [torch.cat([output.heads["cls"] for (output,) in told]) for told in (writing, live)]
        assert torch.equal(*(each.topk(3).values for each in logits))
        assert not torch.equal(*logits)
    else:
        number = torch.float16 if "DISTILLATION__CACHE_PRECISION" in options else torch.float32
        assert same(writing, [[as_kept(output, number)] for (output,) in live])
    wanted = (["cls"] if options.get("head", True) else [], list(options.get("taps", ())))
    assert all(tuple(map(list, output)) == wanted for (output,) in reading)
    (name,) = kept_files(tmp_path)
    assert name.endswith("/epoch-0002.npy")
    entries = np.load(tmp_path / "kept" / name)
    assert (entries.shape, entries.dtype) == ((ASKED * 128,), kept.specs[0].kind)


def test_two_teachers_that_are_one(build, teacher, tmp_path):
    """Both write the same file, as two runs in one folder may."""
    both = {"DISTILLATION__TEACHERS": "[resnet8, resnet8]", "DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}, {teacher}]"}
    session, kept = build(STD__TAPS="[last]", **both)
    live = tell(session, session.teacher_outputs)
    assert same(tell(session, kept), live)
    assert len(kept_files(tmp_path)) == 1
    assert same(tell(session, kept), live)


def test_other_methods_seeds_students_and_lengths_share_it(folder):
    first = folder(DATA__SEED=0)
    others = [{"SEED": 1}, {"MODEL__ARGS__embed_dim": 16}, {"TASK__WEIGHT": 0.1, "STD__WEIGHT": 0.9}]
    others += [{"AUG__LABEL_SMOOTHING": 0.2}, {"MINE__SAMPLES": 0}, {"OPTIM__BASE_LR": 0.01}, {"OPTIM__MAX_EPOCH": 4}]
    others += [{"TEST__BATCH_SIZE": 100}, {"kind": "kd"}, {"kind": "deit"}]
    found = {str(other): folder(DATA__SEED=0, **other) for other in others}
    assert {other: path for other, path in found.items() if path != first} == {}


OTHERS = [
    {"SEED": 1},
    {"DATA__SEED": 1},
    {"AUG__MIXUP": 0.7},
    {"AUG__CUTMIX": 0.5},
    {"AUG__MIX_PROB": 0.5},
    {"AUG__MIX_SWITCH": 0.1},
    {"AUG__FLIP": 0.5},
    {"AUG__CROP": "none"},
    {"AUG__CROP_PADDING": 2},
    {"AUG__INTERPOLATION": "bilinear"},
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
    {"DISTILLATION__TEACHER_ARGS": "[{taps: before_relu}]"},
    {"DISTILLATION__CACHE_PRECISION": "fp16"},
    {"DISTILLATION__CACHE_TOP": 3},
    {"taps": ("layer1",)},
    {"taps": ("layer2",)},
    {"taps": ("layer1",), "head": False},
]


def test_what_changes_what_is_said_changes_the_folder(folder, teacher, tmp_path, monkeypatch):
    """Options, other weights, other images; SEED and DATA.SEED 1 are the same views."""
    found = {"as it is": folder()} | {str(other): folder(**other) for other in OTHERS}
    weights = torch.load(teacher, weights_only=True)
    weights["student"]["backbone.fc.bias"][0] += 1e-3
    torch.save(weights, tmp_path / "moved.pt")
    found["weights"] = folder(DISTILLATION__TEACHER_WEIGHTS=f"[{tmp_path / 'moved.pt'}]")
    before = digits.Digits.__init__

    def changed(self, split):
        before(self, split)
        self.images[5, 0, 0] ^= 1

    monkeypatch.setattr(digits.Digits, "__init__", changed)
    found["images"] = folder()
    names = {}
    for what, path in found.items():
        names.setdefault(path, []).append(what)
    assert [alike for alike in names.values() if len(alike) > 1] == [["{'SEED': 1}", "{'DATA__SEED': 1}"]]


@pytest.mark.parametrize("offline", [False, True])
def test_arguments_change_the_folder_whoever_gives_them(folder, teacher, tmp_path, offline):
    """No module shows where taps are read: a checkpoint that says so, a file of its weights, that file given them."""
    state = torch.load(teacher, weights_only=True)
    own = state["config"].replace("  ARGS: {}", "  ARGS: {taps: before_relu}")
    assert own != state["config"]
    torch.save(state | {"config": own}, tmp_path / "own.pt")
    options = {"AUG__MIXUP": 0, "AUG__CUTMIX": 0, "DISTILLATION__OFFLINE": True} if offline else {}
    found = {}
    for path, own in ((teacher, ""), (tmp_path / "own.pt", "before_relu")):
        for given in ("", "before_relu", "after_relu"):
            args = f"[{{taps: {given}}}]" if given else "[{}]"
            more = {"DISTILLATION__TEACHER_WEIGHTS": f"[{path}]", "DISTILLATION__TEACHER_ARGS": args}
            found.setdefault(given or own, set()).add(folder(**more, **options))
    assert {taps: len(folders) for taps, folders in found.items()} == {"": 1, "before_relu": 1, "after_relu": 1}
    assert len(set.union(*found.values())) == 3


def test_another_share_of_each_batch_changes_the_folder(method, tmp_path):
    """Of one process, of the first of two, and of that one when batches are shared out otherwise."""
    cfg = method("std", DISTILLATION__CACHE=tmp_path / "kept", DATA__PER_CLASS=30)
    session, data, weights = build_all(cfg, build_runtime(cfg))
    found = set()
    for size, places in ((1, None), (2, [0, 2]), (2, [0, 3])):
        world = session.runtime.world = World()
        world.size, world.positions = size, lambda _, places=places: places
        cache = build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=range(1))
        found.add(cache.specs[0].folder)
    assert len(found) == 3


def test_another_number_of_threads_changes_the_folder(method, tmp_path):
    """Sums of other numbers of threads round otherwise, so what is kept would not end in the same bits."""
    cfg = method("std", DISTILLATION__CACHE=tmp_path / "kept", DATA__PER_CLASS=30)
    session, data, weights = build_all(cfg, build_runtime(cfg))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            cache = build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=range(1))
            found.append(cache.specs[0].folder)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[2] != found[1]


def test_another_model_of_gpu_changes_the_folder(method, tmp_path, monkeypatch):
    """Its kernels may add in another order."""
    cfg = method("std", DISTILLATION__CACHE=tmp_path / "kept", DATA__PER_CLASS=30)
    session, data, weights = build_all(cfg, build_runtime(cfg))
    session.runtime.device, found = torch.device("cuda"), []
    for name in ("NVIDIA A100", "NVIDIA H200", "NVIDIA A100"):
        monkeypatch.setattr(session.runtime, "device_name", lambda name=name: name)
        cache = build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=range(1))
        found.append(cache.specs[0].folder)
    assert found[0] == found[2] != found[1]


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.fixture(scope="module")
def written(teacher, tmp_path_factory):
    """A run that kept what its teacher said: its folder, and beside it the cache, `kept`."""
    place = tmp_path_factory.mktemp("written")
    words = [f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", f"DISTILLATION.CACHE={place / 'kept'}"]
    words += [f"OPTIM.MAX_EPOCH={EPOCHS}", f"OUT_DIR={place / 'run'}"]
    runner.train(config.load(str(ROOT / "configs" / "debug" / "std_debug.yaml"), words))
    return place / "run"


@pytest.fixture
def copied(written, tmp_path):
    """The same, with a copy of the cache in tmp_path/kept."""
    shutil.copytree(written.parent / "kept", tmp_path / "kept")
    return written


@pytest.fixture
def train(method, tmp_path, monkeypatch):
    """Return train(name, **overrides): the folder of a run whose cache is in tmp_path/kept, and its teachers' calls."""
    calls = []
    forward = Teacher.forward

    def counted(self, images, request=Request()):  # noqa: B008  (immutable)
        calls.append(len(images))
        return forward(self, images, request)

    monkeypatch.setattr(Teacher, "forward", counted)

    def run(name, cache=True, kind="std", **overrides):
        calls.clear()
        own = {"OUT_DIR": tmp_path / name, "OPTIM__MAX_EPOCH": EPOCHS}
        own |= {"DISTILLATION__CACHE": tmp_path / "kept"} if cache else {}
        runner.train(method(kind, **own | overrides))
        return tmp_path / name, sum(size == 128 for size in calls)  # the test split comes in batches of 360

    return run


def words_of(teacher, tmp_path, cache=True, **overrides):
    """The command of such a run in a process of its own."""
    words = ["--mode", "train", "--cfg", "configs/debug/std_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]"]
    words += [f"DISTILLATION.CACHE={tmp_path / 'kept'}"] if cache else []
    return words + [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]


def test_a_cached_run_is_the_run(train, copied, caplog):
    """Without, writing, reading: the same bits, with mixup, cutmix, repeats, MINE, average. Reading asks no teacher."""
    plain, asked = train("plain", cache=False)
    assert asked == EPOCHS * ASKED
    assert_same_run(plain, copied)
    assert [path.name for path in (copied.parent / "kept").rglob("*.*")] == ["epoch-0001.npy", "epoch-0002.npy"]
    reading, asked = train("reading")
    assert asked == 0
    assert_same_run(plain, reading)
    (line,) = [line for line in caplog.messages if line.startswith("DISTILLATION.CACHE")]
    assert line.endswith("kept: 2 of 2 files are there and will be read (one for each teacher and epoch)")


@pytest.mark.parametrize("kind", ["deit", "kd"])
def test_every_method_reads_it(train, copied, kind):
    """What the run of another method kept."""
    plain, _ = train("plain", cache=False, kind=kind, OPTIM__MAX_EPOCH=1)
    reading, asked = train("reading", kind=kind, OPTIM__MAX_EPOCH=1)
    assert asked == 0
    assert_same_run(plain, reading)


MAPS = {"LOCALITY__WEIGHT": 1.0, "LOCALITY__STUDENT_TAPS": "[1, last]", "LOCALITY__TEACHER_TAPS": "[0, 1]"}


@pytest.mark.parametrize(
    ("kind", "options", "entries"),
    [
        ("std", MAPS | {"MINE__SAMPLES": 0}, ("head:cls", "tap:layer1", "tap:layer2")),
        ("locality", {"KD__WEIGHT": 0.5}, ("head:cls", "tap:layer1", "tap:layer2", "tap:layer3")),
        ("vkd", {}, ("head:cls", "tap:pooled")),
        ("feature", {"FEATURE__LOSS": "rkd"}, ("tap:pooled",)),
        (
            *("feature", {"FEATURE__LOSS": "reviewkd", "FEATURE__WARMUP_EPOCHS": 0}),
            ("tap:layer1", "tap:layer2", "tap:layer3", "tap:pooled"),
        ),
    ],
)
def test_a_run_that_reads_features(train, tmp_path, kind, options, entries):
    """One that asks, one that writes and one that reads are one, bit for bit; nothing is kept that nobody reads."""
    options = options | {"OPTIM__MAX_EPOCH": 1}
    plain, _ = train("plain", cache=False, kind=kind, **options)
    for name, calls in (("writing", ASKED), ("reading", 0)):
        run, asked = train(name, kind=kind, **options)
        assert asked == calls
        assert_same_run(plain, run)
    assert np.load(next((tmp_path / "kept").rglob("*1.npy"))).dtype.names == entries


def test_a_stopped_or_killed_run_leaves_no_half_epoch(teacher, written, tmp_path, train):
    """Stopped, then killed in its second epoch, then finished; what it kept is then whole."""
    words = words_of(teacher, tmp_path, OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=EPOCHS)
    for number, code, seconds in ((15, 143, 0.3), (9, -9, 3600.0)):
        running = paused(tmp_path, words, epoch=1, iteration=5, seconds=seconds)
        running.signal(number)
        assert running.end()[0] == code
        names = [name.split("/")[1] for name in kept_files(tmp_path)]
        assert [name for name in names if ".tmp" not in name] == ["epoch-0001.npy"]
        assert len(names) == (1 if number == 15 else 2), "only who is killed leaves a part"
    finish(Running(tmp_path, words))
    assert_same_run(tmp_path / "run", written)
    reading, asked = train("reading")
    assert asked == 0
    assert_same_run(reading, written)


@pytest.mark.slow
def test_two_processes_keep_their_own_shares(teacher, tmp_path):
    for name in ("plain", "writing", "reading"):
        words = words_of(teacher, tmp_path, name != "plain", OPTIM__MAX_EPOCH=1, OUT_DIR=tmp_path / name)
        finish(*two_ranks(tmp_path / f"of {name}", words))
        if name == "writing":
            names = [f"epoch-0001-{rank}of2.npy" for rank in (0, 1)]
            assert [name.split("/")[1] for name in kept_files(tmp_path)] == names
    assert_same_run(tmp_path / "plain", tmp_path / "writing")
    assert_same_run(tmp_path / "plain", tmp_path / "reading")


def test_the_cache_can_be_moved_and_left_between_two_starts(train, method, written, tmp_path):
    """Where it changes nothing."""
    shutil.copytree(written, tmp_path / "run")
    _, asked = train("run", OPTIM__MAX_EPOCH=3, DISTILLATION__CACHE=tmp_path / "elsewhere")
    assert asked == ASKED
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*.*")] == ["epoch-0003.npy"]
    _, asked = train("run", OPTIM__MAX_EPOCH=4, cache=False)
    assert asked == ASKED
    half = {"DISTILLATION__CACHE_PRECISION": "fp16"}
    options = [config.dump(method("std", DISTILLATION__CACHE=tmp_path / "kept", **half)), config.dump(method("std"))]
    with pytest.raises(ValueError, match="DISTILLATION.CACHE_PRECISION was 'fp16', is 'fp32'"):
        refuse_other_options({"config": options[0], "processes": 1}, options[1], 1, written)
    with pytest.raises(ConfigError, match="CACHE_PRECISION is 'fp16', expected fp32, for nothing is kept"):
        method("std", **half)


# --------------------------------------------------------------------------------------------------------------- faults
def test_a_folder_that_cannot_be_written_is_told_before_the_run(train, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(OSError, match="kept could not be written: File exists"):
        train("run")
    assert not (tmp_path / "run").exists()


def test_sizes_are_told_before_anything_is_written(build, copied, caplog):
    """An entry has 10 logits of 4 bytes, and of features as many numbers as they have."""
    build()
    _, kept = build(taps=TAPS)
    assert kept.specs[0].kind.itemsize == 4 * (10 + 16 * 8 * 8 + 64 * 2 * 2 + 64)
    lines = [line for line in caplog.messages if line.startswith("DISTILLATION.CACHE")]
    there = "files are there and will be read (one for each teacher and epoch)"
    assert lines[0].endswith(f"kept: 2 of 3 {there}, 1 will be written, of 1408 views each, 0.1 MiB in all")
    assert lines[1].endswith(f"kept: 0 of 3 {there}, 3 will be written, of 1408 views each, 21.8 MiB in all")


def test_no_room(build, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 2 * 1408 * 40})
    monkeypatch.setattr("pycls_std.teachers.cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="kept has 0.1 MiB free, 0.2 are needed"):
        build(epochs=3)
    assert kept_files(tmp_path) == []
    build(epochs=2)


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
    assert kept_files(tmp_path) == []


ENTRIES = np.arange(60, dtype=np.float32).view([("head:cls", np.float32, (3,))])  # of an epoch of 20 views


@pytest.fixture
def cache(tmp_path):
    """What keeps such epochs."""
    return EpochCache(tmp_path / "kept", 20, ENTRIES.dtype, World())


def write(cache):
    """Write the first epoch, in two batches."""
    cache.open(0)
    for start in (0, 10):
        cache.write({"head:cls": torch.from_numpy(ENTRIES["head:cls"][start : start + 10])})


def test_a_disk_that_is_full_at_last_leaves_nothing(cache, tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"epoch-0001.npy could not be written: No space left on device"):
        write(cache)
    assert kept_files(tmp_path) == []


def test_a_damaged_file_is_named(cache, train, copied, tmp_path):
    write(cache)
    cache.open(0)
    assert np.array_equal(cache.read(10, 10), ENTRIES[10:])
    path = cache.path(0)
    content = path.read_bytes()
    np.save(tmp_path / "short.npy", ENTRIES[:-1])
    turned = content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]
    np.savez(tmp_path / "many.npz", ENTRIES)
    others = [(tmp_path / name).read_bytes() for name in ("short.npy", "many.npz")]
    for damaged in (content[:-1], b"x" * 500, b"", turned, *others):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"epoch-0001.npy is damaged, delete it"):
            cache.open(0)
    own = next((tmp_path / "kept").rglob("resnet8-*/epoch-0001.npy"))
    own.write_bytes(own.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"epoch-0001.npy is damaged, delete it"):
        train("run")


@pytest.mark.parametrize("offline", [False, True])
def test_a_cache_that_is_no_file_is_named(teacher, tmp_path, offline):
    """A pipe lets its reader wait for ever."""
    options = {"DISTILLATION__OFFLINE": "true", "AUG__MIXUP": 0, "AUG__CUTMIX": 0} if offline else {}
    words = words_of(teacher, tmp_path, OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=1, **options)
    finish(Running(tmp_path, words))
    (name,) = kept_files(tmp_path)
    path = tmp_path / "kept" / name
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        path.unlink()
        make(path)
        code, _, errors = Running(tmp_path, [*words, f"OUT_DIR={tmp_path}/other"]).end()
        assert code == 1
        assert errors == f"run_net.py: [Errno 22] it is no regular file: '{path}'\n"


def test_what_nobody_finished_is_removed_after_a_day(cache):
    write(cache)
    for name, age in (("old", 90000), ("new", 10)):
        path = cache.folder / f".epoch-0002.npy.{name}.tmp"
        path.write_bytes(b"half")
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))
    EpochCache(cache.folder, 20, ENTRIES.dtype, World())
    assert [path.name for path in cache.folder.glob(".*")] == [".epoch-0002.npy.new.tmp"]


def test_what_cannot_be_kept_is_refused(build, load, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* for DATA.LOADER is workers"):
        build(DATA__LOADER="workers")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* for there are no DISTILLATION.TEACHERS"):
        build(DISTILLATION__TEACHERS="[]", DISTILLATION__TEACHER_WEIGHTS="[]")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* which TRAINER baseline does not read"):
        load("debug/base_debug", DISTILLATION__CACHE=tmp_path / "kept")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE_TOP is 3, expected 0 with LOGIT_STANDARD"):
        build(DISTILLATION__CACHE_TOP=3, DISTILLATION__LOGIT_STANDARD="true")
    with pytest.raises(ConfigError, match="DISTILLATION.CACHE is .* with TEACHER_BN batch"):
        build(DISTILLATION__TEACHER_BN="batch")
    monkeypatch.setattr("pycls_std.datasets.memory.store.LIMIT", 1000)
    with pytest.raises(ValueError, match="DISTILLATION.CACHE is .*, the images are not in memory"):
        build()


# ------------------------------------------------------------------------------------------------------ on a GPU
class Late(Arriving):
    """What is on its way from a device: nothing of it is there before it is waited for."""

    waits = 0

    def __init__(self, tensors):
        self.sent = {name: tensor.clone() for name, tensor in tensors.items()}
        self.copies = {name: torch.full_like(tensor, -1) for name, tensor in tensors.items()}
        self.event = self

    def synchronize(self):
        Late.waits += 1
        self.copies = self.sent


def test_what_is_written_is_read_some_batches_later(tmp_path, monkeypatch):
    """The last batch of an epoch waits for those that are left; what is stopped before leaves nothing."""
    monkeypatch.setattr(caches, "Arriving", Late)
    monkeypatch.setattr(Late, "waits", 0)
    cache, waits = EpochCache(tmp_path / "kept", 20, ENTRIES.dtype, World(), lag=3), []
    cache.open(0)
    for start in range(0, 20, 2):
        cache.write({"head:cls": torch.from_numpy(ENTRIES["head:cls"][start : start + 2])})
        waits.append(Late.waits)
        assert cache.path(0).exists() == (start == 18)
    assert waits == [0, 0, 0, 1, 2, 3, 4, 5, 6, 10]
    cache.open(0)
    assert np.array_equal(cache.read(0, 20), ENTRIES)
    cache.open(1)
    cache.write({"head:cls": torch.from_numpy(ENTRIES["head:cls"][:2])})
    cache.file.abandon()
    assert kept_files(tmp_path) == ["epoch-0001.npy"]


@pytest.mark.parametrize("options", [{}, {"DISTILLATION__CACHE_PRECISION": "fp16", "DISTILLATION__CACHE_TOP": 3}])
def test_a_step_that_writes_reads_nothing_from_the_device(build, monkeypatch, options):
    """What the student learns from is what a later run will read."""
    session, cached = build(**options)
    monkeypatch.setattr(caches, "Arriving", Late)
    for cache in cached.caches:
        cache.lag = 100
    batch = Batch(torch.randn(4, 3, 8, 8), torch.zeros(4, 10), None)
    with NoReads():
        (output,) = cached(batch, Progress(0, 0, 11, 3))
    (late,) = cached.caches[0].unwritten
    late.synchronize()
    spec = cached.specs[0]
    assert same(unpack(entries(late.copies, spec.kind), spec.shapes, CPU), output)
    cached.close()


def test_copies_of_a_device_are_waited_for_when_they_are_read(monkeypatch):
    """Each in memory of its own that the device writes to while the host goes on."""
    done, copied = [], []
    monkeypatch.setattr(
        torch.cuda,
        "Event",
        lambda: SimpleNamespace(record=lambda: done.append("recorded"), synchronize=lambda: done.append("waited")),
    )
    monkeypatch.setattr(arriving, "_copied", lambda tensor, *, pinned: copied.append((tensor, pinned)) or torch.ones(2))
    on_device = SimpleNamespace(is_cuda=True)
    sent = Arriving({"a": on_device, "b": on_device})
    assert (copied, done) == ([(on_device, True)] * 2, ["recorded"])
    assert set(sent.values()) == {"a", "b"} and done == ["recorded", "waited"]
    own = torch.ones(1)
    assert Arriving({"a": own}).values()["a"] is own and len(done) == 2


def test_what_the_precision_of_the_cache_cannot_hold_is_refused():
    """It would be kept, and every run that reads it would end without a hint at it."""
    kind = entry_type({"head:cls": (3,)}, "fp16", 0)
    large = Output(heads={"cls": torch.tensor([[1.0, 7e4, 0.0]])}, features={})
    with pytest.raises(ValueError, match="head:cls of a teacher is not finite in torch.float16: .*CACHE_PRECISION"):
        pack(large, kind)
    assert pack(large, entry_type({"head:cls": (3,)}, "fp32", 0))["head:cls"][0, 1] == 7e4
