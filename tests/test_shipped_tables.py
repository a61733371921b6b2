"""The tables that are shipped: their published numbers, that no config is forgotten, that each of their rows starts."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from coco_files import write_coco
from image_folders import write_images
from methods import START, Method, batch
from PIL import Image
from processes import ROOT
from shipped import shipped_configs
from test_configs import detected

from pycls_std import config, runner
from pycls_std.models.create import randomize_zero_heads
from pycls_std.reproduce.jobs import Changes, plan
from pycls_std.reproduce.table_file import read_table
from pycls_std.results.read import read_run

TABLES = {path.stem: path for path in sorted((ROOT / "configs" / "tables").glob("*.yaml"))}
STAND_INS = [name for name in TABLES if name.endswith(("_cpu", "_gpu25"))]
# Tables of logits and tokens, of features, of students, of detectors. Of the others each row's losses are computed.
RUN = ["tinyimagenet100-32px_few_cpu", "tinyimagenet100-32px_methods-deit_cpu", "cifar10-jpeg_families_cpu"]
RUN += ["bccd-coco_vidt-few_cpu"]
SCORES = ("TOP1", "TOP5", "AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
# Those of each row that a publication has, as the publication prints them: top-1, and top-5 where it has that, too; of
# detectors AP, and the other five.
NUMBERS = {
    "coco_vidt": {
        "swin-nano_coco_base": (40.4, 59.9, 43.0, 23.1, 42.8, 55.9),
        "swin-tiny_coco_base": (44.9, 64.7, 48.3, 27.5, 47.9, 61.9),
        "swin-small_coco_base": (47.4, 67.7, 51.2, 30.4, 50.7, 64.6),
        "swin-base_coco_base": (49.4, 69.6, 53.4, 31.6, 52.4, 66.8),
        "swin-nano_coco_tm": (41.8,),
        "swin-tiny_coco_tm": (46.6,),
        "swin-nano_coco_vkd": (43.0, 62.3, 46.2, 24.8, 45.3, 60.1),
        "swin-tiny_coco_vkd": (46.9, 66.6, 50.9, 27.8, 49.8, 64.6),
    },
    "c100_std": {
        "mixer-s4_c100_base": (70.68, 88.91),
        "mixer-s4_c100_single": (77.24, 94.08),
        "mixer-s4_c100_multi": (76.93, 94.26),
        "mixer-s4_c100_inter": (77.52, 94.82),
        "r-32_c100": (70.16, 90.89),
        "r-56_c100": (72.63, 91.94),
    },
    "in1k_std": {
        "mixer-s16_in1k_base": (72.90,),
        "mixer-s16_in1k_single": (75.08, 92.08),
        "mixer-s16_in1k_paper": (75.74,),
    },
    "in1k_std_mlps": {
        "resmlp-b24_in1k_paper": (82.40,),
        "cyclemlp-b1_in1k_base": (78.90,),
        "cyclemlp-b1_in1k_paper": (80.00,),
        "cyclemlp-b2_in1k_base": (81.60,),
        "cyclemlp-b2_in1k_paper": (82.10,),
    },
    "std_ablations": {"mixer-s16_in1k_base": (72.90,), "mixer-s16_in1k_paper": (75.74,)},
    "c10_deit": {
        "deit-ti_c10_none": (67.69,),
        "deit-ti_c10_soft": (68.85,),
        "deit-ti_c10_hard": (40.19,),
        "deit-ti_c10_distill": (8.07,),
        "deit-ti_c10_class": (61.69,),
        "deit-ti_c10_both-soft": (69.19,),
        "deit-ti_c10_both-hard": (46.11,),
        "r-18_c10": (88.46,),
    },
    "c100_lskd": {
        "r-20_c100_KD": (70.66,),
        "r-20_c100_KD_ours": (71.43,),
        "r-20_c100_DKD": (71.97,),
        "r-20_c100_DKD_ours": (72.32,),
        "deit-ti_c100_KD_ours": (78.55,),
        "pit-ti_c100_KD_ours": (78.76,),
        "t2t-7_c100_KD_ours": (78.43,),
        "pvt-ti_c100_KD_ours": (78.43,),
        "r-110_c100": (74.31,),
        "R110_r-20_KD": (70.67,),
        "R110_r-20_KD_ours": (71.48,),
        "r-32_c100_KD": (73.08,),
        "R110_r-32_KD_ours": (74.17,),
    },
    "c100_locality": {
        "deit-ti_c100_base": (65.08,),
        "deit-ti_c100_ours": (78.15,),
        "pit-ti_c100_base": (73.58,),
        "pit-ti_c100_ours": (78.48,),
        "pvtv2-b0_c100_base": (77.44,),
        "pvtv2-b0_c100_ours": (79.30,),
        "convit-ti_c100_base": (75.32,),
        "convit-ti_c100_ours": (78.95,),
        "t2t-7_c100_base": (69.37,),
        "t2t-7_c100_ours": (78.35,),
        "pvt-ti_c100_base": (69.22,),
        "pvt-ti_c100_ours": (77.07,),
    },
    "c100_classics": {
        "r-20_c100_base": (69.06,),
        "r-20_c100_KD": (70.66,),
        "r-20_c100_DKD": (71.97,),
        "r-56_c100_base": (72.34,),
        "r-20_c100_KD_ours": (71.43,),
        "r-20_c100_DIST": (71.75,),
        "r-20_c100_TTM": (71.83,),
        "r-20_c100_WTTM": (71.92,),
        "r-20_c100_CTKD": (71.19,),
        "r-20_c100_FitNet": (69.21,),
        "r-20_c100_AT": (70.55,),
        "r-20_c100_SP": (69.67,),
        "r-20_c100_VID": (70.38,),
        "r-20_c100_RKD": (69.61,),
        "r-20_c100_PKT": (70.34,),
        "r-20_c100_NST": (69.60,),
        "r-20_c100_CRD": (71.16,),
        "r-20_c100_ReviewKD": (71.89,),
    },
    "c100_classics_r-32": {
        "r-110_c100": (74.31,),
        "r-32_c100_base": (71.14,),
        "r-32_c100_KD": (73.08,),
        "r-32_c100_FitNet": (71.06,),
        "r-32_c100_AT": (72.31,),
        "r-32_c100_SP": (72.69,),
        "r-32_c100_VID": (72.61,),
        "r-32_c100_RKD": (71.82,),
        "r-32_c100_PKT": (72.61,),
        "r-32_c100_NST": (71.96,),
        "r-32_c100_CRD": (73.48,),
        "r-32_c100_ReviewKD": (73.89,),
    },
    "c100_classics_r-8x4": {
        "r-32x4_c100": (79.42,),
        "r-8x4_c100_base": (72.50,),
        "r-8x4_c100_KD": (73.33,),
        "r-8x4_c100_KD_ours": (76.62,),
        "r-8x4_c100_DKD": (76.32,),
        "r-8x4_c100_DIST": (76.31,),
        "r-8x4_c100_TTM": (76.17,),
        "r-8x4_c100_WTTM": (76.06,),
        "r-8x4_c100_CTKD": (73.39,),
        "r-8x4_c100_FitNet": (73.50,),
        "r-8x4_c100_AT": (73.44,),
        "r-8x4_c100_SP": (72.94,),
        "r-8x4_c100_VID": (73.09,),
        "r-8x4_c100_RKD": (71.90,),
        "r-8x4_c100_PKT": (73.64,),
        "r-8x4_c100_NST": (73.30,),
        "r-8x4_c100_CRD": (75.51,),
        "r-8x4_c100_ReviewKD": (75.63,),
    },
    "in1k_vkd": {"deit-ti_in1k_vkd": (79.20, 94.60), "deit-s_in1k_vkd": (82.90, 96.20)},
    "c100_vkd": {"mixer-s4_c100_base": (70.68, 88.91)},
    "cifar_teachers": {
        "r-20_c100": (68.83, 91.01),
        "r-32_c100": (70.16, 90.89),
        "r-56_c100": (72.63, 91.94),
        "r-20_c10": (92.60, 99.81),
        "r-32_c10": (93.53, 99.77),
        "r-56_c10": (94.37, 99.83),
    },
}


def first_runs(name, **changes):
    """The first run of every row of a shipped table, teachers first."""
    table = read_table(TABLES[name])
    rows = tuple(replace(row, seeds=row.seeds[:1]) for row in table.rows)
    return plan(replace(table, rows=rows), Changes(**changes))


jobs_of = cache(first_runs)


def claimed(job):
    """What a table shows as published beside a run: nothing if the run is not of the recipe that the number is of."""
    scores = [job.options[f"PUBLISHED.{score}"] for score in SCORES]
    return () if job.options["PUBLISHED.CHANGED"] else tuple(score for score in scores if score >= 0)


# ---------------------------------------------------------------------------------------------------- published numbers
@pytest.mark.parametrize("name", TABLES)
def test_the_published_numbers_are_those_of_the_sources(name):
    """Each beside the row that is its recipe, and beside no other, such as a row whose teacher is another one."""
    shown = {job.row.name: claimed(job) for job in jobs_of(name)}
    assert {row: scores for row, scores in shown.items() if scores} == NUMBERS.get(name, {})


@pytest.mark.parametrize("name", TABLES)
def test_a_published_number_has_its_source_beside_it(name):
    assert read_table(TABLES[name]).source
    assert [str(job) for job in jobs_of(name) if claimed(job) and not job.options["PUBLISHED.SOURCE"]] == []


def test_no_config_with_a_published_number_is_forgotten():
    """Each is a row as it is: another teacher or another length would have taken its number from it."""
    published = {path: config.load(str(path)).PUBLISHED for path in shipped_configs()}
    claims = {path for path, stated in published.items() if any(stated[score] >= 0 for score in SCORES)}
    rows = {job.row.config.resolve() for name in TABLES for job in jobs_of(name) if claimed(job)}
    assert claims and claims <= rows


def test_no_config_of_a_publication_is_forgotten():
    """Those without a number of their own, too: crosses, teachers, the paper's arrangement on CIFAR-100."""
    large = {path for path in shipped_configs(pattern="*_c10*.yaml") if "jpeg" not in path.stem}
    data = ("in1k", "coco", "flowers", "chaoyang", "tin200")
    large |= {path for name in data for path in shipped_configs(pattern=f"*_{name}_*.yaml")}
    rows = {job.row.config.resolve() for name in TABLES for job in jobs_of(name)}
    assert len(large) > 40 and large <= rows


