"""The README: its tables are made from logs/, and the files that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_logs(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "tools")
    import fill_tables

    assert fill_tables.filled(README) == README, "write them anew with: python tools/fill_tables.py"


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|tools|pycls_std|tests)/[\w./-]+\.(?:yaml|py)", README)))
)
def test_files_the_readme_names_are_there(path):
    assert (ROOT / path).is_file()
