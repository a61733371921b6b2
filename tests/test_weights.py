"""Where given weights come from: a run of this runner, a plain file, a URL, the published ones, timm."""

import email.message
import hashlib
import importlib
import logging
import pkgutil
import socket
import ssl
import threading
import urllib.error
import urllib.request
import urllib.response

import pytest
import safetensors.torch
import timm
import torch

import pycls_std
from pycls_std.builders import downloads, models, weights
from pycls_std.builders.models import find_teacher_weights, refuse_other_arguments
from pycls_std.builders.teachers import build_teachers
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.engine import checkpoint
from pycls_std.models.create import create_backbone
from pycls_std.models.resnet_cifar import PUBLISHED, PUBLISHED_URL
from pycls_std.teachers.teacher import Request

HALF = NORMALIZATIONS["half"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, empty."""
    monkeypatch.setattr(downloads, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def plain_file(folder, name="resnet8", classes=10, stem="weights", image_size=32, **args):
    """Save a plain dictionary of weights under a name that ends with the start of its SHA-256."""
    state = create_backbone(name, num_classes=classes, image_size=image_size, **args).state_dict()
    torch.save(state, folder / "new.pt")
    digest = hashlib.sha256((folder / "new.pt").read_bytes()).hexdigest()
    path = folder / f"{stem}-{digest[:8]}.pt"
    (folder / "new.pt").rename(path)
    return path, digest, state


def test_checkpoint_of_this_runner(teacher):
    found = weights.find_weights("resnet8", str(teacher))
    assert (found.num_classes, found.image_size, found.source) == (10, 8, str(teacher))
    assert found.normalization == NORMALIZATIONS["digits"]
    backbone = create_backbone("resnet8", num_classes=10, image_size=8)
    checkpoint.load_weights(backbone, found.state, "x")
    with pytest.raises(ValueError, match="best.pt holds a resnet8 and no resnet14"):
        weights.find_weights("resnet14", str(teacher))


def test_plain_file(tmp_path):
    path, _, state = plain_file(tmp_path)
    found = weights.find_weights("resnet8", str(path))
    assert found.num_classes is None
    assert torch.equal(found.state["fc.weight"], state["fc.weight"])
    torch.save({"state_dict": state}, tmp_path / "wrapped.pt")
    assert weights.find_weights("resnet8", str(tmp_path / "wrapped.pt")).state.keys() == state.keys()
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt is neither a checkpoint of this runner nor a plain dictionary"):
        weights.find_weights("resnet8", str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match="there is no checkpoint gone.pt"):
        weights.find_weights("resnet8", "gone.pt")


class Server(urllib.request.HTTPSHandler):
    """Answers every https request with a file, or by sending on; a server that has no certificate to show."""

    def __init__(self, path=None, location="", length=0):
        super().__init__()
        self.path, self.location, self.length = path, location, length
        self.asked = []

    def https_open(self, request):
        self.asked.append(request.full_url)
        headers = email.message.Message()
        if self.location:
            headers["Location"] = self.location
            response = urllib.response.addinfourl(self.path.open("rb"), headers, request.full_url, 302)
            response.msg = "Found"
            return response
        if self.length:
            headers["Content-Length"] = str(self.length)
        response = urllib.response.addinfourl(self.path.open("rb"), headers, request.full_url, 200)
        response.msg = "OK"
        return response


def serve(monkeypatch, path, **answer):
    """Let a server answer every request; returns the list of URLs that it was asked for."""
    server = Server(path, **answer)
    monkeypatch.setattr(downloads, "OPENER", urllib.request.build_opener(downloads._OnlyHttps, server))
    return server.asked


@pytest.mark.fault(31)
def test_url_is_downloaded_once_and_checked(hub, tmp_path, monkeypatch):
    path, digest, state = plain_file(tmp_path)
    asked = serve(monkeypatch, path)
    for url in (f"https://example.org/{path.name}", f"https://example.org/plain.pt#sha256={digest}"):
        for _ in range(2):
            found = weights.find_weights("resnet8", url)
            assert torch.equal(found.state["conv1.weight"], state["conv1.weight"])
    assert asked == [f"https://example.org/{path.name}", "https://example.org/plain.pt"]


@pytest.mark.fault(31)
def test_url_with_another_hash_is_never_accepted(hub, tmp_path, monkeypatch):
    path, digest, _ = plain_file(tmp_path)
    serve(monkeypatch, path)
    wrong = "0" * 64
    with pytest.raises(ValueError, match="could not be downloaded .*it has the SHA-256 .*, expected 000"):
        weights.find_weights("resnet8", f"https://example.org/plain.pt#sha256={wrong}")
    assert list(hub.iterdir()) == []
    (hub / f"{digest[:8]}-plain.pt").write_bytes(path.read_bytes()[:-1])  # half a file put there by hand
    with pytest.raises(ValueError, match="plain.pt has the SHA-256 .*delete it"):
        weights.find_weights("resnet8", f"https://example.org/plain.pt#sha256={digest}")


def test_the_digits_of_a_name_are_counted_in_the_log(hub, tmp_path, monkeypatch, caplog):
    path, digest, _ = plain_file(tmp_path)
    serve(monkeypatch, path)
    weights.find_weights("resnet8", f"https://example.org/{path.name}")
    assert f"{path.name}: checked by the 8 digits of its SHA-256 that its name has" in caplog.text
    caplog.clear()
    weights.find_weights("resnet8", f"https://example.org/plain.pt#sha256={digest}")
    assert not caplog.text


@pytest.mark.fault(31)
@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_server_that_sends_on_to_what_is_not_encrypted(hub, tmp_path, monkeypatch, scheme):
    path, digest, _ = plain_file(tmp_path)
    asked = serve(monkeypatch, path, location=f"{scheme}://example.org/other.pt")
    with pytest.raises(ValueError, match="https://example.org/plain.pt could not be downloaded .*leads on to"):
        weights.find_weights("resnet8", f"https://example.org/plain.pt#sha256={digest}")
    assert asked == ["https://example.org/plain.pt"]
    assert list(hub.iterdir()) == []


@pytest.mark.fault(31)
def test_half_of_a_download_is_not_accepted(hub, tmp_path, monkeypatch):
    path, digest, _ = plain_file(tmp_path)
    serve(monkeypatch, path, length=path.stat().st_size + 1)
    with pytest.raises(ValueError, match="could not be downloaded .*bytes came"):
        weights.find_weights("resnet8", f"https://example.org/plain.pt#sha256={digest}")
    assert list(hub.iterdir()) == []


@pytest.mark.fault(31)
def test_a_server_that_says_nothing_is_given_up(hub, monkeypatch):
    """One that takes the connection, and does not even greet."""
    monkeypatch.setattr(downloads, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/plain.pt"
        found = []

        def ask():
            with pytest.raises(ValueError) as error:
                weights.find_weights("resnet8", f"{url}#sha256={'0' * 64}")
            found.append(str(error.value))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(30)
    assert found and found[0].startswith(f"{url} could not be downloaded (") and "timed out" in found[0]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://example.org/plain.pt", "needs its SHA-256, as #sha256=<hex> or 8 digits of it or more"),
        ("https://example.org/plain.pt#sha256=xyz", "expected #sha256=<64 hexadecimal digits>, got #sha256="),
        ("https://example.org/plain.pt#sha256=0123abcd", "expected #sha256=<64 hexadecimal digits>, got #sha256="),
        ("https://example.org/plain.pt#md5=0123", "expected #sha256=<64 hexadecimal digits>, got #md5=0123"),
        ("https://example.org/plain-0123abcd.pt#sha256=", "expected #sha256=<64 hexadecimal digits>, got #sha256="),
        ("http://example.org/plain-01234567.pt", "only https:// is downloaded from"),
    ],
)
def test_url_without_hash_or_encryption(hub, url, text):
    with pytest.raises(ValueError, match=text):
        weights.find_weights("resnet8", url)


@pytest.mark.fault(31)
def test_download_without_network_says_where_the_file_goes(hub, monkeypatch):
    def refuse(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(downloads, "OPENER", urllib.request.build_opener())
    monkeypatch.setattr(downloads.OPENER, "open", refuse)
    with pytest.raises(
        ValueError, match="resnet56-f2eff4c8.pt could not be downloaded .*no network.* put it at"
    ) as error:
        weights.find_weights("resnet56", "published:cifar100_resnet56")
    assert PUBLISHED_URL in str(error.value)
    assert str(hub) in str(error.value)


def test_published_weights_by_name(hub, tmp_path, monkeypatch):
    path, _, state = plain_file(tmp_path, "resnet20", 100, "cifar100_resnet20")
    monkeypatch.setitem(PUBLISHED, "cifar100_resnet20", (path.name, 68.83))
    asked = serve(monkeypatch, path)
    found = weights.find_weights("resnet20", "published:cifar100_resnet20")
    assert asked == [PUBLISHED_URL + path.name]
    assert (found.num_classes, found.normalization, found.image_size) == (100, NORMALIZATIONS["cifar100"], 32)
    assert torch.equal(found.state["fc.weight"], state["fc.weight"])
    asked.clear()
    assert weights.describe_weights("resnet20", "published:cifar100_resnet20") == found._replace(state=None)
    assert asked == []
    for find in (weights.find_weights, weights.describe_weights):
        with pytest.raises(ValueError, match="no published weights of that name; known: cifar10_resnet20"):
            find("resnet20", "published:cifar1000_resnet20")


def test_timm_pretrained_tag(tmp_path, monkeypatch):
    """timm's own loading code on a safetensors file of the format its hub holds."""
    model = timm.create_model("resnet18", pretrained=False)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *a, **k: str(tmp_path / "model.safetensors"))
    found = weights.find_weights("resnet18.a1_in1k", "timm")
    assert (found.num_classes, found.image_size, found.source) == (1000, 224, "timm resnet18.a1_in1k")
    assert found.normalization == NORMALIZATIONS["imagenet"]
    assert torch.equal(found.state["fc.weight"], model.fc.weight)


