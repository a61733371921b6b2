"""Tables from run records that the tests write: means, deviations, and honesty about what did not finish."""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import yaml
from processes import ROOT, called
from records import logged
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pycls_std import config
from pycls_std.core.prediction_file import Predictions, packed, unpacked
from pycls_std.results import analysis, rows
from pycls_std.results.read import find_runs, read_run
from pycls_std.results.table import aggregate
from pycls_std.run.journal import Journal, events_of


def journal_of(folder, lines=()):
    """Begin to record a run anew, from some lines on."""
    return Journal(folder, (folder / "config.yaml").read_text(), lines, outdated=list(folder.glob("*tfevents*")))


def events(folder):
    """The event file of a run."""
    return next(folder.glob("*tfevents*"))


def make_table(*words):
    """Call the tool; returns exit code, output, errors."""
    return called("tools/make_table.py", *words)


def table_of(*words):
    """What the tool prints, called so that it succeeds, read as a CSV; and its errors."""
    code, text, errors = make_table(*words, "--format", "csv")
    assert code == 0
    return pd.read_csv(io.StringIO(text)), errors


def rows_of(text):
    """The cells of a Markdown table, by run and heading."""
    heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return {row[0]: dict(zip(heading, row, strict=True)) for row in rows}


@pytest.mark.defect(25)
def test_mean_and_sample_deviation_over_seeds(record, tmp_path):
    runs = {0: [10, 40, 30], 1: [10, 20, 36], 2: [50, 20, 33]}
    for seed, top1s in runs.items():
        record("multi", seed, top1s, epochs=None)
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
    record("base", 0, [1, 2, 3], of="mixer/mixer-s4_c100_base", epochs=None)
    record("inter", 0, [1, 2, 3], of="std/mixer-s4_c100_inter", epochs=None)
    record("paper", 0, [1, 2, 3], of="std/mixer-s4_c100_paper", epochs=None)
    code, text, _ = make_table(tmp_path / "logs")
    assert code == 0
    assert text.splitlines() == [
        "| run | model | method | taps | propagated | teachers | data | epochs | n | top-1 | top-5 "
        "| best on test top-1 (optimistic) | published top-1 | published top-5 | source "
        "| top-1 minus published | top-5 minus published | status |",
        "| --- " * 18 + "|",
        "| base | mixer_s4 | baseline | - | - | - | cifar100 | 300 | 1 | 3.00 | 13.00 "
        "| 3.00 | 70.68 | 88.91 | STD reproduction report, table 3.3.1 | -67.68 | -75.91 | finished |",
        "| inter | mixer_s4 | std + mine | 2/3, last | yes | resnet32 + resnet56 | cifar100 | 300 | 1 | 3.00 | 13.00 "
        "| 3.00 | 77.52 | 94.82 | STD reproduction report, table 3.3.1 | -74.52 | -81.82 | finished |",
        "| paper | mixer_s4 | std + mine | 2/3, last | no | resnet32 + resnet56 | cifar100 | 300 | 1 | 3.00 | 13.00 "
        "| 3.00 | - | - | - | - | - | finished |",
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


@pytest.mark.parametrize(
    "edit, method, status",
    [
        (lambda text: text + "OWN:\n  WEIGHT: 1.0\n", "baseline + own (unknown here)", "finished"),
        (lambda text: text + "OWN:\n  SIZE: 2\n", "baseline + own (unknown here)", "finished"),
        (lambda text: text + "OWN:\n  WEIGHT: 0.0\n", "baseline", "finished"),
        (lambda text: text.replace("TRAINER: baseline", "TRAINER: own"), "own (unknown here)", "finished"),
        (
            lambda text: text.replace("TRAINER: baseline", "TRAINER: own") + "OWN:\n  SIZE: 2\nKD:\n  WEIGHT: 1.0\n",
            "own (unknown here) + kd",
            "finished",
        ),
        (
            lambda text: text.replace("NAME: classification", "NAME: own") + "OWN:\n  SIZE: 2\n",
            "baseline",
            "TASK.NAME own is unknown here, and so are its scores",
        ),
    ],
)
def test_what_is_unknown_here_is_no_baseline(record, tmp_path, edit, method, status):
    """As of a term, a trainer or a task whose file is gone; a term that is off is no part of the method."""
    record("x", 0, [1, 2, 3], of="mixer/mixer-s4_c100_base", edit=edit)
    row = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert (row["method"], row["n"], row["status"]) == (method, 1, status)


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
    assert table_of(tmp_path / "logs")[0].equals(pd.read_csv(tmp_path / "t.csv"))


@pytest.mark.fault(34)
def test_an_unfinished_run_is_never_shown_as_complete(record, tmp_path):
    record("multi", 0, [1, 2, 30])
    record("multi", 1, [1, 90], finished=False)
    record("single", 0, [1], finished=False)
    table, errors = table_of(tmp_path / "logs")
    table = table.set_index("run")
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
    table, errors = table_of(tmp_path / "logs")
    row = table.iloc[0]
    assert (row["n"], row["top1"]) == (1, 30)
    assert "seed1" in row["status"]
    assert "warning" in errors


def test_a_metric_that_came_while_a_run_went_on(record, tmp_path):
    """Its first epochs lack it, and that is no damage; a later epoch that lacks it is."""
    folder = record("multi", 0, [])
    journal = journal_of(folder)
    for epoch in (1, 2, 3):
        journal.epoch(epoch, 3, {"test/top1": 10.0 * epoch} | ({"test/other": 1.0} if epoch > 1 else {}))
    assert read_run(folder).status == "finished"
    journal = journal_of(folder)
    for epoch in (1, 2, 3):
        journal.epoch(epoch, 3, {"test/top1": 10.0 * epoch} | ({"test/other": 1.0} if epoch < 3 else {}))
    assert read_run(folder).status == "events damaged"


def test_an_extended_run_is_no_result(record, tmp_path):
    """Continued beyond its MAX_EPOCH, it had the learning rates of two runs; it says so without run.json, too."""
    record("multi", 0, [1, 2, 30], OPTIM__SCHEDULE="cosine")
    folder = record("multi", 1, [1, 2, 90], plans=[2, 2, 3], OPTIM__SCHEDULE="cosine")
    for _ in range(2):
        table = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
        assert (table["n"], table["top1"]) == (1, 30)
        assert table["status"] == "seed1: extended to 3 epochs after epoch 2"
        (folder / "run.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("schedule", "plan", "period", "left_out"),
    [("cosine", 2, 1, True), ("constant", 2, 1, False), ("step", 2, 1, False), ("constant", 1, 2, True)],
)
def test_an_extended_run_is_a_result_if_it_is_as_one_begun_as_long(record, schedule, plan, period, left_out):
    own = {"OPTIM__SCHEDULE": schedule, "TEST__PERIOD": period, "OPTIM__STEPS": [1.5] if schedule == "step" else []}
    folder = record(
        "base", 0, [1, 2, 30, 40], "debug/base_debug", epochs=4, plans=[plan] * plan + [4] * (4 - plan), **own
    )
    expected = f"extended to 4 epochs after epoch {plan}" if left_out else "finished"
    assert read_run(folder).status == expected
    older(folder, [{"epochs_done": 0, "epochs": plan}, {"epochs_done": plan, "epochs": 4}])
    assert read_run(folder).status == expected


def older(folder, starts):
    """Let a record be one of before November 2026: nothing but run.json says for how many epochs it was planned."""
    plain = [{key: value for key, value in line.items() if key != "run/epochs"} for line in logged(folder)]
    path = events(folder)
    path.write_bytes(events_of(path.name, "", plain))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("  CHANGED: []\n", ""))
    (folder / "run.json").write_text(json.dumps({"status": "finished", "starts": starts}))


