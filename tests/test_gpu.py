"""The first look at a GPU: every part runs on the CPU in small, and the script calls them in its order."""

import json
import re
import subprocess

import pytest
from processes import ROOT, called

SCRIPT = ROOT / "tools" / "gpu" / "first.sh"
SMALL = ["--cfg", "configs/debug/std_debug.yaml", "--device", "cpu", "--batch", "8", "--rounds", "1"]
WORDS = ["MINE.SAMPLES=2", "DATA.PER_CLASS=2", "OPTIM.NAME=momentum"]


def look(out, part, *words):
    """Carry out a part; returns its results, by name."""
    code, output, errors = called("tools/gpu/first.py", part, *SMALL, "--out", out, *words, "--", *WORDS)
    lines = [json.loads(line) for line in (out / "result.jsonl").read_text().splitlines()]
    assert code == 0, (output, errors)
    assert lines[-1]["part"] == f"{part} took"
    return {line["part"]: line for line in lines}, lines


def test_what_is_there(tmp_path):
    found, _ = look(tmp_path, "env")
    assert found["env"]["torch"] and found["peak"]["tflops"] > 0


@pytest.mark.parametrize("part", ["sync", "views", "determinism"])
def test_a_cpu_waits_for_nothing_and_repeats_itself(tmp_path, part):
    _, lines = look(tmp_path, part)
    own = [line for line in lines if line["part"] == part]
    if part == "sync":
        assert [line["count"] for line in own] == [0, 0, 0]
    elif part == "views":
        assert [own[0][name] for name in ("most", "pixels", "images")] == [0, 0, 0]
    else:
        assert [(line["wanted"], line["differ"]) for line in own[:2]] == [(True, 0), (False, 0)]
        assert [line.split("  ")[0] for line in own[2]["turns"]] == ["deterministic", "fastest"]


def test_speed(tmp_path):
    found, _ = look(tmp_path, "speed")
    timed = ("data of a batch", "mixing", "teachers", "student forward", "optimizer", "average", "evaluation")
    for name in (*timed, "check of the state", "copy of the state", "checkpoint", "step, batch held", "step with data"):
        assert found[name]["ms"] >= found[name]["host_ms"] > 0
    assert len(found["profile"]["top"]) == 12
    assert [line.split("  ")[0] for line in found["fp32"]["turns"]] == ["TF32 False", "TF32 True"]


def test_steps(tmp_path):
    _, lines = look(tmp_path, "steps", "--modes", "off", "off")
    assert [line["apart"] for line in lines[:2]] == [0, 0]


def test_a_mode_that_fails_is_told_and_the_next_one_goes_on(tmp_path):
    """A CPU has no graphs."""
    words = ["steps", *SMALL, "--out", tmp_path, "--modes", "off", "graphs", "off", "--", *WORDS]
    assert called("tools/gpu/first.py", *words)[0] == 1
    lines = [json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines()]
    assert [line.get("apart") for line in lines[:3]] == [0, None, 0]
    assert "graphs" in lines[1]["error"] and lines[3]["error"] == "RuntimeError: no steps in graphs"


def test_what_does_not_depend_on_a_mode_that_fails_is_compared(tmp_path):
    words = ["speed", "mixing", *SMALL, "--out", tmp_path, "--modes", "graphs", "off", "--", *WORDS, "DATA.PER_CLASS=1"]
    assert called("tools/gpu/first.py", *words)[0] == 2
    lines = [json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines()]
    found = [(line["part"], line.get("mode", ""), "error" in line) for line in lines]
    for told in (("speed", "graphs", True), ("step, batch held", "off", False), ("mixing", "graphs", True)):
        assert told in found
    assert ("fp32", "", False) in found and found.index(("mixing", "off", False)) > found.index(
        ("mixing", "graphs", True)
    )


def test_token_mixing(tmp_path):
    """A CPU has one way."""
    _, lines = look(tmp_path, "mixing", "--modes", "off")
    assert [turn.split("  ")[0] for turn in lines[0]["turns"]] == ["plain"]


def test_kernels_that_are_tried_first(tmp_path):
    """A CPU takes the steps as they are in the first mode."""
    found, _ = look(tmp_path, "autotune")
    assert found["first step"]["seconds"] >= 0
    assert found["step, batch held"]["mode"] == "off" and found["step, batch held"]["ms"] > 0


def test_a_run(tmp_path):
    found, _ = look(tmp_path, "run")
    assert (found["run"]["status"], found["run"]["epochs_done"]) == ("finished", 3)


def test_a_run_is_continued_and_checked(tmp_path):
    found, _ = look(tmp_path, "resume")
    assert found["resume"]["epochs_done"] == [1, 2, 2]


def test_a_part_that_fails_is_told_and_the_next_one_goes_on(tmp_path):
    words = ["sync", "env", *SMALL, "--out", tmp_path, "--", *WORDS, "MODEL.NAME=nothing"]
    code, _, _ = called("tools/gpu/first.py", *words)
    lines = [json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines()]
    assert (code, lines[0]["part"], lines[2]["part"]) == (1, "sync", "env")
    assert "nothing" in lines[0]["error"] and "Traceback" in (tmp_path / "error-sync.txt").read_text()


def test_the_script_is_one_and_calls_every_part():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert SCRIPT.stat().st_mode & 0o111
    called_parts = re.findall(r'^  (?:\[.* && )?first (?:\d+|"\$left") ((?:[a-z]+ )+)', SCRIPT.read_text(), re.M)
    assert " ".join(part.strip() for part in called_parts) == (
        "env sync views determinism determinism speed steps run resume mixing autotune"
    )
    limits = [int(seconds) for seconds in re.findall(r"^  (?:first|limited) (\d+) ", SCRIPT.read_text(), re.M)]
    assert len(limits) == 8 and sum(limits) <= 560  # of a lent device's ten minutes; data is unpacked in the others
    assert "left=$((590 - SECONDS))" in SCRIPT.read_text()  # for the last step, with the end of what it stops


def test_a_part_that_is_killed_at_its_limit_says_so(tmp_path):
    """Under the names of those that were asked for together; what ends by itself says what it says."""
    functions = SCRIPT.read_text().partition("limited() {")[2].partition("\n{\n")[0]
    script = f"out={tmp_path} config=none python=./slow\nlimited() {{{functions}"
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/bash\n[ $2 = --out ] && sleep 30\nexit 3\n")
    slow.chmod(0o755)
    calls = "first 0.2 sync views --modes off A.B=c; limited 9 other ./slow; echo $?"
    done = subprocess.run(["bash", "-uc", f"{script}\n{calls}"], cwd=tmp_path, capture_output=True, text=True)
    (line,) = (json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines())
    assert line["part"] == "sync views" and re.fullmatch(r"killed after \d s, its limit is 0.2 s", line["error"])
    assert (tmp_path / "error-sync-views.txt").read_text() == f"{line['error']}\n"
    assert done.stdout == f"{line['error']}\n3\n", done.stderr
