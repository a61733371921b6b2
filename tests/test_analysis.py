"""Scores of predictions, and what a difference is worth, against plain loops, closed forms and scipy."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from processes import ROOT, called
from scipy import stats
from torch.nn.functional import cross_entropy

from pycls_std.core.prediction_file import Predictions, packed
from pycls_std.core.structures import World
from pycls_std.results import analysis
from pycls_std.results.statistics import Difference, bootstrap, mcnemar, paired
from pycls_std.tasks.evaluator import Evaluator

IMAGES, CLASSES = 203, 7


def predictions(seed=0, images=IMAGES, **changes):
    """Predictions of a student of two heads and of two teachers."""
    draws = np.random.default_rng(seed)
    logits = [draws.normal(size=(images, CLASSES)).astype(np.float32) * 2 for _ in range(4)]
    heads, teachers = {"cls": logits[0], "std0": logits[1]}, {"0_resnet8": logits[2], "1_resnet20": logits[3]}
    scored = {"avg": (logits[0] + logits[1]) / 2, "cls": logits[0], "dist": logits[1]}
    labels = np.random.default_rng(100).integers(0, CLASSES, images)
    meta = {"name": "x", "seed": 3, "checkpoint": "best.pt", "epoch": 5, "classes": list("abcdefg")}
    meta |= {"prediction": "avg", "flops": 10, "parameters": {"deployed": 2, "train_only": 1}, "format": 1}
    paths = np.array([""] * images)
    found = Predictions(np.arange(images), paths, labels, heads, scored, teachers, meta)
    return found._replace(**changes)


def test_scores_are_those_of_the_metrics():
    """Of --mode test, and of torch; the hits are packed bit for bit."""
    found = predictions()
    result = analysis.analyze(found)
    assert list(result["predictions"]) == ["avg", "cls", "dist", "std0"]
    students = found.predictions | found.heads
    for name, own in (result["predictions"] | result["teachers"]).items():
        logits = torch.from_numpy((students | found.teachers)[name])
        labels = torch.from_numpy(found.labels)
        evaluator = Evaluator("classification")
        evaluator.update(logits, labels)
        expected = evaluator.compute(World())
        assert own["top1"] == pytest.approx(expected["top1"], abs=1e-4)
        assert own["top5"] == pytest.approx(expected["top5"], abs=1e-4)
        assert own["loss"] == pytest.approx(float(cross_entropy(logits, labels)), abs=1e-5)
        hits = logits.argmax(1) == labels
        assert analysis.correct(result, name).tolist() == hits.tolist()
        for label in range(CLASSES):
            share = float(100 * hits[labels == label].float().mean())
            assert own["per_class"][label] == pytest.approx(share, abs=1e-4)
    assert analysis.correct(result).tolist() == analysis.correct(result, "avg").tolist()
    assert (result["name"], result["seed"], result["epoch"], result["images"]) == ("x", 3, 5, IMAGES)
    assert result["parameters"] == {"deployed": 2, "train_only": 1} and result["flops"] == 10


def test_agreement_is_that_of_a_plain_loop():
    found = predictions()
    result = analysis.analyze(found)
    for teacher, said in found.teachers.items():
        for name, own in (found.predictions | found.heads).items():
            counts = dict.fromkeys(analysis.SHARES, 0)
            for image in range(IMAGES):
                first, second = max(range(CLASSES), key=lambda k: own[image, k]), int(said[image].argmax())  # noqa: B023
                right, taught = first == found.labels[image], second == found.labels[image]
                counts["agreement"] += first == second
                counts["student_right_teacher_wrong"] += right and not taught
                counts["student_wrong_teacher_right"] += taught and not right
                counts["both_right"] += right and taught
                counts["both_wrong"] += not right and not taught
            for share, count in counts.items():
                assert result["teachers"][teacher][share][name] == pytest.approx(100 * count / IMAGES, abs=1e-4)


def test_equal_logits_name_the_first_class():
    """As argmax does; where all are equal, five of seven are among the five most likely."""
    found = analysis.scores(np.zeros((CLASSES, CLASSES), np.float32), np.arange(CLASSES))
    assert found["top1"] == pytest.approx(100 / CLASSES, abs=1e-4)
    assert found["top5"] == pytest.approx(500 / CLASSES, abs=1e-4)
    assert found["loss"] == pytest.approx(math.log(CLASSES), abs=1e-6)


def test_few_classes_and_classes_without_images():
    found = analysis.scores(np.array([[3.0, 1, 2], [0, 5, 1]], np.float32), np.array([0, 0]))
    assert (found["top1"], found["top5"], found["per_class"]) == (50, 100, [50, None, None])


def test_large_logits_do_not_overflow():
    found = analysis.scores(np.array([[1e4, 0, 0], [0, 1e4, 0]], np.float32), np.array([0, 2]))
    assert (found["loss"], found["ece"]) == (5000, 50)


# --------------------------------------------------------------------------------------------------------- calibration
def plain_error(confidence, hits, bins):
    """ECE, image by image."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or number == 0 and c == 0]
        if inside:
            accuracy = sum(bool(hits[i]) for i in inside) / len(inside)
            total += abs(accuracy - sum(confidence[i] for i in inside) / len(inside)) * len(inside) / len(hits)
    return 100 * total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_that_of_a_plain_loop(bins):
    draws = np.random.default_rng(0)
    confidence = np.concatenate([draws.random(500) ** 0.3, [0.0, 1.0, 1.0]])
    hits = draws.random(503) < confidence**2
    found = analysis.calibration_error(confidence, hits, bins)
    assert found == pytest.approx(plain_error(confidence.tolist(), hits.tolist(), bins), abs=1e-9)
    assert found > 1


