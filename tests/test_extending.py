"""What a newcomer adds is what docs/extending.md says: each example is written into a copy of the tree and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import free_port
from records import logged

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"`(\S+)`:\n\n```\w+\n(.*?)```", DOCS, re.S))
OPTION = re.search(r"```python\n(    # .*?)```", DOCS, re.S)[1]

# Runs commands of run_net.py and of tools one after the other, each given as a list of words, in one process.
DRIVER = """
import importlib, json, sys
import torch
from pycls_std.process.ending import leave
torch.set_num_threads(1)
sys.path.append("tools")
from pycls_std.engine.runtime import Runtime
Runtime.__init__.__kwdefaults__["compiler"] = "aot_eager"  # traces as the compiler does, in seconds
for words, expected in json.loads(sys.argv[1]):
    tool, words = (words[0][:-3], words[1:]) if words[0].endswith(".py") else ("run_net", words)
    code = importlib.import_module(tool).main(words)
    assert code == expected, (words, code)
leave(0)
"""


@pytest.fixture
def tree(tmp_path):
    """Return tree(*paths): run(*commands) in a copy of the tree with these examples.

    It returns what was printed, and what was complained of. A command that is refused comes as (words, exit code).
    """

    def copy(*paths):
        for name in ("pycls_std", "configs", "run_net.py", "tools"):
            how = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            how(ROOT / name, tmp_path / name)
        for path in paths:
            assert not (ROOT / path).exists()
            (tmp_path / path).write_text(EXAMPLES[path])
        return run

    def run(*commands, processes=1):
        pairs = [command if isinstance(command, tuple) else (command, 0) for command in commands]
        text = json.dumps([([str(word) for word in words], code) for words, code in pairs])
        words = [sys.executable, "-c", DRIVER, text]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)}
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared = shared if processes > 1 else {}
        ranks = [
            subprocess.Popen(
                words,
                cwd=tmp_path,
                env=environment | shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        ends = [(*rank.communicate(), rank.returncode) for rank in ranks]
        assert not any(code for *_, code in ends), ends
        return ends[0][:2]

    return copy


def metrics(tmp_path, name):
    """Last line of metrics.jsonl of a run."""
    return logged(tmp_path / name)[-1]


@pytest.mark.slow
def test_a_method_on_features_is_one_file_and_one_yaml(tree, teacher, tmp_path):
    """With info, check (two processes), bf16, compile, a cache that is written and read, test, and other terms."""
    config = "configs/digits/mixer-nano_digits_fitnet.yaml"
    run = tree("pycls_std/terms/fitnet.py", config)
    common = ["--cfg", config, "DISTILLATION.TEACHERS=[resnet8]", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]"]
    common += ["DATA.IMAGE_SIZE=8", "MODEL.ARGS.embed_dim=16", "MODEL.ARGS.num_blocks=2"]
    common += ["OPTIM.MAX_EPOCH=1", "OPTIM.WARMUP_EPOCHS=1"]
    train = ["--mode", "train", *common]
    text, errors = run(
        ["--mode", "info", *common],
        ["--mode", "check", *common],
        [*train, "OUT_DIR=plain"],
        *([*train, f"OUT_DIR={name}", "DISTILLATION.CACHE=kept"] for name in ("writing", "reading")),
        [*train, "OUT_DIR=compiled", "TRAIN.COMPILE=on"],
        [*train, "OUT_DIR=bf16", "PRECISION=bf16"],
        [*train, "OUT_DIR=crossed", "STD.WEIGHT=0.5", "KD.WEIGHT=0.5", "LOCALITY.WEIGHT=1", "LOCALITY.STUDENT_TAPS=[0]"]
        + ["LOCALITY.TEACHER_TAPS=[0]"],
        ["--mode", "test", *common, "TEST.WEIGHTS=plain/checkpoints/best.pt"],
        ([*train, "DISTILLATION.TEACHERS=[]", "DISTILLATION.TEACHER_WEIGHTS=[]"], 2),
    )
    assert errors == "run_net.py: FITNET.WEIGHT needs teacher 0, DISTILLATION.TEACHERS has 0 entries\n"
    regressor = 16 * 32 + 32 + 2 * 32  # convolution and batch norm
    assert f"{regressor} train-only" in text
    assert "ok    terms       ce, fitnet" in text
    assert text.count("ok    ") == 8
    assert "two agree after 3 steps" in text
    plain = metrics(tmp_path, "plain")
    for name, limit in (("writing", 0), ("reading", 0), ("compiled", 1e-4), ("bf16", 0.05)):
        assert metrics(tmp_path, name)["train/fitnet"] == pytest.approx(plain["train/fitnet"], rel=limit), name
    terms = {f"train/{name}" for name in ("ce", "fitnet", "kd", "std", "locality")}
    assert terms <= metrics(tmp_path, "crossed").keys()
    assert text.splitlines()[-1].startswith("* cls  top-1")


@pytest.mark.slow
def test_a_memory_is_that_of_all_processes(tree, tmp_path):
    """Two processes write it whole; `check` compares what both have, and a resume continues with it."""
    run = tree("pycls_std/terms/memory.py")
    words = [*BASE, "MEMORY.WEIGHT=0.5", "AUG.REPEATS=1"]
    text, _ = run(["--mode", "check", *words], ["--mode", "train", *words, "OUT_DIR=one"])
    assert "ok    terms       ce, memory" in text and "two agree after 3 steps" in text
    run(["--mode", "train", *words, "OUT_DIR=two"], processes=2)
    for name in ("one", "two"):
        state = torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)
        memory = state["trainer"]["terms"]["memory.memory"]
        assert int((memory != 1).any(dim=1).sum()) == 11 * 128, "each image of the epoch's 11 batches"


BASE = ["--cfg", "configs/debug/base_debug.yaml", "OPTIM.MAX_EPOCH=1"]


def test_a_loss_a_dataset_a_model_and_a_metric_are_one_file_each(tree, teacher, tmp_path):
    run = tree(
        "pycls_std/losses/reverse.py",
        "pycls_std/terms/length.py",
        "pycls_std/datasets/even_digits.py",
        "pycls_std/models/two_layers.py",
        "pycls_std/metrics/calibration.py",
    )
    distill = ["--cfg", "configs/debug/kd_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", "OPTIM.MAX_EPOCH=1"]
    small = ["MODEL.NAME=two_layers", "MODEL.ARGS=null"]
    guided = ["--cfg", "configs/debug/locality_debug.yaml", *small, "LOCALITY.STUDENT_TAPS=[first, second]"]
    guided += ["LOCALITY.TEACHER_TAPS=[0, last]", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", "OPTIM.MAX_EPOCH=1"]
    text, _ = run(
        ["--mode", "train", *distill, "DISTILLATION.TYPE=reverse", "OUT_DIR=reverse"],
        ["--mode", "train", *BASE, "DATA.NAME=even_digits", "MODEL.NUM_CLASSES=5", "PUBLISHED.ECE=4", "OUT_DIR=even"],
        ["--mode", "train", *guided, "OUT_DIR=small"],
        ["--mode", "train", *distill, "FEATURE.LOSS=length", "FEATURE.WEIGHT=2", "OUT_DIR=length"],
        ["make_table.py", "even"],
    )
    assert metrics(tmp_path, "reverse")["train/kd"] > 0
    assert metrics(tmp_path, "small")["train/locality"] > 0
    assert metrics(tmp_path, "length")["train/feature"] > 0
    assert 0 <= metrics(tmp_path, "even")["test/ece"] <= 100
    heading, _, row = (line.strip("| ").split(" | ") for line in text.splitlines()[-3:])
    cells = dict(zip(heading, row, strict=True))
    assert cells["data"] == "even_digits"
    assert cells["ECE"] == f"{metrics(tmp_path, 'even')['test/ece']:.2f}" and cells["published ECE"] == "4.00"


def test_an_option_is_one_line(tree, tmp_path):
    """It is set, checked against its range, recorded, and part of what a run is."""
    run = tree()
    page = tmp_path / "pycls_std" / "config" / "page.py"
    page.write_text(page.read_text().replace("PAGE = {\n", f"PAGE = {{\n{OPTION}", 1))
    train = ["--mode", "train", *BASE, "OUT_DIR=run"]
    _, errors = run(
        [*train, "OPTIM.BIAS_FACTOR=2"],
        ([*train, "OPTIM.BIAS_FACTOR", "-1"], 2),
        ([*train, "OPTIM.BIAS_FACTOR=3", "OPTIM.MAX_EPOCH=2"], 1),
    )
    assert "BIAS_FACTOR: 2.0" in (tmp_path / "run" / "config.yaml").read_text()
    assert "OPTIM.BIAS_FACTOR is -1.0, expected at least 0" in errors
    assert "OPTIM.BIAS_FACTOR was 2.0, is 3.0" in errors


def test_every_example_is_tried():
    tried = re.findall(r'"((?:pycls_std|configs)/\S+?\.\w+)"', Path(__file__).read_text())
    assert set(EXAMPLES) <= set(tried)
