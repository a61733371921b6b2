"""Analysis of saved predictions: scores of a student and its teachers by prediction and class, and their agreement.

All fractions are in percent of the test images. Shapes: N images, K classes.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from pycls_std.core.prediction_file import Predictions
from pycls_std.core.regular import read_bytes, replace_text

ANALYSIS = "analysis.json"  # in the folder of a run
FORMAT = 1
BINS = 15  # of the top probability, of equal width
DIGITS = 4  # decimal places of stored numbers
# Required keys of a file that is read, in addition to the entries of each prediction.
KINDS = {"name": str, "seed": int, "images": int, "classes": list, "split": str, "prediction": str}
KINDS |= {"predictions": dict, "teachers": dict}
SHARES = ("agreement", "student_right_teacher_wrong", "student_wrong_teacher_right", "both_right", "both_wrong")


# ------------------------------------------------------------------------------------------------------------- analyse
def analyze(predictions: Predictions) -> dict:
    """Return the scores of each prediction, of each head that is not a prediction itself, and of each teacher.

    Each has `top1` and `top5` (percent; with fewer than 5 classes all count), `loss` (negative log-likelihood, nats),
    `ece` (percent), `per_class` (top-1 in percent; null for classes without images) and `correct` (hex of the packed
    top-1 hits). A teacher also has, for each of the student's predictions, how often both predict the same class
    (`agreement`) and which of them is right. `split` is a digest of the labels, which must match in comparisons.
    """
    meta, labels = predictions.meta, predictions.labels
    students = predictions.predictions | {
        name: logits for name, logits in predictions.heads.items() if name not in predictions.predictions
    }
    facts = {key: meta.get(key) for key in ("name", "seed", "checkpoint", "ema", "epoch")}
    return {
        "format": FORMAT,
        **facts,
        "images": len(labels),
        "classes": meta["classes"],
        "split": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16],
        "prediction": meta["prediction"],
        "flops": meta.get("flops"),
        "parameters": meta.get("parameters"),
        "predictions": {name: scores(logits, labels) for name, logits in students.items()},
        "teachers": {
            name: scores(logits, labels) | _beside(students, logits, labels)
            for name, logits in predictions.teachers.items()
        },
    }


def scores(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return the scores of logits (N, K) by labels (N,), as `analyze` describes them.

    Ties count as the first of the classes.
    """
    each = np.arange(len(labels))
    own = logits[each, labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    rank = (logits > own).sum(axis=1) + ((logits == own) & earlier).sum(axis=1)  # of the right class
    hits = rank == 0
    probabilities = log_softmax(logits)
    with np.errstate(invalid="ignore"):
        counts = np.bincount(labels, minlength=logits.shape[1])
        per_class = 100 * np.bincount(labels, weights=hits, minlength=logits.shape[1]) / counts
    return {
        "top1": _percent(hits),
        "top5": _percent(rank < 5),
        "loss": round(float(-probabilities[each, labels].mean()), DIGITS + 2),
        "ece": round(calibration_error(np.exp(probabilities.max(axis=1)), hits), DIGITS),
        "per_class": [None if np.isnan(value) else round(float(value), DIGITS) for value in per_class],
        "correct": np.packbits(hits).tobytes().hex(),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of logits (N, K), float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def calibration_error(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error (ECE), percent: mean |confidence - accuracy| over bins, by their images.

    confidence: (N,) probability of the predicted class. hits: (N,) whether it is right. The `bins` are equal intervals
    of [0, 1], closed at their upper end, the first one at 0, too; empty bins do not count.
    Source: Guo et al., ICML 2017.
    """
    own = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    gap = np.bincount(own, weights=confidence, minlength=bins) - np.bincount(own, weights=hits, minlength=bins)
    return float(100 * np.abs(gap).sum() / len(hits))


def _beside(students: dict[str, np.ndarray], teacher: np.ndarray, labels: np.ndarray) -> dict:
    """Return each of SHARES, by the name of the student's prediction."""
    said = teacher.argmax(axis=1)
    found: dict[str, dict[str, float]] = {share: {} for share in SHARES}
    for name, logits in students.items():
        own = logits.argmax(axis=1)
        right, taught = own == labels, said == labels
        for share, holds in zip(
            SHARES, (own == said, right & ~taught, ~right & taught, right & taught, ~right & ~taught), strict=True
        ):
            found[share][name] = _percent(holds)
    return found


def _percent(holds: np.ndarray) -> float:
    return round(100 * float(holds.mean()), DIGITS)


# --------------------------------------------------------------------------------------------------------------- files
def write(analysis: dict, path: Path) -> None:
    """Write an analysis to a file, in one line, atomically. Raises OSError if it cannot be written."""
    replace_text(path, json.dumps(analysis, allow_nan=False) + "\n")


def read(path: Path | str) -> dict:
    """Return the analysis in a file.

    Raises OSError that names the path if it cannot be read; ValueError that names it if the file is damaged or not an
    analysis.
    """
    content = read_bytes(path)
    try:
        analysis = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: it is damaged, or no analysis: it is no JSON") from error
    if not isinstance(analysis, dict) or "format" not in analysis:
        raise ValueError(f"{path}: it is no analysis")
    if analysis["format"] != FORMAT:
        raise ValueError(f"{path}: its format is {analysis['format']}, this program reads {FORMAT}")
    wrong = [key for key, kind in KINDS.items() if not isinstance(analysis.get(key), kind)]
    if wrong or analysis["prediction"] not in analysis["predictions"]:
        raise ValueError(f"{path}: it does not say {', '.join(wrong) or 'what its prediction scores'}")
    for name in (*analysis["predictions"], *analysis["teachers"]):
        _refuse_broken(analysis, name, path)
    return analysis


def _no_number(name: str):
    raise ValueError(f"{name} is no score")


def _refuse_broken(analysis: dict, name: str, path) -> None:
    entry = (analysis["predictions"] | analysis["teachers"])[name]
    whole = isinstance(entry, dict) and all(
        isinstance(entry.get(key), (int, float)) for key in ("top1", "top5", "loss", "ece")
    )
    if name in analysis["teachers"]:
        whole = whole and all(
            isinstance(entry.get(share), dict) and entry[share].keys() == analysis["predictions"].keys()
            for share in SHARES
        )
    try:
        counts = len(entry["per_class"]) == len(analysis["classes"])
        share = 100 * correct(analysis, name).mean()
    except (KeyError, TypeError, ValueError):
        counts, share = False, None
    if not whole or not counts or abs(share - entry["top1"]) > 10**-DIGITS:
        raise ValueError(f"{path}: what it says of {name} is not whole")


def correct(analysis: dict, name: str = "") -> np.ndarray:
    """Return for which images (N,) a prediction or a teacher is right; "" = the run's main prediction."""
    entry = (analysis["teachers"] | analysis["predictions"])[name or analysis["prediction"]]
    packed = np.frombuffer(bytes.fromhex(entry["correct"]), np.uint8)
    if len(packed) != -(-analysis["images"] // 8):
        raise ValueError(f"the hits of {name or analysis['prediction']} are not those of {analysis['images']} images")
    return np.unpackbits(packed, count=analysis["images"]).astype(bool)


def of_folder(folder: Path, name: str, seed: int | None) -> dict:
    """Return the analysis in the folder of a run, {} if it is missing, damaged or another run's."""
    try:
        return of_run(folder / ANALYSIS, name, seed)
    except (ValueError, OSError):
        return {}


def of_run(path: Path, name: str, seed: int | None) -> dict:
    """Return the analysis of a run. Raises the errors of `read`, and ValueError for that of another run."""
    analysis = read(path)
    if (analysis["name"], analysis["seed"]) != (name, seed):
        other = f"{analysis['name']} seed{analysis['seed']}"
        raise ValueError(f"{path}: it is that of {other}, and not of {name} seed{seed}")
    return analysis


def hits_of(folder: Path, name: str, seed: int) -> tuple[str, int | None, np.ndarray] | None:
    """Return a digest of the labels, the epoch, and for which test images the main prediction is right, (N,).

    None if there is no analysis. Raises the errors of `of_run`.
    """
    path = folder / ANALYSIS
    if not path.exists():
        return None
    analysis = of_run(path, name, seed)
    return analysis["split"], analysis.get("epoch"), correct(analysis)
