"""Tables from run records that the tests write: means, deviations, and honesty about what did not finish."""

import io
import json
import statistics
import subprocess
import sys

import pandas as pd
import pytest
from processes import ROOT, called
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pycls_std import config
from pycls_std.results.read import find_runs, read_run
from pycls_std.results.table import aggregate
from pycls_std.run.journal import Journal


@pytest.fixture
def record(load, tmp_path):
    """Return record(name, seed, top1s, **overrides): write a run whose epochs end with these accuracies."""

    def write(name, seed, top1s, of="std/mixer-s4_c100_multi", finished=True, **overrides):
        folder = tmp_path / "logs" / name / f"seed{seed}"
        folder.mkdir(parents=True)
        options = {"NAME": name, "SEED": seed, "OPTIM__MAX_EPOCH": 3, "OPTIM__WARMUP_EPOCHS": 1} | overrides
        (folder / "config.yaml").write_text(config.dump(load(of, **options)))
        journal = Journal(folder)
        for epoch, top1 in enumerate(top1s, start=1):
            journal.epoch(epoch, {"train/loss": 1.0, "test/top1": top1, "test/top5": top1 + 10})
        (folder / "run.json").write_text(json.dumps({"status": "finished" if finished else "running"}))
        return folder

    return write


def events(folder):
    """The event file of a run."""
    return next(folder.glob("*tfevents*"))


def make_table(*words):
    """Call the tool; returns exit code, output, errors."""
    return called("tools/make_table.py", *words)


def rows_of(text):
    """The cells of a Markdown table, by run and heading."""
    heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return {row[0]: dict(zip(heading, row, strict=True)) for row in rows}


@pytest.mark.defect(25)
def test_mean_and_sample_deviation_over_seeds(record, tmp_path):
    runs = {0: [10, 40, 30], 1: [10, 20, 36], 2: [50, 20, 33]}
    for seed, top1s in runs.items():
        record("multi", seed, top1s)
    row = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    last, best = [v[-1] for v in runs.values()], [max(v) for v in runs.values()]
    assert row["n"] == 3
    assert row["top1"] == pytest.approx(statistics.mean(last))
    assert row["top1_std"] == pytest.approx(statistics.stdev(last))
    assert row["top5"] == pytest.approx(statistics.mean(last) + 10)
    assert row["best_top1"] == pytest.approx(statistics.mean(best))
    assert (row["published_top1"], row["published_top5"]) == (76.93, 94.26)


def test_columns_of_the_reproductions_table(record, tmp_path):
    """What all rows have at its default has no column: DISTILLATION.TYPE, STD.TOKENS."""
    record("base", 0, [1, 2, 3], of="mixer/mixer-s4_c100_base")
    record("inter", 0, [1, 2, 3], of="std/mixer-s4_c100_inter")
    record("paper", 0, [1, 2, 3], of="std/mixer-s4_c100_paper")
    code, text, _ = make_table(tmp_path / "logs")
    assert code == 0
    assert text.splitlines() == [
        "| run | model | method | taps | propagated | teachers | data | epochs | n | top-1 | top-5 "
        "| best epoch top-1 | published top-1 | published top-5 | status |",
        "| --- " * 15 + "|",
        "| base | mixer_s4 | baseline | - | - | - | cifar100 | 3 | 1 | 3.00 | 13.00 "
        "| 3.00 | 70.68 | 88.91 | finished |",
        "| inter | mixer_s4 | std + mine | 2/3, last | yes | resnet32 + resnet56 | cifar100 | 3 | 1 | 3.00 | 13.00 "
        "| 3.00 | 77.52 | 94.82 | finished |",
        "| paper | mixer_s4 | std + mine | 2/3, last | no | resnet32 + resnet56 | cifar100 | 3 | 1 | 3.00 | 13.00 "
        "| 3.00 | - | - | finished |",
    ]


WORDS = ["method", "mode", "form", "standardized", "guided taps", "offline"]