@pytest.mark.parametrize("name", [name for name in TABLES if name not in STAND_INS])
def test_published_tables_are_of_three_seeds_and_the_last_epoch(name):
    table = read_table(TABLES[name])
    assert table.selection == "last"
    assert {row.seeds for row in table.rows if not row.teaches_only} == {(0, 1, 2)}
    assert {job.options["DATA.VAL_FRACTION"] for job in jobs_of(name)} == {0}


# ------------------------------------------------------------------------------------------------------------ stand-ins
@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_holds_out_the_same_images_from_students_and_teachers(name):
    """A teacher that had seen them would help its students on them, and the epoch is chosen there."""
    table = read_table(TABLES[name])
    assert table.selection == "held-out" and table.baselines
    assert {row.seeds for row in table.rows if not row.teaches_only} == {(0, 1, 2)}
    jobs = jobs_of(name)
    assert {job.options["DATA.VAL_FRACTION"] for job in jobs} == {0.1}
    assert {config.dataset_name(job.options) for job in jobs} == {name.partition("_")[0]}
    assert [str(job) for job in jobs if claimed(job)] == []


def test_stand_ins_come_in_two_sizes():
    sizes = {name.rpartition("_")[0]: set() for name in STAND_INS}
    for name in STAND_INS:
        sizes[name.rpartition("_")[0]].add(name.rpartition("_")[2])
    assert sizes and all(found == {"cpu", "gpu25"} for found in sizes.values())


