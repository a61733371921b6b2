"""The task of detection: what a label is, what is predicted, and a run of a tiny detector by every mode.

Shapes: B batch, L levels, Q queries, K classes, D detections of an image.
"""

import json
import math

import pytest
import torch
from coco_files import IDS, annotation, write_coco
from faster_coco_eval import COCO, COCOeval_faster
from processes import Running, called, finish, two_ranks
from records import assert_same_state, curves, load_state, words

from pycls_std import config, runner
from pycls_std.builders.data import build_data, build_task
from pycls_std.builders.training import build_all, build_described_trainer
from pycls_std.core.structures import Batch, DatasetInfo, Loaded, Normalization, Output, Progress, World, take
from pycls_std.engine import loop
from pycls_std.engine.runtime import Runtime
from pycls_std.losses.matching import Weights, gathered_truth
from pycls_std.tasks.detection import Detection

B, L, Q, K = 4, 3, 5, 3
START = Progress(0, 0, 1, 1)
# A run of two steps an epoch, on images of up to 32 pixels.
TINY = {
    "MODEL__ARGS__embed_dim": 8,
    "MODEL__ARGS__num_heads": "[1, 2, 4, 8]",
    "MODEL__ARGS__decoder_layers": 1,
    "MODEL__ARGS__queries": 10,
    "DATA__IMAGE_SIZE": 32,
    "TRAIN__BATCH_SIZE": 64,
}


@pytest.fixture
def task():
    """The task of three classes, with the weights of the publication."""
    return Detection(K, pipeline=None, weights=Weights())


def output_of(seed=0, batch=B, levels=L):
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, levels, Q, K, generator=draws).requires_grad_()
    boxes = (torch.rand(batch, levels, Q, 4, generator=draws) * 0.4 + 0.3).requires_grad_()
    return Output({"classes": logits, "boxes": boxes}, {})


def targets_of(counts, seed=0):
    draws = torch.Generator().manual_seed(seed)
    boxes = [torch.rand(count, 4, generator=draws) * 0.4 + 0.3 for count in counts]
    return [{"boxes": own, "labels": torch.randint(0, K, (len(own),), generator=draws)} for own in boxes]


def part_of(output, rows):
    return Output({name: head[rows] for name, head in output.heads.items()}, {})


def batch_of(targets):
    return Batch(None, gathered_truth(targets), None)


# ----------------------------------------------------------------------------------------------------------- objective
def test_the_last_level_has_names_and_the_others_one(task):
    """Their sum is the objective; without a weight the levels before the last one do not learn."""
    output, batch = output_of(), batch_of(targets_of([2, 0, 1, 3]))
    losses = task.losses(output, batch, World())
    assert list(losses) == ["class", "l1", "giou", "aux"] and all(value.ndim == 0 for value in losses.values())
    levels = [Output({name: head[:, i : i + 1] for name, head in output.heads.items()}, {}) for i in range(L)]
    alone = [task.losses(level, batch, World()) for level in levels]
    assert [list(each) for each in alone] == [["class", "l1", "giou"]] * L
    for name, value in alone[-1].items():
        torch.testing.assert_close(losses[name], value)
    torch.testing.assert_close(losses["aux"], sum(sum(each.values()) for each in alone[:-1]))
    task.auxiliary = 0.0
    losses = task.losses(output, batch, World())
    sum(losses.values()).backward()
    assert "aux" not in losses and not output.heads["boxes"].grad[:, :-1].any()
    assert output.heads["classes"].grad[:, -1].any()


