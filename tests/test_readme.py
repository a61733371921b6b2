"""The README: its tables are made from logs/, its commands and its example work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLE = dict(re.findall(r"`(\S+)`:\n\n```\w+\n(.*?)```", README, re.S))  # what the README tells its reader to write


def test_tables_are_those_of_the_logs(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "tools")
    import fill_tables

    assert fill_tables.filled(README) == README, "write them anew with: python tools/fill_tables.py"


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|tools|pycls_std|tests)/[\w./-]+\.(?:yaml|py)", README)))
)
def test_files_the_readme_names_are_there(path):
    assert path in EXAMPLE or (ROOT / path).is_file()


def test_the_example_method_trains(teacher, tmp_path):
    """The method of the README, its one file and its one YAML put in place, trains from the command line."""
    assert len(EXAMPLE) == 2
    for name in ("pycls_std", "configs", "run_net.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for path, text in EXAMPLE.items():
        (tmp_path / path).write_text(text)
    config = next(path for path in EXAMPLE if path.endswith(".yaml"))
    words = [f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}, {teacher}]", "DISTILLATION.TEACHERS=[resnet8, resnet8]"]
    words += ["DISTILLATION.TEACHER_MIN_ACC=-1", "OPTIM.MAX_EPOCH=1", "AGREE.WEIGHT=3", "DATA.IMAGE_SIZE=8"]
    command = [sys.executable, "run_net.py", "--mode", "train", "--cfg", config, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = (tmp_path / "runs" / Path(config).stem / "seed0" / "metrics.jsonl").read_text()
    assert '"train/agree"' in metrics
