"""Addresses of records as a page sees them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import overload
from urllib.parse import quote


@overload
def link_from(page: Path) -> Callable[[Path], str]: ...
@overload
def link_from(page: None) -> None: ...
def link_from(page: Path | None) -> Callable[[Path], str] | None:
    """Return the function from a folder to its address relative to that of a page; None for no page."""
    if page is None:
        return None
    start = os.path.abspath(page.parent)
    return lambda folder: quote(os.fsencode(os.path.relpath(os.path.abspath(folder), start)))
