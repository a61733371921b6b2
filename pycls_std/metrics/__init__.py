"""Metrics, one file each. Every file of this folder is imported, so that its metrics are registered."""

import pkgutil
from importlib import import_module

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
