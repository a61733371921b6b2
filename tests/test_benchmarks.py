"""Benchmarks run, in small; nothing is timed here."""

import importlib
import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch
from processes import ROOT, called

from pycls_std.layers.deformable_attention import sample_maps
from pycls_std.layers.orthogonal import AUTO, MAPS


def benchmark(name, *words):
    """Call a benchmark; returns its output."""
    code, output, errors = called(f"tools/benchmarks/{name}.py", *words)
    assert code == 0, errors
    return output


def test_tables():
    text = benchmark("tables", "--runs", "2", "--epochs", "3", "--tags", "2", "--rounds", "1")
    assert "2 runs, 3 epochs, 2 tags" in text


def test_startup():
    text = benchmark("startup", "--rounds", "1", "--warmup", "0")
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "python -c pass",
        "--help",
        "a mistake",
        "first step",
    ]
    assert text.count("s 0.5 s") == 2  # meets or misses


def test_augmentation():
    text = benchmark("augmentation", "--images", "256", "--rounds", "1")
    assert text.count("in batches") == 3
    assert "s 30000 images/s" in text  # meets or misses


def test_cache():
    """A tiny student and epoch; the costly teacher takes too long here."""
    words = ["MODEL.ARGS.embed_dim=16", "MODEL.ARGS.num_blocks=1", "PRECISION=fp32", "DATA.IMAGE_SIZE=8"]
    words += ["MODEL.ARGS.patch_size=4", "DISTILLATION.TEACHER_SIZES=[8, 8]", "DATA.PER_CLASS=26"]
    text = benchmark("cache", *words, "--rounds", "1", "--kinds", "cheap", "--threads", "1")
    assert "taught by resnet32 + resnet56, fp32" in text
    assert "x (" in text
    size = int(re.search(r"(\d+) bytes a view", text)[1])
    assert size == pytest.approx(2 * 10 * 4, abs=3)  # ten logits of each teacher, and what a file begins with


@pytest.mark.slow
def test_allocator():
    words = ["MODEL.ARGS.embed_dim=16", "TRAIN.BATCH_SIZE=8", "PRECISION=fp32"]
    text = benchmark("allocator", *words, "--rounds", "1", "--steps", "1")
    assert [line.split("  ")[0] for line in text.splitlines()[:2]] == ["as it comes", "kept"]
    assert "x (" in text


def test_cost():
    """Twice the batch keeps twice as much for the backward pass; half of it half as much."""
    words = ["MODEL.ARGS.num_blocks=2", "PRECISION=fp32"]
    text = benchmark("cost", *words, "--rounds", "1", "--rows", "3")
    kept = [float(line.split("|")[5]) for line in text.splitlines() if line.startswith("| batch")]
    assert kept[1] / kept[0] == pytest.approx(0.5, rel=0.1)
    assert kept[2] / kept[0] == pytest.approx(2, rel=0.1)


def test_steps():
    """Each config has a row, with what its batch is; of the first, the ratio is 1."""
    configs = ["configs/debug/base_debug.yaml", "configs/debug/detection_debug.yaml"]
    text = benchmark("steps", *configs, "TRAIN.BATCH_SIZE=4", "--rounds", "1")
    rows = re.findall(r"^\| (\S+) \| 4, (\d+)x(\d+) \| \d+ \| ([\d.]+ \(.*\)) \|$", text, re.M)
    assert [row[0] for row in rows] == configs
    assert rows[0][1:] == ("8", "8", "1.00 (1.00 to 1.00)") and int(rows[1][1]) > 32  # digits are of 8 px


def test_bf16():
    text = benchmark("bf16", "--students", "resnet20", "--rounds", "1", "--batch", "2")
    ways = ["bf16, torch's own", "bf16, attention in fp32", "bf16, products in fp32"]
    assert re.findall(r"^(.+?)  +[\d.]+ ms", text, re.M) == ["fp32", *ways]


