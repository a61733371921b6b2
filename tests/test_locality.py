"""Locality guidance: its loss against a plain second computation, its pairs, and its teachers, online and offline."""

import numpy as np
import pytest
import torch
from image_folders import write_images
from methods import DEIT, START, STUDENTS, Method, batch, cached, make, options_of
from records import SMALL, load_state, logged
from torch import nn
from torch.nn.functional import interpolate
from waits import NoReads

from pycls_std import runner
from pycls_std.builders.data import build_data, plain_batches
from pycls_std.core.structures import Output, Progress
from pycls_std.datasets.digits import Digits
from pycls_std.losses.feature import attention, feature_distance, similarity
from pycls_std.models.describe import Description
from pycls_std.teachers.offline import crop_features, offline_order

GENERATOR = torch.Generator().manual_seed(0)


def maps(channels, side, count=3):
    return torch.randn(count, channels, side, side, generator=GENERATOR)


# ------------------------------------------------------------------------------------------------------------ the loss
def test_the_smaller_map_is_enlarged_and_squares_are_averaged():
    small, large = maps(4, 3), maps(4, 6)
    grown = interpolate(small, (6, 6), mode="bilinear", align_corners=False)
    expected = sum(float((a - b) ** 2) for a, b in zip(grown.flatten(), large.flatten(), strict=True)) / large.numel()
    assert float(feature_distance(small, large)) == pytest.approx(expected, rel=1e-5)
    assert float(feature_distance(large, small)) == pytest.approx(expected, rel=1e-5)


def test_maps_that_differ_in_each_direction_get_the_larger_of_each():
    tall, wide = torch.randn(2, 1, 6, 3, generator=GENERATOR), torch.randn(2, 1, 2, 4, generator=GENERATOR)
    sides = [interpolate(m, (6, 4), mode="bilinear") for m in (tall, wide)]
    torch.testing.assert_close(feature_distance(tall, wide), (sides[0] - sides[1]).square().mean())


def test_attention_is_where_a_map_is_large():
    features = maps(5, 4)
    for image, found in zip(features, attention(features), strict=True):
        expected = torch.stack([sum(channel[y, x] ** 2 for channel in image) / 5 for y in range(4) for x in range(4)])
        torch.testing.assert_close(found, expected / expected.square().sum().sqrt())


def test_similarity_is_how_alike_the_images_of_a_batch_are():
    features = maps(5, 4)
    found = similarity(features)
    for i in range(3):
        row = torch.stack([(features[i] * features[j]).sum() for j in range(3)])
        torch.testing.assert_close(found[i], row / row.square().sum().sqrt())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transform", [attention, similarity])
def test_distances_are_those_of_fp32_within_autocast(precision, transform):
    """Sums over so many products would be infinite in fp16."""
    first, second = 30 * maps(192, 14, count=8), 30 * maps(16, 32, count=8)
    expected = feature_distance(first, second, transform)
    with torch.autocast("cpu", precision):
        found = feature_distance(first, second, transform)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("transform", ["linear", "attention", "similarity"])
@pytest.mark.parametrize("weight", [2.5, 0.5])
def test_objective_is_the_sum_over_the_pairs(load, transform, weight):
    """Blocks 0, 2 and 3 of a DeiT, without its class token, against the stages of a ResNet, by timm's own taps."""
    options = {"LOCALITY__WEIGHT": weight, "LOCALITY__TRANSFORM": transform}
    method, data = make(load, "locality", "deit_tiny_patch16_224", 1, **options), batch()
    losses = method.losses(data)
    with torch.no_grad():
        _, own = method.student.backbone.forward_intermediates(data.images, output_fmt="NCHW")
        _, other = method.teachers[0].backbone.forward_intermediates(data.images)
    term = method.trainer.terms["locality"]
    expected = 0
    for number, (student, teacher) in enumerate(zip((own[0], own[2], own[3]), other, strict=True)):
        if transform == "linear":
            projector = term.projectors[number]
            student = torch.einsum("oc,bchw->bohw", projector.weight[:, :, 0, 0], student)
            student = student + projector.bias[None, :, None, None]
        expected = expected + feature_distance(
            student,
            teacher,
            {"attention": attention, "similarity": similarity}.get(transform, lambda features: features),
        )
    torch.testing.assert_close(losses["locality"], weight * expected)
    assert losses.keys() == {"ce", "locality"}
    assert bool(len(term.projectors)) == (transform == "linear")


