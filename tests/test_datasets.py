"""Datasets in their real on-disk format, transforms, mixing, and loaders whose views depend on nothing else."""

import io
import os
import pickle
import random
import struct
import tempfile
import threading
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import write_images
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.datasets.utils import calculate_md5
from torchvision.transforms import Compose, Normalize, RandomResizedCrop, Resize, ToTensor

from pycls_std.builders.data import build_data
from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import Loaded, Progress
from pycls_std.datasets import transforms
from pycls_std.datasets.contents import contents
from pycls_std.datasets.decoding import DecodedRandomResizedCrop, open_image, to_rgb
from pycls_std.datasets.labelled_files import LabelledFiles
from pycls_std.datasets.loader import EpochSampler, Views, train_loader
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.pipeline import ImagePipeline
from pycls_std.datasets.subsets import training_parts
from pycls_std.datasets.transforms import Augmentation
from pycls_std.tasks.classification import Classification
from pycls_std.tasks.mixing import Mixing

FITS = ("crop", "squash")

START = Progress(0, 0, 1, 1)
FULL = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25, color_jitter=0.3)


def picture(seed=0, size=32):
    """A colourful PIL image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def view_of(transform, image):
    """What a transform makes of an image, whose target it leaves alone."""
    view, target = transform(image, "target")
    assert target == "target"
    return view


def test_view(norm, *options):
    """The test view of the picture."""
    return view_of(transforms.test_transform(32, norm, *options), picture())


test_view.__test__ = False
TASK = Classification(24, pipeline=None)


def views_of(dataset, transform, seed=0, **options):
    """Its views, by samples of 24 classes."""
    return Views(dataset, transform, seed=seed, check=TASK.check, collate=TASK.collate, **options)


# ------------------------------------------------------------------------------------------------------------- datasets
def test_digits_are_the_embedded_images():
    train, info = DATASETS.get("digits")(root="nowhere", split="train")
    test, _ = DATASETS.get("digits")(root="nowhere", split="test")
    assert (len(train), len(test), len(info.classes)) == (1437, 360, 10)
    assert Counter(test.labels).most_common()[-1][1] >= 34
    image, label = train[0]
    assert (image.size, image.mode, label) == ((8, 8), "RGB", train.labels[0])
    pixels = train.images / 255
    assert pixels.mean() == pytest.approx(info.normalization.mean[0], abs=2e-3)
    assert pixels.std() == pytest.approx(info.normalization.std[0], abs=2e-3)
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) <= 1


def write_cifar(kind, root, monkeypatch):
    """Write the pickles of a tiny CIFAR as the original archives hold them, and make their MD5 the expected ones."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    label_key, names_key = ("fine_labels", "fine_label_names") if kind is CIFAR100 else ("labels", "label_names")
    classes = 100 if kind is CIFAR100 else 10
    rng = np.random.default_rng(0)
    for attribute in ("train_list", "test_list"):
        entries = []
        for name, _ in getattr(kind, attribute):
            data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            content = {"data": data, label_key: [1, 0, classes - 1, 3], "filenames": ["x.png"] * 4}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
            entries.append([name, calculate_md5(folder / name)])
        monkeypatch.setattr(kind, attribute, entries)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({names_key: [f"class{k}" for k in range(classes)]}, protocol=2))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": calculate_md5(meta)})
    return folder


@pytest.mark.parametrize(("name", "kind", "train_images"), [("cifar10", CIFAR10, 20), ("cifar100", CIFAR100, 4)])
def test_cifar_pickles(name, kind, train_images, tmp_path, monkeypatch):
    folder = write_cifar(kind, tmp_path, monkeypatch)
    train, info = DATASETS.get(name)(root=str(tmp_path), split="train")
    test, _ = DATASETS.get(name)(root=str(tmp_path), split="test")
    assert (len(train), len(test), len(info.classes)) == (train_images, 4, int(name.removeprefix("cifar")))
    image, label = test[0]
    stored = pickle.loads((folder / ("test" if kind is CIFAR100 else "test_batch")).read_bytes())
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), stored["data"][0])
    assert label == 1
    assert info.normalization == NORMALIZATIONS[name]


@pytest.mark.fault(31)
@pytest.mark.parametrize("before", ["", "data", "data/mine"])
def test_a_download_that_breaks_off_leaves_what_was_there(before, tmp_path, monkeypatch):
    """Folders that it made for the archive are gone, too, so that none looks like data."""
    (tmp_path / before).mkdir(parents=True, exist_ok=True)
    there = [*tmp_path.rglob("*")]

    class Half(io.BytesIO):
        url, length = None, 10_000

        def read(self, size=-1):
            return super().read(size) or self.fail()

        def fail(self):
            raise ConnectionResetError("connection reset")

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: Half(bytes(5000)))
    with pytest.raises(ValueError, match="could not be downloaded \\(connection reset\\); put cifar-10-python.tar.gz"):
        DATASETS.get("cifar10")(root=str(tmp_path / "data" / "mine"), split="train")
    assert [*tmp_path.rglob("*")] == there


@pytest.mark.fault(31)
def test_cifar_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(
        ValueError, match="cifar-100-python.tar.gz could not be downloaded \\(no network\\); put"
    ) as error:
        DATASETS.get("cifar100")(root=str(tmp_path), split="train")
    assert str(tmp_path) in str(error.value)
    assert CIFAR100.tgz_md5 in str(error.value)


def get_folder(root, split="train"):
    return DATASETS.get("image_folder")(root=str(root), split=split)


def on_folder(root, **options):
    """Options of a run on the folders in root."""
    return {"DATA__NAME": "image_folder", "DATA__ROOT": root, "MODEL__NUM_CLASSES": 0} | options


def write_folders(root, split, classes, images=2):
    for position, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for number in range(images):
            picture(10 * position + number).save(root / split / name / f"{number}.JPEG")


@pytest.mark.parametrize("test_split", ["val", "test"])
def test_image_folder(test_split, tmp_path):
    write_folders(tmp_path, "train", ["n02", "n01", "n10"], images=3)
    write_folders(tmp_path, test_split, ["n02", "n01", "n10"])
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "n01" / "._0.JPEG").write_bytes(b"what a file manager leaves")
    train, info = get_folder(tmp_path)
    test, _ = get_folder(tmp_path, "test")
    assert (len(train), len(test), info.classes) == (9, 6, ("n01", "n02", "n10"))
    assert [label for _, label in test] == [0, 0, 1, 1, 2, 2]
    assert train[0][0].size == (32, 32)


@pytest.mark.fault(23)
def test_image_folders_that_are_wrong(tmp_path, load):
    with pytest.raises(ValueError, match="DATA.ROOT .* has no folder train; there is none in it$"):
        get_folder(tmp_path)
    write_folders(tmp_path, "train", ["cat", "dog"])
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        get_folder(tmp_path)
    (tmp_path / "train" / "empty").rmdir()
    write_folders(tmp_path, "val", ["cat", "mouse"])
    cfg = load("debug/base_debug", **on_folder(tmp_path))
    with pytest.raises(
        ValueError, match=r"differ in 2 classes: dog \(training split only\), mouse \(test split only\)"
    ):
        build_data(cfg)


