"""Time a training step on a CPU in fp32, and in bf16 with torch's own kernels, attention in fp32, or products in fp32.

A run uses the last one on a CPU without bf16 instructions, and the one before on a CPU with them. Images (32 px) and
weights are random, which does not affect the time.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pycls_std.core.interleaved import interleaved, report  # noqa: E402
from pycls_std.engine.arithmetic import cpu_has_bf16  # noqa: E402
from pycls_std.engine.runtime import Runtime  # noqa: E402
from pycls_std.models.create import create_backbone  # noqa: E402

STUDENTS: dict[str, dict[str, Any]] = {"mixer_nano4": {}, "resnet20": {}, "deit_tiny_patch16_224": {"patch_size": 4}}
WAYS = {  # precision, whether bf16 matrix products and attention are computed in fp32
    "fp32": ("fp32", False, False),
    "bf16, torch's own": ("bf16", False, False),
    "bf16, attention in fp32": ("bf16", False, True),
    "bf16, products in fp32": ("bf16", True, True),
}


def step(runtime: Runtime, student: nn.Module, images, labels) -> Callable[[], None]:
    """Return a function that takes a training step."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

    def take() -> None:
        with runtime.autocast():
            losses = {"loss": cross_entropy(student(images).float(), labels)}
        runtime.step(losses, [optimizer])

    return take


def main(argv: list[str] | None = None) -> None:
    """Print a report for each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own number")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"instructions for bf16: {'yes' if cpu_has_bf16() else 'no'}")
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(0, 10, (options.batch,))
    for name in options.students:
        ways = {}
        for way, (precision, products, attention) in WAYS.items():
            runtime = Runtime(device="cpu", precision=precision)
            runtime.wide_products, runtime.wide_attention = products, attention
            student = runtime.place(create_backbone(name, num_classes=10, image_size=32, **STUDENTS[name]))
            ways[way] = step(runtime, student, runtime.to_device(images), labels)
        print(f"{name}, {options.batch} images of 32 px, {runtime.device_name()}, {options.rounds} rounds")
        print("\n".join(report(interleaved(ways, rounds=options.rounds), amount=options.batch, unit="images")))


if __name__ == "__main__":
    main()