@pytest.mark.defect(18)
@pytest.mark.parametrize("standard", ["false", "true"])
def test_with_kd_both_terms_are_there(load, standard):
    """The published forks drop one of the two."""
    options = {"KD__WEIGHT": 1.0, "TASK__WEIGHT": 0.5, "DISTILLATION__TYPE": "soft"}
    options |= {"DISTILLATION__LOGIT_STANDARD": standard, "DISTILLATION__TEMPERATURE": 2.0}
    options |= {"LOCALITY__STUDENT_TAPS": "[0, last]", "LOCALITY__TEACHER_TAPS": "[0, last]"}
    data = batch()
    both = make(load, "locality", DEIT, 1, **options)
    losses = both.losses(data)
    assert list(losses) == ["ce", "kd", "locality"]
    assert both.student.heads == ("cls", "dist")
    without = {key: value for key, value in options.items() if not key.startswith("LOCALITY")}
    alone = make(load, "kd", DEIT, 1, **without).losses(data)
    for term in ("ce", "kd"):
        torch.testing.assert_close(losses[term], alone[term])
    other_way = make(load, "kd", DEIT, 1, **options, LOCALITY__WEIGHT=2.5).losses(data)
    torch.testing.assert_close(other_way, losses)


def test_with_std(load):
    """Each teacher is asked for what some term reads of it, and no more."""
    method = make(load, "std", teachers=2, LOCALITY__WEIGHT=2.5, LOCALITY__TEACHER=1)
    assert list(method.losses(batch())) == ["ce", "locality", "std"]
    assert [request.head for request in method.live.requests] == [True, True]
    assert [request.taps for request in method.live.requests] == [(), ("layer1", "layer2", "layer3")]
    alone = make(load, "locality", teachers=1)
    assert alone.live.requests[0].head is False


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_student_is_guided(load, name, precision):
    taps = {"LOCALITY__STUDENT_TAPS": "[0, last]", "LOCALITY__TEACHER_TAPS": "[0, last]"} if name == DEIT else {}
    method = make(load, "locality", name, 1, **taps)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = method.losses(batch())
    sum(losses.values()).backward()
    objective = method.trainer.objective
    assert all(value.isfinite() for value in losses.values())
    assert [key for key, p in objective.named_parameters() if p.grad is None] == []
    assert all(p.grad.any() for p in method.trainer.terms["locality"].projectors.parameters())


@pytest.mark.parametrize("teacher", ["deit_tiny_patch16_224", "resnet18", "mixer_s4"])
def test_any_teacher_with_taps_guides(load, teacher):
    method = Method(load("debug/base_debug", **options_of("locality", DISTILLATION__TEACHERS=f"[{teacher}]")))
    assert method.losses(batch())["locality"].isfinite()


@pytest.mark.parametrize(
    ("name", "size", "blocks", "expected"),
    [  # (C, H, W) of the guided maps of the publication at 224 px, and the weights of its projectors to 16, 32, 64
        ("deit_tiny_patch16_224", 224, ["0", "1/2", "last"], [(192, 14, 14)] * 3),
        ("convit_tiny", 224, ["0", "1/2", "last"], [(192, 14, 14)] * 3),
        ("pit_ti_224", 224, ["0", "1/2", "last"], [(64, 27, 27), (128, 14, 14), (256, 7, 7)]),
        ("pvt_v2_b0", 224, ["0", "1", "last"], [(32, 56, 56), (64, 28, 28), (256, 7, 7)]),
    ],
)
def test_guided_maps_are_those_of_the_publication(name, size, blocks, expected):
    from pycls_std.models.taps import choose_taps

    taps = Description(name, num_classes=100, image_size=size).taps
    assert [tuple(taps[tap]) for tap in choose_taps("LOCALITY.STUDENT_TAPS", blocks, list(taps))] == expected