def test_records_of_before_november_2026(record, tmp_path):
    """The published number is not shown: nobody compared their options with its recipe."""
    first, second, third = (record("multi", seed, [1, 2, 30 + seed], epochs=None) for seed in range(3))
    older(first, [{"epochs_done": 0, "epochs": 300}])
    older(second, [{"epochs_done": 0, "epochs": 200}, {"epochs_done": 200, "epochs": 300}])
    older(third, [])
    table = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert (table["n"], table["top1"]) == (1, 30)
    gone = "run.json is gone or not whole, so it is not known whether it was extended"
    assert table["status"] == f"seed1: extended to 300 epochs after epoch 200; seed2: {gone}"
    assert "published_top1" not in table or pd.isna(table["published_top1"])
    (third / "run.json").unlink()
    assert read_run(third).status == gone


# ---------------------------------------------------------------------------------- what the values are those of
@pytest.mark.parametrize(("old", "new"), [("MAX_EPOCH: 3", "MAX_EPOCH: 2"), ("SEED: 1\n", "SEED: 5\n")])
def test_an_edited_config_is_no_result(record, tmp_path, old, new):
    """It would have made another number of epochs of the same values, or a second seed."""
    record("multi", 0, [1, 2, 30])
    folder = record("multi", 1, [1, 2, 90])
    path = folder / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    table = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    key = "SEED" if "SEED" in old else "OPTIM.MAX_EPOCH"
    assert (table["n"], table["top1"], table["epochs"]) == (1, 30, 3)
    assert table["status"] == f"seed1: config.yaml is not what ran: {key}"
    path.write_text(path.read_text().replace(new, old).replace("LOG_PERIOD: 50", "LOG_PERIOD: 7"))
    assert read_run(folder).status == "finished", "which changes no number"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"DATA__NAME": "tiny_imagenet", "MODEL__NUM_CLASSES": 200}, "DATA.NAME is tiny_imagenet, not cifar100"),
        ({"DISTILLATION__TEACHERS": "[resnet20, resnet56]"}, "DISTILLATION.TEACHERS is ['resnet20', 'resnet56'], not"),
        ({"DISTILLATION__TEACHER_WEIGHTS": "[a.pt, b.pt]"}, "DISTILLATION.TEACHER_WEIGHTS is ['a.pt', 'b.pt'], not"),
        ({"OPTIM__MAX_EPOCH": 30}, "OPTIM.MAX_EPOCH is 30, not 300"),
        ({"DATA__PER_CLASS": 100}, "DATA.PER_CLASS is 100, not 0"),
        ({"PRECISION": "fp32"}, "PRECISION is fp32, not bf16"),
    ],
)
def test_a_published_number_stands_beside_its_recipe_alone(record, tmp_path, overrides, text):
    """A run of one epoch on own images stood beside it as finished."""
    record("mixer-s4_c100_multi", 0, [1, 2, 30], epochs=None, **overrides)
    path = ROOT / "configs" / "std" / "mixer-s4_c100_multi.yaml"
    table, _ = table_of(tmp_path / "logs", "--expect", path)
    assert sorted(table["status"]) == ["finished", "not yet run"]
    ran, expected = (table[table["status"] == status].iloc[0] for status in ("finished", "not yet run"))
    assert pd.isna(ran["published_top1"]) and ran["changed"].startswith(text)
    assert expected["published_top1"] == 76.93 and pd.isna(expected["changed"])
    assert "| not the published recipe |" in make_table(tmp_path / "logs")[1]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"DATA__ROOT": "/x/imagenette"}, "DATA.ROOT is imagenette, not imagenet"),
        ({"DATA__ROOT": "/x/imagenet", "MODEL__NUM_CLASSES": 10}, "MODEL.NUM_CLASSES is 10, not 1000"),
        ({"DATA__ROOT": "/x/imagenet", "MODEL__NUM_CLASSES": 0}, "MODEL.NUM_CLASSES is 0, not 1000"),
        ({"DATA__ROOT": "/x/imagenet"}, ""),
    ],
)
def test_the_number_of_imagenet_is_not_that_of_another_folder(load, overrides, text):
    assert ", ".join(load("mixer/mixer-s16_in1k_base", **overrides).PUBLISHED.CHANGED) == text