@pytest.mark.parametrize("find", [weights.find_weights, weights.describe_weights])
def test_timm_has_no_weights_of_our_own_models(find):
    with pytest.raises(ValueError, match="timm has no model resnet56"):
        find("resnet56", "timm")


def test_a_plain_file_holds_no_moving_average(tmp_path):
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "plain.pt")
    assert weights.student_weights(tmp_path / "plain.pt", ema=False)[0].keys() == {"backbone.fc.weight"}
    with pytest.raises(ValueError, match="TEST.EMA is True, .*plain.pt holds no moving average"):
        weights.student_weights(tmp_path / "plain.pt", ema=True)


def test_a_teacher_of_unknown_normalisation_has_the_datasets_and_not_the_students(std, teacher, tmp_path):
    state = torch.load(teacher, weights_only=True)["student"]
    torch.save({key.removeprefix("backbone."): value for key, value in state.items()}, tmp_path / "plain.pt")
    words = {"DISTILLATION__TEACHER_WEIGHTS": f"[{tmp_path}/plain.pt]", "DATA__NORMALIZATION": "imagenet"}
    plain, known = (
        build_all(cfg, build_runtime(cfg))[0].trainer.teachers[0]
        for cfg in (std(**words), std(DATA__NORMALIZATION="imagenet"))
    )
    assert torch.equal(plain.scale, known.scale) and torch.equal(plain.shift, known.shift)
    assert plain.shift.all(), "the student's normalisation is another one"