@pytest.mark.parametrize(
    ("config", "cells"),
    [
        ("deit/deit-ti_c10_none", ["deit", "none", "-", "-", "-", "-"]),
        ("deit/deit-ti_c10_soft", ["deit", "soft", "soft", "no", "-", "no"]),
        ("deit/deit-ti_c10_distill", ["deit", "distill", "hard", "no", "-", "no"]),
        ("deit/deit-ti_c10_both-hard", ["deit", "both", "hard", "no", "-", "no"]),
        ("resnet/r-20_c100_DKD", ["kd", "-", "decoupled", "no", "-", "no"]),
        ("mixer/mixer-s4_c100_KD_ours", ["kd", "-", "soft", "yes", "-", "no"]),
        ("std/mixer-s4_c100_ours", ["std + mine", "-", "soft", "yes", "-", "no"]),
        ("deit/deit-ti_c100_ours", ["locality", "-", "-", "-", "blocks.0, blocks.6, blocks.11", "no"]),
        ("deit/deit-ti_c100_ours_offline", ["locality", "-", "-", "-", "blocks.0, blocks.6, blocks.11", "yes"]),
        ("deit/deit-ti_c100_ours_KD", ["locality + kd", "-", "soft", "yes", "blocks.0, blocks.6, blocks.11", "no"]),
    ],
)
def test_methods_are_told_apart(record, tmp_path, config, cells):
    """Beside rows that have every column; what a run does not read is a dash."""
    record("x", 0, [1, 2, 3], of=config, **({"KD__WARMUP_EPOCHS": 1} if "DKD" in config else {}))
    others = ["deit/deit-ti_c10_soft", "std/mixer-s4_c100_ours", "deit/deit-ti_c100_ours_offline"]
    paths = [ROOT / "configs" / f"{other}.yaml" for other in others]
    code, text, _ = make_table(tmp_path / "logs", "--expect", *paths)
    assert (code, [rows_of(text)["x"][word] for word in WORDS]) == (0, cells)


def test_csv_and_latex(record, tmp_path):
    record("a_b", 0, [1, 2, 3]), record("a_b", 1, [1, 2, 5])
    code, text, _ = make_table(tmp_path / "logs", "--format", "csv", "--out", tmp_path / "t.csv")
    assert (code, text) == (0, "")
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert (row["run"], row["top1"], row["top1_std"]) == ("a_b", 4.0, pytest.approx(2**0.5, abs=1e-4))
    code, text, _ = make_table("--format", "latex", tmp_path / "logs")
    assert code == 0
    assert r"a\_b & mixer\_s4" in text
    assert "4.00 ± 1.41" in text
    assert pd.read_csv(io.StringIO(make_table(tmp_path / "logs", "--format=csv")[1])).equals(
        pd.read_csv(tmp_path / "t.csv")
    )


@pytest.mark.fault(34)
def test_an_unfinished_run_is_never_shown_as_complete(record, tmp_path):
    record("multi", 0, [1, 2, 30])
    record("multi", 1, [1, 90], finished=False)
    record("single", 0, [1], finished=False)
    code, text, errors = make_table(tmp_path / "logs", "--format", "csv")
    table = pd.read_csv(io.StringIO(text)).set_index("run")
    assert code == 0
    assert (table.loc["multi", "n"], table.loc["multi", "top1"]) == (1, 30)
    assert table.loc["multi", "status"] == "seed1: unfinished, epoch 2 of 3"
    assert table.loc["single", "n"] == 0
    assert pd.isna(table.loc["single", "top1"])
    assert "multi/seed1: unfinished, epoch 2 of 3" in errors


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped"])
@pytest.mark.fault(34)
def test_a_damaged_event_file_is_no_result(record, tmp_path, damage):
    good, bad = record("multi", 0, [1, 2, 30]), record("multi", 1, [1, 2, 90])
    path = events(bad)
    content = bytearray(path.read_bytes())
    if damage == "absent":
        path.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: 0 if damage == "empty" else -30])
    assert read_run(good).status == "finished"
    assert read_run(bad).status in ("no results", "events damaged")
    code, text, errors = make_table(tmp_path / "logs", "--format", "csv")
    row = pd.read_csv(io.StringIO(text)).iloc[0]
    assert (code, row["n"], row["top1"]) == (0, 1, 30)
    assert "seed1" in row["status"]
    assert "warning" in errors


