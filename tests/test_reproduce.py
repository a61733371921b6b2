"""A table's file: what it says, the order of its runs, and that they are made, skipped, continued and told of."""

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import ROOT, Running, called, wait_for

from pycls_std.config import ConfigError, shipped
from pycls_std.reproduce import estimate, running, showing, state
from pycls_std.reproduce.jobs import Changes, plan
from pycls_std.reproduce.running import Runner, Slot
from pycls_std.reproduce.state import State, counts_as_kept, restore, state_of
from pycls_std.reproduce.table_file import ROW_KEYS, TABLE_KEYS, read_table
from pycls_std.results.read import find_runs, read_run

DEBUG = ROOT / "configs" / "debug"
SHIPPED = sorted((ROOT / "configs" / "tables").glob("*.yaml"))
TABLE = f"""
title: A small table
seeds: [0, 1]
baseline: base
teachers:
  - {{name: t, config: {DEBUG}/teacher_debug.yaml}}
runs:
  - {{name: base, config: {DEBUG}/base_debug.yaml, options: {{OPTIM.MAX_EPOCH: 2}}}}
  - name: KD
    config: {DEBUG}/kd_debug.yaml
    teachers: [t]
    options: {{OPTIM: {{MAX_EPOCH: 2}}, DISTILLATION.TEACHER_MIN_ACC: 0}}
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Return table(text, old=new): a file of a table, in the folder that is worked in, read."""
    monkeypatch.chdir(tmp_path)

    def write(text=TABLE, **replaced):
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "small.yaml").write_text(text)
        return read_table(Path("small.yaml"))

    return write


def planned(found, *overrides, **changes):
    """The runs of a table, with changes."""
    return plan(found, Changes(**changes), list(overrides))


# --------------------------------------------------------------------------------------------------------- the file
def test_the_teachers_come_first_and_one_seed_of_every_row_before_the_next(table):
    found = table(TABLE + f"  - {{name: more, config: {DEBUG}/base_debug.yaml, seeds: [5]}}\n")
    order = [str(job) for job in planned(found)]
    assert order == ["base seed0", "t seed0", "KD seed0", "more seed5", "base seed1", "KD seed1"]
    job = planned(found)[2]
    assert [str(teacher) for teacher in job.needs] == ["t seed0"]
    assert job.options["DISTILLATION.TEACHERS"] == ["resnet8"]
    assert job.options["DISTILLATION.TEACHER_WEIGHTS"] == ["runs/small/t/seed0/checkpoints/last.pt"]
    assert (job.options["NAME"], job.options["SEED"], job.options["OUT_DIR"]) == ("KD", 0, "runs/small/KD/seed0")
    assert job.options["OPTIM.MAX_EPOCH"] == 2 and job.options["DISTILLATION.TEACHER_MIN_ACC"] == 0


def test_teachers_teach_by_their_best_held_out_epoch_where_something_is_held_out(table):
    found = table(teacher_debug="teacher_debug", title="options: {DATA.VAL_FRACTION: 0.2}\ntitle")
    weights = {str(job): job.options["DISTILLATION.TEACHER_WEIGHTS"] for job in planned(found)}
    assert weights["KD seed1"] == ["runs/small/t/seed0/checkpoints/best.pt"]


