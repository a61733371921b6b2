"""Options: what is accepted, and what a mistake is told."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from shipped import foreign_sections

from pycls_std import config
from pycls_std.config import ConfigError, declared
from pycls_std.config.published import changed_recipe
from pycls_std.core.option import Option
from pycls_std.results.read import Run
from pycls_std.results.table import aggregate
from pycls_std.run.identity import changed_options, changed_shape

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
    cfg = config.load(write("TRAINER: std\n"), [word])
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
        ("OPTIM.MAX_EPOCH=0.5", ["OPTIM.MAX_EPOCH", "a whole number", "0.5"]),
        ("TRAIN.ACCUMULATE=3", ["TRAIN.ACCUMULATE is 3", "a divisor of TRAIN.BATCH_SIZE 128"]),
        ("OPTIM.BASE_LR=nan", ["OPTIM.BASE_LR", "a number", "nan"]),
        ("OPTIM.BASE_LR=1e39", ["OPTIM.BASE_LR", "a number", "1e39"]),
        ("OPTIM.BASE_LR=true", ["OPTIM.BASE_LR", "a number"]),
        ("STD.PROPAGATE=1", ["STD.PROPAGATE", "true or false", "1"]),
        ("DISTILLATION.TEACHERS=resnet50", ["DISTILLATION.TEACHERS", "a list such as [a, b]", "resnet50"]),
        ("DISTILLATION.TEACHER_SIZES=[a]", ["DISTILLATION.TEACHER_SIZES[0]", "a whole number"]),
        ("DISTILLATION.TEACHER_ARGS=[taps]", ["DISTILLATION.TEACHER_ARGS[0]", "a mapping such as {key: value}"]),
        ("DISTILLATION.TEACHER_ARGS=[{x: {y: 1}}]", ["DISTILLATION.TEACHER_ARGS[0].x", "a value", "{'y': '1'}"]),
        ("DISTILLATION.TEACHER_ARGS=[{}, {x: 010}]", ["DISTILLATION.TEACHER_ARGS[1].x", "010", "decimal"]),
        ("PRECISION=fp8", ["PRECISION", "fp8", "fp32, bf16, fp16"]),
        ("STD.TOKENS=neither", ["STD.TOKENS", "neither", "spatial"]),
        ("TRAINER=kdd", ["TRAINER", "kdd", "baseline", "std"]),
        ("DATA.NAME=cifar", ["DATA.NAME", "cifar100"]),
        ("OPTIM=3", ["OPTIM", "a section"]),
        ("AUG.RAND_AUGMENT=strong", ["AUG.RAND_AUGMENT", "strong", "rand-m9"]),
        ("MINE.SAMPLES=-1", ["MINE.SAMPLES", "-1", "at least 0"]),
        ("OPTIM.STEPS=[3, 1]", ["OPTIM.STEPS", "ascending"]),
        ("OPTIM.STEPS=[0]", ["OPTIM.STEPS", "above 0"]),
        ("OPTIM.STEPS=[3]", ["OPTIM.STEPS", "[3.0]", "OPTIM.SCHEDULE is cosine"]),
        ("OPTIM.SCHEDULE=step", ["OPTIM.SCHEDULE", "step", "OPTIM.STEPS, which is []"]),
        ("TASK.WEIGHT=-1", ["TASK.WEIGHT", "-1", "at least 0"]),
        ("AUG.FLIP=2", ["AUG.FLIP", "2", "0 to 1"]),
        ("MODEL.INIT=zero", ["MODEL.INIT", "zero", 'one of "", torch']),
        ("DISTILLATION.TYPE=warm", ["DISTILLATION.TYPE", "warm", "hard", "soft", "decoupled"]),
        ("AUG.RAND_AUGMENT=rand-q9", ["AUG.RAND_AUGMENT", "rand-q9"]),
        ("AUG.RAND_AUGMENT=rand-n2.5", ["AUG.RAND_AUGMENT", "rand-n2.5"]),
    ],
)
def test_a_mistake_names_the_key_and_what_is_expected(write, word, parts):
    """More in test_bad_input.py."""
    text = complaint(write("TRAINER: kd\n"), word)
    for part in ["command line", *parts]:
        assert part in text


def test_graphs_are_of_whole_batches(write):
    text = complaint(write("TRAIN: {COMPILE: graphs}\n"), "TRAIN.ACCUMULATE=2")
    assert text.startswith("command line: TRAIN.ACCUMULATE is 2, expected 1 with TRAIN.COMPILE graphs")


@pytest.mark.defect(14)
def test_one_teacher_is_no_list_of_eight_letters(write):
    """The reference's default teacher is the text `resnet50`, which it takes for a list of 8."""
    assert config.load(write("SEED: 1\n")).DISTILLATION.TEACHERS == []
    assert "expects a list" in complaint(write("DISTILLATION:\n  TEACHERS: resnet50\n"))


