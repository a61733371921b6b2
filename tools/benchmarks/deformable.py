"""Time the sampling of deformable attention, forward and backward: our implementation and others.

The others are four gathers, one for each neighbouring pixel; that of `transformers`, if installed; and with --compile
also ours, compiled. All alternate, on the same inputs; ratios to ours are within a round, median and range. The largest
difference is over the output and its gradients, each relative to its largest absolute value. A size is the neck of a
ViDT, nano as published or micro as in configs/vidt/swin-micro_bccd_base.yaml, and the number, height and width of the
images.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std.core.interleaved import interleaved, spread  # noqa: E402
from pycls_std.engine.runtime import Runtime  # noqa: E402
from pycls_std.layers.deformable_attention import sample_maps  # noqa: E402
from pycls_std.layers.deformable_decoder import DecoderSizes  # noqa: E402
from pycls_std.models.swin_ram import BodySizes  # noqa: E402
from pycls_std.models.vidt import SMALL_NECK  # noqa: E402

NECKS: dict[str, dict[str, Any]] = {"nano": {}, "micro": SMALL_NECK}
STRIDES = (8, 16, 32, 64)  # of the feature maps that a decoder reads
SIZES = ["micro:8x192x256", "nano:2x480x640", "nano:2x800x1088"]

Way = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]  # signature of `sample_maps`


def four_corners(values: Tensor, sizes: list[tuple[int, int]], places: Tensor, weights: Tensor) -> Tensor:
    """Return the output of `sample_maps`, computed by gathering the four pixels around each sampling location."""
    total, start = torch.zeros(()), 0
    for level, (height, width) in enumerate(sizes):
        image = values[:, start : start + height * width].transpose(1, 2)  # B, M, H W, C / M
        start += height * width
        grid = 2 * places[:, :, :, level].transpose(1, 2) - 1  # B, M, Q, P, 2; same rounding as grid_sample
        x, y = ((grid[..., axis] + 1) * side / 2 - 0.5 for axis, side in enumerate((width, height)))
        left, top = x.detach().floor(), y.detach().floor()
        own = weights[:, :, :, level].transpose(1, 2)
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(2)
                read = image.gather(2, index[..., None].expand(-1, -1, -1, image.shape[3])).unflatten(2, x.shape[2:])
                total = total + (read * (own * share_x * share_y * inside)[..., None]).sum(dim=3)
    return total.transpose(1, 2).flatten(2)


def of_transformers() -> Way:
    """Return the PyTorch implementation of `transformers`."""
    module = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    attend = module.MultiScaleDeformableAttention()
    return lambda values, sizes, places, weights: attend(values, None, sizes, None, places, weights, 64)


def drawn(size: str, runtime: Runtime) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Return random arguments of `sample_maps` for a size, with some sampling locations outside the maps."""
    name, _, images = size.partition(":")
    neck: dict[str, Any] = {"queries": BodySizes().queries} | NECKS[name]
    sizes = DecoderSizes()._replace(**{key: value for key, value in neck.items() if key in DecoderSizes._fields})
    batch, height, width = map(int, images.split("x"))
    maps = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    heads, queries = sizes.decoder_heads, neck["queries"]
    values = torch.randn(batch, sum(h * w for h, w in maps), heads, sizes.hidden // heads)
    places = torch.rand(batch, queries, heads, len(maps), sizes.points, 2) * 1.2 - 0.1
    weights = torch.rand(batch, queries, heads, len(maps) * sizes.points).softmax(dim=3).view(places.shape[:-1])
    values, places, weights = (runtime.to_device(each).requires_grad_() for each in (values, places, weights))
    return values, maps, places, weights


def results(way: Way, arguments) -> list[Tensor]:
    """Return the output, and the gradients of its sum of squares with respect to values, places and weights."""
    out = way(*arguments)
    learnt = [each for each in arguments if isinstance(each, Tensor)]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), learnt)]


def compare(size: str, ways: dict[str, Way], options, runtime: Runtime) -> list[str]:
    """Return the rows of the table for a size."""
    arguments = drawn(size, runtime)
    found = {name: results(way, arguments) for name, way in ways.items()}
    timed = {name: lambda way=way: results(way, arguments) for name, way in ways.items()}
    seconds = interleaved(timed, rounds=options.rounds, wait=runtime.synchronize)
    own, *others = ways
    rows = []
    for name in others:
        pairs = zip(found[name], found[own], strict=True)
        difference = max(float((other - ours).abs().max() / ours.abs().max()) for other, ours in pairs)
        ratios = [other / ours for other, ours in zip(seconds[name], seconds[own], strict=True)]
        times = " | ".join(f"{1e3 * median(seconds[each]):.1f}" for each in (own, name))
        rows.append(f"| {size} | {name} | {times} | {spread(ratios)} | {difference:.1e} |")
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="NECK:IMAGESxHEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own number")
    parser.add_argument("--compile", action="store_true", help="time ours compiled, too")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    runtime = Runtime()
    runtime.set_arithmetic(tf32=False, deterministic=False)  # as in a run; torch's default is TF32 in convolutions
    ways: dict[str, Way] = {"ours": sample_maps, "four corners": four_corners}
    if find_spec("transformers"):
        version = importlib.import_module("transformers").__version__
        ways[f"transformers {version}"] = of_transformers()
    if options.compile:
        runtime.compiled = "on"
        ways["ours, compiled"] = runtime.compiled_form(sample_maps)
    print(f"{runtime.device_name()}, fp32, torch {torch.__version__}, {options.rounds} rounds.\n")
    print("| neck: images, px | other way | ours, ms | other, ms | other / ours | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in options.sizes:
        print("\n".join(compare(size, ways, options, runtime)), flush=True)


if __name__ == "__main__":
    main()