def test_a_metric_that_came_while_a_run_went_on(record, tmp_path):
    """Its first epochs lack it, and that is no damage; a later epoch that lacks it is."""
    folder = record("multi", 0, [])
    journal = Journal(folder)
    for epoch in (1, 2, 3):
        journal.epoch(epoch, {"test/top1": 10.0 * epoch} | ({"test/other": 1.0} if epoch > 1 else {}))
    assert read_run(folder).status == "finished"
    journal = Journal(folder)
    for epoch in (1, 2, 3):
        journal.epoch(epoch, {"test/top1": 10.0 * epoch} | ({"test/other": 1.0} if epoch < 3 else {}))
    assert read_run(folder).status == "events damaged"


def test_an_extended_run_is_no_result(record, tmp_path):
    """Continued beyond its MAX_EPOCH, it had the learning rates of two runs."""
    record("multi", 0, [1, 2, 30])
    folder = record("multi", 1, [1, 2, 90])
    starts = [{"epochs_done": 0, "epochs": 2}, {"epochs_done": 2, "epochs": 3}]
    (folder / "run.json").write_text(json.dumps({"status": "finished", "starts": starts}))
    table = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert (table["n"], table["top1"]) == (1, 30)
    assert table["status"] == "seed1: extended to 3 epochs after epoch 2"


@pytest.mark.fault(34)
def test_nothing_finished_is_a_failure(record, tmp_path):
    record("single", 0, [1], finished=False)
    (tmp_path / "logs" / "lost" / "seed0").mkdir(parents=True)
    code, text, errors = make_table(tmp_path / "logs")
    assert code == 1
    assert "| lost |" in text
    assert "seed0: no readable config.yaml" in text
    assert {name: row["n"] for name, row in rows_of(text).items()} == {"lost": "0", "single": "0"}
    assert "top-1 |" not in text.replace("published top-1 |", "")


def test_configs_that_have_not_run_are_named(record, tmp_path):
    record("mixer-s4_c100_multi", 0, [1, 2, 30])
    names = ["mixer/mixer-s4_c100_base", "std/mixer-s4_c100_multi", "std/mixer-s4_c100_single"]
    paths = [ROOT / "configs" / f"{name}.yaml" for name in names]
    code, text, _ = make_table(tmp_path / "logs", "--expect", *paths, "--format", "csv")
    table = pd.read_csv(io.StringIO(text))
    assert code == 0
    assert table["run"].tolist() == [name.split("/")[1] for name in names]
    assert table["status"].tolist() == ["not yet run", "finished", "not yet run"]
    assert table["published_top1"].tolist() == [70.68, 76.93, 77.24]


def test_runs_of_one_name_and_other_options_are_told_apart(record, tmp_path):
    record("multi", 0, [1, 2, 30])
    folder = record("other", 0, [1, 2, 40], OPTIM__BASE_LR=0.1)
    text = (folder / "config.yaml").read_text().replace("NAME: other", "NAME: multi")
    (folder / "config.yaml").write_text(text)
    table = aggregate(find_runs([str(tmp_path / "logs")]))
    assert table["run"].tolist() == ["multi (OPTIM.BASE_LR 0.0005)", "multi (OPTIM.BASE_LR 0.1)"]
    assert table["n"].tolist() == [1, 1]


def test_runs_on_two_image_folders_are_two_rows(record, tmp_path):
    """Where a dataset lies does not matter, which one it is does."""
    folders = {"DATA__NAME": "image_folder", "NAME": "own"}
    for seed, root in enumerate(("/a/cats", "/b/cats", "/a/birds")):
        record(str(seed), seed, [1, 2, 30 + seed], **folders, DATA__ROOT=root)
    table = aggregate(find_runs([str(tmp_path / "logs")]))
    assert sorted(zip(table["data"], table["n"], strict=True)) == [("birds", 1), ("cats", 2)]


def test_the_same_seed_twice_is_not_two_runs(record, tmp_path):
    folder = record("multi", 0, [1, 2, 30])
    top = tmp_path / "logs"
    assert aggregate(find_runs([str(top), str(folder)]))["n"].tolist() == [1]
    copy = top / "copy" / "seed0"
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    code, _, errors = make_table(top)
    assert code == 2
    assert "multi seed0 is there twice" in errors


