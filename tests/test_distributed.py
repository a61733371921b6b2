"""Two processes that share every batch: the numbers of one, one set of logs, and what happens when one dies."""

import json
import os
import random
import re
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Running, finish, free_port, two_ranks, wait_for
from records import SMALL, assert_same_run, curves, load_state, logged, words

from pycls_std import runner
from pycls_std.builders.data import build_data
from pycls_std.core.structures import World
from pycls_std.datasets.loader import EpochSampler
from pycls_std.engine import distributed
from pycls_std.engine.distributed import Processes, close
from pycls_std.engine.runtime import Runtime
from pycls_std.process.launch import Launch
from pycls_std.run.lock import locked

# Plain SGD, for AdamW divides gradients near 0 by their size and makes much of the last digit.
SGD = {"OPTIM__NAME": "momentum", "OPTIM__BASE_LR": 0.1, "OPTIM__CLIP_NORM": 1, "OPTIM__MAX_EPOCH": 2}
BASE = ["--cfg", "configs/debug/base_debug.yaml", *words(**SMALL)]
EPOCHS = 12  # of a run that is still under way when a test has found its processes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the run of two processes that nothing happened to; what they printed is beside it."""
    folder = tmp_path_factory.mktemp("whole")
    own = [*BASE, f"OPTIM.MAX_EPOCH={EPOCHS}", f"OUT_DIR={folder / 'run'}"]
    finish(*two_ranks(folder, ["--mode", "train", *own]))
    return folder / "run"


@pytest.fixture
def train(tmp_path):
    """Return train(processes, name, *words): the folder of a run by one process or two."""

    def run(processes, name, *words):
        own = ["--mode", "train", *words, f"OUT_DIR={tmp_path / name}"]
        finish(*([Running(tmp_path, own)] if processes == 1 else two_ranks(tmp_path, own)))
        return tmp_path / name

    return run


def apart(first, second):
    """Greatest difference of the weights, the average and the trainer's own modules of two runs."""
    parts = []
    for folder in (first, second):
        state = load_state(folder)
        nests = [state["student"], state["ema"], state["trainer"]["terms"], state["trainer"]["auxiliary"]]
        parts.append({(number, key): value for number, nest in enumerate(nests) for key, value in nest.items()})
    assert parts[0].keys() == parts[1].keys()
    return max(float((parts[0][key] - parts[1][key]).abs().max()) for key in parts[0])


@pytest.mark.defect(29)
@pytest.mark.fault(29)
@pytest.mark.parametrize("method", ["std mine epoch", "std mine step", "locality", "vkd", "base"])
def test_two_processes_train_what_one_trains(train, teacher, method):
    """With mixup, cutmix, repeated and random augmentation on: pairs that are mixed are not parted.

    All have modules beside the student: critics, stepped on their own, and projections, stepped with it.
    """
    name, _, period = method.partition(" mine ")
    own = SMALL | SGD | {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}]"}
    if period:
        own |= {"DISTILLATION__TEACHERS": "[resnet8, resnet8]", "DISTILLATION__TYPE": "soft"}
        own |= {"DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}, {teacher}]"}
        own |= {"MINE__SAMPLES": 4, "MINE__PERIOD": period, "MINE__MOMENTUM": 0.5}
        own |= {"MINE__STUDENT_LR": 0.01, "MINE__CRITIC_LR": 0.1}
    if name == "vkd":  # dropout, and the statistics of the stem's batch norms, are each process's own
        own |= {"VKD__NORM": "standardize", "MODEL__ARGS__pos_drop_rate": 0.0}
        own |= {"MODEL__NAME": "deit_tiny_distilled_patch16_224"}
    if name == "base":  # a classifier's maps are tokens, too
        own |= {"DISTILLATION__TEACHERS": "[resnet8]", "TOKENS__WEIGHT": 1.0, "TOKENS__STUDENT_MAPS": "[0, last]"}
        own |= {"TOKENS__TEACHER_MAPS": "[layer1, layer2]", "TOKENS__STUDENT_QUERIES": "[]"}
    own = ["--cfg", f"configs/debug/{name}_debug.yaml", *words(**own)]
    one, two = train(1, "one", *own), train(2, "two", *own)
    assert apart(one, two) < 1e-5
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    first, second = curves(one), curves(two)
    assert first.keys() == second.keys()
    for tag, curve in first.items():
        assert list(second[tag].values()) == pytest.approx(list(curve.values()), rel=1e-3, abs=1e-4), tag
    moved = load_state(one)["student"]["backbone.head.weight"] - load_state(one)["ema"]["backbone.head.weight"]
    assert float(moved.abs().max()) > 1e-3, "nothing was learned"


