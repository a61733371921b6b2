"""Faults that a run survives: every one is injected by a test that is marked with its number."""

import re
from pathlib import Path

FAULTS = {
    1: "killed in the middle of an epoch",
    2: "killed during a save",
    3: "SIGTERM in the middle of an epoch",
    4: "SIGINT, twice",
    5: "the last checkpoint is cut",
    6: "a byte of a tensor is flipped",
    7: "an empty, zeroed or garbage checkpoint",
    8: "a malicious pickle as checkpoint, TEST.WEIGHTS or teacher",
    9: "the disk is full",
    10: "OUT_DIR cannot be written to",
    11: "an unknown key, in YAML or override",
    12: "a value of the wrong type or range",
    13: "a malformed override",
    14: "a bad YAML file",
    15: "YAML tags, a .py config",
    16: "_BASE_ goes round or is missing",
    17: "a learning rate of 1e38",
    18: "missing weights",
    19: "weights of another architecture",
    20: "a resume with other options",
    21: "a finished run started again",
    22: "a corrupt image",
    23: "an empty class folder, a hidden folder",
    24: "splits of other classes",
    25: "a teacher of another number of classes",
    26: "a label out of range",
    27: "two processes in one OUT_DIR",
    28: "a rank dies",
    29: "several processes against one",
    30: "SIGTERM to torchrun",
    31: "an interrupted or absent download",
    32: "offline with the data present",
    33: "a loader's worker is killed",
    34: "no, empty, cut, flipped event file",
    35: "logs after a resume",
    36: "hostile names",
    37: "secrets in the environment",
    38: "DEVICE cuda without a GPU",
    39: "fewer images than a batch",
}


TESTS = Path(__file__).parent
MARK = re.compile(r"(?:^@pytest\.mark\.|^\s+|marks=pytest\.mark\.)fault\((\d+)", re.M)
MARKED = {path.stem: set(map(int, MARK.findall(path.read_text()))) for path in sorted(TESTS.glob("test_*.py"))}


def test_every_fault_has_its_test():
    assert set().union(*MARKED.values()) == set(FAULTS)


def test_the_page_of_promises_lists_every_fault_and_the_tests_that_hold_it():
    page = (TESTS.parent / "docs" / "robustness.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| .+ \| (.+) \|$", page, re.M)
    assert {int(number): fault.replace("`", "") for number, fault, _ in rows} == FAULTS
    for number, fault, tests in rows:
        holding = {name for name, faults in MARKED.items() if int(number) in faults}
        assert set(re.findall(r"\[(\w+)\]", tests)) == holding, fault
