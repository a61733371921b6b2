"""Time a training step of several configs alternately, so that noise affects all alike: a Markdown table.

The default is the small detector on BCCD, without a teacher and distilled by VkD and token matching. Each repeats steps
on its first batch; teachers whose weights are not available have random ones, which does not affect the time. KEY=VALUE
sets options of all configs.
"""

import argparse
import logging
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std import config  # noqa: E402
from pycls_std.core.interleaved import interleaved, spread  # noqa: E402
from pycls_std.core.structures import Padded  # noqa: E402
from pycls_std.measure.speed import first_steps  # noqa: E402

CONFIGS = [f"configs/vidt/swin-micro_bccd_{row}.yaml" for row in ("base", "vkd", "tm")]


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("words", nargs="*", metavar="CONFIG or KEY=VALUE")
    options = parser.parse_intermixed_args(argv)
    logging.getLogger("pycls_std").setLevel(logging.WARNING)
    changes = [word for word in options.words if "=" in word]
    paths = [word for word in options.words if "=" not in word] or CONFIGS
    rows = {path: first_steps(config.load(path, changes)) for path in paths}
    runtime = next(iter(rows.values())).session.runtime
    ways = {name: steps.step for name, steps in rows.items()}
    seconds = interleaved(ways, rounds=options.rounds, wait=runtime.synchronize)
    first = next(iter(seconds.values()))
    about = f"{runtime.precision}, torch {torch.__version__}, {options.rounds} rounds, medians"
    print(f"{runtime.device_name()}, {about}.\n")
    print("| config | images, padded to | step, ms | times the first |\n| --- | --- | --- | --- |")
    for name, steps in rows.items():
        images = steps.held.images
        count, _, height, width = (images.pixels if isinstance(images, Padded) else images).shape
        ratios = [own / base for own, base in zip(seconds[name], first, strict=True)]
        print(
            f"| {name} | {count}, {height}x{width} | {1e3 * median(seconds[name]):.0f} | {spread(ratios)} |", flush=True
        )


if __name__ == "__main__":
    main()
