"""The page of a table: what it says, where its links lead, and how it is shown by a browser, where there is one."""

import html
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from plotted import analysis_with, scores_with, write_run
from processes import ROOT, called
from records import words

from pycls_std import config
from pycls_std.results.analysis import SHARES
from pycls_std.results.read import find_runs
from pycls_std.results.report import report_html
from pycls_std.results.rows import rows_of

SHORT = {"OPTIM__WARMUP_EPOCHS": 0, "OPTIM__SCHEDULE": "constant", "OPTIM__STEPS": "[]", "OPTIM__MAX_EPOCH": 3}
TOP1 = {"base": [[10.0, 20.0, 15.0], [12.0, 26.0, 31.0]], "multi_with-quite-a-long-name_of_a_row": [[20.0, 30.0, 45.0]]}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records of two rows, analysed, and of a run that is not finished; in a folder whose name needs quotes."""

    def load(**own):
        return config.load(str(ROOT / "configs/mixer/mixer-s4_c100_base.yaml"), words(**SHORT, **own))

    top = tmp_path_factory.mktemp("report") / "a folder #1" / "logs"
    for row, seeds in TOP1.items():
        for seed, top1 in enumerate(seeds):
            cfg = load(NAME=row, SEED=seed, DATA__VAL_FRACTION=0.1)
            teacher = scores_with([80.0, 80.0], ece=1.0, **{share: {"cls": 60.0 + seed} for share in SHARES})
            more = {"teachers": {"0_<resnet>": teacher}, "checkpoint": "last.pt", "epoch": 3}
            analysis = analysis_with([top1[-1] + seed, 90.0], ["cat", "<b>dog</b>"], **more)
            values = {"test/top1": top1, "val/top1": [1.0, 3.0, 2.0], "train/ce": [1.0] * 3, "train/loss": [1.0] * 3}
            write_run(top / row / f"seed{seed}", cfg, values, analysis=analysis, hours=1.25, teachers={"0_<r>": 80.5})
    cfg = load(NAME="base", SEED=2, DATA__VAL_FRACTION=0.1)
    write_run(top / "base" / "seed2", cfg, {"test/top1": [98.0, 99.0], "val/top1": [1.0, 1.0]}, done=2)
    return top


@pytest.fixture
def logs(made, tmp_path):
    """A copy of them, to be changed."""
    return shutil.copytree(made, tmp_path / "a folder #1" / "logs")


@pytest.fixture(scope="module")
def report(made):
    """The page that the tool writes of them, beside their folder."""
    page = made.parents[1] / "report.html"
    code, output, errors = called("tools/report.py", made, "--baseline", "base", "--out", page)
    assert (code, output) == (0, f"{page}\n")
    assert errors == f"report.py: warning: {made / 'base' / 'seed2'}: unfinished, epoch 2 of 3\n"
    return page


class Page(HTMLParser):
    """Elements of a page with their attributes, tables as rows of text, and whether all elements are closed."""

    VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use"}

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.headings = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID - {"path", "use"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if self.open and re.fullmatch(r"h[1-6]", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    def all(self, attribute):
        """Values of an attribute, of all elements."""
        return [own[attribute] for _, own in self.elements if attribute in own]


def test_every_number_leads_to_its_run(report, made):
    """From the table's row to its section, from there to folder, events, config and facts, which are there."""
    page = Page(report.read_text())
    table = page.tables[0]
    assert [line[0] for line in table[1:]] == list(TOP1)
    last = [seed[-1] for seed in TOP1["base"]]
    assert f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f}" in table[1]
    hrefs = page.all("href")
    ids = page.all("id")
    for row in ("row-1", "row-2"):
        assert f"#{row}" in hrefs and row in ids
    linked = {(report.parent / unquote(href)).resolve() for href in hrefs if not href.startswith("#")}
    for folder in (path.parent for path in made.rglob("config.yaml")):
        events = next(folder.glob("*tfevents*"))
        assert {folder, folder / "config.yaml", folder / "run.json", folder / "metrics.jsonl", events} <= linked
    assert all(path.exists() for path in linked)