def test_parallel_lists_of_teachers(write):
    path = write("TRAINER: kd\nDISTILLATION:\n  TEACHERS: [resnet32, resnet56]\n  TEACHER_WEIGHTS: [a.pt]\n")
    assert "DISTILLATION.TEACHERS has 2 entries, TEACHER_WEIGHTS has 1" in complaint(path)
    assert "has 1 entry, TEACHER_NORMS has 2" in complaint(
        path, "DISTILLATION.TEACHERS=[resnet8]", "DISTILLATION.TEACHER_NORMS=[half, half]"
    )
    text = complaint(path, "DISTILLATION.TEACHER_WEIGHTS=[]")
    assert "command line: DISTILLATION.TEACHER_WEIGHTS is empty, expected a checkpoint or file of weights" in text
    text = complaint(path, "DISTILLATION.TEACHER_WEIGHTS=[a,b]", "DISTILLATION.TEACHER_NORMS=[half]")
    assert "DISTILLATION.TEACHERS has 2 entries, TEACHER_NORMS has 1" in text
    text = complaint(path, "DISTILLATION.TEACHER_WEIGHTS=[a,b]", "DISTILLATION.TEACHER_ARGS=[{}]")
    assert "DISTILLATION.TEACHERS has 2 entries, TEACHER_ARGS has 1" in text
    text = complaint(path, "DISTILLATION.TEACHER_WEIGHTS=[a,b]", "DISTILLATION.TEACHER_SIZES=[8,-8]")
    assert "DISTILLATION.TEACHER_SIZES is [8, -8], expected entries of 0 to 4096" in text


def test_arguments_of_teachers(write):
    """In a file, on the command line and in a record alike: each with the type that it is written in."""
    text = "[{taps: before_relu, widths: [1, 2], rate: 1e-3, word: 'no'}, {}, {mask_padding: false}]"
    value = [{"taps": "before_relu", "widths": [1, 2], "rate": 1e-3, "word": "no"}, {}, {"mask_padding": False}]
    teachers = "TRAINER: kd\nDISTILLATION:\n  TEACHERS: [a, b, c]\n  TEACHER_WEIGHTS: [a.pt, b.pt, c.pt]\n"
    for cfg in (
        config.load(write(f"{teachers}  TEACHER_ARGS: {text}\n", "own.yaml")),
        config.load(write("_BASE_: own.yaml\n", "based.yaml")),
        config.load(write(teachers), [f"DISTILLATION.TEACHER_ARGS={text}"]),
    ):
        for options in (cfg, cfg.clone(), config.restored(config.dump(cfg))):
            assert value == options.DISTILLATION.TEACHER_ARGS
    assert config.load(write("_BASE_: own.yaml\n"), ["DISTILLATION.TEACHER_ARGS=[]"]).DISTILLATION.TEACHER_ARGS == []


def test_odd_batches_cannot_be_mixed(write):
    text = complaint(write("AUG:\n  MIXUP: 0.8\nTRAIN:\n  BATCH_SIZE: 33\n"))
    assert ":4: TRAIN.BATCH_SIZE is 33" in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("OPTIM:\n  BASE_LR: 1\n  BASE_LR: 2\n", ":3: OPTIM.BASE_LR is set twice"),
        ("OPTIM: {BASE_LR: 1}\nOPTIM:\n  GAMMA: 1\n  BASE_LR: 2\n", ":4: OPTIM.BASE_LR is set twice"),
        ("OPTIM:\n\tBASE_LR: 1\n", ":2: "),
        ("OPTIM:\n", ":1: OPTIM is a section"),
        ("OPTIM: &a\n  STEPS: *a\n", "holds itself by an alias"),
        ("OPTIM:\n  STEPS: " + "[" * 1000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_told_with_its_line(write, text, part):
    """More in test_bad_input.py."""
    path = write(text)
    assert complaint(path).startswith(path)
    assert part in complaint(path)


def test_a_config_without_its_ending(write):
    path = write("SEED: 1\n")
    assert complaint(path[:-5]).endswith(f"a config is a .yaml file, did you mean {path}?")


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


@pytest.mark.parametrize("registry", declared.REGISTRIES)
def test_a_slip_in_a_file_names_it(tmp_path, monkeypatch, registry):
    monkeypatch.setattr(declared, "PACKAGE", tmp_path)
    folder = tmp_path / declared.REGISTRIES[registry]
    folder.mkdir()
    for text, part in {
        '@R.register("new")\nclass N:\n    x = (1\n': "new.py:3: '(' was never closed",
        '@R.register("new")\nclass N:\n    OPTIONS = {"A": 3 * x}\n': "new.py: a registered name and its attributes",
        '@R.register("new")\nclass N:\n    OPTIONS = {"A": Option(0, lest=1)}\n': "unexpected keyword argument 'lest'",
    }.items():
        (folder / "new.py").write_text(text.replace("R.", f"{registry}."))
        with pytest.raises(ConfigError, match=re.escape(part)):
            declared.declared(registry)


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [("classification", "coco", "detection, for DATA.NAME coco has boxes")]
    + [("detection", "digits", "classification, for DATA.NAME digits has classes")],
)
def test_a_dataset_of_another_task_is_refused(write, task, name, expected):
    text = complaint(write(f"SEED: 1\nTASK: {{NAME: {task}}}\n"), f"DATA.NAME={name}")
    assert text.endswith(f"x.yaml:2: TASK.NAME is '{task}', expected {expected}"), text


