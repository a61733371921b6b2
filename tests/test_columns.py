"""Columns of tables: which there are, what they say, how they are chosen, and the way from a number to its run."""

import json
import re
from pathlib import Path

import pytest
from processes import called
from test_table import table_of

from pycls_std import config
from pycls_std.results import analysis
from pycls_std.results.columns import GROUPS, chosen, headings
from pycls_std.results.plots_of_scores import comparable
from pycls_std.results.read import find_runs
from pycls_std.results.render import cells, link_from, markdown
from pycls_std.results.rows import rows_of
from pycls_std.results.table import aggregate

DIGESTS = ["a" * 64, "b" * 64]


def facts(seed, **more):
    """A run.json: the second seed took twice as long, and was continued."""
    commits = [f"{digit}" * 40 for digit in ("c" if seed == 0 else "cd")]
    found = {
        "status": "finished",
        "starts": [{"epochs_done": 0, "epochs": 3, "commit": commit, "command": "python"} for commit in commits],
        "parameters": {"deployed": 1_500_000, "train_only": 250_000},
        "flops": 2_500_000_000,
        "teachers": {"0_resnet32": 70.16, "1_resnet56": 72.63},
        "teacher_fingerprints": DIGESTS,
        "hours": 0.5 * (seed + 1),
        "images_per_second": 900.0,
        "peak_memory_gib": 1.25,
    }
    return json.dumps(found | more)


def analysed(name, seed):
    """An analysis.json of a run with two teachers, of one image that all have right."""
    scores = {"top1": 100.0, "top5": 100.0, "ece": 4.0, "correct": "80", "per_class": [100.0, None]}
    shares = {share: {"avg": 0.0} for share in analysis.SHARES}
    teachers = {
        f"{place}_teacher": scores | {"loss": 1.0} | shares | {"agreement": {"avg": 40.0 + 20 * place + seed}}
        for place in (0, 1)
    }
    found = {"format": 1, "name": name, "seed": seed, "images": 1, "classes": ["a", "b"], "split": "s"}
    students = {"avg": scores | {"loss": 1.5 + seed}}
    return json.dumps(found | {"prediction": "avg", "predictions": students, "teachers": teachers})


@pytest.fixture
def logs(record, tmp_path):
    """A folder with a baseline that was analysed by nobody, and two seeds of a run with all that is known."""
    record("base", 0, [1.0, 2.0, 3.0], of="mixer/mixer-s4_c100_base")
    for seed in (0, 1):
        folder = record("multi", seed, [10.0, 40.0, 30.0 + seed])
        (folder / "run.json").write_text(facts(seed))
        (folder / "analysis.json").write_text(analysed("multi", seed))
    return tmp_path / "logs"


def row(logs, *columns, name="multi"):
    """The cells of a row by heading."""
    shown = cells(aggregate(find_runs([str(logs)])), list(columns))
    return shown.set_index("run").loc[name].to_dict()


def test_what_a_run_cost_and_how_it_stands_to_its_teachers(logs):
    """Each number by hand: means and sample deviations over two seeds."""
    assert row(logs, "cost", "teaching", "calibration", "commit") == {
        "n": "2",
        "deployed parameters (M)": "1.50 ± 0.00",
        "train-only parameters (M)": "0.25 ± 0.00",
        "GFLOPs (2 a multiply-add)": "2.500 ± 0.000",
        "hours a run": "0.75 ± 0.35",
        "images/s": "900 ± 0",
        "peak memory (GiB)": "1.25 ± 0.00",
        "teachers on test": "70.16 + 72.63",
        "agreement with teachers (%, tested weights)": "50.50 ± 0.71",
        "NLL (nats, tested weights)": "2.000 ± 0.707",
        "ECE (%, tested weights)": "4.00 ± 0.00",
        "commit": "cccccccccc, dddddddddd",
        "status": "finished",
    }
    assert set(row(logs, "cost", "commit", name="base").values()) == {"1", "-", "finished"}


