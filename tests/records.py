"""What a run left: its checkpoints, its options, its curves; whether two runs left the same; files that went bad."""

import json
import os
import subprocess
import time
import zipfile

import torch

from pycls_std import config
from pycls_std.results.read import read_run
from pycls_std.run.journal import EPOCHS, METRICS, Journal

# Options of a run whose epochs are short: 130 of the digits, 8 steps each.
SMALL = {"DATA__PER_CLASS": 13, "TRAIN__BATCH_SIZE": 16}


def words(**overrides):
    """Options as on the command line; OPTIM__BASE_LR stands for OPTIM.BASE_LR."""
    return [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]


def same(first, second):
    """Whether two nests of tensors, numbers and text are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def load_config(folder):
    return config.load(str(folder / "config.yaml"))


def load_state(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)


def logged(folder):
    """What metrics.jsonl says of each epoch."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def curves(folder):
    """All scalars but those that measure time."""
    return {tag: curve for tag, curve in read_run(folder).curves.items() if "second" not in tag}


def assert_same_state(first, second):
    """Fail unless two checkpoints, in (folder, name), hold the same: weights, optimizers, average, critics, scaler."""
    states = load_state(*first), load_state(*second)
    free = ("config", "seconds", "journal", "events", "record")  # names of folder and files, and what has times in it
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if key not in free and not same(states[0][key], states[1][key])] == []


def assert_same_run(first, second):
    """Fail unless two folders hold the same run: the last checkpoint, the best weights, the curves."""
    assert_same_state((first, "last"), (second, "last"))
    for model in ("student", "ema"):
        assert same(load_state(first, "best")[model], load_state(second, "best")[model])
    assert curves(first) == curves(second)
    assert [read_run(folder).status for folder in (first, second)] == ["finished", "finished"]


def write_record(folder, options, values, *, plans, facts):
    """Write the files of a run but for its checkpoints.

    options: as text. values: of each epoch. plans: how many each epoch was recorded to be one of. facts: of run.json.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(options)
    (folder / "run.json").write_text(json.dumps(facts))
    epochs, now = enumerate(zip(plans, values, strict=True), start=1), time.time()
    Journal(folder, options, [{"epoch": epoch, "time": now, EPOCHS: plan, **each} for epoch, (plan, each) in epochs])
    return folder


def damage(path, how):
    """Damage a checkpoint file."""
    content = bytearray(path.read_bytes())
    if how == "flipped":
        with zipfile.ZipFile(path) as archive:
            data = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda info: info.file_size)
        content[data.header_offset + 500] ^= 1
    path.write_bytes(
        {
            "cut": content[:-1024],
            "flipped": content,
            "empty": b"",
            "zeroed": bytes(len(content)),
            "garbage": os.urandom(len(content)),
            "pickle": b"\x80\x04cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        }[how]
    )


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.path)],)