def test_folders_are_read_in_the_order_of_torchvision(tmp_path):
    """Nested, with names that sort one way as paths and the other as parts, and hidden ones beside them."""
    names = ["b", "a/z", "a/1", "a-b/3", "a-b/1", "a/b/2", "a/b-c/2", "a/b.d/2", "a/B/9", "A/10", "A/9", "ä/1", "a b/1"]
    for name in names:
        path = tmp_path / "train" / ("cat/" + name + ".PNG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write_folders(tmp_path, "train", ["dog", "Dog", "ant"])
    dataset, info = get_folder(tmp_path)
    expected = ImageFolder(str(tmp_path / "train"))
    assert (dataset.samples, list(info.classes)) == (expected.samples, expected.classes)
    assert len(dataset) == len(names) + 6
    for hidden in ("cat/.cache/1.png", "cat/a/.x/1.png", "cat/a/.1.png", ".trash/1.png"):
        (tmp_path / "train" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / hidden).touch()
    dataset, info = get_folder(tmp_path)
    assert (dataset.samples, info.left_out) == (expected.samples, "")


def test_plain_files_cost_no_look_of_their_own(tmp_path, monkeypatch):
    write_folders(tmp_path, "train", ["cat", "dog"], images=20)
    looks = []
    for name in ("stat", "lstat", "readlink"):
        own = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *a, own=own, **k: looks.append(str(path)) or own(path, *a, **k))
    get_folder(tmp_path)
    assert [path for path in looks if path.endswith(".JPEG")] == []


def test_links_that_take_nothing_from_other_classes_are_followed(tmp_path):
    """Folders of classes, images that lie elsewhere, or in another split, or twice in a class."""
    write_folders(tmp_path / "kept", "all", ["cats", "dogs"])
    write_folders(tmp_path, "train", ["ant"])
    (tmp_path / "train" / "cat").symlink_to("../kept/all/cats")
    (tmp_path / "train" / "ant" / "linked.png").symlink_to(tmp_path / "kept" / "all" / "dogs" / "0.JPEG")
    (tmp_path / "train" / "ant" / "twice.jpg").symlink_to("0.JPEG")
    dataset, info = get_folder(tmp_path)
    assert (dataset.samples, list(info.classes)) == (ImageFolder(str(tmp_path / "train")).samples, ["ant", "cat"])
    assert Counter(label for _, label in dataset.samples) == {0: 4, 1: 2}
    (tmp_path / "train" / "ant" / "gone.png").symlink_to("gone")
    dataset, _ = get_folder(tmp_path)
    with pytest.raises(OSError, match="image .*train/ant/gone.png cannot be read: No such file or directory"):
        dataset[[path.endswith("gone.png") for path, _ in dataset.samples].index(True)]


@pytest.mark.parametrize(
    ("link", "target", "text"),
    [
        ("dog/more", "../cat", "the link {}/dog/more leads to {}/cat, a folder, which is not followed within a class"),
        ("dog/more", "..", "the link {}/dog/more leads to {}, a folder, which is not followed within a class"),
        (
            "dog/in/more",
            "../../.cows",
            "the link {}/dog/in/more leads to {}/.cows, a folder, which is not followed within a class",
        ),
        ("dog/2.png", "../cat/0.JPEG", "the link {}/dog/2.png leads to {}/cat/0.JPEG, an image of another class"),
        ("dog/2.png", "../cat/in/3.png", "the link {}/dog/2.png leads to {}/cat/in/3.png, an image of another class"),
        ("dog/2.png", "../cow/0.JPEG", "the link {}/dog/2.png leads to {}/.cows/0.JPEG, an image of another class"),
        ("puss", "cat", "{}/cat and {}/puss are one folder, by a link"),
        ("bull", ".cows", "{}/bull and {}/cow are one folder, by a link"),
        ("puss", "cat/in", "{}/puss lies within {}/cat, by a link"),
        ("all", ".", "the link {}/all/all leads to {}, a folder, which is not followed within a class"),
        ("gone", "nowhere", "the link {}/gone leads to {}/nowhere, which is not there"),
    ],
)
def test_links_that_give_images_of_one_class_to_another_are_refused(tmp_path, link, target, text):
    write_folders(tmp_path, "train", ["cat", "dog", ".cows"])
    (tmp_path / "train" / "dog" / "in").mkdir()
    (tmp_path / "train" / "cat" / "in").mkdir()
    picture().save(tmp_path / "train" / "cat" / "in" / "3.png")
    (tmp_path / "train" / "cow").symlink_to(".cows")
    assert len(get_folder(tmp_path)[0]) == 7
    (tmp_path / "train" / link).symlink_to(target)
    with pytest.raises(ValueError) as error:
        get_folder(tmp_path)
    assert str(error.value) == text.replace("{}", f"{tmp_path}/train")


def test_files_that_are_not_read_are_told_once(tmp_path, load, caplog):
    """In a line for each split, by their endings; a class of nothing else has no images."""
    for split in ("train", "val"):
        write_folders(tmp_path, split, ["cat", "dog"])
    for name in [*(f"cat/{number}.GIF" for number in range(7)), "dog/a.heic", "dog/in/b.heic", "dog/notes", "dog/.x"]:
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    for name in ("loose.png", "labels.csv"):
        (tmp_path / "val" / name).touch()
    lines = [
        "image_folder: train has 10 files that are not read, by their ending: .gif 7, .heic 2, none 1",
        "image_folder: val has 1 image that lies in no class folder",
    ]
    assert [get_folder(tmp_path, split)[1].left_out for split in ("train", "test")] == lines
    build_data(load("debug/base_debug", **on_folder(tmp_path, TRAIN__BATCH_SIZE=2)))
    assert sorted(record.message for record in caplog.records if record.levelname == "WARNING") == lines
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "train" / "eel" / "1.bmp.gz").touch()
    (tmp_path / "train" / "eel" / "2.\x1b[31m").touch()
    with pytest.raises(
        ValueError, match=r"train: no image of eel \(2 files .* by their ending: .gz 1, .\\x1b\[31m 1\)"
    ):
        get_folder(tmp_path)


def test_many_endings_and_names_are_cut_short(tmp_path):
    write_folders(tmp_path, "train", ["cat", "dog"])
    for number in range(9):
        (tmp_path / "train" / "cat" / f"x.{number}{'y' * 200}").touch()
    line = get_folder(tmp_path)[1].left_out
    assert line.startswith("image_folder: train has 9 files that are not read") and line.endswith(", others 4")
    assert len(line) < 500
    for number in range(9):
        (tmp_path / "train" / f"no{number}").mkdir()
    with pytest.raises(ValueError, match="no image of no0, no1, no2, no3, no4 and 4 more$"):
        get_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    """torchvision passes over it."""
    with tempfile.TemporaryDirectory() as root:  # which others may enter
        os.chmod(root, 0o755)
        write_folders(Path(root), "train", ["cat", "dog"])
        (Path(root) / "train" / "cat" / "in").mkdir(mode=0o000)
        before = os.geteuid()
        try:
            if before == 0:
                os.seteuid(65534)  # the administrator may enter anything
            with pytest.raises(PermissionError, match="train/cat/in"):
                get_folder(root)
        finally:
            os.seteuid(before)