def test_a_term_says_what_turns_it_on(tmp_path, monkeypatch):
    """What a class inherits is not seen, so the option must stand in its own OPTIONS."""
    shutil.copytree(declared.PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(declared, "PACKAGE", tmp_path / "package")
    (tmp_path / "package" / "terms" / "new.py").write_text(
        '@TERMS.register("new")\nclass New(KD):\n    SWITCH = "ON"\n'
    )
    with pytest.raises(ConfigError, match="pycls_std/terms: 'new' has no option NEW.ON to turn it on: OPTIONS"):
        config.defaults()


def test_private_options_have_a_section_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "PACKAGE", tmp_path)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "terms").mkdir()
    path = tmp_path / "terms" / "new.py"
    path.write_text('@TERMS.register("new")\nclass N:\n    OPTIONS: dict = {"WEIGHT": 0.0, "ANY": []}\n')
    (tmp_path / "trainers" / "baseline.py").write_text('@TRAINERS.register("baseline")\nclass B:\n    pass\n')
    assert config.defaults().NEW == {"WEIGHT": 0.0, "ANY": []}
    declared._declared.cache_clear()
    path.write_text('@TERMS.register("optim")\nclass N:\n    OPTIONS = {"WEIGHT": 0.0}\n')
    with pytest.raises(ConfigError, match="pycls_std/terms: none can be called 'optim', OPTIM is a section"):
        config.defaults()


# ---------------------------------------------------------------------------------------------- what a method is about
KD = ["TRAINER=kd", "DISTILLATION.TYPE=soft"]
STD = ["TRAINER=std", "STD.TAPS=[1, last]", "MINE.SAMPLES=4"]
LOCALITY = ["TRAINER=locality", "KD.WEIGHT=0.5", "LOCALITY.TRANSFORM=attention"]
DEIT = ["TRAINER=deit", "DEIT.MODE=soft", "MODEL.ARGS.depth=2"]


@pytest.mark.parametrize(
    ("words", "unread", "readers"),
    [
        (["TRAINER=std"], "KD.WARMUP_EPOCHS=5", ["TRAINER std", "KD.WEIGHT above 0"]),
        ([], "STD.TAPS=[1]", ["TRAINER baseline", "STD.WEIGHT above 0"]),
        (STD[:1], "MINE.CRITIC_LR=0.5", ["TRAINER std", "MINE.SAMPLES above 0"]),
        (["TRAINER=kd"], "DEIT.MODE=soft", ["TRAINER kd", "TRAINER deit"]),
        ([], "DISTILLATION.TYPE=soft", ["TRAINER baseline", "KD.WEIGHT above 0, STD.WEIGHT above 0"]),
        ([], "DISTILLATION.CACHE=x", ["KD.WEIGHT above 0, LOCALITY.WEIGHT above 0"]),
        (["TRAINER=locality"], "DISTILLATION.TEMPERATURE=2", ["KD.WEIGHT above 0, STD.WEIGHT above 0"]),
        (["TRAINER=kd", "KD.WEIGHT=0"], "KD.WARMUP_EPOCHS=5", ["TRAINER kd", "KD.WEIGHT above 0"]),
        (["TASK.NAME=detection"], "AUG.MIXUP=0.5", ["which TASK.NAME detection does", "TASK.NAME classification"]),
    ],
)
def test_an_option_that_nobody_reads_is_refused_with_its_readers(write, words, unread, readers):
    path = write("SEED: 1\n")
    key, _, value = unread.partition("=")
    text = complaint(path, *words, unread)
    for part in (f"command line: {key} is ", "does not read; it is read with ", *readers):
        assert part in text
    section, name = key.split(".")
    assert ":2: " + key in complaint(write(f"{section}:\n  {name}: {value}\n", "y.yaml"), *words)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["KD.WEIGHT=0.5"], "KD.WARMUP_EPOCHS=5"),
        (["TRAINER=std"], "STD.TAPS=[1]"),
        (["MINE.SAMPLES=2"], "MINE.CRITIC_LR=0.5"),
        (["STD.WEIGHT=0.5"], "DISTILLATION.TYPE=soft"),
        (["TRAINER=locality"], "DISTILLATION.TEACHER_BN=batch"),
        ([], "KD.WARMUP_EPOCHS=0"),  # what it would be anyway
        ([], "STD.TAPS=[last]"),
        ([], "DISTILLATION.TEACHERS=[]"),
        (["TRAINER=kd"], "MINE.CRITIC_LR=0.01"),
        ([], "STD.WEIGHT=0"),
    ],
)
def test_an_option_that_somebody_reads_or_that_says_nothing_new_is_accepted(write, words, read):
    config.load(write("SEED: 1\n"), [*words, read])


