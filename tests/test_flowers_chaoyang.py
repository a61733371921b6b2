"""Oxford Flowers and Chaoyang, in files of their own formats."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102
from torchvision.datasets.utils import calculate_md5

from pycls_std.builders.data import build_data, test_files
from pycls_std.core.registry import DATASETS
from pycls_std.datasets.decoding import to_rgb
from pycls_std.datasets.normalizations import NORMALIZATIONS

test_files.__test__ = False
LABELS = [5, 1, 102, 5, 2, 1, 102, 3]  # of images 1 to 8, counted from 1
SPLITS = {"trnid": [8, 2], "valid": [3, 5, 1], "tstid": [7, 4, 6]}


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Folder of 8 images as the original files hold them, whose MD5 are the expected ones."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 9):
        Image.new("RGB", (30 + number, 40), (20 * number, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([LABELS], dtype=np.uint8)})
    savemat(folder / "setid.mat", {name: np.array([ids], dtype=np.uint16) for name, ids in SPLITS.items()})
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as archive:
        archive.add(folder / "jpg", "jpg")
    names = {key: name for key, (name, _) in Flowers102._file_dict.items()}
    known = {key: (name, calculate_md5(folder / name)) for key, name in names.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", known)
    return folder


def get(name, root, split):
    return DATASETS.get(name)(root=str(root), split=split)


def test_flowers_are_trained_on_train_and_val(flowers, tmp_path):
    """Images of the two splits, in the order of the file; labels count from 0 there, not from 1."""
    train, info = get("flowers102", tmp_path, "train")
    test, _ = get("flowers102", tmp_path, "test")
    for dataset, ids in ((train, SPLITS["trnid"] + SPLITS["valid"]), (test, SPLITS["tstid"])):
        assert [image.width - 30 for image, _ in dataset] == ids
        assert [label for _, label in dataset] == [LABELS[number - 1] - 1 for number in ids]
        assert {type(label) for _, label in dataset.samples} == {int}
    assert (len(info.classes), info.classes[0], info.classes[101]) == (102, "pink primrose", "blackberry lily")
    assert info.normalization == NORMALIZATIONS["imagenet"]


def test_a_config_of_flowers_reads_them(flowers, tmp_path, load):
    cfg = load("deit/deit-ti_flowers_base", DATA__ROOT=tmp_path, TRAIN__BATCH_SIZE=4, DATA__NUM_WORKERS=0)
    data = build_data(cfg)
    assert (data.images, next(iter(data.train)).images.shape) == (5, (4, 3, 224, 224))
    assert test_files(cfg) == [f"flowers-102/jpg/image_{number:05d}.jpg" for number in SPLITS["tstid"]]


@pytest.mark.fault(31)
def test_what_has_come_of_flowers_is_not_loaded_again(flowers, tmp_path, monkeypatch):
    """The archive is there, the lists are not: half of one is removed, the archive stays, and the next try ends it."""
    origin, reachable = tmp_path / "origin", {"102flowers.tgz"}
    flowers.rename(origin)

    def fetch(url, target, *args, **kwargs):
        name = url.rpartition("/")[2]
        shutil.copy(origin / name, target)
        if name not in reachable:
            flowers.joinpath(name).write_bytes(b"half")
            raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    with pytest.raises(ValueError, match="could not be downloaded \\(no network\\); put 102flowers.tgz") as error:
        get("flowers102", tmp_path, "test")
    files = ", ".join(f"{name} (MD5 {md5})" for name, md5 in Flowers102._file_dict.values())
    assert str(error.value).startswith(f"flowers102: DATA.ROOT {tmp_path} has no whole copy and https://www.robots.ox")
    assert str(error.value).endswith(f"put {files} into {flowers} by hand")
    assert {path.name for path in flowers.iterdir()} == {"102flowers.tgz", "jpg"}
    reachable |= {"imagelabels.mat", "setid.mat"}
    assert len(get("flowers102", tmp_path, "test")[0]) == 3


def test_an_image_of_flowers_that_is_not_there_is_named(flowers, tmp_path):
    (flowers / "jpg" / "image_00004.jpg").unlink()
    test, _ = get("flowers102", tmp_path, "test")
    with pytest.raises(OSError, match="image .*flowers-102/jpg/image_00004.jpg cannot be read: No such file"):
        test[1]


# ------------------------------------------------------------------------------------------------------------- chaoyang
def entry(name, label):
    return {"label": label, "name": name, "label_A": label, "label_B": 0, "label_C": 3}


@pytest.fixture
def colon(tmp_path):
    """Folder of 5 training and 2 test images, in the original layout."""
    folder = tmp_path / "chaoyang"
    for split, labels in (("train", [1, 0, 3, 2, 0]), ("test", [2, 1])):
        (folder / split).mkdir(parents=True)
        names = [f"{split}/53594{place}-IMG009x02{place}-{label}.JPG" for place, label in enumerate(labels)]
        for place, name in enumerate(names):
            Image.new("L", (51, 50 + place)).save(folder / name, format="jpeg")
        (folder / f"{split}.json").write_text(json.dumps(list(map(entry, names, labels))))
    return folder


def test_chaoyang_is_what_its_lists_say(colon, tmp_path, load):
    train, info = get("chaoyang", tmp_path, "train")
    test, tested = get("chaoyang", tmp_path, "test")
    assert [(image.height - 50, label) for image, label in train] == [(0, 1), (1, 0), (2, 3), (3, 2), (4, 0)]
    assert [label for _, label in test] == [2, 1]
    assert (test[0][0].mode, to_rgb(test[0][0]).mode) == ("L", "RGB")
    assert info.classes == tested.classes == ("normal", "serrated", "adenocarcinoma", "adenoma")
    assert info.left_out == "chaoyang: train.json lists 5 images, the original 4021"
    assert tested.left_out == "chaoyang: test.json lists 2 images, the original 2139"
    cfg = load("deit/deit-ti_chaoyang_base", DATA__ROOT=tmp_path, TRAIN__BATCH_SIZE=4, DATA__NUM_WORKERS=0)
    assert next(iter(build_data(cfg).train)).images.shape == (4, 3, 224, 224)


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([entry("train/a.JPG", 0), {"name": "train/b.JPG"}], "entry 1 has no label"),
        ([{"label": 0}], "entry 0 has no name"),
        (["train/a.JPG"], "entry 0 has no name"),
        ([entry("train/a.JPG", 4)], "entry 0 has the label 4, expected 0 to 3"),
        ([entry("train/a.JPG", -1)], "entry 0 has the label -1, expected 0 to 3"),
        ([entry("train/a.JPG", True)], "entry 0 has the label true, expected 0 to 3"),
        ([entry("train/a.JPG", "1")], 'entry 0 has the label "1", expected 0 to 3'),
        ([entry("../a.JPG", 1)], 'entry 0 has the name "../a.JPG", expected a file below this folder'),
        ([entry("/a.JPG", 1)], 'entry 0 has the name "/a.JPG", expected a file below this folder'),
        ([entry("\n", 1)], 'entry 0 has the name "\\n", expected a file below this folder'),
        ([entry(7, 1)], "entry 0 has the name 7, expected a file below this folder"),
        ([], "it is no list of images"),
        ({"images": []}, "it is no list of images"),
    ],
)
def test_lists_of_chaoyang_that_are_wrong(colon, tmp_path, content, text):
    (colon / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        get("chaoyang", tmp_path, "train")
    assert str(error.value) == f"chaoyang: {colon}/train.json: {text}"


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff", b"[" * 100_000])
def test_lists_of_chaoyang_that_are_no_json(colon, tmp_path, content):
    (colon / "test.json").write_bytes(content)
    with pytest.raises(ValueError, match="^chaoyang: .*/chaoyang/test.json: ") as error:
        get("chaoyang", tmp_path, "test")
    assert len(str(error.value).splitlines()) == 1


def test_chaoyang_that_is_not_there_says_where_it_is(tmp_path):
    with pytest.raises(ValueError) as error:
        get("chaoyang", tmp_path, "train")
    assert str(error.value) == (
        f"chaoyang: there is no {tmp_path}/chaoyang/train.json; ask for the data at "
        f"https://bupt-ai-cz.github.io/HSA-NRL/ and unpack it into DATA.ROOT {tmp_path}, as chaoyang"
    )


def test_an_image_of_chaoyang_that_is_not_there_is_named(colon, tmp_path):
    shutil.rmtree(colon / "test")
    with pytest.raises(OSError, match="image .*/chaoyang/test/535940-IMG009x020-2.JPG cannot be read: No such file"):
        get("chaoyang", tmp_path, "test")[0][0]
