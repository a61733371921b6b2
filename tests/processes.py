"""Runs in processes of their own, which tests stop, kill and starve; started from a server that has torch loaded.

What need not be stopped is called in this process.
"""

import contextlib
import gc
import importlib.util
import io
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["run_net", "pycls_std.runner", "sklearn.datasets", "sklearn.model_selection"])
PATIENCE = 120  # seconds that nothing may take
STARTED = []


class Running:
    """A command under way; `words` as on the command line of run_net.py.

    hook: "module:function", called with *arguments before the command. env: variables set for it.
    """

    def __init__(self, folder: Path, words, hook="", arguments=(), env=()):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"process{len(list(folder.glob('*.out')))}"
        self.files = [folder / f"{name}.{kind}" for kind in ("out", "err")]
        self.process = CONTEXT.Process(
            target=_main, args=([str(word) for word in words], self.files, hook, arguments, dict(env))
        )
        serve()
        self.process.start()
        self.pid = self.process.pid
        STARTED.append(self)

    def signal(self, number):
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def end(self, patience=PATIENCE) -> tuple[int, str, str]:
        """Return exit code, output and errors; fail if it takes too long."""
        self.process.join(patience)
        if self.process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {patience} s: {self.files[1].read_text()}")
        return self.process.exitcode, *(file.read_text() for file in self.files)


def serve():
    """Start the server, on the CPU and with one thread, unless there is one; who starts it decides what it loads."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= before


def two_ranks(folder: Path, words, *, second=(), **options) -> list[Running]:
    """Start a command in two processes that share its batches, as torchrun would. second: more words of the second."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(2)]
    own = [list(words), [*words, *second]]
    pairs = zip(own, ranks, strict=True)
    return [Running(folder / f"rank{env['RANK']}", each, env=env, **options) for each, env in pairs]


def finish(*running: Running, patience=PATIENCE) -> list[str]:
    """Return what processes print until they end; fail if one ends badly or complains."""
    ends = [one.end(patience) for one in running]
    assert [(code, errors) for code, _, errors in ends] == [(0, "")] * len(ends), ends
    return [output for _, output, _ in ends]


def paused(folder: Path, words, epoch, iteration, seconds=3600.0) -> Running:
    """Start a command and return it as soon as it sleeps before a step, as `pause` says."""
    (folder / "paused").unlink(missing_ok=True)
    own = {"hook": "processes:pause", "arguments": (str(folder), epoch, iteration, seconds)}
    running = Running(folder, words, **own)
    wait_for((folder / "paused").exists)
    return running


def killed(folder: Path, words, epoch, iteration) -> str:
    """Start a command, kill it before a step, counted from 0, and return what it printed."""
    running = paused(folder, words, epoch, iteration)
    running.signal(signal.SIGKILL)
    code, output, _ = running.end()
    assert code == -signal.SIGKILL
    return output


def _main(words, files, hook, arguments, env):
    os.setsid()  # so that a test can signal it with its children, as a terminal does
    gc.freeze()  # what the server has loaded stays shared with it
    os.environ |= env
    for target, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), target)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as without a server
    logging.getLogger().handlers.clear()
    import run_net

    if hook:
        module, _, function = hook.partition(":")
        getattr(importlib.import_module(module), function)(*arguments)
    sys.exit(run_net.main(words))


def called(tool: str, *words) -> tuple[int, str, str]:
    """Call the main of a tool, such as tools/make_table.py, in this process, as from the project's folder.

    Returns exit code, output and errors.
    """
    spec = importlib.util.spec_from_file_location(Path(tool).stem, ROOT / tool)
    module = importlib.util.module_from_spec(spec)
    path, output, errors = list(sys.path), io.StringIO(), io.StringIO()
    log = logging.getLogger("pycls_std")
    level = log.level  # which a benchmark changes
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), contextlib.chdir(ROOT):
        try:
            spec.loader.exec_module(module)
            code = module.main([str(word) for word in words])
        except SystemExit as usage:
            code = usage.code
        finally:
            sys.path[:] = path
            log.setLevel(level)
    return code or 0, output.getvalue(), errors.getvalue()


def group(pid) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(process_group) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition, patience=PATIENCE):
    """Wait until a condition holds; return what it returned."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return value


def end_all():
    """Kill what a test left running, or pytest would wait for it."""
    while STARTED:
        running = STARTED.pop()
        for pid in group(running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.process.join()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# ------------------------------------------------------------------------------- hooks, called in the started process
def pause(folder, epoch, iteration, seconds=3600.0):
    """Touch folder/paused and sleep before a step, counted from 0; after it, every step is noted in folder/steps."""
    from pycls_std.engine import loop

    step, folder = loop.train_step, Path(folder)

    def train_step(session, batch, progress):
        if (progress.epoch, progress.iteration) >= (epoch, iteration):
            with (folder / "steps").open("a") as file:
                file.write(f"{progress.epoch} {progress.iteration}\n")
            (folder / "paused").touch()
            time.sleep(seconds)
        return step(session, batch, progress)

    loop.train_step = train_step


def take_place(folder, output):
    """Work in a folder, and print into a file there."""
    os.chdir(folder)
    for target in (1, 2):
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), target)


def limit_file_size(limit):
    """Let no file grow beyond a number of bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def refuse_network():
    """Let every connection fail, and every look-up of a name."""

    def refuse(*args, **options):
        raise OSError("no network")

    socket.socket.connect = refuse
    socket.getaddrinfo = refuse