@pytest.mark.parametrize(
    ("words", "idle", "where"),
    [
        (["TRAINER=feature", "FEATURE.LOSS=at"], "FEATURE.RKD_ANGLE=10", "FEATURE.LOSS=rkd"),
        (["TRAINER=vkd", "VKD.PROJECTION=linear"], "VKD.MAP=cayley", "VKD.PROJECTION=orthogonal"),
        (["TRAINER=kd", "DISTILLATION.TYPE=ttm"], "DISTILLATION.TEMPERATURE=4", "DISTILLATION.TYPE!=hard,ttm"),
        ([], "AUG.CROP_SCALE=0.2", "AUG.CROP=resized"),
    ],
)
def test_an_option_without_an_effect_is_said_in_a_line(write, caplog, words, idle, where):
    """On the command line, or in the file that is named; not in what these replace a part of."""
    key, _, value = idle.partition("=")
    nested = {}
    for word in (*words, idle):
        name, _, text = word.partition("=")
        section, _, leaf = name.partition(".")
        nested |= {section: nested.get(section, {}) | {leaf: yaml.safe_load(text)}} if leaf else {section: text}
    own, plain = write(yaml.safe_dump(nested)), write("SEED: 1\n", "y.yaml")
    for path, last, place in ((plain, [*words, idle], "command line"), (own, [], f"{own}:")):
        caplog.clear()
        config.load(path, last)
        (line,) = caplog.messages
        assert line.startswith(place) and f": {key} is " in line
        assert f"has no effect here; it has one where {where}" in line
    caplog.clear()
    config.load(write("_BASE_: x.yaml\nSEED: 1\n", "z.yaml"))
    config.load(own, ["SEED=2"])
    config.load(plain, words)
    assert not caplog.messages


def test_a_run_learns_from_something(write):
    text = complaint(write("SEED: 1\n"), "TASK.WEIGHT=0")
    assert "TASK.WEIGHT is 0.0, expected a weight above 0" in text
    assert config.load(write("SEED: 1\n"), ["TASK.WEIGHT=0", "KD.WEIGHT=1"]).TASK.WEIGHT == 0


@pytest.mark.parametrize(
    ("words", "task", "kd", "std", "form"),
    [
        ([], 1.0, 0.0, 0.0, "hard"),
        (["TRAINER=kd"], 0.1, 0.9, 0.0, "hard"),
        (["TRAINER=std"], 0.5, 0.0, 0.5, "hard"),
        (["TRAINER=deit"], 0.5, 0.5, 0.0, "hard"),
        (["TRAINER=deit", "DEIT.MODE=none"], 1.0, 0.0, 0.0, "hard"),
        (["TRAINER=deit", "DEIT.MODE=soft"], 0.5, 0.5, 0.0, "soft"),
        (["TRAINER=deit", "DEIT.MODE=distill"], 0.0, 1.0, 0.0, "hard"),
        # what is set wins
        (["TRAINER=kd", "TASK.WEIGHT=0.4"], 0.4, 0.9, 0.0, "hard"),
        (["TASK.WEIGHT=0.4", "KD.WEIGHT=0.2", "TRAINER=kd"], 0.4, 0.2, 0.0, "hard"),
        (["TRAINER=kd", "TASK.WEIGHT=1"], 1.0, 0.9, 0.0, "hard"),  # the page's own default, too
        (["TRAINER=deit", "DEIT.MODE=distill", "TASK.WEIGHT=0.1"], 0.1, 1.0, 0.0, "hard"),
        (["TRAINER=deit", "DEIT.MODE=soft", "DISTILLATION.TYPE=decoupled"], 0.5, 0.5, 0.0, "decoupled"),
        (["TRAINER=std", "KD.WEIGHT=0.3"], 0.5, 0.3, 0.5, "hard"),
    ],
)
def test_a_method_is_a_preset_of_other_defaults(write, words, task, kd, std, form):
    cfg = config.load(write("SEED: 1\n"), words)
    found = (cfg.TASK.WEIGHT, cfg.KD.WEIGHT, cfg.STD.WEIGHT, cfg.DISTILLATION.TYPE)
    assert found == (task, kd, std, form)


def test_a_preset_gives_way_to_a_file_and_that_to_the_command_line(write):
    write("TRAINER: kd\nTASK:\n  WEIGHT: 0.4\n", "base.yaml")
    path = write("_BASE_: base.yaml\nKD:\n  WEIGHT: 0.7\n")
    assert (config.load(path).TASK.WEIGHT, config.load(path).KD.WEIGHT) == (0.4, 0.7)
    assert config.load(path, ["KD.WEIGHT=0.1"]).KD.WEIGHT == 0.1
    assert config.load(write("_BASE_: base.yaml\nTRAINER: std\nTASK: null\n", "z.yaml")).TASK.WEIGHT == 0.5


