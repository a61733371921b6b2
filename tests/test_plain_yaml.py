"""YAML's surprises: what runs, grows, or is read as something else than it says is refused in a line, at once."""

import os
import time

import pytest

from pycls_std import config
from pycls_std.config import ConfigError
from pycls_std.config.plain_yaml import load_yaml
from pycls_std.reproduce.table_file import read_table


@pytest.fixture
def load(tmp_path):
    """Return load(text, *words): the options of a file of this text, and of words of the command line."""

    def load_text(text, *words, name="x.yaml"):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
        return config.load(str(tmp_path / name), list(words))

    return load_text


@pytest.fixture
def complaint(load):
    """Return complaint(text, *words): what loading says is wrong: one line, not too long, soon."""

    def complain(text, *words):
        start = time.monotonic()
        with pytest.raises(ConfigError) as error:
            load(text, *words)
        assert time.monotonic() - start < 5
        assert len(str(error.value)) < 600
        assert str(error.value).isprintable()
        return str(error.value)

    return complain


# ------------------------------------------------------------------------------------------------ what runs, what grows
def bomb(levels, width):
    """A few hundred characters, in which every list has the one before several times."""
    lines = ["MODEL:", " ARGS:", "  a0: &a0 [x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.fault(14)
@pytest.mark.parametrize("text", [bomb(10, 10), bomb(200, 2), "MODEL: {ARGS: {x: [" + "1, " * 10_000 + "]}}"])
def test_a_text_that_grows_is_refused_at_once(complaint, text):
    assert "x.yaml: has more than 10000 values" in complaint(text)


@pytest.mark.fault(14)
def test_a_bomb_on_the_command_line_and_in_a_record(complaint):
    one = "[" + ", ".join([f"&a{0} [x, x]"] + [f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]) + "]"
    assert "command line: MODEL.ARGS.x: has more than 10000 values" in complaint("SEED: 1\n", f"MODEL.ARGS.x={one}")
    with pytest.raises(ValueError, match="has more than 10000 values"):
        config.complete(bomb(10, 10))


@pytest.mark.fault(14)
@pytest.mark.parametrize("size", [1_000_001, 2_000_000, 1 << 40])
def test_a_large_file_is_refused_before_it_is_read(complaint, tmp_path, size):
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", size)  # it takes no room
    assert f"large.yaml: has {size} bytes, a config has at most 1000000" in complaint("_BASE_: large.yaml\n")
    with pytest.raises(ConfigError, match=f"large.yaml: has {size} bytes, a table has at most 1000000"):
        read_table(tmp_path / "large.yaml")


def test_ordinary_aliases_work(load):
    cfg = load("MODEL:\n  ARGS: {a: &one [1, 2], b: *one}\nOPTIM: {STEPS: &s [2, 3], SCHEDULE: step, MAX_EPOCH: 5}\n")
    assert (cfg.MODEL.ARGS.a, cfg.MODEL.ARGS.b, cfg.OPTIM.STEPS) == ([1, 2], [1, 2], [2.0, 3.0])


@pytest.mark.fault(15)
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!set", "!x"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SEED: {} ['touch {marker}']\n", ()),
        ("OPTIM: {} ['touch {marker}']\n", ()),
        ("_BASE_: {} ['touch {marker}']\n", ()),
        ("MODEL:\n  ARGS:\n    x: [{{a: {} ['touch {marker}']}}]\n", ()),
        ("{} ['touch {marker}']: 1\n", ()),
        ("SEED: 1\n", ("SEED={} ['touch {marker}']",)),
        ("SEED: 1\n", ("MODEL.ARGS.x=[{} ['touch {marker}']]",)),
        ("SEED: 1\n", ("DISTILLATION.TEACHERS=[{} ['touch {marker}']]",)),
    ],
)
def test_a_tag_is_refused_wherever_it_stands(complaint, tmp_path, text, words, tag):
    marker = tmp_path / "marker"
    told = complaint(text.format(tag, marker=marker), *[word.format(tag, marker=marker) for word in words])
    assert " the tag " in told and " is refused, options are text, numbers, lists, mappings" in told
    assert not marker.exists()