def test_a_seed_of_other_data_takes_the_published_number_from_its_row(record, tmp_path):
    """The row showed it if the first of its runs was of the recipe."""
    of = {"of": "mixer/mixer-s16_in1k_base", "epochs": None, "DATA__ROOT": "/x/imagenet"}
    record("a", 0, [1, 2, 30], **of, NAME="mixer")
    record("b", 1, [1, 2, 30], **of, NAME="mixer", MODEL__NUM_CLASSES=3)
    row = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert row["n"] == 2
    assert pd.isna(row["published_top1"]) and row["changed"] == "MODEL.NUM_CLASSES is 3, not 1000"


@pytest.mark.parametrize("kind", ["without options", "another run's", "this run's, longer"])
def test_values_of_other_event_files_are_not_the_runs(record, tmp_path, kind):
    """They were merged: a table stated 99 for a run of 30."""
    folder, other = record("multi", 0, [1, 2, 30]), record("other", 7, [1, 2, 99], OPTIM__BASE_LR=0.5)
    lines = [{"epoch": 3, "time": 1.0, "test/top1": 99.0, "test/top5": 99.0, "run/epochs": 3}]
    text = (folder / "config.yaml").read_text()
    options = {"without options": "", "another run's": (other / "config.yaml").read_text()}
    name = f"events.out.tfevents.{1_900_000_000 * 10**9}"
    (folder / name).write_bytes(events_of(name, options.get(kind, text.replace("MAX_EPOCH: 3", "MAX_EPOCH: 4")), lines))
    run = read_run(folder)
    if kind == "this run's, longer":  # as an extension leaves it that is killed in its first epoch
        assert run.status != "finished" and "not this run's" not in run.status
    else:
        assert run.status.startswith("event files that are not this run's: events.out.tfevents.")
    (folder / name).unlink()
    events(folder).write_bytes(events(folder).read_bytes()[:-10])
    os.mkfifo(folder / "events.out.tfevents.1800000000000000000")
    found = []
    reader = threading.Thread(target=lambda: found.append(read_run(folder).status), daemon=True)
    reader.start()
    reader.join(20)
    assert found == ["no results"]


def test_names_that_look_like_numbers(record, tmp_path):
    """A record is written so that they come back as text."""
    for name in ("1e3", "12e5", "010", "0x1F", "no", "1_000"):
        folder = record(name, 0, [1, 2, 30])
        assert read_run(folder).name == name
        assert called("tools/keep_run.py", tmp_path / "kept", folder)[0] == 0
        assert (tmp_path / "kept" / name / "seed0").is_dir()
    assert set(rows_of(make_table(tmp_path / "kept")[1])) == {"1e3", "12e5", "010", "0x1F", "no", "1_000"}


def test_what_does_not_change_the_recipe(record, load, tmp_path):
    """Seed, device, folders, what is kept of teachers: the number stands beside it, in one row."""
    computed = {"DATA__LOADER": "workers", "TRAIN__COMPILE": "off", "DISTILLATION__TEACHER_FOLD": "false"}
    assert load("std/mixer-s4_c100_multi", **computed, DATA__SEED=0).PUBLISHED.CHANGED == []
    same = [
        {},
        {"DISTILLATION__CACHE": tmp_path},
        {"DATA__ROOT": "/elsewhere", "LOG_PERIOD": 1, "MODEL__NUM_CLASSES": 0},
    ]
    for seed, overrides in enumerate(same):
        record("mixer-s4_c100_multi", seed, [1, 2, 30 + seed], epochs=None, **overrides)
    path = ROOT / "configs" / "std" / "mixer-s4_c100_multi.yaml"
    table, _ = table_of(tmp_path / "logs", "--expect", path)
    assert len(table) == 1
    assert (table["n"][0], table["published_top1"][0], table["status"][0]) == (3, 76.93, "finished")


