"""Find the configs that come with the package, from any folder."""

import logging
import os
from functools import cache
from pathlib import Path

LOG = logging.getLogger("pycls_std")
PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed, and in a checkout


def find_config(path: str) -> Path:
    """Return the file at a config's path; configs/... that does not exist is the package's own, which is logged."""
    return config_beside(Path(), path) or Path(path)


def config_beside(folder: Path, path: str) -> Path | None:
    """Return the file at a path relative to a folder, or the package's own, which is logged; None if there is none."""
    if os.path.exists(folder / path):
        return folder / path
    first, *inside = Path(path).parts or ("",)
    found = [place.joinpath(*inside) for place in PLACES if first == "configs"]
    own = next((place for place in found if os.path.isfile(place)), None)
    if own:
        _tell(path, own)
    return own


@cache  # once, though a table reads it for each row
def _tell(path: str, own: Path) -> None:
    LOG.info("there is no %s here, the package's own is used: %s", path, own)