def test_a_sweep_is_the_product_of_its_axes_or_a_list(table):
    text = TABLE + "    sweep: {OPTIM.BASE_LR: [5e-4, 1e-3], KD: {WEIGHT: [0.5, 1]}}\n"
    found = table(text)
    names = ["KD_BASE_LR-5e-4_WEIGHT-0.5", "KD_BASE_LR-5e-4_WEIGHT-1"]
    names += ["KD_BASE_LR-1e-3_WEIGHT-0.5", "KD_BASE_LR-1e-3_WEIGHT-1"]
    assert [row.name for row in found.rows[2:]] == names
    assert found.varied == ("OPTIM.BASE_LR", "KD.WEIGHT")
    rates = {job.row.name: (job.options["OPTIM.BASE_LR"], job.options["KD.WEIGHT"]) for job in planned(found)[2:6]}
    assert list(rates.values()) == [(5e-4, 0.5), (5e-4, 1.0), (1e-3, 0.5), (1e-3, 1.0)]
    listed = table(TABLE + "    list: [{OPTIM.BASE_LR: 1e-3, AUG.FLIP: 0}, {STD.TAPS: [1, last]}]\n")
    assert [row.name for row in listed.rows[2:]] == ["KD_BASE_LR-1e-3_FLIP-0", "KD_TAPS-1-last"]
    signed = table(TABLE + "    list: [{STD.WEIGHT: 1, KD.WEIGHT: -1}, {STD.WEIGHT: 1, KD.WEIGHT: 1}]\n")
    assert [row.name for row in signed.rows[2:]] == [f"KD_STD.WEIGHT-1_KD.WEIGHT-{own}" for own in ("-1", "1")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title: A small table", "", "small.yaml: title is missing"),
        ("title", "titel", "has the unknown entry titel, expected title, source"),
        ("baseline: base", "baseline: bass", "baseline is 'bass', the rows are t, base, KD"),
        ("teachers: [t]", "teachers: [t]\n    baseline: bass", "baseline is 'bass', the rows are t, base, KD"),
        ("teacher_debug.yaml}", "teacher_debug.yaml, baseline: KD}", "teachers, t: a teacher is not compared"),
        (
            "teachers: [t]",
            "teachers: [t]\n    baseline: [base]",
            "runs, KD: baseline is ['base'], expected the name of a row",
        ),
        ("baseline: base", "selection: best", "selection is 'best', expected last or held-out"),
        ("teachers: [t]", "teachers: [u]", "KD is taught by 'u', which is no row"),
        ("teachers: [t]", "teachers: [KD]", "KD teaches itself"),
        ("teachers: [t]", "teachers: t", "runs, KD: teachers is 't', expected a list"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds is ['0', '0'], a seed is there twice"),
        ("OPTIM.MAX_EPOCH: 2", "SEED: 2", "runs, base: SEED is an option, expected the row's entry seeds"),
        ("OPTIM: {MAX", "DISTILLATION.TEACHER_WEIGHTS: [x], OPTIM: {MAX", "expected the row's entry teachers"),
        ("baseline: base", "selection: held-out", "base: the table's selection is held-out, DATA.VAL_FRACTION is 0"),
        ("name: KD", "name: KD\n    list: []", "runs, KD: list is empty"),
        ("title: A small table", "title: [a, b]", "title is ['a', 'b'], expected text"),
        (
            "name: KD",
            "name: KD\n    published: {TOP1: 1}\n    sweep: {AUG.FLIP: [0, 1]}",
            "several points, expected a row",
        ),
        ("seeds: [0, 1]", "seeds: [-1]", "seeds is ['-1'], expected whole numbers from 0"),
        ("name: KD", "name: base", "the row base is there twice"),
        ("name: KD", "name: a/b", "name is 'a/b', expected letters, digits"),
        ("base_debug.yaml", "bass.yaml", "bass.yaml', there is no such file"),
        ("OPTIM.MAX_EPOCH: 2", "OPTIM.MAX_EPOCH: two", "base: command line: OPTIM.MAX_EPOCH"),
        ("OPTIM.MAX_EPOCH: 2", "OPTIM.MAX_EPOCHS: 2", "base: command line: no option OPTIM.MAX_EPOCHS"),
        ("seeds", "columns: [hour]\nseeds", "columns: no column or group of columns is called 'hour'"),
        ("seeds", "protocol: {OPTIM.MAX_EPOCH: 3}\nseeds", "base: OPTIM.MAX_EPOCH is 2, the table's protocol is 3"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_before_anything_runs(table, old, new, said):
    text = TABLE.replace(old, new, 1)
    with pytest.raises(ConfigError) as error:
        planned(table(text))
    assert said in str(error.value) and "small.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_config_of_the_package_is_found_from_any_folder_and_what_lies_beside_the_table_first(table, caplog):
    """As after _BASE_; it was looked for beside the table alone."""
    text = TABLE.replace(f"{DEBUG}/base_debug.yaml", "configs/debug/base_debug.yaml")
    text += "  - {name: more, config: configs/debug/base_debug.yaml}\n"
    shipped._tell.cache_clear()
    with caplog.at_level(logging.INFO, logger="pycls_std"):
        found = table(text)
    assert [row.config for row in found.rows if row.name in ("base", "more")] == [DEBUG / "base_debug.yaml"] * 2
    assert caplog.text.count("the package's own is used") == 1
    beside = Path("configs/debug/base_debug.yaml")
    beside.parent.mkdir(parents=True)
    beside.write_text("TRAINER: baseline\n")
    assert table(text).rows[1].config == beside


def test_the_page_has_every_key_and_its_table_can_be_made(table):
    """docs/use.md: the keys of a table and those of a row, in the order of the code, and an example."""
    page = (ROOT / "docs" / "use.md").read_text().partition("## A table of your own\n")[2].partition("\n## ")[0]
    listed = [tuple(re.findall(r"^\| `(\w+)` \|", part, re.M)) for part in page.split("And those of a row")]
    assert listed == [TABLE_KEYS, ROW_KEYS]
    found = table(re.search(r"```yaml\n(.+?)```", page, re.S)[1])
    made = [str(job) for job in planned(found)]
    assert made[:4] == ["base seed0", "r-8 seed0", "KD_BASE_LR-1e-3 seed0", "KD_BASE_LR-2e-3 seed0"] and len(made) == 10


@pytest.mark.parametrize("name", ["small.json", "small", "small.yaml.txt"])
def test_a_file_that_is_no_yaml_is_no_table(name, tmp_path):
    (tmp_path / name).write_text("title: A small table\n")
    with pytest.raises(ConfigError, match=f"^{tmp_path / name}: a table is a .yaml file$"):
        read_table(tmp_path / name)
    (tmp_path / "small.yml").write_text("title: A small table\n")
    with pytest.raises(ConfigError, match="small.yml: runs is missing"):
        read_table(tmp_path / "small.yml")


def test_the_command_says_so_in_one_line(table, tmp_path):
    table()
    (tmp_path / "small.yaml").write_text(TABLE.replace("baseline: base", "baseline: bass"))
    code, output, errors = called("tools/reproduce.py", tmp_path / "small.yaml")
    assert (code, output) == (2, "") and "small.yaml: base: baseline is 'bass'" in errors
    assert errors.count("\n") == 1


# ----------------------------------------------------------------------------------------------------- what is changed
def test_a_shorter_table_scales_everything_that_is_counted_in_epochs(table):
    steps = (
        "{MAX_EPOCH: 40, WARMUP_EPOCHS: 5, SCHEDULE: step, STEPS: [20, 30.5]}, TEST.PERIOD: 10, KD.WARMUP_EPOCHS: 20"
    )
    found = table(TABLE.replace("{MAX_EPOCH: 2}", steps))
    whole, short = (planned(found, scale=scale)[2].options for scale in (1.0, 0.1))
    assert (short["OPTIM.MAX_EPOCH"], short["TEST.PERIOD"], short["KD.WARMUP_EPOCHS"]) == (4, 1, 2)
    assert short["OPTIM.WARMUP_EPOCHS"] == 0.5 and short["OPTIM.STEPS"] == pytest.approx([2, 3.05])
    changed = {key for key in whole if whole[key] != short[key]} - {"OUT_DIR", "DISTILLATION.TEACHER_WEIGHTS"}
    names = ("MAX_EPOCH", "WARMUP_EPOCHS", "STEPS")
    assert changed == {f"OPTIM.{name}" for name in names} | {"TEST.PERIOD", "KD.WARMUP_EPOCHS"}
    assert short["OUT_DIR"] == "runs/small_x0.1/KD/seed0"
    assert short["DISTILLATION.TEACHER_WEIGHTS"] == ["runs/small_x0.1/t/seed0/checkpoints/last.pt"]
    assert Changes(0.1).notes() == ["Every number of epochs is 0.1 times that of the table, in whole epochs (--scale)."]
    tempered = table(TABLE.replace("{MAX_EPOCH: 2}", "{MAX_EPOCH: 40}, DISTILLATION.TYPE: ctkd"))
    assert [planned(tempered, scale=scale)[2].options["DISTILLATION.CTKD_EPOCHS"] for scale in (1, 0.1)] == [10, 1]


def test_a_protocols_folder_may_lie_elsewhere(table):
    """What a folder of images is, is its name."""
    text = TABLE.replace("title:", "options: {DATA.NAME: image_folder, DATA.ROOT: data/pictures}\ntitle:")
    found = table(text.replace("runs:", "protocol: {DATA: {NAME: image_folder, ROOT: data/pictures}}\nruns:"))
    assert {job.options["DATA.ROOT"] for job in planned(found, "DATA.ROOT=/x/pictures")} == {"/x/pictures"}
    with pytest.raises(ConfigError, match="DATA.ROOT is /x/others, the table's protocol is data/pictures"):
        planned(found, "DATA.ROOT=/x/others")


def test_a_stand_in_takes_the_place_of_a_dataset_and_of_no_other(table):
    found = table()
    for folder in ("folder/pictures", "elsewhere"):
        Path(folder).mkdir(parents=True)
    job = planned(found, data={"digits": "folder/pictures"})[0]
    assert (job.options["DATA.NAME"], job.options["DATA.ROOT"]) == ("image_folder", "folder/pictures")
    assert job.options["MODEL.NUM_CLASSES"] == 0
    assert job.folder == Path("runs/small_pictures/base/seed0")
    assert Changes(data={"digits": "folder/pictures"}).notes() == ["pictures stands in for digits (--data)."]
    assert planned(found, data={"digits": "cifar10"})[0].options["DATA.NAME"] == "cifar10"
    with pytest.raises(ConfigError, match="--data cifar100=elsewhere: the rows of small.yaml are of digits"):
        planned(found, data={"cifar100": "elsewhere"})
    with pytest.raises(ConfigError, match="--data digits=gone: gone is neither a folder nor a dataset"):
        planned(found, data={"digits": "gone"})


@pytest.mark.parametrize("form", ("md", "csv", "latex"))
def test_what_is_changed_is_said_in_every_output(table, capsys, form):
    table()
    assert tool().main(["small.yaml", "--show", "--scale", "0.5", "--data", "digits=cifar10", "--format", form]) == 0
    said = capsys.readouterr().out
    if form == "latex":  # within the tabular, so that it is printed
        said = said[said.index(r"\multicolumn{") :].partition(r"\bottomrule")[0].replace("{-}", "-")
    assert "Every number of epochs is 0.5 times that of the table, in whole epochs (--scale)." in said
    assert "cifar10 stands in for digits (--data)." in said


def test_the_command_makes_the_rows_the_part_and_until_when_it_is_told(table, monkeypatch):
    """What reaches the runner, of each of its options."""
    made = []

    class Idle:
        def __init__(self, jobs, slots, *, deadline, kept, analyze):
            made.append((sorted(map(str, jobs)), len(slots), deadline, kept))
            self.jobs, self.slots, self.done, self.failed, self.unpredicted = jobs, slots, set(jobs), {}, {}

        def run(self):
            pass

    table()
    monkeypatch.setattr(tool(), "Runner", Idle)
    for words in (["--rows", "base"], ["--shard", "2/3"], ["--until", "2h", "--jobs", "3", "--kept"]):
        assert tool().main(["small.yaml", *words]) == 0
    assert made[0] == (["base seed0", "base seed1"], 1, None, False)
    runs = planned(read_table(Path("small.yaml")))
    assert made[1][0] == sorted(map(str, tool().part(runs, 2, 3)))
    assert made[2][1:] == (3, pytest.approx(time.monotonic() + 7200, abs=60), True)
    assert len(made[2][0]) == 5


def test_the_rows_that_are_named_alone_are_shown(table, capsys):
    table()
    assert tool().main(["small.yaml", "--show", "--rows", "KD,t", "--format", "csv"]) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == ["run", "t", "KD"]


def test_published_numbers_of_a_row_are_not_those_of_a_changed_table(table):
    found = table(TABLE.replace("name: KD", "name: KD\n    published: {TOP1: 71.5}\n    source: a report"))
    job = planned(found)[2]
    assert (job.options["PUBLISHED.TOP1"], job.options["PUBLISHED.SOURCE"]) == (71.5, "a report")
    assert job.options["PUBLISHED.CHANGED"] == []
    assert planned(found, scale=0.5)[2].options["PUBLISHED.TOP1"] == -1


def test_whose_numbers_they_are_is_a_column_where_they_are_of_several(table, capsys):
    """A table is headed by one source, and some of its rows were another one's."""
    text = TABLE.replace("name: KD", "name: KD\n    published: {TOP1: 70}\n    source: own")
    for theirs, above, shown in (("own", "", True), ("own", "both", False), ("another", "both", True)):
        rows = text.replace("base_debug.yaml,", f"base_debug.yaml, published: {{TOP1: 71.5}}, source: {theirs},")
        table(f"{rows}source: {above}\n")
        assert tool().main(["small.yaml", "--show"]) == 0
        output = capsys.readouterr().out
        assert ("| source |" in output) == shown == (f"| 71.50 | {theirs} |" in output)
        assert "Published: None" not in output
        assert tool().main(["small.yaml", "--show", "--format", "csv"]) == 0
        header, *_ = capsys.readouterr().out.splitlines()
        assert "published_source" in header.split(",")  # where nothing stands above


def test_options_of_the_machine_can_be_given_and_none_of_the_table(table):
    found = table()
    assert {job.options["DATA.NUM_WORKERS"] for job in planned(found, "DATA.NUM_WORKERS=3")} == {3}
    for word in ("OPTIM.BASE_LR=1", "PUBLISHED.TOP1=99", "SEED=3", "NAME=x", "OUT_DIR=y", "DATA.VAL_FRACTION=0.1"):
        with pytest.raises(
            ConfigError, match=f"{word.partition('=')[0]} belongs to the table: write it into small.yaml"
        ):
            planned(found, word)


def test_a_row_has_the_tables_baseline_or_its_own(table, capsys):
    both = {"base": "base", "KD": "base"}
    assert (table().baselines, table().baseline) == (both, "base")
    third = (
        TABLE + f"  - {{name: third, config: {DEBUG}/base_debug.yaml, options: {{OPTIM.MAX_EPOCH: 3}}, baseline: KD}}\n"
    )
    assert (table(third).baselines, table().baseline) == (both | {"third": "KD"}, "base")
    assert table(third.replace("baseline: base\n", "")).baselines == {"third": "KD"}
    assert table(third.replace("baseline: KD", "baseline: null")).baselines == both
    table(third)
    assert tool().main(["small.yaml", "--show", "--columns", "gain"]) == 0
    said = capsys.readouterr().out
    assert "Gains are over the row under *baseline*; the last epoch counts." in said
    lines = [[cell.strip() for cell in line.split("|")][1:-1] for line in said.splitlines() if "|" in line]
    assert lines[0] == ["run", "n", "baseline", "status"]
    assert [[line[0], line[2]] for line in lines[2:]] == [["t", "-"], ["base", "-"], ["KD", "base"], ["third", "KD"]]


def test_what_a_sweep_varies_and_the_columns_that_a_table_names_are_shown(table, capsys):
    text = TABLE.replace("baseline: base", "baseline: base\ncolumns: [options, n]")
    table(text + "    sweep: {OPTIM.BASE_LR: [5e-4, 1e-3]}\n")
    assert tool().main(["small.yaml", "--show"]) == 0
    lines = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert lines[0][1:-1] == ["run", "form", "standardized", "OPTIM.BASE_LR", "n", "status"]
    rates = {line[1]: line[4] for line in lines[2:]}
    assert rates["KD_BASE_LR-5e-4"] == "0.0005" and rates["KD_BASE_LR-1e-3"] == "0.001"


# -------------------------------------------------------------------------------------------------- parts of the work
def tool():
    """The module of the command."""
    sys.path.insert(0, str(ROOT / "tools"))
    import reproduce

    return reproduce


def test_each_part_has_its_runs_and_the_teachers_they_need(table):
    runs = planned(table(TABLE + f"  - {{name: more, config: {DEBUG}/base_debug.yaml}}\n"))
    parts = [tool().part(runs, number, 3) for number in (1, 2, 3)]
    assert {job for each in parts for job in each} == set(runs)
    taught = [job for job in runs if job.needs]
    for each in parts:
        assert all(teacher in each for job in each if job in taught for teacher in job.needs)
        assert each == [job for job in runs if job in each]
    students = [job for each in parts for job in each if not job.row.teaches_only]
    assert len(students) == len(set(students))


def test_the_rows_that_are_named_are_made_with_their_teachers_only(table):
    runs = planned(table(TABLE + f"  - {{name: more, config: {DEBUG}/base_debug.yaml}}\n"))
    assert [str(job) for job in tool().of_rows(runs, ["KD"], Path("t.yaml"))] == ["t seed0", "KD seed0", "KD seed1"]
    with pytest.raises(ValueError, match="--rows names 'kd', the rows of t.yaml are base, t, KD, more"):
        tool().of_rows(runs, ["base", "kd"], Path("t.yaml"))


def test_there_is_room_for_so_many_runs_on_each_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = [slot.environment for slot in tool().slots(["0", "3"], 2)]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in made] == ["0", "3", "0", "3"]
    assert all(own["OMP_NUM_THREADS"] for own in made)
    assert "CUDA_VISIBLE_DEVICES" not in tool().slots([], 1)[0].environment
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")  # what this process may use
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in tool().slots(["1", "0"], 1)] == ["5", "2"]
    with pytest.raises(ValueError, match="--gpus 0,3: CUDA_VISIBLE_DEVICES names 2"):
        tool().slots(["0", "3"], 1)


def test_a_job_array_calls_this_command_for_each_part(tmp_path):
    script = tool().job_array(["configs/tables/a b.yaml", "--slurm", "4", "--scale", "4", "DATA.ROOT=/x"], 4)
    assert "#SBATCH --array=1-4\n" in script
    assert "#SBATCH --signal=B:TERM@120\n" in script  # to the script itself, which has no steps
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "tools/reproduce.py|configs/tables/a b.yaml|--scale|4|DATA.ROOT=/x|--shard|3/4|"
    assert tool().job_array(["t.yaml", "--slurm=2"], 2).endswith("t.yaml --shard $SLURM_ARRAY_TASK_ID/2\n")


def made(options, folder, *, top1, seed=0):
    """A record that is finished, as far as a table sees."""
    from pycls_std.results.read import Run

    curves = {f"test/{score}": {1: top1} for score in ("top1", "top5")}
    return Run(folder, options | {"SEED": seed}, curves)


def test_a_record_of_other_options_is_no_result_of_its_row_and_does_not_cost_the_table(table):
    found = table()
    jobs = planned(found)
    records = [made(job.options, job.folder, top1=10.0 * place, seed=job.seed) for place, job in enumerate(jobs)]
    records[0].options["OPTIM.BASE_LR"] = 7.0
    frame = showing.gathered(found, jobs, records, {}, {})
    rows = frame.set_index("run")
    assert rows["n"].to_dict() == {"base": 1, "t": 1, "KD": 2}
    assert "seed0: runs/small/base/seed0 is a run of other options: OPTIM.BASE_LR is 7.0" in rows.loc["base", "status"]
    assert rows.loc["KD", "gain"].endswith(", one seed")
    assert rows.loc["t", "gain"] != rows.loc["t", "gain"]  # a teacher is not compared


def test_what_is_not_there_of_a_row_is_told(table, tmp_path):
    """Seeds that were not run yet, and a record whose options are lost."""
    found = table()
    jobs = planned(found)
    records = [made(job.options, job.folder, top1=10.0, seed=job.seed) for job in jobs if job.row.name != "t"]
    gone, lost = (read_run(tmp_path / name) for name in ("gone", "lost"))
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "metrics.jsonl").touch()
    begun = made(jobs[1].options | {"OPTIM.BASE_LR": 7.0}, tmp_path / "begun", top1=0.0)  # of other options
    begun.curves.clear()
    missing = "seed1 not yet run"
    for second, status in ((gone, missing), (begun, missing), (lost, "seed1: no readable config.yaml")):
        rows = showing.gathered(found, jobs, [records[0], gone, records[1], records[2], second], {}, {}).set_index(
            "run"
        )
        run = rows.loc["KD", "status"].partition("; seed1")
        assert "".join(run[1:]) == f"; {status}" and rows.loc["KD", "n"] == 1
        assert "not yet" not in rows.loc["base", "status"] and rows.loc["t", "status"] == "not yet run"