def test_tags_of_plain_data_are_none_the_worse(load, complaint):
    cfg = load(
        "NAME: !!str 010\nSEED: !!int 3\nDISTILLATION:\n  TEACHERS: !!seq []\nMODEL: !!map {ARGS: {x: !!str 1e3}}\n"
    )
    assert (cfg.NAME, cfg.SEED, cfg.MODEL.ARGS.x) == ("010", 3, "1e3")
    assert ":1: 'x' is no int" in complaint("SEED: !!int x\n")


# ---------------------------------------------------------------------------------------------- what is read otherwise
GUESSED = {
    **{"010": ", YAML 1.1 reads 8", "0x1F": ", YAML 1.1 reads 31", "0b1": ", YAML 1.1 reads 1", "0o10": ""},
    **{"1_000": ", YAML 1.1 reads 1000", "1:30": ", YAML 1.1 reads 90", "08": "", "+010": ", YAML 1.1 reads 8"},
    **{"-0x1": ", YAML 1.1 reads -1", "1:30:00": ", YAML 1.1 reads 5400", "1_0.5": ", YAML 1.1 reads 10.5"},
}


@pytest.mark.fault(12)
@pytest.mark.parametrize("word", GUESSED)
@pytest.mark.parametrize(
    ("section", "key", "wraps"),
    [("", "SEED", "{}"), ("OPTIM", "BASE_LR", "{}"), ("DISTILLATION", "TEACHER_SIZES", "[8, {}]")],
)
def test_numbers_are_decimal(complaint, word, section, key, wraps):
    """In a file, on the command line, in a list."""
    value, name = wraps.format(word), ".".join(filter(None, (section, key)))
    for text, words, where in (
        (f"{section}:\n  {key}: {value}\n" if section else f"\n{key}: {value}\n", (), "x.yaml:2: "),
        ("SEED: 1\n", (f"{name}={value}",), "command line: "),
    ):
        told = complaint(text, *words)
        assert where in told and f"{name}{'[1]' * ('[' in wraps)} expects a" in told
        assert f"got {word!r}{GUESSED[word]}" in told


@pytest.mark.fault(12)
@pytest.mark.parametrize("word", [*GUESSED, "yes", "NO", "on", "Off", ".inf", "-.INF", ".nan", "9" * 5000])
def test_where_no_option_says_the_type_a_word_has_one_reading(complaint, load, word):
    for text, words in (
        (f"MODEL:\n  ARGS: {{x: {word}}}\n", ()),
        (f"MODEL:\n  ARGS: {{x: [{{y: {word}}}]}}\n", ()),
        ("SEED: 1\n", (f"MODEL.ARGS.x={word}",)),
        ("SEED: 1\n", (f"MODEL.ARGS.x=[{word}]",)),
    ):
        told = complaint(text, *words)
        assert "MODEL.ARGS.x: '" in told and " is no decimal number" in told and "quote it if it is text" in told
        assert words or "x.yaml:2: " in told
    assert load(f"MODEL:\n  ARGS: {{x: '{word}'}}\n").MODEL.ARGS.x == word
    with pytest.raises(ValueError, match="is no decimal number"):
        load_yaml(f"x: {word}", "x")