def test_what_it_says_of_each_run(report):
    page = Page(report.read_text())
    head, *lines = page.tables[1]
    assert head == [
        *("seed", "top-1 (%), last epoch", "top-1 (%), held-out-selected", "top-1 (%), best on test (optimistic)"),
        *("epochs", "files", "status", "commit", "device", "hours"),
    ]
    assert lines[0][:5] == ["seed0", "15.00", "20.00 (epoch 2)", "20.00 (epoch 2)", "3 of 3"]
    assert lines[1][:5] == ["seed1", "31.00", "26.00 (epoch 2)", "31.00 (epoch 3)", "3 of 3"]
    assert lines[1][6:] == ["finished", "c0ffee", "Abacus, 2 threads", "1.25"]
    assert lines[2][:5] == ["seed2", "-", "-", "-", "2 of 3"]  # which is not finished, so it has no number
    assert lines[2][6] == "unfinished, epoch 2 of 3"
    text = report.read_text()
    assert "python run_net.py --cfg &lt;a&amp;b&gt;.yaml" in text
    assert "Teachers on the test split: 0_&lt;r&gt; 80.50." in text
    assert "<li>seed1: SEED 1</li>" in text
    assert "  MAX_EPOCH: 3\n" in text


@pytest.mark.parametrize(
    ("facts", "device", "hours"),
    [
        ({"starts": [{"device": "Loom"}, {"device": "Abacus"}, {"device": "Loom"}]}, "Loom; Abacus", "-"),
        ({"starts": [{}, {}], "device": "Loom", "hours": 1.25}, "Loom", "1.25"),  # as those of before December 2026
        ({"starts": [{"device": "Loom"}], "processes": 2, "hours": 1.25}, "Loom", "2.50"),
    ],
)
def test_all_devices_of_a_run_are_named_and_their_hours_counted(logs, facts, device, hours):
    folder = logs / "base" / "seed0"
    (folder / "run.json").write_text(json.dumps(facts))
    runs = find_runs([str(folder)])
    words = {"title": "", "notes": [], "baseline": "", "figures": {}, "link": str}
    head, line = Page(report_html(table=pd.DataFrame(), rows={"base": runs}, **words)).tables[1]
    known = dict(zip(head, line, strict=True))
    assert (known["device"], known.get("hours", "-")) == (device, hours)


def test_fidelity(report):
    """Means and sample deviations over the two seeds that were analysed."""
    page = Page(report.read_text())
    scores, beside = page.tables[2:4]
    assert scores[0] == ["prediction", "top-1 (%)", "top-5 (%)", "NLL (nats)", "ECE (%)"]
    top1 = [(15.0 + 90.0) / 2, (32.0 + 90.0) / 2]
    assert scores[1] == [
        "student: cls",
        f"{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f}",
        "99.00 ± 0.00",
        "0.80 ± 0.00",
        "3.25 ± 0.00",
    ]
    assert scores[2] == ["teacher: 0_<resnet>", "80.00 ± 0.00", "99.00 ± 0.00", "0.80 ± 0.00", "1.00 ± 0.00"]
    assert beside == [
        ["teacher", "prediction", *(f"{share.replace('_', ' ')} (%)" for share in SHARES)],
        ["0_<resnet>", "cls", *["60.50 ± 0.71"] * len(SHARES)],
    ]
    assert "2 of 3 runs analysed (last.pt, epoch 3)" in report.read_text()


def test_one_file_that_asks_for_nothing(report):
    """No script, no font, no image, no style from elsewhere; the policy forbids them to whatever a record holds."""
    text = report.read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"}
    assert not page.all("src") and not re.search(r"@import|url\((?!#)", text)
    assert not [href for href in page.all("href") if re.match(r"[^#]*:|/", href)]
    assert not page.all("xlink:href") and not [name for _, own in page.elements for name in own if name[:2] == "on"]
    assert {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"} in [
        own for tag, own in page.elements if tag == "meta"
    ]


def test_who_does_not_see_it_can_read_it(report):
    """Language, title, headings in order, pictures with words, and ids that are there once, which references name."""
    page = Page(report.read_text())
    assert ("html", {"lang": "en"}) in page.elements
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    named = set(re.findall(r"url\(#([^)]+)\)", report.read_text()))
    named |= {href[1:] for href in page.all("href") if href.startswith("#")}
    assert named <= set(ids)
    pictures = [own for tag, own in page.elements if tag == "svg"]
    assert len(pictures) == 5  # score, loss terms, gains, parameters, cost
    assert all(own["role"] == "img" and len(own["aria-label"]) > 30 for own in pictures)
    assert "lowest to highest. Left out: base seed2 (unfinished, epoch 2 of 3)" in pictures[0]["aria-label"].replace(
        "\n", " "
    )


