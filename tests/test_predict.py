"""tools/predict.py: what it says of an image is what --mode test says of it, drawn, and without the dataset."""

import json
import shutil

import numpy as np
import pytest
import torch
from coco_files import IDS, write_coco
from PIL import Image
from processes import ROOT, called

from pycls_std import config, runner
from pycls_std.builders.data import build_data
from pycls_std.datasets.digits import Digits
from pycls_std.datasets.shapes import SHAPES
from pycls_std.models.create import create_backbone

TINY = ["MODEL.ARGS.embed_dim=24", "MODEL.ARGS.depths=[1,1,1,1]", "MODEL.ARGS.num_heads=[1,2,4,8]"]
TINY += ["MODEL.ARGS.hidden=64", "MODEL.ARGS.decoder_layers=1", "MODEL.ARGS.queries=20", "MODEL.ARGS.ffn=32"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector of an epoch on 4 images: words of its options, 3 images, the results of --mode test of these."""
    folder = tmp_path_factory.mktemp("detector")
    write_coco(folder / "data", train=4)
    path = str(ROOT / "configs" / "debug" / "detection_debug.yaml")
    own = ["DATA.NAME=coco", f"DATA.ROOT={folder / 'data'}", f"OUT_DIR={folder / 'run'}", "OPTIM.MAX_EPOCH=1", *TINY]
    own += ["TRAIN.BATCH_SIZE=2", "TEST.BATCH_SIZE=1"]
    runner.run("train", config.load(path, own))
    tested = [f"TEST.WEIGHTS={folder / 'run' / 'checkpoints' / 'best.pt'}"]
    runner.run("test", config.load(path, [*own, *tested, f"TEST.PREDICTIONS={folder / 'tested.json'}"]))
    images = shutil.copytree(folder / "data" / "val2017", folder / "images")
    shutil.rmtree(folder / "data")
    words = ["--cfg", folder / "run" / "config.yaml", *tested]
    return words, sorted(images.iterdir()), json.loads((folder / "tested.json").read_text())


def predicted(folder, *words):
    """Call the tool; returns what it printed, and its rows."""
    code, output, errors = called("tools/predict.py", *words, "--out", folder)
    assert (code, errors) == (0, "")
    return output, json.loads((folder / "predictions.json").read_text())


def numbers(rows):
    """Boxes and scores of rows (n, 5)."""
    return np.array([[*row["bbox"], row["score"]] for row in rows])


# ------------------------------------------------------------------------------------------------------------ detectors
def test_boxes_are_those_of_the_test_mode_without_the_dataset(detector, tmp_path):
    words, images, tested = detector
    output, rows = predicted(tmp_path / "out", *words, *images, "--threshold", 0.1)
    assert len(rows) == len(tested) == 3 * 20 * 3
    np.testing.assert_allclose(numbers(rows), numbers(tested), rtol=1e-5, atol=1e-4)
    assert [row["category_id"] for row in rows] == [row["category_id"] for row in tested]
    assert {row["category_id"]: row["category"] for row in rows} == dict(zip(IDS, SHAPES, strict=True))
    assert [row["image_id"] for row in rows[::60]] == [0, 1, 2]
    assert [row["file_name"] for row in rows[::60]] == list(map(str, images))
    for path in images:
        own = [row for row in rows if row["file_name"] == str(path) and row["score"] >= 0.1]
        assert f"{path}\n  {len(own)} boxes of score 0.1 and above" in output
        assert f"  {tmp_path / 'out' / path.name}: written\n" in output
        before, after = (np.asarray(Image.open(place)) for place in (path, tmp_path / "out" / path.name))
        assert before.shape == after.shape and bool((before != after).any()) == bool(own)


def test_the_threshold_is_for_what_is_drawn(detector, tmp_path):
    words, images, _ = detector
    output, rows = predicted(tmp_path / "out", *words, images[0], "--threshold", 1)
    assert len(rows) == 60 and f"{images[0]}\n  0 boxes of score 1 and above\n" in output
    pictures = [np.asarray(Image.open(place)) for place in (images[0], tmp_path / "out" / images[0].name)]
    np.testing.assert_array_equal(*pictures)


def test_images_of_every_kind(detector, tmp_path):
    """Turned by EXIF, grey, with alpha, large; and two of one name."""
    words, (path, *_), _ = detector
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right, when it is shown
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("L").convert("RGB").save(tmp_path / "as_grey.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "more").mkdir()
    large = image.resize((3000, 3000 * image.height // image.width))
    large.save(tmp_path / "more" / "grey.png")
    names = ("turned.png", "grey.png", "as_grey.png", "alpha.png", "more/grey.png")
    _, rows = predicted(tmp_path / "out", *words, path, *(tmp_path / name for name in names), "--threshold", 0.1)
    plain, turned, grey, as_grey, alpha, big = (numbers(rows[start : start + 60]) for start in range(0, 360, 60))
    for same in (turned, alpha):
        np.testing.assert_array_equal(plain, same)
    np.testing.assert_array_equal(grey, as_grey)
    assert np.median(big[:, :4] / plain[:, :4]) == pytest.approx(3000 / image.width, rel=0.1)
    sizes = {place.name: Image.open(place).size for place in (tmp_path / "out").glob("*.png")}
    expected = dict.fromkeys(["turned.png", "grey.png", "as_grey.png", "alpha.png", path.name], image.size)
    assert sizes == expected | {"grey-2.png": large.size}


# ---------------------------------------------------------------------------------------------------------- classifiers
CLASSIFIER = ["--cfg", ROOT / "configs" / "debug" / "teacher_debug.yaml"]


@pytest.fixture
def digit(tmp_path):
    """Path of an image of the test split, and its view (1, 3, 8, 8)."""
    data = build_data(config.load(str(CLASSIFIER[1])), train=False)
    Digits("test")[5][0].save(tmp_path / "digit.png")
    return tmp_path / "digit.png", next(iter(data.test)).images[5:6]


def test_the_five_most_likely_classes(digit, teacher, tmp_path):
    """With the probabilities of a plain forward pass; nothing is drawn."""
    path, pixels = digit
    words = [*CLASSIFIER, f"TEST.WEIGHTS={teacher}", "DATA.ROOT=/nowhere"]
    output, rows = predicted(tmp_path / "out", *words, path)
    state = torch.load(teacher, weights_only=True)["student"]
    model = create_backbone("resnet8", num_classes=10, image_size=8).eval()
    model.load_state_dict({key.removeprefix("backbone."): value for key, value in state.items()})
    with torch.no_grad():
        expected, labels = model(pixels)[0].softmax(0).topk(5)
    assert [row["category"] for row in rows] == list(map(str, labels.tolist()))
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-5)
    assert [row["file_name"] for row in rows] == [str(path)] * 5
    first = f"{path}\n  {100 * expected[0]:6.2f} %  {labels[0]}\n"
    assert output.startswith(first) and output.count(" %  ") == 5
    assert [place.name for place in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_plain_weights_have_the_classes_of_the_dataset(digit, teacher, tmp_path):
    path, _ = digit
    state = torch.load(teacher, weights_only=True)["student"]
    torch.save({key.removeprefix("backbone."): value for key, value in state.items()}, tmp_path / "plain.pt")
    found = [
        predicted(tmp_path / place.stem, *CLASSIFIER, f"TEST.WEIGHTS={place}", path)[1]
        for place in (tmp_path / "plain.pt", teacher)
    ]
    assert found[0] == found[1]


# --------------------------------------------------------------------------------------------------------------- errors
def test_one_bad_image_does_not_end_it(digit, teacher, tmp_path):
    path, _ = digit
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:80])
    words = [*CLASSIFIER, f"TEST.WEIGHTS={teacher}", tmp_path / "broken.png", path, "--out", tmp_path / "out"]
    code, output, errors = called("tools/predict.py", *words)
    assert code == 1 and errors.count("\n") == 1
    assert errors.startswith(f"predict.py: image {tmp_path / 'broken.png'} cannot be read: ")
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 5 and str(path) in output


def test_what_is_not_finite_is_told(digit, teacher, tmp_path):
    path, _ = digit
    state = torch.load(teacher, weights_only=True)
    for value in state["student"].values():
        if value.ndim == 4:
            value.fill_(1e38)
    torch.save(state, tmp_path / "huge.pt")
    words = [*CLASSIFIER, f"TEST.WEIGHTS={tmp_path / 'huge.pt'}", path, "--out", tmp_path / "out"]
    code, _, errors = called("tools/predict.py", *words)
    assert (code, errors) == (1, f"predict.py: {path}: what is predicted is not finite\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["{image}"], 2, "TEST.WEIGHTS is empty, predict.py needs TEST.WEIGHTS=CHECKPOINT"),
        (["{image}", "TEST.WEIGHTS=none.pt"], 1, "there is no checkpoint none.pt"),
        (["{image}", "TEST.WEIGHT={weights}"], 2, "TEST.WEIGHT"),
        (["{image}", "{best}", "TEST.EMA=true"], 1, "TEST.EMA is True, {weights} holds no moving average"),
        (["{image}", "{best}", "MODEL.NUM_CLASSES=7"], 1, "MODEL.NUM_CLASSES is 7, {weights} was trained on 10 c"),
        (["{image}", "{best}", "MODEL.NAME=resnet20"], 1, "{weights} holds a resnet8, MODEL.NAME is resnet20"),
        (["{folder}/none.png", "{best}"], 1, "image {folder}/none.png cannot be read: No such file or directory"),
        (["{folder}", "{best}"], 1, "{folder}: it is a folder, name its images: {folder}/*"),
        (["{weights}", "{best}"], 1, "image {weights} cannot be read: cannot identify image file"),
        (["{image}", "{best}", "--out", "{folder}"], 1, "{image} is there already, choose another --out"),
        (["{image}", "{best}", "--out", "{image}"], 1, "could not be written"),
        (["{image}", "{best}", "--threshold", "2"], 2, "argument --threshold: 2 is not from 0 to 1"),
        (["{best}"], 2, "name an image"),
    ],
)
def test_mistakes_are_one_line(words, code, text, digit, teacher, tmp_path):
    """And nothing is written."""
    places = {"image": digit[0], "folder": tmp_path, "weights": teacher, "best": f"TEST.WEIGHTS={teacher}"}
    words = [word.format(**places) for word in words]
    found, output, errors = called("tools/predict.py", *CLASSIFIER, "--out", tmp_path / "out", *words)
    assert found == code
    lines = errors.splitlines()
    assert text.format(**places) in lines[-1]
    assert lines[0].startswith("usage: ") or len(lines) == 1
    assert sorted(place.name for place in tmp_path.iterdir()) == ["digit.png"]


def test_other_options_than_those_of_the_run_are_told(digit, teacher, tmp_path):
    words = [*CLASSIFIER, f"TEST.WEIGHTS={teacher}", "DATA.IMAGE_SIZE=16", digit[0], "--out", tmp_path / "out"]
    code, _, errors = called("tools/predict.py", *words)
    warning = f"predict.py: warning: {teacher} was trained with other options: DATA.IMAGE_SIZE was 8, is 16\n"
    assert (code, errors) == (0, warning)