@pytest.mark.parametrize(
    "confidence, hits, expected",
    [
        ([1.0, 1.0], [True, True], 0),  # a probability of 1 is in the last bin
        ([1.0, 1.0], [False, False], 100),
        ([1.0, 0.99], [True, False], 49.5),  # one bin: its mean confidence is 0.995, its accuracy 0.5
        ([0.5, 0.9], [True, True], 30),  # all other bins are empty
        ([0.2] * 4, [True, False, False, False], 5),
        ([1.0 + 1e-12], [True], 0),
    ],
)
def test_calibration_error_at_the_edges(confidence, hits, expected):
    found = analysis.calibration_error(np.array(confidence), np.array(hits))
    assert found == pytest.approx(expected, abs=1e-9)


# --------------------------------------------------------------------------------------------------------------- files
def test_an_analysis_is_read_as_it_was_written(tmp_path):
    result = analysis.analyze(predictions())
    analysis.write(result, tmp_path / "analysis.json")
    assert analysis.read(tmp_path / "analysis.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.json"]


def changed(**changes):
    return json.dumps(analysis.analyze(predictions()) | changes)


def broken(name, key, value):
    result = analysis.analyze(predictions())
    (result["predictions"] | result["teachers"])[name][key] = value
    return json.dumps(result)


@pytest.mark.parametrize(
    "content, text",
    [
        ("", "it is damaged, or no analysis"),
        (changed()[:-200], "it is damaged, or no analysis"),
        ("[" * 100_000, "it is damaged, or no analysis"),
        ("{}", "it is no analysis"),
        ("3", "it is no analysis"),
        (changed(format=2), "its format is 2, this program reads 1"),
        (changed(images="3"), "it does not say images"),
        (changed(prediction="other"), "it does not say what its prediction scores"),
        (changed(images=IMAGES + 8), "what it says of avg is not whole"),
        (broken("dist", "top1", 3.0), "what it says of dist is not whole"),
        (broken("dist", "top1", math.nan), "it is damaged, or no analysis"),
        (broken("cls", "correct", "zz"), "what it says of cls is not whole"),
        (broken("cls", "per_class", [1.0]), "what it says of cls is not whole"),
        (broken("0_resnet8", "agreement", {}), "what it says of 0_resnet8 is not whole"),
    ],
)
def test_files_that_are_no_analysis(tmp_path, content, text):
    path = tmp_path / "analysis.json"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        analysis.read(path)
    assert str(caught.value).startswith(f"{path}: ") and text in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- statistics
def test_interval_over_seeds_is_that_of_the_paired_t_test():
    values = {"seed0": 73.1, "seed1": 72.4, "seed2": 74.0, "seed7": 9.0}
    base = {"seed2": 71.9, "seed0": 71.5, "seed1": 72.6, "seed3": 99.0}
    found = paired(values, base)
    seeds = ["seed0", "seed1", "seed2"]
    test = stats.ttest_rel([values[seed] for seed in seeds], [base[seed] for seed in seeds])
    interval = test.confidence_interval(0.95)
    assert found.mean == pytest.approx((1.6 - 0.2 + 2.1) / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.n, found.kind, found.noise) == (3, "t", True)
    # 4.302653 is the 0.975 quantile of Student's t with 2 degrees of freedom
    assert found.high - found.mean == pytest.approx(4.302653 * np.std([1.6, -0.2, 2.1], ddof=1) / 3**0.5, rel=1e-6)


def test_differences_that_are_all_alike():
    found = paired({0: 3.0, 1: 2.0}, {0: 2.0, 1: 1.0})
    assert found == Difference(1.0, 1.0, 1.0, 2, "t") and not found.noise


