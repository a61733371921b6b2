"""First checks on a GPU, in parts. Each result is appended to OUT/result.jsonl at once, so none is lost if it stops.

    python tools/gpu/first.py env sync --out out --device cpu --batch 32

first.sh runs the most informative parts first. All models have random weights. KEY=VALUE sets options of the run.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import run_net  # noqa: E402
from pycls_std import config  # noqa: E402
from pycls_std.builders.data import build_info  # noqa: E402
from pycls_std.builders.teachers import optimize_teachers  # noqa: E402
from pycls_std.builders.token_mixing import FORMS, time_forms  # noqa: E402
from pycls_std.builders.training import build_all, build_runtime  # noqa: E402
from pycls_std.core.interleaved import interleaved, report  # noqa: E402
from pycls_std.core.structures import Progress  # noqa: E402
from pycls_std.engine import checkpoint, loop  # noqa: E402
from pycls_std.engine.snapshot import Snapshot  # noqa: E402
from pycls_std.measure.speed import START, Steps, endless, profiled  # noqa: E402
from pycls_std.models.create import create_backbone  # noqa: E402
from pycls_std.models.token_mixing import mixer_blocks  # noqa: E402
from pycls_std.run.record import PACKAGES, commit, version  # noqa: E402

# Options that change the code of a step: MINE in every step, gradient clipping, loss scaling.
STEPS_TO_WATCH = (["MINE.PERIOD=epoch"], ["MINE.PERIOD=step", "OPTIM.CLIP_NORM=1"], ["PRECISION=fp16"])


class Look(NamedTuple):
    """What is tested, and where the results go."""

    out: Path
    scratch: Path  # for temporary files: weights, checkpoints, cached teacher outputs
    cfg: str
    device: str
    batch: int
    rounds: int  # of timing
    modes: list[str]  # values of TRAIN.COMPILE; the others are compared with the first
    words: list[str]

    def say(self, part: str, **values) -> None:
        """Print a result, and append it to result.jsonl."""
        line = json.dumps({"part": part, **values})
        print(line, flush=True)
        with (self.out / "result.jsonl").open("a") as file:
            file.write(line + "\n")

    def options(self, *words: str):
        """Return the options of a run."""
        own = ["MODEL.NUM_CLASSES=0", f"DEVICE={self.device}", f"TRAIN.BATCH_SIZE={self.batch}", *self.words, *words]
        teachers = config.load(self.cfg, own).DISTILLATION.TEACHERS
        files = ["random.pt"] * len(teachers)  # which do not exist
        return config.load(self.cfg, [*own, f"DISTILLATION.TEACHER_WEIGHTS={files}"] if teachers else own)

    def session(self, *words: str) -> loop.Session:
        """Return a training session, ready for its first step."""
        cfg = self.options(*words)
        runtime = build_runtime(cfg)
        session, *_ = build_all(cfg, runtime, fetch=False)
        optimize_teachers(cfg, session, fall_back=False)
        runtime.start_epoch(0)
        session.trainer.student.train()
        return session


def take_steps(session, count: int):
    """Take the first steps of a run; yield the losses and monitors of each."""
    loaded = endless(session)
    for number in range(count):
        progress = Progress(0, number, count, 300)
        batch = session.task.batch(session.runtime.to_device(next(loaded)), progress)
        losses, extra = loop.train_step(session, batch, progress)
        yield losses | extra | session.trainer.monitors


def timed(look: Look, session, way: Callable[[], object], rounds: int = 0) -> dict[str, float]:
    """Return the milliseconds of a call, `ms`, and of these the host's time until it is launched, `host_ms`."""
    rounds, wait = rounds or look.rounds, session.runtime.synchronize
    for _ in range(min(rounds, 5)):
        way()
    wait()
    start = time.perf_counter()
    for _ in range(rounds):
        way()
    host = time.perf_counter() - start
    wait()
    whole = time.perf_counter() - start
    return {"ms": round(1e3 * whole / rounds, 3), "host_ms": round(1e3 * host / rounds, 3)}


# --------------------------------------------------------------------------------------------------------------- parts
def env(look: Look) -> None:
    """Report versions and hardware, and the device's peak throughput, measured by a matrix product."""
    runtime = build_runtime(look.options())
    cudnn = torch.backends.cudnn.version() if runtime.device.type == "cuda" else None
    found = {"commit": commit(), "device": runtime.device_name(), "cpus": os.cpu_count(), "cudnn": cudnn}
    look.say("env", **found, **{name: version(name) for name in PACKAGES})
    side, kind = (8192, torch.bfloat16) if runtime.device.type == "cuda" else (256, torch.float32)
    matrix = torch.randn(side, side, device=runtime.device, dtype=kind)
    taken = min(interleaved({"": lambda: matrix @ matrix}, rounds=10, wait=runtime.synchronize)[""])
    look.say("peak", tflops=round(2 * side**3 / taken / 1e12, 3))