def test_folders_without_runs(tmp_path):
    code, _, errors = make_table(tmp_path / "gone")
    assert (code, "there is no such folder" in errors) == (2, True)
    code, _, errors = make_table(tmp_path)
    assert (code, "no run record in it" in errors) == (2, True)
    assert make_table()[0] == 2


@pytest.mark.fault(35)
def test_a_run_killed_before_its_first_checkpoint_has_every_point_once(record):
    folder = record("multi", 0, [1])
    journal = Journal(folder)
    journal.epoch(1, {"test/top1": 5.0})
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/top1")] == [(1, 5.0)]


@pytest.mark.parametrize("content", [b"", b"- 1\n", None, b"\x80\x81", b"AUG:\n  CROP: pad\n", b"a: [1", b"[" * 9999])
def test_a_broken_config_is_a_row_that_says_so(record, tmp_path, content):
    record("multi", 0, [1, 2, 30])
    broken = record("single", 0, [1, 2, 30])
    whole = (broken / "config.yaml").read_bytes()
    (broken / "config.yaml").write_bytes(
        whole.replace(b"MAX_EPOCH: 3", b"MAX_EPOCH: x") if content is None else content
    )
    code, text, errors = make_table(tmp_path / "logs", "--format", "csv")
    table = pd.read_csv(io.StringIO(text)).set_index("run")
    assert code == 0
    assert table.loc["single", "status"] == "seed0: no readable config.yaml"
    assert (table.loc["multi", "n"], table.loc["single", "n"]) == (1, 0)
    assert "no readable config.yaml" in errors


def test_the_tool_imports_no_torch(record, tmp_path):
    record("multi", 0, [1, 2, 30])
    script = [sys.executable, "-X", "importtime", str(ROOT / "tools" / "make_table.py"), "logs"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == make_table(tmp_path / "logs")[:2]
    errors = done.stderr
    modules = {line.rsplit("|", 1)[1].strip() for line in errors.splitlines() if line.startswith("import time:")}
    assert "pandas" in modules
    assert not modules & {"torch", "torchvision", "timm"}


def test_out_into_no_folder(record, tmp_path):
    record("multi", 0, [1, 2, 30])
    code, _, errors = make_table(tmp_path / "logs", "--out", tmp_path / "none" / "t.md")
    assert code == 2
    assert errors.startswith("make_table.py: ")
    assert "Traceback" not in errors


@pytest.mark.fault(35)
def test_a_resumed_run_has_every_point_once(record):
    folder = record("multi", 0, [1, 2])
    saved = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])]
    (folder / "metrics.jsonl").write_text("of no use")
    journal = Journal(folder, saved)  # epoch 2 was logged, its checkpoint was not
    journal.epoch(2, {"test/top1": 5.0})
    journal.epoch(3, {"test/top1": 6.0})
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/top1")] == [(1, 1.0), (2, 5.0), (3, 6.0)]
    assert read_run(folder).curves["test/top1"] == {1: 1.0, 2: 5.0, 3: 6.0}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_evaluation_every_other_epoch(record):
    folder = record("multi", 0, [], TEST__PERIOD=2)
    journal = Journal(folder)
    for epoch in (2, 3):
        journal.epoch(epoch, {"test/top1": 5.0})
    assert read_run(folder).status == "finished"


def test_kept_records_are_small_and_tell_no_host(record, tmp_path):
    run = record("multi", 0, [1, 2, 30])
    (run / "checkpoints").mkdir()
    assert called("tools/keep_run.py", tmp_path / "kept", run) == (0, "", "")
    kept = tmp_path / "kept" / "multi" / "seed0"
    assert {path.name for path in kept.iterdir()} == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "events.out.tfevents.0000",
    }
    assert read_run(kept).curves == read_run(run).curves
    code, _, errors = called("tools/keep_run.py", tmp_path / "kept", run)
    assert (code, "is taken" in errors) == (2, True)
    code, _, errors = called("tools/keep_run.py", tmp_path / "new", run, kept)
    assert (code, "is taken" in errors, (tmp_path / "new").exists()) == (2, True, False)
    unfinished = record("other", 0, [1], finished=False)
    code, _, errors = called("tools/keep_run.py", tmp_path / "kept", unfinished)
    assert (code, "unfinished, epoch 1 of 3" in errors) == (2, True)
