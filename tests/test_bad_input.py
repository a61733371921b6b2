"""What users and files get wrong: one line that names it, the exit code, no traceback, nothing made, nothing lost."""

import contextlib
import io
import os
import socket
import threading
import urllib.request
from collections import Counter
from functools import partial

import pytest
import torch
from image_folders import write_images
from PIL import Image
from processes import Running, called, finish
from records import SMALL
from records import words as in_words
from test_datasets import png_header
from test_table import make_table, table_of

from pycls_std.core.network import patience
from pycls_std.core.text import first_of
from pycls_std.datasets.folders import unread
from pycls_std.datasets.loader import Views, train_loader
from pycls_std.tasks.classification import Classification

CONFIG = "configs/debug/base_debug.yaml"
SHORT = in_words(**SMALL)


def fault(number, *values):
    """A case of a row of the faults."""
    return pytest.param(*values, marks=pytest.mark.fault(number))


def one_line(code, output, errors, expected):
    """Fail unless a command printed nothing but one line of complaint and left with the expected code."""
    assert (code, output) == (expected, "")
    assert errors.startswith("run_net.py: ")
    assert len(errors.splitlines()) == 1
    assert len(errors) < 600
    return errors


# Exit code, output and errors of a training's command; as users type it test_cli.py tries it.
command = partial(called, "run_net.py", "--mode", "train")


# ------------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        fault(11, ["OPTIM.BASE_LRR", "1"], ["command line", "OPTIM.BASE_LRR", "did you mean OPTIM.BASE_LR?"]),
        fault(11, ["OPTIM.LR=1e-3"], ["command line", "no option OPTIM.LR, did you mean OPTIM.BASE_LR?"]),
        fault(11, ["TRAIN.EPOCHS=3"], ["command line", "no option TRAIN.EPOCHS, did you mean OPTIM.MAX_EPOCH?"]),
        fault(11, ["TEST.BATCH=3"], ["command line", "no option TEST.BATCH, did you mean TEST.BATCH_SIZE?"]),
        fault(11, ["MINE.LR=3"], ["command line", "no option MINE.LR, did you mean MINE.CRITIC_LR?"]),
        fault(11, ["batch_size=3"], ["command line", "no option batch_size, did you mean TRAIN.BATCH_SIZE?"]),
        fault(
            11, ["MODEL.ARGS={}"], ["command line: MODEL.ARGS is a section", "MODEL.ARGS=null drops what the file has"]
        ),
        fault(11, ["OPTIMM.BASE_LR=1"], ["command line", "OPTIMM.BASE_LR", "did you mean OPTIM.BASE_LR?"]),
        fault(12, ["OPTIM.MAX_EPOCH", "abc"], ["OPTIM.MAX_EPOCH", "a whole number", "abc"]),
        fault(12, ["OPTIM.MAX_EPOCH", "-1"], ["OPTIM.MAX_EPOCH", "-1", "at least 1"]),
        fault(12, ["TRAIN.BATCH_SIZE", "0"], ["TRAIN.BATCH_SIZE", "0", "at least 1"]),
        fault(13, ["SEED"], ["SEED", "has no value"]),
        fault(13, ["=x"], ["=x", "KEY=VALUE"]),
        fault(13, ["SEED=1", "OPTIM.BASE_LR"], ["OPTIM.BASE_LR", "has no value"]),
        fault(36, ["TRAINER=../../x"], ["TRAINER", "../../x", "baseline, deit, feature, kd, locality, ofa, std"]),
        fault(36, ["DATA.NAME=../../x"], ["DATA.NAME", "../../x", "cifar100"]),
        fault(36, ["NAME=../../x"], ["NAME", "../../x", "letters, digits"]),
        fault(36, ["NAME=a b"], ["NAME", "a b", "letters, digits"]),
    ],
)
def test_options_that_are_wrong(words, parts, tmp_path):
    out = tmp_path / "run"
    errors = one_line(*command("--cfg", CONFIG, "OUT_DIR", out, *words), expected=2)
    for part in parts:
        assert part in errors
    assert not out.exists()