def test_the_page_says_what_is_changed_and_has_the_columns_that_are_asked_for(table, tmp_path, monkeypatch):
    found, changes, written = table(), Changes(0.5, {"digits": "cifar10"}), []
    jobs = planned(found)
    records = [made(job.options, job.folder, top1=10.0, seed=job.seed) for job in jobs]
    frame = showing.gathered(found, jobs, records, {}, {})
    monkeypatch.setattr(showing, "write_report", lambda out, *_, notes, columns, **__: written.append((notes, columns)))
    assert showing.write_page(tmp_path / "page", found, frame, records, changes, ["n", "hours"]) is not None
    ((notes, columns),) = written
    assert columns == ["n", "hours"] and any("0.5 times" in note and "(--scale)" in note for note in notes)
    assert any("cifar10 stands in for digits (--data)." in note for note in notes)


def test_what_a_page_cannot_show_does_not_cost_the_table(table, monkeypatch, capsys):
    table()

    def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(Runner, "run", lambda self: None)
    monkeypatch.setattr(tool(), "write_page", broken)
    assert tool().main(["small.yaml"]) == 1  # not made
    out, errors = capsys.readouterr()
    assert "| KD |" in out and errors == "reproduce.py: warning: no page of the table: the disk is full\n"


def test_a_kept_teacher_of_a_teacher_that_is_to_be_made_again_is_made_again(table, monkeypatch):
    """Its student, whose weights were not kept either, needs them to teach a row that is missing."""
    jobs = planned(table(TABLE + f"  - {{name: last, config: {DEBUG}/kd_debug.yaml, teachers: [KD]}}\n"))
    monkeypatch.setattr(state, "state_of", lambda job, kept: State(finished=kept and job.row.name != "last"))
    enough = {str(job): counts_as_kept(job, jobs) for job in jobs if job.seed == 0}
    assert enough == {"base seed0": True, "t seed0": False, "KD seed0": False, "last seed0": True}