def test_orthogonal():
    """Every map has a row of each size, with an error of rounding; one without time left takes one step."""
    text = benchmark("orthogonal", "--sizes", "12x40", "12x12", "--steps", "3", "--seconds", "60")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 12x")]
    assert [row[:2] for row in rows] == [[size, kind] for size in ("12x40", "12x12") for kind in MAPS]
    assert all(row[4] == "3" and float(row[5]) < 1e-4 for row in rows)
    text = benchmark("orthogonal", "--sizes", "12x40", "--maps", "cayley", "--steps", "3", "--seconds", "0")
    assert re.findall(r"\| (\w+) \| [\d.]+ \| [\d.]+ \(.*?\) \| (\d) \|", text) == [("cayley", "1"), (AUTO, "1")]


def test_operations():
    """A step waits for nothing; each thing takes no more than when it is done in another way."""
    words = [
        "MODEL.ARGS.num_blocks=1",
        "DISTILLATION.TEACHERS=[resnet8, resnet8]",
        "DISTILLATION.TEACHER_PRECISION=fp32",
    ]
    text = benchmark("operations", "--images", "4096", *words)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    found = {(what, way): tuple(map(int, counts)) for what, way, *counts in rows}
    waits = {way: waits for (what, way), (_, _, waits) in found.items() if what == "step"}
    asked, unfused = waits.pop("asked at once whether it is finite"), waits.pop("the same, MINE's optimizers not fused")
    assert (asked, unfused) == (1, 2) and list(waits.values()) == [0] * 5
    check, apart, large, small, few, many = list(found.values())[7:]
    assert check[0] < 20 < 500 < apart[0]
    assert 1.8 * large[0] < small[0]  # two blocks, where one holds them all
    assert 8 * few[0] < many[0] and few[2] == many[2] == 6  # a read for each score of a prediction


def test_cycle():
    """Both ways agree, or it stops."""
    text = benchmark("cycle", "--sizes", "6x8", "5x7", "--rounds", "2", "--batch", "2")
    assert re.findall(r"^\| (\d+x\d+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \(", text, re.M) == ["6x8", "5x7"]


def test_deformable(monkeypatch):
    """Every other way has a row of each size, and the numbers of ours; `transformers` where it is installed."""

    class Theirs(torch.nn.Module):
        def forward(self, values, _shapes, sizes, _starts, places, weights, _step):
            return 1.5 * sample_maps(values, sizes, places, weights)

    import_module, there = importlib.import_module, [False]
    stub = SimpleNamespace(MultiScaleDeformableAttention=Theirs, __version__="9")
    others = {"transformers", "transformers.models.deformable_detr.modeling_deformable_detr"}
    monkeypatch.setattr(importlib, "import_module", lambda name: stub if name in others else import_module(name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[0])
    row = re.compile(r"^\| (\w+:\S+) \| ([^|]+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \([\d. to]+\) \| (\S+) \|$", re.M)
    sizes = ["micro:2x70x90", "nano:1x64x130"]
    rows = row.findall(benchmark("deformable", "--sizes", *sizes, "--rounds", "2"))
    assert [found[:2] for found in rows] == [(size, "four corners") for size in sizes]
    assert all(float(difference) < 1e-4 for _, _, difference in rows)
    there[0] = True
    rows = row.findall(benchmark("deformable", "--sizes", sizes[0], "--rounds", "1"))
    assert [found[1] for found in rows] == ["four corners", "transformers 9"]
    assert float(rows[1][2]) == pytest.approx(1.25, rel=0.05)  # of gradients of squares, 2.25 - 1


@pytest.mark.parametrize("name", ["cycle", "deformable", "orthogonal", "teachers"])
def test_fp32_is_that_of_a_run(name, monkeypatch):
    """Where a benchmark makes its own runtime, torch's default would be TF32 in convolutions alone."""
    chosen = []

    def stop(runtime, **switches):
        chosen.append(switches)
        raise KeyboardInterrupt

    monkeypatch.setattr("pycls_std.engine.runtime.Runtime.set_arithmetic", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark(name)
    assert chosen == [{"tf32": False, "deterministic": False}]
    assert (ROOT / "tools" / "benchmarks" / f"{name}.py").read_text().count("Runtime()") == 1