def test_text_is_what_stands_there(load):
    """Also what YAML 1.1 takes for a number, a date, true or false."""
    for word in ("010", "1:30", "2024-01-01", "no", "true", "1.50", "0x1F"):
        cfg = load(f"TEST: {{WEIGHTS: {word}}}\nLOCALITY: {{WEIGHT: 1, STUDENT_TAPS: [{word}]}}\n")
        assert (word, [word]) == (cfg.TEST.WEIGHTS, cfg.LOCALITY.STUDENT_TAPS)
        cfg = load("SEED: 1\n", f"TEST.WEIGHTS={word}")
        assert word == cfg.TEST.WEIGHTS
    cfg = load("NAME: 007\nTRAIN: {COMPILE: off, EMA_WARMUP: yes}\nMODEL: {ARGS: {when: 2024-01-01, name: 1.2.3}}\n")
    assert (cfg.NAME, cfg.TRAIN.COMPILE, cfg.TRAIN.EMA_WARMUP) == ("007", "off", True)
    assert cfg.MODEL.ARGS == {"when": "2024-01-01", "name": "1.2.3"}
    assert load("SEED: 1\n", "TRAIN.EMA_WARMUP=Off").TRAIN.EMA_WARMUP is False


def test_values_of_a_record_are_what_was_dumped(load, tmp_path):
    args = "{a: [1, 2.5, 1e-3, x, '3', 'no', true], b: [{c: '010'}], d: '1:30'}"
    cfg = load(f"MODEL:\n  ARGS: {args}\n")
    assert cfg.MODEL.ARGS.a == [1, 2.5, 0.001, "x", "3", "no", True]
    assert load(config.dump(cfg)) == cfg
    assert config.complete(config.dump(cfg))["MODEL.ARGS.b"] == [{"c": "010"}]


@pytest.mark.fault(12)
@pytest.mark.parametrize("digits", [20, 5000])
def test_numbers_of_many_digits(complaint, digits):
    number = "9" * digits
    for key, part in (
        ("SEED", "SEED"),
        ("LOG_PERIOD", "LOG_PERIOD"),
        ("MODEL.ARGS.depth", "MODEL.ARGS.depth"),
        ("DISTILLATION.TEACHER_SIZES", "DISTILLATION.TEACHER_SIZES"),
    ):
        value = f"[{number}]" if key.endswith("SIZES") else number
        assert f"command line: {part}" in complaint("SEED: 1\n", f"{key}={value}")
        *sections, leaf = key.split(".")
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)] + [f"{'  ' * len(sections)}{leaf}: "]
        assert part in complaint("\n".join(lines) + value + "\n")


# ------------------------------------------------------------------------------------------------------ form of a file
@pytest.mark.fault(14)
@pytest.mark.parametrize("value", ["5", "[]", "null", "", "~", "text", "[a: 1]"])
def test_a_section_holds_keys(complaint, value):
    assert "x.yaml:2: OPTIM is a section, it takes keys and not " in complaint(f"SEED: 1\nOPTIM: {value}\n")
    with pytest.raises(ValueError, match="OPTIM is a section"):
        config.complete(f"SEED: 1\nOPTIM: {value}\n")


@pytest.mark.fault(14)
def test_an_empty_mapping_is_no_value(complaint, load):
    assert load("OPTIM: {}\nMODEL: {ARGS: {}}\n").MODEL.ARGS == {}
    assert "x.yaml:1: SEED expects a whole number, got {}" in complaint("SEED: {}\n")
    assert "no option OPTIMM, did you mean OPTIM" in complaint("OPTIMM: {}\n")


