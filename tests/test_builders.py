"""From options to parts: every option reaches the part it is for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from shipped import foreign_sections
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from pycls_std import config
from pycls_std.builders.data import build_data
from pycls_std.builders.method import build_backbone
from pycls_std.builders.models import PretrainedWeights
from pycls_std.builders.training import assemble, build_runtime
from pycls_std.builders.weights import Weights
from pycls_std.core.registry import FEATURE_NORMS, FEATURE_TRANSFORMS, WEIGHTINGS
from pycls_std.datasets.loader import batch_at_test
from pycls_std.datasets.memory.views import MemoryLoader
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.three_augment import ThreeAugment
from pycls_std.datasets.transforms import Augmentation
from pycls_std.losses.logit import (
    decoupled_distillation,
    hard_distillation,
    normalized_distillation,
    soft_distillation,
    standardized,
)
from pycls_std.losses.logit_relations import relation_distillation
from pycls_std.losses.logit_targets import enhanced_distillation, weighted_transformed_distillation

BILINEAR = transforms.InterpolationMode.BILINEAR
LOGITS = torch.randn(2, 3, 5, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(5)


def build(**overrides):
    """Return the parts of the debug STD run with one untrained teacher."""
    words = {"DATA__LOADER": "workers"} | overrides
    words = [f"{key.replace('__', '.')}={value}" for key, value in words.items()]
    cfg = config.load(str(ROOT / "configs" / "debug" / "std_debug.yaml"), words)
    data, none = build_data(cfg), Weights(None, "none")
    weights = PretrainedWeights(none, [none] * len(cfg.DISTILLATION.TEACHERS))
    session = assemble(cfg, data=data, runtime=build_runtime(cfg), weights=weights)
    trainer = session.trainer
    branch = trainer.student.branches["std"]
    return SimpleNamespace(
        cfg=cfg,
        data=data,
        trainer=trainer,
        session=session,
        student=trainer.student,
        terms=trainer.terms,
        mine=dict(trainer.auxiliary.items()).get("mine"),
        mixing=session.task.mixing,
        branch=branch,
    )


@pytest.fixture(scope="module")
def default():
    """The parts as they are without an override."""
    return build()


def step_of(parts, kind, split="train"):
    """The step of a kind in the transform of a split."""
    return next(s for s in getattr(parts.data, split).dataset.transform.transforms if isinstance(s, kind))


def first(module, kind):
    """First module of a kind."""
    return next(m for m in module.modules() if isinstance(m, kind))


def each(parts):
    """The distillation loss of each image."""
    return parts.terms["std"].loss.each(*LOGITS, nn.functional.one_hot(LABELS, 10) * 0.5 + 0.05)


def decayed(parts):
    """Weight decays of the parameter groups."""
    return {group["weight_decay"] for group in parts.session.optimizer.param_groups}


# option: (value, what it must be found to do); values differ, so that no part is taken for another one
WIRING = {
    "SEED": ("7", lambda p: p.session.runtime.seed == p.data.train.dataset.seed == p.data.train.sampler.seed == 7),
    "PRECISION": ("bf16", lambda p: p.session.runtime.precision == "bf16"),
    "DEVICE": ("cpu", lambda p: p.session.runtime.device.type == "cpu"),
    "LOG_PERIOD": ("3", lambda p: p.session.log_period == 3),
    "MODEL.NAME": ("resmlp_s12", lambda p: type(p.student.backbone.norm).__name__ == "Affine"),
    "MODEL.DROP_PATH": ("0.41", lambda p: p.student.backbone.blocks[0].drop_path.drop_prob == 0.41),
    "MODEL.NORM_EPS": ("1e-3", lambda p: p.student.backbone.norm.eps == 1e-3),
    "MODEL.FREEZE": (
        "[blocks.0]",
        lambda p: not any(q.requires_grad for q in p.student.backbone.blocks[0].parameters()),
    ),
    "TRAIN.ACCUMULATE": ("2", lambda p: p.session.accumulate == 2),
    "MODEL.INIT": ("torch", lambda p: p.student.backbone.head.weight.any()),
    "DATA.IMAGE_SIZE": ("16", lambda p: next(iter(p.data.test)).images.shape[2:] == (16, 16)),
    "DATA.NORMALIZATION": (
        "half",
        lambda p: (
            p.data.normalization == NORMALIZATIONS["half"]
            and step_of(p, transforms.Normalize).mean == step_of(p, transforms.Normalize, "test").mean == (0.5,) * 3
        ),
    ),
    "DATA.FIT": ("squash", lambda p: p.session.task.pipeline(normalization=None).fit == "squash"),
    "DATA.CROP_RATIO": (
        "0.5",
        lambda p: set(np.ravel(step_of(p, transforms.Resize, "test").size)) == {2 * p.cfg.DATA.IMAGE_SIZE},
    ),
    "DATA.INTERPOLATION": ("bilinear", lambda p: step_of(p, transforms.Resize, "test").interpolation == BILINEAR),
    "DATA.NUM_WORKERS": ("1", lambda p: p.data.train.num_workers == p.data.test.num_workers == 1),
    "AUG.CROP": ("resized", lambda p: step_of(p, transforms.RandomResizedCrop).size == (8, 8)),
    "AUG.INTERPOLATION": ("bilinear", lambda p: step_of(p, transforms.Resize).interpolation == BILINEAR),
    "AUG.CROP_PADDING": ("2", lambda p: step_of(p, transforms.RandomCrop).padding == 2),
    "AUG.FLIP": ("0.42", lambda p: step_of(p, transforms.RandomHorizontalFlip).p == 0.42),
    "AUG.RAND_AUGMENT": ("rand-m3", lambda p: step_of(p, RandAugment).ops[0].magnitude == 3),
    "AUG.THREE_AUGMENT": ("true", lambda p: step_of(p, ThreeAugment) is not None),
    "AUG.COLOR_JITTER": ("0.2", lambda p: step_of(p, transforms.ColorJitter).saturation == (0.8, 1.2)),
    "AUG.ERASING": ("0.43", lambda p: step_of(p, RandomErasing).probability == 0.43),
    "AUG.MIXUP": ("0.31", lambda p: p.mixing.mixup.mixup_alpha == 0.31),
    "AUG.CUTMIX": ("0.32", lambda p: p.mixing.mixup.cutmix_alpha == 0.32),
    "AUG.MIX_PROB": ("0.33", lambda p: p.mixing.mixup.mix_prob == 0.33),
    "AUG.MIX_SWITCH": ("0.34", lambda p: p.mixing.mixup.switch_prob == 0.34),
    "AUG.LABEL_SMOOTHING": ("0.35", lambda p: p.mixing.smoothing == 0.35),
    "AUG.REPEATS": ("2", lambda p: p.data.train.sampler.repeats == p.mine.repeats == 2),
    "DATA.VAL_FRACTION": ("0.5", lambda p: len(p.data.val.dataset) == 718 and p.session.val_loader is p.data.val),
    "DATA.PER_CLASS": ("20", lambda p: len(p.data.train.dataset) == p.data.images == 200),
    "DISTILLATION.TYPE": ("soft", lambda p: torch.equal(each(p), soft_distillation(*LOGITS))),
    "DISTILLATION.EXTRA_WEIGHT": ("3.0", lambda p: p.terms["std"].loss.extra_weight == 3.0),
    "TASK.WEIGHT": ("0.36", lambda p: p.terms["task"].weight == 0.36),
    "KD.WEIGHT": ("0.37", lambda p: p.terms["kd"].weight == 0.37),
    "DISTILLATION.WEIGHTING": ("entropy", lambda p: p.terms["std"].loss.weighting is WEIGHTINGS.get("entropy")),
    "STD.WEIGHT": ("0.38", lambda p: p.terms["std"].weight == 0.38),
    "STD.TAPS": ("[1, 2]", lambda p: p.branch.layout.taps == ("blocks.1", "blocks.2")),
    "STD.PROPAGATE": ("true", lambda p: p.branch.layout.propagate),
    "STD.UPDATE": ("shared", lambda p: p.branch.layout.shared_update),
    "STD.TOKEN_STD": ("3.0", lambda p: p.branch.tokens[0].spatial.std() > 0.5),
    "STD.DECAY_TOKENS": ("true", lambda p: not any(".tokens." in name for name in p.student.no_weight_decay())),
    "MINE.SAMPLES": ("9", lambda p: p.mine.samples == 9),
    "MINE.PERIOD": ("step", lambda p: p.mine.period == "step"),
    "MINE.CRITIC_LR": ("0.44", lambda p: p.mine.optimizers[0].param_groups[0]["lr"] == 0.44),
    "MINE.STUDENT_LR": ("0.45", lambda p: p.mine.optimizers[1].param_groups[0]["lr"] == 0.45),
    "MINE.MOMENTUM": ("0.46", lambda p: {o.param_groups[0]["momentum"] for o in p.mine.optimizers} == {0.46}),
    "MINE.WIDTH": ("7", lambda p: first(p.mine.critics, nn.Linear).out_features == 7),
    "MINE.DEPTH": ("2", lambda p: sum(isinstance(m, nn.Linear) for m in p.mine.critics[0]) == 2),
    "OPTIM.NAME": ("lamb", lambda p: type(p.session.optimizer).__name__ == "Lamb"),
    "OPTIM.BASE_LR": ("0.3", lambda p: max(map(p.session.schedule, (0, 1 / 3))) == pytest.approx(0.225)),
    "OPTIM.LR_BATCH": ("64", lambda p: p.session.schedule(1 / 3) == pytest.approx(0.002 * 2 * 0.75)),
    "OPTIM.WEIGHT_DECAY": ("0.47", lambda p: max(decayed(p)) == 0.47),
    "OPTIM.DECAY_ALL": ("true", lambda p: 0.0 not in decayed(p)),
    "OPTIM.DECAY_ALL_OF": ("[norm]", lambda p: [len(g["params"]) for g in p.session.optimizer.param_groups][2:] == [2]),
    "OPTIM.CLIP_NORM": ("0.48", lambda p: p.session.clip_norm == 0.48),
    "OPTIM.MAX_EPOCH": ("9", lambda p: p.session.epochs == 9),
    "OPTIM.SCHEDULE": ("constant", lambda p: p.session.schedule(0.9) == 0.002),
    "OPTIM.WARMUP_EPOCHS": ("1.5", lambda p: p.session.schedule(0.25) == pytest.approx((0.002 + 1e-6) / 2)),
    "OPTIM.WARMUP_LR": ("0.5", lambda p: p.session.schedule(0) == 0.5),
    "OPTIM.LR_PERIOD": ("epoch", lambda p: p.session.schedule(0.9) == p.session.schedule(2 / 3)),
    "OPTIM.MIN_LR": ("0.001", lambda p: p.session.schedule(1) == 0.001),
    "TRAIN.BATCH_SIZE": ("64", lambda p: p.data.train.batch_size == 64),
    "TRAIN.COMPILE": ("on", lambda p: p.session.runtime.compiled == "on"),
    "TRAIN.EMA_DECAY": ("0.49", lambda p: p.session.ema.decay == 0.49),
    "TRAIN.EMA_WARMUP": ("false", lambda p: not p.session.ema.use_warmup),
    "TEST.BATCH_SIZE": ("77", lambda p: p.data.test.batch_size == 77),
    "TEST.PERIOD": ("2", lambda p: p.session.test_period == 2),
    "TEST.PREDICTION": ("dist", lambda p: p.trainer.prediction == "dist"),
}
# options that stand in each other's way, each tried alone; all others are tried in one run
ALONE = {
    *("MODEL.NAME", "AUG.CROP", "OPTIM.BASE_LR", "OPTIM.LR_BATCH", "OPTIM.SCHEDULE", "OPTIM.WARMUP_EPOCHS"),
    *("OPTIM.WARMUP_LR", "OPTIM.MAX_EPOCH", "OPTIM.DECAY_ALL_OF"),
}
# options that need others beside them
PAIRS = [
    (
        {"AUG__CROP": "resized", "AUG__CROP_SCALE": 0.7},
        lambda p: step_of(p, transforms.RandomResizedCrop).scale == (0.7, 1.0),
    ),
    (
        {"DISTILLATION__TYPE": "soft", "DISTILLATION__TEMPERATURE": 3.0},
        lambda p: torch.equal(each(p), soft_distillation(*LOGITS, 3.0)),
    ),
    ({"DISTILLATION__TYPE": "hard"}, lambda p: torch.equal(each(p), hard_distillation(*LOGITS))),
    (
        {"DISTILLATION__TYPE": "soft", "DISTILLATION__LOGIT_STANDARD": "true", "DISTILLATION__EXTRA_WEIGHT": 3.0},
        lambda p: torch.equal(each(p), 3 * soft_distillation(*map(standardized, LOGITS))),
    ),
    (
        {"DISTILLATION__TYPE": "soft", "DISTILLATION__EXTRA_WEIGHT": 3.0},  # only with LOGIT_STANDARD
        lambda p: torch.equal(each(p), soft_distillation(*LOGITS)),
    ),
    (
        {
            "DISTILLATION__TYPE": "decoupled",
            "DISTILLATION__TEMPERATURE": 3.0,
            "DISTILLATION__DKD_ALPHA": 2.0,
            "DISTILLATION__DKD_BETA": 5.0,
        },
        lambda p: torch.equal(each(p), decoupled_distillation(*LOGITS, LABELS, 3.0, dkd_alpha=2.0, dkd_beta=5.0)),
    ),
    ({"STD__TAPS": "[last]", "STD__ASSIGN": "one_each"}, lambda p: p.branch.layout.teachers == ((0,),)),
    ({"STD__TOKENS": "spatial", "MINE__SAMPLES": 0}, lambda p: p.branch.tokens[0].channel is None),
    ({"OPTIM__NAME": "sgd", "OPTIM__MOMENTUM": 0.3}, lambda p: p.session.optimizer.param_groups[0]["momentum"] == 0.3),
    (
        {"OPTIM__SCHEDULE": "step", "OPTIM__STEPS": "[2]", "OPTIM__GAMMA": 0.5, "OPTIM__MIN_LR": 0.1},
        lambda p: [p.session.schedule(x) for x in (0.5, 0.7)] == [0.002, 0.001],
    ),
]
# the same for images in memory
MEMORY = {
    "DATA__LOADER": "memory",
    "DATA__NORMALIZATION": "half",
    "DATA__CROP_RATIO": 0.5,
    "SEED": 7,
    "AUG__CROP": "resized",
    "AUG__CROP_PADDING": 2,
    "AUG__CROP_SCALE": 0.7,
    "AUG__FLIP": 0.3,
    "AUG__RAND_AUGMENT": "rand-m3-n5",
    "AUG__COLOR_JITTER": 0.2,
    "AUG__ERASING": 0.4,
    "AUG__INTERPOLATION": "bilinear",
    "AUG__THREE_AUGMENT": "true",
}
PAIRS += [
    (
        MEMORY,
        lambda p: (
            p.data.train.dataset.transform.options
            == Augmentation("resized", 2, 0.7, 0.3, "rand-m3-n5", 0.2, 0.4, "bilinear", True)
        ),
        lambda p: p.data.train.dataset.transform.seed == 7,
        lambda p: p.data.train.dataset.transform.rand_augment.layers == 5,
        lambda p: p.data.train.dataset.transform.erase.probability == 0.4,
        lambda p: float(next(iter(p.data.test)).images.min()) == -1.0,
    ),
    (
        {"DATA__LOADER": "auto"},
        lambda p: isinstance(p.data.train, MemoryLoader) and isinstance(p.data.test, MemoryLoader),
    ),
    (
        {"DATA__LOADER": "workers"},
        lambda p: isinstance(p.data.train, DataLoader) and isinstance(p.data.test, DataLoader),
    ),
]
# terms that join a method
PAIRS += [
    ({"KD__WEIGHT": 0.5, "KD__WARMUP_EPOCHS": 3}, lambda p: p.terms["kd"].warmup == 3),
    (
        {"LOCALITY__WEIGHT": 0.3, "LOCALITY__STUDENT_TAPS": "[1, -1]", "LOCALITY__TEACHER_TAPS": "[0, 2]"},
        lambda p: p.terms["locality"].weight == 0.3,
        lambda p: p.terms["locality"].pairs == [("blocks.1", "layer1"), ("blocks.3", "layer3")],
    ),
    (
        {
            "LOCALITY__WEIGHT": 0.3,
            "LOCALITY__TRANSFORM": "attention",
            "LOCALITY__TEACHER": 1,
            "DISTILLATION__TEACHERS": "[resnet8, resnet8]",
            "DISTILLATION__TEACHER_WEIGHTS": "[none, none]",
        },
        lambda p: p.terms["locality"].transform is FEATURE_TRANSFORMS.get("attention"),
        lambda p: list(p.terms["locality"].teacher_taps) == [1],
    ),
    (
        {
            **{"VKD__WEIGHT": 0.4, "VKD__STUDENT_TAP": "0", "VKD__TEACHER_TAP": "layer2", "VKD__NORM": "whiten"},
            **{"VKD__SHRINKAGE": 0.2, "VKD__MAP": "cayley", "VKD__TRIVIALIZE": "true", "VKD__TEACHER": 1},
            "DISTILLATION__TEACHERS": "[resnet8, resnet8]",
            "DISTILLATION__TEACHER_WEIGHTS": "[none, none]",
        },
        lambda p: p.terms["vkd"].weight == 0.4,
        lambda p: p.terms["vkd"].taps == ("blocks.0", "layer2"),
        lambda p: p.terms["vkd"].teacher_taps == {1: ("layer2",)},
        lambda p: p.terms["vkd"].norm.func is FEATURE_NORMS.get("whiten"),
        lambda p: p.terms["vkd"].norm.keywords == {"shrinkage": 0.2},
        lambda p: p.terms["vkd"].projection.kind == "cayley" and p.terms["vkd"].projection.base is not None,
    ),
    ({"VKD__WEIGHT": 0.4, "VKD__PROJECTION": "mlp"}, lambda p: len(p.terms["vkd"].projection) == 3),
    (
        {
            **{"TOKENS__WEIGHT": 0.3, "TOKENS__STUDENT_MAPS": "[0, last]", "TOKENS__TEACHER_MAPS": "[0, 2]"},
            **{"TOKENS__STUDENT_QUERIES": "[]", "TOKENS__TEACHER": 1, "TOKENS__MAP": "cayley"},
            **{"TOKENS__TRIVIALIZE": "true", "TOKENS__DISTANCE": "euclidean", "TOKENS__LEVELS": "sum"},
            **{"TOKENS__ROOT": "true", "TOKENS__EPS": 0.1, "TOKENS__MASK": "false", "TOKENS__ALL_PROCESSES": "false"},
            "DISTILLATION__TEACHERS": "[resnet8, resnet8]",
            "DISTILLATION__TEACHER_WEIGHTS": "[none, none]",
        },
        lambda p: (p.terms["tokens"].weight, p.terms["tokens"].teacher) == (0.3, 1),
        lambda p: p.terms["tokens"].pairs == [("blocks.0", "layer1", False), ("blocks.3", "layer3", False)],
        lambda p: p.terms["tokens"].form == ("standardize", "euclidean", "sum", True, 0.1, False, False),
        lambda p: [projection.kind for projection, _ in p.terms["tokens"].projections] == ["cayley"] * 2,
        lambda p: all(projection.base is not None for projection, _ in p.terms["tokens"].projections),
    ),
    (
        {
            **{"TOKENS__WEIGHT": 0.3, "TOKENS__STUDENT_MAPS": "[last]", "TOKENS__TEACHER_MAPS": "[last]"},
            **{"TOKENS__STUDENT_QUERIES": "[]", "TOKENS__PROJECTION": "mlp", "TOKENS__NORM": "none"},
            "TOKENS__SCALE": "false",
        },
        lambda p: p.terms["tokens"].form.norm == "none",
        lambda p: len(p.terms["tokens"].projections[0]) == 3,  # of an MLP, with no scale after it
    ),
    (
        {"DISTILLATION__TYPE": "dist", "DISTILLATION__DIST_BETA": 2.0, "DISTILLATION__DIST_GAMMA": 3.0},
        lambda p: torch.equal(each(p), relation_distillation(*LOGITS, dist_beta=2.0, dist_gamma=3.0)),
    ),
    (
        {"DISTILLATION__TYPE": "nkd", "DISTILLATION__NKD_GAMMA": 2.0},
        lambda p: torch.equal(each(p), normalized_distillation(*LOGITS, LABELS, nkd_gamma=2.0)),
    ),
    (
        {"DISTILLATION__TYPE": "wttm", "DISTILLATION__TTM_GAMMA": 0.3},
        lambda p: torch.equal(each(p), weighted_transformed_distillation(*LOGITS, ttm_gamma=0.3)),
    ),
    (
        {"DISTILLATION__TYPE": "ofa", "DISTILLATION__OFA_EPS": 1.7},
        lambda p: torch.equal(each(p), enhanced_distillation(*LOGITS, LABELS, ofa_eps=1.7)),
    ),
    (
        {
            "DISTILLATION__TYPE": "ctkd",
            "DISTILLATION__CTKD_EPOCHS": 3,
            "DISTILLATION__CTKD_LEAST": 2.0,
            "DISTILLATION__CTKD_RANGE": 6.0,
        },
        lambda p: p.terms["std"].loss.options == {"ctkd_epochs": 3, "ctkd_least": 2.0, "ctkd_range": 6.0},
    ),
    (
        {
            "FEATURE__WEIGHT": 0.3,
            "FEATURE__TEACHER": 1,
            "FEATURE__STUDENT_TAPS": "[1, -1]",
            "FEATURE__TEACHER_TAPS": "[0, 2]",
            "FEATURE__WARMUP_EPOCHS": 2,
            "DISTILLATION__TEACHERS": "[resnet8, resnet8]",
            "DISTILLATION__TEACHER_WEIGHTS": "[none, none]",
        },
        lambda p: (p.terms["feature"].weight, p.terms["feature"].warmup) == (0.3, 2),
        lambda p: p.terms["feature"].student_taps == ("blocks.1", "blocks.3"),
        lambda p: p.terms["feature"].teacher_taps == {1: ("layer1", "layer3")},
    ),
    (
        {"FEATURE__WEIGHT": 0.3, "FEATURE__LOSS": "rkd", "FEATURE__RKD_DISTANCE": 2.0, "FEATURE__RKD_ANGLE": 3.0},
        lambda p: p.terms["feature"].form.weights == {"distance_weight": 2.0, "angle_weight": 3.0},
    ),
    (
        {"EXITS__WEIGHT": 0.3, "EXITS__TAPS": "[1, -1]", "EXITS__TAUGHT_BY": "labels", "EXITS__HEAD": "linear"},
        lambda p: (p.terms["exits"].weight, p.terms["exits"].loss) == (0.3, None),
        lambda p: p.terms["exits"].student_taps == ("blocks.1", "blocks.3"),
        lambda p: len(p.terms["exits"].exits[0].blocks) == 0,
    ),
    (
        {"FEATURE__WEIGHT": 0.3, "FEATURE__LOSS": "rsd", "FEATURE__RSD_KAPPA": 0.2},
        lambda p: p.terms["feature"].form.kappa == 0.2,
    ),
    (
        {"FEATURE__WEIGHT": 0.3, "FEATURE__LOSS": "vid", "FEATURE__VID_VARIANCE": 2.0},
        lambda p: float(p.terms["feature"].form.regressors[0].raw_variance[0].detach()) == pytest.approx(1.8545758),
    ),
    (
        {
            "FEATURE__WEIGHT": 0.3,
            "FEATURE__LOSS": "crd",
            "AUG__MIXUP": 0,
            "AUG__CUTMIX": 0,
            "FEATURE__CRD_CHANNELS": 7,
            "FEATURE__CRD_NEGATIVES": 9,
            "FEATURE__CRD_TEMPERATURE": 0.3,
            "FEATURE__CRD_MOMENTUM": 0.4,
        },
        lambda p: p.terms["feature"].form.memory.student.shape == (1437, 7),
        lambda p: p.terms["feature"].form.memory.negatives == 9,
        lambda p: p.terms["feature"].form.memory.temperature == 0.3,
        lambda p: p.terms["feature"].form.memory.momentum == 0.4,
    ),
    (
        {"DATA__SEED": 7},
        lambda p: [p.data.train.dataset.seed, p.data.train.sampler.seed, p.mixing.seed] == [7] * 3,
        lambda p: p.session.runtime.seed == 0,
    ),
]
# what other tests hold: where a run goes, what data and teachers it takes, what is shown of it
ELSEWHERE = {
    *("NAME", "TRAINER", "OUT_DIR", "MODEL.NUM_CLASSES", "DATA.NAME", "DATA.ROOT", "TEST.WEIGHTS", "TEST.EMA"),
    *("MODEL.WEIGHTS", "TEST.PREDICTIONS", "TEST.JSON", "TEST.SPLIT"),  # test_scores.py
    *("TRAIN.KEEP", "DISTILLATION.CACHE", "DISTILLATION.CACHE_PRECISION", "DISTILLATION.CACHE_TOP"),
    "TRAIN.SAVE_PERIOD",  # test_interruptions.py
    *("DISTILLATION.TEACHERS", "DISTILLATION.TEACHER_WEIGHTS", "DISTILLATION.TEACHER_NORMS"),
    *("DISTILLATION.TEACHER_SIZES", "DISTILLATION.TEACHER_MIN_ACC", "DISTILLATION.TEACHER_PREDICTIONS"),
    "DISTILLATION.TEACHER_ARGS",  # test_weights.py
    *("DISTILLATION.TEACHER_PRECISION", "DISTILLATION.TEACHER_FOLD"),
    # test_teachers.py, test_deit.py
    *("DISTILLATION.TEACHER_BN", "DISTILLATION.OFFLINE", "DEIT.MODE", "TASK.NAME"),
    *("TIME.WARMUP", "TIME.STEPS", "PUBLISHED.TOP1", "PUBLISHED.TOP5", "PUBLISHED.SOURCE"),
    "PUBLISHED.CHANGED",
    *(f"PUBLISHED.{score}" for score in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")),  # test_shipped_tables.py
    *("CUDA.TF32", "CUDA.DETERMINISTIC"),  # test_arithmetic.py
    "CUDA.TOKEN_MIXING",  # test_token_mixing.py
    # test_detection.py, test_token_matching.py
    *("DETECTION.CLASS_WEIGHT", "DETECTION.L1_WEIGHT", "DETECTION.GIOU_WEIGHT", "DETECTION.AUX_WEIGHT"),
    *("DETECTION.MULTI_SCALE", "DETECTION.CROP", "DETECTION.ASPECT_GROUPS", "DETECTION.IOU_WEIGHT"),
    *("DETECTION.TOKEN_WEIGHT", "TOKENS.TEACHER_QUERIES", "DATA.IMAGES"),
}


@pytest.fixture(scope="module")
def together():
    """The parts with all options of WIRING that can be set together."""
    return build(**{key.replace(".", "__"): value for key, (value, _) in WIRING.items() if key not in ALONE})


@pytest.mark.parametrize("key", WIRING)
def test_option_reaches_its_part(default, together, key):
    value, holds = WIRING[key]
    assert holds(build(**{key.replace(".", "__"): value}) if key in ALONE else together)
    try:
        anyway = holds(default)
    except (StopIteration, AttributeError, KeyError):
        anyway = False
    assert key == "DEVICE" or not anyway, f"{key} is {value} without being set"


@pytest.mark.parametrize("case", range(len(PAIRS)), ids=lambda case: " ".join(PAIRS[case][0])[:60])
def test_options_reach_their_part_together(case):
    overrides, *checks = PAIRS[case]
    parts = build(**overrides)
    assert [number for number, holds in enumerate(checks) if not holds(parts)] == []


@pytest.mark.defect(30)
def test_every_option_is_tried():
    together = {key.replace("__", ".") for overrides, *_ in PAIRS for key in overrides}
    foreign = foreign_sections()
    ours = {key for key in config.flatten(config.defaults()) if key.partition(".")[0] not in foreign}
    assert set(WIRING) | together | ELSEWHERE == ours
    assert not ELSEWHERE & (set(WIRING) | together - {"DISTILLATION.TEACHERS", "DISTILLATION.TEACHER_WEIGHTS"})


def test_a_test_batch_is_as_large_as_the_device_wants():
    """As configured; else 200 on a CPU, and as many as have 2^24 pixels on CUDA, from 1 to 2048."""
    assert batch_at_test(torch.device("cuda"), size=77, image_size=224) == 77
    assert batch_at_test(torch.device("cpu"), size=0, image_size=224) == 200
    sizes = {32: 2048, 224: 334, 4096: 1}
    assert {size: batch_at_test(torch.device("cuda"), size=0, image_size=size) for size in sizes} == sizes


@pytest.mark.defect(7)
def test_teachers_are_told_the_students_normalisation():
    """A teacher that expects another normalisation than the student's converts the batch."""
    parts = build(DATA__NORMALIZATION="imagenet", DISTILLATION__TEACHER_NORMS="[half]")
    teacher = parts.trainer.teachers[0]
    torch.testing.assert_close(teacher.scale.flatten(), torch.tensor(NORMALIZATIONS["imagenet"].std) / 0.5)
    expected = (torch.tensor(NORMALIZATIONS["imagenet"].mean) - 0.5) / 0.5
    torch.testing.assert_close(teacher.shift.flatten(), expected)


def test_model_arguments_that_other_options_set(load):
    for name, end in (("num_classes", ""), ("img_size", ""), ("norm_eps", ": MODEL.NORM_EPS does")):
        cfg = load("debug/base_debug", **{f"MODEL__ARGS__{name}": 3})
        with pytest.raises(ValueError, match=f"MODEL.ARGS has {name}, which is not for it to set{end}$"):
            build_backbone(cfg, 10)
