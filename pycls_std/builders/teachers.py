"""Make the teachers of a session fast, and let them teach, as the options ask."""

from torch.utils.data import DataLoader

from pycls_std.engine.loop import Session
from pycls_std.teachers.teacher import Teacher
from pycls_std.teachers.variants import optimize


def optimize_teachers(cfg, session: Session, *, loader: DataLoader | None = None, fall_back: bool = True) -> list[str]:
    """Fold and convert the teachers of a session; return a line on each. See `variants.optimize`.

    fall_back: without, a teacher that says something else then is only told; for random weights, whose classes are near
    each other. A precision that is asked for by name is kept, too.
    """
    options = cfg.DISTILLATION
    named = options.TEACHER_PRECISION != "auto"
    return optimize(
        session,
        image_size=cfg.DATA.IMAGE_SIZE,
        precision=options.TEACHER_PRECISION if named else cfg.PRECISION,
        fold=options.TEACHER_FOLD and options.TEACHER_BN == "eval",
        fixed=named or not fall_back,
        loader=loader,
    )


def set_batch_norm_mode(cfg, teachers: list[Teacher]) -> None:
    """Let teachers, scored by the statistics they were trained with, teach by those that TEACHER_BN asks for."""
    if cfg.DISTILLATION.TEACHER_BN == "batch":
        for teacher in teachers:
            teacher.use_batch_statistics()
