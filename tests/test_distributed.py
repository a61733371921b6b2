"""Two processes that share every batch: the numbers of one, one set of logs, and what happens when one dies."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PATIENCE, ROOT, Running, free_port, two_ranks, wait_for
from records import assert_same_run, curves, load_state

from pycls_std.engine.distributed import Processes
from pycls_std.engine.runtime import Runtime

# Plain SGD, for AdamW divides gradients near 0 by their size and makes much of the last digit.
SGD = ["OPTIM.NAME=momentum", "OPTIM.BASE_LR=0.1", "OPTIM.CLIP_NORM=1", "OPTIM.MAX_EPOCH=2"]


@pytest.fixture
def train(tmp_path):
    """Return train(processes, name, *words): the folder of a run by one process or two."""

    def run(processes, name, *words):
        words = ["--mode", "train", *words, f"OUT_DIR={tmp_path / name}"]
        running = [Running(tmp_path, words)] if processes == 1 else two_ranks(tmp_path, words)
        for one in running:
            code, _, errors = one.end()
            assert (code, errors) == (0, "")
        return tmp_path / name

    return run


def apart(first, second):
    """Greatest difference of the weights, the average and the trainer's own modules of two runs."""
    states = [load_state(folder) for folder in (first, second)]
    parts = [{**s["student"], **{f"ema.{k}": v for k, v in s["ema"].items()}} for s in states]
    parts = [part | state["trainer"].get("critics", {}) for part, state in zip(parts, states, strict=True)]
    return max(float((parts[0][key] - parts[1][key]).abs().max()) for key in parts[0])


@pytest.mark.fault(29)
@pytest.mark.parametrize("method", ["baseline", "std multi", "std mine epoch", "std mine step"])
def test_two_processes_train_what_one_trains(train, teacher, method):
    """With mixup, cutmix, repeated and random augmentation on: pairs that are mixed are not parted."""
    words = ["--cfg", "configs/debug/base_debug.yaml", *SGD]
    if method != "baseline":
        two = [f"DISTILLATION.TEACHERS=[{', '.join(['resnet8'] * 2)}]"]
        two += [f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}, {teacher}]", "DISTILLATION.TYPE=soft"]
        words = ["--cfg", "configs/debug/std_debug.yaml", *SGD, *two, "MINE.SAMPLES=0"]
    if "mine" in method:
        samples = ["MINE.SAMPLES=32", f"MINE.PERIOD={method.split()[-1]}", "MINE.MOMENTUM=0.5"]
        words += [*samples, "MINE.STUDENT_LR=0.01", "MINE.CRITIC_LR=0.1"]
    one, two = train(1, "one", *words), train(2, "two", *words)
    assert apart(one, two) < 1e-5
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    first, second = curves(one), curves(two)
    assert first.keys() == second.keys()
    for tag, curve in first.items():
        assert list(second[tag].values()) == pytest.approx(list(curve.values()), rel=1e-3, abs=1e-4), tag
    moved = load_state(one)["student"]["backbone.head.weight"] - load_state(one)["ema"]["backbone.head.weight"]
    assert float(moved.abs().max()) > 1e-3, "nothing was learned"


@pytest.mark.fault(29)
def test_one_set_of_logs(train):
    folder = train(2, "run", "--cfg", "configs/debug/base_debug.yaml", "TEST.BATCH_SIZE=7")
    assert sorted(re.sub(r"\d{9,}", "N", path.name) for path in folder.iterdir()) == [
        *("checkpoints", "config.yaml", "events.out.tfevents.N", "metrics.jsonl", "run.json"),
    ]
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()] == [1, 2, 3]
    outputs = [(folder.parent / f"rank{rank}" / "process0.out").read_text() for rank in range(2)]
    assert len(outputs[0].splitlines()) == 7
    assert outputs[1] == ""


def scores(text):
    """The lines of --mode test that have scores."""
    return [line for line in text.splitlines() if "top-1" in line]


