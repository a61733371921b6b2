"""DeiT: distillation through a token, and the variants it is compared with."""

from pycls_std.core.option import Option
from pycls_std.core.registry import TRAINERS
from pycls_std.models.student import has_distillation_head
from pycls_std.trainers.base import Preset

FORMS = ("soft", "hard")  # modes that determine DISTILLATION.TYPE


@TRAINERS.register("deit")
class DeiT(Preset):
    """The variants of DeiT's ablation; DEIT.MODE sets what each head is trained on.

    none, class: the labels. soft, hard: labels and teachers, both on the class logits. distill: teachers alone. both:
    the class head on the labels, the distillation head on the teachers, and the prediction is their average.
    Distillation is the term `kd`; `both` and `distill` use DISTILLATION.TYPE, `soft` and `hard` set it themselves.
    `class` and `distill` both use one token, the model's class token, and differ in its loss. The paper's results of a
    single head of a student with two are TEST.PREDICTION cls and dist of `both`.
    Source: Touvron et al., ICML 2021. The modes are those of kimyunoo/4782_final, which built every one of them as
    `both`.
    """

    OPTIONS = {
        # What each head is trained on: none, class = the labels; soft, hard = labels and teachers, on the same logits;
        # distill = teachers alone; both = class head on the labels, distillation head on the teachers.
        # none, soft, hard: any student with one head; class, distill: one whose head reads a class token; both: one
        # with a class and a distillation head, such as deit_tiny_distilled_patch16_224.
        "MODE": Option(
            ("both", "none", "soft", "hard", "class", "distill"),
            student=True,
            column="mode",
        ),
    }
    PRESETS = {
        "DEIT.MODE=both": {"TASK.WEIGHT": 0.5, "KD.WEIGHT": 0.5},
        "DEIT.MODE=soft": {"TASK.WEIGHT": 0.5, "KD.WEIGHT": 0.5, "DISTILLATION.TYPE": "soft"},
        "DEIT.MODE=hard": {"TASK.WEIGHT": 0.5, "KD.WEIGHT": 0.5, "DISTILLATION.TYPE": "hard"},
        "DEIT.MODE=distill": {"TASK.WEIGHT": 0.0, "KD.WEIGHT": 1.0},
    }

    @classmethod
    def check(cls, cfg, backbone):
        """Raise ValueError for a model, weights or a form that the mode cannot use."""
        mode, model = cfg.DEIT.MODE, cfg.MODEL.NAME
        taught = mode not in ("none", "class")
        if taught != bool(cfg.KD.WEIGHT):
            expected = "teachers teach, it must be above 0" if taught else "none teaches, it must be 0"
            raise ValueError(f"KD.WEIGHT is {cfg.KD.WEIGHT}; with DEIT.MODE {mode} {expected}")
        if has_distillation_head(backbone) != (mode == "both"):
            expected = "a distillation head beside the class head" if mode == "both" else "one head"
            raise ValueError(f"DEIT.MODE {mode} needs a model with {expected}, MODEL.NAME is {model}")
        if mode in ("class", "distill") and not _reads_a_class_token(backbone):
            raise ValueError(f"DEIT.MODE {mode} needs a model whose head reads a class token, MODEL.NAME is {model}")
        if mode in FORMS and mode != cfg.DISTILLATION.TYPE:
            form = cfg.DISTILLATION.TYPE
            raise ValueError(f"DEIT.MODE {mode} says the form itself, DISTILLATION.TYPE is {form}: see TRAINER kd")


def _reads_a_class_token(backbone) -> bool:
    return getattr(backbone, "cls_token", None) is not None and getattr(backbone, "global_pool", "token") == "token"