def test_projectors_train_and_are_not_deployed(load):
    """192 channels to 16, 32 and 64 with bias: 21,616 weights, as the publication's wrapper has for DeiT-Ti."""
    trainer = make(load, "locality", "deit_tiny_patch16_224", 1, MODEL__ARGS__embed_dim=192).trainer
    student = sum(p.numel() for p in trainer.student.parameters())
    assert trainer.deployed_parameters() == student
    assert trainer.trained_parameters() - student == 192 * (16 + 32 + 64) + 16 + 32 + 64 == 21_616


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"teachers": 0}, "LOCALITY.TEACHER needs teacher 0, DISTILLATION.TEACHERS has 0 entries"),
        ({"teachers": 1, "LOCALITY__TEACHER": 1}, "needs teacher 1, DISTILLATION.TEACHERS has 1 entry"),
        ({"teachers": 2}, "teacher 1 resnet8 is read by no term"),
        ({"LOCALITY__STUDENT_TAPS": "[0, 1]"}, "LOCALITY.STUDENT_TAPS has 2 entries, TEACHER_TAPS has 3"),
        ({"LOCALITY__TEACHER_TAPS": "[layer1, layer2, layer4]"}, "LOCALITY.TEACHER_TAPS has 'layer4', expected last"),
        (
            {"LOCALITY__TRANSFORM": "cubic"},
            "LOCALITY.TRANSFORM is 'cubic', expected one of attention, linear, similarity|",
        ),
    ],
)
def test_options_that_contradict_each_other(load, overrides, text):
    with pytest.raises(ValueError, match=text):
        make(load, "locality", **({"teachers": 1} | overrides))


# ------------------------------------------------------------------------------------------------------------- offline
def test_cropped_features_are_the_crop_resized():
    """On whole places of the map, against a plain crop and torch's own resizing; mirrored, its mirror image."""
    features = maps(3, 8, count=4)
    corners = [(2, 1, 4, 6), (0, 0, 8, 8), (5, 5, 2, 2), (0, 3, 8, 4)]
    crop = torch.tensor([[*(value / 8 for value in corner), float(i % 2)] for i, corner in enumerate(corners)])
    found = crop_features(features, crop)
    for image, (top, left, height, width), mirrored, got in zip(features, corners, crop[:, 4], found, strict=True):
        cut = image[:, top : top + height, left : left + width].unsqueeze(0)
        expected = interpolate(cut, (8, 8), mode="bilinear", align_corners=False)[0]
        expected = expected.flip(2) if mirrored else expected
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[1].flip(2), features[1], atol=1e-5)


def test_beyond_the_image_features_are_zero():
    """A view that is shifted by two of eight pixels shows two rows and columns of padding."""
    features = maps(3, 8, count=1) + 5
    found = crop_features(features, torch.tensor([[-2 / 8, 2 / 8, 1.0, 1.0, 0.0]]))[0]
    assert not found[:, :2].any() and not found[:, :, 6:].any()
    torch.testing.assert_close(found[:, 2:, :6], features[0, :, :6, 2:], rtol=1e-4, atol=1e-4)


OFFLINE = {"DISTILLATION__OFFLINE": "true", "AUG__MIXUP": 0, "AUG__CUTMIX": 0}
PLAIN = {"AUG__CROP": "none", "AUG__RAND_AUGMENT": "", "AUG__ERASING": 0, "AUG__REPEATS": 1, "AUG__MIXUP": 0}


