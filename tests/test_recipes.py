"""What the publications set, each number of it, is what the configs of their names set.

Sources: lkhl/tiny-transformers, sunshangquan/logit-standardization-KD, megvii-research/mdistiller, kimyunoo/4782_final,
devrimcavusoglu/std, chenyaofo/pytorch-cifar-models, roymiles/vkd, yzd-v/cls_KD.
"""

import math
from pathlib import Path

import pytest
import timm
from shipped import shipped_configs
from timm.layers import DropPath

from pycls_std import config
from pycls_std.builders.method import build_backbone
from pycls_std.builders.training import build_schedule

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "OPTIM": {
        **{"NAME": "adamw", "BASE_LR": 5e-4, "LR_BATCH": 0, "WEIGHT_DECAY": 0.05, "MAX_EPOCH": 300},
        **{"SCHEDULE": "cosine", "WARMUP_EPOCHS": 20, "WARMUP_LR": 5e-7, "MIN_LR": 5e-6, "CLIP_NORM": 0},
        "LR_PERIOD": "epoch",
    },
    "TRAIN": {"BATCH_SIZE": 128, "EMA_DECAY": 0},
    "AUG": {
        **{"CROP": "resized", "CROP_SCALE": 0.08, "FLIP": 0.5, "RAND_AUGMENT": "rand-m9-mstd0.5-inc1"},
        **{"ERASING": 0.25, "MIXUP": 0, "CUTMIX": 0, "LABEL_SMOOTHING": 0, "INTERPOLATION": "bicubic"},
    },
    "DATA": {"IMAGE_SIZE": 224, "NORMALIZATION": "imagenet", "CROP_RATIO": 1, "INTERPOLATION": "bilinear"},
    "MODEL": {"DROP_PATH": 0.1},
}
PIT = {"MODEL": {"DROP_PATH": pytest.approx(0.1 * 11 / 12)}}
# Their teacher: trained with their augmentation, and in training mode beside the student.
THEIRS = {
    "DISTILLATION": {
        **{"TEACHERS": ["resnet56"], "TEACHER_WEIGHTS": ["runs/r-56_c100_strong/seed0/checkpoints/last.pt"]},
        **{"TEACHER_BN": "batch", "TEACHER_NORMS": [], "TEACHER_SIZES": []},  # both as it was trained
    }
}