@pytest.mark.fault(12)
@pytest.mark.fault(13)
def test_friendly_spellings_and_flags_in_any_place(tmp_path):
    words = ["OPTIM.BASE_LR", "1", "--mode", "info", "OPTIM.MIN_LR=1e-3", "--cfg", CONFIG, "TEST.WEIGHTS=a=b.pt"]
    assert "parameters" in finish(Running(tmp_path, words))[0]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        fault(11, "a.yaml", "OPTIM:\n  LR: 1\n", ":2: no option OPTIM.LR, did you mean OPTIM.BASE_LR?"),
        fault(11, "a.yaml", "DATA:\n  SIZE: 32\n", ":2: no option DATA.SIZE, did you mean DATA.IMAGE_SIZE?"),
        fault(11, "a.yaml", "OPTIM:\n  WARMUP: 1\n", ":2: no option OPTIM.WARMUP, did you mean OPTIM.WARMUP_EPOCHS?"),
        fault(11, "a.yaml", "OPTIM:\n  BASE_LRR: 1\n", ":2: no option OPTIM.BASE_LRR, did you mean OPTIM.BASE_LR?"),
        fault(12, "a.yaml", "SEED: 1\nTRAIN:\n  BATCH_SIZE: 0\n", ":3: TRAIN.BATCH_SIZE is 0, expected at least 1"),
        fault(14, "a.yaml", "SEED: [1\nNAME: x\n", ":2: "),
        fault(14, "a.yaml", "- 1\n", ":1: expected options"),
        fault(14, "a.yaml", "", ":1: expected options"),
        fault(14, "a.yaml", "SEED: 1\nSEED: 2\n", ":2: SEED is set twice, first at "),
        fault(14, "a.yaml", b"\x80\x81\x00", ": cannot be read"),
        fault(14, "a.yaml", None, ": cannot be read: Is a directory"),
        fault(14, "gone.yaml", ..., ": cannot be read: No such file or directory"),
        fault(
            15,
            "a.yaml",
            "NAME: !!python/object/apply:os.system ['touch {}/marker']\n",
            ":1: the tag !!python/object/apply:os",
        ),
        fault(15, "a.py", "open('{}/marker', 'w')", ": a config is a .yaml file"),
        fault(16, "a.yaml", "_BASE_: a.yaml\n", "_BASE_ goes round in a circle: "),
        fault(16, "a.yaml", "_BASE_: gone.yaml\n", ":1: _BASE_ is 'gone.yaml', there is no such file beside "),
    ],
)
def test_files_that_are_wrong(name, content, part, tmp_path):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content is not ...:
        path.write_bytes(content if isinstance(content, bytes) else content.replace("{}", str(tmp_path)).encode())
    errors = one_line(*command("--cfg", path, f"OUT_DIR={tmp_path}/run"), expected=2)
    assert str(path) in errors
    assert part in errors
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(16)
def test_a_circle_is_told_with_its_chain(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
    errors = one_line(*command("--cfg", tmp_path / "a.yaml"), expected=2)
    assert " -> ".join(str(tmp_path / f"{name}.yaml") for name in "abca") in errors


# ------------------------------------------------------------------------------------------------- weights and devices
@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("mode", "words", "code", "text"),
    [
        ("test", ["TEST.WEIGHTS=gone.pt"], 1, "there is no checkpoint gone.pt"),
        ("test", [], 2, "TEST.WEIGHTS is empty, --mode test needs a checkpoint"),
        (
            "train",
            ["DISTILLATION.TEACHER_WEIGHTS=[gone.pt]"],
            1,
            "DISTILLATION.TEACHER_WEIGHTS of teacher 0 resnet8: there is no checkpoint gone.pt",
        ),
    ],
)
def test_missing_weights_are_told_before_the_data_is_read(mode, words, code, text, tmp_path):
    data = ["DATA.NAME=image_folder", "DATA.ROOT=nowhere", f"OUT_DIR={tmp_path}/run"]
    ended = Running(tmp_path, ["--mode", mode, "--cfg", "configs/debug/std_debug.yaml", *data, *words]).end()
    assert one_line(*ended, expected=code) == f"run_net.py: {text}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(19)
