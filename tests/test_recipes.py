"""What the publications set, each number of it, is what the configs of their names set.

Sources: lkhl/tiny-transformers, sunshangquan/logit-standardization-KD, megvii-research/mdistiller, kimyunoo/4782_final.
"""

from pathlib import Path

import pytest

from pycls_std import config

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "OPTIM": {
        **{"NAME": "adamw", "BASE_LR": 5e-4, "LR_BATCH": 0, "WEIGHT_DECAY": 0.05, "MAX_EPOCH": 300},
        **{"SCHEDULE": "cosine", "WARMUP_EPOCHS": 20, "WARMUP_LR": 5e-7, "MIN_LR": 5e-6, "CLIP_NORM": 0},
    },
    "TRAIN": {"BATCH_SIZE": 128, "EMA_DECAY": 0},
    "AUG": {
        **{"CROP": "resized", "CROP_SCALE": 0.08, "FLIP": 0.5, "RAND_AUGMENT": "rand-m9-mstd0.5-inc1"},
        **{"ERASING": 0.25, "MIXUP": 0, "CUTMIX": 0, "LABEL_SMOOTHING": 0},
    },
    "DATA": {"IMAGE_SIZE": 224, "NORMALIZATION": "imagenet", "CROP_RATIO": 1},
    "MODEL": {"DROP_PATH": 0.1},
}


def ours(extra):
    """Standardized logits as for transformers."""
    soft = {"TYPE": "soft", "TEMPERATURE": 2, "LOGIT_STANDARD": True, "EXTRA_WEIGHT": extra}
    return {"TRAINER": "kd", "DISTILLATION": soft, "TASK": {"WEIGHT": 0.5}, "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 0}}


MDISTILLER = {
    "TRAINER": "kd",
    "OPTIM": {
        **{"NAME": "momentum", "BASE_LR": 0.05, "MOMENTUM": 0.9, "WEIGHT_DECAY": 5e-4, "MAX_EPOCH": 240},
        **{"SCHEDULE": "step", "STEPS": [150, 180, 210], "GAMMA": 0.1, "WARMUP_EPOCHS": 0},
    },
    "TRAIN": {"BATCH_SIZE": 64},
    "AUG": {"CROP": "pad", "CROP_PADDING": 4, "FLIP": 0.5, "LABEL_SMOOTHING": 0},
}
KIM = {
    "TRAINER": "deit",
    "OPTIM": {"NAME": "adamw", "BASE_LR": 6.25e-5, "WEIGHT_DECAY": 0.05, "MAX_EPOCH": 20, "WARMUP_EPOCHS": 5},
    "TRAIN": {"BATCH_SIZE": 64},
    "AUG": {"CROP": "none", "FLIP": 0.5, "RAND_AUGMENT": "rand-m9-n2", "ERASING": 0.25, "LABEL_SMOOTHING": 0.1},
    "DATA": {"IMAGE_SIZE": 224, "NORMALIZATION": "imagenet"},
}
TEACHER = {"DISTILLATION": {"TEACHERS": ["regnetx_004_tv"], "TEMPERATURE": 2, "LOGIT_STANDARD": False}}
TAUGHT = TEACHER | {"TASK": {"WEIGHT": 0.5}, "KD": {"WEIGHT": 0.5, "WARMUP_EPOCHS": 0}}
RECIPES = {
    **{f"{name}_c100_base": [TINY] for name in ("deit-ti", "pit-ti", "pvtv2-b0", "convit-ti")},
    **{f"{name}_c100_KD_ours": [TINY, ours(9)] for name in ("pit-ti", "pvtv2-b0", "convit-ti")},
    "deit-ti_c100_KD_ours": [TINY, ours(10)],
    "r-20_c100_KD": [
        MDISTILLER,
        {"DISTILLATION": {"TYPE": "soft", "TEMPERATURE": 4, "LOGIT_STANDARD": False}},
        {"TASK": {"WEIGHT": 0.1}, "KD": {"WEIGHT": 0.9, "WARMUP_EPOCHS": 0}},
    ],
    "r-20_c100_KD_ours": [MDISTILLER, ours(9), {"TASK": {"WEIGHT": 0.1}}],
    "r-20_c100_DKD": [
        MDISTILLER,
        {"DISTILLATION": {"TYPE": "decoupled", "TEMPERATURE": 4, "DKD_ALPHA": 1, "DKD_BETA": 2}},
        {"TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 20}},
    ],
    "r-20_c100_DKD_ours": [
        MDISTILLER,
        {"DISTILLATION": {"TYPE": "decoupled", "TEMPERATURE": 4, "DKD_ALPHA": 9, "DKD_BETA": 81}},
        {"DISTILLATION": {"LOGIT_STANDARD": True, "EXTRA_WEIGHT": 1}, "KD": {"WARMUP_EPOCHS": 20}},
    ],
    "deit-ti_c10_none": [KIM, {"DEIT": {"MODE": "none"}, "TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 0}}],
    "deit-ti_c10_class": [KIM, {"DEIT": {"MODE": "class"}, "TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 0}}],
    "deit-ti_c10_soft": [KIM, TAUGHT, {"DEIT": {"MODE": "soft"}, "DISTILLATION": {"TYPE": "soft"}}],
    "deit-ti_c10_hard": [KIM, TAUGHT, {"DEIT": {"MODE": "hard"}, "DISTILLATION": {"TYPE": "hard"}}],
    "deit-ti_c10_distill": [
        *(KIM, TEACHER, {"DEIT": {"MODE": "distill"}, "DISTILLATION": {"TYPE": "hard"}}),
        {"TASK": {"WEIGHT": 0}, "KD": {"WEIGHT": 1}},
    ],
    "deit-ti_c10_both-soft": [KIM, TAUGHT, {"DEIT": {"MODE": "both"}, "DISTILLATION": {"TYPE": "soft"}}],
    "deit-ti_c10_both-hard": [KIM, TAUGHT, {"DEIT": {"MODE": "both"}, "DISTILLATION": {"TYPE": "hard"}}],
    "r-18_c10": [{"OPTIM": {"NAME": "adam", "BASE_LR": 1e-3, "MAX_EPOCH": 20}, "TRAIN": {"BATCH_SIZE": 64}}],
    "r-56_c100_strong": [
        {
            "OPTIM": {"NAME": "sgd", "BASE_LR": 0.1, "WEIGHT_DECAY": 5e-4, "MAX_EPOCH": 300},
            "TRAIN": {"BATCH_SIZE": 128},
        },
        {"AUG": TINY["AUG"], "DATA": {"IMAGE_SIZE": 32, "NORMALIZATION": "imagenet"}},
    ],
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_published_ones(name):
    (path,) = (ROOT / "configs").rglob(f"{name}.yaml")
    options = config.flatten(config.load(str(path)))
    expected = {}  # a later part replaces what an earlier one says
    for part in RECIPES[name]:
        for section, values in part.items():
            single = not isinstance(values, dict)
            expected |= {section: values} if single else {f"{section}.{key}": v for key, v in values.items()}
    assert {key: options[key] for key in expected} == expected