def ours(extra):
    """Standardized logits as for transformers."""
    soft = {"TYPE": "soft", "TEMPERATURE": 2, "LOGIT_STANDARD": True, "EXTRA_WEIGHT": extra}
    return {"TRAINER": "kd", "DISTILLATION": soft, "TASK": {"WEIGHT": 0.5}, "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 0}}


def guided(*taps):
    """Locality guidance of these taps."""
    pairs = {"STUDENT_TAPS": list(taps), "TEACHER_TAPS": ["layer1", "layer2", "layer3"], "TRANSFORM": "linear"}
    return {"TRAINER": "locality", "LOCALITY": {"WEIGHT": 2.5, **pairs}, "TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 0}}


VKD = {
    "TRAINER": "vkd",
    "OPTIM": {
        **{"NAME": "adamw", "BASE_LR": 5e-4, "LR_BATCH": 0, "WEIGHT_DECAY": 0.05, "MAX_EPOCH": 300, "CLIP_NORM": 0},
        **{"SCHEDULE": "cosine", "LR_PERIOD": "step", "WARMUP_EPOCHS": 0, "MIN_LR": 5e-6},
    },
    "TRAIN": {"BATCH_SIZE": 512, "EMA_DECAY": 0},
    "AUG": {
        **{"CROP": "resized", "CROP_SCALE": 0.08, "FLIP": 0.5, "INTERPOLATION": "bicubic", "RAND_AUGMENT": ""},
        **{"ERASING": 0, "REPEATS": 1, "THREE_AUGMENT": True, "COLOR_JITTER": 0.3, "LABEL_SMOOTHING": 0.1},
        **{"MIXUP": 0.8, "CUTMIX": 1, "MIX_PROB": 1, "MIX_SWITCH": 0.5},
    },
    "DATA": {"NAME": "image_folder", "IMAGE_SIZE": 224, "CROP_RATIO": 0.875, "INTERPOLATION": "bicubic"},
    "MODEL": {"DROP_PATH": 0, "INIT": "", "NORM_EPS": 0},
    "TASK": {"WEIGHT": 1},
    "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 0},
    "VKD": {
        **{"WEIGHT": 1, "NORM": "layer", "PROJECTION": "orthogonal", "TRIVIALIZE": False},
        **{"STUDENT_TAP": "patches", "TEACHER_TAP": "pooled"},
    },
    "DISTILLATION": {
        **{"TYPE": "soft", "TEMPERATURE": 1, "LOGIT_STANDARD": False, "TEACHER_BN": "eval"},
        **{"TEACHERS": ["regnety_160.deit_in1k"], "TEACHER_WEIGHTS": ["timm"]},
    },
    "TEST": {"PREDICTION": ""},  # the average of both heads
}
MDISTILLER = {
    "TRAINER": "kd",
    "PRECISION": "fp32",
    "OPTIM": {
        **{"NAME": "momentum", "BASE_LR": 0.05, "MOMENTUM": 0.9, "WEIGHT_DECAY": 5e-4, "DECAY_ALL": True},
        **{"MAX_EPOCH": 240},
        **{"SCHEDULE": "step", "STEPS": [150, 180, 210], "GAMMA": 0.1, "WARMUP_EPOCHS": 0},
    },
    "TRAIN": {"BATCH_SIZE": 64},
    "AUG": {"CROP": "pad", "CROP_PADDING": 4, "FLIP": 0.5, "LABEL_SMOOTHING": 0},
}
KIM = {
    "TRAINER": "deit",
    "OPTIM": {
        **{"NAME": "adamw", "BASE_LR": 6.25e-5, "WEIGHT_DECAY": 0.05, "DECAY_ALL": True, "MAX_EPOCH": 20},
        **{"WARMUP_EPOCHS": 5},
    },
    "TRAIN": {"BATCH_SIZE": 64},
    "AUG": {"CROP": "none", "FLIP": 0.5, "RAND_AUGMENT": "rand-m9-n2", "ERASING": 0.25, "LABEL_SMOOTHING": 0.1},
    "DATA": {"IMAGE_SIZE": 224, "NORMALIZATION": "imagenet"},
}
STD = {
    "MODEL": {"NAME": "mixer_s4", "NORM_EPS": 1e-5, "INIT": "torch", "DROP_PATH": 0},
    "OPTIM": {
        **{"NAME": "adamw", "BASE_LR": 5e-4, "LR_BATCH": 512, "WEIGHT_DECAY": 0.05, "MAX_EPOCH": 300, "CLIP_NORM": 0},
        **{"SCHEDULE": "cosine", "LR_PERIOD": "epoch_late", "WARMUP_EPOCHS": 5, "WARMUP_LR": 1e-6, "MIN_LR": 1e-5},
    },
    "TRAIN": {"BATCH_SIZE": 128, "EMA_DECAY": 0.99996},
    "AUG": {
        **{"CROP": "pad", "CROP_PADDING": 4, "FLIP": 0.5, "RAND_AUGMENT": "rand-m9-mstd0.5-inc1", "ERASING": 0.25},
        **{"COLOR_JITTER": 0, "MIXUP": 0.8, "CUTMIX": 1, "MIX_PROB": 1, "MIX_SWITCH": 0.5, "LABEL_SMOOTHING": 0.1},
        **{"REPEATS": 1, "INTERPOLATION": "bicubic"},
    },
    "DATA": {"NAME": "cifar100", "IMAGE_SIZE": 32, "NORMALIZATION": "imagenet", "CROP_RATIO": 1},
}
TOKENS = {
    "TRAINER": "std",
    "TASK": {"WEIGHT": 0.5},
    "STD": {
        **{"WEIGHT": 0.5, "TAPS": ["last"], "ASSIGN": "all", "PROPAGATE": False, "TOKENS": "both"},
        **{"UPDATE": "shared", "TOKEN_STD": 0.2, "DECAY_TOKENS": True},
    },
    "DISTILLATION": {"TYPE": "hard", "WEIGHTING": "entropy", "TEACHER_BN": "eval"},
    "MINE": {
        **{"SAMPLES": 128, "PERIOD": "epoch", "CRITIC_LR": 0.01, "STUDENT_LR": 0.01, "MOMENTUM": 0},
        **{"WIDTH": 512, "DEPTH": 3},
    },
    "TEST": {"PREDICTION": ""},  # the average of both heads
}


def hub(*names):
    """Teachers of chenyaofo's weights that see ImageNet's statistics."""
    weights = [f"published:cifar100_{name}" for name in names]
    return {
        "DISTILLATION": {
            "TEACHERS": list(names),
            "TEACHER_WEIGHTS": weights,
            "TEACHER_NORMS": ["imagenet"] * len(names),
        }
    }


# DeiT's own recipe on ImageNet, whose numbers are the paper's.
IMAGENET = {
    "MODEL": {"NAME": "mixer_s16"},
    "AUG": STD["AUG"] | {"CROP": "resized", "CROP_SCALE": 0.08},
    "DATA": {"NAME": "image_folder", "IMAGE_SIZE": 224, "CROP_RATIO": 0.875},
}
DEIT = {"OPTIM": STD["OPTIM"], "TRAIN": {"BATCH_SIZE": 512, "EMA_DECAY": 0.99996}} | IMAGENET
DEIT |= {"AUG": IMAGENET["AUG"] | {"REPEATS": 3}}
HUB = {
    "TRAINER": "baseline",
    "OPTIM": {
        **{"NAME": "sgd", "BASE_LR": 0.1, "MOMENTUM": 0.9, "WEIGHT_DECAY": 5e-4, "DECAY_ALL": True},
        **{"MAX_EPOCH": 200},
        **{"SCHEDULE": "cosine", "WARMUP_EPOCHS": 0, "MIN_LR": 0},
    },
    "TRAIN": {"BATCH_SIZE": 256},
    "AUG": {"CROP": "pad", "CROP_PADDING": 4, "FLIP": 0.5, "LABEL_SMOOTHING": 0, "RAND_AUGMENT": "", "ERASING": 0},
}
TEACHER = {"DISTILLATION": {"TEACHERS": ["regnetx_004_tv"], "TEMPERATURE": 2, "LOGIT_STANDARD": False}}
TAUGHT = TEACHER | {"TASK": {"WEIGHT": 0.5}, "KD": {"WEIGHT": 0.5, "WARMUP_EPOCHS": 0}}
BLOCKS = ("blocks.0", "blocks.6", "blocks.11")
NEWER = {"t2t-7": "t2t_vit_7", "t2t-14": "t2t_vit_14", "pvt-ti": "pvt_tiny", "cvt-13": "cvt_13"}
GUIDED = {"t2t-7": (0, 3, 6), "t2t-14": (0, 7, 13), "pvt-ti": (0, 3, 7), "cvt-13": (0, 6, 11)}
CYCLE = {f"b{size}": {"MODEL": {"NAME": f"cyclemlp_b{size}", "DROP_PATH": 0.1}} for size in (1, 2)}
LAST_STAGE = {"b1": ["blocks.8", "blocks.9"], "b2": ["blocks.16", "blocks.17"]}
PAPER = {
    "STD": {"TAPS": ["2/3", "last"], "ASSIGN": "one_each", "UPDATE": "own", "DECAY_TOKENS": False},
    **{"DISTILLATION": {"WEIGHTING": "confidence"}, "MODEL": {"INIT": ""}},
}
RECIPES = {
    **{f"{name}_c100_base": [TINY] for name in ("deit-ti", "pvtv2-b0", "convit-ti")},
    "pit-ti_c100_base": [TINY, PIT],
    **{f"{name}_c100_KD_ours": [TINY, ours(9), THEIRS] for name in ("pvtv2-b0", "convit-ti")},
    "pit-ti_c100_KD_ours": [TINY, PIT, ours(9), THEIRS],
    "deit-ti_c100_KD_ours": [TINY, ours(10), THEIRS],
    **{f"{name}_c100_ours": [TINY, guided(*BLOCKS), THEIRS] for name in ("deit-ti", "convit-ti")},
    "pit-ti_c100_ours": [TINY, PIT, guided("transformers.0", "transformers.1", "transformers.2"), THEIRS],
    "pvtv2-b0_c100_ours": [TINY, guided("stages.0", "stages.1", "stages.3"), THEIRS],
    **{f"r-{depth}_{data}": [HUB] for depth in (20, 32, 56) for data in ("c10", "c100")},
    "_reproduction": [STD, TOKENS, hub("resnet56")],
    "mixer-s4_c100_base": [STD, {"TRAINER": "baseline", "TASK": {"WEIGHT": 1}, "MINE": {"SAMPLES": 0}}],
    "mixer-s4_c100_single": [STD, TOKENS, hub("resnet56")],
    "mixer-s4_c100_multi": [STD, TOKENS, hub("resnet32", "resnet56")],
    "mixer-s4_c100_inter": [
        *(STD, TOKENS, hub("resnet32", "resnet56"), {"STD": {"TAPS": ["2/3", "last"], "PROPAGATE": True}})
    ],
    "mixer-s16_in1k_single": [
        *(STD, TOKENS, IMAGENET, {"TRAIN": {"BATCH_SIZE": 64}, "MINE": {"SAMPLES": 64}}),
        {"DISTILLATION": {"TEACHERS": ["resnet50.a1_in1k"], "TEACHER_WEIGHTS": ["timm"]}},
    ],
    "mixer-s16_in1k_base": [DEIT, {"TRAINER": "baseline"}],
    "mixer-s16_in1k_paper": [DEIT, TOKENS, PAPER],
    **{f"{name}_c100_base": [TINY, {"MODEL": {"NAME": model}}] for name, model in NEWER.items()},
    "t2t-7_c100_KD_ours": [TINY, ours(6), {"DISTILLATION": {"TEMPERATURE": 3}}, THEIRS],
    **{f"{name}_c100_KD_ours": [TINY, ours(9), THEIRS] for name in ("t2t-14", "pvt-ti", "cvt-13")},
    **{
        f"{name}_c100_ours": [TINY, guided(*(f"blocks.{block}" for block in blocks)), THEIRS]
        for name, blocks in GUIDED.items()
    },
    **{f"cyclemlp-{size}_in1k_base": [DEIT, {"TRAINER": "baseline"}, own] for size, own in CYCLE.items()},
    **{
        f"cyclemlp-{size}_in1k_paper": [DEIT, TOKENS, PAPER, own, {"STD": {"TAPS": LAST_STAGE[size]}}]
        for size, own in CYCLE.items()
    },
    "resmlp-b24_in1k_paper": [DEIT, TOKENS, PAPER, {"MODEL": {"NAME": "resmlp_b24", "DROP_PATH": 0.1}}],
    "r-20_c100_KD": [
        MDISTILLER,
        {"DISTILLATION": {"TYPE": "soft", "TEMPERATURE": 4, "LOGIT_STANDARD": False}},
        {"TASK": {"WEIGHT": 0.1}, "KD": {"WEIGHT": 0.9, "WARMUP_EPOCHS": 0}},
    ],
    **{f"r-{depth}_c100_base": [MDISTILLER, {"TRAINER": "baseline", "TASK": {"WEIGHT": 1}}] for depth in (20, 56)},
    "r-20_c100_KD_ours": [MDISTILLER, ours(9), {"TASK": {"WEIGHT": 0.1}}],
    "r-20_c100_DKD": [
        MDISTILLER,
        {"DISTILLATION": {"TYPE": "decoupled", "TEMPERATURE": 4, "DKD_ALPHA": 1, "DKD_BETA": 2}},
        {"TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 20}},
    ],
    "r-20_c100_DKD_ours": [
        MDISTILLER,
        {"DISTILLATION": {"TYPE": "decoupled", "TEMPERATURE": 3, "DKD_ALPHA": 18, "DKD_BETA": 36}},  # its log's
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
    "deit-ti_in1k_vkd": [VKD, {"MODEL": {"NAME": "deit_ti_conv"}}],
    "deit-s_in1k_vkd": [VKD, {"MODEL": {"NAME": "deit_s_conv"}}],
    "r-18_c10": [{"OPTIM": {"NAME": "adam", "BASE_LR": 1e-3, "MAX_EPOCH": 20}, "TRAIN": {"BATCH_SIZE": 64}}],
    "r-56_c100_strong": [
        {
            "OPTIM": {"NAME": "sgd", "BASE_LR": 0.1, "WEIGHT_DECAY": 5e-4, "MAX_EPOCH": 300, "LR_PERIOD": "epoch"},
            "TRAIN": {"BATCH_SIZE": 128},
        },
        {"AUG": TINY["AUG"], "DATA": {"IMAGE_SIZE": 32, "NORMALIZATION": "imagenet"}},
    ],
}
# The other data that the source reads and has no configs of: the recipe is that of CIFAR-100, the teacher their own.
OTHER_DATA = {"flowers": ("flowers102", 102), "chaoyang": ("chaoyang", 4), "tin200": ("tiny_imagenet", 200)}


def on_other_data(short):
    """The recipes on one of them, by the names of the configs."""
    name, classes = OTHER_DATA[short]
    data = TINY["DATA"] | {"NAME": name}
    small, large = ({"DATA": data | {"IMAGE_SIZE": side}, "MODEL": {"NUM_CLASSES": classes}} for side in (32, 224))
    own = {"TEACHER_WEIGHTS": [f"runs/r-56_{short}_strong/seed0/checkpoints/last.pt"]}
    taught = {"DISTILLATION": THEIRS["DISTILLATION"] | own}
    return {
        f"r-56_{short}_strong": [*RECIPES["r-56_c100_strong"], small, {"AUG": TINY["AUG"]}],
        f"deit-ti_{short}_base": [TINY, large, {"TRAINER": "baseline", "DISTILLATION": {"TEACHERS": []}}],
        f"deit-ti_{short}_ours": [TINY, large, guided(*BLOCKS), taught],
    }


for short in OTHER_DATA:
    RECIPES |= on_other_data(short)
# The tables of CIFAR-100: teacher and student, and every row's weights beside their common recipe.
PAIRS = {"r-20": ("resnet20", "resnet56"), "r-32": ("resnet32", "resnet110"), "r-8x4": ("resnet8x4", "resnet32x4")}
BASELINE = {"TRAINER": "baseline", "TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 0}, "DISTILLATION": {"TEACHERS": []}}
FORMS = {"fitnet": 100, "at": 1000, "sp": 3000, "pkt": 30000, "rkd": 1, "nst": 50, "vid": 1, "crd": 0.8}
NAMED = {"fitnet": "FitNet"}
REVIEW = {"r-20": 0.6, "r-32": 1, "r-8x4": 5}
FORM = {
    "KD": [{"DISTILLATION": {"TYPE": "soft", "TEMPERATURE": 4}, "TASK": {"WEIGHT": 0.1}, "KD": {"WEIGHT": 0.9}}],
    "KD_ours": [ours(9), {"TASK": {"WEIGHT": 0.1}}],
    "DKD": [
        {"DISTILLATION": {"TYPE": "decoupled", "TEMPERATURE": 4, "DKD_ALPHA": 1, "DKD_BETA": 8}},
        {"TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 20}},
    ],
    "NKD": [
        {"DISTILLATION": {"TYPE": "nkd", "TEMPERATURE": 3, "NKD_GAMMA": 3.5}},  # its config's for other ResNets
        {"TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 1, "WARMUP_EPOCHS": 0}},
    ],
    "DIST": [
        {"DISTILLATION": {"TYPE": "dist", "TEMPERATURE": 4, "DIST_BETA": 1, "DIST_GAMMA": 1}},
        {"TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 2, "WARMUP_EPOCHS": 0}},
    ],
    "TTM": [{"DISTILLATION": {"TYPE": "ttm"}, "TASK": {"WEIGHT": 1}}],
    "WTTM": [{"DISTILLATION": {"TYPE": "wttm"}, "TASK": {"WEIGHT": 1}}],
    "CTKD": [
        {"DISTILLATION": {"TYPE": "ctkd", "CTKD_EPOCHS": 10, "CTKD_LEAST": 1, "CTKD_RANGE": 20}},
        {"TASK": {"WEIGHT": 0.1}, "KD": {"WEIGHT": 0.9, "WARMUP_EPOCHS": 0}},
    ],
}


def featured(pair, form, weight, **more):
    """A row of feature distillation."""
    student, teacher = PAIRS[pair]
    own = {"LOSS": form, "WEIGHT": weight, "WARMUP_EPOCHS": 0, "STUDENT_TAPS": [], "TEACHER_TAPS": []} | more
    parts = {"TRAINER": "feature", "FEATURE": own, "TASK": {"WEIGHT": 1}, "KD": {"WEIGHT": 0}}
    return [MDISTILLER, parts, {"MODEL": {"NAME": student}, "DISTILLATION": {"TEACHERS": [teacher]}}]


REVIEWED = {
    "OPTIM": MDISTILLER["OPTIM"] | {"NAME": "sgd", "BASE_LR": 0.1, "STEPS": [151, 181, 211]},
    "TRAIN": {"BATCH_SIZE": 128},
}
REVIEWED |= {"DISTILLATION": {"TEACHER_BN": "batch", "TEACHER_ARGS": [{"taps": "before_relu"}]}}
# Exponent and weight of a pair. Source: Zheng and Yang, ICLR 2024, table 8.
MATCHED = {"r-20": {"TTM": (0.3, 7), "WTTM": (0.3, 1.5)}, "r-8x4": {"TTM": (0.1, 100), "WTTM": (0.1, 3)}}


def matched(pair, form):
    """Exponent and weight of a row, of a form that has them for each pair."""
    gamma, weight = MATCHED.get(pair, {}).get(form, (None, None))
    return {"DISTILLATION": {"TTM_GAMMA": gamma}, "KD": {"WEIGHT": weight}} if gamma else {}


RECIPES |= {
    **{f"{name}_c100_base": [MDISTILLER, BASELINE, {"MODEL": {"NAME": PAIRS[name][0]}}] for name in PAIRS},
    **{f"r-{d}_c100": [MDISTILLER, BASELINE, {"MODEL": {"NAME": f"resnet{d}"}}] for d in ("110", "32x4")},
    **{
        f"{pair}_c100_{NAMED.get(form, form.upper())}": featured(pair, form, weight)
        for pair in PAIRS
        for form, weight in FORMS.items()
    },
    **{f"{pair}_c100_RSD": featured(pair, "rsd", 0.1) for pair in ("r-20", "r-8x4")},
    **{
        f"{pair}_c100_ReviewKD": [*featured(pair, "reviewkd", weight, WARMUP_EPOCHS=20), REVIEWED]
        for pair, weight in REVIEW.items()
    },
    **{
        f"{pair}_c100_{form}": [
            *(
                MDISTILLER,
                *FORM[form],
                {"MODEL": {"NAME": PAIRS[pair][0]}, "DISTILLATION": {"TEACHERS": [PAIRS[pair][1]]}},
                matched(pair, form),
            )
        ]
        for pair, forms in {
            "r-20": ("NKD", "DIST", "TTM", "WTTM", "CTKD"),
            "r-32": ("KD",),
            "r-8x4": tuple(FORM),
        }.items()
        for form in forms
    },
}
# Stand-ins at another size, whose headers say of what.
STAND_INS = "deit-nano_c10jpeg_"


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


def test_every_published_number_has_its_recipe_here():
    paths = [path for path in shipped_configs() if config.load(str(path)).PUBLISHED.TOP1 >= 0]
    assert {path.stem for path in paths if not path.stem.startswith(STAND_INS)} <= RECIPES.keys()


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("deit-ti", [0.1 * i / 11 for i in range(12)]),
        ("convit-ti", [0.1 * i / 11 for i in range(12)]),
        ("pvtv2-b0", [0.1 * i / 7 for i in range(8)]),
        ("pit-ti", [0.1 * i / 12 for i in range(12)]),
        ("t2t-7", [0.1 * i / 6 for i in range(7)]),
        ("t2t-14", [0.1 * i / 13 for i in range(14)]),
        ("pvt-ti", [0.1 * i / 7 for i in range(8)]),
        ("cvt-13", [0.1 * i / 9 for i in range(10)]),  # of its last stage, the two before have none
    ],
)
def test_drop_path_of_each_block_is_the_published_one(name, rates):
    """From 0 to 0.1 at the last block; PiT divides by the number of blocks and ends before."""
    (path,) = (ROOT / "configs").rglob(f"{name}_c100_base.yaml")
    backbone = build_backbone(config.load(str(path)), 100)
    found = {}
    for key, module in backbone.named_modules():
        if isinstance(module, DropPath) and module.drop_prob:
            found.setdefault(key.rpartition(".")[0], set()).add(module.drop_prob)
    assert rates[0] == 0  # where there is none
    assert [len(probabilities) for probabilities in found.values()] == [1] * (len(rates) - 1)
    assert sum(map(list, found.values()), []) == pytest.approx(rates[1:])


def test_the_alpha_and_beta_that_a_command_of_logit_standardization_sets():
    """The fork multiplies both of its config by --kd-weight: the log named 3,18,2.0 is of alpha 18, beta 36, T 3."""
    options = config.load(str(ROOT / "configs/resnet/r-20_c100_DKD.yaml")).DISTILLATION
    log = config.load(str(ROOT / "configs/resnet/r-20_c100_DKD_ours.yaml")).DISTILLATION
    assert (log.DKD_ALPHA, log.DKD_BETA, log.TEMPERATURE) == (18 * options.DKD_ALPHA, 18 * options.DKD_BETA, 3)


def test_the_rate_of_vkd_falls_from_the_first_iteration_on():
    """Half a cosine from 5e-4 to 5e-6, without a warm-up, whatever the batch."""
    for words in ([], ["TRAIN.BATCH_SIZE=1024"]):
        schedule = build_schedule(config.load(str(ROOT / "configs/vkd/deit-ti_in1k_vkd.yaml"), words))
        for progress in (0, 0.001, 0.25, 0.5, 1):
            expected = 5e-6 + (5e-4 - 5e-6) * (1 + math.cos(math.pi * progress)) / 2
            assert schedule(progress) == pytest.approx(expected)


def test_the_reproduction_and_the_paper_differ_in_what_their_headers_say():
    """Of the arrangement on CIFAR-100, beside where the tokens are and whom they listen to."""
    paths = (ROOT / f"configs/std/mixer-s4_c100_{name}.yaml" for name in ("multi", "paper"))
    reproduction, paper = (config.flatten(config.load(str(path))) for path in paths)
    differing = {key for key in reproduction if reproduction[key] != paper[key]}
    said = {"MODEL.INIT", "DISTILLATION.TEACHER_NORMS", "DISTILLATION.WEIGHTING", "STD.UPDATE", "STD.DECAY_TOKENS"}
    placed = {"STD.TAPS", "STD.ASSIGN", "DISTILLATION.TEACHER_MIN_ACC"}
    rest = {"NAME", "PUBLISHED.TOP1", "PUBLISHED.TOP5", "PUBLISHED.SOURCE"}
    assert differing == said | placed | rest


# What each ablation of STD has otherwise than the row beside it, in the folder of ablations.
R50, R101, SWIN = "resnet50.tv_in1k", "resnet101.tv_in1k", "swin_base_patch4_window7_224.ms_in1k"
AT_LAST = {"STD.TAPS": ["last"], "STD.ASSIGN": "all"}
ONE_EACH = {"in1k_R50": [R50], "in1k_R101": [R101], "in1k_Swin-B": [SWIN], "in1k_R50-R101-Swin-B": [R50, R101, SWIN]}
ABLATIONS = {
    "in1k_last": ("in1k_paper", AT_LAST),
    "in1k_inter": ("in1k_last", {"STD.TAPS": ["2/3", "last"]}),
    "in1k_propagated": ("in1k_inter", {"STD.PROPAGATE": True}),
    "in1k_last-shared": ("in1k_last", {"STD.UPDATE": "shared"}),
    **{
        name: ("in1k_last", {"DISTILLATION.TEACHERS": own, "DISTILLATION.TEACHER_WEIGHTS": ["timm"] * len(own)})
        for name, own in ONE_EACH.items()
    },
    "in1k_R50-Swin-B": ("in1k_paper", {"DISTILLATION.TEACHERS": [R50, SWIN]}),
    "in1k_R101-Swin-B": ("in1k_paper", {"DISTILLATION.TEACHERS": [R101, SWIN]}),
    "in1k_no-MINE": ("in1k_paper", {"MINE.SAMPLES": 0}),
    **{f"in1k_{kind}": ("in1k_no-MINE", {"STD.TOKENS": kind}) for kind in ("spatial", "channel")},
    "in1k_no-tokens": ("in1k_no-MINE", {"STD.TOKENS": "none"}),
    **{f"in1k_{form}": ("in1k_paper", {"DISTILLATION.WEIGHTING": form}) for form in ("uniform", "entropy")},
    "in1k_class": ("in1k_paper", {"TEST.PREDICTION": "cls"}),
    "in1k_distillation": ("in1k_paper", {"TEST.PREDICTION": "dist"}),
}


def options_named(name):
    """The options of the Mixer-S/16 of this name, those apart that say what it is called and published as."""
    (path,) = (ROOT / "configs").rglob(f"mixer-s16_{name}.yaml")
    options = config.flatten(config.load(str(path)))
    return {key: value for key, value in options.items() if key != "NAME" and "PUBLISHED" not in key}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_of_std_changes_one_thing(name):
    """Every run of it is the row beside it in all else, so that a difference of the two has one cause."""
    beside, changed = ABLATIONS[name]
    assert options_named(name) == options_named(beside) | changed
    assert options_named(name) != options_named(beside)


def test_every_ablation_of_std_is_among_these():
    files = (ROOT / "configs/std/ablations").glob("mixer-s16_*.yaml")
    assert {path.stem.removeprefix("mixer-s16_") for path in files} == ABLATIONS.keys()


def test_teachers_of_timm_are_pinned_by_the_tag_of_their_weights():
    """timm may give a name without a tag other weights; among them the STD paper's teachers, alone and together."""
    found = set()
    for path in shipped_configs():
        options = config.load(str(path)).DISTILLATION
        pairs = zip(options.TEACHERS, options.TEACHER_WEIGHTS, strict=True)
        found |= {name for name, weights in pairs if weights == "timm"}
    assert {R50, R101, SWIN} <= found
    assert [name for name in found if "." not in name or not timm.models.is_model_pretrained(name)] == []