def test_weights_of_another_architecture(teacher, tmp_path):
    """A checkpoint knows its model's name, a file of weights alone only their names."""
    plain, saved = tmp_path / "plain.pt", teacher.parent / "last.pt"
    torch.save(torch.load(saved, weights_only=True)["student"], plain)
    ends = [
        Running(tmp_path, ["--mode", "test", "--cfg", CONFIG, f"TEST.WEIGHTS={path}"]).end() for path in (saved, plain)
    ]
    told = f"{saved} holds a resnet8, MODEL.NAME is mixer_nano4: the options are those of another run"
    assert ends[0][::2] == (1, f"run_net.py: {told}\n") and "other options" not in ends[0][1]
    code, _, errors = ends[1]
    assert code == 1 and f"{plain} does not fit the model: " in errors
    assert "missing backbone.stem.proj.weight" in errors
    assert errors.count(";") == 9 and " more" in errors


@pytest.mark.fault(38)
@pytest.mark.parametrize("mode", ["train", "test", "time", "check"])
def test_cuda_without_a_gpu(mode, teacher, tmp_path):
    words = ["DEVICE=cuda", f"OUT_DIR={tmp_path}/run", *([f"TEST.WEIGHTS={teacher}"] if mode == "test" else [])]
    ended = Running(tmp_path, ["--mode", mode, "--cfg", "configs/debug/teacher_debug.yaml", *words]).end()
    assert one_line(*ended, expected=1) == "run_net.py: DEVICE is cuda, torch finds no CUDA device here\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "word",
    [
        "MODEL.NAME=mixer_s4",
        "MODEL.ARGS.num_blocks=3",
        "DATA.IMAGE_SIZE=16",
        "AUG.MIXUP=0.5",
        "OPTIM.NAME=sgd",
        "OPTIM.BASE_LR=0.1",
        "TRAIN.BATCH_SIZE=64",
        "TRAIN.EMA_DECAY=0.9",
        "SEED=1",
        "PRECISION=bf16",
        "OPTIM.MAX_EPOCH=1",
    ],
)
def test_a_run_is_not_continued_with_other_options(finished, word, tmp_path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    words = ["--cfg", CONFIG, f"OUT_DIR={finished}", *SHORT, word]
    process = word == "SEED=1"  # the others are refused here, in this one
    errors = one_line(*(Running(tmp_path, ["--mode", "train", *words]).end() if process else command(*words)), 1)
    key, _, value = word.partition("=")
    assert f"last.pt is a run of other options: {key} was " in errors
    assert value in errors.split(key)[1]
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run of 3 epochs."""
    folder = tmp_path_factory.mktemp("finished")
    finish(Running(folder, ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={folder / 'run'}", *SHORT]))
    return folder / "run"


# ---------------------------------------------------------------------------------------------------------------- data
@pytest.fixture
def folders(tmp_path):
    """Return the words for a dataset of 3 classes in tmp_path/data."""
    noise = lambda number: Image.effect_noise((8, 8), 50 + number).convert("RGB")  # noqa: E731
    own = write_images(tmp_path / "data", train=8, classes=("ape", "bee", "cat"), make=noise)
    own |= {"OUT_DIR": tmp_path / "run", "MODEL__NUM_CLASSES": 0, "TRAIN__BATCH_SIZE": 4, "OPTIM__MAX_EPOCH": 1}
    return ["--cfg", CONFIG, *in_words(**own, AUG__REPEATS=1)]


def assert_it_stops(folders, tmp_path, loader, text):
    """Fail unless a training ends with one line that has this text. loader: `memory`, or `workers` and their number."""
    kind, _, workers = loader.partition(" ")
    words = [f"DATA.LOADER={kind}", f"DATA.NUM_WORKERS={workers or 0}"]
    code, output, errors = Running(tmp_path, ["--mode", "train", *folders, *words]).end()
    assert code == 1
    assert text in errors
    assert len(errors.splitlines()) == 1


LOADERS = ["memory", "workers 0", "workers 2"]


@pytest.mark.fault(22)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("content", [b"", b"garbage", "half"])
def test_a_corrupt_image_stops_with_its_path(folders, tmp_path, loader, content):
    path = tmp_path / "data" / "train" / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:60] if content == "half" else content)
    assert_it_stops(folders, tmp_path, loader, f"image {path} cannot be read")


STRANGE = {  # images that decoders do not complain of, or not as of others
    "it is no regular file": os.mkfifo,
    "Image size (900000000 pixels) exceeds limit": lambda path: path.write_bytes(png_header(30_000, 30_000)),
    "image file is truncated": lambda path: path.write_bytes(png_header(9500, 9500)),  # for which Pillow warns of bombs
    "its pixels are floats": lambda path: Image.new("F", (8, 8)).save(path, "TIFF"),
    "its pixels are 32-bit numbers": lambda path: Image.new("I", (8, 8)).save(path, "TIFF"),
}


@pytest.mark.fault(22)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("text", list(STRANGE)[:3])
def test_a_strange_image_stops_with_its_path(folders, tmp_path, loader, text):
    path = tmp_path / "data" / "train" / "bee" / "3.png"
    path.unlink()
    STRANGE[text](path)
    assert_it_stops(folders, tmp_path, loader, f"image {path} cannot be read: {text}")


@pytest.mark.fault(22)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_image_leaves_the_checkpoints(folders, tmp_path, split):
    finish(Running(tmp_path, ["--mode", "train", *folders]))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}
    (tmp_path / "data" / split / "bee" / "3.png").write_bytes(b"garbage")
    ended = Running(tmp_path, ["--mode", "train", *folders, "OPTIM.MAX_EPOCH=2"]).end()
    assert ended[0] == 1
    assert f"image {tmp_path}/data/{split}/bee/3.png cannot be read" in ended[2]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}


@pytest.mark.fault(22)
@pytest.mark.parametrize("workers", [0, 2])
def test_check_data_lists_all_that_is_wrong(folders, tmp_path, workers):
    tool = ["tools/check_data.py", *folders, f"DATA.NUM_WORKERS={workers}"]
    assert called(*tool) == (0, "train: 24 images read\ntest: 12 images read\n", "")
    bad = [tmp_path / "data" / name for name in ("train/ape/0.png", "train/cat/7.png", "val/bee/1.png")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    code, output, errors = called(*tool)
    assert (code, errors) == (1, "check_data.py: 3 images cannot be used\n")
    lines = output.splitlines()
    assert [line.startswith(f"image {path} cannot be read: ") for path, line in zip(bad, lines, strict=False)] == [
        *(True, True),
        False,
    ]
    assert lines[2] == "train: 24 images read"
    assert lines[3].startswith(f"image {bad[2]} cannot be read: ")


@pytest.mark.fault(22)
def test_check_data_lists_strange_images(folders, tmp_path):
    paths = [tmp_path / "data" / "train" / "bee" / f"{number}.png" for number in range(len(STRANGE))]
    for path, make in zip(paths, STRANGE.values(), strict=True):
        path.unlink()
        make(path)
    tool = Running(tmp_path, [], hook="pythons:be_python", arguments=([], ["tools/check_data.py", *folders]))
    code, output, errors = tool.end()
    assert (code, errors) == (1, "check_data.py: 5 images cannot be used\n")
    lines = output.splitlines()
    assert len(lines) == len(STRANGE) + 2
    for path, text, line in zip(paths, STRANGE, lines, strict=False):
        assert line.startswith(f"image {path} cannot be read: {text}")


def test_check_data_tells_what_is_not_read(folders, tmp_path):
    for name in ("ape/1.gif", "bee/2.gif", "cat/3"):
        (tmp_path / "data" / "train" / name).touch()
    code, output, errors = called("tools/check_data.py", *folders)
    assert (code, errors) == (0, "")
    line = "image_folder: train has 3 files that are not read, by their ending: .gif 2, none 1"
    assert output.splitlines() == [line, "train: 24 images read", "test: 12 images read"]
    assert unread(Counter({".gif": 1})) == "1 file that is not read, by its ending: .gif 1"


def test_check_data_without_data(tmp_path):
    for words, code in ((["DATA.ROOT=nowhere"], 1), (["DATA.ROOOT=nowhere"], 2)):
        found, _, errors = called("tools/check_data.py", "--cfg", CONFIG, "DATA.NAME=image_folder", *words)
        assert found == code
        assert errors.startswith("check_data.py: ") and len(errors.splitlines()) == 1


@pytest.mark.fault(23)
def test_an_empty_class_is_named_and_a_hidden_folder_is_not_one(folders, tmp_path):
    for name in (".ipynb_checkpoints", "ape/.hidden"):
        (tmp_path / "data" / "train" / name).mkdir()
        (tmp_path / "data" / "train" / name / "x.png").write_bytes(b"no image")
    finish(Running(tmp_path, ["--mode", "train", *folders]))
    for path in (tmp_path / "data" / "train" / "bee").iterdir():
        path.unlink()
    ended = Running(tmp_path, ["--mode", "train", *folders, f"OUT_DIR={tmp_path}/other"]).end()
    assert "bee" in one_line(*ended, expected=1)


@pytest.mark.fault(24)
def test_splits_of_other_classes(folders, tmp_path):
    (tmp_path / "data" / "val" / "bee").rename(tmp_path / "data" / "val" / "dog")
    errors = one_line(*Running(tmp_path, ["--mode", "train", *folders]).end(), expected=1)
    assert "the splits differ in 2 classes: bee (training split only), dog (test split only)" in errors


@pytest.mark.fault(36)
def test_names_from_files_do_not_steer_the_terminal(folders, tmp_path):
    """A class is a folder and an image a file, and either may be called anything."""
    code, output, errors = called("tools/check_data.py", *folders, "DATA.NUM_WORKERS=0")
    assert (code, errors) == (0, "")
    (tmp_path / "data" / "val" / "bee").rename(tmp_path / "data" / "val" / "b\x1b[31m\nee")
    errors = one_line(*Running(tmp_path, ["--mode", "train", *folders]).end(), expected=1)
    assert r"differ in 2 classes: b\x1b[31m\nee (test split only), bee (training split only)" in errors
    assert errors[:-1].isprintable()
    (tmp_path / "data" / "val" / "b\x1b[31m\nee" / "a\x1b[2Jb.png").write_bytes(b"")
    code, output, _ = called("tools/check_data.py", *folders, "DATA.NUM_WORKERS=0")
    assert code == 1 and r"a\x1b[2Jb.png" in output
    assert output.replace("\n", "").isprintable()
    assert first_of(["a\x1b[31m\n", "b"]) == r"a\x1b[31m\n, b"


@pytest.mark.fault(25)
def test_a_teacher_of_another_number_of_classes(folders, teacher, tmp_path):
    words = [word for word in folders if word != CONFIG]
    words[words.index("--cfg")] = "--cfg=configs/debug/std_debug.yaml"
    own = [f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", "MINE.SAMPLES=0"]
    code, _, errors = Running(tmp_path, ["--mode", "train", *words, *own]).end()
    assert (code, len(errors.splitlines())) == (1, 1)
    assert f"teacher 0 resnet8 ({teacher}) has 10 classes, the data has 3" in errors


@pytest.mark.fault(26)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_label_out_of_range(tmp_path, loader):
    kind, _, workers = loader.partition(" ")
    words = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", f"DATA.LOADER={kind}"]
    words.append(f"DATA.NUM_WORKERS={workers or 0}")
    code, _, errors = Running(tmp_path, [*words, "AUG.REPEATS=1"], hook="test_bad_input:strange_label").end()
    assert code == 1
    assert "image 5 of the dataset has the label 10, its classes are 0 to 9" in errors
    assert len(errors.splitlines()) == 1
    task = Classification(10, pipeline=None)
    views = Views([(None, -1)] * 4, lambda image, label: image, seed=0, check=task.check, collate=task.collate)
    with pytest.raises(ValueError, match="has the label -1"):
        list(train_loader(views, batch_size=2, workers=0, seed=0))


def strange_label():
    """Hook: an image of the digits has a label that is none."""
    from pycls_std.datasets.digits import Digits

    make = Digits.__init__

    def digits(self, split):
        make(self, split)
        self.labels[5] = 10

    Digits.__init__ = digits


@pytest.mark.fault(39)
def test_fewer_images_than_a_batch(tmp_path):
    words = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", "TRAIN.BATCH_SIZE=2000"]
    errors = one_line(*Running(tmp_path, words).end(), expected=1)
    assert errors == "run_net.py: TRAIN.BATCH_SIZE is 2000, the training split has 1437 images\n"


# ------------------------------------------------------------------------------------------------- network, names, logs
@pytest.mark.fault(31)
def test_half_an_archive_is_not_data(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(os.urandom(5000))
    words = ["--mode", "train", "--cfg", "configs/resnet/r-20_c100.yaml", f"DATA.ROOT={tmp_path}", "DEVICE=cpu"]
    ended = Running(tmp_path / "logs", [*words, f"OUT_DIR={tmp_path}/run"], hook="processes:refuse_network").end()
    code, output, errors = ended
    assert code == 1
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz could not be downloaded" in errors
    assert f"put cifar-100-python.tar.gz (MD5 eb9058c3a382ffc7106e4002c42a8d85) into {tmp_path} by hand" in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(31)
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nhalf"])
def test_a_server_that_stalls(answer, tmp_path):
    """It accepts, and never answers, or never goes on."""
    data = tmp_path / "data" / "cifar"
    words = ["--mode", "train", "--cfg", "configs/resnet/r-20_c100.yaml", f"DATA.ROOT={data}", "DEVICE=cpu"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/archive"
        threading.Thread(target=stall, args=(server, answer), daemon=True).start()
        hook = {"hook": "test_bad_input:impatient", "arguments": (url,)}
        code, output, errors = Running(tmp_path, [*words, f"OUT_DIR={tmp_path}/run"], **hook).end()
    assert (code, output) == (1, "")
    assert f"{data} has no whole copy and {url} could not be downloaded (" in errors.splitlines()[-1]
    assert "timed out" in errors.splitlines()[-1]
    assert answer or len(errors.splitlines()) == 1  # a download that has begun shows how far it is
    assert not data.parent.exists()


def stall(server, answer):
    """Begin to answer whoever connects, and let all connections open; its HEAD is answered, if anything is."""
    kept = []
    with contextlib.suppress(OSError):  # the server is closed
        while True:
            kept.append(server.accept()[0])
            head = answer and kept[-1].recv(4096).startswith(b"HEAD")
            kept[-1].sendall(answer.removesuffix(b"half") if head else answer)


def impatient(url):
    """Hook: CIFAR-100 is somewhere else, and waited for for a second."""
    from torchvision.datasets import CIFAR100

    from pycls_std.datasets import downloads

    os.environ["no_proxy"] = "*"
    CIFAR100.url, downloads.patience = url, partial(downloads.patience, 1)


def test_patience_ends_with_its_block():
    with patience(7), socket.socket() as within:
        assert within.gettimeout() == 7
    with pytest.raises(KeyError), patience(7):
        raise KeyError
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "cifar-100-python/train"])
def test_an_archive_that_is_a_pipe(name, tmp_path):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    words = ["--mode", "train", "--cfg", "configs/resnet/r-20_c100.yaml", f"DATA.ROOT={tmp_path}/data", "DEVICE=cpu"]
    ended = Running(tmp_path, [*words, f"OUT_DIR={tmp_path}/run"], hook="test_bad_input:answer_garbage").end()
    errors = one_line(*ended, expected=1)
    assert "no regular file" in errors and str(path) in errors


def answer_garbage():
    """Hook: whatever is asked for is there."""

    class Garbage(io.BytesIO):
        url, length = None, 5000

    urllib.request.urlopen = lambda *args, **options: Garbage(bytes(5000))


@pytest.mark.slow
@pytest.mark.fault(32)
def test_all_modes_work_offline(teacher, tmp_path):
    words = ["--cfg", "configs/debug/std_debug.yaml", f"DISTILLATION.TEACHER_WEIGHTS=[{teacher}]", "OPTIM.MAX_EPOCH=1"]
    words += [f"OUT_DIR={tmp_path}/run", f"TEST.WEIGHTS={tmp_path}/run/checkpoints/last.pt", *SHORT]
    few = ["TIME.STEPS=1", "TIME.WARMUP=0", "TRAIN.BATCH_SIZE=128"]  # a block of views is many batches of 16
    for mode, own in (("train", []), ("test", []), ("time", few), ("info", [])):
        assert finish(Running(tmp_path, ["--mode", mode, *words, *own], hook="processes:refuse_network"))[0]


@pytest.mark.fault(36)
@pytest.mark.parametrize("name", ["a run", "läuft-実行", "two\nlines", "a=b", "-x"])
def test_a_folder_of_any_name_works(tmp_path, name):
    out = f"{tmp_path}/{name}"
    for epochs, text in ((1, "started"), (2, "continues from")):
        words = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={out}", f"OPTIM.MAX_EPOCH={epochs}", *SHORT]
        assert text in finish(Running(tmp_path / "logs", words))[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "logs"])


@pytest.mark.fault(36)
def test_names_that_would_break_a_table(record, tmp_path):  # noqa: F811
    """In a config.yaml from elsewhere a name may be anything."""
    for seed, name in enumerate((r"a|b_&$", "two\nlines", "=cmd|' /C calc'!A0", "+1", "@x", "<b>")):
        quoted = f'"{name}"'.replace("\n", "\\n") if "\n" in name else f"'{name.replace(chr(39), 2 * chr(39))}'"
        rename = lambda text, seed=seed, quoted=quoted: text.replace(f"NAME: run{seed}", f"NAME: {quoted}")  # noqa: E731
        record(f"run{seed}", seed, [1, 2, 3], edit=rename)
    code, text, _ = make_table(tmp_path / "logs")
    assert code == 0
    rows = text.splitlines()
    assert len(rows) == 2 + 6
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert any(row.startswith(r"| a\|b_&$ |") for row in rows)
    assert any(row.startswith("| two lines |") for row in rows)
    assert any(row.startswith("| &lt;b> |") for row in rows)
    text = make_table(tmp_path / "logs", "--format", "latex")[1]
    assert r"a|b\_\&\$ & " in text
    table, _ = table_of(tmp_path / "logs")
    assert not any(str(cell).startswith(("=", "+", "@")) for cell in table["run"])
    assert "'=cmd|' /C calc'!A0" in set(table["run"])


@pytest.mark.fault(37)
def test_nothing_of_the_environment_is_recorded(tmp_path):
    words = ["--mode", "train", "--cfg", CONFIG, f"OUT_DIR={tmp_path}/run", "OPTIM.MAX_EPOCH=1", *SHORT]
    secret = {"TOKEN": "abc123secret", "AWS_SECRET_ACCESS_KEY": "abc123secret", "HF_TOKEN": "abc123secret"}
    for overrides in ([], ["OPTIM.MAX_EPOCH=2", "OPTIM.BASE_LR=7"]):
        Running(tmp_path, [*words, *overrides], env=secret).end()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"abc123secret" in path.read_bytes()]