def test_one_class_is_nothing_to_tell_apart(tmp_path):
    """Such as the folder above that of the classes."""
    write_folders(tmp_path, "train/imagenet", ["cat", "dog"])
    with pytest.raises(ValueError, match="train has only one class folder, imagenet: there is nothing to tell apart"):
        get_folder(tmp_path)


def test_which_folders_are_read_is_said(tmp_path, load, caplog):
    write_folders(tmp_path, "train", ["cat", "dog"])
    write_folders(tmp_path, "valid", ["cat", "dog"])
    with pytest.raises(ValueError, match="DATA.ROOT .* has no folder val or test; it has train, valid$"):
        get_folder(tmp_path, "test")
    write_folders(tmp_path, "test", ["cat", "dog"])
    cfg = load("debug/base_debug", **on_folder(tmp_path, TRAIN__BATCH_SIZE=4, DATA__NUM_WORKERS=0))
    build_data(cfg)
    images = len(get_folder(tmp_path, "test")[0])
    assert f"image_folder: {tmp_path}/train is trained on: " in caplog.text
    assert f"image_folder: {tmp_path}/test is tested on: {images} images\n" in caplog.text
    (tmp_path / "valid").rename(tmp_path / "val")
    caplog.clear()
    build_data(cfg)
    assert f"{tmp_path}/val is tested on: {images} images; test is there, too, and not read" in caplog.text


@pytest.mark.parametrize("content", ["link", "file"])
def test_val_that_is_no_folder_is_not_passed_over(tmp_path, content):
    write_folders(tmp_path, "test", ["cat", "dog"])
    (tmp_path / "val").symlink_to("gone") if content == "link" else (tmp_path / "val").touch()
    with pytest.raises(ValueError, match=f"image_folder: DATA.ROOT {tmp_path}: val is no folder"):
        get_folder(tmp_path, "test")


@pytest.mark.fault(36)
def test_names_of_classes_are_shown_without_what_steers_a_terminal(tmp_path, load):
    write_folders(tmp_path, "train", ["cat", "do\x1b[2Jg"])
    write_folders(tmp_path, "val", ["cat", "two\nlines", os.fsdecode(b"\xff")])
    cfg = load("debug/base_debug", **on_folder(tmp_path))
    with pytest.raises(ValueError) as error:
        build_data(cfg)
    odd = r"do\x1b[2Jg (training split only), two\nlines (test split only), \udcff (test split only)"
    assert str(error.value) == f"DATA.ROOT {tmp_path}: the splits differ in 3 classes: {odd}"
    path = tmp_path / "train" / "cat" / "a\x1b[2J\nb.png"
    path.touch()
    dataset, _ = get_folder(tmp_path)
    with pytest.raises(OSError, match=r"train/cat/a\\x1b\[2J\\nb.png cannot be read: cannot identify") as error:
        dataset[[name for name, _ in dataset.samples].index(str(path))]
    assert str(error.value).isprintable()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, load, workers, content):
    write_folders(tmp_path, "train", ["cat", "dog"])
    write_folders(tmp_path, "val", ["cat", "dog"])
    path = tmp_path / "val" / "dog" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:600] if content == "half" else content)
    words = on_folder(tmp_path, TRAIN__BATCH_SIZE=2)
    data = build_data(load("debug/base_debug", **words, DATA__NUM_WORKERS=workers, DATA__LOADER="workers"))
    with pytest.raises(OSError, match="dog/1.JPEG cannot be read"):
        list(data.test)
    with pytest.raises(OSError, match="dog/1.JPEG cannot be read"):  # in memory all are read at once
        build_data(load("debug/base_debug", **words, DATA__LOADER="memory"))


@pytest.fixture
def tiny(tmp_path):
    """Folder of 3 classes in the layout of Tiny-ImageNet."""
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]
    for wnid in wnids:
        (root / "train" / wnid / "images").mkdir(parents=True)
        for number in range(2):
            picture(number, 64).save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for number, wnid in enumerate(["n02", "n01", "n03"]):
        Image.new("L", (64, 64), 100 * number).save(root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def get_tiny(root, split):
    return DATASETS.get("tiny_imagenet")(root=str(root.parent), split=split)


def test_tiny_imagenet_in_its_original_layout(tiny, tmp_path):
    (tiny / "train" / "n01" / "n01_boxes.txt").touch()
    (tiny / "train" / "n01" / "images" / "._n01_0.JPEG").touch()
    train, info = get_tiny(tiny, "train")
    test, _ = get_tiny(tiny, "test")
    assert info.classes == ("n01", "n02", "n03")
    assert [label for _, label in train] == [0, 0, 1, 1, 2, 2]
    assert [label for _, label in test] == [1, 0, 2]
    assert (test[1][0].mode, to_rgb(test[1][0]).mode) == ("L", "RGB")
    with pytest.raises(ValueError, match="wnids.txt; unpack http"):
        get_tiny(tmp_path / "elsewhere" / "tiny-imagenet-200", "test")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("val/val_annotations.txt", "val_0.JPEG\tn09\t0\n", r"annotations.txt has .*n09.*, expected an image and a"),
        ("val/val_annotations.txt", "../x.JPEG\tn01\t0\n", r"annotations.txt has .*x.JPEG.*, expected an image and a"),
        ("val/val_annotations.txt", "val_0.JPEG\n", r"annotations.txt has .*val_0.*, expected an image and a"),
        ("val/val_annotations.txt", "a.JPEG\tn01\na.JPEG\tn02\n", r"val_annotations.txt has a.JPEG twice"),
        ("val/val_annotations.txt", "", r"val_annotations.txt has no images"),
        ("val/val_annotations.txt", b"\xff\xfe", r"val_annotations.txt is no text"),
        ("val/val_annotations.txt", ..., r"val_annotations.txt"),
        ("wnids.txt", "n01\nn02\nn01\n", r"wnids.txt has n01 twice"),
        ("wnids.txt", "n01\n../n02\n", r"wnids.txt has ../n02, expected the name of a folder"),
        ("wnids.txt", "", r"wnids.txt has 0 classes"),
        ("wnids.txt", b"\xff\xfe", r"wnids.txt is no text"),
        ("wnids.txt", ..., r"wnids.txt; unpack"),
        ("wnids.txt", "n01\nn03\nn05\nn04\n", r"train and .*wnids.txt differ in n02, n04, n05$"),
    ],
)
def test_lists_of_tiny_imagenet_that_are_wrong(tiny, name, content, text):
    """They are read as they are written, and a class of them without images does not vanish."""
    (tiny / name).unlink()
    if content is not ...:
        (tiny / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, OSError), match=text) as error:
        get_tiny(tiny, "train"), get_tiny(tiny, "test")
    assert str(tiny) in str(error.value)


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_lists_of_tiny_imagenet_that_are_no_files(tiny, name, make, tmp_path):
    (tiny / name).unlink()
    make(tiny / name)
    found = []

    def read():
        with pytest.raises(OSError, match=f"(no regular file|Is a directory): '{tiny}/{name}'"):
            get_tiny(tiny, "test")
        found.append(True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert found


def test_images_of_tiny_imagenet_that_are_not_used_or_not_there(tiny):
    """Told, counted; a missing one when it is read."""
    original = "{} images of 3 classes, the original has {} of 200"
    for split, images, all_images in (("train", 6, 100_000), ("test", 3, 10_000)):
        name = "val" if split == "test" else "train"
        line = f"tiny_imagenet: {name} has {original.format(images, all_images)}"
        assert get_tiny(tiny, split)[1].left_out == line
    for name in ("train/n01/n01_boxes.txt", "train/n01/images/a.gif"):
        (tiny / name).touch()
    for name in ("val/images/val_7.JPEG", "val/images/val_8.JPEG"):
        picture().save(tiny / name)
    (tiny / "val" / "images" / "val_1.JPEG").unlink()
    assert get_tiny(tiny, "train")[1].left_out == (
        f"tiny_imagenet: train has 1 file that is not read, by its ending: .gif 1; {original.format(6, 100_000)}"
    )
    test, info = get_tiny(tiny, "test")
    assert info.left_out == (
        "tiny_imagenet: val has 2 files that val_annotations.txt does not name; " + original.format(3, 10_000)
    )
    with pytest.raises(OSError, match="image .*val/images/val_1.JPEG cannot be read: No such file or directory"):
        test[1]


def test_links_of_tiny_imagenet_to_other_classes_are_refused(tiny):
    (tiny / "train" / "n01" / "images" / "x.JPEG").symlink_to("../../n02/images/n02_0.JPEG")
    with pytest.raises(ValueError, match="n01/images/x.JPEG leads to .*n02/images/n02_0.JPEG, an image of another"):
        get_tiny(tiny, "train")
    (tiny / "train" / "n01").rename(tiny / "n01")
    (tiny / "train" / "n01").symlink_to("n02")
    with pytest.raises(ValueError, match="train/n01 and .*train/n02 are one folder, by a link"):
        get_tiny(tiny, "train")


def test_number_of_classes_is_checked(load):
    with pytest.raises(ValueError, match="MODEL.NUM_CLASSES is 12, digits has 10 classes"):
        build_data(load("debug/base_debug", MODEL__NUM_CLASSES=12))
    with pytest.raises(ValueError, match="DATA.NORMALIZATION is 'mnist', expected one of imagenet"):
        build_data(load("debug/base_debug", DATA__NORMALIZATION="mnist"))


# ------------------------------------------------------------------------------------------------------ kinds of images
RAMP = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)


