"""A digest that distinguishes the files of a split from those of another dataset in a folder of the same name."""

import hashlib
from pathlib import Path

from pycls_std.core.structures import ImageSet

SIZED = 1000  # number of files whose sizes are read; those of a million files on a network would take minutes


def contents(split: ImageSet) -> str:
    """Return a digest of the files of a split, "" if it is not made of files.

    It covers the folder, name and label of all images; the file size of up to 1000 evenly spaced ones, if they exist at
    their path, since it differs for another resolution or quality; and the whole file of annotations, if there is one.
    Nothing is decoded.
    """
    samples = getattr(split, "samples", None)
    if not samples:
        return ""
    named = [(*Path(path).parts[-2:], label) for path, label in samples]
    chosen = [Path(path) for path, _ in samples[:: -(-len(samples) // SIZED)]]
    digest = hashlib.sha256(repr((named, [path.stat().st_size for path in chosen if path.exists()])).encode())
    if hasattr(split, "file"):
        digest.update(Path(split.file).read_bytes())
    return digest.hexdigest()