@pytest.mark.fault(29)
@pytest.mark.parametrize("images", [3, 7])
def test_evaluation_is_exact_for_an_odd_number_of_images(train, tmp_path, images):
    from PIL import Image

    numbers = random.Random(0)
    for split, count in (("train", 8), ("val", images)):
        for label in ("cat", "dog"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
        for index in range(count):
            colour = tuple(numbers.randrange(256) for _ in range(3))
            name = f"{split}/{('cat', 'dog')[index % 2]}/{index}.png"
            Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / name)
    words = ["--cfg", "configs/debug/base_debug.yaml", "DATA.NAME=image_folder", f"DATA.ROOT={tmp_path}/data"]
    words += ["MODEL.NUM_CLASSES=2", "TRAIN.BATCH_SIZE=4", "OPTIM.MAX_EPOCH=1", "TEST.BATCH_SIZE=2"]
    folder = train(2, "run", *words)
    recorded = json.loads((folder / "metrics.jsonl").read_text())
    test = ["--mode", "test", *words, f"TEST.WEIGHTS={folder}/checkpoints/last.pt"]
    alone = Running(tmp_path, test).end()
    together = [one.end() for one in two_ranks(tmp_path, test)]
    assert [code for code, *_ in (alone, *together)] == [0, 0, 0]
    assert scores(alone[1]) == scores(together[0][1])
    assert recorded["test/top1"] == pytest.approx(100 * round(recorded["test/top1"] * images / 100) / images, abs=1e-9)
    assert f"top-1 {recorded['test/top1']:6.2f}  top-5 {100:6.2f}  loss {recorded['test/loss']:.4f}" in alone[1]


def test_batch_norm_is_the_first_process_s_wherever_it_is_tested(train, tmp_path):
    """Each process has its own statistics in training; scores and checkpoint agree all the same."""
    folder = train(2, "run", "--cfg", "configs/debug/teacher_debug.yaml", "TRAIN.EMA_DECAY=0.9")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    for ema, tag in (("false", "test"), ("true", "ema")):
        words = ["--cfg", "configs/debug/teacher_debug.yaml", f"TEST.WEIGHTS={folder}/checkpoints/last.pt"]
        code, output, _ = Running(tmp_path, ["--mode", "test", *words, f"TEST.EMA={ema}"]).end()
        assert code == 0
        wanted = f"top-1 {last[f'{tag}/top1']:6.2f}  top-5 {last[f'{tag}/top5']:6.2f}  loss {last[f'{tag}/loss']:.4f}"
        assert wanted in output


@pytest.mark.fault(30)
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    words = ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", f"OUT_DIR={tmp_path / 'run'}"]
    both = two_ranks(tmp_path, words, hook="test_distributed:pause_rank", arguments=(str(tmp_path),))
    wait_for(lambda: all((tmp_path / f"steps{rank}" / "paused").exists() for rank in range(2)))
    both[1].signal(signal.SIGTERM)
    ends = [one.end() for one in both]
    assert [code for code, *_ in ends] == [143, 143]
    places = [re.search(r"stopped by SIGTERM at (epoch 3 iteration \d+)", errors)[1] for _, _, errors in ends]
    assert places[0] == places[1]
    assert ends[1][2].startswith("run_net.py [process 1]: ")
    steps = [(tmp_path / f"steps{rank}" / "steps").read_text() for rank in range(2)]
    assert steps[0] == steps[1]
    assert load_state(tmp_path / "run")["epoch"] == 2


def pause_rank(folder):
    """Hook: each process notes its steps in a folder of its own, and takes a while for each."""
    from processes import pause

    place = f"{folder}/steps{os.environ['RANK']}"
    os.mkdir(place)
    pause(place, 2, 3, seconds=0.2)


@pytest.mark.fault(17)
def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    words = ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", f"OUT_DIR={tmp_path / 'run'}"]
    ends = [one.end() for one in two_ranks(tmp_path, words, hook="test_distributed:break_second_rank")]
    assert [code for code, *_ in ends] == [1, 1]
    assert all("loss not finite at epoch 2 iteration 4, " in errors for _, _, errors in ends)
    assert load_state(tmp_path / "run")["epoch"] == 1


def break_second_rank():
    """Hook: the second process has an infinite loss in the fourth step of the second epoch."""
    from pycls_std.trainers.baseline import Baseline

    losses = Baseline.losses

    def broken(self, batch, progress):
        factor = float("inf") if (self.world.rank, progress.epoch, progress.iteration) == (1, 1, 3) else 1.0
        return {name: factor * value for name, value in losses(self, batch, progress).items()}

    Baseline.losses = broken


def test_a_batch_that_cannot_be_shared(tmp_path):
    words = ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", f"OUT_DIR={tmp_path / 'run'}"]
    mixing = "TRAIN.BATCH_SIZE is 126, 63 for each of 2 processes: AUG.MIXUP and AUG.CUTMIX"
    uneven = "TRAIN.BATCH_SIZE is 125, 2 processes cannot share it evenly"
    off = ["AUG.MIXUP=0", "AUG.CUTMIX=0"]
    for text, options in ((mixing, ["TRAIN.BATCH_SIZE=126"]), (uneven, ["TRAIN.BATCH_SIZE=125", *off])):
        code, _, errors = two_ranks(tmp_path / text[:23], [*words, *options])[0].end()
        assert code == 1
        assert text in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(20)