def sync(look: Look) -> None:
    """Report file and line of each device synchronization in a step, including data loading, mixup and cutmix."""
    for words in STEPS_TO_WATCH:
        session, found = look.session("TRAIN.COMPILE=off", *words), []
        cuda = session.runtime.device.type == "cuda"
        steps = take_steps(session, 6)
        for number in range(6):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if cuda and number >= 2:  # the first steps fill caches
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    next(steps)
                finally:
                    if cuda:
                        torch.cuda.set_sync_debug_mode("default")
            waits = [each for each in caught if "called a synchronizing" in str(each.message)]
            found += [f"{Path(each.filename).name}:{each.lineno} {str(each.message)[:60]}" for each in waits]
        look.say("sync", words=words, count=len(found), found=sorted(set(found)))


def views(look: Look) -> None:
    """Report whether augmented images on the device equal those on the CPU."""
    own, other = (look.session("TRAIN.COMPILE=off", *words) for words in ([], ["DEVICE=cpu"]))
    first, second = (next(endless(session)).images.cpu() for session in (own, other))
    apart = (first - second).abs()
    images = (apart.flatten(1).amax(1) > 1e-6).float().mean()
    look.say("views", most=float(apart.max()), pixels=float((apart > 1e-6).float().mean()), images=float(images))


def determinism(look: Look) -> None:
    """Report whether repeated steps are bitwise identical, and the cost; cuBLAS is configured before its first use."""
    ways = {}
    for wanted in (True, False):
        words = [f"TRAIN.COMPILE={look.modes[0]}", f"CUDA.DETERMINISTIC={wanted}"]
        try:
            states = []
            for _ in range(2):
                session = look.session(*words)
                list(take_steps(session, 6))
                states.append({name: value.clone() for name, value in session.trainer.student.state_dict().items()})
        except RuntimeError as error:  # an operation without a deterministic kernel
            look.say("determinism", wanted=wanted, error=str(error)[:300])
            continue
        differ = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
        look.say("determinism", wanted=wanted, differ=len(differ), of=len(states[0]), first=differ[:3])
        ways["deterministic" if wanted else "fastest"] = arithmetic(session, tf32=False, deterministic=wanted)
    compare(look, "determinism", ways)


def arithmetic(session, **switches: bool) -> Callable[[], None]:
    """Return a function that takes ten steps on a fixed batch, after setting these switches of CUDA arithmetic."""
    own = Steps(session, session.task.batch(session.runtime.to_device(next(endless(session))), START))

    def steps():
        session.runtime.set_arithmetic(**switches)
        for _ in range(10):
            own.step()

    return steps


def compare(look: Look, part: str, ways: Mapping[str, Callable[[], object]]) -> None:
    """Time functions alternately, and report how many times as fast as the first each is."""
    seconds = interleaved(ways, rounds=look.rounds, wait=torch.cuda.synchronize if look.device == "cuda" else int)
    look.say(part, turns=report(seconds))


def each_mode(look: Look, part: str, way: Callable[[str], object]) -> None:
    """Call a function with each mode. One that fails is reported, and RuntimeError raised after the others are done."""
    failed = dict[str, Exception]()
    for mode in look.modes:
        try:
            way(mode)
        except Exception as error:  # of a compiler: the next mode may work
            failed[mode] = error
            look.say(part, mode=mode, error=f"{type(error).__name__}: {str(error)[:300]}")
    if failed:
        raise RuntimeError(f"no {part} in {', '.join(failed)}") from list(failed.values())[-1]


def speed(look: Look) -> None:
    """Time the parts of a step, steps in every mode, and steps in fp32 with TF32 and without; profile the steps."""
    try:
        each_mode(look, "speed", partial(speed_in_mode, look))
    finally:
        sessions = {tf32: look.session("TRAIN.COMPILE=off", "PRECISION=fp32") for tf32 in (False, True)}
        ways = {f"TF32 {tf32}": arithmetic(own, tf32=tf32, deterministic=False) for tf32, own in sessions.items()}
        compare(look, "fp32", ways)