@pytest.mark.fault(29)
def test_one_set_of_logs(whole):
    assert sorted(re.sub(r"\d{9,}", "N", path.name) for path in whole.iterdir()) == [
        *("checkpoints", "config.yaml", "console.log", "events.out.tfevents.N", "metrics.jsonl", "run.json")
    ]
    assert [line["epoch"] for line in logged(whole)] == list(range(1, EPOCHS + 1))
    outputs = [(whole.parent / f"rank{rank}" / "process0.out").read_text() for rank in range(2)]
    assert len(outputs[0].splitlines()) == 5 + EPOCHS
    assert outputs[1] == ""


def test_values_of_all_processes_are_gathered(tmp_path):
    """Anything that pickles, of another size in each process; in the order of the ranks in both."""
    finish(*two_ranks(tmp_path, [], hook="test_distributed:gather", arguments=(str(tmp_path),)))
    for rank in range(2):
        gathered = torch.load(tmp_path / f"gathered{rank}.pt", weights_only=True)
        assert [value["rank"] for value in gathered] == [0, 1]
        assert [value["scores"].tolist() for value in gathered] == [[0, 1], [0, 1, 2]]


def test_all_wait_for_what_one_makes(tmp_path):
    """Longer than for each other: with torch's own limit, of half an hour, at 2 s, for what takes 4."""
    finish(*two_ranks(tmp_path, [], hook="test_distributed:patient"))


def patient():
    """Hook: be one of two processes, of which the first makes something slowly."""
    from torch import distributed

    join = distributed.init_process_group
    distributed.init_process_group = lambda *a, **k: join(*a, timeout=timedelta(seconds=2), **k)
    world = Processes("cpu")
    world.rank_zero_first(lambda: time.sleep(4 if world.rank == 0 else 0))
    close()
    sys.exit(0)


def gather(folder):
    """Hook: be one of two processes, note what all of them have, and end."""
    world = Processes("cpu")
    own = {"rank": world.rank, "scores": torch.arange(world.rank + 2)}
    torch.save(world.gather(own), f"{folder}/gathered{world.rank}.pt")
    sys.exit(0)


def scores(text):
    """The lines of --mode test that have scores."""
    return [line for line in text.splitlines() if "top-1" in line]


@pytest.mark.fault(29)
def test_evaluation_is_exact_for_an_odd_number_of_images(train, load, tmp_path, caplog):
    """Of five images, one process has two batches and the other one."""
    numbers, images = random.Random(0), 5
    for split, count in (("train", 8), ("val", images)):
        for label in ("cat", "dog"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
        for index in range(count):
            colour = tuple(numbers.randrange(256) for _ in range(3))
            name = f"{split}/{('cat', 'dog')[index % 2]}/{index}.png"
            Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / name)
    own = {"DATA__NAME": "image_folder", "DATA__ROOT": tmp_path / "data", "MODEL__NUM_CLASSES": 2}
    own |= {"TRAIN__BATCH_SIZE": 4, "OPTIM__MAX_EPOCH": 1, "TEST__BATCH_SIZE": 2}
    base = ["--cfg", "configs/debug/base_debug.yaml", *words(**own)]
    folder = train(2, "run", *base)
    (recorded,) = logged(folder)
    own |= {"TEST__WEIGHTS": folder / "checkpoints" / "last.pt"}
    runner.test(load("debug/base_debug", **own))
    together, _ = finish(*two_ranks(tmp_path, ["--mode", "test", *base, *words(**own)]))
    assert scores("\n".join(caplog.messages)) == scores(together) != []
    assert recorded["test/top1"] == pytest.approx(100 * round(recorded["test/top1"] * images / 100) / images, abs=1e-9)
    wanted = f"top-1 {recorded['test/top1']:6.2f}  top-5 {100:6.2f}  loss {recorded['test/loss']:.4f}"
    assert wanted in together