def test_text_of_records_is_no_html(logs):
    evil = "<script>alert(1)</script>\"'&"
    rows = rows_of(find_runs([str(logs)]))
    (folder,) = {run.folder for run in rows["base"] if run.seed == "seed0"}
    facts = {"device": evil, "starts": [{"command": evil, "commit": evil}], "teachers": {evil: evil}, "hours": evil}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(f"NAME: {evil}\x07\n")
    (folder / "analysis.json").write_text(
        json.dumps(
            {"format": 1, "predictions": {evil: {evil: 1.0, "x": evil}}, "teachers": {evil: {evil: {evil: 2.0}}}}
        )
    )
    table = pd.DataFrame([["base", evil], [evil, "x"]], columns=["run", evil])
    text = report_html(
        title=evil,
        notes=[evil],
        table=table,
        rows={"base": rows["base"], evil: rows["base"]},
        baseline=evil,
        figures={evil: '<?xml?><svg viewBox="0 0 10 10" id="x"><g id="y"/></svg>'},
        link=lambda folder: f"./{evil}",
    )
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    assert html.escape(evil) in text and "\x07" not in text
    assert [value for value in page.all("href") if value == f"./{evil}"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 1, "predictions": []}', '{"format": 1, "predictions": {"a": 1}}']
)
def test_a_broken_analysis_is_none(logs, content, tmp_path):
    for path in logs.rglob("analysis.json"):
        path.write_text(content)
    code, _, _ = called("tools/report.py", logs, "--baseline", "base", "--out", tmp_path / "x.html")
    assert code == 0
    assert "Gain over" not in (tmp_path / "x.html").read_text()


def test_the_same_bytes_each_time(report, made):
    first = report.read_bytes()
    called("tools/report.py", made, "--baseline", "base", "--out", report)
    assert report.read_bytes() == first


def test_codes(logs, tmp_path):
    code, output, _ = called("tools/report.py", logs)
    assert (code, output) == (0, f"{logs / 'report.html'}\n")
    assert "<h1>logs</h1>" in (logs / "report.html").read_text()
    code, _, errors = called("tools/report.py", logs, "--baseline", "bass")
    assert code == 2 and errors.startswith("report.py: ") and "bass" in errors and len(errors.splitlines()) == 1
    code, _, errors = called("tools/report.py", tmp_path / "nothing")
    assert (code, errors) == (2, f"report.py: {tmp_path / 'nothing'}: there is no such folder\n")
    code, output, errors = called("tools/report.py", logs, "--out", tmp_path / "no" / "x.html")
    assert (code, output) == (2, "") and len(errors.splitlines()) == 1
    code, output, _ = called("tools/report.py", logs / "base" / "seed2", "--out", tmp_path / "cut.html")
    assert code == 1 and "<svg" not in (tmp_path / "cut.html").read_text()


# ---------------------------------------------------------------------------------------------------------- a browser
MEASURE = """<script>addEventListener("load", () => { document.querySelectorAll("details").forEach(d => d.open = true);
const page = document.documentElement, boxes = [...document.querySelectorAll(".box, .picture, pre")];
document.title = JSON.stringify({inner: innerWidth, wide: page.scrollWidth, body: document.body.scrollWidth,
  outside: boxes.filter(b => b.getBoundingClientRect().right > page.clientWidth + 1).length,
  small: [...document.querySelectorAll(".picture:not(.wide .picture) svg")].map(s => s.getBoundingClientRect().width),
  loaded: performance.getEntriesByType("resource").length}) })</script>"""
FRAME = '<!DOCTYPE html><title></title><iframe style="width:{}px;height:800px;border:0" src="measured.html"></iframe>'
READ = """<script>addEventListener("message", event => { document.title = event.data })</script>"""
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]


def shown(folder: Path, width: int) -> dict:
    """Load folder/measured.html in a browser in a frame so wide; returns what it measured."""
    tell = "<script>addEventListener('load', () => parent.postMessage(document.title, '*'))</script>"
    text = (folder / "measured.html").read_text()
    if tell not in text:
        (folder / "measured.html").write_text(text.replace("</body>", f"{tell}</body>"))
    (folder / "frame.html").write_text(FRAME.format(width) + READ)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *QUIET]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=5000"]
    command += ["--dump-dom", (folder / "frame.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(.*?)</title>", result.stdout)
    assert found and found[1], result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here: chromium, chromium-browser, google-chrome")
@pytest.mark.parametrize("width", [375, 1280])
def test_in_a_browser_the_page_does_not_scroll_sideways(report, tmp_path, width):
    """What is wide scrolls in its own box, on a phone and at a desk; nothing is loaded beside the page."""
    text = report.read_text()
    policy = re.search(r"<meta http-equiv[^>]*>\n", text)[0]  # which forbids the test's own script
    (tmp_path / "measured.html").write_text(text.replace(policy, "").replace("</body>", f"{MEASURE}</body>"))
    found = shown(tmp_path, width)
    assert found["inner"] == width
    assert found["wide"] <= width and found["body"] <= width and found["outside"] == 0
    assert found["loaded"] == 0
    assert min(found["small"]) > 330  # pixels of what is drawn 3.5 inches wide: its 8 pt stay near 8 pt