def tiff(path, pixels, *, photometric=1, kind=1, bits=None, order="<"):
    """Write a TIFF by hand. pixels: (H, W) or (H, W, C). kind: 1 whole numbers, 2 signed ones, 3 floats."""
    height, width, channels = (*pixels.shape, 1)[:3]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = bits or 8 * pixels.dtype.itemsize
    if bits == 12:
        pairs = pixels.reshape(-1, 2).astype(int)
        packed = (pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255)
        data = np.stack(packed, axis=1).astype(np.uint8).tobytes()
    depths = struct.pack(f"{order}{channels}H", *[bits] * channels)
    start = 8 + 2 + 12 * 10 + 4
    values = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: start + len(depths), 277: channels}
    values |= {278: height, 279: len(data), 339: kind}
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values))
    for tag, value in values.items():
        if tag == 258 and channels > 2:
            content += struct.pack(f"{order}HHII", tag, 3, channels, start)
        else:
            content += struct.pack(
                f"{order}HHI" + ("HH" if value < 2**16 else "I"), tag, 3, 1, value, *[0][: value < 2**16]
            )
    path.write_bytes(content + bytes(4) + depths + data)
    return path


def pgm(path, pixels, highest):
    """Write a PGM of values from 0 to `highest`."""
    head = f"P5 {pixels.shape[1]} {pixels.shape[0]} {highest}\n"
    path.write_bytes(head.encode() + pixels.astype(">u2" if highest > 255 else "u1").tobytes())
    return path


