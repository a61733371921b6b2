"""What the token mixing kernels compute on a CPU, by Triton's interpreter, which takes a process of its own.

TRITON_INTERPRET=1 python tests/interpreted.py FILE
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import gelu, linear

ROOT = Path(__file__).resolve().parents[1]
# images, tokens, channels, hidden units: STD's Mixer with no token beside its patches, one and two; ends within a block
CASES = [(2, 64, 64, 64), (3, 65, 70, 33), (1, 66, 16, 130), (1, 5, 40, 7), (1, 100, 10, 20)]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def plain(x, w1, b1, w2, b2):
    """The plain form."""
    return linear(gelu(linear(x.transpose(1, 2), w1, b1)), w2, b2).transpose(1, 2)


def given(case, precision, device="cpu"):
    """x, W1, b1, W2, b2 and the gradient of y."""
    images, tokens, channels, hidden = case
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, tokens, channels), (hidden, tokens), (hidden,), (tokens, hidden), (tokens,)]
    values = [torch.randn(shape, generator=generator) for shape in (*shapes, shapes[0])]
    scales = [1, tokens**-0.5, 1, hidden**-0.5, 1, 1]
    pairs = zip(values, scales, strict=True)
    return [(scale * value).to(device, PRECISIONS[precision]) for value, scale in pairs]


def results(function, inputs):
    """y, and the gradients of x, W1, b1, W2, b2."""
    *inputs, grad = inputs
    inputs = [value.clone().requires_grad_() for value in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def mixer(precision, fused, compiler=None):
    """Logits of a Mixer on three images, and gradients of its parameters, under autocast if it is not fp32.

    Those of the last biases over tokens are left out: all channels share them, so that the next norm takes them away.
    """
    from pycls_std.models.create import create_backbone
    from pycls_std.models.token_mixing import fuse

    torch.manual_seed(0)
    model = create_backbone("mixer_nano4", num_classes=7, image_size=16, num_blocks=2, embed_dim=24)
    nn.init.normal_(model.head.weight)
    if fused:
        fuse(model)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    forward = torch.compile(model, backend=compiler, fullgraph=True) if compiler else model
    with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32"):
        logits = forward(images)
    parameters = [p for name, p in model.named_parameters() if not name.endswith("mlp_tokens.fc2.bias")]
    return [logits.detach(), *torch.autograd.grad(logits.float().square().sum(), parameters)]


def teach_bf16():
    """Let the interpreter, for which bf16 is a whole number, round to it and multiply it as devices do."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, bf16 = interpreter.InterpreterBuilder, tl.bfloat16
    cast, dot = builder.cast_impl, builder.create_dot

    def rounded(self, source, kind):
        if source.dtype.scalar != tl.float32 or kind.scalar != bf16:
            return cast(self, source, kind)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, bf16)

    def multiplied(self, left, right, *others):
        factors = [cast(self, each, tl.float32) if each.dtype.scalar == bf16 else each for each in (left, right)]
        return dot(self, *factors, *others)

    builder.cast_impl, builder.create_dot = rounded, multiplied


def main(path):
    """Write what the kernels compute of every case, and of a Mixer."""
    from pycls_std.layers import token_mixing

    teach_bf16()
    token_mixing.SHARES = 2  # so that a program adds up several blocks
    graphs = []

    def captured(graph, inputs):
        graphs.append(graph)
        return graph.forward

    found = {
        "cases": {
            precision: [results(token_mixing.token_mixing, given(case, precision)) for case in CASES]
            for precision in PRECISIONS
        },
        "mixer": {precision: mixer(precision, fused=True) for precision in PRECISIONS},
        "compiled": mixer("bf16", fused=True, compiler=captured),
    }
    nodes = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    found["operations"] = sum("token_mixing" in name for name in nodes)
    small = [value.requires_grad_() for value in given((1, 5, 10, 7), "fp32")[:5]]
    torch.library.opcheck(token_mixing.token_mixing, small)
    torch.save(found, path)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    main(sys.argv[1])