def test_a_section_that_another_method_does_not_read_can_be_dropped(write):
    write("TRAINER: std\nDISTILLATION:\n  WEIGHTING: entropy\nSTD:\n  UPDATE: shared\n", "base.yaml")
    path = write("_BASE_: base.yaml\nTRAINER: baseline\nDISTILLATION: null\nSTD: null\n")
    assert config.flatten(config.load(path)) == config.flatten(config.defaults()) | {"NAME": Path(path).stem}
    words = ["TRAINER=kd", "DISTILLATION.WEIGHTING=uniform"]
    assert config.load(path, words).DISTILLATION.WEIGHTING == "uniform"
    with pytest.raises(ConfigError, match="DISTILLATION.WEIGHTING is 'entropy', which TRAINER baseline does not read"):
        config.load(write("_BASE_: base.yaml\nTRAINER: baseline\nSTD: null\n", "z.yaml"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["TRAINER=kd", "KD.CE_WEIGHT=0.3", "KD.KD_WEIGHT=0.6"], ["TRAINER=kd", "TASK.WEIGHT=0.3", "KD.WEIGHT=0.6"]),
        (["TRAINER=std", "DISTILLATION.ALPHA=0.25"], ["TRAINER=std", "TASK.WEIGHT=0.75", "STD.WEIGHT=0.25"]),
        (["TRAINER=deit", "DISTILLATION.ALPHA=0.25"], ["TRAINER=deit", "TASK.WEIGHT=0.75", "KD.WEIGHT=0.25"]),
        (  # such a mode said the form itself, and a record held what DISTILLATION.TYPE was beside it
            ["TRAINER=deit", "DEIT.MODE=soft", "DISTILLATION.ALPHA=0.25", "DISTILLATION.TYPE=hard"],
            ["TRAINER=deit", "DEIT.MODE=soft", "TASK.WEIGHT=0.75", "KD.WEIGHT=0.25", "DISTILLATION.TYPE=soft"],
        ),
        (  # no part of these
            ["TRAINER=deit", "DEIT.MODE=distill", "DISTILLATION.ALPHA=0.5"],
            ["TRAINER=deit", "DEIT.MODE=distill"],
        ),
        (["TRAINER=baseline", "DISTILLATION.ALPHA=0.5"], ["TRAINER=baseline"]),
    ],
)
def test_old_names_are_todays(write, old, new):
    """On the command line, in YAML, in a record."""
    path = write("SEED: 1\n", "same.yaml")
    expected = config.load(path, new)
    assert config.load(path, old) == expected
    sections = {}
    for word in old[1:]:
        key, _, value = word.partition("=")
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = yaml.safe_load(value)
    record = {"TRAINER": old[0].partition("=")[2], "NAME": "same", "SEED": 1, **sections}
    assert config.load(write(yaml.safe_dump(record), "same.yaml")) == expected
    assert config.complete(yaml.safe_dump(record)) == config.complete(expected.dump())


def test_of_an_old_name_and_todays_the_later_one_counts(write):
    write("TRAINER: kd\nTASK:\n  WEIGHT: 0.4\n", "base.yaml")
    path = write("_BASE_: base.yaml\nKD:\n  CE_WEIGHT: 0.7\n")
    assert config.load(path).TASK.WEIGHT == 0.7
    assert config.load(path, ["TASK.WEIGHT=0.2"]).TASK.WEIGHT == 0.2
    assert config.load(write("TRAINER: std\nTASK:\n  WEIGHT: 0.4\n"), ["DISTILLATION.ALPHA=0.9"]).STD.WEIGHT == 0.9
    text = complaint(write("TRAINER: std\n"), "DISTILLATION.ALPHA=abc")
    assert text == "command line: DISTILLATION.ALPHA expects a number, got 'abc'"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["TRAINER=kd", "DISTILLATION.ALPHA=0.3"], "DISTILLATION.ALPHA is 0.3, which TRAINER kd does not read"),
        (["DISTILLATION.ALPHA=0.3"], "DISTILLATION.ALPHA is 0.3, which TRAINER baseline does not read"),
        (["TRAINER=std", "DISTILLATION.ALPHA=1.5"], "DISTILLATION.ALPHA is 1.5, expected 0 to 1"),
        (["TRAINER=std", "KD.CE_WEIGHT=0.3"], "no option KD.CE_WEIGHT, did you mean KD.WEIGHT?"),
        (["TRAINER=baseline", "KD.KD_WEIGHT=0.3"], "no option KD.KD_WEIGHT, did you mean KD.WEIGHT?"),
    ],
)
def test_old_names_that_had_no_effect_are_refused(write, words, text):
    assert complaint(write("SEED: 1\n"), *words).startswith(f"command line: {text}")


def test_the_records_that_are_kept_are_read_by_todays_names():
    """Of each method as an earlier version wrote it, the weights that it had; all options, and no other."""
    known, seen = config.Catalogue(), set()
    weights = {"_base": (1, 0, 0), "_KD": (0.1, 0.9, 0), "_KD_ours": (0.1, 1, 0), "_single": (0.5, 0, 0.5)}
    weights |= {"_none": (1, 0, 0), "_distill": (0, 1, 0), "_soft": (0.5, 0.5, 0), "_both-hard": (0.5, 0.5, 0)}
    for path in (ROOT / "logs").rglob("seed0/config.yaml"):
        options = config.complete(path.read_text())
        kind = options["NAME"].partition("_c10jpeg")[2]
        found = tuple(options[key] for key in ("TASK.WEIGHT", "KD.WEIGHT", "STD.WEIGHT"))
        assert found == weights.get(kind, found), path
        assert [key for key in options if known.of(key) is None] == []
        assert options.keys() >= known.options.keys()
        seen.add(kind)
    assert seen >= weights.keys()