@pytest.mark.parametrize("name", [name for name in STAND_INS if name.endswith("_gpu25")])
def test_what_25_minutes_are_for_is_in_the_command(name):
    assert f"python tools/reproduce.py configs/tables/{name}.yaml --jobs 4 --until 25m\n" in TABLES[name].read_text()


# ----------------------------------------------------------------------------------------------------------- rows start
OWN = [
    (name, row.name)
    for name, path in TABLES.items()
    for row in read_table(path).rows
    if row.options.keys() - {"DATA.VAL_FRACTION", "TRAIN.COMPILE"}
]


@pytest.mark.parametrize(("name", "row"), OWN)
def test_a_row_of_other_options_than_its_config_has_losses(name, row):
    """Options that contradict each other show when the method is built; teachers are untrained.

    tests/test_configs.py builds the configs that are rows as they are.
    """
    (job,) = (job for job in jobs_of(name) if job.row.name == row)
    cfg = config.load(job.config, job.words)
    method = Method(cfg, classes=cfg.MODEL.NUM_CLASSES)
    randomize_zero_heads(method.student.backbone)
    images = detected(64) if cfg.TASK.NAME == "detection" else None  # the pixels of its table would take minutes
    images = images and method.task.batch(images, START)
    count = 4 if cfg.DATA.IMAGE_SIZE <= 64 else 2  # those of 224 px take long
    losses = method.losses(images or batch(count, cfg.DATA.IMAGE_SIZE, cfg.MODEL.NUM_CLASSES))
    assert losses and all(loss.isfinite() and loss > 0 for loss in losses.values())


