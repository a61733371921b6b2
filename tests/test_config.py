"""Options: what is accepted, and what a mistake is told."""

import re
from pathlib import Path

import pytest
import yaml

from pycls_std import config
from pycls_std.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def write(tmp_path):
    """Return write(text, name): a config file."""

    def write_file(text, name="x.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_file


def complaint(path, *words):
    """Text of the error that loading raises."""
    with pytest.raises(ConfigError) as error:
        config.load(path, list(words))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_both_spellings_of_an_override(write):
    path = write("SEED: 1\n")
    cfg = config.load(path, ["OPTIM.BASE_LR", "0.5", "SEED=7", "TEST.WEIGHTS=a=b.pt", "MODEL.NAME", "resnet20"])
    assert (cfg.OPTIM.BASE_LR, cfg.SEED, cfg.TEST.WEIGHTS, cfg.MODEL.NAME) == (0.5, 7, "a=b.pt", "resnet20")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("OPTIM.BASE_LR=1", 1.0),
        ("OPTIM.BASE_LR=1e-3", 1e-3),
        ("TEST.WEIGHTS=3", "3"),
        ("NAME=007", "007"),
        ("STD.PROPAGATE=true", True),
        ("DISTILLATION.TEACHERS=[]", []),
        ("MODEL.ARGS.patch_size=2", 2),
        ("MODEL.ARGS.mlp_ratio=[0.5, 4]", [0.5, 4]),
    ],
)
def test_friendly_values(write, word, value):
    cfg = config.load(write("SEED: 1\n"), [word])
    for name in word.split("=")[0].split("."):
        cfg = cfg[name]
    assert cfg == value
    assert type(cfg) is type(value)


def test_list_of_numbers(write):
    assert config.load(write("OPTIM:\n  SCHEDULE: step\n"), ["OPTIM.STEPS=[100, 150]"]).OPTIM.STEPS == [100.0, 150.0]


def test_numbers_of_yaml_that_read_as_text(write):
    assert config.load(write("OPTIM:\n  BASE_LR: 1e-3\n")).OPTIM.BASE_LR == 1e-3


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("OPTIM.BASE_LRR=1", ["OPTIM.BASE_LRR", "OPTIM.BASE_LR?"]),
        ("OPTIM.MAX_EPOCH=abc", ["OPTIM.MAX_EPOCH", "a whole number", "abc"]),
        ("OPTIM.MAX_EPOCH=0.5", ["OPTIM.MAX_EPOCH", "a whole number", "0.5"]),
        ("OPTIM.MAX_EPOCH=-1", ["OPTIM.MAX_EPOCH", "-1", "at least 1"]),
        ("TRAIN.BATCH_SIZE=0", ["TRAIN.BATCH_SIZE", "0", "at least 1"]),
        ("OPTIM.BASE_LR=nan", ["OPTIM.BASE_LR", "a number", "nan"]),
        ("OPTIM.BASE_LR=1e39", ["OPTIM.BASE_LR", "a number", "1e39"]),
        ("OPTIM.BASE_LR=true", ["OPTIM.BASE_LR", "a number"]),
        ("STD.PROPAGATE=1", ["STD.PROPAGATE", "true or false", "1"]),
        ("DISTILLATION.TEACHERS=resnet50", ["DISTILLATION.TEACHERS", "a list such as [a, b]", "resnet50"]),
        ("DISTILLATION.TEACHER_SIZES=[a]", ["DISTILLATION.TEACHER_SIZES[0]", "a whole number"]),
        ("PRECISION=fp8", ["PRECISION", "fp8", "fp32, bf16, fp16"]),
        ("STD.TOKENS=neither", ["STD.TOKENS", "neither", "spatial"]),
        ("TRAINER=kdd", ["TRAINER", "kdd", "baseline", "std"]),
        ("DATA.NAME=cifar", ["DATA.NAME", "cifar100"]),
        ("OPTIM=3", ["OPTIM", "a section"]),
        ("NAME=../x", ["NAME", "../x"]),
        ("AUG.RAND_AUGMENT=strong", ["AUG.RAND_AUGMENT", "strong", "rand-m9"]),
        ("MINE.SAMPLES=1", ["MINE.SAMPLES", "1", "at least 2"]),
        ("OPTIM.STEPS=[3, 1]", ["OPTIM.STEPS", "ascending"]),
        ("OPTIM.STEPS=[0]", ["OPTIM.STEPS", "above 0"]),
        ("OPTIM.STEPS=[3]", ["OPTIM.STEPS", "[3.0]", "OPTIM.SCHEDULE is cosine"]),
        ("OPTIM.SCHEDULE=step", ["OPTIM.SCHEDULE", "step", "OPTIM.STEPS, which is []"]),
        ("DISTILLATION.TEACHER_SIZES=[-8]", ["DISTILLATION.TEACHER_SIZES", "-8", "pixels"]),
        ("AUG.RAND_AUGMENT=rand-q9", ["AUG.RAND_AUGMENT", "rand-q9"]),
        ("AUG.RAND_AUGMENT=rand-n2.5", ["AUG.RAND_AUGMENT", "rand-n2.5"]),
        ("=x", ["=x", "KEY=VALUE"]),
        ("SEED", ["SEED", "has no value"]),
    ],
)
def test_a_mistake_names_the_key_and_what_is_expected(write, word, parts):
    text = complaint(write("SEED: 1\n"), word)
    for part in ["command line", *parts]:
        assert part in text


