"""Time teachers with and without folded batch norms, alternately, in fp32 and in bf16.

    python tools/benchmarks/teachers.py --batch 128 --rounds 10 --threads 1

All are in channels_last; "plain" is a forward pass of the model itself, the others are of `Teacher`.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std.core.interleaved import interleaved, report  # noqa: E402
from pycls_std.datasets.normalizations import NORMALIZATIONS  # noqa: E402
from pycls_std.engine.runtime import DTYPES, Runtime  # noqa: E402
from pycls_std.models.create import create_backbone  # noqa: E402
from pycls_std.teachers.folding import fold_batch_norms  # noqa: E402
from pycls_std.teachers.teacher import Teacher  # noqa: E402

SAME = NORMALIZATIONS["half"]
# model, side of its images in pixels, fraction of --batch
MODELS = (("resnet32", 32, 1.0), ("resnet56", 32, 1.0), ("resnet50", 224, 1 / 16))


def compare(name: str, size: int, *, batch: int, rounds: int, runtime: Runtime) -> list[str]:
    """Return the lines of a report on a model with random weights, for batches of images of size x size pixels."""
    torch.manual_seed(0)
    model = create_backbone(name, num_classes=100, image_size=size)
    plain = runtime.place(model).eval().requires_grad_(False)
    images = runtime.to_device(torch.randn(batch, 3, size, size))
    folded, count = fold_batch_norms(plain, images[:2])

    def no_grad(precision):
        def forward():
            with torch.no_grad(), Runtime(device=runtime.device.type, precision=precision).autocast():
                plain(images)

        return forward

    def converted(backbone, precision):
        teacher = runtime.place(Teacher(backbone, name=name, normalization=SAME, student=SAME))
        own = runtime.convert(copy.deepcopy(backbone), precision)
        teacher.use(own, dtype=DTYPES[precision], precision=runtime.full_precision)
        return lambda: teacher(images)

    ways = {
        "plain, fp32": no_grad("fp32"),
        f"{count} folded, fp32": converted(folded, "fp32"),
        "plain, bf16 by autocast": no_grad("bf16"),
        "converted, bf16": converted(plain, "bf16"),
        f"{count} folded, converted, bf16": converted(folded, "bf16"),
    }
    seconds = interleaved(ways, rounds=rounds, warmup=2, wait=runtime.synchronize)
    title = f"{name}, {batch} images of {size} px, {runtime.device_name()}, {rounds} rounds"
    return [title, *report(seconds, amount=batch, unit="images")]


def main(argv: list[str] | None = None) -> None:
    """Print a report for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="images at 32 px; a sixteenth of them at 224 px")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own number")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime = Runtime()
    runtime.set_arithmetic(tf32=False, deterministic=False)  # as in a run; torch's default is TF32 in convolutions
    for name, size, share in MODELS:
        batch = max(2, round(share * options.batch))
        print("\n".join(compare(name, size, batch=batch, rounds=options.rounds, runtime=runtime)), flush=True)


if __name__ == "__main__":
    main()
