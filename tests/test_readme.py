"""The README and docs/: tables are made from logs/, links lead somewhere, and the files that are named are there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from processes import called
from shipped import foreign_sections, shipped_configs
from test_extending import EXAMPLES

import pycls_std
from pycls_std import config, runner
from pycls_std.results.read import read_run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.slow
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
            assert all(re.fullmatch("[0-9a-f]{40}", start["commit"]) for start in facts["starts"])
            assert folder.name == f"seed{facts['seed']}"
            assert (folder / "config.yaml").is_file() and list(folder.glob("*tfevents*"))


def test_every_shipped_table_and_every_kept_one_is_on_the_page_of_results():
    text = (ROOT / "docs" / "results.md").read_text()
    for path in (ROOT / "configs" / "tables").glob("*.yaml"):
        assert f"tools/reproduce.py configs/tables/{path.name} --logs" in text
    for path in (ROOT / "logs").iterdir():
        assert path.name in text or path.name == "benchmarks"


def test_the_steps_for_ones_own_images(tmp_path, caplog):
    """As they stand, in a size for a test: folders, config, all three commands; of images that are not square."""
    page = (ROOT / "docs" / "data.md").read_text()
    steps = page[page.index("**Your own images.**") :]
    text, commands = (re.search(rf"```{start}.*?)```", steps, re.S)[1] for start in ("yaml\n(", "\n(python "))
    draws = np.random.default_rng(0)
    for number, folder in enumerate(["train/cat", "train/dog", "val/cat", "val/dog"] * 6):
        path = tmp_path / "data" / "mine" / folder / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (40 + number, 90 - number, 3), dtype=np.uint8)).save(path)
    (tmp_path / "mine.yaml").write_text(text)
    small = ["DATA.IMAGE_SIZE=32", "OPTIM.MAX_EPOCH=1", "OPTIM.WARMUP_EPOCHS=0", "TRAIN.BATCH_SIZE=6", "DEVICE=cpu"]
    small += ["MODEL.ARGS.num_blocks=2", "MODEL.ARGS.embed_dim=32", "DATA.NUM_WORKERS=0", "PRECISION=fp32"]
    small += [f"DATA.ROOT={tmp_path / 'data' / 'mine'}", f"OUT_DIR={tmp_path / 'run'}"]
    options = config.load(str(tmp_path / "mine.yaml"), small)
    assert (options.PUBLISHED.TOP1, options.PUBLISHED.SOURCE, options.MODEL.NUM_CLASSES) == (-1, "", 0)
    run = []
    for line in commands.splitlines():
        _, script, *words = line.split()
        assert words[-2:] == ["--cfg", "mine.yaml"] and (ROOT / script).is_file()
        run.append(words[1] if words[0] == "--mode" else script)
        if words[0] == "--mode":
            runner.run(words[1], options)
        else:
            code, output, errors = called(script, "--cfg", tmp_path / "mine.yaml", *small)
            assert (code, errors) == (0, "") and "train: 12 images read\ntest: 12 images read" in output
    assert run == ["tools/check_data.py", "check", "train"]
    assert f"{tmp_path}/data/mine/val is tested on: 12 images" in caplog.text
    assert read_run(tmp_path / "run").status == "finished"
    assert read_run(tmp_path / "run").curves["test/top1"].keys() == {1}


def test_a_users_config_is_not_asked_what_the_shipped_ones_are(tmp_path):
    """mine.yaml under configs/ has no command in its header and no number of classes; without git it is not known."""
    for name in ("std/ours.yaml", "mine.yaml", "tables/table.yaml"):
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / name).write_text("SEED: 1\n")
    ours, mine = tmp_path / "configs/std/ours.yaml", tmp_path / "configs/mine.yaml"
    assert shipped_configs(tmp_path) == [mine, ours]
    for words in (["init", "-q"], ["add", "configs/std", "configs/tables"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert shipped_configs(tmp_path) == [ours] == shipped_configs(tmp_path, "o*.yaml")
    for name in ("ours", "mine"):
        (tmp_path / "pycls_std/terms").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pycls_std/terms" / f"{name}.py").write_text(f'@TERMS.register("{name}")\nclass One: ...\n')
    subprocess.run(["git", "-C", str(tmp_path), "add", "pycls_std/terms/ours.py"], check=True)
    assert foreign_sections(tmp_path) == {"MINE"}
    asking = [
        path for path in (ROOT / "tests").glob("*.py") if re.search(r'"configs"\)\.r?glob\("\*', path.read_text())
    ]
    # A wheel holds all that is there.
    assert {path.name for path in asking} == {"test_install.py"}, "ask shipped_configs"


def test_the_example_of_a_method_has_the_header_of_a_shipped_config():
    """So it may be committed as it stands."""
    name = "configs/digits/mixer-nano_digits_fitnet.yaml"
    header = EXAMPLES[name].partition("_BASE_")[0]
    assert f"#   python run_net.py --mode train --cfg {name}\n" in header
    assert "# Published: nothing. Measured: " in header


def named_files():
    """Files of the project that the pages name, but for those that the pages tell a reader to write."""
    text = "".join(page.read_text() for page in PAGES)
    return sorted(set(re.findall(r"(?:configs|tools|pycls_std|tests)/[\w./-]+\.(?:yaml|py|sh)", text)) - set(EXAMPLES))


@pytest.mark.parametrize("path", named_files())
def test_files_that_the_pages_name_are_there(path):
    assert (ROOT / path).is_file()


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```|^<!-- (?:python|logs).*?^<!-- end", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))
    for link in links:
        if not link.startswith("https://"):
            place, _, anchor = link.partition("#")
            target = page.parent / place if place else page
            assert target.exists() and target.resolve().is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_one_click_from_the_readme_which_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 145
    links = set(re.findall(r"\]\(([^)\s]+\.md)\)", text))
    assert links == {page.relative_to(ROOT).as_posix() for page in PAGES} - {"README.md"}


def test_the_citation_and_the_changelog_are_of_this_version():
    """CITATION.cff has what version 1.2.0 of its format requires, and the publications that the methods are of."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"] == "pycls_std"
    assert cited["authors"] == [{"name": "The pycls_std developers"}] and cited["version"] == pycls_std.__version__
    assert [work["year"] for work in cited["references"]] == [2022, 2022, 2024, 2024]
    assert all(work.keys() >= {"type", "title", "authors"} for work in cited["references"])
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == pycls_std.__version__


def test_continuous_integration_runs_what_ci_run_does():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_lines_of_pages_are_at_most_120_characters():
    """But for tables and what is made with them, code, comments and pictures."""
    long = []
    for page in PAGES:
        prose = re.sub(
            r"^```.*?^```|^<!-- (?:python|logs).*?^<!-- end", "", page.read_text(), flags=re.DOTALL | re.MULTILINE
        )
        long += [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "<!--", "!["))]
    assert long == []