def test_a_run_is_not_continued_by_another_number_of_processes(train, tmp_path):
    words = ["--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=1"]
    folder = train(2, "run", *words)
    code, _, errors = Running(tmp_path, ["--mode", "train", *words, f"OUT_DIR={folder}", "OPTIM.MAX_EPOCH=2"]).end()
    assert code == 1
    assert "the number of processes was 2, is 1" in errors


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 2), (24, 4), (10, 5), (6, 1), (9, 3)])
def test_every_image_of_a_batch_belongs_to_one_process(batch_size, processes, monkeypatch):
    world = Processes("cpu")
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(world, "size", processes)
        monkeypatch.setattr(world, "rank", rank)
        shares.append(world.positions(batch_size))
    assert sorted(sum(shares, [])) == list(range(batch_size))
    assert {len(share) for share in shares} == {batch_size // processes}
    for share in shares:
        assert share == sorted(share)
        if len(share) % 2 == 0:  # the first is mixed with the last, as in the whole batch
            assert [batch_size - 1 - place for place in reversed(share)] == share


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
class Torchrun:
    """torchrun with two processes on a run of 5 epochs."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
        words = ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=5"]
        self.folder = folder
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [*command, *options, "run_net.py", *words, f"OUT_DIR={folder / 'run'}"],
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        wait_for(lambda: (folder / "run" / "checkpoints" / "last-1.pt").exists())

    def ranks(self):
        """Process numbers of the two."""
        texts = {pid: Path(f"/proc/{pid}/environ").read_text() for pid in running_in(self.folder)}
        ranks = {pid: re.search(r"\0RANK=(\d)", text) for pid, text in texts.items()}
        return [pid for _, pid in sorted((found[1], pid) for pid, found in ranks.items() if found)]

    def end(self):
        """Return exit code and log; fail if it takes too long or leaves a process."""
        try:
            code = self.process.wait(PATIENCE)
            wait_for(lambda: not running_in(self.folder), patience=10)
        finally:
            for pid in running_in(self.folder):
                os.kill(pid, signal.SIGKILL)
        return code, self.log.read_text()


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    words = ["--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=5", f"OUT_DIR={folder / 'run'}"]
    for one in two_ranks(folder, ["--mode", "train", *words]):
        assert one.end()[0] == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.fault(28)
def test_a_rank_dies(whole, tmp_path):
    run = Torchrun(tmp_path)
    os.kill(run.ranks()[1], signal.SIGKILL)
    code, log = run.end()
    assert code != 0
    assert "the connection to another process of this run was lost" in log or "stopped by SIGTERM" in log
    words = ["--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=5", f"OUT_DIR={tmp_path / 'run'}"]
    ends = [one.end() for one in two_ranks(tmp_path, ["--mode", "train", *words])]
    assert [code for code, *_ in ends] == [0, 0]
    assert "continues from" in ends[0][1]
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.fault(28)
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_a_run_whose_rank_died(whole, tmp_path, rank):
    run = Torchrun(tmp_path, "--max-restarts=1")
    os.kill(run.ranks()[rank], signal.SIGKILL)
    code, log = run.end()
    assert code == 0, log
    assert "continues from" in log
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.fault(28)
@pytest.mark.fault(29)
@pytest.mark.parametrize("dies", [False, True])
def test_two_machines(whole, tmp_path, dies):
    """Two agents of torchrun with a process each, as tools/slurm.sh starts them; here both machines are this one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max-restarts=2"]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=7", "run_net.py"]
    command += ["--mode", "train", "--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=5"]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    agents = [
        subprocess.Popen([*command, f"OUT_DIR={tmp_path / 'run'}"], cwd=ROOT, env=os.environ | environment)
        for _ in range(2)
    ]
    try:
        if dies:
            wait_for((tmp_path / "run" / "checkpoints" / "last-1.pt").exists)
            os.kill(next(pid for pid in running_in(tmp_path) if pid not in [a.pid for a in agents]), signal.SIGKILL)
        assert [agent.wait(PATIENCE) for agent in agents] == [0, 0]
    finally:
        for pid in running_in(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.fault(30)
def test_torchrun_is_asked_to_stop(whole, tmp_path):
    run = Torchrun(tmp_path)
    time.sleep(0.1)
    run.process.send_signal(signal.SIGTERM)
    code, log = run.end()
    assert code != 0
    places = re.findall(r"stopped by SIGTERM (.*)", log)
    assert places and len(set(places)) == 1, log
    assert load_state(tmp_path / "run")["epoch"] >= 2
    words = ["--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=5", f"OUT_DIR={tmp_path / 'run'}"]
    assert [one.end()[0] for one in two_ranks(tmp_path, ["--mode", "train", *words])] == [0, 0]
    assert_same_run(whole, tmp_path / "run")