@pytest.mark.fault(14)
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1: x\n", ":1: a key is a word, and not '1'"),
        ("SEED: 1\n~: x\n", ":2: a key is a word, and not '~'"),
        ("[a]: x\n", ":1: a key is a word, and no sequence"),
        ("{a: b}: x\n", ":1: a key is a word, and no mapping"),
        ('"a\\nb": 1\n', r":1: a key is a word, and not 'a\nb'"),
        ("null: x\n", ":1: no option null"),
        ("a: &a {SEED: 1}\n<<: *a\n", ":2: a key is a word, and not '<<', _BASE_ names a file to start from"),
        ("MODEL:\n  ARGS: {1: x}\n", ":2: a key is a word, and not '1'"),
        ("MODEL:\n  ARGS: {x: [{a: 1, a: 2}]}\n", ":2: a is set twice"),
        ("SEED: 1\n---\nSEED: 2\n", ":2: expected a single document in the stream, but found another document"),
        ("_BASE_:\nSEED: 1\n", ":1: _BASE_ is None, there is no such file"),
        ("_BASE_: [a.yaml]\n", ":1: _BASE_ is ['a.yaml'], there is no such file"),
        (f"_BASE_: {'a' * 5000}.yaml\n", ":1: _BASE_ is 'aaa"),
        ('_BASE_: "a\\0b.yaml"\n', r":1: _BASE_ is 'a\x00b.yaml', there is no such file"),
        ("NAME: a\0b\n", ":1: unacceptable character #x0000"),
        ("NAME: a\x1b[31mb\n", ":1: unacceptable character #x001b"),
        (f"{'k' * 1000}: 1\n", ":1: no option kkk"),
        (f"NAME: *{'a' * 5000}\n", "found undefined alias"),
        (f"NAME: !{'a' * 5000} x\n", ":1: the tag !aaa"),
        ("\xe9".encode("latin-1"), "cannot be read: "),
        ("SEED: 1\n".encode("utf-16"), "cannot be read: "),
    ],
)
def test_what_no_config_is_made_of(complaint, text, part):
    assert part in complaint(text)


def test_files_of_other_systems_are_read(load):
    assert load(b"\xef\xbb\xbfSEED: 1\r\nNAME: x\r\n").SEED == 1
    assert load("NAME: läuft-実行\n".encode()).NAME == "läuft-実行"


@pytest.mark.fault(14)
def test_only_regular_files_are_read(complaint, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "round.yaml").symlink_to("round.yaml")
    for name, reason in (("pipe", "it is no regular file"), ("zero", "it is no regular file")):
        assert f"{name}.yaml: cannot be read: {reason}" in complaint(f"_BASE_: {name}.yaml\n")
        with pytest.raises(ConfigError, match=f"{name}.yaml: cannot be read: {reason}"):
            config.load(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(ConfigError, match="cannot be read: Too many levels of symbolic links"):
        config.load(str(tmp_path / "round.yaml"))
    (tmp_path / "linked.yaml").symlink_to("x.yaml")
    with pytest.raises(ConfigError, match="no option A"):
        complaint("A: 1\n") and config.load(str(tmp_path / "linked.yaml"))


# --------------------------------------------------------------------------------------------------- what is too long
@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("NAME=" + "x" * 201, "NAME is 'xxx"),
        ("NAME=" + "ä" * 101, "NAME is 'äää"),
        ("OUT_DIR=/tmp/" + "x" * 256, "OUT_DIR is '/tmp/xxx"),
        ("OUT_DIR=/tmp/" + "x/" * 3000, "OUT_DIR is '/tmp/x/x/"),
        ("TEST.WEIGHTS=" + "x" * 10_000, "TEST.WEIGHTS is 'xxx"),
        ("DATA.ROOT=" + "x" * 300, "DATA.ROOT is 'xxx"),
        ("DISTILLATION.TEACHER_WEIGHTS=[" + "x" * 300 + "]", "DISTILLATION.TEACHER_WEIGHTS is ['xxx"),
        ("TRAINER=" + "x" * 10_000, "TRAINER is 'xxx"),
        ("SEED=" + "x" * 10_000, "SEED expects a whole number, got 'xxx"),
        ("x" * 10_000 + "=1", "no option xxx"),
        ("x" * 10_000, "xxx ... xxx"),
        ("=" * 10_000, "expected KEY VALUE or KEY=VALUE, got '==="),
        ("OPTIM.STEPS=[" + "1, " * 2000 + "0]", "OPTIM.STEPS is [1.0, 1.0"),
        ("OPTIM=" + "x" * 10_000, "OPTIM is a section, it takes keys and not 'xxx"),
        ("SEED=\x1b[31m", r"SEED expects a whole number, got '\x1b[31m'"),
    ],
)
def test_what_is_too_long_or_not_printed_is_shown_in_a_line(complaint, word, part):
    assert part in complaint("SEED: 1\n", word)