def test_a_config_that_changes_its_base_has_not_its_published_number(tmp_path):
    """It is stated by the base, and belongs to that; a score of its own belongs to the config itself."""
    base = ROOT / "configs" / "std" / "mixer-s4_c100_single.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(f"_BASE_: {base}\nOPTIM:\n  BASE_LR: 1.0e-3\nPRECISION: fp32\n")
    published = config.load(str(own)).PUBLISHED
    assert (published.TOP1, published.TOP5) == (77.24, 94.08)
    assert published.CHANGED[0].startswith("OPTIM.BASE_LR is 0.001, not ")
    assert len(published.CHANGED) == (2 if config.load(str(base)).PRECISION != "fp32" else 1)
    own.write_text(own.read_text() + "PUBLISHED:\n  TOP1: 70.0\n")
    published = config.load(str(own)).PUBLISHED
    assert (published.TOP1, published.TOP5, published.CHANGED) == (70.0, -1.0, [])
    record = tmp_path / "record.yaml"
    record.write_text(config.dump(config.load(str(base), ["OPTIM.BASE_LR=1"])))
    again = config.load(str(record), ["SEED=3", "OPTIM.WEIGHT_DECAY=0.5"]).PUBLISHED.CHANGED
    assert [text.split(" is ")[0] for text in again] == ["OPTIM.BASE_LR", "OPTIM.WEIGHT_DECAY"]


@pytest.mark.parametrize(
    ("weights", "changed"),
    [
        ("runs/c100_locality/r-56_c100_strong/seed0/checkpoints/last.pt", 0),
        ("/elsewhere/r-56_c100_strong/seed0/checkpoints/last.pt", 0),
        ("runs/r-56_c100/seed0/checkpoints/last.pt", 1),
        ("runs/r-56_c100_strong/seed1/checkpoints/last.pt", 1),
        ("runs/r-56_c100_strong/seed0/checkpoints/best.pt", 1),
        ("published:cifar100_resnet56", 1),
    ],
)
def test_where_the_run_of_a_teacher_lies_is_no_part_of_the_recipe(load, weights, changed):
    """A table keeps its runs in a folder of its own, and its rows lost the published number by it."""
    published = load("deit/deit-ti_c100_ours", DISTILLATION__TEACHER_WEIGHTS=f"[{weights}]").PUBLISHED
    assert [text.partition(" is ")[0] for text in published.CHANGED] == ["DISTILLATION.TEACHER_WEIGHTS"] * changed


@pytest.mark.fault(34)
def test_nothing_finished_is_a_failure(record, tmp_path):
    record("single", 0, [1], finished=False)
    (tmp_path / "logs" / "lost" / "seed0").mkdir(parents=True)
    code, text, errors = make_table(tmp_path / "logs")
    assert code == 1
    assert "| lost |" in text
    assert "seed0: no readable config.yaml" in text
    (tmp_path / "logs" / "lost" / "seed0" / ".lock").touch()
    assert "| seed0: starting, or killed before its first epoch |" in make_table(tmp_path / "logs")[1]
    assert {name: row["n"] for name, row in rows_of(text).items()} == {"lost": "0", "single": "0"}
    assert "top-1 |" not in text.replace("published top-1 |", "")


def test_configs_that_have_not_run_are_named(record, tmp_path):
    record("mixer-s4_c100_multi", 0, [1, 2, 30], epochs=None)
    names = ["mixer/mixer-s4_c100_base", "std/mixer-s4_c100_multi", "std/mixer-s4_c100_single"]
    paths = [ROOT / "configs" / f"{name}.yaml" for name in names]
    table, _ = table_of(tmp_path / "logs", "--expect", *paths)
    assert table["run"].tolist() == [name.split("/")[1] for name in names]
    assert table["status"].tolist() == ["not yet run", "finished", "not yet run"]
    assert table["published_top1"].tolist() == [70.68, 76.93, 77.24]


def test_runs_of_one_name_and_other_options_are_told_apart(record, tmp_path):
    record("multi", 0, [1, 2, 30])
    record("other", 0, [1, 2, 40], OPTIM__BASE_LR=0.1, NAME="multi")
    table = aggregate(find_runs([str(tmp_path / "logs")]))
    assert table["run"].tolist() == ["multi (OPTIM.BASE_LR 0.0005)", "multi (OPTIM.BASE_LR 0.1)"]
    assert table["n"].tolist() == [1, 1]


def test_a_score_that_not_every_seed_has_is_no_mean_of_all(record, tmp_path):
    """A metric that came between two seeds: its mean stood beside the number of all of them."""
    for seed in range(3):
        folder = record("multi", seed, [1, 2, 30 + seed])
        if seed:
            lines = [{key: value for key, value in line.items() if key != "test/top5"} for line in logged(folder)]
            journal_of(folder, lines)
    row = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert (row["n"], row["top1"]) == (3, 31)
    assert pd.isna(row["top5"])
    assert row["status"] == "test/top5 in 1 of 3 runs"