@pytest.mark.parametrize(
    "values, text",
    [
        ({0: 1.0}, "at least 2 that both rows have, there are 1"),
        ({3: 1.0}, "there are 0"),
        ({0: math.nan, 1: 1.0}, "finite"),
    ],
)
def test_too_little_for_an_interval(values, text):
    with pytest.raises(ValueError, match=text):
        paired(values, {0: 1.0, 1: 2.0})


def test_interval_over_images_is_that_of_the_normal_approximation():
    """For many images the two agree; the pairing counts: two rows that err alike differ by little noise."""
    draws = np.random.default_rng(0)
    base = draws.random(4000) < 0.7
    own = np.where(draws.random(4000) < 0.1, draws.random(4000) < 0.9, base)
    found = bootstrap(own, base)
    each = 100 * (own.astype(float) - base)
    half = 1.96 * each.std() / 4000**0.5
    assert found.mean == pytest.approx(each.mean())
    assert (found.low, found.high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.1 * half)
    assert (found.n, found.kind, found.noise) == (4000, "bootstrap", False)
    shuffled = bootstrap(draws.permutation(own), base)
    assert shuffled.high - shuffled.low > 2 * (found.high - found.low)


def test_the_bootstrap_is_that_of_a_plain_loop_and_always_the_same():
    draws = np.random.default_rng(1)
    own, base = draws.random(200) < 0.8, draws.random(200) < 0.7
    found = bootstrap(own, base)
    assert found == bootstrap(own, base)
    means = []
    for _ in range(2000):
        chosen = draws.integers(0, 200, 200)
        means.append(100 * (own[chosen].mean() - base[chosen].mean()))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.8)


def test_two_that_answer_alike():
    hits = np.arange(50) % 3 == 0
    assert bootstrap(hits, hits) == Difference(0, 0, 0, 50, "bootstrap") and mcnemar(hits, hits) == 1.0


@pytest.mark.parametrize("gained, lost", [(9, 1), (1, 9), (5, 5), (30, 12), (1, 0)])
def test_mcnemar_is_the_binomial_formula(gained, lost):
    own = np.array([True] * gained + [False] * lost + [True] * 20 + [False] * 9)
    base = np.array([False] * gained + [True] * lost + [True] * 20 + [False] * 9)
    total, less = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, k) for k in range(less + 1)) / 2**total
    assert mcnemar(own, base) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("function", [bootstrap, mcnemar])
def test_images_that_are_not_the_same_are_not_compared(function):
    with pytest.raises(ValueError, match="on the same images"):
        function(np.ones(4, bool), np.ones(5, bool))


# ---------------------------------------------------------------------------------------------------------------- tool
@pytest.fixture
def runs(tmp_path):
    """Return run(name, **changes): the folder of a run with predictions."""

    def run(name, **changes):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.npz").write_bytes(packed(predictions(**changes)))
        return tmp_path / name

    return run


def analyze(*words):
    """Call the tool; returns exit code, output, errors."""
    return called("tools/analyze.py", *words)


def better(share=0.2):
    """Predictions that are those of seed 1, and right for more images: every one of class c, a share of the others."""
    base = predictions(1)
    logits = base.predictions["avg"].copy()
    chosen = (np.random.default_rng(5).random(IMAGES) < share) | (base.labels == 2)
    logits[chosen, base.labels[chosen]] = 50
    return base.predictions | {"avg": logits}


def test_what_the_tool_says_of_a_run(runs):
    folder = runs("one")
    expected = analysis.analyze(predictions())
    code, text, errors = analyze(folder)
    assert (code, errors) == (0, "")
    assert f"**{folder}**: x seed 3, best.pt of epoch 5, 203 test images" in text
    own, teacher = expected["predictions"]["avg"], expected["teachers"]["1_resnet20"]
    scores = f"{own['top1']:.2f} | {own['top5']:.2f} | {own['loss']:.4f} | {own['ece']:.2f}"
    assert "| prediction | top-1 | top-5 | loss | ECE |" in text and f"| avg * | {scores} |" in text
    shares = " | ".join(f"{teacher[share]['avg']:.2f}" for share in analysis.SHARES)
    headings = "agreement | only the student right | only the teacher right | both right | both wrong"
    assert "| teacher | top-1 | top-5 | loss | ECE |" in text and f"| prediction | teacher | {headings} |" in text
    row = next(line for line in text.splitlines() if line.startswith("| 1_resnet20 |"))
    assert f"| {teacher['top1']:.2f} |" in row
    assert f"| avg * | 1_resnet20 | {shares} |" in text
    heads = re.findall(r"^\| (\w+)(?: \*)? \| 1_resnet20 \|", text, re.M)
    assert len(heads) > 1 and heads == list(expected["predictions"])  # each of them
    assert "interval" not in text


