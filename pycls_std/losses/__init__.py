"""Pure functions on tensors. Every file of this folder is imported, so that what has a name there is registered."""

from pycls_std.core.registry import import_files

import_files(__name__, __path__)