@pytest.mark.fault(31)
@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError("no network\nand more lines")])
def test_a_hub_that_says_nothing_or_is_not_there_is_given_up(monkeypatch, error):
    """What timm downloads by torch.hub has no time-out of its own."""
    waited = []

    def load(*args, **kwargs):
        waited.append(socket.getdefaulttimeout())
        raise error

    monkeypatch.setattr("timm.models._hub.hf_hub_download", load)
    reason = str(error).splitlines()[0]
    with pytest.raises(ValueError, match=f"timm's weights of resnet18.a1_in1k could not be loaded: {reason}$"):
        weights.find_weights("resnet18.a1_in1k", "timm")
    assert waited == [60] and socket.getdefaulttimeout() is None
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS: .*: {reason}. The path of a file of weights can be given"):
        models._find("MODEL.WEIGHTS", "resnet18.a1_in1k", "timm", True)
    retries = logging.getLogger("huggingface_hub.utils._http")
    assert not retries.isEnabledFor(logging.WARNING), "each was told twice"


def test_teacher_with_another_number_of_classes_is_refused(std, tmp_path):
    cfg = std()
    with pytest.raises(ValueError, match=r"teacher 0 resnet8 \(.*best.pt\) has 10 classes, the data has 100"):
        build_teachers(cfg, 100, HALF, find_teacher_weights(cfg))
    path, _, _ = plain_file(tmp_path, classes=7)
    cfg = std(DISTILLATION__TEACHER_WEIGHTS=f"[{path}]")
    with pytest.raises(
        ValueError, match=r"fc.weight is \(7, 64\) in the file, \(10, 64\) in the model; fc.bias .* model$"
    ):
        build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))