# ------------------------------------------------------------------------------------------------- runs, in pretence
# A run in pretence: it writes when it began and ended, and does as the file of its name says.
PRETENCE = """
import signal, sys, time, pathlib
if "test" in sys.argv:
    sys.exit(0)
folder = pathlib.Path(next(word for word in sys.argv if word.startswith("OUT_DIR=")).partition("=")[2])
folder.mkdir(parents=True, exist_ok=True)
told = folder.with_suffix(".do")
todo = told.read_text() if told.exists() else ""
with open("story", "a") as story:
    story.write(f"+{folder.parent.name} ")
def stop(*_):
    (folder / "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in todo else stop)
if "fail" in todo:
    print("something\\nrun_net.py: the reason (--traceback shows where)")
    sys.exit(1)
if "nothing" in todo:
    sys.exit(0)
if todo == "crash":
    raise KeyError("x")
if "busy" in todo:
    told.write_text(todo.removeprefix("busy").strip())
    print(f"run_net.py: OUT_DIR {folder} is in use by process 1 on elsewhere")
    sys.exit(1)
time.sleep(60 if "long" in todo else 0.3)
(folder / "finished").touch()
with open("story", "a") as story:
    story.write(f"-{folder.parent.name} ")
"""


@pytest.fixture
def pretence(table, tmp_path, monkeypatch):
    """Return make(side by side, told={row: what it does}, deadline=seconds): a runner whose runs are pretended."""
    (tmp_path / "pretence.py").write_text(PRETENCE)
    monkeypatch.setattr(running, "SCRIPT", tmp_path / "pretence.py")
    monkeypatch.setattr(running, "POLL", 0.02)
    monkeypatch.setattr(running, "RETRY", 0.2)

    def state(job, *, kept):
        return State(finished=(job.folder / "finished").exists(), predicted=True, begun=job.folder.exists())

    monkeypatch.setattr(running, "state_of", state)

    def make(room=1, told=(), deadline=None, text=TABLE):
        runs = planned(table(text))
        for name, todo in dict(told).items():
            place = Path("runs/small") / name / "seed0.do"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(todo)
        limit = None if deadline is None else time.monotonic() + deadline + running.MARGIN
        return Runner(runs, [Slot() for _ in range(room)], deadline=limit, analyze=lambda folder: None)

    return make


