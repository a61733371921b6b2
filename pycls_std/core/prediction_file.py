"""A file of predictions: the logits of a student and its teachers for every test image, as NumPy arrays in one .npz.

Shapes: N images, K classes.
"""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pycls_std.core.regular import read_bytes
from pycls_std.core.text import first_of, printable, shortened

PREDICTIONS = "predictions.npz"  # in the folder of a run, if TEST.PREDICTIONS puts it there
FORMAT = 1
HEAD, PREDICTION, TEACHER = "logits_", "pred_", "teacher_"  # prefixes of the names of arrays (N, K)


class Predictions(NamedTuple):
    """Logits of the test images, in the order of `index`. Dictionaries are of (N, K) float32, by name."""

    index: np.ndarray  # type: ignore[assignment]  # (N,) int64 position in the test split; hides tuple.index
    paths: np.ndarray  # (N,) str, relative to DATA.ROOT; "" where the dataset knows no files
    labels: np.ndarray  # (N,) int64
    heads: dict[str, np.ndarray]  # of the student
    predictions: dict[str, np.ndarray]  # of the student, those that are scored
    teachers: dict[str, np.ndarray]  # named <position>_<model>
    meta: dict  # what ran, see `measure/predictions.py`


def packed(predictions: Predictions) -> bytes:
    """Return the content of a file. A student's only prediction is the output of its head, and is stored once."""
    several = predictions.predictions if len(predictions.predictions) > 1 else {}
    arrays: dict[str, Any] = {"index": predictions.index, "path": predictions.paths, "label": predictions.labels}
    arrays |= {f"{HEAD}{name}": logits for name, logits in predictions.heads.items()}
    arrays |= {f"{PREDICTION}{name}": logits for name, logits in several.items()}
    arrays |= {f"{TEACHER}{name}": logits for name, logits in predictions.teachers.items()}
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array(json.dumps({"format": FORMAT} | predictions.meta)), **arrays)
    return buffer.getvalue()


def read(path: Path | str) -> Predictions:
    """Return the predictions in a file.

    Raises OSError that names the path if it cannot be read; ValueError that names it if it is damaged, or is not a file
    of predictions.
    """
    content = read_bytes(path)
    try:
        return unpacked(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def unpacked(content: bytes) -> Predictions:
    """Return the predictions in the content of a file, without running code in it.

    Raises ValueError that says what is wrong if it is damaged, or is not a file of predictions.
    """
    arrays = _arrays(content)
    absent = [name for name in ("index", "path", "label", "meta") if name not in arrays]
    if absent:
        raise ValueError(f"it has no {', '.join(absent)}")
    index, paths, labels = (arrays[name] for name in ("index", "path", "label"))
    meta = _meta(arrays["meta"])
    kinds = [(index, "iu"), (paths, "U"), (labels, "iu")]
    if any(array.shape != (len(paths),) or array.dtype.kind not in kind for array, kind in kinds) or not len(paths):
        raise ValueError("index, path and label are not one of each image")
    shape = (len(paths), len(meta["classes"]))
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(f"its labels are {labels.min()} to {labels.max()}, of {shape[1]} classes")
    heads, predictions, teachers = (_named(arrays, prefix, shape) for prefix in (HEAD, PREDICTION, TEACHER))
    predictions = predictions or {name: logits for name, logits in heads.items() if name == meta["prediction"]}
    if meta["prediction"] not in predictions:
        raise ValueError(f"it has no prediction {meta['prediction']}, which counts")
    return Predictions(index, paths, labels, heads, predictions, teachers, meta)


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    try:
        file = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is one array")
        arrays = {name: file[name] for name in file.files}  # checked by the checksums of the archive
    except Exception as error:  # zipfile and numpy raise whatever damage leads to
        raise ValueError(f"it is damaged, or no file of predictions ({_reason(error)})") from error
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise ValueError(f"it has what is no array: {first_of(strange)}")
    return arrays


def _reason(error: Exception) -> str:
    return printable(shortened((str(error) or type(error).__name__).splitlines()[0]))


def _meta(array: np.ndarray) -> dict:
    try:
        meta = json.loads(str(array))
    except (ValueError, RecursionError) as error:
        raise ValueError("meta is no JSON") from error
    kinds = {"format": int, "name": str, "seed": int, "classes": list, "prediction": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(meta, dict) or not isinstance(meta.get(key), kind)]
    if wrong:
        raise ValueError(f"meta does not say {', '.join(wrong)}")
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']}, this program reads {FORMAT}")
    return meta


def _named(arrays, prefix: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    for name, logits in found.items():
        if logits.shape != shape or logits.dtype.kind != "f":
            raise ValueError(f"{prefix}{name} is {logits.dtype} {logits.shape}, expected logits {shape}")
        if not np.isfinite(logits).all():
            raise ValueError(f"{prefix}{name} has values that are not finite")
    return found