def test_teachers_have_their_own_names_normalisations_and_sizes(std, teacher, tmp_path):
    path, _, _ = plain_file(tmp_path)
    lists = {
        "DISTILLATION__TEACHERS": "[resnet8, resnet8]",
        "DISTILLATION__TEACHER_WEIGHTS": f"[{teacher}, {path}]",
        "DISTILLATION__TEACHER_NORMS": "['', imagenet]",
        "DISTILLATION__TEACHER_SIZES": "[0, 32]",
    }
    cfg = std(**lists)
    first, second = build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))
    assert (first.image_size, second.image_size) == (8, 32)
    digits, imagenet = NORMALIZATIONS["digits"], NORMALIZATIONS["imagenet"]
    torch.testing.assert_close(first.scale.flatten(), torch.tensor([0.5 / s for s in digits.std]))
    torch.testing.assert_close(second.scale.flatten(), torch.tensor([0.5 / s for s in imagenet.std]))


NORMS = "the normalisation of the dataset (DISTILLATION.TEACHER_NORMS)"
SIZES = "8 px, the student's size (DISTILLATION.TEACHER_SIZES)"


@pytest.mark.parametrize(
    ("norms", "sizes", "assumed"),
    [("[]", "[]", f"{NORMS}, {SIZES}"), ("[imagenet]", "[]", SIZES), ("[]", "[8]", NORMS), ("[half]", "[8]", "")],
)
def test_what_is_assumed_of_a_file_is_told(std, tmp_path, caplog, norms, sizes, assumed):
    """In one line, where weights are fetched; of a checkpoint nothing is."""
    path, _, _ = plain_file(tmp_path)
    own = {"DISTILLATION__TEACHER_NORMS": norms, "DISTILLATION__TEACHER_SIZES": sizes}
    find_teacher_weights(std(**own))
    cfg = std(**own, DISTILLATION__TEACHER_WEIGHTS=f"[{path}]")
    find_teacher_weights(cfg, fetch=False)
    assert caplog.messages == []
    find_teacher_weights(cfg)
    where = f"DISTILLATION.TEACHER_WEIGHTS of teacher 0 resnet8: {path}"
    told = f"{where} does not say what input it was trained on; assumed: {assumed}"
    assert caplog.messages == ([told] if assumed else [])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit_tiny_patch16_224", {"depth": 1, "patch_size": 4}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1, "patch_size": 4}),
        ("mixer_nano4", {"num_blocks": 1}),
    ],
)
def test_the_size_that_a_teachers_weights_are_of_is_told(std, tmp_path, name, args):
    """By patches beside one, two or no tokens; where the classes are others, too, no size is enough."""
    given = ", ".join(f"{key}: {value}" for key, value in args.items())
    own = {"DISTILLATION__TEACHERS": f"[resnet8, {name}]", "DISTILLATION__TEACHER_ARGS": f"[{{}}, {{{given}}}]"}
    first, _, _ = plain_file(tmp_path)
    for classes, told in (
        (7, ""),
        (10, "; its weights are of 24 px, here it sees 8: DISTILLATION.TEACHER_SIZES[1] 24"),
    ):
        path, _, _ = plain_file(tmp_path, name, classes=classes, image_size=24, **args)
        own["DISTILLATION__TEACHER_WEIGHTS"] = f"[{first}, {path}]"
        cfg = std(**own)
        with pytest.raises(ValueError, match=rf"^teacher 1 {name} \({path}\) does not fit the model: ") as caught:
            build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))
        assert str(caught.value).rpartition(" in the model")[2] == told
    cfg = std(**own, DISTILLATION__TEACHER_SIZES="[0, 24]")
    assert build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))[1].image_size == 24