def test_runs_are_made_side_by_side_and_no_student_before_its_teacher(pretence):
    runner = pretence(room=2)
    runner.run()
    story = Path("story").read_text().split()
    assert sorted(story) == sorted([*(["+base", "-base", "+KD", "-KD"] * 2), "+t", "-t"])
    assert story.index("-t") < story.index("+KD")
    under_way = [
        sum(word[0] == "+" for word in story[:k]) - sum(word[0] == "-" for word in story[:k]) for k in range(11)
    ]
    assert max(under_way) == 2 and runner.done == set(runner.jobs) and not runner.failed
    again = pretence(room=2)
    again.run()
    assert Path("story").read_text().split() == story and again.done == set(again.jobs)  # nothing is made twice


def test_a_run_that_fails_says_why_and_the_others_go_on(pretence):
    runner = pretence(told={"t": "fail"})
    runner.run()
    told = {str(job): why for job, why in runner.failed.items()}
    assert told["t seed0"] == "the reason (--traceback shows where)"
    assert told["KD seed0"] == told["KD seed1"] == "needs t seed0, which failed"
    assert {str(job) for job in runner.done} == {"base seed0", "base seed1"}


def test_a_run_that_ends_well_and_leaves_no_whole_record_is_not_made_for_ever(pretence):
    runner = pretence(told={"base": "nothing"})
    runner.run()
    ((job, why),) = runner.failed.items()
    assert str(job) == "base seed0" and why.startswith("it ended without an error, but its record is not that of")
    assert Path("story").read_text().split().count("+base") == 2  # of two seeds


