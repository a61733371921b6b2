"""The README: its tables are made from logs/, and the files that it names are there."""

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_and_pictures_are_those_of_the_logs_and_stay_where_nothing_changed(tmp_path, monkeypatch, capsys):
    """`make tables` in a copy: not a byte of any page, and none of any picture, is another one."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import fill_tables

    for name in ("configs", "logs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    assert fill_tables.main([]) == 0
    assert capsys.readouterr().out == "", "write them anew with: make tables"
    pages = [path for path in ("README.md", "docs") for path in [ROOT / path, *(ROOT / path).rglob("*")]]
    for page in filter(Path.is_file, pages):
        copy = tmp_path / page.relative_to(ROOT)
        assert copy.read_bytes() == page.read_bytes(), f"{page} is written anew by: make tables"
    assert {path.name for path in (tmp_path / "docs").rglob("*")} == {path.name for path in (ROOT / "docs").rglob("*")}


def test_every_number_leads_to_its_record_in_two_clicks():
    """A seed to the folder of its run, and there events, config and, with commit and seed, run.json."""
    for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        links = re.findall(r"\[\d+\]\(([^)]+)\)", page.read_text())
        assert links
        for link in links:
            folder = page.parent / link
            facts = json.loads((folder / "run.json").read_text())
            assert all(start["commit"] for start in facts["starts"]) and folder.name == f"seed{facts['seed']}"
            assert (folder / "config.yaml").is_file() and list(folder.glob("*tfevents*"))


def test_every_shipped_table_and_every_kept_one_is_on_the_page_of_results():
    text = (ROOT / "docs" / "results.md").read_text()
    for path in (ROOT / "configs" / "tables").glob("*.yaml"):
        assert f"tools/reproduce.py configs/tables/{path.name} --logs" in text
    for path in (ROOT / "logs").iterdir():
        assert path.name in text or path.name == "benchmarks"


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|tools|pycls_std|tests)/[\w./-]+\.(?:yaml|py)", README)))
)
def test_files_the_readme_names_are_there(path):
    assert (ROOT / path).is_file()