@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_of_plain_views_offline_says_what_online_does(method, tmp_path, loader):
    """Without augmentation a view is its image: features and logits, and so a run with both terms, are the same."""
    words = SMALL | PLAIN | {"AUG__CUTMIX": 0, "OPTIM__MAX_EPOCH": 1, "KD__WEIGHT": 0.5, "DISTILLATION__TYPE": "soft"}
    words |= {"DATA__LOADER": loader, "DISTILLATION__TEACHER_FOLD": "false"}
    runner.train(method("locality", OUT_DIR=tmp_path / "online", **words))
    offline = {"DISTILLATION__OFFLINE": "true", "DISTILLATION__CACHE": tmp_path / "kept"}
    runner.train(method("locality", OUT_DIR=tmp_path / "offline", **words, **offline))
    states = [load_state(tmp_path / name)["student"] for name in ("online", "offline")]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4, msg=key)
    ((first,), (second,)) = (logged(tmp_path / name) for name in ("online", "offline"))
    for term in ("ce", "kd", "locality"):
        assert first[f"train/{term}"] == pytest.approx(second[f"train/{term}"], rel=1e-4)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_what_is_kept_is_cut_as_the_views_are(method, tmp_path, crop):
    """Of the images of a batch, by their positions: the teacher's features of the whole image, cropped as recorded."""
    words = OFFLINE | {"DISTILLATION__CACHE": tmp_path / "kept", "AUG__CROP": crop, "AUG__FLIP": 0.5}
    cfg = method("locality", **words)
    session, data, offline = cached(cfg)
    teacher, request = session.trainer.teachers[0], session.teacher_outputs.requests[0]
    loaded = next(iter(session.train_loader))
    (output,) = offline(session.task.batch(loaded, START), START)
    pixels = session.train_loader.dataset.pixels[loaded.index][..., :3].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in data.normalization)
    whole = teacher((pixels - mean) / std, request)
    assert isinstance(output, Output) and list(output.features) == ["layer1", "layer2", "layer3"]
    for tap, features in output.features.items():
        torch.testing.assert_close(features, crop_features(whole.features[tap], loaded.crop), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_a_step_with_offline_teachers_waits_for_nothing(method, tmp_path, monkeypatch, loader):
    """The positions of its images come from the host, and what was kept goes to the device from pinned memory."""
    words = OFFLINE | {"DISTILLATION__CACHE": tmp_path / "kept", "DATA__LOADER": loader, "AUG__REPEATS": 1}
    cfg = method("locality", **words)
    session, _, offline = cached(cfg)
    loaded = next(iter(session.train_loader))
    assert loaded.places.tolist() == loaded.index.tolist()
    (expected,) = offline(session.task.batch(loaded, START), START)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    on_device = loaded._replace(images=loaded.images.to("meta"), index=None, crop=loaded.crop.to("meta"))
    with NoReads():
        (output,) = offline(session.task.batch(on_device._replace(targets=loaded.targets.to("meta")), START), START)
    assert len(pinned) == len(offline.specs[0].shapes) == 3
    assert {tap: f.shape for tap, f in output.features.items()} == {t: f.shape for t, f in expected.features.items()}


def test_positions_on_the_host_do_not_break_a_compiled_step(method, tmp_path):
    """Nor make it compile anew, whose numbers differ in every batch."""
    cfg = method("locality", **OFFLINE, DISTILLATION__CACHE=tmp_path / "kept")
    session, _, offline = cached(cfg)
    graphs = []
    losses = torch.compile(session.trainer.losses, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for number, loaded in zip(range(3), session.train_loader, strict=False):
        progress = Progress(0, number, 11, 3)
        batch = session.task.batch(loaded, progress)
        losses(batch, offline(batch, progress), progress)
    assert len(graphs) == 1


def test_offline_features_are_computed_once_and_checked(method, tmp_path, monkeypatch):
    from pycls_std.teachers.teacher import Teacher

    asked, forward = [], Teacher.forward
    monkeypatch.setattr(
        Teacher, "forward", lambda self, images, *r: asked.append(len(images)) or forward(self, images, *r)
    )
    words = OFFLINE | {"DISTILLATION__CACHE": tmp_path / "kept", "OPTIM__MAX_EPOCH": 1}
    calls = []
    for seed in (0, 1):
        asked.clear()
        runner.train(method("locality", OUT_DIR=tmp_path / f"run{seed}", SEED=seed, **words))
        calls.append(sum(size <= 200 for size in asked))  # the test split comes in batches of 360
    assert calls == [8, 0], "1,437 images in batches of 200, once"
    (path,) = (tmp_path / "kept").rglob("*.npy")
    assert np.load(path).shape == (1437,)
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images.npy is damaged, delete it: it is not what was written"):
        runner.train(method("locality", OUT_DIR=tmp_path / "run2", **words))


def test_plain_images_come_mixed(method, tmp_path):
    """In the order of the dataset, one batch would be of one class, whose statistics TEACHER_BN batch takes."""
    order = offline_order(1437)
    assert sorted(order) == list(range(1437)) and order == offline_order(1437)
    assert len({index // 144 for index in order[:200]}) == 10
    cfg = method("locality", **OFFLINE, DISTILLATION__CACHE=tmp_path)
    data = build_data(cfg)
    batches = list(plain_batches(cfg, data, 8, order))
    assert torch.cat([loaded.index for loaded in batches]).tolist() == order
    assert [len(loaded.index) for loaded in batches] == [200] * 7 + [37]


def test_other_files_are_kept_elsewhere(load, teacher, tmp_path):
    """Where images come from workers, their files' names and sizes tell one dataset from another."""

    def folder(root):
        words = {"DATA__NAME": "image_folder", "DATA__ROOT": root, "DATA__LOADER": "workers"}
        words |= {"MODEL__NUM_CLASSES": 0, "DATA__IMAGE_SIZE": 8, "TRAIN__BATCH_SIZE": 2, "AUG__REPEATS": 1}
        words |= {"DISTILLATION__TEACHER_MIN_ACC": 0, "DISTILLATION__CACHE": tmp_path / "kept"} | OFFLINE
        words |= {"DISTILLATION__TEACHERS": "[resnet8]", "DISTILLATION__TEACHER_WEIGHTS": "[none]"}
        cfg = load("debug/locality_debug", **words)
        return cached(cfg, fetch=False)[2].specs[0].folder

    first, again = (tmp_path / name / "own" for name in "xy")
    for root in (first, again):
        write_images(root, train=1, val=1, classes="ab", size=(9, 9))
    torch.manual_seed(0)
    kept = folder(first)
    assert folder(first) == kept
    assert folder(again) == kept
    (again / "train" / "a" / "0.png").rename(again / "train" / "a" / "1.png")
    assert folder(again) != kept


def test_whole_images_are_kept_apart_by_how_they_are_made_square(method, tmp_path):
    """A resized crop is cut from an image that is squashed, others from its square; their files are the same."""

    def folder(**words):
        own = OFFLINE | {"DATA__LOADER": "workers", "DISTILLATION__CACHE": tmp_path / "kept", "AUG__REPEATS": 1}
        return cached(method("locality", **own | words))[2].specs[0].folder

    padded, resized = folder(AUG__CROP="pad"), folder(AUG__CROP="resized")
    assert padded != resized
    assert folder(AUG__CROP="none") == padded and folder(AUG__CROP="resized", DATA__FIT="squash") == resized


def test_other_pixels_are_kept_elsewhere(method, tmp_path, monkeypatch):
    """A dataset without files is known by its pixels: the names of its classes were taken for all of it."""
    cfg = method("locality", **OFFLINE, DATA__LOADER="workers", DISTILLATION__CACHE=tmp_path / "kept")

    def folder():
        return cached(cfg)[2].specs[0].folder

    kept = folder()
    assert folder() == kept
    make = Digits.__init__

    def digits(self, split):
        make(self, split)
        self.images[7, 0, 0] ^= 1

    monkeypatch.setattr(Digits, "__init__", digits)
    assert folder() != kept


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"DISTILLATION__OFFLINE": "true"}, "DISTILLATION.OFFLINE is True, expected False without DISTILLATION.CACHE"),
        (
            {"DISTILLATION__OFFLINE": "true", "DISTILLATION__CACHE": "x"},
            "DISTILLATION.OFFLINE is True, expected False with AUG.MIXUP and AUG.CUTMIX",
        ),
        ({"DISTILLATION__CACHE_PRECISION": "fp16"}, "CACHE_PRECISION is 'fp16', expected fp32, for nothing is kept"),
    ],
)
def test_what_cannot_be_computed_beforehand(method, words, text):
    with pytest.raises(ValueError, match=text):
        method("locality", **words)


