"""Pure functions on tensors. Every file of this folder is imported, so that what has a name there is registered."""

import pkgutil
from importlib import import_module

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
