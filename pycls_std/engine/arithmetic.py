"""How CUDA computes in this process: what torch leaves to switches that hold for all of it."""

import os

import torch


def set_tf32(allowed: bool) -> None:
    """Let fp32 convolutions and products on CUDA round their factors to TF32, or neither of them.

    torch alone lets the ones and not the others. Its newer switches (fp32_precision) are not there in 2.11, and may not
    be mixed with these.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def set_deterministic(wanted: bool) -> None:
    """Let CUDA take kernels that give the same bits each time, or those that are fastest.

    With it, an operation that has no such kernel raises RuntimeError. cuBLAS looks at the environment when it is first
    used, so this comes before.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses its products without
    torch.backends.cudnn.deterministic = wanted
    torch.use_deterministic_algorithms(wanted)
