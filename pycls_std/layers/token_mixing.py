"""The token mixing MLP of an MLP-Mixer as fused Triton kernels, which keep the hidden units on chip.

    y = W2 gelu(W1 x + b1) + b2 over the tokens of each channel, GELU by erf

The hidden units, 4 times as many numbers as x in Mixer-S/4, are computed in blocks and consumed immediately, in the
forward kernel and again in each of the two backward kernels; plain layers write them to memory and read them several
times. The compiler cannot do this: inductor fuses pointwise operations into a product, but not two products, and its
experimental b2b_gemm_pass fuses them on CUDA only if no bias is added between them and nothing else reads the first
product, as the backward pass does here.

Products of bf16 and fp16 accumulate in fp32, as does everything between them; only the inputs of a product are rounded.
For fp32 they are in full fp32, or in TF32 if it is allowed. The order of summation is fixed, so results are
deterministic.

Shapes: B batch, N tokens, C channels, H hidden units. Tokens are the last dimension of a kernel's tiles, in two parts:
MAIN, a power of two, and REST, at least 16 or none, so that 65 tokens do not take as long as 128.
Source of the layer: Tolstikhin et al., NeurIPS 2021.
"""

import torch
import triton
import triton.language as tl
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

SHARES = 128  # maximum number of programs over which the blocks of channels are split for the weights' gradients