def test_batch_norm_is_the_first_process_s_wherever_it_is_tested(train, load, caplog):
    """Each process has its own statistics in training; scores and checkpoint agree all the same."""
    own = SMALL | {"TRAIN__EMA_DECAY": 0.9, "OPTIM__MAX_EPOCH": 1}
    folder = train(2, "run", "--cfg", "configs/debug/teacher_debug.yaml", *words(**own))
    last = logged(folder)[-1]
    for ema, tag in (("false", "test"), ("true", "ema")):
        caplog.clear()
        runner.test(load("debug/teacher_debug", TEST__WEIGHTS=folder / "checkpoints" / "last.pt", TEST__EMA=ema))
        wanted = f"top-1 {last[f'{tag}/top1']:6.2f}  top-5 {last[f'{tag}/top5']:6.2f}  loss {last[f'{tag}/loss']:.4f}"
        assert wanted in caplog.text


@pytest.mark.fault(17)
def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    own = ["--mode", "train", *BASE, f"OUT_DIR={tmp_path / 'run'}"]
    ends = [one.end() for one in two_ranks(tmp_path, own, hook="test_distributed:break_second_rank")]
    assert [code for code, *_ in ends] == [1, 1]
    assert all("loss not finite at epoch 2 iteration 4, " in errors for _, _, errors in ends)
    assert ends[1][2].startswith("run_net.py [process 1]: ")
    assert load_state(tmp_path / "run")["epoch"] == 1


def break_second_rank():
    """Hook: the second process has an infinite loss in the fourth step of the second epoch."""
    from pycls_std.terms.task import TaskLoss

    forward = TaskLoss.forward

    def broken(self, student, teachers, batch, progress):
        place = (int(os.environ["RANK"]), progress.epoch, progress.iteration)
        factor = float("inf") if place == (1, 1, 3) else 1.0
        return {name: factor * value for name, value in forward(self, student, teachers, batch, progress).items()}

    TaskLoss.forward = broken


def test_a_batch_that_cannot_be_shared(load):
    world = World()
    world.size = 2
    mixing = "TRAIN.BATCH_SIZE is 126, 63 for each of 2 processes: AUG.MIXUP and AUG.CUTMIX"
    with pytest.raises(ValueError, match=mixing):
        build_data(load("debug/base_debug", TRAIN__BATCH_SIZE=126), world=world)
    with pytest.raises(ValueError, match="TRAIN.BATCH_SIZE is 125, 2 processes cannot share it evenly"):
        build_data(load("debug/base_debug", TRAIN__BATCH_SIZE=125, AUG__MIXUP=0, AUG__CUTMIX=0), world=world)


