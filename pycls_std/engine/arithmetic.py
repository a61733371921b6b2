"""How CUDA computes in this process: what torch leaves to switches that hold for all of it."""

import torch


def set_tf32(allowed: bool) -> None:
    """Let fp32 convolutions and products on CUDA round their factors to TF32, or neither of them.

    torch alone lets the ones and not the others. Its newer switches (fp32_precision) are not there in 2.11, and may not
    be mixed with these.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
