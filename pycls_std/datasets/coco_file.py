"""Read a file of annotations in COCO's format: images, boxes, categories, segmentations.

Shapes: N images, M annotations of all images.
"""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pycls_std.core.regular import read_bytes
from pycls_std.core.text import printable, shortened

LARGEST = 2**53  # below it, floats represent integers exactly


class Annotations(NamedTuple):
    """Images by ascending id; annotations in the order of their images, then of the file."""

    categories: dict[int, str]  # names by id, ascending
    files: list[str]  # N, relative to the folder of the images
    ids: np.ndarray  # (N,) of the images
    sizes: np.ndarray  # (N, 2) height and width, pixels
    starts: np.ndarray  # (N + 1,) annotations of image i are those from starts[i] to starts[i + 1]
    boxes: np.ndarray  # (M, 4) float32: left, top, right, bottom, pixels, not clipped
    category: np.ndarray  # (M,) ids
    area: np.ndarray  # (M,) float32, pixels; that of the box if the file gives none
    crowd: np.ndarray  # (M,) bool


def read_annotations(path: Path) -> Annotations:
    """Return the content of a file. Raises ValueError that names it if it is invalid or incomplete."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(str(path))} is no JSON file, or not a whole one: {error}") from error
    try:
        return _annotations(content)
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from error


def read_segmentations(path: Path) -> list:
    """Return the segmentations of a file that `read_annotations` has read, in the order of its annotations.

    Each is a list of polygons, a run-length encoding (a dictionary), or None if there is none.
    """
    rows = json.loads(read_bytes(path))["annotations"]
    return [row.get("segmentation") or None for row in sorted(rows, key=lambda row: row["image_id"])]


def _annotations(content) -> Annotations:
    categories, images, rows = (_entries(content, part) for part in ("categories", "images", "annotations"))
    names = dict(zip(_ids("categories", categories), _column("categories", categories, "name", "a text"), strict=True))
    ids = _ids("images", images)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    files = _column("images", images, "file_name", "a text")
    sides = [_column("images", images, side, "a whole number above 0") for side in ("height", "width")]
    owner = np.array(_references(rows, "image_id", ids, "images"), dtype=np.int64)
    category = np.array(_references(rows, "category_id", names, "categories"), dtype=np.int64)
    boxes = _column("annotations", rows, "bbox", "4 finite numbers")
    for row, box in zip(rows, boxes, strict=True):
        row.setdefault("area", box[2] * box[3])
    area = np.array(_column("annotations", rows, "area", "a finite number"), dtype=np.float32)
    crowd = np.array(_column("annotations", rows, "iscrowd", "0 or 1", 0), dtype=bool)
    left_top, extent = np.split(np.array(boxes, dtype=np.float64).reshape(-1, 4), 2, axis=1)
    corners, ordered = np.hstack([left_top, left_top + extent]).astype(np.float32), np.array(ids)[order]
    sort = np.argsort(owner, kind="stable")
    return Annotations(
        dict(sorted(names.items())),
        [files[place] for place in order],
        ordered,
        np.array(sides).T[order],
        np.append(np.searchsorted(owner[sort], ordered), len(owner)),
        *(each[sort] for each in (corners, category, area, crowd)),
    )


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and -LARGEST < value < LARGEST


KINDS = {
    "a text": lambda value: isinstance(value, str),
    "a whole number": lambda value: isinstance(value, int) and _is_number(value),
    "a whole number above 0": lambda value: isinstance(value, int) and 0 < value < LARGEST,
    "a finite number": _is_number,
    "4 finite numbers": lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)),
    "0 or 1": lambda value: value in (0, 1),
}


def _entries(content, part: str) -> list[dict]:
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"it has no list of {part}")
    if not entries and part != "annotations":
        raise ValueError(f"it lists no {part}")
    return entries


def _column(part: str, entries: list[dict], key: str, kind: str, default=None) -> list:
    """Return the value of a key of every entry. Raises ValueError for the first one of another kind."""
    values = [entry.get(key, default) for entry in entries]
    place = next((place for place, value in enumerate(values) if not KINDS[kind](value)), None)
    if place is None:
        return values
    value = shortened(printable(json.dumps(values[place])), 60)
    is_what = f"has the {key} {value}" if key in entries[place] else f"has no {key}"
    raise ValueError(f"entry {place} of {part} {is_what}, expected {kind}")


def _ids(part: str, entries: list[dict]) -> list[int]:
    ids = _column(part, entries, "id", "a whole number")
    if len(set(ids)) < len(ids):
        raise ValueError(f"two {part} have the id {Counter(ids).most_common(1)[0][0]}")
    return ids


def _references(entries: list[dict], key: str, ids, part: str) -> list[int]:
    """Return the ids that annotations refer to. Raises ValueError for the first unknown one."""
    values, known = _column("annotations", entries, key, "a whole number"), set(ids)
    place = next((place for place, value in enumerate(values) if value not in known), None)
    if place is not None:
        raise ValueError(f"entry {place} of annotations has the {key} {values[place]}, which none of its {part} has")
    return values