# ------------------------------------------------------------------------------------------------------------- records
@pytest.mark.parametrize("words", [["SEED=3"], KD, STD, LOCALITY, DEIT], ids=lambda words: words[0])
def test_the_dump_is_a_config_that_gives_the_same_options(load, tmp_path, words):
    """Without the options that nobody reads: a method that goes takes none of another's records with it."""
    cfg = config.load(str(ROOT / "configs" / "debug" / "base_debug.yaml"), words)
    text = config.dump(cfg)
    (tmp_path / "config.yaml").write_text(text)
    assert config.load(str(tmp_path / "config.yaml")) == cfg
    assert config.complete(text) == config.complete(cfg.dump())
    kept, known = config.flatten(yaml.safe_load(text)), config.Catalogue()
    flat = config.flatten(cfg)
    off = {term.switch for term in known.terms.values() if not flat[term.switch]}
    assert kept.keys() == flat.keys() - known.unread(flat).keys() - off
    sections = set(yaml.safe_load(text))
    assert {"MINE.WIDTH" in kept, "STD.TAPS" in kept} == {words is STD}
    assert ("KD.WARMUP_EPOCHS" in kept, "DEIT" in sections) == (words in (KD, LOCALITY, DEIT), words is DEIT)
    assert ("DISTILLATION" in sections, "LOCALITY.TEACHER" in kept) == (words != ["SEED=3"], words is LOCALITY)


def test_the_folder_of_a_run(load):
    assert config.out_dir(load("debug/std_debug", SEED=3)) == Path("runs/std_debug/seed3")


def test_options_are_frozen(write):
    with pytest.raises(AttributeError):
        config.load(write("SEED: 1\n")).SEED = 2