def png16(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("write", "highest"),
    [
        (png16, 65535),
        (tiff, 65535),
        (partial(tiff, order=">"), 65535),
        (partial(tiff, bits=12), 4095),
        (partial(pgm, highest=65535), 65535),
        (partial(pgm, highest=255), 255),
    ],
    ids=["png", "tiff", "tiff of the other order", "tiff of 12 bits", "pgm", "pgm of 8 bits"],
)
def test_grey_of_more_bits_is_scaled_from_its_range(tmp_path, write, highest):
    """In 8 bits each value is the nearest, so a ramp from black to white stays one; by every way to read it."""
    ramp = RAMP if highest == 65535 else (RAMP >> (4 if highest == 4095 else 8))
    path = write(tmp_path / "ramp.png", ramp)
    expected = np.rint(ramp / (highest / 255)).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert expected[0, 0, 0] == 0 and expected[-1, -1, 0] == 255
    assert np.array_equal(np.asarray(to_rgb(open_image(path))), expected)
    crop = DecodedRandomResizedCrop(64, (1.0, 1.0))
    crop.get_params = lambda *_: (0, 0, 64, 64)
    assert np.array_equal(np.asarray(crop(open_image(path))), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_keep_their_high_ones(tmp_path, order, channels):
    """Pillow takes the higher byte, so no value is off by more than 1."""
    pixels = RAMP[..., None].repeat(channels, axis=2)
    image = np.asarray(to_rgb(open_image(tiff(tmp_path / "a.tif", pixels, photometric=2, order=order))))
    assert np.array_equal(image, (pixels[..., :3] >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path, "TIFF"), "its pixels are 32-bit numbers"),
        (lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path, "TIFF"), "its pixels are floats"),
        (lambda path: tiff(path, RAMP.astype(np.int16), kind=2), "its pixels are 32-bit numbers"),
        (lambda path: tiff(path, RAMP, photometric=0), "its 0 is white"),
        (lambda path: path.write_bytes(png_header(30_000, 30_000)), "900000000 pixels"),
        (lambda path: path.write_bytes(png_header(0, 3)), "cannot identify image file"),
        (lambda path: path.write_bytes(png_header(1, 1001)), "it has 1 x 1001 pixels, a side over 1000 times"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file or directory"),
    ],
    ids=["32 bits", "float", "signed", "white is 0", "bomb", "no pixels", "line", "folder", "absent"],
)
def test_images_that_cannot_be_used_are_refused(tmp_path, write, text):
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(OSError, match=f"^image {path} cannot be read: .*{text}") as error:
        to_rgb(open_image(str(path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (90, 1)])
def test_a_side_of_one_pixel_is_enough(tmp_path, size):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.png")
    for transform in (
        transforms.test_transform(16, NORMALIZATIONS["half"], 0.875),
        transforms.train_transform(16, NORMALIZATIONS["half"], Augmentation(crop="resized")),
        transforms.train_transform(16, NORMALIZATIONS["half"], Augmentation()),
    ):
        view = view_of(transform, open_image(tmp_path / "a.png"))
        assert view.shape == (3, 16, 16)
        assert view[:, 8, 8].tolist() == pytest.approx([value / 127.5 - 1 for value in (200, 100, 50)], abs=1e-5)


def png_header(width, height):
    """A PNG of no pixels but of this size, in grey."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 9, "png", (9, 9, 9)),
        ("LA", (9, 128), "png", (9, 9, 9)),
        ("RGBA", (200, 100, 50, 0), "png", (200, 100, 50)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("YCbCr", (128, 128, 128), "tif", (128, 128, 128)),
        ("LAB", (128, 128, 128), "tif", (119, 119, 119)),
    ],
)
def test_every_other_mode_has_its_colours(tmp_path, mode, colour, ending, expected):
    """What is transparent keeps the colour that is written, as with torchvision. Grey of lightness 50 is 119."""
    Image.new(mode, (8, 8), colour).save(tmp_path / f"a.{ending}")
    image = open_image(tmp_path / f"a.{ending}")
    assert image.mode in (mode, "RGB" if mode == "YCbCr" else mode)  # as Pillow 11.0 opens it
    assert to_rgb(image).getpixel((3, 3)) == pytest.approx(expected, abs=1)


def test_a_palette_of_transparent_colours_is_read_without_a_warning(tmp_path, recwarn):
    palette = Image.new("P", (4, 1))
    palette.putdata(range(4))
    colours = np.random.default_rng(0).integers(0, 256, (4, 3), dtype=np.uint8)
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    image = open_image(tmp_path / "a.png")
    assert image.mode == "P" and isinstance(image.info["transparency"], bytes)
    assert np.array_equal(np.asarray(to_rgb(image))[0], colours)
    assert not recwarn.list


# ----------------------------------------------------------------------------------------------------------- transforms
def test_test_transform_is_the_picture_normalised():
    norm = NORMALIZATIONS["imagenet"]
    tensor = test_view(norm)
    expected = torch.from_numpy(np.asarray(picture()) / 255).permute(2, 0, 1) - torch.tensor(norm.mean).view(3, 1, 1)
    torch.testing.assert_close(tensor.double(), expected / torch.tensor(norm.std).view(3, 1, 1), rtol=1e-5, atol=1e-5)


def test_test_transform_of_imagenet_resizes_the_short_side_and_crops_the_centre():
    norm = NORMALIZATIONS["half"]
    wide = picture(size=400).resize((400, 300))
    tensor = view_of(transforms.test_transform(224, norm, 0.875), wide)
    resized = wide.resize((341, 256), Image.BICUBIC)
    left, top = round((341 - 224) / 2), 16
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))) / 127.5 - 1
    torch.testing.assert_close(tensor.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-5)
    squashed = view_of(transforms.test_transform(224, norm, 0.875, fit="squash"), wide)
    expected = np.asarray(wide.resize((256, 256), Image.BICUBIC).crop((16, 16, 240, 240))) / 127.5 - 1
    torch.testing.assert_close(squashed.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-5)
    steps = transforms.test_pixels(224, 0.9).transforms
    assert steps[1].size == 248  # timm's, which rounds down


@pytest.mark.parametrize("size", [24, 224])
def test_a_bilinear_test_transform_is_torchvisions_default(size):
    """Of PIL images, which torchvision resizes with antialiasing; not of the same pixels as the bicubic one."""
    norm = NORMALIZATIONS["imagenet"]
    theirs = Compose([Resize((size, size)), ToTensor(), Normalize(*norm)])(picture())
    assert torch.equal(view_of(transforms.test_transform(size, norm, interpolation="bilinear"), picture()), theirs)
    assert (view_of(transforms.test_transform(size, norm), picture()) - theirs).abs().max() > 0.1


@pytest.mark.parametrize("loader", ["memory", "workers"])
@pytest.mark.parametrize("crop", ["pad", "none"])
@pytest.mark.parametrize(("train", "test"), [("bicubic", "bilinear"), ("bilinear", "bicubic")])
def test_training_and_test_images_are_resized_as_asked(load, loader, crop, train, test):
    """Digits of 8 px at 20 px, each split in its own way, in memory and by workers."""
    words = {"AUG__CROP": crop, "AUG__CROP_PADDING": 0, "AUG__FLIP": 0, "AUG__RAND_AUGMENT": "", "AUG__ERASING": 0}
    words |= {"AUG__INTERPOLATION": train, "DATA__INTERPOLATION": test, "DATA__IMAGE_SIZE": 20}
    cfg = load("debug/base_debug", **words, DATA__NORMALIZATION="half", DATA__LOADER=loader, DATA__NUM_WORKERS=0)
    data = build_data(cfg)
    for split, batches, interpolation in (("train", data.train, train), ("test", data.test, test)):
        dataset, _ = DATASETS.get("digits")(root="", split=split)
        loaded = next(iter(batches))
        for view, index in zip(loaded.images[:8], loaded.index.tolist(), strict=False):
            image = to_rgb(dataset[index][0]).resize((20, 20), Image.Resampling[interpolation.upper()])
            expected = torch.from_numpy(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)
            torch.testing.assert_close(view.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 30), (30, 40)])
def test_what_is_not_square_is_cropped_unless_it_shall_be_squashed(size):
    norm, image = NORMALIZATIONS["half"], picture(size=64).resize(size)
    wide = image.resize(tuple(int(20 * side / 30) for side in size), Image.BICUBIC)
    left, top = (round((side - 20) / 2) for side in wide.size)
    expected = {"crop": wide.crop((left, top, left + 20, top + 20)), "squash": image.resize((20, 20), Image.BICUBIC)}
    for fit, pixels in expected.items():
        known = torch.from_numpy(np.asarray(pixels) / 127.5 - 1).permute(2, 0, 1)
        views = [
            transforms.test_transform(20, norm, fit=fit),
            transforms.train_transform(20, norm, Augmentation(crop="none", flip=0.0), fit),
            transforms.train_transform(20, norm, Augmentation(crop="pad", crop_padding=0, flip=0.0), fit),
        ]
        for view in views:
            torch.testing.assert_close(view_of(view, image).double(), known, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [16, 32, 224])
def test_of_a_square_image_both_ways_are_the_same_bits(size, interpolation):
    """So no recipe on square images depends on DATA.FIT."""
    norm = NORMALIZATIONS["cifar100"]
    views = [view_of(transforms.test_transform(size, norm, 1.0, interpolation, fit), picture()) for fit in FITS]
    assert torch.equal(*views)
    for crop in ("pad", "none", "resized"):
        steps = [
            transforms.train_transform(size, norm, Augmentation(crop, interpolation=interpolation), fit) for fit in FITS
        ]
        views = []
        for step in steps:
            torch.manual_seed(0)
            views.append(view_of(step, picture()))
        assert torch.equal(*views)


def test_images_of_several_shapes_are_the_same_in_memory_as_not(tmp_path, load):
    for split in ("train", "val"):
        write_folders(tmp_path, split, ["cat", "dog"])
        for number, path in enumerate(sorted((tmp_path / split).rglob("*.*"))):
            picture(size=40).resize((40 + 10 * number, 60 - 5 * number)).save(path)
    words = {"AUG__CROP": "none", "AUG__FLIP": 0, "AUG__RAND_AUGMENT": "", "AUG__ERASING": 0, "DATA__NUM_WORKERS": 0}
    words |= on_folder(tmp_path, TRAIN__BATCH_SIZE=4)
    for split in ("train", "test"):
        batches = []
        for loader in ("memory", "workers"):
            cfg = load("debug/base_debug", **words, DATA__LOADER=loader)
            loaded = next(iter(getattr(build_data(cfg), split)))
            batches.append(loaded.images[loaded.index.argsort()])
        torch.testing.assert_close(*batches, rtol=0, atol=1e-5)


def test_images_in_memory_are_cropped_or_not_there():
    """Batches of images at their own size are squashed, so those that shall be cropped are no such batches."""
    norm = NORMALIZATIONS["half"]
    for crop, fit, taken in (("pad", "crop", False), ("pad", "squash", True), ("resized", "crop", True)):
        pipeline = ImagePipeline(20, norm, Augmentation(crop), 1.0, seed=0, fit=fit)
        assert (pipeline.takes(40, 30), pipeline.takes(30, 30)) == (taken, True)


def test_everything_off_is_the_test_transform():
    norm = NORMALIZATIONS["half"]
    plain = transforms.train_transform(32, norm, Augmentation(crop="none", flip=0.0))
    assert torch.equal(view_of(plain, picture()), test_view(norm))


def test_padded_crop_shifts_by_at_most_the_padding():
    norm = NORMALIZATIONS["half"]
    crop = transforms.train_transform(32, norm, Augmentation(flip=0.0))
    base = test_view(norm)
    padded = torch.nn.functional.pad(base, (4, 4, 4, 4), value=-1.0)
    windows = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    torch.manual_seed(0)
    found = set()
    for _ in range(60):
        view = view_of(crop, picture())
        found.add(next(at for at, window in windows.items() if torch.equal(window, view)))
    assert len(found) > 30


def test_large_images_are_cropped_at_random_and_resized():
    crop = transforms.train_transform(64, NORMALIZATIONS["half"], Augmentation(crop="resized"))
    views = [view_of(crop, picture(size=100)) for _ in range(3)]
    assert all(view.shape == (3, 64, 64) for view in views)
    assert not torch.equal(views[0], views[1])


def jpeg(path, width, height):
    """Path of a JPEG with smooth colours."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin((x * a + y * b) / 60) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.7))]
    Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).save(path, quality=95)
    return path


