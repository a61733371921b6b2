"""tools/track.py: W&B and MLflow are given the options and every value of every epoch.

Both are played by stand-ins here, which take what the libraries take; MLflow itself is asked where it is installed.
"""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
from processes import ROOT, called
from records import logged, words

from pycls_std import config, runner


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of a run of two epochs, and the lines of its metrics.jsonl."""
    folder = tmp_path_factory.mktemp("runs")
    own = words(OUT_DIR=folder / "a", OPTIM__MAX_EPOCH=2, DATA__PER_CLASS=13, TRAIN__BATCH_SIZE=16)
    runner.run("train", config.load(str(ROOT / "configs/debug/base_debug.yaml"), own))
    return folder, logged(folder / "a")


class Wandb:
    """Stands in for wandb, and for a run of it."""

    def __init__(self):
        self.begun, self.logged, self.summary, self.open = [], {}, {}, False

    def init(self, *, project, name, group, config):
        self.begun.append((project, name, group, config["OPTIM.MAX_EPOCH"]))
        return self

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False

    def log(self, values, *, step):
        assert self.open and step not in self.logged
        self.logged[step] = values


class Mlflow(Wandb):
    """Stands in for mlflow."""

    def __init__(self):
        super().__init__()
        self.params, self.tags, self.names = {}, {}, []
        self.log_params, self.set_tags = self.params.update, self.tags.update
        self.set_experiment = self.names.append

    def start_run(self, *, run_name):
        self.names.append(run_name)
        return self

    def log_metrics(self, values, *, step):
        self.log(values, step=step)


def of_epochs(lines):
    values = {line["epoch"]: {tag: line[tag] for tag in line if tag not in ("epoch", "time")} for line in lines}
    return {epoch: pytest.approx(each) for epoch, each in values.items()}


def test_wandb_is_given_all_values(runs, monkeypatch):
    folder, lines = runs
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert called("tools/track.py", "wandb", folder, "--project", "mine") == (0, "", "")
    assert wandb.begun == [("mine", "base_debug_seed0", "base_debug", 2)]
    assert wandb.logged == of_epochs(lines) and not wandb.open and wandb.summary == {"status": "finished"}


def test_mlflow_is_given_all_values(runs, monkeypatch):
    folder, lines = runs
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    assert called("tools/track.py", "mlflow", folder) == (0, "", "")
    assert mlflow.names == ["pycls_std", "base_debug_seed0"] and mlflow.params["OPTIM.MAX_EPOCH"] == 2
    assert mlflow.tags == {"config": "base_debug", "status": "finished"}
    assert mlflow.logged == of_epochs(lines) and not mlflow.open


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself_has_them(runs, monkeypatch, tmp_path):
    folder, lines = runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert called("tools/track.py", "mlflow", folder)[0] == 0
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("pycls_std").experiment_id])
    history = client.get_metric_history(run.info.run_id, "test/top1")
    assert {each.step: each.value for each in history} == {
        line["epoch"]: pytest.approx(line["test/top1"]) for line in lines
    }


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_and_a_folder_without_runs(runs, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    text = f"track.py: {name} is not installed: pip install {name}\n"
    assert called("tools/track.py", name, runs[0]) == (2, "", text)
    assert called("tools/track.py", name, tmp_path) == (2, "", f"track.py: {tmp_path}: no run record in it\n")


def test_what_a_library_refuses_is_one_line(runs, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    assert called("tools/track.py", "wandb", runs[0]) == (1, "", f"track.py: {runs[0]}/a: no network\n")


def test_the_page_names_the_files_of_a_run():
    text = (ROOT / "docs" / "tracking.md").read_text()
    assert all(f"`{name}`" in text for name in ("metrics.jsonl", "console.log", "train/top1"))
    assert "tools/track.py wandb" in text and "(docs/tracking.md)" in (ROOT / "README.md").read_text()
