"""Time CycleMLP's cycle layer, forward and backward, by slices of channels and by deformable convolution.

Both alternate, on one batch of random feature maps for each size. Ratios are within a round, median and range.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std.core.interleaved import interleaved, spread  # noqa: E402
from pycls_std.engine.runtime import Runtime  # noqa: E402
from pycls_std.models.cyclemlp import WIDTH, CycleLinear  # noqa: E402

SIZES = ["56x64", "28x128", "14x320", "7x512"]  # the stages of B1 to B4 at 224 px


def deformable(layer: CycleLinear, x: Tensor) -> Tensor:
    """Return the output of the layer for (B, H, W, C), computed by torchvision's deform_conv2d."""
    channels = x.shape[3]
    offsets = torch.zeros(channels, 2, device=x.device)
    offsets[:, 1] = (torch.arange(channels, device=x.device) + 1) % 3 - 1
    offsets = offsets.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[1:3])
    return deform_conv2d(x.permute(0, 3, 1, 2), offsets, layer.weight[:, :, None, None], layer.bias).permute(0, 2, 3, 1)


def compare(size: str, options, runtime: Runtime) -> str:
    """Return the row of the table for a size, SIDExCHANNELS of a feature map."""
    side, channels = map(int, size.split("x"))
    layer = runtime.place(CycleLinear(channels, WIDTH))
    x = runtime.to_device(torch.randn(options.batch, side, side, channels)).requires_grad_()
    torch.testing.assert_close(layer(x), deformable(layer, x), rtol=1e-3, atol=1e-3)
    ways = {
        "slices": lambda: layer(x).square().mean().backward(),
        "deformable": lambda: deformable(layer, x).square().mean().backward(),
    }
    seconds = interleaved(ways, rounds=options.rounds, wait=runtime.synchronize)
    ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    times = " | ".join(f"{1e3 * median(own):.1f}" for own in seconds.values())
    return f"| {size} | {times} | {spread(ratios, 1)} |"


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="SIDExCHANNELS")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own number")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    runtime = Runtime()
    runtime.set_arithmetic(tf32=False, deterministic=False)  # as in a run; torch's default is TF32 in convolutions
    print(f"{runtime.device_name()}, fp32, torch {torch.__version__}, {options.batch} images a step.\n")
    print("| side x channels | slices, ms | deformable, ms | ratio |")
    print("| --- | --- | --- | --- |")
    for size in options.sizes:
        print(compare(size, options, runtime), flush=True)


if __name__ == "__main__":
    main()
