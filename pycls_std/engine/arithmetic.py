"""How matrix products are computed: torch's switches on CUDA, and bf16 on CPUs where torch's kernels are slow."""

import os

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pycls_std.core.precision import full_precision

CPU = torch.device("cpu")
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default  # logsumexp is fp32
NAMES = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
PRODUCTS = {ATTENTION, ATTENTION_BACKWARD, *(getattr(torch.ops.aten, name).default for name in NAMES)}


def cpu_has_bf16() -> bool:
    """Return whether this CPU has native bf16 products: AVX-512, AMX or Arm's BF16, with oneDNN in torch."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideProducts(TorchDispatchMode):
    """The context in which matrix products (matmuls, convolutions, attention) of bf16 are computed in fp32.

    Each result is rounded once, as by native bf16 instructions. For CPUs without these, where a step with torch's own
    kernels takes ten times as long as in fp32 (logs/benchmarks/bf16_amd-epyc.txt). Results differ only by the order of
    summation, as between CPUs. All else stays in bf16, as torch computes it: operations without products, and products
    that are not in PRODUCTS, such as matrix-vector ones.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in PRODUCTS or not _is_bf16(function, args):
            return function(*args, **kwargs)
        found = function(*tree_map(_widened, args), **tree_map(_widened, kwargs))
        if function is ATTENTION:  # its second output, the logsumexp, is always in fp32
            return found[0].bfloat16(), *found[1:]
        return tree_map(_rounded, found)


class WideAttention(TorchFunctionMode):
    """The context in which scaled dot-product attention of bf16 is computed in fp32, its output rounded to bf16.

    For CPUs, whose fused bf16 attention is slow even with native bf16 instructions (logs/benchmarks/bf16_*.txt). Enter
    it for the forward pass; the backward pass is then in fp32 automatically. It intercepts calls of torch's function,
    but not those within nn.MultiheadAttention.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention or not _in_bf16((args, kwargs)):
            return function(*args, **kwargs)
        with full_precision(CPU):
            return function(*tree_map(_widened, args), **tree_map(_widened, kwargs)).bfloat16()


def _is_bf16(function, args) -> bool:
    """Return whether the factors are in bf16; mixed ones are left to torch, which refuses them."""
    kinds = _kinds(args)
    return torch.bfloat16 in kinds and (len(kinds) == 1 or function is ATTENTION_BACKWARD)


def _in_bf16(arguments) -> bool:
    """Return whether torch would compute in bf16; it refuses mixed arguments where autocast does not convert them."""
    kinds = {kind for kind in _kinds(arguments) if kind.is_floating_point}
    if torch.is_autocast_enabled("cpu"):
        return torch.bfloat16 in kinds and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return kinds == {torch.bfloat16}


def _kinds(arguments) -> set[torch.dtype]:
    return {each.dtype for each in tree_leaves(arguments) if isinstance(each, Tensor)}


def _widened(value):
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value


def _rounded(value):
    return value.bfloat16() if isinstance(value, Tensor) else value


def set_tf32(allowed: bool) -> None:
    """Allow TF32 for both fp32 convolutions and matrix products on CUDA, or for neither.

    By default, torch allows it for convolutions alone. Its newer switches (fp32_precision) may not be mixed with these.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def set_deterministic(wanted: bool) -> None:
    """Let CUDA use deterministic kernels, or the fastest ones.

    With deterministic ones, an operation that has none raises RuntimeError, and so do products without the environment
    variable. torch reads it only once, at the first product on CUDA, so it is set in any case, for a later run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the size that torch takes on an H200 by itself
    torch.backends.cudnn.deterministic = wanted
    # Filling uninitialized memory, which nothing here reads, takes a kernel for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(wanted)