def speed_in_mode(look: Look, mode: str) -> None:
    """Time steps in a mode, in the first mode also their parts; report their memory, and profile them."""
    gc.collect()  # of the mode before
    if look.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    own, pair = first_step(look, mode)
    loaded, task, runtime = endless(own.session), own.session.task, own.session.runtime
    if mode == look.modes[0]:
        parts_of_a_step(look, own, pair)
    fed = lambda: own.step(task.batch(runtime.to_device(next(loaded)), START))  # noqa: E731
    for name, way in (("step, batch held", own.step), ("step with data", fed)):
        taken = timed(look, own.session, way, 4 * look.rounds)
        look.say(name, mode=mode, images=round(1e3 * look.batch / taken["ms"]), **taken)
    look.say("memory", mode=mode, peak_gib=runtime.peak_memory())
    profile(look, own, mode)


def first_step(look: Look, mode: str) -> tuple[Steps, Any]:
    """Take the first step on a fixed batch and report its time; return the steps, and the batch as it was loaded."""
    session = look.session(f"TRAIN.COMPILE={mode}")
    pair = next(endless(session))
    own = Steps(session, session.task.batch(session.runtime.to_device(pair), START))
    start = time.perf_counter()
    own.step()
    session.runtime.synchronize()
    look.say("first step", mode=mode, seconds=round(time.perf_counter() - start, 1))
    return own, pair


def mixing(look: Look) -> None:
    """Time a Mixer block, forward and backward, with plain and with fused token mixing, in every mode."""

    def block_in_mode(mode: str) -> None:
        session = look.session(f"TRAIN.COMPILE={mode}")
        block = mixer_blocks(session.trainer.student)[0]
        forms = FORMS if look.device == "cuda" else FORMS[:1]  # fused kernels need CUDA
        seconds = time_forms(block, look.batch, session.runtime, forms=forms, rounds=look.rounds)
        look.say("mixing", mode=mode, turns=report(seconds))

    each_mode(look, "mixing", block_in_mode)


def autotune(look: Look) -> None:
    """Time steps with TRAIN.COMPILE=autotune, whose first step takes minutes; on a CPU, in the first mode."""
    mode = "autotune" if look.device == "cuda" else look.modes[0]
    own, _ = first_step(look, mode)
    look.say("step, batch held", mode=mode, **timed(look, own.session, own.step, 4 * look.rounds))


def parts_of_a_step(look: Look, own: Steps, pair) -> None:
    """Time the parts of a step and of the end of an epoch, and an evaluation."""
    session, block = own.session, getattr(own.session.train_loader, "block", 1)
    runtime, trainer, loaded, ema = session.runtime, session.trainer, endless(session), session.ema
    taken = timed(look, session, lambda: [next(loaded) for _ in range(block)])
    look.say("data of a batch", block=block, **{name: value / block for name, value in taken.items()})
    ways: dict[str, Callable[[], object]] = {
        "mixing": lambda: session.task.batch(runtime.to_device(pair), START),
        "teachers": own.teach,
        "student forward": own.forward,
        "optimizer": session.optimizer.step,
    }
    ways |= {"average": lambda: ema.update(trainer.student, step=5)} if ema else {}
    for name, way in ways.items():
        look.say(name, **timed(look, session, way))
    ways = {
        "evaluation": lambda: loop.evaluate(trainer.student, session.task, session.test_loader, runtime),
        "check of the state": lambda: checkpoint.refuse_not_finite(session.state_dict(), ""),
        "copy of the state": lambda: Snapshot(session.state_dict()).values(),
        "checkpoint": lambda: checkpoint.save(session.state_dict(), look.scratch / "state.pt"),
    }
    for name, way in ways.items():
        look.say(name, **timed(look, session, way, 2))
    trainer.student.train()


def profile(look: Look, own: Steps, mode: str) -> None:
    """Report the slowest kernels of a step, in descending order of time; on a CPU the slowest operations."""
    times, launches = profiled(own)
    kernels = [[round(taken / 1e3, 3), launches[name], name[:90]] for name, taken in list(times.items())[:12]]
    look.say("profile", mode=mode, ms=round(sum(times.values()) / 1e3, 3), top=kernels)


def steps(look: Look) -> None:
    """Compare the losses in every mode, such as of compiled steps and CUDA graphs, with those in the first mode."""
    eager: list[dict[str, float]] = []

    def losses_in_mode(mode: str) -> None:
        start = time.perf_counter()
        taken = take_steps(look.session(f"TRAIN.COMPILE={mode}"), 6)
        own = [{name: float(value.detach().mean()) for name, value in found.items()} for found in taken]
        pairs = list(zip(eager or own, own, strict=True))
        eager.extend([] if eager else own)
        apart = max(abs(first[name] - second[name]) for first, second in pairs for name in first)
        look.say("steps", mode=mode, seconds=round(time.perf_counter() - start, 1), apart=apart, last=own[-1])

    each_mode(look, "steps", losses_in_mode)