@pytest.mark.defect(14)
def test_one_teacher_is_no_list_of_eight_letters(write):
    """The reference's default teacher is the text `resnet50`, which it takes for a list of 8."""
    assert config.load(write("SEED: 1\n")).DISTILLATION.TEACHERS == []
    assert "expects a list" in complaint(write("DISTILLATION:\n  TEACHERS: resnet50\n"))


def test_parallel_lists_of_teachers(write):
    path = write("DISTILLATION:\n  TEACHERS: [resnet32, resnet56]\n  TEACHER_WEIGHTS: [a.pt]\n")
    assert "DISTILLATION.TEACHERS has 2 entries, TEACHER_WEIGHTS has 1" in complaint(path)
    text = complaint(path, "DISTILLATION.TEACHER_WEIGHTS=[a,b]", "DISTILLATION.TEACHER_NORMS=[half]")
    assert "DISTILLATION.TEACHERS has 2 entries, TEACHER_NORMS has 1" in text


def test_odd_batches_cannot_be_mixed(write):
    text = complaint(write("AUG:\n  MIXUP: 0.8\nTRAIN:\n  BATCH_SIZE: 33\n"))
    assert ":4: TRAIN.BATCH_SIZE is 33" in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", ":1: expected options"),
        ("- 1\n", ":1: expected options"),
        ("SEED: 1\nSEED: 2\n", ":2: SEED is set twice"),
        ("OPTIM:\n  BASE_LR: 1\n  BASE_LR: 2\n", ":3: OPTIM.BASE_LR is set twice"),
        ("OPTIM: {BASE_LR: 1}\nOPTIM:\n  GAMMA: 1\n  BASE_LR: 2\n", ":4: OPTIM.BASE_LR is set twice"),
        ("SEED: [1\nNAME: x\n", ":2: "),
        ("OPTIM:\n\tBASE_LR: 1\n", ":2: "),
        ("NAME: !!python/object/apply:os.system ['touch marker']\n", ":1: could not determine a constructor"),
        ("OPTIM:\n  BASE_LRR: 1\n", ":2: no option OPTIM.BASE_LRR, did you mean OPTIM.BASE_LR?"),
        ("OPTIM:\n", ":1: OPTIM is a section"),
        ("OPTIM: &a\n  STEPS: *a\n", "holds itself by an alias"),
        ("OPTIM:\n  STEPS: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_told_with_its_line(write, text, part, tmp_path):
    path = write(text)
    assert complaint(path).startswith(path)
    assert part in complaint(path)
    assert not (tmp_path / "marker").exists()


def test_files_that_are_no_config(tmp_path):
    assert "No such file" in complaint(str(tmp_path / "missing.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    assert "Is a directory" in complaint(str(tmp_path / "folder.yaml"))
    (tmp_path / "code.py").write_text("raise SystemExit")
    assert "a config is a .yaml file" in complaint(str(tmp_path / "code.py"))
    (tmp_path / "binary.yaml").write_bytes(b"\x80\x81")
    assert "cannot be read" in complaint(str(tmp_path / "binary.yaml"))


def test_base_is_merged_first_and_relative_to_the_file(write, tmp_path):
    (tmp_path / "deep").mkdir()
    write("SEED: 1\nOPTIM:\n  BASE_LR: 1\n  GAMMA: 0.5\n", "base.yaml")
    path = write("_BASE_: ../base.yaml\nOPTIM:\n  BASE_LR: 2\n", "deep/child.yaml")
    cfg = config.load(path)
    assert (cfg.SEED, cfg.OPTIM.BASE_LR, cfg.OPTIM.GAMMA, cfg.NAME) == (1, 2.0, 0.5, "child")


def test_arguments_of_a_base_can_be_dropped(write):
    write("MODEL:\n  NAME: mixer_s4\n  ARGS: {patch_size: 2, num_blocks: 3}\n", "base.yaml")
    path = write("_BASE_: base.yaml\nMODEL:\n  NAME: resnet8\n  ARGS: null\n")
    assert config.load(path).MODEL.ARGS == {}
    assert config.load(path, ["MODEL.ARGS.depth=3"]).MODEL.ARGS == {"depth": 3}
    other = write("_BASE_: base.yaml\nMODEL:\n  ARGS: {patch_size: 4}\n", "other.yaml")
    assert config.load(other).MODEL.ARGS == {"patch_size": 4, "num_blocks": 3}
    assert config.load(other, ["MODEL.ARGS=null", "MODEL.ARGS.num_blocks", "2"]).MODEL.ARGS == {"num_blocks": 2}


def test_a_leading_tilde_is_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    cfg = config.load(write("SEED: 1\n"), ["OUT_DIR=~/x", "TEST.WEIGHTS=a~b", "NAME=x"])
    assert (cfg.OUT_DIR, cfg.TEST.WEIGHTS) == ("/home/of/somebody/x", "a~b")


def test_a_slip_in_a_method_names_its_file(tmp_path, monkeypatch):
    (tmp_path / "trainers").mkdir()
    monkeypatch.setattr(config, "PACKAGE", tmp_path)
    path = tmp_path / "trainers" / "new.py"
    for text, part in {
        "x = (1\n": "new.py:1: '(' was never closed",
        '@T.register("new")\nclass N:\n    OPTIONS = {"A": 3 * x}\n': "new.py: a registered name and OPTIONS must be",
        '@T.register("optim")\nclass N:\n    pass\n': "no method can be called 'optim', OPTIM is a section",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(part)):
            config.defaults()
    path.write_text('@T.register("new")\nclass N:\n    OPTIONS: dict = {"ANY": []}\n')
    assert config.defaults()[0].NEW == {"ANY": []}


def test_base_must_exist_and_not_go_round(write):
    assert "_BASE_ is 'gone.yaml'" in complaint(write("_BASE_: gone.yaml\n"))
    write("_BASE_: b.yaml\n", "a.yaml")
    text = complaint(write("_BASE_: a.yaml\n", "b.yaml"))
    assert "circle" in text
    assert text.count("a.yaml") == 1
    assert text.count("b.yaml") == 2


def test_the_dump_is_a_config_that_gives_the_same_options(write, load, tmp_path):
    cfg = load("debug/std_debug", SEED=3)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = config.load(str(tmp_path / "config.yaml"))
    assert again == cfg
    assert config.out_dir(again) == Path("runs/std_debug/seed3")


def test_options_are_frozen(write):
    with pytest.raises(AttributeError):
        config.load(write("SEED: 1\n")).SEED = 2


def test_every_option_says_what_it_is():
    """Each key of the page, and of a method's own options, follows a comment."""
    page = (ROOT / "pycls_std/config/page.py").read_text().splitlines()
    files = [page] + [path.read_text().splitlines() for path in (ROOT / "pycls_std/trainers").glob("*.py")]
    for lines in files:
        for above, line in zip(lines, lines[1:], strict=False):
            is_key = line.startswith("cfg.") and "CfgNode()" not in line
            is_private = line.startswith('        "') and line.split('"')[1].isupper()
            if is_key or is_private:
                assert above.strip().startswith("#"), line


def test_golden_options():
    """All options with their defaults, on one page; a change is made on purpose, in both places."""
    options, _ = config.defaults()
    golden = ROOT / "tests" / "golden_options.yaml"
    assert yaml.safe_load(golden.read_text()) == yaml.safe_load(options.dump()), (
        "tests/golden_options.yaml differs from the options; write it anew with: python -c "
        "\"from pycls_std import config; print(config.defaults()[0].dump(), end='')\" > tests/golden_options.yaml"
    )


def test_every_range_and_entry_type_belongs_to_an_option():
    keys = set(config.flatten(config.defaults()[0]))
    from pycls_std.config.page import ENTRY_TYPES, RANGES

    assert set(RANGES) <= keys
    assert set(ENTRY_TYPES) <= keys
    assert {key for key, value in config.flatten(config.defaults()[0]).items() if value == []} == set(ENTRY_TYPES)


def test_declared_methods_are_those_that_register():
    import pycls_std.datasets
    import pycls_std.trainers  # noqa: F401
    from pycls_std.core.registry import DATASETS, TRAINERS

    assert config.declared("trainers").keys() == TRAINERS.entries.keys()
    assert config.declared("datasets").keys() == DATASETS.entries.keys()
    for name, options in config.declared("trainers").items():
        assert options == getattr(TRAINERS.get(name), "OPTIONS", {})


def test_declared_reads_without_running(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(
        'raise SystemExit\n@R.register("new")\nclass New:\n    OPTIONS = {"WEIGHT": 0.5, "FORM": ("a", "b")}\n'
    )
    monkeypatch.setattr(config, "PACKAGE", tmp_path)
    assert config.declared("methods") == {"new": {"WEIGHT": 0.5, "FORM": ("a", "b")}}


@pytest.mark.parametrize("root", [".", "..", "/"])
def test_a_folder_of_images_has_a_name(load, root):
    with pytest.raises(ConfigError, match="DATA.ROOT is '.*', expected a path that ends with the folder's name"):
        load("debug/base_debug", DATA__NAME="image_folder", DATA__ROOT=root)
    load("debug/base_debug", DATA__ROOT=root)