def test_columns_are_chosen_by_name_and_by_group_and_the_empty_ones_left_out(logs):
    assert list(row(logs, "top1")) == ["n", "top-1", "status"]
    assert list(row(logs, "gain", "top5")) == ["n", "top-5", "status"]
    everything, usual = row(logs, "all"), row(logs)
    assert usual.keys() < everything.keys() and "hours a run" not in usual
    assert "EMA top-1" not in everything
    catalogue = config.Catalogue()
    assert chosen(catalogue, ["all"]) == list(headings(catalogue))
    for group in GROUPS:
        assert len(chosen(catalogue, [group])) > 2
    code, _, errors = called("tools/make_table.py", logs, "--columns", "hour")
    said = "make_table.py: no column or group of columns is called 'hour', did you mean hours?\n"
    assert (code, errors) == (2, said)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("metod", "did you mean method or model?"),
        ("std.taps", "did you mean STD.TAPS or STD.TOKENS or EXITS.TAPS?"),
        ("held-out-selected top-1", "did you mean selected_top1?"),
        ("Images/s", "did you mean speed?"),
        ("foobar", "there are all, options, recipe, scores, gain,"),
    ],
)
def test_an_unknown_column_is_told_with_what_is_near_it_or_headed_so(name, hint):
    with pytest.raises(ValueError, match=re.escape(f"no column or group of columns is called {name!r}, {hint}")):
        chosen(config.Catalogue(), [name])


def test_a_csv_has_all_columns_unless_some_are_chosen(logs):
    table = table_of(logs)[0].set_index("run")
    assert table.loc["multi", "hours"] == 0.75 and table.loc["multi", "hours_std"] > 0.35
    assert table.loc["multi", "records"].split() == [str(logs / "multi" / f"seed{seed}") for seed in (0, 1)]
    assert list(table_of(logs, "--columns", "hours")[0]) == ["run", "n", "status", "hours", "hours_std"]


def test_the_gap_to_what_is_published_is_of_the_score_that_is_selected(record, tmp_path):
    record("multi", 0, [10.0, 40.0, 30.0], epochs=None)
    table = aggregate(find_runs([str(tmp_path / "logs")]))
    assert table.loc[0, "delta_top1"] == pytest.approx(30 - 76.93)
    assert row(tmp_path / "logs", "published")["top-1 minus published"] == "-46.93"


def test_each_seed_leads_to_its_record(logs, tmp_path):
    link = link_from(tmp_path / "docs" / "results.md")
    text = markdown(aggregate(find_runs([str(logs)])), ["n"], link)
    assert "| multi | 2: [0](../logs/multi/seed0), [1](../logs/multi/seed1) | finished |" in text
    for place in ("seed0", "seed1"):
        assert (tmp_path / "logs" / "multi" / place / "run.json").is_file()
    code, text, _ = called("tools/make_table.py", logs, "--columns", "n", "--link-from", logs / "page.md")
    assert code == 0 and "[0](base/seed0)" in text


def test_a_key_that_varies_has_a_column_and_its_name(record, tmp_path):
    for rate in (5e-4, 1e-3):
        record(f"lr-{rate}", 0, [1.0, 2.0, 3.0], OPTIM__BASE_LR=rate)
    table = aggregate(find_runs([str(tmp_path / "logs")]), varied=("OPTIM.BASE_LR",))
    assert cells(table, ["recipe"])["OPTIM.BASE_LR"].tolist() == ["0.0005", "0.001"]
    assert "OPTIM.BASE_LR" in cells(table) and "OPTIM.BASE_LR" not in cells(aggregate(find_runs([str(tmp_path)])))