def test_the_overlap_is_a_loss_of_its_own_and_of_the_other_levels():
    """If it has a weight; the other losses stay as they are."""
    output, batch = output_of(), batch_of(targets_of([2, 0, 1, 3]))
    ious = torch.randn(B, L, Q, requires_grad=True)
    plain = Detection(K, pipeline=None, weights=Weights())
    aware = Detection(K, pipeline=None, weights=Weights(iou=2.0))
    assert plain.HEADS == ("classes", "boxes") and aware.HEADS == ("classes", "boxes", "ious")
    assert aware.prediction_heads(aware.HEADS) == {"boxes": {"classes", "boxes"}}
    more = aware.losses(Output(output.heads | {"ious": ious}, {}), batch, World())
    losses = plain.losses(output, batch, World())
    assert list(more) == ["class", "l1", "giou", "iou", "aux"]
    assert all(torch.equal(more[name], losses[name]) for name in ("class", "l1", "giou"))
    levels = [{name: head[:, i : i + 1] for name, head in (output.heads | {"ious": ious}).items()} for i in range(L)]
    alone = [aware.losses(Output(level, {}), batch, World())["iou"] for level in levels]
    torch.testing.assert_close(more["iou"], alone[-1])
    torch.testing.assert_close(more["aux"], losses["aux"] + sum(alone[:-1]))
    (more["iou"] + more["aux"]).backward()
    assert int((ious.grad != 0).sum()) == L * 6, "those of the matched queries learn"


AWARE = TINY | {"MODEL__ARGS__iou_aware": "true"}


def test_a_head_without_a_weight_and_a_weight_without_a_head_are_refused(load):
    plain, aware = (load("debug/detection_debug", **args) for args in (TINY, AWARE))
    weighted = [load("debug/detection_debug", **args, DETECTION__IOU_WEIGHT=2) for args in (TINY, AWARE)]
    for cfg in (plain, weighted[1]):
        build_described_trainer(cfg, K)
    with pytest.raises(ValueError, match="^DETECTION.IOU_WEIGHT is 0, the student has a head ious .MODEL.ARGS iou_aw"):
        build_described_trainer(aware, K)
    with pytest.raises(ValueError, match="^DETECTION.IOU_WEIGHT is above 0, the student has no head ious .MODEL.ARGS"):
        build_described_trainer(weighted[0], K)


@pytest.mark.parametrize("key", ["VKD.WEIGHT", "LOCALITY.WEIGHT", "FEATURE.WEIGHT"])
def test_terms_that_read_whole_maps_are_refused(load, key):
    """A part of them is padding, and as large as the other images of the batch make it."""
    taught = {"DISTILLATION__TEACHERS": "[vidt_swin_micro]", "DISTILLATION__TEACHER_WEIGHTS": "[x.pt]"}
    cfg = load("debug/detection_debug", **TINY, **taught, **{key.replace(".", "__"): 1})
    with pytest.raises(ValueError, match=f"^{key} must be 0: TASK.NAME has padded images"):
        build_described_trainer(cfg, K)


class Share(World):
    """One of two processes; it knows the boxes of both."""

    size = 2

    def __init__(self, boxes):
        self.boxes = boxes

    def sum(self, tensor):
        return torch.full_like(tensor, self.boxes)