def test_event_files_of_two_starts(record, tmp_path):
    """The options are those of the last file, however many pieces those of the one before have."""
    folder = record("multi", 0, [1, 2, 30])
    text = (folder / "config.yaml").read_text()
    longer = text + "".join(f"# {number}\n" for number in range(2000))
    first = folder / f"events.out.tfevents.{1_500_000_000 * 10**9}"
    first.write_bytes(events_of(first.name, longer, logged(folder)[:1]))
    assert read_run(folder).status == "finished"
    assert read_run(folder).options["OPTIM.MAX_EPOCH"] == 3


def test_records_that_nobody_wrote_so(record, tmp_path):
    folder = record("multi", 0, [1, 2, 30])
    for starts in (5, [1], [{"a": 1}], {"epochs": 3}, []):
        older(folder, starts)
        assert "run.json is gone or not whole" in read_run(folder).status
    code, output, errors = make_table("x" * 5000)
    assert (code, output, len(errors.splitlines())) == (2, "", 1)
    folder = record("other", 0, [1, 2, 30], edit=lambda text: text.replace("NAME: other", "NAME: ../../other"))
    code, _, errors = called("tools/keep_run.py", tmp_path / "kept", folder)
    assert code == 2 and "its name '../../other'" in errors and not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("layout", "of"), [("image_folder", "std/mixer-s4_c100_multi"), ("coco", "vidt/swin-micro_bccd_base")]
)
def test_runs_on_two_folders_are_two_rows(record, tmp_path, layout, of):
    """Where a dataset lies does not matter, which one it is does."""
    folders = {"of": of, "DATA__NAME": layout, "NAME": "own"}
    for seed, root in enumerate(("/a/cats", "/b/cats", "/a/birds")):
        record(str(seed), seed, [1, 2, 30 + seed], **folders, DATA__ROOT=root)
    table = aggregate(find_runs([str(tmp_path / "logs")]))
    assert sorted(zip(table["data"], table["n"], strict=True)) == [("birds", 1), ("cats", 2)]


def test_runs_behind_links_are_found_once(record, tmp_path):
    """A row that lies elsewhere, as on another disk, was left out without a word; links may go round in circles."""
    folder = record("multi", 0, [1, 2, 30])
    away = record("other", 0, [1, 2, 40]).parent.rename(tmp_path / "away")
    for name, target in (("other", away), ("again", folder.parent), (".hidden", away), ("up", tmp_path)):
        (tmp_path / "logs" / name).symlink_to(target)
    (away / "round").symlink_to(tmp_path / "logs")
    found = find_runs([str(tmp_path / "logs"), str(folder)])
    assert [run.folder for run in found] == [folder, tmp_path / "logs" / "other" / "seed0"]


def test_the_same_seed_twice_is_not_two_runs(record, tmp_path):
    folder = record("multi", 0, [1, 2, 30])
    top = tmp_path / "logs"
    assert aggregate(find_runs([str(top), str(folder)]))["n"].tolist() == [1]
    copy = top / "copy" / "seed0"
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    record("base", 0, [1, 2, 20])
    table = aggregate(find_runs([str(top)])).set_index("run")
    assert table["n"].to_dict() == {"base": 1, "multi": 0}
    assert table["status"]["multi"] == f"seed0: there twice, {copy} and {folder}: leave one out"
    assert list(rows.rows_of(find_runs([str(top)]))) == ["base", "multi"]


def test_folders_without_runs(tmp_path):
    code, _, errors = make_table(tmp_path / "gone")
    assert (code, "there is no such folder" in errors) == (2, True)
    code, _, errors = make_table(tmp_path)
    assert (code, "no run record in it" in errors) == (2, True)
    assert make_table()[0] == 2


@pytest.mark.fault(35)
def test_a_run_killed_before_its_first_checkpoint_has_every_point_once(record):
    folder = record("multi", 0, [1])
    journal = journal_of(folder)
    journal.epoch(1, 3, {"test/top1": 5.0})
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/top1")] == [(1, 5.0)]


LACKS = "it lacks DATA.NAME, DATA.ROOT, MODEL.NAME, NAME, OPTIM.MAX_EPOCH and 3 more"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", ""),
        (b"\x80\x81", ""),
        (b"- 1\n", f": {LACKS}"),
        (b"AUG:\n  CROP: pad\n", f": {LACKS}"),
        (b"MAX_EPOCH: x", ": its options: OPTIM.MAX_EPOCH expects a whole number, got 'x'"),
        (b"MAX_EPOCH: 0", ": its options: OPTIM.MAX_EPOCH is 0, expected at least 1"),
        (b"a: [1", ": config.yaml:1: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        (b"[" * 9999, ": config.yaml: is nested too deeply"),
    ],
)
def test_a_broken_config_is_a_row_that_says_so(record, tmp_path, content, why):
    record("multi", 0, [1, 2, 30])
    broken = record("single", 0, [1, 2, 30])
    whole = (broken / "config.yaml").read_bytes()
    (broken / "config.yaml").write_bytes(
        whole.replace(b"MAX_EPOCH: 3", content) if content.startswith(b"MAX_EPOCH") else content
    )
    table, errors = table_of(tmp_path / "logs")
    table = table.set_index("run")
    assert table.loc["single", "status"] == f"seed0: no readable config.yaml{why}"
    assert (table.loc["multi", "n"], table.loc["single", "n"]) == (1, 0)
    assert "no readable config.yaml" in errors


