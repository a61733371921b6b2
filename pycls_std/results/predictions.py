"""Read a file of predictions, as `--mode test` writes it (TEST.PREDICTIONS)."""

from pathlib import Path

from pycls_std.core.prediction_file import Predictions, unpacked
from pycls_std.core.regular import read_bytes

PREDICTIONS = "predictions.npz"  # in the folder of a run


def read(path: Path | str) -> Predictions:
    """Return what a student and its teachers say of every test image.

    Raises OSError that names the path if it cannot be read; ValueError that names it for a file that is damaged, or is
    no file of predictions. Nothing in it is run.
    """
    content = read_bytes(path)
    try:
        return unpacked(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
