"""A config-driven runner for knowledge distillation of vision MLPs and tiny transformers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycls_std.notebook import Run

__all__ = ["train"]
__version__ = "0.1.0"


def train(path: str, *words: str, **options) -> "Run":
    """Train a student as `--mode train` does; return the run's folder and its scores. See `notebook.train`."""
    from pycls_std import notebook  # here, since torch takes seconds to import

    return notebook.train(path, *words, **options)