# ------------------------------------------------------------------------------------------------------------- kernels
@triton.jit
def _places(matrix, columns, size, N: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Return the pointers (columns, COUNT) to a matrix (N, size) from token FIRST on, and the mask of valid ones."""
    tokens = FIRST + tl.arange(0, COUNT)
    inside = (columns < size)[:, None]
    if FIRST + COUNT > N:
        inside = inside & (tokens < N)[None, :]
    return matrix + (columns[:, None] + tokens[None, :] * size), inside


@triton.jit
def _load(matrix, columns, size, N: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Load both parts of columns of a matrix (N, size), zeros out of bounds; without REST the second is the first."""
    places, inside = _places(matrix, columns, size, N, 0, MAIN)
    main = tl.load(places, mask=inside, other=0.0)
    rest = main
    if REST:
        places, inside = _places(matrix, columns, size, N, MAIN, REST)
        rest = tl.load(places, mask=inside, other=0.0)
    return main, rest


@triton.jit
def _store(matrix, columns, size, main, rest, N: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    places, inside = _places(matrix, columns, size, N, 0, MAIN)
    tl.store(places, main, mask=inside)
    if REST:
        places, inside = _places(matrix, columns, size, N, MAIN, REST)
        tl.store(places, rest, mask=inside)


@triton.jit
def _zeros(COUNT: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    main = tl.zeros((COUNT, MAIN), tl.float32)
    rest = main
    if REST:
        rest = tl.zeros((COUNT, REST), tl.float32)
    return main, rest


@triton.jit
def _over_tokens(main, rest, other_main, other_rest, REST: tl.constexpr, PRECISION: tl.constexpr):
    """Return the product (columns, other columns), contracted over all tokens."""
    total = tl.dot(main, tl.trans(other_main), input_precision=PRECISION)
    if REST:
        total = tl.dot(rest, tl.trans(other_rest), total, input_precision=PRECISION)
    return total


@triton.jit
def _add_product(main, rest, left, right_main, right_rest, REST: tl.constexpr, PRECISION: tl.constexpr):
    """Return both parts with the product of left and right added."""
    main = tl.dot(left, right_main, main, input_precision=PRECISION)
    if REST:
        rest = tl.dot(left, right_rest, rest, input_precision=PRECISION)
    return main, rest


@triton.jit
def _gelu(z):
    """Return GELU and its derivative."""
    share = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
    return z * share, share + z * tl.exp(-0.5 * z * z) * 0.3989422804014327


@triton.jit
def _bias(b1, units, H):
    return tl.load(b1 + units, mask=units < H, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _forward(
    x, w1, b1, w2, b2, y, C, H, N: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of a block of channels of an image."""
    image = tl.program_id(0).to(tl.int64) * N * C
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    x_main, x_rest = _load(x + image, channels, C, N, MAIN, REST)
    main, rest = _zeros(CHANNELS, MAIN, REST)
    for start in range(0, H, UNITS):
        units = start + tl.arange(0, UNITS)
        w_main, w_rest = _load(w1, units, H, N, MAIN, REST)
        value, _ = _gelu(_over_tokens(x_main, x_rest, w_main, w_rest, REST, PRECISION) + _bias(b1, units, H))
        w_main, w_rest = _load(w2, units, H, N, MAIN, REST)
        main, rest = _add_product(main, rest, value.to(x_main.dtype), w_main, w_rest, REST, PRECISION)
    b_main, b_rest = _load(b2, channels * 0, 1, N, MAIN, REST)  # one column for all channels
    _store(y + image, channels, C, main + b_main, rest + b_rest, N, MAIN, REST)


@triton.jit
def _input_gradient(
    grad, x, w1, b1, w2, dx, C, H, N: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx = W1^T dz, dz = gelu'(z) * W2^T dy, of a block of channels of an image."""
    image = tl.program_id(0).to(tl.int64) * N * C
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    x_main, x_rest = _load(x + image, channels, C, N, MAIN, REST)
    g_main, g_rest = _load(grad + image, channels, C, N, MAIN, REST)
    main, rest = _zeros(CHANNELS, MAIN, REST)
    for start in range(0, H, UNITS):
        units = start + tl.arange(0, UNITS)
        w1_main, w1_rest = _load(w1, units, H, N, MAIN, REST)
        w2_main, w2_rest = _load(w2, units, H, N, MAIN, REST)
        _, slope = _gelu(_over_tokens(x_main, x_rest, w1_main, w1_rest, REST, PRECISION) + _bias(b1, units, H))
        dz = _over_tokens(g_main, g_rest, w2_main, w2_rest, REST, PRECISION) * slope
        main, rest = _add_product(main, rest, dz.to(x_main.dtype), w1_main, w1_rest, REST, PRECISION)
    _store(dx + image, channels, C, main, rest, N, MAIN, REST)


@triton.jit
def _weight_gradients(
    grad, x, w1, b1, w2, sums, images, C, H, N: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW1 = dz x^T, db1 = the sum of dz, dW2 = dy gelu(z)^T of a block of hidden units, over a share of all channels.

    sums: (shares, 2 N + 1, H), of each share dW1^T (N, H), dW2 (N, H) and db1 (H).
    """
    share = tl.program_id(0)
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    w1_main, w1_rest = _load(w1, units, H, N, MAIN, REST)
    w2_main, w2_rest = _load(w2, units, H, N, MAIN, REST)
    bias = _bias(b1, units, H)
    dw1_main, dw1_rest = _zeros(UNITS, MAIN, REST)
    dw2_main, dw2_rest = _zeros(UNITS, MAIN, REST)
    db1 = tl.zeros((CHANNELS, UNITS), tl.float32)
    blocks = tl.cdiv(C, CHANNELS)
    for place in range(share, images * blocks, tl.num_programs(0)):
        image = (place // blocks).to(tl.int64) * N * C
        channels = place % blocks * CHANNELS + tl.arange(0, CHANNELS)
        x_main, x_rest = _load(x + image, channels, C, N, MAIN, REST)
        g_main, g_rest = _load(grad + image, channels, C, N, MAIN, REST)
        value, slope = _gelu(_over_tokens(x_main, x_rest, w1_main, w1_rest, REST, PRECISION) + bias)
        dz = _over_tokens(g_main, g_rest, w2_main, w2_rest, REST, PRECISION) * slope
        db1 += dz
        left = tl.trans(dz.to(x_main.dtype))
        dw1_main, dw1_rest = _add_product(dw1_main, dw1_rest, left, x_main, x_rest, REST, PRECISION)
        left = tl.trans(value.to(x_main.dtype))
        dw2_main, dw2_rest = _add_product(dw2_main, dw2_rest, left, g_main, g_rest, REST, PRECISION)
    sums += share.to(tl.int64) * (2 * N + 1) * H
    _store(sums, units, H, dw1_main, dw1_rest, N, MAIN, REST)
    _store(sums + N * H, units, H, dw2_main, dw2_rest, N, MAIN, REST)
    tl.store(sums + 2 * N * H + units, tl.sum(db1, 0), mask=units < H)


# ----------------------------------------------------------------------------------------------------------- operations
def tile(tokens: int, dtype: torch.dtype) -> dict:
    """Return the kernels' compile-time arguments: the parts of the tokens, block sizes, the precision of products."""
    main = max(16, 1 << (tokens.bit_length() - 1))
    rest = max(16, 1 << (tokens - main - 1).bit_length()) if tokens > main else 0
    full = dtype != torch.float32 or not torch.backends.cuda.matmul.allow_tf32
    parts = {"N": tokens, "MAIN": main, "REST": rest, "PRECISION": "ieee" if full else "tf32"}
    block = 32 if dtype == torch.float32 else 64  # full fp32 has no tensor cores, and its products are unrolled
    return parts | {"CHANNELS": block, "UNITS": block, "num_warps": 4, "num_stages": 2}


@torch.library.custom_op("pycls_std::token_mixing", mutates_args=())
def token_mixing(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Return the token mixing MLP of x (B, N, C), of its shape; differentiable once.

    w1: (H, N). b1: (H). w2: (N, H). b2: (N). All have the same dtype, bf16, fp16 or fp32.
    """
    (images, tokens, channels), hidden = x.shape, len(w1)
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    sizes = tile(tokens, x.dtype)
    grid = images, triton.cdiv(channels, sizes["CHANNELS"])
    _forward[grid](x, w1.t().contiguous(), b1, w2.contiguous(), b2, y, channels, hidden, **sizes)
    return y


@token_mixing.register_fake
def _(x, w1, b1, w2, b2):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("pycls_std::token_mixing_backward", mutates_args=())
def token_mixing_backward(grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of w1^T, w2 and b1 concatenated, (2 N + 1, H), in fp32."""
    (images, tokens, channels), hidden = x.shape, len(w1)
    given = grad.contiguous(), x.contiguous(), w1.t().contiguous(), b1, w2.contiguous()
    dx, sizes = torch.empty_like(given[1]), tile(tokens, x.dtype)
    blocks = triton.cdiv(channels, sizes["CHANNELS"])
    _input_gradient[images, blocks](*given, dx, channels, hidden, **sizes)
    shares = min(SHARES, images * blocks)
    sums = torch.empty(shares, 2 * tokens + 1, hidden, device=x.device)
    grid = shares, triton.cdiv(hidden, sizes["UNITS"])
    _weight_gradients[grid](*given, sums, images, channels, hidden, **sizes)
    return dx, sums.sum(dim=0)


@token_mixing_backward.register_fake
def _(grad, x, w1, b1, w2):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, x.new_empty(2 * x.shape[1] + 1, len(w1), dtype=torch.float32)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx, grad):
    x, w1, b1, w2 = ctx.saved_tensors
    dx, sums = token_mixing_backward(grad, x, w1, b1, w2)
    dw1, dw2, db1 = sums.to(x.dtype).split([x.shape[1], x.shape[1], 1])
    return dx, dw1.t(), db1[0], dw2, grad.sum((0, 2))


token_mixing.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.pycls_std.token_mixing)
def _operations(x_shape, w1_shape, *args, **kwargs) -> int:
    """Return the FLOPs of both products, as of plain layers, 2 per multiply-add."""
    images, tokens, channels = x_shape
    return 2 * 2 * images * channels * tokens * w1_shape[0]


# --------------------------------------------------------------------------------------------------------------- module
class TokenMixing(nn.Module):
    """A token mixing MLP that replaces timm's; it takes over its layers, so parameters and their names are the same.

    plain: with biases and exact GELU, without norm and dropout, as many outputs as inputs. Under autocast it computes
    in autocast's dtype, as nn.Linear does.
    """

    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(self, plain: Mlp):
        super().__init__()
        for name, module in plain.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, N), a transposed (B, N, C); returns its shape."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        given = x.transpose(1, 2), self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        return token_mixing(*(each.to(dtype) for each in given)).transpose(1, 2)
