"""Losses, pure functions on tensors. Every file of this folder is imported, so that its functions are registered."""

from pycls_std.core.registry import import_files

import_files(__name__, __path__)