@pytest.mark.parametrize(
    ("key", "value", "expects"),
    [
        ("DISTILLATION.TEACHERS", None, "a list such as [a, b], got None"),
        ("TASK.NAME", ["x"], "text, got ['x']"),
        ("TRAINER", ["std"], "text, got ['std']"),
        ("PUBLISHED.TOP1", "x", "a number, got 'x'"),
    ],
)
def test_an_option_of_another_type_is_a_row_that_says_so(record, tmp_path, key, value, expects):
    """And no end of the table, in an old record either, whose options stand in config.yaml alone."""
    folder = record("single", 0, [1, 2, 30])
    older(folder, [{"epochs_done": 0, "epochs": 3}])
    options = yaml.safe_load((folder / "config.yaml").read_text())
    section, _, leaf = key.rpartition(".")
    (options[section] if section else options)[leaf] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    row = aggregate(find_runs([str(tmp_path)])).iloc[0]
    assert (row["n"], row["status"]) == (0, f"seed0: no readable config.yaml: its options: {key} expects {expects}")


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
    saved = logged(folder)[:1]  # epoch 2 was logged, its checkpoint was not
    (folder / "metrics.jsonl").write_text("of no use")
    journal = journal_of(folder, saved)
    journal.epoch(2, 3, {"test/top1": 5.0})
    journal.epoch(3, 3, {"test/top1": 6.0})
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/top1")] == [(1, 1.0), (2, 5.0), (3, 6.0)]
    assert read_run(folder).curves["test/top1"] == {1: 1.0, 2: 5.0, 3: 6.0}
    assert [line["epoch"] for line in logged(folder)] == [1, 2, 3]


def test_evaluation_every_other_epoch(record):
    folder = record("multi", 0, [], TEST__PERIOD=2)
    journal = journal_of(folder)
    for epoch in (2, 3):
        journal.epoch(epoch, 3, {"test/top1": 5.0})
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


def test_kept_records_have_their_analysis_and_small_weights(record, tmp_path):
    run = record("multi", 0, [1, 2, 30], DATA__VAL_FRACTION=0.2)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.pt").write_bytes(b"weights")
    (run / "checkpoints" / "last.pt").write_bytes(b"state")
    own = {"index": np.arange(2), "paths": np.array(["", ""]), "labels": np.array([0, 1]), "predictions": {}}
    logits = {"heads": {"cls": np.eye(2, dtype=np.float32)}, "teachers": {}}
    meta = {"name": "multi", "seed": 0, "classes": ["a", "b"], "prediction": "cls"}
    read = unpacked(packed(Predictions(**own, **logits, meta=meta)))
    analysis.write(analysis.analyze(read), run / "analysis.json")
    assert called("tools/keep_run.py", "--weights", tmp_path / "kept", run) == (0, "", "")
    kept = tmp_path / "kept" / "multi" / "seed0"
    assert analysis.read(kept / "analysis.json")["predictions"]["cls"]["top1"] == 100
    assert (kept / "checkpoints" / "best.pt").read_bytes() == b"weights"
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["best.pt"]
    assert read_run(kept).status == "finished"
    assert called("tools/keep_run.py", tmp_path / "light", run) == (0, "", "")
    assert not (tmp_path / "light" / "multi" / "seed0" / "checkpoints").exists()
    (run / "checkpoints" / "best.pt").write_bytes(bytes(8_100_000))
    code, _, errors = called("tools/keep_run.py", "--weights", tmp_path / "large", run)
    assert errors.endswith("best.pt has 8.1 MB, --weights keeps at most 8\n")
    assert (code, len(errors.splitlines()), (tmp_path / "large").exists()) == (2, 1, False)
    (run / "checkpoints" / "best.pt").unlink()
    code, _, errors = called("tools/keep_run.py", "--weights", tmp_path / "none", run)
    assert code == 2 and "checkpoints/best.pt missing" in errors
    analysis.write(analysis.analyze(read._replace(meta=meta | {"seed": 1})), run / "analysis.json")
    code, _, errors = called("tools/keep_run.py", tmp_path / "other", run)
    assert code == 2 and "is that of multi seed1, and not of multi seed0" in errors
    (run / "analysis.json").write_text("{}")
    code, _, errors = called("tools/keep_run.py", tmp_path / "other", run)
    assert code == 2 and "analysis.json: it is no analysis" in errors and not (tmp_path / "other").exists()