def test_no_size_is_told_where_weights_do_not_fix_it(std, tmp_path):
    """A Swin of 64 px has the shapes of any larger one."""
    name, args = "swin_tiny_patch4_window7_224", {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8}
    path, _, _ = plain_file(tmp_path, name, classes=10, image_size=64, **args)
    first, _, _ = plain_file(tmp_path)
    own = {"DISTILLATION__TEACHERS": f"[resnet8, {name}]", "DISTILLATION__TEACHER_WEIGHTS": f"[{first}, {path}]"}
    cfg = std(**own, DISTILLATION__TEACHER_ARGS=f"[{{}}, {args}]", DISTILLATION__TEACHER_SIZES="[0, 16]")
    with pytest.raises(ValueError, match="does not fit the model: ") as caught:
        build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))
    assert "TEACHER_SIZES" not in str(caught.value)


def test_mixer_as_a_teacher_is_built_as_it_was_trained(load, tmp_path):
    """A checkpoint's own MODEL.ARGS and NORM_EPS build the teacher; a student trained by STD can teach as well."""
    from pycls_std import runner

    runner.train(load("debug/base_debug", OUT_DIR=tmp_path, OPTIM__MAX_EPOCH=1, MODEL__NORM_EPS=1e-5))
    path = tmp_path / "checkpoints" / "last.pt"
    cfg = load("debug/std_debug", DISTILLATION__TEACHERS="[mixer_nano4]", DISTILLATION__TEACHER_WEIGHTS=f"[{path}]")
    teacher = build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))[0]
    assert (len(teacher.backbone.blocks), teacher.backbone.norm.eps, teacher.image_size) == (4, 1e-5, 8)


def test_teachers_are_built_with_arguments_of_their_own(std, teacher, tmp_path):
    """A plain file's and a checkpoint's; what says how maps are read is in no weights."""
    path, _, _ = plain_file(tmp_path)
    for args in ("[{}, {taps: before_relu}]", "[{taps: before_relu}, {}]"):
        lists = {"TEACHERS": "[resnet8, resnet8]", "TEACHER_WEIGHTS": f"[{teacher}, {path}]", "TEACHER_ARGS": args}
        cfg = std(**{f"DISTILLATION__{key}": value for key, value in lists.items()})
        teachers = build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))
        ends = ["built with {'taps': 'before_relu'}" in each.description for each in teachers]
        assert ends == ["taps" in each for each in args.split(", ")]
        images = torch.randn(2, 3, 8, 8)
        maps = [each(images, Request(taps=("layer3",))).features["layer3"] for each in teachers]
        assert [bool((each < 0).any()) for each in maps] == ends


def test_arguments_replace_those_of_a_checkpoint_and_leave_the_others(load, tmp_path):
    """Of a mixer of 4 blocks; weights that do not fit the result are refused, as any."""
    from pycls_std import runner

    runner.train(load("debug/base_debug", OUT_DIR=tmp_path, OPTIM__MAX_EPOCH=1, MODEL__ARGS__drop_rate=0.1))
    own = {"TEACHERS": "[mixer_nano4]", "TEACHER_WEIGHTS": f"[{tmp_path}/checkpoints/last.pt]"}
    own = {f"DISTILLATION__{key}": value for key, value in own.items()}
    cfg = load("debug/std_debug", DISTILLATION__TEACHER_ARGS="[{drop_rate: 0.2}]", **own)
    backbone = build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))[0].backbone
    assert (len(backbone.blocks), backbone.head_drop.p) == (4, 0.2)
    cfg = load("debug/std_debug", DISTILLATION__TEACHER_ARGS="[{num_blocks: 3}]", **own)
    with pytest.raises(ValueError, match="teacher 0 mixer_nano4 .*last.pt.* unexpected blocks.3"):
        build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))


