"""Every shipped config: it merges, it builds, it takes a step, and it opens with its command."""

import re
from pathlib import Path

import pytest
import torch
from shipped import shipped_configs

from pycls_std import config
from pycls_std.builders.data import build_task
from pycls_std.builders.method import build_backbone, build_student, build_trainer, describe_run, teacher_requests
from pycls_std.builders.models import find_pretrained
from pycls_std.builders.teachers import build_teachers
from pycls_std.builders.training import build_optimizer, build_runtime, build_schedule
from pycls_std.core.structures import Loaded, Padded, Progress
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.models.create import randomize_zero_heads
from pycls_std.teachers.outputs import LiveTeachers

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = shipped_configs()
ABLATIONS = [path for path in CONFIGS if path.parent.name == "ablations"]
# parameters of the student as the publications count them
COUNTS = {
    "mixer-s4_c100_base": 17_156_196,
    "mixer-s4_c100_single": 18_288_396,
    "mixer-s4_c100_multi": 18_348_978,
    "mixer-s4_c100_inter": 19_425_208,
    "mixer-s4_c100_paper": 19_420_596,
    "mixer-s16_in1k_base": 18_528_264,
    "mixer-s16_in1k_paper": 22_163_112,
    "resmlp-b24_in1k_paper": 122_564_712,
    "_ablation": 22_163_112,
    **{f"mixer-s16_in1k_{row}": 22_163_112 for row in ("no-MINE", "uniform", "entropy", "class", "distillation")},
    **{f"mixer-s16_in1k_{row}": 22_163_112 for row in ("R50-Swin-B", "R101-Swin-B")},
    **{f"mixer-s16_in1k_{teacher}": 20_345_688 for teacher in ("R50", "R101", "Swin-B")},
    "mixer-s16_in1k_R50-R101-Swin-B": 21_774_328,
    "mixer-s16_in1k_last": 21_060_008,
    "mixer-s16_in1k_last-shared": 21_057_702,
    "mixer-s16_in1k_inter": 23_591_752,
    "mixer-s16_in1k_propagated": 22_172_336,
    "mixer-s16_in1k_no-tokens": 19_554_264,
    "mixer-s16_in1k_spatial": 19_659_226,
    "mixer-s16_in1k_channel": 21_034_150,
    "resmlp-b24_in1k_base": 115_736_776,
    "cyclemlp-b1_in1k_base": 15_155_400,
    "cyclemlp-b2_in1k_base": 26_802_504,
    "cyclemlp-b2_in1k_paper": 30_067_794,
    "r-18_c10": 11_181_642,
    "mixer-s4_c100_KD_ours": 17_156_196,
    "mixer-s4_c100_ours": 18_288_396,
    "deit-ti_c10_none": 5_525_962,
    "deit-ti_c10_soft": 5_525_962,
    "deit-ti_c10_hard": 5_525_962,
    "deit-ti_c10_class": 5_526_346,
    "deit-ti_c10_distill": 5_526_346,
    "deit-ti_c10_both-soft": 5_528_660,
    "deit-ti_c10_both-hard": 5_528_660,
    "deit-ti_c100_base": 5_543_716,
    "deit-ti_c100_KD_ours": 5_563_400,
    "pit-ti_c100_base": 4_615_972,
    "pit-ti_c100_KD_ours": 4_615_972,
    "pvtv2-b0_c100_base": 3_435_460,
    "pvtv2-b0_c100_KD_ours": 3_435_460,
    "t2t-7_c100_base": 4_024_394,
    "t2t-14_c100_base": 21_119_306,
    "pvt-ti_c100_base": 12_767_588,
    "cvt-13_c100_base": 19_650_980,
    "convit-ti_c100_base": 5_536_812,
    "convit-ti_c100_KD_ours": 5_536_812,
    "r-20_c10": 272_474,
    "r-56_c100": 861_620,
    "regnetx-400mf_c10": 5_098_986,
    "deit-ti_in1k_vkd": 6_633_104,
    "deit-s_in1k_vkd": 23_797_520,
    "r-110_c100": 1_736_564,
    "r-32x4_c100": 7_433_860,
    "r-8x4_c100_base": 1_233_540,
    "r-8x4_c100_CRD": 1_233_540,
}
# Scores that are published, as headers call them.
LABELS = {"TOP1": "top-1", "TOP5": "top-5", "AP": "AP", "AP50": "AP50", "AP75": "AP75"}
LABELS |= {f"AP_{size}": f"AP {size}" for size in "SML"}
REQUIRED = {
    "mixer": ["mixer-s4_c100_base", "mixer-s16_in1k_base", "mixer-s4_c100_KD_ours"],
    "deit": [
        *(f"deit-ti_c10_{mode}" for mode in ("none", "soft", "hard", "class", "distill", "both-soft", "both-hard")),
        *("deit-ti_c100_base", "deit-ti_c100_KD_ours"),
    ],
    "pit": ["pit-ti_c100_base", "pit-ti_c100_KD_ours"],
    "pvtv2": ["pvtv2-b0_c100_base", "pvtv2-b0_c100_KD_ours"],
    "convit": ["convit-ti_c100_base", "convit-ti_c100_KD_ours"],
    "std": [
        "_reproduction",
        *(f"mixer-s4_c100_{v}" for v in ("single", "multi", "inter", "paper", "ours")),
        "deit-ti_c100_single",
        "mixer-s16_in1k_single",
        "mixer-s16_in1k_paper",
        "resmlp-b24_in1k_paper",
        *(f"cyclemlp-{size}_in1k_paper" for size in ("b1", "b2")),
    ],
    "cyclemlp": [f"cyclemlp-{size}_in1k_base" for size in ("b1", "b2")],
    "resmlp": ["resmlp-b24_in1k_base"],
    "t2t": [f"t2t-{depth}_c100_{kind}" for depth in (7, 14) for kind in ("base", "ours", "KD_ours")],
    "pvt": [f"pvt-ti_c100_{kind}" for kind in ("base", "ours", "KD_ours")],
    "cvt": [f"cvt-13_c100_{kind}" for kind in ("base", "ours", "KD_ours")],
    "feature": [
        *(f"r-20_c100_{form}" for form in ("FitNet", "AT", "SP", "PKT", "RKD", "NST", "VID", "CRD", "ReviewKD")),
        *(f"r-32_c100_{form}" for form in ("FitNet", "AT", "SP", "PKT", "RKD", "NST", "VID", "CRD", "ReviewKD")),
        *(f"r-8x4_c100_{form}" for form in ("FitNet", "AT", "SP", "PKT", "RKD", "NST", "VID", "CRD", "ReviewKD")),
    ],
    "resnet": ["r-18_c10", *(f"r-{depth}_{data}" for depth in (20, 32, 56) for data in ("c10", "c100"))],
    "regnet": ["regnetx-400mf_c10"],
    "vidt": [
        *(f"swin-{size}_coco_base" for size in ("nano", "tiny", "small", "base")),
        *(f"swin-{size}_coco_{method}" for size in ("nano", "tiny") for method in ("vkd", "tm")),
    ],
    "vkd": [
        *("deit-ti_in1k_vkd", "deit-s_in1k_vkd", "deit-ti_c100_vkd", "deit-s_c100_vkd"),
        *("mixer-s4_c100_vkd", "mixer-s4_c100_vkd_single"),
    ],
}