def test_the_largest_logits_are_of_no_use_where_none_are_read(method, tmp_path):
    words = {"DISTILLATION__CACHE": tmp_path / "kept", "DISTILLATION__CACHE_TOP": 3}
    with pytest.raises(ValueError, match="DISTILLATION.CACHE_TOP is 3, expected 0, for no term reads logits"):
        runner.train(method("locality", **words))


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.defect(21)
def test_projectors_are_saved_for_a_resume_and_not_needed_to_test(method, tmp_path, caplog):
    runner.train(method("locality", OPTIM__MAX_EPOCH=1, **SMALL))
    state = load_state(tmp_path / "run")
    assert {key.split(".")[0] for key in state["trainer"]["terms"]} == {"locality"}
    assert not any("projector" in key for key in (*state["student"], *load_state(tmp_path / "run", "best")["student"]))
    words = {"TEST__WEIGHTS": tmp_path / "run" / "checkpoints" / "best.pt"}
    runner.run("test", method("locality", **words, DISTILLATION__TEACHER_WEIGHTS="[gone.pt]"))
    assert any(line.startswith("* cls") for line in caplog.messages)


def test_a_teacher_of_small_images_guides_a_student_of_large_ones(load, tmp_path, teacher, caplog):
    """As published: the teacher at its own size under a student of several times that."""
    words = options_of("locality", size=24, DISTILLATION__TEACHER_WEIGHTS=f"[{teacher}]")
    cfg = load("debug/base_debug", **words | SMALL, OUT_DIR=tmp_path / "run", OPTIM__MAX_EPOCH=1)
    runner.train(cfg)
    assert "8 px" in caplog.text
    assert not any(isinstance(module, nn.BatchNorm2d) for module in load_state(tmp_path / "run")["student"])