def test_a_process_that_is_alone_with_a_mistake_is_heard(tmp_path):
    """Later than the first one would be, whose line says no more than that the connection is lost."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = ["--mode", "train", *BASE, f"OUT_DIR={tmp_path / 'run'}"]
    both = [
        Running(tmp_path / f"rank{rank}", own, env={"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}, **options)
        for rank, options in enumerate(({}, {"hook": "test_distributed:have_no_images"}))
    ]
    ends = [one.end() for one in both]
    assert [code for code, *_ in ends] == [1, 1]
    assert ends[1][2] == "run_net.py [process 1]: this machine has no images\n"
    lost = "the connection to another process of this run was lost, its own message says why"
    assert ends[0][2] == f"run_net.py: {lost}\n"


def have_no_images():
    """Hook: the data cannot be read here."""
    from pycls_std.builders import data

    def split(cfg, name):
        raise ValueError("this machine has no images")

    data._split = split


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK"])
def test_a_process_that_does_not_know_its_place(tmp_path, missing):
    """It was taken for one that is alone, or for the first of its machine: several trained the same, in one folder."""
    env = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    del env[missing]
    code, output, errors = Running(tmp_path, ["--mode", "train", *BASE, f"OUT_DIR={tmp_path}/run"], env=env).end()
    assert (code, output) == (1, "")
    told = f"the environment variable WORLD_SIZE is 2, and {missing} is not set: torchrun sets both"
    assert errors == f"run_net.py: {told}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(20)
def test_a_run_is_not_continued_by_another_number_of_processes(whole, load):
    with pytest.raises(ValueError, match="the number of processes was 2, is 1"):
        runner.train(load("debug/base_debug", **SMALL, OUT_DIR=whole, OPTIM__MAX_EPOCH=EPOCHS + 1))


def dealt(monkeypatch, batch_size, processes):
    """The places of a batch that each process has."""
    world = Processes("cpu")
    monkeypatch.setattr(world, "size", processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(world, "rank", rank)
        shares.append(world.positions(batch_size))
    return shares


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 2), (24, 4), (10, 5), (6, 1), (9, 3), (6, 2), (20, 4)])
def test_every_image_of_a_batch_belongs_to_one_process(batch_size, processes, monkeypatch):
    shares = dealt(monkeypatch, batch_size, processes)
    assert sorted(sum(shares, [])) == list(range(batch_size))
    assert {len(share) for share in shares} == {batch_size // processes}
    for share in shares:
        assert share == sorted(share)
        if len(share) % 2 == 0:  # the first is mixed with the last, as in the whole batch
            assert [batch_size - 1 - place for place in reversed(share)] == share


@pytest.mark.parametrize("processes", [2, 4])
def test_views_of_an_image_go_to_different_processes(processes, monkeypatch):
    """In an epoch of 4 batches of 24, each image in 3 views: no process has all three, and with 4 none has two."""
    seen = {}
    for rank, places in enumerate(dealt(monkeypatch, 24, processes)):
        for _, index in EpochSampler(96, seed=0, batch_size=24, positions=places, repeats=3):
            seen.setdefault(index, []).append(rank)
    assert len(seen) == 32
    assert {len(ranks) for ranks in seen.values()} == {3}
    assert {len(set(ranks)) for ranks in seen.values()} == {min(3, processes)}
    assert sorted(sum(seen.values(), [])) == [rank for rank in range(processes) for _ in range(96 // processes)]


@pytest.fixture
def on_gpus(monkeypatch):
    """Return on_gpus(uuids, visible, local_rank): a process among several on CUDA that sees so many devices.

    uuids: of the devices of all processes, in the order of their ranks.
    """

    def start(uuids, visible, local_rank):
        place = Launch(rank=local_rank, size=len(uuids), local_rank=local_rank)
        monkeypatch.setattr(distributed, "launch", lambda: place)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        asked = []
        properties = lambda index: asked.append(index) or SimpleNamespace(uuid=uuids[local_rank])  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(distributed, "_join", lambda backend: None)
        monkeypatch.setattr(Processes, "gather", lambda self, value: uuids)
        index = Processes("cuda").index
        assert asked == [index]
        return index

    return start


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (2, 1), (8, 1)])
def test_a_process_that_is_shown_its_own_device_alone_takes_it(on_gpus, visible, index):
    assert on_gpus(["a", "b"], visible, local_rank=1) == index


@pytest.mark.fault(29)
def test_two_processes_on_one_device_are_refused(on_gpus):
    """Where a launcher shows each its own, only what the devices are called tells."""
    with pytest.raises(ValueError, match="^processes 0 and 1 have the same GPU, start one process for each GPU$"):
        on_gpus(["a", "a"], 1, local_rank=1)
    for visible in (0, 2):
        with pytest.raises(ValueError, match=f"process 3 of this machine has no GPU, it has {visible}$"):
            on_gpus(["a", "b", "c", "d"], visible, local_rank=3)


def test_processes_mix_alike_and_drop_out_differently():
    drawn = {}
    for rank in (0, 1):
        runtime = Runtime(device="cpu", seed=3)
        runtime.world.rank = rank
        runtime.start_epoch(2)
        drawn[rank] = np.random.rand(), random.random(), float(torch.rand(1))
    assert drawn[0][:2] == drawn[1][:2]
    assert drawn[0][2] != drawn[1][2]


# ------------------------------------------------------------------------------------------------------------- torchrun
TRAIN = ["run_net.py", "--mode", "train", *BASE, f"OPTIM.MAX_EPOCH={EPOCHS}"]


def torchrun(*arguments):
    """Hook: be torchrun."""
    from torch.distributed.run import main

    main(list(arguments))
    sys.exit(0)


class Torchrun:
    """Agents of torchrun, one on each machine, and the two processes that they start; all machines are this one."""

    def __init__(self, folder, *options, machines=1, env=()):
        self.folder = folder
        own = [f"--nnodes={machines}", f"--nproc_per_node={2 // machines}", *options, *TRAIN, f"OUT_DIR={folder}/run"]
        hook = {"hook": "test_distributed:torchrun", "arguments": own}
        self.agents = [Running(folder / f"agent{number}", [], env=env, **hook) for number in range(machines)]
        try:
            wait_for((folder / "run" / "checkpoints" / "last-1.pt").exists)
        except AssertionError:
            self.kill()
            raise

    def kill(self):
        """Leave no process."""
        for pid in running_in(self.folder):
            os.kill(pid, signal.SIGKILL)

    def ranks(self):
        """Process numbers of the two."""
        texts = {pid: Path(f"/proc/{pid}/environ").read_text() for pid in running_in(self.folder)}
        ranks = {pid: re.search(r"\0RANK=(\d)", text) for pid, text in texts.items()}
        return [pid for _, pid in sorted((found[1], pid) for pid, found in ranks.items() if found)]

    def end(self):
        """Return exit codes and log; fail if it takes too long or leaves a process."""
        try:
            ends = [agent.end() for agent in self.agents]
            wait_for(lambda: not running_in(self.folder), patience=10)
        finally:
            self.kill()
        return [code for code, *_ in ends], "".join(output + errors for _, output, errors in ends)


def running_in(folder):
    """Return the living processes whose command names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["OPTIM.BASE_LRR=1"], "command line: no option OPTIM.BASE_LRR, did you mean OPTIM.BASE_LR?"),
        (["DATA.NAME=image_folder", "DATA.ROOT=nowhere"], "image_folder: there is no folder DATA.ROOT nowhere"),
        (["OUT_DIR={}/run"], "OUT_DIR {}/run is in use by process "),
    ],
)
def test_a_mistake_under_torchrun_is_one_line(tmp_path, words, told):
    """Of the first process; before and after torch is there, and while it is imported."""
    own = ["--nproc_per_node=2", f"--master_port={free_port()}", *TRAIN, f"OUT_DIR={tmp_path}/other"]
    own += [word.format(tmp_path) for word in words]
    with locked(tmp_path / "run"):
        code, output, errors = Running(tmp_path, [], hook="test_distributed:torchrun", arguments=own).end()
    lines = [
        line for line in (output + errors).splitlines() if "run_net.py" in line and "run_net.py FAILED" not in line
    ]
    assert code == 1
    assert len(lines) == 1 and lines[0].startswith(f"run_net.py: {told.format(tmp_path)}"), output + errors
    assert "Exception ignored" not in errors and "stopped by" not in errors
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.fault(28)
def test_torchrun_restarts_a_run_whose_rank_died(whole, tmp_path):
    run = Torchrun(tmp_path, f"--master_port={free_port()}", "--max-restarts=1")
    os.kill(run.ranks()[0], signal.SIGKILL)
    codes, log = run.end()
    assert codes == [0], log
    assert "the connection to another process of this run was lost" in log or "stopped by SIGTERM" in log
    assert "continues from" in log
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.fault(29)
def test_two_machines(whole, tmp_path):
    """Two agents with a process each, as tools/slurm.sh starts them; the second process dies, and both start again."""
    options = ["--max-restarts=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=7"]
    run = Torchrun(tmp_path, *options, machines=2, env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    os.kill(run.ranks()[1], signal.SIGKILL)
    codes, log = run.end()
    assert codes == [0, 0], log
    assert "continues from" in log
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.fault(30)
def test_torchrun_is_asked_to_stop(whole, tmp_path):
    run = Torchrun(tmp_path, f"--master_port={free_port()}")
    time.sleep(0.1)
    run.agents[0].signal(signal.SIGTERM)
    codes, log = run.end()
    assert codes != [0]
    places = re.findall(r"stopped by SIGTERM (.*)", log)
    assert places and len(set(places)) == 1, log
    assert load_state(tmp_path / "run")["epoch"] >= 2
    own = ["--mode", "train", *BASE, f"OPTIM.MAX_EPOCH={EPOCHS}", f"OUT_DIR={tmp_path / 'run'}"]
    finish(*two_ranks(tmp_path, own))
    assert_same_run(whole, tmp_path / "run")