def test_the_epsilon_of_a_teacher_is_its_own_that_of_its_checkpoint_or_the_models(load, tmp_path):
    from pycls_std import runner

    runner.train(load("debug/base_debug", OUT_DIR=tmp_path, OPTIM__MAX_EPOCH=1, MODEL__NORM_EPS=1e-5))
    saved, plain = tmp_path / "checkpoints" / "last.pt", plain_file(tmp_path, "mixer_nano4", image_size=8)[0]
    for path, args, expected in (
        (saved, "{}", 1e-5),
        (saved, "{norm_eps: 1e-3}", 1e-3),
        (saved, "{norm_eps: 0}", 1e-6),
        (plain, "{}", 1e-6),
        (plain, "{norm_eps: 1e-5}", 1e-5),
    ):
        lists = {"TEACHERS": "[mixer_nano4]", "TEACHER_WEIGHTS": f"[{path}]", "TEACHER_ARGS": f"[{args}]"}
        cfg = load("debug/kd_debug", **{f"DISTILLATION__{key}": value for key, value in lists.items()})
        refuse_other_arguments(cfg, 10)
        (teacher,) = build_teachers(cfg, 10, HALF, find_teacher_weights(cfg))
        assert {m.eps for m in teacher.modules() if isinstance(m, torch.nn.LayerNorm)} == {expected}, (path, args)


@pytest.mark.parametrize("given", ["gone.pt", "plain file", "checkpoint"])
@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("{depth: 3}", r"DISTILLATION.TEACHER_ARGS\[0\] {'depth': 3} of resnet8 at 8 px: .*'depth'"),
        ("{taps: relu}", r"\[0\] {'taps': 'relu'} of .* px: taps is 'relu', expected after_relu or before_relu"),
        ("{norm_eps: 2}", r"TEACHER_ARGS\[0\] of resnet8 has norm_eps 2, expected a number from 0 to 1"),
        ("{norm_eps: a}", r"TEACHER_ARGS\[0\] of resnet8 has norm_eps 'a', expected a number from 0 to 1"),
        ("{norm_eps: 1e-5}", r"TEACHER_ARGS\[0\] of resnet8 has norm_eps 1e-05, the model has no LayerNorm"),
        ("{num_classes: 3}", r"DISTILLATION.TEACHER_ARGS\[0\] has num_classes, which is not for it to set"),
    ],
)
def test_arguments_that_a_teacher_cannot_take_are_told_first(load, teacher, tmp_path, args, text, given):
    """Before data is read: there is none."""
    from pycls_std import runner
    from pycls_std.config import ConfigError

    path = {"plain file": plain_file(tmp_path)[0], "checkpoint": teacher}.get(given, given)
    own = {"DISTILLATION__TEACHER_WEIGHTS": f"[{path}]", "DISTILLATION__TEACHER_ARGS": f"[{args}]"}
    cfg = load("debug/kd_debug", OUT_DIR=tmp_path / "run", DATA__NAME="image_folder", DATA__ROOT=tmp_path / "no", **own)
    for mode in ("train", "check", "info", "time"):
        with pytest.raises(ConfigError, match=text) as caught:
            runner.run(mode, cfg)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.defect(32)
def test_nothing_here_stops_the_checking_of_certificates():
    """All of the package is imported: an address opened without a context of its own gets one that verifies."""
    for module in pkgutil.walk_packages(pycls_std.__path__, "pycls_std."):
        importlib.import_module(module.name)
    context = ssl._create_default_https_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