def shapes_folder(folder):
    """A few images with boxes, in COCO's layout."""
    write_coco(folder, train=10)


def class_folder(folder):
    """Three classes of a few images each: standardized logits take no fewer."""
    draws = np.random.default_rng(0)
    noise = lambda _: Image.fromarray(draws.integers(0, 255, (32, 32, 3), dtype=np.uint8))  # noqa: E731
    write_images(folder, train=10, classes="abc", make=noise)


FOLDERS = {"image_folder": class_folder, "coco": shapes_folder}


def few_images(options):
    """Words by which a run takes a step or two."""
    words = ["TRAIN.BATCH_SIZE=8", f"DATA.PER_CLASS={8 * bool(options['DATA.PER_CLASS'])}"]
    words += ["DATA.IMAGES=8"] * bool(options["DATA.IMAGES"])
    words += ["MINE.SAMPLES=8"] * bool(options["MINE.SAMPLES"])
    return words


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_every_row_of_a_stand_in_runs(name, tmp_path, monkeypatch):
    """For one epoch on a few other images: teachers first, whose best held-out epoch then teaches."""
    monkeypatch.chdir(tmp_path)
    FOLDERS[jobs_of(name)[0].options["DATA.NAME"]](tmp_path / "pictures")
    jobs = first_runs(name, scale=0.01, data={name.partition("_")[0]: str(tmp_path / "pictures")})
    for job in jobs:
        small = few_images(job.options) + (["DISTILLATION.TEACHER_MIN_ACC=0"] if job.needs else [])
        runner.train(config.load(job.config, [*job.words, *small]))
        assert job.weights == Path(job.options["OUT_DIR"]) / "checkpoints" / "best.pt" and job.weights.exists()
    assert {read_run(job.folder).status for job in jobs} == {"finished"}