def test_a_run_that_ended_in_its_last_record_and_weights_that_do_not_teach_are_not_kept(record, tmp_path):
    run = record("multi", 0, [1, 2, 30])
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.pt").write_bytes(b"weights")
    code, _, errors = called("tools/keep_run.py", "--weights", tmp_path / "kept", run)
    assert code == 2 and errors.endswith("without DATA.VAL_FRACTION last.pt teaches\n")
    assert called("tools/keep_run.py", tmp_path / "light", run)[0] == 0
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"status": "unfinished"}))
    code, _, errors = called("tools/keep_run.py", tmp_path / "kept", run)
    assert code == 2 and "run.json is of an unfinished run" in errors and not (tmp_path / "kept").exists()


def test_a_gain_is_paired_over_seeds_and_over_images_where_there_is_one(tmp_path, monkeypatch):
    """Each number again, by scipy and by hand; an analysis of another epoch than is compared says nothing."""
    import numpy as np
    from scipy.stats import ttest_rel

    from pycls_std.results import table as module
    from pycls_std.results.read import Run

    options = config.flatten(config.load(str(ROOT / "configs/debug/base_debug.yaml")))

    def run(name, seed, test, val=()):
        curves = {"test/top1": dict(enumerate(test, 1)), "test/top5": dict(enumerate(test, 1))}
        curves |= {"val/top1": dict(enumerate(val, 1))} if val else {}
        return Run(tmp_path / name / f"seed{seed}", options | {"NAME": name, "SEED": seed}, curves)

    scores = {"base": (50.0, 51, 49), "good": (53.0, 55, 51), "same": (50.5, 50, 49.7)}
    runs = [run(name, seed, (10.0, score)) for name, each in scores.items() for seed, score in enumerate(each)]
    rows = aggregate(runs, baseline="base").set_index("run")
    for name in ("good", "same"):
        interval = ttest_rel(scores[name], scores["base"]).confidence_interval(0.95)
        assert rows.loc[name, ["gain_low", "gain_high"]].tolist() == pytest.approx([interval.low, interval.high])
    assert rows.loc["good", "gain"].startswith("+3.00 [") and "noise" not in rows.loc["good", "gain"]
    assert rows.loc["same", "gain"].endswith(", within noise") and rows.loc["base", "gain"] != rows.loc["base", "gain"]
    with pytest.raises(ValueError, match="the baseline bass is no row, there are base"):
        aggregate(runs, baseline="bass")
    with pytest.raises(ValueError, match="bass, to be apart, is no row, there are base, good, same"):
        aggregate(runs, baseline="base", apart=("good", "bass"))
    own = aggregate(runs, baseline={"good": "same", "same": "base"}).set_index("run")  # each has its own
    mean = sum(np.subtract(scores["good"], scores["same"])) / 3
    assert own["baseline"].to_dict() == {"base": "", "good": "same", "same": "base"}
    assert own.loc["good", "gain_mean"] == pytest.approx(mean) and own.loc["same", "gain"] == rows.loc["same", "gain"]
    assert "baseline" not in rows and "baseline" not in aggregate(runs, baseline={"good": "base"})
    with pytest.raises(ValueError, match="the baseline bass is no row, there are base"):
        aggregate(runs, baseline={"good": "base", "same": "bass"})
    # the seeds of a baseline by two teachers: two rows, and nobody knows which is meant
    again = [run(name, seed, (10.0, 50)) for name in ("base", "good") for seed in (0, 1)]
    for each, digest in zip(again, "abcc", strict=True):
        each.options |= {"DISTILLATION.TEACHERS": ["resnet8"], "DISTILLATION.TEACHER_WEIGHTS": ["x"]}
        each.teachers = (digest,)
    expected = [again[2].options, again[0].options]
    split = aggregate(again, expected, baseline="base", failed={"base": "seed2 failed: why"}).set_index("run")
    assert [name.partition(" ")[0] for name in split.index] == ["good", "base", "base"]
    assert split["gain"].tolist() == ["not compared, base is 2 rows"] * 3
    assert split["status"].str.endswith("seed2 failed: why").tolist() == [False, True, True]
    with_one = aggregate(again, baseline=split.index[1]).set_index("run")
    assert with_one.loc["good", "gain"] == "+0.00, one seed"
    one, both = (aggregate(again, expected[:1], baseline="good", apart=(name,)) for name in (split.index[1], "base"))
    assert one["run"].tolist() == split.index.tolist() and one["gain"].notna().tolist() == [False, False, True]
    assert "gain" not in both
    # one seed, selected on the held-out images: epoch 1 of base, epoch 2 of the other
    hits = {"base": np.arange(100) < 40, "other": np.arange(100) < 60}
    said = {"base": 1, "other": 2}  # epochs
    monkeypatch.setattr(module, "hits_of", lambda folder, name, seed: ("split", said[name], hits[name]))
    two = [run("base", 0, (40.0, 45), (9, 3)), run("other", 0, (70.0, 60), (3, 9))]
    held_out = aggregate(two, baseline="base", selection="held-out").set_index("run")
    assert held_out["selected_top1"].tolist() == [40, 60] and held_out["best_top1"].tolist() == [45, 70]
    assert held_out["top1"].tolist() == [45, 60]
    assert held_out.loc["other", "gain"].startswith("+20.00 [") and "p 1.9e-06" in held_out.loc["other", "gain"]
    assert aggregate(two, baseline="base").set_index("run").loc["other", "gain"] == "+15.00, one seed"
    said["other"] = 1  # another epoch's, as often right
    held_out = aggregate(two, baseline="base", selection="held-out").set_index("run")
    assert held_out.loc["other", "gain"] == "+20.00, one seed"


