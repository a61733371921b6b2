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
    if os.path.exists(given) or given.parts[:1] != ("configs",):
        return given
    inside = os.path.join(*given.parts[1:]) if len(given.parts) > 1 else ""
    for place in PLACES:
        if os.path.isfile(place / inside):
            LOG.info("there is no %s here, the package's own is used: %s", given, place / inside)
            return place / inside
    return given