# What may differ when a run is continued, for it changes no number of it; and between the seeds of a row of a table.
FREE = {
    *("NAME", "OUT_DIR", "DEVICE", "LOG_PERIOD", "DATA.ROOT", "DATA.NUM_WORKERS", "DISTILLATION.TEACHER_MIN_ACC"),
    "TRAIN.SAVE_PERIOD",
    *("DISTILLATION.CACHE", "TRAIN.KEEP", "TEST.BATCH_SIZE", "TEST.EMA", "TEST.WEIGHTS", "TIME.WARMUP", "TIME.STEPS"),
    *("TEST.PREDICTIONS", "TEST.JSON", "TEST.SPLIT"),
    *("PUBLISHED.SOURCE", "PUBLISHED.CHANGED", "PUBLISHED.TOP1", "PUBLISHED.TOP5", "MODEL.NUM_CLASSES"),
    *(f"PUBLISHED.{score}" for score in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")),
}
PER_RUN = FREE - {"NAME"} | {"SEED"}
# What a test of a checkpoint is warned of.
SHAPING = ("TRAINER", "TASK.", "MODEL.", "STD.", "KD.WEIGHT", "DEIT.", "DATA.NAME", "DATA.IMAGE_SIZE")
SHAPING += ("DATA.NORMALIZATION", "DATA.CROP_RATIO", "DATA.FIT", "DATA.INTERPOLATION")


def other(value):
    """Another value of the type."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else type(value)("other")


def matters(option):
    """Whether an option may not change when a run is continued."""
    return option.on_resume != "free"


@pytest.fixture(scope="module")
def records():
    """All options at their defaults; and for each option, by its key, the same with another value of it."""
    options = config.complete(config.defaults().dump()) | {"NAME": "x", "MODEL.ARGS.depth": 1}
    del options["MODEL.ARGS"]
    changed = {key: options | {key: other(value)} for key, value in options.items()}
    changed["TRAINER"]["TRAINER"] = "kd"
    return options, changed


def test_a_run_is_continued_with_options_that_change_no_number_alone(records):
    options, changed = records
    refused = {key for key in changed if changed_options(options, changed[key], matters)}
    idle = config.Catalogue().idle(options)  # see below
    assert changed.keys() - refused == FREE | {"OPTIM.MAX_EPOCH"} | idle, "a run may be continued for longer"
    shorter = changed_options(changed["OPTIM.MAX_EPOCH"], options, matters)
    assert shorter == ["OPTIM.MAX_EPOCH was 301, is 300"]
    assert changed_options(options, changed["SEED"], lambda option: True) == ["SEED was 0, is 1"]
    folders = [options | {"DATA.NAME": "image_folder", "DATA.ROOT": root} for root in ("/a/cats", "/b/cats", "/b/dogs")]
    assert changed_options(*folders[:2], matters) == []
    told = changed_options(*folders[1:], matters)
    assert told == ["DATA.ROOT was 'cats', is 'dogs'"]


def test_a_test_is_warned_of_options_that_shape_the_student(records):
    options, changed = records
    warned = {key for key in changed if changed_shape(options, changed[key])}
    assert warned == {key for key in changed if key.startswith(SHAPING)} - {"MODEL.NUM_CLASSES", "MODEL.FREEZE"}


def test_runs_that_differ_in_what_matters_are_rows_of_their_own(records):
    options, changed = records
    runs = [Run(Path("a"), options | {"SEED": -1}, status="finished")]
    for seed, (key, other_options) in enumerate(changed.items(), start=2):
        runs.append(Run(Path(key), other_options | ({} if key == "SEED" else {"SEED": seed}), status="finished"))
    table = aggregate(runs)
    catalogue = config.Catalogue()
    same = PER_RUN | catalogue.idle(options) | {key for key, option in catalogue.options.items() if not option.rows}
    same &= changed.keys()
    assert sorted(table["n"]) == [1] * (len(changed) - len(same)) + [1 + len(same)]
    for key in changed.keys() - same - {"NAME", "DATA.NAME"}:
        assert table["run"].str.contains(f"{key} ", regex=False).any(), key


# ----------------------------------------------------------------------------------------------------- what is declared
def test_every_option_says_what_it_is():
    """Each key of the page, and of the private options of a term, a trainer or a task, follows a comment."""
    page = (ROOT / "pycls_std/config/page.py").read_text().splitlines()
    folders = ("trainers", "terms", "tasks")
    private = [path for folder in folders for path in (ROOT / "pycls_std" / folder).glob("*.py")]
    found = 0
    pages = [
        (page, r' {4}"[A-Z][A-Z_.0-9]*'),
        *((path.read_text().splitlines(), r' {8}"[A-Z][A-Z_0-9]*') for path in private),
    ]
    for lines, key in pages:
        for above, line in zip(lines, lines[1:], strict=False):
            if re.match(f'{key}": ', line):
                found += 1
                assert above.strip().startswith("#"), line
    catalogue = config.Catalogue()
    assert found == len(catalogue.options) - len(catalogue.shown_scores()), "PUBLISHED has those of the metrics"


def test_golden_options():
    """All options with their defaults, on one page; a change is made on purpose, in both places."""
    golden = ROOT / "tests" / "golden_options.yaml"
    options = yaml.safe_load(config.defaults().dump())
    for section in foreign_sections():
        options.pop(section, None)
    assert yaml.safe_load(golden.read_text()) == options, (
        "tests/golden_options.yaml differs from the options; write it anew with: python -c "
        "\"from pycls_std import config; print(config.defaults().dump(), end='')\" > tests/golden_options.yaml"
    )


def test_what_options_say_of_themselves_fits_them():
    known = config.Catalogue()
    for key, option in known.options.items():
        assert (option.value == []) == (option.of is not None), key
        number = (option.of or type(option.value)) in (int, float)
        assert number == (option.least is not None) or key.startswith("PUBLISHED."), f"{key}: numbers have a range"
        assert number or option.greatest is None and not option.within, key
        assert not option.within or option.value <= known.options[option.within].value, key
        assert not number or option.of or option.refusal(option.value) == ""
        assert not option.registry or option.value in known.choices(key), key
        assert option.on_resume in ("same", "free", "longer"), key
        assert not option.path or isinstance(option.value, (str, list)), key
    for trainer in known.trainers.values():
        assert trainer.defaults.keys() <= known.options.keys()
        for condition, preset in trainer.presets.items():
            key, _, value = condition.partition("=")
            assert value in known.choices(key) and preset.keys() <= known.options.keys(), condition
    for term in known.terms.values():
        assert known.options[term.switch].value == (1.0 if term.name == "task" else 0)


def test_what_is_declared_is_what_registers():
    """By name, with the attributes in capitals of each class; so it is the same whether torch is there or not."""
    import pycls_std.datasets
    import pycls_std.losses
    import pycls_std.metrics
    import pycls_std.tasks
    import pycls_std.terms
    import pycls_std.trainers  # noqa: F401
    from pycls_std.core import registry

    for name in declared.REGISTRIES:
        entries = getattr(registry, name).entries
        assert declared.declared(name).keys() == entries.keys() != set()
        for key, declaration in declared.declared(name).items():
            own = {attribute: value for attribute, value in vars(entries[key]).items() if attribute.isupper()}
            assert declaration.attributes == own


def test_declared_reads_without_running(tmp_path, monkeypatch):
    (tmp_path / "terms").mkdir()
    (tmp_path / "terms" / "mine.py").write_text(
        'raise SystemExit\n@R.register("other")\n@TERMS.register("new")\nclass New:\n'
        '    OPTIONS = {"WEIGHT": 0.5, "FORM": ("a", "b"), "LIST": Option([], of=int), "FREE": neutral(1)}\n'
    )
    monkeypatch.setattr(declared, "PACKAGE", tmp_path)
    (found,) = declared.declared("TERMS").values()
    assert found.options == {
        "NEW.WEIGHT": Option(0.5),
        "NEW.FORM": Option(("a", "b")),
        "NEW.LIST": Option([], of=int),
        "NEW.FREE": Option(1, on_resume="free", rows=False),
    }


@pytest.mark.parametrize("root", [".", "..", "/"])
def test_a_folder_of_images_has_a_name(load, root):
    with pytest.raises(ConfigError, match="DATA.ROOT is '.*', expected a path that ends with the folder's name"):
        load("debug/base_debug", DATA__NAME="image_folder", DATA__ROOT=root)
    load("debug/base_debug", DATA__ROOT=root)


def test_what_a_base_publishes_can_be_dropped(tmp_path):
    base = ROOT / "configs" / "std" / "mixer-s4_c100_single.yaml"
    (tmp_path / "own.yaml").write_text(f"_BASE_: {base}\nPUBLISHED: null\n")
    published = config.load(str(tmp_path / "own.yaml")).PUBLISHED
    assert (published.TOP1, published.SOURCE, published.CHANGED) == (-1.0, "", [])


@pytest.mark.parametrize("word", ["MODEL.ARGS.block_args={x: 1}", "MODEL.ARGS={block_args: {x: 1}}"])
def test_an_argument_that_is_a_mapping_is_refused(word):
    with pytest.raises(ConfigError, match="MODEL.ARGS"):
        config.load(str(ROOT / "configs" / "debug" / "base_debug.yaml"), [word])


# ------------------------------------------------------------------------------------------- options without an effect
WHEN = {key: option.when for key, option in config.Catalogue().options.items() if option.when}
# Options with which the others have no effect, and with which they have one.
WITHOUT = {
    "DEVICE": "cpu",
    "AUG.CROP": "none",
    "AUG.MIXUP": 0.0,
    "AUG.CUTMIX": 0.0,
    "TRAIN.EMA_DECAY": 0.0,
    "OPTIM.SCHEDULE": "constant",
    "OPTIM.WARMUP_EPOCHS": 0.0,
    "OPTIM.WEIGHT_DECAY": 0.0,
    "OPTIM.DECAY_ALL": True,
    "DISTILLATION.LOGIT_STANDARD": False,
    "DISTILLATION.TYPE": "hard",
    "VKD.NORM": "layer",
    "VKD.PROJECTION": "linear",
    "TOKENS.NORM": "none",
    "TOKENS.PROJECTION": "none",
    "FEATURE.LOSS": "fitnet",
}
WITH = [
    {"DEVICE": "cuda", "OPTIM.WEIGHT_DECAY": 0.05, "OPTIM.DECAY_ALL": False},
    {"AUG.CROP": "pad", "AUG.MIXUP": 0.5, "OPTIM.SCHEDULE": "cosine", "DISTILLATION.TYPE": "soft"},
    {"AUG.CROP": "resized", "AUG.MIXUP": 0.5, "AUG.CUTMIX": 0.5, "OPTIM.SCHEDULE": "step", "TRAIN.EMA_DECAY": 0.9}
    | {"OPTIM.WARMUP_EPOCHS": 1.0, "DISTILLATION.LOGIT_STANDARD": True, "DISTILLATION.TYPE": "decoupled"}
    | {"VKD.NORM": "whiten", "VKD.PROJECTION": "orthogonal"}
    | {"TOKENS.NORM": "standardize", "TOKENS.PROJECTION": "orthogonal"},
    *({"FEATURE.LOSS": form} for form in ("rkd", "vid", "crd", "rsd")),
    *({"DISTILLATION.TYPE": form} for form in ("dist", "nkd", "ttm", "wttm", "ctkd", "ofa")),
]


@pytest.mark.parametrize("key", WHEN)
def test_what_has_no_effect_divides_no_row_and_hinders_no_resume(records, key):
    """Seeds that differ in the padding of a crop that has none are seeds of one row, and of one recipe."""
    catalogue, options = config.Catalogue(), records[0]
    option = catalogue.options[key]
    assert set(re.findall(r"[A-Z]+\.[A-Z_]+", WHEN[key])) <= set(WITHOUT)
    for beside, effect in ((WITHOUT, False), *((WITHOUT | each, None) for each in WITH)):
        one = options | beside
        two = one | {key: other(one[key])}
        effect = option.has_effect(one) if effect is None else effect
        assert (key not in catalogue.idle(one)) is effect
        runs = [Run(Path(str(seed)), flat | {"SEED": seed}) for seed, flat in enumerate((one, two))]
        assert aggregate(runs)["n"].tolist() == ([1, 1] if effect and option.rows else [2])
        assert bool(changed_options(one, two, matters)) is effect
        published = [flat | {"PUBLISHED.TOP1": 50.0} for flat in (one, two)]
        assert bool(changed_recipe(catalogue, *published)) is (effect and option.recipe)
    assert any(option.has_effect(options | WITHOUT | each) for each in WITH), "it never has"