def test_what_cannot_be_compared_says_why(record, tmp_path):
    for seed, name in ((0, "base"), (1, "late"), (0, "fewer")):
        record(name, seed, [10.0, 20.0, 30.0], DATA__PER_CLASS=100 if name == "fewer" else 0)
    runs = find_runs([str(tmp_path / "logs")])
    gains = aggregate(runs, baseline="base").set_index("run")["gain"]
    assert gains["late"] == "not compared, no seed in common"
    assert gains["fewer"] == "+0.00, one seed, 100 images a class beside all"
    gains = aggregate(runs, baseline="base", selection="held-out").set_index("run")["gain"]
    assert gains["late"] == "not compared, no held-out scores of late and base"


def test_what_is_wrong_with_a_seed_stays_beside_those_that_are_missing(record, tmp_path):
    """A row of whose seeds none is finished said of two that they were not yet run, and of the third one nothing."""
    record("base", 0, [10.0, 20.0], finished=False)
    runs = find_runs([str(tmp_path / "logs")])
    for failed in ({}, {"base": "seed1, seed2 not yet run"}):
        row = aggregate(runs, failed=failed).iloc[0]
        assert row["n"] == 0 and row["status"].startswith("seed0: ")
        assert row["status"].endswith("not yet run") == bool(failed)


def test_a_device_makes_no_row_and_processes_do(record, tmp_path):
    """CUDA.TF32 has no effect on a CPU, where it is not asked for; each process has its own batch norm."""
    for seed, (device, processes) in enumerate((("cpu", 1), ("auto", 1), ("auto", 2))):
        run = record("base", seed, [10.0, 20.0, 30.0], DEVICE=device)
        (run / "run.json").write_text(json.dumps({"status": "finished", "processes": processes, "hours": 2.0}))
    shutil.copytree(run, tmp_path / "logs" / "base" / ".restored-1")  # which is being written
    rows = aggregate(find_runs([str(tmp_path / "logs")])).set_index("run")
    assert rows["n"].to_dict() == {"base": 2, "base (processes 2)": 1}
    assert rows["hours"].to_dict() == {"base": 2.0, "base (processes 2)": 4.0}  # of all devices


def test_scores_that_are_not_finite_are_no_mean_and_are_told(record, tmp_path):
    """A mean passed them over, so that one seed of two stood as two."""
    for seed, last in enumerate((30.0, float("nan"))):
        record("a", seed, [10.0, 20.0, last])
    row = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert row["n"] == 2 and row["top1"] != row["top1"] and "seed1: test/top1 is nan" in row["status"]
    assert row["best_top1"] == pytest.approx(25.0)


def test_only_rows_of_the_same_data_are_compared_and_another_length_is_said(record, tmp_path):
    record("base", 0, [10.0, 20.0, 30.0])
    record("other", 0, [10.0, 20.0, 35.0], DATA__NAME="cifar10", MODEL__NUM_CLASSES=0)
    record("longer", 0, [10.0, 20.0, 30.0, 33.0], epochs=4)
    rows = aggregate(find_runs([str(tmp_path / "logs")]), baseline="base").set_index("run")
    assert rows.loc["other", "gain"] == "not compared, other data"
    assert rows.loc["longer", "gain"] == "+3.00, one seed, 4 epochs beside 3"


def test_an_analysis_of_another_run_is_told_and_not_believed(record, tmp_path):
    folder = record("a", 0, [1.0, 2.0, 3.0])
    own = {"format": 1, "name": "b", "seed": 0, "images": 1, "classes": ["x"], "split": "s", "prediction": "cls"}
    scores = {"top1": 100.0, "top5": 100.0, "loss": 1.0, "ece": 4.0, "correct": "80", "per_class": [100.0]}
    (folder / "analysis.json").write_text(json.dumps(own | {"predictions": {"cls": scores}, "teachers": {}}))
    row = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]
    assert "it is that of b seed0" in row["status"] and "student_ece" not in row


def test_an_analysis_that_is_not_whole_is_told_and_not_passed_over(record, tmp_path):
    record("a", 0, [1.0, 2.0, 3.0])
    assert aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]["status"] == "finished"
    (tmp_path / "logs" / "a" / "seed0" / "analysis.json").write_text('{"format": 1}')
    status = aggregate(find_runs([str(tmp_path / "logs")])).iloc[0]["status"]
    assert status.startswith("seed0: ") and "a/seed0/analysis.json: it does not say name" in status


def test_headings_are_no_comments_of_latex(record, tmp_path):
    """A percent sign in one hid all headings after it."""
    record("base", 0, [1.0, 2.0, 3.0])
    record("good", 0, [2.0, 3.0, 4.0])
    code, text, _ = make_table(tmp_path / "logs", "--baseline", "base", "--format", "latex")
    assert code == 0 and r"(95 \% interval)" in text and "%" not in text.replace(r"\%", "")