def called(look: Look, folder: str, *words: str, mode: str = "train") -> dict:
    """Run run_net.py in a folder of this name; return run.json with the values of the last epoch, {} in other modes.

    In mode train, run.json and metrics.jsonl are copied to OUT.
    Raises RuntimeError if it fails.
    """
    cfg, weights = look.options(), []
    classes = len(build_info(cfg).classes)
    for index, name in enumerate(cfg.DISTILLATION.TEACHERS):
        weights.append(str(look.scratch / f"teacher{index}.pt"))
        if not Path(weights[-1]).exists():
            model = create_backbone(name, num_classes=classes, image_size=cfg.DATA.IMAGE_SIZE)
            torch.save(model.state_dict(), weights[-1])
    own = [f"DEVICE={look.device}", f"TRAIN.BATCH_SIZE={look.batch}", "MODEL.NUM_CLASSES=0", *look.words]
    own += [f"OUT_DIR={look.scratch / folder}", "OPTIM.WARMUP_EPOCHS=1"]
    own += [f"DISTILLATION.TEACHER_WEIGHTS={weights}", "DISTILLATION.TEACHER_MIN_ACC=0"] if weights else []
    code = run_net.main(["--traceback", "--mode", mode, "--cfg", look.cfg, *own, *words])
    if code:
        raise RuntimeError(f"run_net.py --mode {mode} ended with {code}")
    if mode != "train":
        return {}
    kept = look.out / folder
    kept.mkdir(exist_ok=True)
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(look.scratch / folder / name, kept)
    last = (kept / "metrics.jsonl").read_text().splitlines()[-1]
    return json.loads((kept / "run.json").read_text()) | json.loads(last)


def run(look: Look) -> None:
    """Train for three epochs with run_net.py, and report its record."""
    record = called(look, "run", "OPTIM.MAX_EPOCH=3", f"TRAIN.COMPILE={look.modes[-1]}")
    known = ("status", "epochs_done", "best", "images_per_second", "peak_memory_gib", "hours", "run/epoch_seconds")
    look.say("run", **{name: record[name] for name in known})


def resume(look: Look) -> None:
    """Train for an epoch with held-out images, writing the teacher cache; resume; train from the cache; check."""
    own = ["DATA.VAL_FRACTION=0.2", "OPTIM.SCHEDULE=constant", "TRAIN.COMPILE=off"]
    teachers = look.options().DISTILLATION.TEACHERS
    own += [f"DISTILLATION.CACHE={look.scratch / 'cache'}"] if teachers else []
    done = [called(look, "resumed", *own, f"OPTIM.MAX_EPOCH={epochs}")["epochs_done"] for epochs in (1, 2)]
    if teachers:  # reads all from the cache
        done.append(called(look, "again", *own, "OPTIM.MAX_EPOCH=2")["epochs_done"])
    called(look, "checked", *own, "OPTIM.MAX_EPOCH=2", mode="check")
    look.say("resume", epochs_done=done)


PARTS = {part.__name__: part for part in (env, sync, views, determinism, speed, steps, run, resume, mixing, autotune)}


def main(argv: list[str] | None = None) -> int:
    """Run parts; return how many failed. The tracebacks are in OUT/error-PART.txt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="PART | KEY=VALUE", help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results")
    parser.add_argument("--cfg", default=str(ROOT / "configs/std/mixer-s4_c100_multi.yaml"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--batch", type=int, default=1024, help="images")
    parser.add_argument("--rounds", type=int, default=10, help="of what is timed")
    parser.add_argument("--modes", nargs="+", default=["off"], help="of TRAIN.COMPILE, the first to compare with")
    options = parser.parse_intermixed_args(argv)
    parts = [word for word in options.words if "=" not in word]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}")
    options.out.mkdir(exist_ok=True, parents=True)
    words = [word for word in options.words if "=" in word]
    with tempfile.TemporaryDirectory() as scratch:
        return carried_out(parts, Look(**vars(options) | {"words": words}, scratch=Path(scratch)))


def carried_out(parts: list[str], look: Look) -> int:
    """Run parts; return how many failed."""
    failed = 0
    for part in parts:
        start = time.perf_counter()
        try:
            PARTS[part](look)
        except Exception as error:  # it is reported, and the next part runs
            failed += 1
            look.say(part, error=f"{type(error).__name__}: {str(error)[:300]}")
            (look.out / f"error-{part}.txt").write_text(traceback.format_exc())
        look.say(f"{part} took", seconds=round(time.perf_counter() - start, 1))
    return failed


if __name__ == "__main__":
    sys.exit(main())
