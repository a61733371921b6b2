"""DeiT: distillation through a token, and the forms it is compared with."""

from pycls_std.core.registry import TRAINERS
from pycls_std.models.distilled_student import create_student, has_distillation_head
from pycls_std.trainers.kd import KD
from pycls_std.trainers.logit_term import LogitTerm
from pycls_std.trainers.mine import refuse_mine


@TRAINERS.register("deit")
class DeiT(KD):
    """The rows of DeiT's comparison; DEIT.MODE says whom each head listens to.

    none, class: CE(labels). soft, hard: (1 - alpha) CE(labels) + alpha D(teachers), both on the class logits.
    distill: D(teachers) alone. both: (1 - alpha) CE(class head, labels) + alpha D(distillation head, teachers), and the
    prediction is the average of the two heads.
    D is that of section DISTILLATION, several teachers weighted; its TYPE is for `both` and `distill`.
    `class` and `distill` are one token, the model's class token, and differ in its loss. The rows of the paper that
    read one head of a student with two are TEST.PREDICTION cls and dist of `both`.
    Source: Touvron et al., ICML 2021. The modes are those of kimyunoo/4782_final, which built every one of them as
    `both`.
    """

    OPTIONS = {
        # Heads and what they learn from: see above. none, soft, hard: any student with one head; class, distill: one
        # whose head reads a class token; both: one with a class and a distillation head, such as
        # deit_tiny_distilled_patch16_224.
        "MODE": ("both", "none", "soft", "hard", "class", "distill"),
    }
    WEIGHED_BY = {"ce": "DISTILLATION.ALPHA", "distill": "DISTILLATION.ALPHA"}

    @classmethod
    def from_cfg(cls, cfg, *, backbone, teachers):
        """Build from sections DEIT and DISTILLATION. Raises ValueError for a model or teachers the mode cannot use."""
        mode, alpha, model = cfg.DEIT.MODE, cfg.DISTILLATION.ALPHA, cfg.MODEL.NAME
        taught = mode not in ("none", "class")
        if taught != bool(teachers):
            expected = "needs at least one teacher" if taught else "uses no teachers"
            raise ValueError(f"DEIT.MODE {mode} {expected}, DISTILLATION.TEACHERS has {len(teachers)}")
        if has_distillation_head(backbone) != (mode == "both"):
            expected = "a distillation head beside the class head" if mode == "both" else "one head"
            raise ValueError(f"DEIT.MODE {mode} needs a model with {expected}, MODEL.NAME is {model}")
        if mode in ("class", "distill") and not _reads_a_class_token(backbone):
            raise ValueError(f"DEIT.MODE {mode} needs a model whose head reads a class token, MODEL.NAME is {model}")
        if mode in ("soft", "hard") and cfg.DISTILLATION.TYPE == "decoupled":
            raise ValueError(f"DEIT.MODE {mode} says the form itself, DISTILLATION.TYPE is decoupled: see TRAINER kd")
        refuse_mine("deit", cfg.MINE.SAMPLES)
        distilled = {"none": 0.0, "class": 0.0, "distill": 1.0}.get(mode, alpha)
        term = LogitTerm.from_cfg(cfg, form=mode if mode in ("soft", "hard") else "")
        return cls(create_student(backbone), teachers, term, ce_weight=1 - distilled, kd_weight=distilled)


def _reads_a_class_token(backbone) -> bool:
    return getattr(backbone, "cls_token", None) is not None and getattr(backbone, "global_pool", "token") == "token"
