"""Installed from a wheel into an environment of its own, and called from Python."""

import argparse
import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from records import logged

import pycls_std
from pycls_std import config
from pycls_std.config import shipped
from pycls_std.run import record

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("pycls_std", "configs", "tools", "run_net.py", "pyproject.toml", "README.md", "LICENSE")
SMALL = ["DEVICE=cpu", "OPTIM.MAX_EPOCH=1", "OPTIM.WARMUP_EPOCHS=0", "DATA.PER_CLASS=13", "TRAIN.BATCH_SIZE=16"]
BASE = "configs/debug/base_debug.yaml"


def test_every_folder_with_code_is_a_package_of_the_wheel():
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "pycls_std").rglob("__init__.py")]
    found = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"pycls_std.configs", "pycls_std.tools"}
    assert {path.suffix for path in (ROOT / "configs").rglob("*") if path.is_file()} == {".yaml"}


def test_what_the_code_imports_is_required():
    """Of the package and the command line, or of export's extra; pytest and ruff are for who works on it."""
    required = "".join((ROOT / f"requirements{of}.txt").read_text().lower() for of in ("", "-export"))
    names = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "faster_coco_eval": "faster-coco-eval"}
    names["google"] = "tensorboard"  # which reads its protobuf
    imported = set()
    for path in [*(ROOT / "pycls_std").rglob("*.py"), ROOT / "run_net.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"pycls_std", "triton"}  # which torch brings, if it is for CUDA
    assert {name for name in foreign if f"\n{names.get(name, name)}>=" not in required} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of a copy, without network."""
    for needed in ("setuptools", "pip"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed} to build a wheel")
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, *(path.name for path in ROOT.glob("requirements*.txt"))):
        path, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        target = folder / "source" / name
        shutil.copytree(path, target, ignore=ignored) if path.is_dir() else shutil.copy(path, target)
    words = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=folder / "source", check=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_code_configs_and_what_it_requires(wheel):
    assert wheel.name == f"pycls_std-{pycls_std.__version__}-py3-none-any.whl"
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (place,) = (name for name in names if name.endswith("/METADATA"))
        said = archive.read(place).decode()
    inside = {name for name in names if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pycls_std").rglob("*.py")}
    configs = {f"pycls_std/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    tools = {f"pycls_std/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "tools").glob("*.py")}
    assert inside == code | configs | tools | {"run_net.py", "pycls_std/py.typed"}
    assert "Requires-Dist: torch>=2.11" in said and 'Requires-Dist: pytest>=8.3; extra == "dev"' in said


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an environment of its own, beside this one's libraries; return its bin folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python, paths = folder / "bin" / "python", sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    (Path(paths["purelib"]) / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    words = ["--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=120)
    return folder / "bin"


def called(folder, *words):
    """Call a program of the environment in a folder; return its exit code, output and errors."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_describes_and_trains_from_an_empty_folder(installed, tmp_path):
    code, output, errors = called(tmp_path, installed / "pycls-std", "--mode", "info", "--cfg", BASE)
    assert (code, errors) == (0, "")
    package = installed.parent / "lib"
    assert output.startswith(f"there is no {BASE} here, the package's own is used: {package}")
    assert "baseline, mixer_nano4: 10 classes, 8 px" in output
    assert list(tmp_path.iterdir()) == []
    code, output, errors = called(tmp_path, installed / "pycls-std", "--mode", "info", "--cfg", "none.yaml")
    assert (code, output) == (2, "") and errors.startswith("pycls-std: ") and len(errors.splitlines()) == 1

    call = f"import pycls_std; run = pycls_std.train({BASE!r}, *{SMALL!r}, SEED=1); print(*run, sep='|')"
    code, output, errors = called(tmp_path, installed / "python", "-c", call)
    assert (code, errors) == (0, "")
    folder, scores = output.splitlines()[-1].split("|")
    assert Path(folder) == tmp_path / "runs" / "base_debug" / "seed1" and "'test/top1': " in scores
    facts = json.loads((Path(folder) / "run.json").read_text())
    assert (facts["status"], facts["seed"], facts["starts"][0]["commit"]) == ("finished", 1, "unknown")
    assert facts["starts"][0]["command"] == f"python run_net.py --mode train --cfg {BASE} {' '.join(SMALL)} SEED=1"


def test_the_tool_that_a_message_names_is_installed(installed, tmp_path):
    torch.save({"model": {"weight": torch.ones(3)}, "options": argparse.Namespace(lr=1)}, tmp_path / "published.pth")
    words = "--mode", "train", "--cfg", BASE, "MODEL.WEIGHTS=published.pth", "DEVICE=cpu"
    code, output, errors = called(tmp_path, installed / "pycls-std", *words)
    command = "python -m pycls_std.tools.import_weights published.pth NEW.pt"
    assert code == 1 and f"; {command} makes a plain one of it" in errors
    code, output, errors = called(tmp_path, installed / "python", *command.split()[1:])
    assert (code, errors) == (0, "")
    assert torch.load(tmp_path / "NEW.pt")["weight"].tolist() == [1, 1, 1]
    for tool in ("make_table", "predict"):
        code, output, errors = called(tmp_path, installed / "python", "-m", f"pycls_std.tools.{tool}", "--help")
        assert code == 0 and output.startswith("usage: ") and not errors


def test_train_returns_the_folder_and_the_last_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = sys.argv
    run = pycls_std.train(BASE, *SMALL, OUT_DIR=tmp_path / "run", SEED=3, AUG__CROP="none", OPTIM__STEPS=[])
    assert sys.argv is words
    assert run.folder == tmp_path / "run"
    last = logged(run.folder)[-1]
    assert run.scores and all(last[name] == value for name, value in run.scores.items())
    assert run.scores["test/top1"] == last["test/top1"] and "train/loss" not in run.scores
    kept = config.load(str(run.folder / "config.yaml"))
    assert (kept.SEED, kept.AUG.CROP, kept.OPTIM.MAX_EPOCH) == (3, "none", 1)
    again = pycls_std.train(BASE, *SMALL, OUT_DIR=tmp_path / "run", SEED=3, AUG__CROP="none")
    assert again == run
    assert not (run.folder / ".lock").exists()


def test_train_takes_the_lock_and_raises_what_is_wrong(tmp_path):
    from pycls_std.run.lock import LOCK

    hold = f"import fcntl; f = open({str(tmp_path / LOCK)!r}, 'w'); fcntl.lockf(f, 2); print(1, flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with pytest.raises(ValueError, match=f"OUT_DIR {tmp_path} is in use"):
            pycls_std.train(BASE, *SMALL, OUT_DIR=tmp_path)
    finally:
        holder.communicate(b"\n")
    with pytest.raises(config.ConfigError, match="no option OPTIM.MAX_EPOCHS, did you mean OPTIM.MAX_EPOCH"):
        pycls_std.train(BASE, OPTIM__MAX_EPOCHS=3)


def test_a_config_that_is_here_comes_before_the_packages(tmp_path, monkeypatch, caplog):
    """That the package's is used is told once, though a table reads it for each row."""
    monkeypatch.chdir(tmp_path)
    shipped._tell.cache_clear()
    assert [shipped.find_config(BASE) for _ in range(2)] == [ROOT / BASE] * 2
    assert caplog.text.count(f"there is no {BASE} here, the package's own is used: {ROOT / BASE}") == 1
    caplog.clear()
    (tmp_path / BASE).parent.mkdir(parents=True)
    (tmp_path / BASE).write_text((ROOT / BASE).read_text())
    for path in (BASE, "configs/none.yaml", "configs", "none.yaml", str(ROOT / BASE), "configs/\0"):
        assert shipped.find_config(path) == Path(path)
    assert not caplog.text


def test_a_base_of_the_package_is_found_beside_no_file(tmp_path, monkeypatch, caplog):
    """That which lies beside the file comes first."""
    monkeypatch.chdir(tmp_path)
    shipped._tell.cache_clear()
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {BASE}\nSEED: 7\n")
    own = config.load("mine.yaml")
    assert f"there is no {BASE} here, the package's own is used: {ROOT / BASE}" in caplog.text
    assert (own.SEED, own.MODEL.NAME) == (7, config.load(str(ROOT / BASE)).MODEL.NAME)
    (tmp_path / BASE).parent.mkdir(parents=True)
    (tmp_path / BASE).write_text("NAME: beside\n")
    assert config.load("mine.yaml").NAME == "beside"
    (tmp_path / "mine.yaml").write_text("_BASE_: configs/debug/none.yaml\n")
    with pytest.raises(config.ConfigError, match="_BASE_ is 'configs/debug/none.yaml', there is no such file beside"):
        config.load("mine.yaml")


def test_a_package_within_another_repository_has_no_commit(tmp_path, monkeypatch):
    """Installed in an environment that lies in a checkout of something else."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(record, "REPOSITORY", tmp_path / "site-packages")
    assert record.commit() == "unknown"


def test_a_package_that_pip_installed_from_git_has_its_commit(tmp_path, monkeypatch):
    """As pip writes it down (PEP 610); another copy beside it does not borrow it, and from an index there is none."""
    about = tmp_path / "pycls_std-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pycls-std\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    assert record.commit() == "unknown"
    origin = {"url": "https://example.org/pycls_std.git", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}
    (about / "direct_url.json").write_text(json.dumps(origin))
    assert record.commit() == "ab" * 20
    (about / "direct_url.json").write_text(json.dumps({"url": "file:///source", "dir_info": {}}))
    assert record.commit() == "unknown"
    (tmp_path / "other").mkdir()
    (about / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(record, "REPOSITORY", tmp_path / "other")
    assert record.commit() == "unknown"
