"""Tasks, one file each: what a label is. Every file of this folder is imported, so that its tasks are registered."""

import pkgutil
from importlib import import_module

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
