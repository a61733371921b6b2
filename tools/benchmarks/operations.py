"""Count on a CPU what a GPU would execute: operations, host-to-device copies, synchronizations; a Markdown table.

An operation is at least one kernel on a GPU; views and allocations are not counted. The first row of each group is what
a run does on a GPU; the others have other options, or do the same in another way. Models have random weights and few
channels, pixels and images, which does not change the counts: MODEL.ARGS.embed_dim=512 DATA.IMAGE_SIZE=32 gives the
same, slowly. KEY=VALUE sets options of the run: STD on Mixer-S/4 with MINE and two teachers, eager, in bf16.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pycls_std import config  # noqa: E402
from pycls_std.builders.data import Data, build_data  # noqa: E402
from pycls_std.builders.models import find_pretrained  # noqa: E402
from pycls_std.builders.teachers import optimize_teachers  # noqa: E402
from pycls_std.builders.training import assemble  # noqa: E402
from pycls_std.core.meters import Meters  # noqa: E402
from pycls_std.core.structures import Progress  # noqa: E402
from pycls_std.datasets.loader import batch_at_test  # noqa: E402
from pycls_std.datasets.memory.views import MemoryLoader, batches_at_once  # noqa: E402
from pycls_std.engine import loop  # noqa: E402
from pycls_std.engine.checkpoint import refuse_not_finite, tensors  # noqa: E402
from pycls_std.engine.optim import fused  # noqa: E402
from pycls_std.engine.runtime import LAG, Runtime  # noqa: E402
from pycls_std.measure.operations import Operations  # noqa: E402

CONFIG = str(ROOT / "configs/std/mixer-s4_c100_multi.yaml")
DIGITS = ["DATA.NAME=digits", "DATA.PER_CLASS=4", "DATA.LOADER=memory", "MODEL.NUM_CLASSES=0", "MINE.SAMPLES=2"]
SMALL = ["MODEL.ARGS.embed_dim=16", "DATA.IMAGE_SIZE=8", "TRAIN.BATCH_SIZE=4"]
STEPS = 3  # only the last is counted: the first creates the optimizers' state
EVERY = "MINE.PERIOD=step"  # a MINE step in every training step, otherwise only in the last one of an epoch
MINE_FP16 = [EVERY, "PRECISION=fp16"]
SIZE, BATCH, TESTED = 32, 128, 10_000  # side and batch size for augmentation, number of test images, as for CIFAR

Row = tuple[str, str, Operations]  # what is counted, the variant, the counts


@cache
def images_of(size: int, batch: int) -> Data:
    """Return the data. size: side of an image in pixels."""
    return build_data(config.load(CONFIG, [*DIGITS, f"DATA.IMAGE_SIZE={size}", f"TRAIN.BATCH_SIZE={batch}"]))


def session_of(words: list[str], *, lag: int = LAG, fuse: bool = True) -> loop.Session:
    """Return a training session, with optimizers and matrix products as on a GPU.

    lag: number of steps after which the losses of a step are read. fuse: whether MINE's optimizers are fused.
    """
    own = [*DIGITS, *SMALL, *words]
    teachers = len(config.load(CONFIG, own).DISTILLATION.TEACHERS)
    cfg = config.load(CONFIG, [*own, f"DISTILLATION.TEACHER_WEIGHTS={['random.pt'] * teachers}"])
    runtime = Runtime(device="cpu", precision=cfg.PRECISION, seed=cfg.SEED, lag=lag)
    weights = find_pretrained(cfg, fetch=False)
    session = assemble(cfg, data=images_of(cfg.DATA.IMAGE_SIZE, cfg.TRAIN.BATCH_SIZE), runtime=runtime, weights=weights)
    optimize_teachers(cfg, session, loader=[next(iter(session.train_loader))], fall_back=False)
    runtime.wide_products = runtime.wide_attention = False  # only on CPUs
    for term in session.trainer.auxiliary_terms() if fuse else []:
        term.optimizers = [fused(optimizer) for optimizer in term.optimizers]
    runtime.start_epoch(0)
    session.trainer.student.train()
    return session


def last_step(session: loop.Session) -> Operations:
    """Take training steps as in an epoch; return the counts of the last one, from mixup and cutmix to mean losses."""
    batches, meters = iter(session.train_loader), Meters()
    for iteration in range(STEPS):
        loaded, progress = next(batches), Progress(0, iteration, 2 * STEPS, 300)
        with Operations() as seen:
            batch = session.task.batch(session.runtime.to_device(loaded), progress)
            losses, extra = loop.train_step(session, batch, progress)
            meters.add(losses | session.trainer.monitors, len(loaded.index))
            meters.add(extra)
    return seen


def steps(words: list[str]) -> Iterator[Row]:
    """Count training steps."""
    yield "step", "", last_step(session_of(words))
    yield "step", "asked at once whether it is finite", last_step(session_of(words, lag=0))
    for own in ([EVERY], [EVERY, "OPTIM.CLIP_NORM=1"], [EVERY, "PRECISION=fp32"], MINE_FP16):
        yield "step", " ".join(own), last_step(session_of([*words, *own]))
    yield "step", "the same, MINE's optimizers not fused", last_step(session_of([*words, *MINE_FP16], fuse=False))


def counted(way: Callable[[], object]) -> Operations:
    """Return the counts of a call."""
    with Operations() as seen:
        way()
    return seen


def check(words: list[str]) -> Iterator[Row]:
    """Count the check at the end of an epoch that the training state is finite."""
    session = session_of([*words, EVERY])
    last_step(session)
    state = session.state_dict()
    found = tensors(state)

    def one_by_one() -> None:
        assert torch.stack([value.isfinite().all() for value in found.values()]).all()

    what = f"check of a state of {len(found)} tensors"
    yield what, "those of a type together", counted(lambda: refuse_not_finite(state, ""))
    yield what, "one by one", counted(one_by_one)


def augmentation(images: int) -> Iterator[Row]:
    """Count the augmentation of training images in blocks, with RandAugment and erasing."""
    views = images_of(SIZE, 4).training.dataset
    for kind in ("cuda", "cpu"):
        loader = MemoryLoader(views, [divmod(number, len(views)) for number in range(images)], batch_size=BATCH)
        loader.block = batches_at_once(kind, BATCH, size=SIZE)
        seen = counted(lambda: list(loader))  # noqa: B023
        yield f"{images} augmented images", f"blocks of {loader.block * BATCH}, as on {kind}", seen


def evaluation(words: list[str]) -> Iterator[Row]:
    """Count an evaluation."""
    session = session_of(words)
    loaded, model = next(iter(session.train_loader)), session.trainer.student
    for kind in ("cuda", "cpu"):
        batches = -(-TESTED // batch_at_test(torch.device(kind), size=0, image_size=SIZE))
        seen = counted(lambda: loop.evaluate(model, session.task, [loaded] * batches, session.runtime))  # noqa: B023
        yield f"evaluation of {TESTED} images", f"{batches} batches, as on {kind}", seen


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="that are augmented")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(argv)
    logging.getLogger("pycls_std").setLevel(logging.WARNING)
    words = options.words
    print("| what | way | operations | copies | waits |\n| --- | --- | --- | --- | --- |")
    for rows in (steps(words), check(words), augmentation(options.images), evaluation(words)):
        for what, way, seen in rows:
            print(f"| {what} | {way} | {seen.operations.total()} | {seen.copies} | {len(seen.waits)} |", flush=True)


if __name__ == "__main__":
    main()
