"""Find the configs that come with the package, from any folder."""

import logging
import os
from pathlib import Path

LOG = logging.getLogger("pycls_std")
PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed, and in a checkout


def find_config(path: str) -> Path:
    """Return the file that a config's path names: configs/... that is not here is the package's own, which is told."""
    given = Path(path)
    if os.path.exists(given):
        return given
    return shipped_config(path) or given


def shipped_config(path: str) -> Path | None:
    """Return the package's own file of the name configs/..., which is told; None if there is none."""
    first, *inside = Path(path).parts or ("",)
    found = [place.joinpath(*inside) for place in PLACES if first == "configs"]
    own = next((place for place in found if os.path.isfile(place)), None)
    if own:
        LOG.info("there is no %s here, the package's own is used: %s", path, own)
    return own