@pytest.mark.parametrize(
    ("width", "height", "scale", "part"), [(60, 50, 0.5, 1), (900, 700, 0.9, 8), (300, 260, 0.9, 4)]
)
def test_a_jpeg_is_decoded_at_the_size_that_its_crop_needs(tmp_path, monkeypatch, width, height, scale, part):
    """The same rectangles as torchvision's; of a small image the same pixels, of a large one nearly so, from less."""
    path = jpeg(tmp_path / "a.jpg", width, height)
    ours = DecodedRandomResizedCrop(32, (scale, 1.0))
    theirs = RandomResizedCrop(32, (scale, 1.0), interpolation=transforms.INTERPOLATIONS["bicubic"])
    decoded = []
    monkeypatch.setattr("pycls_std.datasets.decoding.to_rgb", lambda image: decoded.append(image.size) or to_rgb(image))
    for seed in range(5):
        torch.manual_seed(seed)
        crop = np.asarray(ours(open_image(path)), dtype=float)
        torch.manual_seed(seed)
        expected = np.asarray(theirs(Image.open(path)), dtype=float)
        assert np.abs(crop - expected).mean() < (
            0.01 if part == 1 else 3
        )  # of a deviation of 70; colours of a JPEG have half the pixels
    assert set(decoded) == {(-(-width // part), -(-height // part))}


@pytest.mark.parametrize("mode", transforms.INTERPOLATIONS.values())
def test_a_crop_of_what_is_no_jpeg_is_torchvisions(tmp_path, mode):
    picture(size=200).save(tmp_path / "a.png")
    for image in (picture(size=200), open_image(tmp_path / "a.png"), picture(size=200).convert("L")):
        torch.manual_seed(0)
        crop = DecodedRandomResizedCrop(32, (0.5, 1.0), mode)(image)
        torch.manual_seed(0)
        expected = RandomResizedCrop(32, (0.5, 1.0), interpolation=mode)(to_rgb(image))
        assert np.array_equal(np.asarray(crop), np.asarray(expected))


def test_three_augment_comes_after_the_crop_and_before_colour_jitter():
    """The recipe of VkD: crop, flip, one of three, jitter; and nothing that is not asked for."""
    norm = NORMALIZATIONS["imagenet"]
    own = Augmentation(crop="resized", three_augment=True, color_jitter=0.3)
    kinds = [type(step).__name__ for step in transforms.train_transform(224, norm, own).transforms]
    assert kinds == ["DecodedRandomResizedCrop", "Flip", "ThreeAugment", "ColorJitter", "ToTensor", "Normalize"]
    plain = [type(step).__name__ for step in transforms.train_transform(224, norm, Augmentation()).transforms]
    assert "ThreeAugment" not in plain and "ColorJitter" not in plain


def test_erasing_fills_a_rectangle_with_noise():
    norm = NORMALIZATIONS["half"]
    random.seed(0)
    erase = transforms.train_transform(32, norm, Augmentation(crop="none", flip=0.0, erasing=1.0))
    changed = (view_of(erase, picture()) != test_view(norm)).all(dim=0)
    rows, columns = changed.any(dim=1).sum(), changed.any(dim=0).sum()
    assert 0.015 <= float(changed.float().mean()) <= 0.4
    assert changed.sum() == rows * columns


def test_randaugment_is_timms_but_for_a_posterize_of_no_bits(monkeypatch):
    """Same draws, same pictures; timm's own raises when posterize keeps 0 bits, on Pillow 13 and here on any."""
    posterize = ImageOps.posterize

    def posterize_of_pillow_13(image, bits):
        if bits < 1:
            raise ValueError("bits must be between 1 and 8")
        return posterize(image, bits)

    monkeypatch.setattr(ImageOps, "posterize", posterize_of_pillow_13)
    options = {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": 3}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(options))
    ours = transforms.rand_augment("rand-m9-mstd0.5-inc1", 32, NORMALIZATIONS["imagenet"])
    for seed in range(200):
        views = []
        for augment in (theirs, ours):
            random.seed(seed)
            np.random.seed(seed)
            try:
                views.append(np.asarray(augment(picture(seed))))
            except ValueError:
                views.append(None)
        assert views[1] is not None
        assert views[0] is None or np.array_equal(*views)
    posterize = next(op for op in ours.ops if op.name.startswith("Posterize"))
    assert posterize.level_fn(10, {}) == (1,)
    assert posterize.level_fn(0, {}) == (4,)


# --------------------------------------------------------------------------------------------------------------- mixing
def test_without_mixing_targets_are_smoothed_labels():
    loaded = Loaded(torch.randn(3, 3, 4, 4), torch.tensor([0, 4, 2]), torch.arange(3))
    batch = Mixing(5, smoothing=0.1)(loaded, START)
    assert batch.images is batch.loaded.images and batch.loaded is loaded
    torch.testing.assert_close(batch.targets[1], torch.tensor([0.02, 0.02, 0.02, 0.02, 0.92]))
    hard = Mixing(5)(loaded, START).targets
    assert torch.equal(hard, torch.nn.functional.one_hot(torch.tensor([0, 4, 2]), 5).float())


@pytest.mark.defect(14)
@pytest.mark.defect(22)
@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_targets_follow_the_mixed_pixels(options):
    """White images of class 0 on black ones of class 1: the mean brightness is the share of class 0."""
    mixing = Mixing(2, **options)
    images = torch.cat([torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)])
    for iteration in range(20):
        loaded = Loaded(images, torch.tensor([0, 0, 1, 1]), torch.arange(4))
        batch = mixing(loaded, Progress(0, iteration, 20, 1))
        torch.testing.assert_close(batch.images.mean(dim=(1, 2, 3)), batch.targets[:, 0], rtol=0, atol=1e-5)
        assert torch.equal(batch.loaded.images, images)


def test_mixing_depends_on_seed_epoch_and_iteration_only():
    loaded = Loaded(torch.rand(4, 3, 16, 16), torch.arange(4), torch.arange(4))

    def mixed(seed, epoch, iteration):
        np.random.seed(seed + 7 * epoch), np.random.rand()  # what others drew
        return Mixing(4, seed=seed, mixup=0.8, cutmix=1.0)(loaded, Progress(epoch, iteration, 9, 9))

    first = mixed(0, 1, 2)
    np.random.seed(3)
    Mixing(4, mixup=0.8)(loaded, START)
    assert np.random.rand() == np.random.RandomState(3).rand()  # others draw as if nothing had been mixed
    for value, again in zip(first[:2], mixed(0, 1, 2)[:2], strict=True):
        assert torch.equal(value, again)
    for other in (mixed(1, 1, 2), mixed(0, 2, 2), mixed(0, 1, 3)):
        assert not torch.equal(first.targets, other.targets)


def test_a_batch_is_mixed_as_often_as_asked():
    images = torch.rand(2, 3, 8, 8)
    loaded = Loaded(images, torch.tensor([0, 1]), torch.arange(2))
    mixing = Mixing(2, mixup=0.8, probability=0.25)
    steps = [Progress(3, iteration, 400, 9) for iteration in range(400)]
    mixed = sum(not torch.equal(mixing(loaded, step).images, images) for step in steps)
    assert 70 <= mixed <= 130


# --------------------------------------------------------------------------------------------------------------- loader
class Pictures(torch.utils.data.Dataset):
    """Images that differ by their index."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return picture(index), index


@pytest.mark.defect(15)
@pytest.mark.parametrize("repeats", [1, 3])
def test_views_depend_on_seed_epoch_and_index_only(repeats):
    """0 or 2 workers, another batch size, a fresh loader at epoch 1: the same image at the same place."""
    transform = transforms.train_transform(32, NORMALIZATIONS["imagenet"], FULL)

    def epoch(number, workers, batch_size, seed=5):
        views = views_of(Pictures(), transform, seed)
        loader = train_loader(views, batch_size=batch_size, workers=workers, seed=seed, repeats=repeats)
        loader.sampler.epoch = number
        batches = list(loader)
        assert all(torch.equal(loaded.index, loaded.targets) for loaded in batches), "labels are positions here"
        return torch.cat([loaded.images for loaded in batches]), torch.cat([loaded.targets for loaded in batches])

    images, labels = epoch(1, 0, 8)
    for other in (epoch(1, 2, 8), epoch(1, 0, 12)):
        assert torch.equal(images, other[0])
        assert torch.equal(labels, other[1])
    for other in (epoch(0, 0, 8), epoch(1, 0, 8, seed=6)):
        assert not torch.equal(labels, other[1])
    if repeats > 1:
        first = images[labels == labels[0]]
        assert len(first) == 3
        assert not torch.equal(first[0], first[1])


def test_a_pass_leaves_the_global_generators_alone():
    views = views_of(Pictures(), transforms.train_transform(32, NORMALIZATIONS["imagenet"], FULL))
    for workers in (0, 1):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        list(train_loader(views, batch_size=8, workers=workers, seed=0))
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())


def test_every_image_once_an_epoch_or_a_third_of_them_thrice():
    def sampler(**options):
        return EpochSampler(12, seed=0, batch_size=4, positions=list(range(4)), **options)

    plain, thrice = sampler(), sampler(repeats=3)
    assert sorted(index for _, index in plain) == list(range(12))
    assert [index for _, index in plain] == [index for _, index in sampler()]
    counts = Counter(index for _, index in thrice)
    assert list(counts.values()) == [3] * 4
    assert len(set(thrice)) == 12


# ---------------------------------------------------------------------------------------------------------------- crops
def reconstructed(picture, crop, size):
    """A view of a picture (3, H, W) without its padding, by its recorded crop alone, in closed form."""
    top, left, height, width, mirrored = (float(value) for value in crop)
    rows, columns = picture.shape[1:]
    y = torch.round(torch.tensor([top, top + height]) * rows).int().tolist()
    x = torch.round(torch.tensor([left, left + width]) * columns).int().tolist()
    padded = torch.nn.functional.pad(picture, (columns,) * 4)
    cut = padded[:, rows + y[0] : rows + y[1], columns + x[0] : columns + x[1]]
    cut = torch.nn.functional.interpolate(cut[None], (size, size), mode="bicubic", antialias=True)[0]
    return cut.flip(2) if mirrored else cut


@pytest.mark.parametrize("loader", ["memory", "workers"])
@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_the_recorded_crop_is_what_a_view_shows(load, tmp_path, loader, crop):
    """Smooth pictures, so that a view that is made again from the whole image and its crop is nearly the same."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                jpeg(tmp_path / split / name / f"{number}.jpg", 40 + 2 * number if crop == "none" else 40, 40)
    words = on_folder(tmp_path, TRAIN__BATCH_SIZE=8)
    words |= {"DATA__IMAGE_SIZE": 20 if crop == "resized" else 40, "DATA__NORMALIZATION": "half", "AUG__REPEATS": 1}
    words |= {"AUG__CROP": crop, "AUG__CROP_PADDING": 9, "AUG__FLIP": 0.5, "AUG__CROP_SCALE": 0.3}
    cfg = load("debug/base_debug", **words, AUG__RAND_AUGMENT="", AUG__ERASING=0, DATA__LOADER=loader)
    size = cfg.DATA.IMAGE_SIZE
    dataset, _ = get_folder(tmp_path)
    mirrored, seen = 0, build_data(cfg, crops=True).train
    for epoch in range(4):
        seen.sampler.epoch = epoch
        for loaded in seen:
            for view, index, own in zip(loaded.images, loaded.index, loaded.crop, strict=True):
                whole = np.array(to_rgb(dataset[int(index)][0]).resize((40, 40), Image.BICUBIC), dtype=np.float32)
                expected = reconstructed(torch.from_numpy(whole).permute(2, 0, 1), own, size)
                apart = (view * 0.5 + 0.5) * 255 - expected
                assert float(apart.abs().mean()) < 2
                mirrored += int(own[4])
            if crop == "none":
                assert (loaded.crop[:, :4] == torch.tensor([0.0, 0, 1, 1])).all()
            else:
                assert len(loaded.crop[:, :4].unique(dim=0)) > 4
    assert 8 <= mirrored <= 24
    assert next(iter(build_data(cfg).train)).crop is None


# ----------------------------------------------------------------------------------------------------- images per class
def test_some_images_of_each_class(load):
    few = build_data(load("debug/base_debug", DATA__PER_CLASS=20, TRAIN__BATCH_SIZE=64))
    labels = DATASETS.get("digits")(root="", split="train")[0].labels
    assert few.images == 200 and len(few.test.dataset) == 360
    assert Counter(few.train.dataset.targets.tolist()) == dict.fromkeys(range(10), 20)
    first = [index for index, label in enumerate(labels) if labels[:index].count(label) < 20]
    assert few.train.dataset.targets.tolist() == [labels[index] for index in first]
    with pytest.raises(ValueError, match="DATA.PER_CLASS is 500, class . has 1.. training images"):
        build_data(load("debug/base_debug", DATA__PER_CLASS=500))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("name", ["targets", "labels"])
def test_classes_are_known_in_every_form_that_datasets_have_them(kind, name):
    """torchvision's MNIST has a tensor, its SVHN an array; no image is read for them."""

    class Labelled(list):
        def __getitem__(self, index):
            raise AssertionError("an image is read")

    dataset = Labelled(range(20))
    setattr(dataset, name, kind([0] * 12 + [1] * 8))
    _, held = training_parts(dataset, val_fraction=0.25)
    assert [sum(index < 12 for index in held.indices), len(held.indices)] == [3, 5]


def test_a_share_of_each_class_is_held_out_the_same_for_every_run(load):
    words = {"DATA__VAL_FRACTION": 0.25, "TRAIN__BATCH_SIZE": 64}
    labels = np.array(DATASETS.get("digits")(root="", split="train")[0].labels)
    kept, held = training_parts(DATASETS.get("digits")(root="", split="train")[0], val_fraction=0.25)
    assert sorted(kept.indices + held.indices) == list(range(len(labels))) and held.indices == sorted(held.indices)
    for label in range(10):  # each class by itself, and not always the first or the last ones
        own = np.flatnonzero(labels == label)
        chosen = [place for place, index in enumerate(own) if index in held.indices]
        assert len(chosen) == round(0.25 * len(own))
        assert chosen not in (list(range(len(chosen))), list(range(len(own) - len(chosen), len(own))))
    whole = [build_data(load("debug/base_debug", SEED=seed, **words)) for seed in (0, 1)]
    for data in whole:
        assert torch.equal(data.val.dataset.targets, torch.tensor(labels[held.indices]))
        assert torch.equal(data.train.dataset.targets, torch.tensor(labels[kept.indices]))
        assert data.judge is data.val and data.images == len(kept.indices) and len(data.test.dataset) == 360
    few = build_data(load("debug/base_debug", DATA__PER_CLASS=20, **words))  # a run on few images holds out the same
    assert torch.equal(few.val.dataset.pixels, whole[0].val.dataset.pixels)
    first = [i for i in kept.indices if np.isin(np.flatnonzero(labels[:i] == labels[i]), kept.indices).sum() < 20]
    assert few.train.dataset.targets.tolist() == labels[first].tolist() and few.images == 200
    plain = build_data(load("debug/base_debug"))
    assert plain.val is None and plain.judge is plain.test


def test_what_is_held_out_leaves_something_of_each_class(load):
    class Pairs(list):
        samples = property(list)

    two = Pairs([("a", 0), ("b", 0), ("c", 1), ("d", 1)])
    kept, held = training_parts(two, val_fraction=0.1)  # one of each class at least
    assert sorted(two[i][1] for i in held.indices) == sorted(two[i][1] for i in kept.indices) == [0, 1]
    with pytest.raises(ValueError, match=r"VAL_FRACTION is 0.9, which leaves nothing of the 2 images of class 0"):
        training_parts(two, val_fraction=0.9)
    boxes = [("image", {"boxes": 1})] * 50  # targets that are no classes are drawn as one
    kept, held = training_parts(boxes, val_fraction=0.1)
    assert len(held.indices) == 5 and len(kept.indices) == 45


def test_what_tells_files_of_one_name_apart(tmp_path, monkeypatch):
    """Names, labels and sizes do, where the folder lies does not; arrays have no files."""

    def split(place, change=""):
        samples = []
        for index in range(21):
            path = tmp_path / place / f"class{index % 2}" / f"{index + (change == 'name' and index == 7)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(9 + (change == "size" and index == 0) + (change == "unasked" and index == 1)))
            samples.append((str(path), (index + (change == "label" and index == 7)) % 2))
        return LabelledFiles(samples)

    monkeypatch.setattr("pycls_std.datasets.contents.SIZED", 10)
    digits, plain = DATASETS.get("digits")(root="", split="train")[0], split("plain")
    assert contents(digits) == "" and len(contents(plain)) == 64
    assert contents(split("elsewhere")) == contents(plain)
    others = [contents(split(name, name)) for name in ("name", "label", "size")]
    assert len({*others, contents(plain)}) == 4
    assert contents(split("unasked", "unasked")) == contents(plain)  # of every third a size is asked for
    assert len(contents(LabelledFiles([("in an archive.png", 0)]))) == 64  # whose place the dataset alone knows
    plain.file = tmp_path / "annotations.json"
    plain.file.write_bytes(b"{}")
    before = contents(plain)
    plain.file.write_bytes(b"[]")
    assert contents(plain) != before


def test_the_first_images_of_a_folder_are_those_by_name(load, tmp_path):
    write_folders(tmp_path, "train", ["cat", "dog"], images=3)
    write_folders(tmp_path, "val", ["cat", "dog"])
    own = on_folder(tmp_path, TRAIN__BATCH_SIZE=2, DATA__PER_CLASS=2, DATA__LOADER="workers")
    data = build_data(load("debug/base_debug", **own))
    subset = data.train.dataset.dataset
    names = [subset.dataset.samples[index][0].split("/train/")[1] for index in subset.indices]
    assert names == ["cat/0.JPEG", "cat/1.JPEG", "dog/0.JPEG", "dog/1.JPEG"]


def test_a_class_that_is_a_link_to_another_class_of_the_other_split(tmp_path):
    """Its test images were the other class's training images. A link to the same class is followed."""
    write_images(tmp_path, train=1, val=1, classes="ab")
    (tmp_path / "val" / "b" / "0.png").unlink(), (tmp_path / "val" / "b").rmdir()
    (tmp_path / "val" / "b").symlink_to(tmp_path / "train" / "a")
    with pytest.raises(ValueError, match="val/b and .*train/a are one folder, by a link"):
        get_folder(tmp_path, "test")
    (tmp_path / "val" / "b").unlink()
    (tmp_path / "val" / "b").symlink_to(tmp_path / "train" / "b")
    assert len(get_folder(tmp_path, "test")[0]) == 2
    (tmp_path / "val" / "a" / "1.png").symlink_to(tmp_path / "train" / "b" / "0.png")
    with pytest.raises(ValueError, match="the link .*val/a/1.png leads to .*train/b/0.png, an image of another class"):
        get_folder(tmp_path, "test")