@pytest.mark.parametrize("same", (True, False))
def test_a_teacher_is_its_weights_and_not_their_path(record, tmp_path, same):
    """The seeds of one row may have read them elsewhere; seeds that others taught are another row, which says so."""
    for seed, place in enumerate(("here", "there")):
        weights = f"[{place}/best.pt,published:cifar100_resnet56]"
        folder = record("multi", seed, [1.0, 2.0, 3.0 + seed], DISTILLATION__TEACHER_WEIGHTS=weights)
        digests = DIGESTS if same else [DIGESTS[seed], DIGESTS[1]]
        (folder / "run.json").write_text(facts(seed, teacher_fingerprints=digests))
    table, rows = (make(find_runs([str(tmp_path)])) for make in (aggregate, rows_of))
    assert table["n"].tolist() == ([2] if same else [1, 1])
    assert list(rows) == table["run"].tolist()
    if not same:
        assert "(DISTILLATION.TEACHER_WEIGHTS ['aaaaaaaaaa', 'bbbbbbbbbb'])" in table["run"].tolist()[0]


@pytest.mark.parametrize("digests, rows", [("bb", 1), ("ab", 3)])
def test_a_seed_in_its_first_epoch_is_of_the_row_of_the_others(record, tmp_path, digests, rows):
    """run.json comes with its first saved epoch; it made a second row, and the gains over that name were gone."""
    for seed in range(3):
        known = seed < len(digests)
        folder = record("multi", seed, [1.0, 2.0, 3.0 + seed] if known else [])
        taught = [64 * digests[seed], DIGESTS[1]] if known else []
        (folder / "run.json").write_text(facts(seed, teacher_fingerprints=taught, processes=2))
    (folder / "run.json").unlink()
    table = aggregate(find_runs([str(tmp_path)]))
    assert len(table) == rows and table["n"].sum() == 2
    assert "seed2: no results" in table["status"].tolist()[-1 if rows > 1 else 0]


def files_of(digest):
    """What run.json says of the files of a training and a test split."""
    return {"files": {"train": 64 * digest, "test": 64 * "t"}}


@pytest.mark.parametrize(
    "known, gain", [("ab", "not compared, other files"), ("aa", "+1.00, one seed"), ("a-", "+1.00")]
)
def test_rows_on_other_files_are_not_compared(record, tmp_path, known, gain):
    for place, digest in enumerate(known):
        folder = record(("base", "multi")[place], 0, [1.0, 2.0, 3.0 + place])
        (folder / "run.json").write_text(facts(0, **({} if digest == "-" else files_of(digest))))
    runs = find_runs([str(tmp_path)])
    table = aggregate(runs, baseline="base").set_index("run")
    assert table.loc["multi", "gain"].startswith(gain)
    rows = rows_of(runs)
    assert comparable(rows["multi"], rows["base"]) == ("other files" not in gain)


@pytest.mark.parametrize("known, rows", [("aab", 2), ("ab", 2), ("aa", 1), ("a-", 1), ("a-b", 3)])
def test_runs_on_other_files_are_another_row(record, tmp_path, known, rows):
    """A record that does not know its files is of the row of those that do, unless these are of several sets."""
    for seed, digest in enumerate(known):
        folder = record("multi", seed, [1.0, 2.0, 3.0 + seed])
        (folder / "run.json").write_text(facts(seed, **({} if digest == "-" else files_of(digest))))
    runs = find_runs([str(tmp_path)])
    table = aggregate(runs)
    assert len(table) == rows == len(rows_of(runs)) and table["n"].sum() == len(known)
    if rows > 1:
        names = {f"multi (files {10 * 't' + ' ' + 10 * each if each != '-' else 'unknown'})" for each in known}
        assert set(table["run"]) == names == set(rows_of(runs))


def test_what_is_expected_and_ran_is_one_row(record, tmp_path, load):
    folder = record("multi", 0, [1.0, 2.0, 3.0])
    (folder / "run.json").write_text(facts(0))
    options = config.flatten(config.load(str(folder / "config.yaml")))
    table = aggregate(find_runs([str(tmp_path)]), [options])
    assert table["status"].tolist() == ["finished"]


def test_links_of_odd_names_are_quoted():
    assert link_from(Path("/a/page.md"))(Path("/a/b c/seed0")) == "b%20c/seed0"
