"""Tasks, one file each: what a label is. Every file of this folder is imported, so that its tasks are registered."""

from pycls_std.core.registry import import_files

import_files(__name__, __path__)