def test_what_the_tool_says_of_a_difference(runs, tmp_path):
    base, own = runs("base", seed=1), runs("own", seed=1, predictions=better())
    code, text, errors = analyze(own, "--baseline", base)
    assert (code, errors) == (0, "")
    first, second = (analysis.analyze(predictions(1, **more)) for more in ({"predictions": better()}, {}))
    hits = analysis.correct(first), analysis.correct(second)
    found = bootstrap(*hits)
    assert (
        f"top-1 {found.mean:+.2f} to {base}, 95 % interval {found.low:+.2f} to {found.high:+.2f} (bootstrap over 203 "
        f"images); McNemar's p {mcnemar(*hits):.2g}\n"
    ) in text
    gain = 100 - second["predictions"]["avg"]["per_class"][2]
    assert f"largest gains of avg over the baseline's avg by class: c {gain:+.2f}, " in text
    assert "smallest gains of cls over the baseline's cls by class: " in text
    other = first["predictions"]["cls"]["per_class"][2] - second["predictions"]["cls"]["per_class"][2]
    assert ", which holds 0" not in text and ", which holds 0; McNemar's p 1" not in text
    assert ", which holds 0; McNemar's p 1\n" in analyze(base, "--baseline", base)[1]
    code, text, _ = analyze(own, base, "--baseline", base, "--format", "json", "--out", tmp_path / "x.json")
    assert (code, text) == (0, "")
    entries = json.loads((tmp_path / "x.json").read_text())
    assert [entry["run"] for entry in entries] == [str(own), str(base)]
    difference = entries[0]["difference"]
    assert (difference["mean"], difference["low"], difference["noise"]) == (found.mean, found.low, False)
    assert difference["per_class"]["avg"]["classes"][2] == ["c", pytest.approx(gain)]
    assert difference["per_class"]["cls"]["classes"][2] == ["c", pytest.approx(other)]
    assert "correct" not in (tmp_path / "x.json").read_text()
    rows = list(csv.DictReader(io.StringIO(analyze(own, "--baseline", base, "--format=csv")[1])))
    values = {(row["of"], row["name"], row["score"]): row["value"] for row in rows}
    assert float(values["difference", str(base), "mean"]) == pytest.approx(found.mean, abs=1e-4)
    assert float(values["teacher", "0_resnet8", "agreement avg"]) == pytest.approx(
        first["teachers"]["0_resnet8"]["agreement"]["avg"], abs=1e-4
    )
    assert float(values["prediction", "avg", "top1 of c"]) == 100
    assert float(values["difference", str(base), "cls over cls: top1 of c"]) == pytest.approx(other, abs=1e-4)


def test_an_analysis_stands_for_the_predictions(runs):
    """After --save, without the predictions, and compared too."""
    own, base = runs("own", seed=1, predictions=better()), runs("base", seed=1)
    before = analyze(own, "--baseline", base)
    code, text, _ = analyze(own, base, "--save")
    assert code == 0 and json.loads((own / "analysis.json").read_text())["name"] == "x"
    for folder in (own, base):
        (folder / "predictions.npz").unlink()
    assert analyze(own, base) == (0, text, "")
    assert analyze(own, "--baseline", base) == before


def test_runs_that_cannot_be_analysed(runs, tmp_path):
    own = runs("own")
    other = runs("other", labels=predictions().labels[::-1].copy())
    shorter = runs("shorter", images=100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "predictions.npz").write_bytes(b"x")
    detector = ROOT / "logs" / "bccd-coco_8" / "swin-micro_bccd-8" / "seed0"
    said = f"{detector} is a run of TASK.NAME detection, analyze.py reads the logits of classifiers"
    for words, text in (
        ([own, detector], said),  # whose test would refuse a file of logits
        ([own, "--baseline", other], f"{own} and {other} have other test splits"),
        ([own, "--baseline", shorter], f"{own} and {shorter} have other test splits: 203 images of 7 classes and 100"),
        ([own, tmp_path / "empty"], "make it with: python run_net.py --mode test --cfg"),
        ([tmp_path / "gone"], f"{tmp_path / 'gone'}: there is no such folder"),
        ([tmp_path / "damaged"], "predictions.npz: it is damaged, or no file of predictions"),
        ([own, "--out", tmp_path / "no" / "x"], "no/x could not be written: No such file"),
    ):
        code, output, errors = analyze(*words)
        assert (code, output, len(errors.splitlines())) == (2, "", 1)
        assert errors.startswith("analyze.py: ") and text in errors


def test_names_that_are_no_markdown(runs):
    meta = predictions().meta | {"name": "a|b<script>\n\x1b[2J"}
    code, text, _ = analyze(runs("own", meta=meta))
    assert code == 0 and "<script>" not in text and "\x1b" not in text