@pytest.mark.parametrize("counts", [[3, 0, 1, 2], [0, 0, 5, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
def test_two_processes_average_to_the_gradient_of_one(task, counts):
    """Whoever has the boxes, and if there are fewer than processes, or none."""
    whole, targets = output_of(), targets_of(counts)
    sum(task.losses(whole, batch_of(targets), World()).values()).backward()
    parted = output_of()
    for rows in (slice(0, 2), slice(2, 4)):
        losses = task.losses(part_of(parted, rows), batch_of(targets[rows]), Share(sum(counts)))
        (sum(losses.values()) / 2).backward()
    for name in task.HEADS:
        torch.testing.assert_close(parted.heads[name].grad, whole.heads[name].grad)


@pytest.mark.parametrize("counts", [[3, 0, 1, 2], [0, 0, 5, 0], [0, 0, 0, 0]])
def test_parts_of_a_share_of_a_batch_average_to_the_gradient_of_one(task, counts):
    """Two processes, each with two images, one after the other: divided by the boxes of all four."""
    whole, targets = output_of(), targets_of(counts)
    sum(task.losses(whole, batch_of(targets), World()).values()).backward()
    parted = output_of()
    for first in (0, 2):
        share = batch_of(targets[first : first + 2])
        for place in (0, 1):
            part = take(share, slice(place, place + 1))._replace(whole=share)
            rows = slice(first + place, first + place + 1)
            (sum(task.losses(part_of(parted, rows), part, Share(sum(counts))).values()) / 4).backward()
    for name in task.HEADS:
        torch.testing.assert_close(parted.heads[name].grad, whole.heads[name].grad)


def test_a_step_in_parts_is_that_of_the_whole_batch(load):
    """Of a run without dropout, whose images have unlike numbers of boxes."""
    own = TINY | {"OPTIM__NAME": "momentum", "OPTIM__BASE_LR": 0.01, "MODEL__ARGS__dropout": 0.0}
    own["TRAIN__BATCH_SIZE"], found = 8, []
    for parts in (1, 2):
        session, *_ = build_all(load("debug/detection_debug", **own, TRAIN__ACCUMULATE=parts), Runtime(device="cpu"))
        session.runtime.start_epoch(0)
        session.trainer.student.train()
        batch = session.task.batch(next(iter(session.train_loader)), START)
        losses, _ = loop.train_step(session, batch, START)
        found.append((torch.cat([p.detach().flatten() for p in session.trainer.student.parameters()]), losses))
    (whole, losses), (parted, others) = found
    torch.testing.assert_close(others, {name: value.detach() for name, value in losses.items()})
    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-6)


def test_options_reach_the_task(load):
    own = {"CLASS_WEIGHT": 3, "L1_WEIGHT": 4, "GIOU_WEIGHT": 7, "AUX_WEIGHT": 0.3, "MULTI_SCALE": False, "CROP": False}
    own |= {"ASPECT_GROUPS": 3, "IOU_WEIGHT": 2, "TOKEN_WEIGHT": 1.5}
    own = {f"DETECTION__{key}": value for key, value in own.items()}
    task = build_task(load("debug/detection_debug", AUG__FLIP=0.2, **own), K)
    assert (task.weights, task.auxiliary, task.aspect_groups, task.tokens) == ((3, 4, 7, 2), 0.3, 3, 1.5)
    pipeline = task.pipeline(normalization=None)
    assert (pipeline.image_size, pipeline.flip, pipeline.multi_scale, pipeline.crop) == (64, 0.2, False, False)


def test_some_images_are_trained_on(load):
    """The first ones that are not held out, which are those that a run on all images holds out."""
    own = {"DATA__VAL_FRACTION": 0.25, "TRAIN__BATCH_SIZE": 4}
    whole, few = (build_data(load("debug/detection_debug", **own, DATA__IMAGES=n)) for n in (0, 9))
    assert whole.images == 96 and few.images == len(few.train.dataset) == 9 and len(few.train) == 2
    assert few.train.dataset.dataset.indices == whole.train.dataset.dataset.indices[:9]
    assert few.val.dataset.dataset.indices == whole.val.dataset.dataset.indices
    assert len(few.test.dataset) == len(whole.test.dataset)
    with pytest.raises(ValueError, match="^DATA.IMAGES is 97, there are 96 images to train on"):
        build_data(load("debug/detection_debug", **own, DATA__IMAGES=97))


def emptied(which, images):
    """An edit of `write_coco`: these images of a split, all if none is named, have no objects but one of a crowd."""

    def edit(split, content):
        if split == which:
            gone = set(images) or {row["id"] for row in content["images"]}
            content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in gone]
            content["annotations"].append(annotation(10_000, 5, IDS[0], [0, 0, 9, 9], iscrowd=1))

    return edit


@pytest.mark.parametrize(
    ("split", "images", "options", "text"),
    [
        ("train", [], {}, "none of the 10 training images of DATA.ROOT ROOT has an object that is no crowd"),
        ("train", [5, 15, 25, 35], {"DATA__IMAGES": 3}, "none of the 3 training images of DATA.ROOT ROOT has"),
        ("train", [45, 65], {"DATA__VAL_FRACTION": 0.2}, "none of the 2 held-out images of DATA.ROOT ROOT has"),
        ("val", [], {}, "none of the 4 test images of DATA.ROOT ROOT has an object that is no crowd"),
    ],
)
def test_a_split_without_objects_is_told_at_the_start(load, tmp_path, split, images, options, text):
    write_coco(tmp_path, train=10, val=4, edit=emptied(split, images))
    own = {"DATA__NAME": "coco", "DATA__ROOT": tmp_path, "TRAIN__BATCH_SIZE": 2} | options
    with pytest.raises(ValueError) as error:
        build_data(load("debug/detection_debug", **own))
    assert str(error.value).replace(str(tmp_path), "ROOT").startswith(text)
    scored = {"train": "held-out" if "DATA__VAL_FRACTION" in options else "train", "val": "test"}[split]
    with pytest.raises(ValueError, match=f"^{text[:20]}"):
        build_data(load("debug/detection_debug", **own, TEST__SPLIT=scored), train=False)
    tool = ["tools/check_data.py", "--cfg=configs/debug/detection_debug.yaml", *words(**own)]
    code, _, errors = called(*tool)
    assert (code, errors) == (1, f"check_data.py: {error.value}\n")


def test_nothing_to_learn_from_is_refused(load):
    own = {"DETECTION__CLASS_WEIGHT": 0, "DETECTION__L1_WEIGHT": 0, "DETECTION__GIOU_WEIGHT": 0}
    with pytest.raises(ValueError, match="DETECTION.CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT are 0"):
        build_task(load("debug/detection_debug", **own), K)


@pytest.mark.parametrize("mode", ["train", "check", "time"])
def test_graphs_are_refused_before_data_is_read(load, mode):
    """They cannot hold what the CPU is asked for; whatever the device will turn out to be."""
    own = {"TRAIN__COMPILE": "graphs", "DEVICE": "auto", "DATA__NAME": "coco", "DATA__ROOT": "nowhere"}
    with pytest.raises(config.ConfigError, match="^TRAIN.COMPILE is graphs, which cannot hold the losses of TASK.NAME"):
        runner.run(mode, load("debug/detection_debug", **TINY, **own))


CLASSIFIER = "cls of TASK.NAME classification, TASK.NAME detection needs classes, boxes"
DETECTOR = "classes, boxes of TASK.NAME detection, TASK.NAME classification needs cls"


@pytest.mark.parametrize("mode", ["train", "test", "info"])
def test_a_model_of_another_task_is_refused(load, mode):
    for path, name, text in (
        ("debug/detection_debug", "resnet8", CLASSIFIER),
        ("debug/base_debug", "vidt_swin_micro", DETECTOR),
    ):
        cfg = load(path, MODEL__NAME=name, MODEL__ARGS="null", TEST__WEIGHTS="x.pt")
        with pytest.raises(config.ConfigError, match=f"^MODEL.NAME {name} has the heads {text}$"):
            runner.run(mode, cfg)


@pytest.mark.parametrize("mode", ["train", "check", "info", "time"])
def test_a_teacher_of_another_task_is_refused(load, mode):
    """Before anything is read, whether or not its weights are there."""
    for path, name, text in (
        ("debug/detection_debug", "resnet8", CLASSIFIER),
        ("debug/detection_debug", "resnet10t", CLASSIFIER),
        ("debug/kd_debug", "vidt_swin_micro", DETECTOR),
    ):
        own = {"DISTILLATION__TEACHERS": f"[{name}]", "DISTILLATION__TEACHER_WEIGHTS": "[runs/x.pt]"}
        cfg = load(path, TRAINER="kd" if path.endswith("kd_debug") else "token_matching", **own)
        with pytest.raises(config.ConfigError, match=f"^DISTILLATION.TEACHERS: {name} has the heads {text}$"):
            runner.run(mode, cfg)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_step_is_one_graph(task, precision):
    """The matching is one operation of it, whatever the number of boxes; the losses are an eager step's, to the bit."""
    torch._dynamo.reset()
    graphs, layer = [], torch.nn.Linear(4, L * (K + 4))

    def step(queries, batch):
        logits, boxes = layer(queries).unflatten(2, (L, -1)).transpose(1, 2).split([K, 4], dim=3)
        return task.losses(Output({"classes": logits, "boxes": boxes.sigmoid()}, {}), batch, World())

    compiled = torch.compile(step, backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True)
    queries = torch.randn(B, Q, 4)
    for counts in ([2, 0, 1, 3], [0, 0, 0, 0], [1, 7, 1, 1], [3, 3, 2, 1]):
        loaded = Loaded(None, targets_of(counts), None)
        batch = task.batch(loaded, None)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            found, expected = compiled(queries, batch), step(queries, batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        sum(found.values()).backward()
    torch._dynamo.reset()
    assert len(graphs) == 1


# --------------------------------------------------------------------------------------------------------------- label
def test_a_label_that_is_none_names_its_image(task):
    good = {"boxes": torch.rand(2, 4), "labels": torch.tensor([0, 2])}
    target = good | {"image_id": 42, "truth": good}
    assert task.check(7, target) is target
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert task.check(7, none | {"image_id": 42, "truth": none})
    bad = [
        (good | {"labels": torch.tensor([0, 3])}, "has the label 3, its classes are 0 to 2"),
        (good | {"labels": torch.tensor([-1, 0])}, "has the label -1, its classes are 0 to 2"),
        (good | {"labels": torch.tensor([0])}, r"has boxes \(2, 4\) for 1 labels"),
        (good | {"boxes": torch.full((2, 4), math.nan)}, "has a box that is not finite"),
    ]
    for part, text in bad:
        for wrong in (target | part, target | {"truth": part}):
            with pytest.raises(ValueError, match=f"^image 7 of the dataset .id 42. {text}$"):
                task.check(7, wrong)


# ---------------------------------------------------------------------------------------------------------- prediction
def test_predictions_are_the_likeliest_pairs_of_the_last_level(task):
    output = output_of()
    with torch.no_grad():
        found = task.predictions(output)["boxes"]
    assert found["scores"].shape == found["labels"].shape == (B, Q * K) and found["boxes"].shape == (B, Q * K, 4)
    logits, boxes = (output.heads[name][:, -1].detach() for name in task.HEADS)
    for image in range(B):
        pairs = [(float(logits[image, q, k].sigmoid()), k, q) for q in range(Q) for k in range(K)]
        pairs.sort(reverse=True)
        for place, (score, label, query) in enumerate(pairs):
            assert float(found["scores"][image, place]) == pytest.approx(score)
            assert int(found["labels"][image, place]) == label
            x, y, width, height = boxes[image, query].tolist()
            expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert found["boxes"][image, place].tolist() == pytest.approx(expected)


def test_at_most_100_of_an_image(task):
    heads = {"classes": torch.randn(1, 1, 50, K), "boxes": torch.rand(1, 1, 50, 4)}
    found = task.predictions(Output(heads, {}))["boxes"]
    assert found["scores"].shape == (1, 100)
    assert torch.equal(found["scores"], heads["classes"].flatten().sort(descending=True)[0][None, :100].sigmoid())


def test_truth_that_is_said_is_found(task):
    """Queries that say each box surely, in a view of another size than the original: AP 100, in its own pixels."""
    boxes = torch.tensor([[10.0, 20, 60, 100], [30, 5, 200, 90]])
    truth = {"boxes": boxes, "labels": torch.tensor([2, 0]), "area": torch.tensor([4e3, 1.4e4])}
    truth |= {"crowd": torch.zeros(2, dtype=torch.bool)}
    target = {"image_id": 9, "size": torch.tensor([120, 240]), "truth": truth}
    shares = boxes / torch.tensor([240, 120, 240, 120])
    own = torch.cat([(shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]], dim=1)
    logits = torch.full((1, 1, 2, K), -9.0)
    logits[0, 0, 0, 2] = logits[0, 0, 1, 0] = 9.0
    prediction = task.predictions(Output({"classes": logits, "boxes": own[None, None]}, {}))["boxes"]
    evaluator = task.evaluator()
    evaluator.update(prediction, [target])
    assert evaluator.compute(World())["ap"] == pytest.approx(100)
    keeper = task.keeper(DatasetInfo("x", ("a", "b", "c"), Normalization((0,) * 3, (1,) * 3), ids=(3, 7, 90)))
    output = Output({"classes": logits, "boxes": own[None, None]}, {})
    keeper.update(output, {}, Loaded(None, [target], torch.tensor([0])))
    kept = keeper.packed(World(), None)
    first, second, *_ = sorted(json.loads(kept.content), key=lambda row: -row["score"])
    assert {first["category_id"], second["category_id"]} == {3, 90} and first["image_id"] == 9
    box = first["bbox"] if first["category_id"] == 90 else second["bbox"]
    assert box == pytest.approx([10, 20, 50, 80], abs=1e-4)
    output.heads["boxes"][0, 0, 1, 2] = math.nan
    keeper.update(output, {}, Loaded(None, [target | {"image_id": 4}], torch.tensor([1])))
    with pytest.raises(ValueError, match="^what is found in image 4 is not finite, and in 0 more$"):
        keeper.packed(World(), None)


def test_two_outputs_say_the_same_by_the_surest_query(task):
    output, other = output_of(), output_of()
    assert task.agreement(output, other).tolist() == [True] * B
    with torch.no_grad():
        best = other.heads["classes"][:, -1].amax(dim=2).argmax(dim=1)
        output.heads["boxes"][0, -1, best[0], 0] += 0.4
        output.heads["classes"][1, -1, best[1]] = output.heads["classes"][1, -1, best[1]].roll(1)
        output.heads["classes"][2, :-1] = 5.0
    assert task.agreement(output, other).tolist() == [False, False, True, True]


def test_a_teacher_has_an_ap_of_5_unless_another_is_asked_for(task):
    assert (task.floor(-1), task.floor(0), task.floor(30.0)) == (5.0, 0, 30.0)
    assert task.floor_error(5.0, 100) == pytest.approx(math.sqrt(4.75))


# ----------------------------------------------------------------------------------------------------------------- run
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    own = TINY | {"OPTIM__MAX_EPOCH": 1, "OUT_DIR": folder}
    runner.run("train", config.load("configs/debug/detection_debug.yaml", words(**own)))
    return folder


def test_an_epoch_is_recorded(trained):
    found = curves(trained)
    assert {f"train/{name}" for name in ("class", "l1", "giou", "aux", "loss")} <= found.keys()
    figures = {"ap", "ap50", "ap75", "ap_s", "ap_m", "ar1", "ar10", "ar100", "ar_s", "ar_m"}
    assert {tag.removeprefix("ema/") for tag in found if tag.startswith("ema/")} == figures, "no object is large"


def test_the_file_of_predictions_has_the_ap_of_the_test(trained, load, tmp_path, caplog):
    """Read as COCO's own tools read it, by one process and by two, whose files are the same."""
    own = TINY | {"TEST__WEIGHTS": trained / "checkpoints" / "last.pt"}
    base = ["--mode", "test", "--cfg", "configs/debug/detection_debug.yaml", *words(**own), "TEST.BATCH_SIZE=5"]
    one = Running(tmp_path / "one", [*base, f"TEST.PREDICTIONS={tmp_path}/one.json"])
    two = two_ranks(tmp_path / "two", [*base, f"TEST.PREDICTIONS={tmp_path}/two.json"])
    texts = finish(one, *two)
    assert "one.json: written, of 32 test images: 960 boxes" in texts[0]
    rows, others = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(rows) == 960 and [row["image_id"] for row in rows] == [row["image_id"] for row in others]
    truth = {"images": [], "annotations": [], "categories": [{"id": label} for label in range(K)]}
    images = build_data(load("debug/detection_debug", **own), train=False).test.dataset.dataset
    for target in (images[index][1] for index in range(len(images))):
        truth["images"].append({"id": target["image_id"]})
        for box, label, area in zip(
            *(target["truth"][key].tolist() for key in ("boxes", "labels", "area")), strict=True
        ):
            sides = [*box[:2], box[2] - box[0], box[3] - box[1]]
            facts = {"image_id": target["image_id"], "bbox": sides, "category_id": label, "area": area, "iscrowd": 0}
            truth["annotations"].append(facts | {"id": len(truth["annotations"]) + 1})
    known = COCO(truth)
    evaluation = COCOeval_faster(known, known.loadRes(rows), "bbox")
    evaluation.run()
    recorded = curves(trained)
    for score, value in zip(("ap", "ap50", "ap75", "ap_s", "ap_m"), evaluation.stats, strict=False):
        assert 100 * value == pytest.approx(recorded[f"test/{score}"][1], abs=1e-6)
    line = f"* boxes AP {100 * evaluation.stats[0]:6.2f}  AP50 {100 * evaluation.stats[1]:6.2f}  AP75"
    assert line in texts[0] and line in texts[1] and "AR M" in texts[0] and "AP L" not in texts[0]


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(load, tmp_path):
    own = TINY | {"OPTIM__SCHEDULE": "constant"}
    for name, epochs in (("cut", 1), ("cut", 2), ("whole", 2)):
        more = {"OPTIM__MAX_EPOCH": epochs, "OUT_DIR": tmp_path / name}
        runner.run("train", load("debug/detection_debug", **own, **more))
    folders = tmp_path / "cut", tmp_path / "whole"
    assert_same_state(*((folder, "last") for folder in folders))
    both = [{tag: curve for tag, curve in curves(folder).items() if tag != "run/epochs"} for folder in folders]
    assert both[0] == both[1]


def test_two_processes_train_what_one_trains(tmp_path):
    """Each pads its own images, and drops out its own units, so none are here; plain SGD, for sums round otherwise."""
    own = TINY | {"OPTIM__NAME": "momentum", "OPTIM__BASE_LR": 0.01, "OPTIM__CLIP_NORM": 1, "OPTIM__MAX_EPOCH": 1}
    own |= {"MODEL__ARGS__dropout": 0.0}
    base = ["--mode", "train", "--cfg", "configs/debug/detection_debug.yaml", *words(**own)]
    running = [Running(tmp_path / "one", [*base, f"OUT_DIR={tmp_path}/first"])]
    running += two_ranks(tmp_path / "two", [*base, f"OUT_DIR={tmp_path}/second"])
    finish(*running)
    states = [load_state(tmp_path / name)["student"] for name in ("first", "second")]
    assert max(float((states[0][key] - states[1][key]).abs().max()) for key in states[0]) < 1e-5
    both = [curves(tmp_path / name) for name in ("first", "second")]
    for name in ("class", "l1", "giou", "aux"):
        assert both[0][f"train/{name}"][1] == pytest.approx(both[1][f"train/{name}"][1], rel=1e-4)


def test_check_and_info(load, tmp_path, caplog):
    cfg = load("debug/detection_debug", **TINY, OUT_DIR=tmp_path)
    runner.run("check", cfg)
    assert caplog.text.count("ok    ") == 8 and "class, l1, giou, aux" in caplog.text
    runner.run("info", cfg)
    assert "neck.queries: 64 channels, 1 x 10" in caplog.text


def test_a_run_of_numbers_that_are_none_is_stopped_by_its_loss(load, tmp_path):
    own = TINY | {"OPTIM__BASE_LR": 1e30, "OPTIM__NAME": "momentum", "OPTIM__CLIP_NORM": 0, "OPTIM__MAX_EPOCH": 1}
    with pytest.raises(FloatingPointError, match="not finite"):
        runner.run("train", load("debug/detection_debug", **own, OUT_DIR=tmp_path))
