"""Time an epoch of STD with the teachers' forward passes, and with their outputs from DISTILLATION.CACHE.

Both alternate. The images are scikit-learn's digits at 32 px, in memory. The cheap teachers are the two CIFAR ResNets
of the recipes, the costly one is a ResNet-50 at 224 px; their weights are random, which does not affect the time.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pycls_std import config  # noqa: E402
from pycls_std.builders.cache import build_cache  # noqa: E402
from pycls_std.builders.teachers import optimize_teachers  # noqa: E402
from pycls_std.builders.training import build_all, build_runtime  # noqa: E402
from pycls_std.core.interleaved import interleaved, report  # noqa: E402
from pycls_std.engine import loop  # noqa: E402

TEACHERS = {"cheap": ["resnet32", "resnet56"], "costly": ["resnet50"]}
SIZES = {"cheap": [32, 32], "costly": [224]}


def compare(kind: str, folder: Path, words: list[str], *, rounds: int) -> list[str]:
    """Return the lines of a report on one kind of teachers, cheap or costly."""
    names, sizes = TEACHERS[kind], SIZES[kind]
    words = [
        *("TRAINER=std", "DATA.NAME=digits", "MODEL.NUM_CLASSES=10", "MINE.SAMPLES=0", "DATA.IMAGE_SIZE=32"),
        f"DISTILLATION.TEACHERS={names}",
        f"DISTILLATION.TEACHER_SIZES={sizes}",
        f"DISTILLATION.TEACHER_WEIGHTS={['random.pt'] * len(names)}",
        f"DISTILLATION.CACHE={folder / kind}",
        *words,
    ]
    cfg = config.load(str(ROOT / "configs/std/mixer-nano_c10jpeg_multi.yaml"), words)
    runtime = build_runtime(cfg)
    session, data, weights = build_all(cfg, runtime, fetch=False)
    optimize_teachers(cfg, session, fall_back=False)
    live = session.teacher_outputs
    kept = build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=range(1))

    def epoch(teacher_outputs):
        session.teacher_outputs = teacher_outputs
        runtime.start_epoch(0)
        loop.train_epoch(session, 0)

    epoch(kept)  # writes the cache
    seconds = interleaved({"asked": lambda: epoch(live), "read": lambda: epoch(kept)}, rounds=rounds, warmup=0)
    size = sum(path.stat().st_size for path in (folder / kind).rglob("*.npy")) / data.images
    title = f"{kind}: {cfg.MODEL.NAME} taught by {' + '.join(names)}, {cfg.PRECISION}, {runtime.device_name()}"
    return [title, *report(seconds, amount=session.epoch_images(), unit="images"), f"{size:.0f} bytes a view"]


def main(argv: list[str] | None = None) -> None:
    """Print a report for cheap and for costly teachers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(TEACHERS), choices=TEACHERS)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own number")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="options of the run")
    options = parser.parse_intermixed_args(argv)
    logging.getLogger("pycls_std").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            print("\n".join(compare(kind, Path(folder), options.words, rounds=options.rounds)), flush=True)


if __name__ == "__main__":
    main()