@pytest.mark.fault(12)
@pytest.mark.parametrize("escaped", [r"\0", r"\ud800"])
def test_a_path_of_characters_that_no_file_system_holds(complaint, escaped):
    assert "x.yaml:1: OUT_DIR is 'a" in complaint(f'OUT_DIR: "a{escaped}b"\n')


@pytest.mark.fault(14)
def test_paths_that_are_too_long_or_not_printed(tmp_path):
    for name, part in (
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\n\x1b[31m", r"a\n\x1b[31m.yaml: cannot be"),
    ):
        with pytest.raises(ConfigError) as error:
            config.load(str(tmp_path / f"{name}.yaml"))
        assert part in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 600
    name = "x" * 210
    (tmp_path / f"{name}.yaml").write_text("SEED: 1\n")
    with pytest.raises(ConfigError, match="x.yaml: NAME is 'xxx.* expected at most 200 bytes, for it names a folder"):
        config.load(str(tmp_path / f"{name}.yaml"))


# ------------------------------------------------------------------------------------------- numbers that have no sense
@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["OPTIM.WARMUP_EPOCHS=301"], "OPTIM.WARMUP_EPOCHS is 301.0, expected at most 300, for the run"),
        (["OPTIM.MAX_EPOCH=3", "OPTIM.WARMUP_EPOCHS=3.5"], "OPTIM.WARMUP_EPOCHS is 3.5, expected at most 3"),
        (["KD.WEIGHT=1", "KD.WARMUP_EPOCHS=20", "OPTIM.MAX_EPOCH=19"], "KD.WARMUP_EPOCHS is 20, expected at most 19"),
        (["OPTIM.SCHEDULE=step", "OPTIM.STEPS=[1, 300]"], "OPTIM.STEPS is [1.0, 300.0], expected epochs before the"),
        (["OPTIM.SCHEDULE=step", "OPTIM.STEPS=[1, 301]"], "OPTIM.STEPS is [1.0, 301.0], expected epochs before the"),
        (["STD.WEIGHT=1", "STD.TOKEN_STD=-1"], "STD.TOKEN_STD is -1.0, expected at least 0"),
        (["SEED=9223372036854775808"], "SEED is 9223372036854775808, expected 0 to 4294967295"),
        (
            ["TRAIN.BATCH_SIZE=9223372036854775808"],
            "TRAIN.BATCH_SIZE is 9223372036854775808, expected at most 2147483647",
        ),
        (["OPTIM.MAX_EPOCH=2147483648"], "OPTIM.MAX_EPOCH is 2147483648, expected at most 2147483647"),
        (["MODEL.ARGS.depth=-9223372036854775809"], "MODEL.ARGS.depth is -9223372036854775809, expected at most"),
        (["MODEL.ARGS.x=[1, {a: 1e39}]"], "MODEL.ARGS.x is 1e+39, expected at most 3.4e+38"),
        (["DATA.IMAGE_SIZE=100000"], "DATA.IMAGE_SIZE is 100000, expected 1 to 4096"),
        (["DISTILLATION.TEACHER_SIZES=[100000]"], "TEACHER_SIZES is [100000], expected entries of 0 to 4096"),
        (["DATA.NUM_WORKERS=100000"], "DATA.NUM_WORKERS is 100000, expected 0 to 1024"),
    ],
)
def test_numbers_that_no_run_can_use(complaint, words, part):
    told = complaint("SEED: 1\n", *words)
    assert told.startswith("command line: ") and part in told


def test_a_warm_up_may_last_as_long_as_the_run(load):
    cfg = load("OPTIM: {MAX_EPOCH: 3, WARMUP_EPOCHS: 3}\nKD: {WEIGHT: 1, WARMUP_EPOCHS: 3}\n")
    assert (cfg.OPTIM.WARMUP_EPOCHS, cfg.KD.WARMUP_EPOCHS) == (3.0, 3)