def test_a_run_that_another_process_makes_is_waited_for(pretence):
    runner = pretence(told={"t": "busy"})
    runner.run()
    assert runner.done == set(runner.jobs) and not runner.failed
    story = Path("story").read_text().split()
    assert story.count("+t") == 2 and story.index("-t") < story.index("+KD")


def test_why_a_run_failed_is_what_it_said_this_time(pretence):
    """And not an earlier start, after which a run is waited for: without end, if that line counted."""
    runner = pretence(told={"t": "busy crash"})
    runner.run()
    assert {str(job): why for job, why in runner.failed.items()}["t seed0"] == "KeyError: 'x'"


@pytest.mark.parametrize(("kept", "place"), [(False, "runs"), (True, "logs"), (False, "logs")])
def test_a_teacher_that_is_made_anew_is_told_of(pretence, caplog, kept, place):
    """Others were taught by another one, whose weights are gone; records in logs/ matter where they count."""
    caplog.set_level(logging.WARNING, "pycls_std")
    runner = pretence()
    runner.kept = kept
    (Path(place) / "small/KD/seed1").mkdir(parents=True)
    (Path(place) / "small/KD/seed1/config.yaml").touch()
    runner.run()
    told = "t seed0 is made anew, and others were taught by an earlier one: KD seed1" in caplog.text
    assert told == (kept or place == "runs")


def test_in_time_the_runs_are_told_to_stop(pretence):
    runner = pretence(told={"base": "long"}, deadline=1.5)
    start = time.monotonic()
    runner.run()
    assert time.monotonic() - start < 20
    assert Path("runs/small/base/seed0/stopped").exists() and not runner.failed and not runner.done


def test_a_run_that_does_not_stop_in_time_is_killed(pretence, monkeypatch):
    monkeypatch.setattr(running, "GRACE", 0.2)
    runner = pretence(told={"base": "long deaf"}, deadline=1.5)
    start = time.monotonic()
    runner.run()
    assert time.monotonic() - start < 20
    assert not Path("runs/small/base/seed0/stopped").exists() and not runner.failed and not runner.done


def test_a_run_without_predictions_says_why(pretence, table, monkeypatch):
    """Its scores stand, what its predictions would tell is told to be missing."""
    runner = pretence(text=TABLE.replace("seeds: [0, 1]", "seeds: [0]"))

    def fails(folder):
        if "KD" in str(folder):
            raise ValueError("no analysis of it")

    runner.analyze = fails
    state = running.state_of
    monkeypatch.setattr(running, "state_of", lambda job, kept: state(job, kept=kept)._replace(predicted=False))
    runner.run()
    told = {str(job): why for job, why in runner.unpredicted.items()}
    assert told == {"KD seed0": "no analysis of it"} and len(runner.done) == len(runner.jobs) and not runner.failed
    records = [made(job.options, job.folder, top1=10.0, seed=0) for job in runner.jobs]
    found = table(TABLE.replace("seeds: [0, 1]", "seeds: [0]"))
    rows = showing.gathered(found, runner.jobs, records, {}, runner.unpredicted).set_index("run")
    assert rows.loc["KD", "status"].endswith("; seed0 without predictions: no analysis of it")
    assert rows.loc["KD", "n"] == 1


def test_seeds_that_were_not_begun_are_told_of_a_row_whose_first_failed(table, tmp_path):
    found = table()
    jobs = planned(found)
    gone, (first,) = read_run(tmp_path / "gone"), (job for job in jobs if str(job) == "KD seed0")
    rows = showing.gathered(found, jobs, [gone] * len(jobs), {first: "the reason"}, {}).set_index("run")
    assert rows.loc["KD", "status"] == "seed0 failed: the reason; seed1 not yet run"


