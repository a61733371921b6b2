"""Cost of a training step by batch size, width, image size, number of teachers and of taps: a Markdown table.

STD on a Mixer with 8 blocks and 4 px patches, in bf16 unless KEY=VALUE sets another precision. Each row changes one
setting of the first; steps of all rows alternate. Memory is that of the training state, and of the tensors saved for
the backward pass.
"""

import argparse
import logging
import sys
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pycls_std import config  # noqa: E402
from pycls_std.core.interleaved import interleaved  # noqa: E402
from pycls_std.measure.speed import Steps, first_steps, memory  # noqa: E402

BASE = [
    *("TRAINER=std", "DATA.NAME=digits", "DATA.LOADER=memory", "MODEL.NUM_CLASSES=10", "MODEL.NAME=mixer_s4"),
    *("DATA.IMAGE_SIZE=32", "MINE.SAMPLES=0", "TRAIN.BATCH_SIZE=64", "STD.PROPAGATE=false"),
]


def width(channels: int) -> list[str]:
    """Return the options of a Mixer with this number of channels."""
    return [f"MODEL.ARGS.embed_dim={channels}"]


def teachers(*names: str) -> list[str]:
    """Return the options for teachers of these names with random weights."""
    return [f"DISTILLATION.TEACHERS={list(names)}", f"DISTILLATION.TEACHER_WEIGHTS={['random.pt'] * len(names)}"]


ONE = teachers("resnet20")
ROWS = {
    "batch 64, width 128, 32 px, 1 teacher, 1 tap": [*width(128), *ONE],
    "batch 32": [*width(128), *ONE, "TRAIN.BATCH_SIZE=32"],
    "batch 128": [*width(128), *ONE, "TRAIN.BATCH_SIZE=128"],
    "width 256": [*width(256), *ONE],
    "width 512": [*width(512), *ONE],
    "16 px": [*width(128), *ONE, "DATA.IMAGE_SIZE=16"],
    "64 px": [*width(128), *ONE, "DATA.IMAGE_SIZE=64"],
    "no teacher": [*width(128), "TRAINER=baseline", "DISTILLATION.TEACHERS=[]", "DISTILLATION.TEACHER_WEIGHTS=[]"],
    "2 teachers": [*width(128), *teachers("resnet20", "resnet20")],
    "4 teachers": [*width(128), *teachers(*["resnet20"] * 4)],
    "2 taps": [*width(128), *ONE, "STD.TAPS=[2/3, last]"],
    "4 taps": [*width(128), *ONE, "STD.TAPS=[1, 3, 5, 7]"],
}


def prepare(words: list[str]) -> Steps:
    """Return the training steps of a row, on its first batch."""
    return first_steps(config.load(str(ROOT / "configs/mixer/mixer-s4_c100_base.yaml"), [*BASE, *words]))


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first so many")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(argv)
    logging.getLogger("pycls_std").setLevel(logging.WARNING)
    rows = {name: prepare([*words, *options.words]) for name, words in list(ROWS.items())[: options.rows]}
    runtime = next(iter(rows.values())).session.runtime
    ways = {name: steps.step for name, steps in rows.items()}
    seconds = interleaved(ways, rounds=options.rounds, wait=runtime.synchronize)
    first = median(next(iter(seconds.values())))
    print(
        f"{runtime.device_name()}, {runtime.precision}, torch {torch.__version__}, {options.rounds} rounds, medians.\n"
    )
    print(
        "| what | step, ms | times the first | state, MiB | kept for backward, MiB |\n| --- | --- | --- | --- | --- |"
    )
    for name, steps in rows.items():
        state, kept = (size / 2**20 for size in memory(steps))
        own = median(seconds[name])
        print(f"| {name} | {1e3 * own:.0f} | {own / first:.2f} | {state:.1f} | {kept:.1f} |")


if __name__ == "__main__":
    main()
