"""Tools beside the runner: the importer of published checkpoints, and the SLURM script."""

import argparse
import operator
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from processes import ROOT, called, wait_for
from records import Malice, damage

from pycls_std.builders import weights
from pycls_std.models.create import create_backbone


def import_weights(*words):
    """Call the tool; returns exit code, output, errors."""
    return called("tools/import_weights.py", *words)


@pytest.mark.fault(8)
def test_weights_are_taken_out_of_a_checkpoint_that_holds_more(tmp_path):
    """A training script's checkpoint: weights beside its options, as a class, and beside what would run."""
    state = create_backbone("resnet8", num_classes=10, image_size=32).state_dict()
    state["half"] = torch.arange(6).bfloat16().view(2, 3).T
    content = {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "evil": Malice(tmp_path / "marker"),
    }
    source, target = tmp_path / "published.pth", tmp_path / "plain.pt"
    torch.save(content, source)
    with pytest.raises(ValueError, match="holds more than weights"):
        weights.find_weights("resnet8", str(source))
    code, output, errors = import_weights(source, target)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{target}: {len(state)} tensors, {sum(v.numel() for v in state.values())} values\n")
    dropped = output.splitlines()[1]
    assert dropped.startswith("dropped, without running it: ")
    assert "argparse.Namespace" in dropped and "commands.call" in dropped  # the name of subprocess in pickles
    assert not (tmp_path / "marker").exists()
    found = weights.find_weights("resnet8", str(target)).state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    torch.load(source, weights_only=False)
    assert (tmp_path / "marker").exists(), "the file was harmless"


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return operator.call, (self.function,)


class Script(torch.nn.Module):
    """Writes into a file when it is loaded as TorchScript."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = bool(torch.from_file(state[0], True, 8).fill_(1.0).any())


@pytest.mark.fault(8)
@pytest.mark.parametrize("kind", ["script", "legacy", "blocked"])
def test_files_that_would_run_code_do_not(tmp_path, kind):
    """TorchScript and the old format are refused; a call of what torch itself would block is dropped."""
    marker, source = tmp_path / "marker", tmp_path / "evil.pth"
    if kind == "script":
        torch.jit.script(Script(str(marker))).save(source)
        marker.unlink(missing_ok=True)
    elif kind == "legacy":
        torch.save({"model": Malice(marker)}, source, _use_new_zipfile_serialization=False)
    else:
        torch.save({"model": {"a": torch.ones(1)}, "x": Call(marker.touch)}, source)
    code, output, errors = import_weights(source, tmp_path / "x.pt")
    assert (code, output) == (1, "") if kind != "blocked" else code == 0
    assert not marker.exists()
    torch.jit.load(source) if kind == "script" else torch.load(source, weights_only=False)
    assert marker.exists(), "the file was harmless"


@pytest.mark.fault(6)
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "garbage", "pipe"])
def test_a_damaged_file_does_not_become_a_valid_one(tmp_path, how):
    """The file that it writes has checksums of its own, of whatever was read."""
    source, target = tmp_path / "published.pth", tmp_path / "plain.pt"
    if how == "pipe":
        os.mkfifo(source)
    else:
        torch.save({"model": create_backbone("resnet8", num_classes=10, image_size=32).state_dict()}, source)
        damage(source, how)
    code, output, errors = import_weights(source, target)
    assert (code, output, target.exists()) == (1, "", False)
    assert errors.startswith("import_weights.py: ") and str(source) in errors
    assert len(errors.splitlines()) == 1


def test_weights_of_a_kind_that_cannot_be_kept(tmp_path):
    torch.save({"a": torch.ones(1), "b": argparse.Namespace(x=1)}, tmp_path / "mixed.pth")
    code, _, errors = import_weights(tmp_path / "mixed.pth", tmp_path / "x.pt")
    assert code == 1
    assert "mixed.pth: b among the weights is of a kind that cannot be kept: ['argparse.Namespace']" in errors


def test_which_weights(tmp_path):
    state = {"a": torch.ones(2)}
    torch.save({"first": state, "second": {"a": torch.zeros(2)}, "epoch": 3}, tmp_path / "two.pth")
    code, _, errors = import_weights(tmp_path / "two.pth", tmp_path / "x.pt")
    assert code == 1
    assert errors.endswith("two.pth has weights under ['first', 'second']: choose with --key\n")
    assert import_weights(tmp_path / "two.pth", tmp_path / "x.pt", "--key", "second")[0] == 0
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["a"], torch.zeros(2))
    code, _, errors = import_weights(tmp_path / "two.pth", tmp_path / "x.pt", "--key=first")
    assert (code, errors) == (1, f"import_weights.py: {tmp_path / 'x.pt'} is there already\n")
    code, _, errors = import_weights(tmp_path / "two.pth", tmp_path / "y.pt", "--key=none")
    assert "has no weights under 'none'; it has some under ['first', 'second']" in errors
    torch.save(state, tmp_path / "plain.pth")
    assert import_weights(tmp_path / "plain.pth", tmp_path / "z.pt")[0] == 0


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_files_without_weights(tmp_path, content):
    source = tmp_path / "x.pth"
    torch.save({"epoch": 3}, source) if content is None else source.write_bytes(content)
    code, output, errors = import_weights(source, tmp_path / "y.pt")
    assert (code, output) == (1, "")
    assert errors.startswith("import_weights.py: ") and len(errors.splitlines()) == 1
    assert str(source) in errors
    assert not (tmp_path / "y.pt").exists()


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for SLURM's commands, which note how they were called; a torchrun that runs until it is stopped."""
    stand_ins = {
        "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "node1\\nnode2\\n"; true',
        "scancel": 'echo "scancel $*" >> calls; kill -TERM $(cat task)',
        "srun": 'echo "srun -c $SRUN_CPUS_PER_TASK $*" >> calls; exec "$@"',
        "torchrun": 'trap "exit 143" TERM; echo $$ > task; while [ ! -e done ]; do sleep 0.05; done; exit $(cat done)',
    }
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f"PATH={tmp_path}/.venv/bin:$PATH\n")
    for name, text in stand_ins.items():
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "77"}
    slurm |= {"SLURM_CPUS_PER_TASK": "32"}
    command = ["bash", str(ROOT / "tools" / "slurm.sh"), "configs/x.yaml", "SEED=1"]
    return lambda: subprocess.Popen(command, cwd=tmp_path, env=os.environ | slurm)


CALLS = [
    "scontrol show hostnames node[1-2]",
    "srun -c 32 torchrun --nnodes=2 --nproc_per_node=4 --max-restarts=3 --rdzv_backend=c10d --rdzv_id=77 "
    "--rdzv_endpoint=node1:20077 run_net.py --mode train --cfg configs/x.yaml SEED=1",
]


@pytest.mark.parametrize("code", [0, 1])
def test_slurm_job_that_ends_by_itself_is_not_queued_again(cluster, tmp_path, code):
    job = cluster()
    (tmp_path / "done").write_text(str(code))
    assert job.wait(20) == code
    assert (tmp_path / "calls").read_text().splitlines() == CALLS


def test_slurm_job_whose_time_is_up_is_queued_again(cluster, tmp_path):
    job = cluster()
    wait_for(lambda: (tmp_path / "task").exists() and (tmp_path / "task").read_text())
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143
    assert (tmp_path / "calls").read_text().splitlines() == [*CALLS, "scancel --signal=TERM 77", "scontrol requeue 77"]