def test_a_run_that_is_killed_is_one_row_that_says_so(pretence, monkeypatch):
    runner = pretence(told={"base": "long"})
    begin = runner._begin

    def then_kill(slot, job):
        started = begin(slot, job)
        if started and str(job) == "base seed0":
            slot.process.kill()
        return started

    monkeypatch.setattr(runner, "_begin", then_kill)
    runner.run()
    assert [why for job, why in runner.failed.items() if job.row.name == "base"] == ["it was killed (exit code -9)"]


# --------------------------------------------------------------------------------------------------- runs, for real
class Started:
    """As `subprocess.Popen` of a run, from the server that has torch loaded."""

    returncode = None

    def __init__(self, words, *, stdout, env, **_):
        assert words[:2] == [sys.executable, str(running.SCRIPT)]
        place = (os.getcwd(), os.path.abspath(stdout.name))
        own = {"hook": "processes:take_place", "arguments": place, "env": env}
        self.process = Running(Path("started"), words[2:], **own).process

    def poll(self):
        """Return the exit code, None while it runs."""
        self.returncode = self.process.exitcode
        return self.returncode

    def kill(self):
        """Kill it."""
        self.process.kill()


def telling(emit, run):
    """As a handler's emit, which lets a run go on once it is said to be in use."""

    def emitted(record):
        if "is in use by" in record.getMessage():
            os.kill(run, signal.SIGCONT)
        emit(record)

    return emitted


@pytest.mark.slow
def test_a_table_that_is_killed_goes_on_where_it_was(table, tmp_path, monkeypatch, capsys, caplog):
    """Killed in the middle of a run, the same command makes what is missing and prints the table."""
    text = TABLE.replace("seeds: [0, 1]", "seeds: [0]").replace("OPTIM.MAX_EPOCH: 2", "OPTIM.MAX_EPOCH: 20")
    floor = "options: {DISTILLATION.TEACHER_MIN_ACC: 99.9}"
    text += f"  - {{name: bad, config: {DEBUG}/kd_debug.yaml, teachers: [t], {floor}}}\n"
    table(text)
    words = [sys.executable, str(ROOT / "tools" / "reproduce.py"), "small.yaml"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    base = tmp_path / "runs" / "small" / "base" / "seed0"
    wait_for(lambda: (base / "checkpoints" / "last.pt").exists())
    run = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    os.kill(run, signal.SIGSTOP)  # until the second command has met it
    process.kill()  # its run goes on without it
    process.communicate()
    # The first was one as a user starts it; those that follow are not the interpreter's fresh starts.
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=Started, STDOUT=None, DEVNULL=None))
    monkeypatch.setattr(running, "RETRY", 1.0)
    monkeypatch.setattr(caplog.handler, "emit", telling(caplog.handler.emit, run))
    try:
        code = tool().main([*words[2:], "--jobs", "2"])
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(run, signal.SIGCONT)
    output, errors = capsys.readouterr()
    assert (code, errors) == (1, "")
    assert "base seed0: OUT_DIR runs/small/base/seed0 is in use by process" in caplog.text
    runs = {run.name: run.status for run in find_runs(["runs/small"])}
    assert runs == {"t": "finished", "base": "finished", "KD": "finished"}
    assert "| bad |" in output and "failed: teacher 0 resnet8 has top-1" in output.splitlines()[-1]
    assert tool().main([*words[2:], "--kept", "--show"]) == 0
    assert capsys.readouterr().out.count("finished") == 3
    assert "runs/small/report.html" in caplog.text
    page = (tmp_path / "runs" / "small" / "report.html").read_text()
    assert "<h1>A small table</h1>" in page and 'href="KD/seed0"' in page
    assert "Gains are over" in page