def build(cfg):
    """Return the method of a config, with teachers of random weights."""
    task = build_task(cfg, cfg.MODEL.NUM_CLASSES)
    weights = [each._replace(state=None) for each in find_pretrained(cfg, fetch=False).teachers]
    run = describe_run(cfg, task, images=2, weights=weights)
    teachers = build_teachers(cfg, task.classes, NORMALIZATIONS["half"], weights)
    student = build_student(cfg, build_backbone(cfg, task.classes), run)
    return build_trainer(cfg, student, run, teachers)


def classified(side):
    """Two images of a class each."""
    return Loaded(torch.randn(2, 3, side, side), torch.tensor([0, 1]), torch.arange(2))


def detected(side):
    """Two images, the second half as wide, of one box and of none."""
    mask = torch.ones(2, side, side, dtype=torch.bool)
    mask[1, :, side // 2 :] = False
    boxes = [torch.tensor([[0.5, 0.5, 0.25, 0.5]]), torch.zeros(0, 4)]
    targets = [{"boxes": each, "labels": torch.ones(len(each), dtype=torch.long)} for each in boxes]
    return Loaded(Padded(torch.randn(2, 3, side, side) * mask[:, None], mask), targets, torch.arange(2))


TWO_IMAGES = {"classification": classified, "detection": detected}


def shrink(cfg):
    """Make an ablation small: they differ in what is put together; mixer-s16_in1k_paper is stepped at its own size."""
    cfg.MODEL.ARGS.embed_dim = 16
    cfg.DATA.IMAGE_SIZE = 32
    cfg.DISTILLATION.TEACHERS = ["resnet8"] * len(cfg.DISTILLATION.TEACHERS)
    cfg.DISTILLATION.TEACHER_WEIGHTS = ["none"] * len(cfg.DISTILLATION.TEACHERS)


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_is_built_at_its_own_size(path):
    """Where nothing is allocated or computed; teachers are what timm says of their tags."""
    cfg = config.load(str(path))
    task = build_task(cfg, cfg.MODEL.NUM_CLASSES)
    weights = find_pretrained(cfg, fetch=False).teachers
    assert [each.num_classes for each in weights] == [1000] * len(cfg.DISTILLATION.TEACHERS)
    with torch.device("meta"):
        run = describe_run(cfg, task, images=2, weights=weights)
        student = build_student(cfg, build_backbone(cfg, task.classes), run)
        build_trainer(cfg, student, run, [])
    assert sum(p.numel() for p in student.parameters()) == COUNTS[path.stem]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_takes_a_step(path):
    """At its own precision, with two images a batch; at its own size, but for a detector's images and ablations."""
    cfg = config.load(str(path))
    assert cfg.MODEL.NUM_CLASSES > 0, "MODEL.NUM_CLASSES lets --mode info work without the data"
    assert build_schedule(cfg)(0.5) > 0
    cfg.defrost()
    cfg.TRAIN.BATCH_SIZE = 2
    cfg.MINE.SAMPLES = min(cfg.MINE.SAMPLES, 2)
    cfg.AUG.REPEATS = 1
    if cfg.TASK.NAME == "detection":
        cfg.DATA.IMAGE_SIZE = 64  # at 800 px a step takes minutes
    if path in ABLATIONS:
        shrink(cfg)
    trainer, runtime = build(cfg), build_runtime(cfg)
    randomize_zero_heads(trainer.student.backbone)  # one that starts at zero lets nothing else move in its first step
    if path.stem in COUNTS and path not in ABLATIONS:
        assert sum(p.numel() for p in trainer.student.parameters()) == COUNTS[path.stem]
    optimizer = build_optimizer(cfg, trainer)
    trainer.student.train()
    before = [p.detach().clone() for p in trainer.student.parameters()]
    progress = Progress(0, 0, 1, 1)
    batch = build_task(cfg, cfg.MODEL.NUM_CLASSES).batch(TWO_IMAGES[cfg.TASK.NAME](cfg.DATA.IMAGE_SIZE), progress)
    requests = teacher_requests(dict(trainer.terms.items()), len(trainer.teachers))
    with runtime.autocast():
        losses = trainer.losses(batch, LiveTeachers(trainer.teachers, requests)(batch, progress), progress)
    runtime.step(losses, [optimizer])
    extra = trainer.auxiliary_losses(batch, progress)
    assert bool(extra) == bool(cfg.MINE.SAMPLES)
    if extra:
        runtime.step(extra, trainer.auxiliary_optimizers)
    after = list(trainer.student.parameters())
    assert all(p.isfinite().all() for p in after)
    assert sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) > len(after) / 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_opens_with_its_command_and_result(path):
    lines = path.read_text().splitlines()
    header = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    assert f"#   python run_net.py --mode train --cfg {path.relative_to(ROOT)}" in header
    published = config.load(str(path)).PUBLISHED
    text = "\n".join(header)
    scores = [f"{label} {published[name]:.2f}" for name, label in LABELS.items() if published[name] >= 0]
    assert f"Published: {scores[0] if scores else 'nothing'}" in text
    assert all(score in text for score in scores)
    assert "Measured: " in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_of_a_publication_is_not_in_bf16_unless_the_header_says_so(path):
    """No source trains in it, but in fp32, and STD's reproduction in fp16. Sizes for a CPU are nobody's."""
    cfg, text = config.load(str(path)), path.read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    own = re.search("nano|debug|digits|jpeg|tin100", path.stem)
    assert own or cfg.PRECISION != "bf16" or "bf16" in header


