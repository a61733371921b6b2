"""An ONNX file of a deployed student, verified with onnxruntime; the packages are the extra `export`."""

from importlib.util import find_spec

import torch
from torch import nn

from pycls_std.export.deployed import difference, refuse_difference

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def refuse_absent() -> None:
    """Raise ValueError that names the packages of the extra that are not installed."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise ValueError(
            f"ONNX needs {', '.join(absent)}, not installed here: pip install {' '.join(absent)}; "
            "--formats pt2,safetensors does without"
        )


def onnx_file(program: torch.export.ExportedProgram, model: nn.Module, image_size: int) -> tuple[bytes, float]:
    """Return the file, with input `images` and output `logits`, and by how much its logits differ from the model's.

    program: of the model, for any batch size. Raises ValueError if it cannot be converted.
    """
    import onnxruntime

    try:
        translated = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
    except Exception as error:  # the exporter raises whatever an operation leads to
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ONNX cannot be made of it: {reason}") from error
    assert translated is not None  # which the exporter before dynamo returns
    content = translated.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    apart = difference(
        model, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), image_size
    )
    refuse_difference("the ONNX file", apart)
    return content, apart