def test_another_run_in_the_place_of_one_is_told(table, tmp_path, load):
    from pycls_std import runner

    found = table(TABLE.replace("seeds: [0, 1]", "seeds: [0]"))
    (job,) = (job for job in planned(found) if job.row.name == "base")
    runner.train(load("debug/base_debug", OUT_DIR=job.folder, NAME="base", OPTIM__MAX_EPOCH=1))
    state = state_of(job, kept=False)
    assert state.wrong == "runs/small/base/seed0 is a run of other options: OPTIM.MAX_EPOCH is 1, not 2"
    runner.train(load("debug/base_debug", OUT_DIR=tmp_path / "logs/small/base/seed0", NAME="base", OPTIM__MAX_EPOCH=2))
    kept = planned(table())[0]
    assert read_run(kept.kept).status == "finished"
    record = kept.kept / "run.json"
    facts = json.loads(record.read_text())
    assert state_of(replace(kept, folder=kept.kept), kept=False).finished
    record.write_text(json.dumps(facts | {"status": "running"}))  # as before its last checkpoint is written
    state = state_of(replace(kept, folder=kept.kept), kept=False)
    assert state.begun and not state.finished
    record.write_text(json.dumps(facts))
    shutil.rmtree(job.folder / "checkpoints")
    (job.folder / "run.json").unlink()  # as a start leaves it that came to no epoch, which a run replaces
    assert state_of(job, kept=False) == State(status=read_run(job.folder).status)
    assert not state_of(kept, kept=False).finished and state_of(kept, kept=True).finished
    record.write_text(json.dumps(facts | {"status": "unfinished"}))
    assert not state_of(kept, kept=True).finished


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_table_can_be_planned(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read_table(path)
    runs = plan(found, Changes())
    assert runs and found.title
    assert (
        path.read_text().startswith("# ")
        and f"python tools/reproduce.py configs/tables/{path.name}" in path.read_text()
    )


@pytest.mark.slow
def test_the_plan_says_what_each_run_would_take_and_makes_nothing(table, tmp_path, monkeypatch):
    """Hours are those of the timing of a row, times its seeds; a row that cannot be timed says why.

    The one that cannot is a fresh start of the interpreter, the others come from the server that has torch loaded.
    """

    def run(words, **options):
        if "NAME=lost" in words:
            return subprocess.run(words, **options)
        assert words[:2] == [sys.executable, str(ROOT / "run_net.py")]
        code, output, errors = Running(tmp_path / "started", words[2:], env=options["env"]).end()
        return SimpleNamespace(returncode=code, stdout=output, stderr=errors)

    monkeypatch.setattr(estimate, "subprocess", SimpleNamespace(run=run))
    gone = "options: {DATA: {NAME: image_folder, ROOT: gone}}"
    table(
        TABLE.replace("seeds: [0, 1]", "seeds: [0]")
        + f"  - {{name: lost, config: {DEBUG}/base_debug.yaml, seeds: [0, 1], {gone}}}\n"
    )
    own = (tmp_path / "small.yaml").rename(tmp_path / f"plan-{tmp_path.parent.name}-{os.getpid()}.yaml")
    code, output, errors = called("tools/reproduce.py", own, "--dry-run", "--jobs", 2)
    lines = output.splitlines()
    assert code == 0 and lines[0] == "A small table"
    assert errors.splitlines() == [f"timing {row}" for row in ("base", "t", "KD", "lost")]
    taken = {line.partition(":")[0]: line for line in lines}
    hours = [float(taken[run].split(": ")[1].split(" hours")[0]) for run in ("base seed0", "t seed0", "KD seed0")]
    assert all(0 <= each < 1 for each in hours)
    assert "after t seed0: python run_net.py --mode train" in taken["KD seed0"]
    assert "no estimate, image_folder: there is no folder DATA.ROOT gone" in taken["lost seed1"]
    assert lines[-1].startswith("5 runs, about ") and lines[-1].endswith(
        "2 side by side, and 2 runs without an estimate"
    )
    assert not list((ROOT / "runs").glob("plan-*"))


def test_a_plan_is_printed_line_by_line_and_leaves_no_timing_behind_when_it_is_stopped(table, tmp_path):
    """What times the second row here never ends; standard output is a file, which is written to in blocks."""
    table()
    (tmp_path / "timing.py").write_text(
        "import os, sys, time\n"
        "print('about 2.00 hours of training steps')\n"
        "if 'NAME=t' in sys.argv:\n"
        "    open('pid.new', 'w').write(str(os.getpid())), os.rename('pid.new', 'pid'), time.sleep(60)\n"
    )
    (tmp_path / "plan.py").write_text(
        "import runpy, sys\nfrom pathlib import Path\nfrom pycls_std.reproduce import estimate\n"
        "estimate.SCRIPT = Path('timing.py')\n"
        "sys.argv = ['reproduce.py', 'small.yaml', '--dry-run']\n"
        f"runpy.run_path({str(ROOT / 'tools' / 'reproduce.py')!r}, run_name='__main__')\n"
    )
    with (tmp_path / "out").open("w") as output:
        words = [sys.executable, "plan.py"]
        planning = subprocess.Popen(
            words, stdout=output, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        wait_for((tmp_path / "pid").exists)
        first, second, *more = (tmp_path / "out").read_text().splitlines()
        planning.terminate()
        errors = planning.communicate(timeout=30)[1]
    assert first == "A small table" and second.startswith("base seed0: 2.00 hours: python") and not more
    assert planning.returncode == 143
    assert errors.splitlines() == ["timing base", "timing t", "reproduce.py: stopped by SIGTERM"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def full(*_, **__):
    raise OSError(28, "no space left")


def test_a_teacher_that_was_kept_with_its_weights_teaches_again(table, tmp_path, load, monkeypatch):
    from pycls_std import runner

    found = table(TABLE.replace("title:", "options: {DATA.VAL_FRACTION: 0.2}\ntitle:"))
    jobs = planned(found)
    (job,) = (job for job in jobs if job.row.name == "t")
    runner.train(load("debug/teacher_debug", OUT_DIR=job.kept, NAME="t", DATA__VAL_FRACTION=0.2))
    assert job.weights == Path("runs/small/t/seed0/checkpoints/best.pt")
    assert state_of(job, kept=True).finished and not job.folder.exists()  # to ask changes nothing
    weights = (job.kept / "checkpoints" / "best.pt").rename(tmp_path / "best.pt")
    assert not counts_as_kept(job, jobs) and counts_as_kept(job, [job])  # for there are students to teach
    weights.rename(job.kept / "checkpoints" / "best.pt")
    assert counts_as_kept(job, jobs)
    job.folder.mkdir(parents=True)
    (job.folder / "other").touch()
    restore(job)  # which leaves alone what is there
    assert [path.name for path in job.folder.parent.rglob("*")] == ["seed0", "other"]
    (job.folder / "other").unlink()
    with monkeypatch.context() as broken:  # a record that cannot be copied is that run's failure, and leaves nothing
        broken.setattr("shutil.copytree", full)
        runner_of = Runner([job], [Slot()], kept=True, analyze=lambda folder: None)
        runner_of.run()
        assert "cannot be brought back: [Errno 28] no space left" in runner_of.failed[job]
        assert [path.name for path in job.folder.parent.glob("*")] == ["seed0"]
    (job.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (job.folder / "config.yaml").touch()  # of a start that was stopped in its first epoch
    with (job.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        restore(job)
        assert not job.weights.exists()  # for it is at work
    restore(job)
    assert [path.name for path in job.folder.parent.glob("*")] == ["seed0"]
    assert job.weights.read_bytes() == (job.kept / "checkpoints" / "best.pt").read_bytes()
    assert state_of(job, kept=False).finished