# What a config that claims a published number does otherwise, and no option of it shows: its header says so.
SAID = {
    "resnet/r-20_c100_KD": ["Mean and deviation of CIFAR-100", "a batch of the last 16 images"],
    "resnet/r-20_c100_DKD_ours": ["72.24", "72.32"],
    "vkd/deit-ti_in1k_vkd": ["top-1 78.30", "gradients are not averaged", "bf16", "0 after a step"],
    "vkd/deit-s_in1k_vkd": ["top-1 82.30", "bf16"],
    "vidt/swin-nano_coco_base": ["never uses", "start equal"],
    "vidt/swin-nano_coco_vkd": ["300 epochs", "6 GPUs of 2 images", "150 epochs"],
    "vidt/swin-nano_coco_tm": ["2 images of a GPU", "trained here"],
    "resnet/r-20_c100_base": ["Mean and deviation of CIFAR-100", "a batch of the last 16 images"],
    "resnet/r-20_c100_TTM": ["table 8", "five runs"],
    "resnet/r-8x4_c100_WTTM": ["table 8", "five runs"],
    "resnet/r-8x4_c100_CTKD": ["lacks this pair"],
    "resnet/r-8x4_c100_KD_ours": ["76.28"],
    "feature/r-20_c100_FitNet": ["72.63", "72.34"],
    "feature/r-20_c100_CRD": ["with replacement"],
    "feature/r-20_c100_ReviewKD": ["Nesterov", "statistics of each batch"],
    "feature/r-20_c100_VID": ["variance trains"],
    "std/mixer-s16_in1k_paper": ["not known"],
    "std/resmlp-b24_in1k_paper": ["not known", "LAMB"],
    "std/cyclemlp-b2_in1k_paper": ["not known", "29.4 M"],
    "std/cyclemlp-b1_in1k_paper": ["not known", "1.1 above the 78.90"],
    "resmlp/resmlp-b24_in1k_base": ["LAMB"],
    "std/ablations/_ablation": ["Assumed", "not known", "bf16"],
    "std/ablations/mixer-s16_in1k_no-tokens": ["2.07", "1.11"],
    "std/ablations/mixer-s16_in1k_no-MINE": ["0.08"],
    "std/ablations/mixer-s16_in1k_uniform": ["0.12 to 0.14"],
    "cyclemlp/cyclemlp-b2_in1k_base": ["not known", "fp16"],
    "cyclemlp/cyclemlp-b1_in1k_base": ["not known", "fp16"],
    "t2t/t2t-7_c100_KD_ours": ["77.95", "78.10", "3_6"],
    "pvt/pvt-ti_c100_KD_ours": ["78.23", "78.45"],
    "cvt/cvt-13_c100_base": ["last stage alone"],
    "std/mixer-s16_in1k_single": ["a1_in1k"],
    "deit/deit-ti_c100_base": ["class token", "head"],
    "deit/deit-ti_c100_KD_ours": ["class token", "head"],
    "std/_reproduction": ["entropies are summed over the batch", "one epoch late", "MINE", "moving average"],
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_recipe_does_otherwise_is_said(name):
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    header = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert [phrase for phrase in SAID[name] if phrase not in header] == []


def test_names_are_distinct():
    """The default folder of a run is made of the config's name."""
    assert len({path.stem for path in CONFIGS}) == len(CONFIGS)


def test_rows_of_the_published_tables_are_there():
    for family, names in REQUIRED.items():
        for name in names:
            assert (ROOT / "configs" / family / f"{name}.yaml").is_file()
