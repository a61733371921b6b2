"""Time a training step of an orthogonal projection for each map to its weight, and its error of orthogonality.

A step computes the weight once, projects a batch and takes an AdamW step, with weight decay. Steps of all maps
alternate, until a map has taken --steps or --seconds, so a slow one takes few steps. Ratios are within a round, to the
map that `auto` selects. The error is the largest entry of |P^T P - I| after the last step.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import smooth_l1_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std.core.interleaved import spread  # noqa: E402
from pycls_std.engine.runtime import Runtime  # noqa: E402
from pycls_std.layers.orthogonal import AUTO, MAPS, OrthogonalLinear  # noqa: E402

SIZES = ["192x3024", "384x3024", "256x256", "48x64"]  # DeiT-Ti and -S to RegNetY-160, ViDT, a size for tests


class Training:
    """A projection that fits a batch of random targets; learning rate and weight decay of AdamW are VkD's."""

    def __init__(self, kind: str, inputs: int, outputs: int, batch: int, runtime: Runtime):
        torch.manual_seed(0)
        self.projection = runtime.place(OrthogonalLinear(inputs, outputs, kind=kind))
        pair = torch.randn(batch, inputs), torch.randn(batch, outputs)
        self.features, self.targets = (runtime.to_device(each) for each in pair)
        self.optimizer = torch.optim.AdamW(self.projection.parameters(), lr=5e-4, weight_decay=0.05)
        self.wait = runtime.synchronize
        self.seconds: list[float] = []

    def step(self) -> None:
        """Take a training step, and record its time."""
        self.wait()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        smooth_l1_loss(self.projection(self.features), self.targets).backward()
        self.optimizer.step()
        self.wait()
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def error(self) -> float:
        """Return the largest entry of |P^T P - I|, or of |P P^T - I| if that is smaller in size."""
        weight = self.projection.weight()
        weight = weight.T if weight.shape[0] < weight.shape[1] else weight
        return float((weight.T @ weight - torch.eye(weight.shape[1], device=weight.device)).abs().max())


def compare(size: str, options, runtime: Runtime) -> list[str]:
    """Return the rows of the table for a size, INPUTSxOUTPUTS of the projection."""
    inputs, outputs = map(int, size.split("x"))
    runs = {kind: Training(kind, inputs, outputs, options.batch, runtime) for kind in options.maps}
    for _ in range(options.steps):
        for run in runs.values():
            if not run.seconds or sum(run.seconds) < options.seconds:
                run.step()
    base, rows = runs[AUTO].seconds, []
    for kind, run in runs.items():  # the first step is a warm-up, except for a map that took no other
        ratios = [own / first for own, first in zip(run.seconds[1:], base[1:], strict=False)]
        ratios = ratios or [run.seconds[0] / median(base)]
        times = f"{1e3 * median(run.seconds[1:] or run.seconds):.1f}"
        rows.append(f"| {size} | {kind} | {times} | {spread(ratios)} | {len(run.seconds)} | {run.error():.1e} |")
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="INPUTSxOUTPUTS")
    parser.add_argument("--maps", nargs="+", default=list(MAPS), choices=list(MAPS), metavar="MAP")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="after which a map takes no further step of a size")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own number")
    options = parser.parse_args(argv)
    options.maps = list(dict.fromkeys([*options.maps, AUTO]))
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime = Runtime()
    runtime.set_arithmetic(tf32=False, deterministic=False)  # as in a run; torch's default is TF32 in convolutions
    print(f"{runtime.device_name()}, fp32, torch {torch.__version__}, {options.batch} images a step; auto is {AUTO}.\n")
    print("| inputs x outputs | map | step, ms | times `auto` | steps | error after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in options.sizes:
        print(*compare(size, options, runtime), sep="\n", flush=True)


if __name__ == "__main__":
    main()
