"""Weights of other programs' files: their names, which are spelled out here by hand, what is unused, what is refused.

The logits expected of the public networks were computed once by their own code, of the weights and the image below.
"""

import re

import pytest
import torch
import yaml
from processes import ROOT, called

from pycls_std import config
from pycls_std.builders.data import build_task
from pycls_std.builders.method import build_backbone, build_student, describe_run
from pycls_std.builders.models import find_pretrained
from pycls_std.builders.weights import student_weights
from pycls_std.models.create import create_backbone
from pycls_std.models.published_names import SOURCES, renamed

# A small model of each source, and of what else is in its files: its name here, its arguments, the side of its images.
MODELS = {
    "t2t": ("t2t_vit_7", {"channels": 16, "depth": 2, "heads": 2, "width": 8, "norm_eps": 1e-5}, 32),
    "tiny-transformers-t2t": ("t2t_vit_7", {"channels": 16, "depth": 2, "heads": 2, "width": 8}, 32),
    "tiny-transformers": ("deit_tiny_distilled_patch16_224", {"depth": 2, "embed_dim": 24, "patch_size": 8}, 32),
    "tiny-transformers/pit": (
        "pit_ti_224",
        {"base_dims": [8, 8, 8], "depth": [1, 2, 1], "heads": [1, 2, 4], "patch_size": 8, "stride": 4},
        32,
    ),
    "tiny-transformers/convit": (
        "convit_tiny",
        {"embed_dim": 6, "depth": 3, "num_heads": 4, "local_up_to_layer": 2, "patch_size": 8},
        32,
    ),
    "tiny-transformers/cvt": ("cvt_13", {"depths": (1, 2, 1), "channels": (6, 6, 12)}, 32),
    "pvt": ("pvt_tiny", {"channels": (8, 8, 10, 16)}, 32),
    "pvtv2": ("pvt_v2_b0", {}, 64),
    "cvt": ("cvt_13", {"depths": (1, 2, 1), "channels": (6, 6, 12)}, 32),
    "cyclemlp": ("cyclemlp_b1", {"channels": (8, 8, 8, 8)}, 32),
    "std": ("mixer_s4", {"embed_dim": 16, "num_blocks": 3, "norm_eps": 1e-5}, 16),
}
# Names there, and here.
NAMES = {
    "t2t": {
        "cls_token": "embeddings.0.cls_token",
        "tokens_to_token.attention2.kqv.weight": "embeddings.0.layers.1.kqv.weight",
        "tokens_to_token.attention1.w": "embeddings.0.layers.0.directions",
        "tokens_to_token.attention1.mlp.2.bias": "embeddings.0.layers.0.mlp.fc2.bias",
        "tokens_to_token.project.weight": "embeddings.0.layers.2.weight",
        "blocks.1.attn.qkv.weight": "blocks.1.attn.qkv.weight",
    },
    "tiny-transformers-t2t": {
        "t2t_module.attention.1.attn.qkv_transform.weight": "embeddings.0.layers.1.kqv.weight",
        "t2t_module.attention.0.attn.projection.bias": "embeddings.0.layers.0.proj.bias",
        "t2t_module.attention.0.attn.w": "embeddings.0.layers.0.directions",
        "t2t_module.attention.0.mlp.fc2.bias": "embeddings.0.layers.0.mlp.fc2.bias",
        "t2t_module.projection.weight": "embeddings.0.layers.2.weight",
        "layers.1.attn.qkv_transform.weight": "blocks.1.attn.qkv.weight",
    },
    "tiny-transformers": {
        "patch_embed.projection.weight": "patch_embed.proj.weight",
        "layers.1.attn.projection.bias": "blocks.1.attn.proj.bias",
        "distill_token": "dist_token",
        "distill_head.bias": "head_dist.bias",
    },
    "tiny-transformers/pit": {
        "patch_embed.conv.weight": "patch_embed.conv.weight",
        "transformers.1.blocks.1.attn.qkv_transform.weight": "transformers.1.blocks.1.attn.qkv.weight",
        "transformers.2.blocks.0.attn.projection.bias": "transformers.2.blocks.0.attn.proj.bias",
        "pools.1.conv.weight": "transformers.2.pool.conv.weight",
        "pools.0.fc.bias": "transformers.1.pool.fc.bias",
    },
    "tiny-transformers/convit": {
        "patch_embed.proj.weight": "patch_embed.proj.weight",
        "blocks.0.attn.gating_param": "blocks.0.attn.gating_param",
        "blocks.2.attn.qkv.weight": "blocks.2.attn.qkv.weight",
    },
    "pvt": {
        "cls_token": "embeddings.3.cls_token",
        "patch_embed1.proj.weight": "embeddings.0.proj.weight",
        "pos_embed4": "embeddings.3.pos_embed",
        "block1.1.attn.sr.weight": "blocks.1.attn.sr.weight",
        "block4.0.mlp.fc1.weight": "blocks.6.mlp.fc1.weight",
    },
    "pvtv2": {
        "patch_embed1.norm.weight": "patch_embed.norm.weight",
        "patch_embed3.proj.weight": "stages.2.downsample.proj.weight",
        "block2.1.mlp.dwconv.dwconv.weight": "stages.1.blocks.1.mlp.dwconv.weight",
        "norm4.bias": "stages.3.norm.bias",
    },
    "cvt": {
        "stage2.cls_token": "embeddings.2.cls_token",
        "stage1.patch_embed.proj.weight": "embeddings.1.proj.weight",
        "stage1.blocks.1.attn.conv_proj_k.bn.running_var": "blocks.2.attn.k.bn.running_var",
        "stage2.blocks.0.attn.proj_q.weight": "blocks.3.attn.q.linear.weight",
    },
    "cyclemlp": {
        "patch_embed.proj.weight": "embeddings.0.weight",
        "network.1.proj.bias": "embeddings.1.bias",
        "network.2.1.attn.sfc_h.weight": "blocks.3.attn.sfc_h.weight",
        "network.6.1.attn.reweight.fc1.weight": "blocks.9.attn.reweight.fc1.weight",
    },
    "std": {
        "per_patch_fc.weight": "stem.proj.weight",
        "mixer_blocks.2.token_mixer.fn.dense1.weight": "blocks.2.mlp_tokens.fc1.weight",
        "mixer_blocks.0.channel_mixer.norm.bias": "blocks.0.norm2.bias",
        "ln.weight": "norm.weight",
        "classifier.bias": "head.bias",
    },
}
NAMES["tiny-transformers/cvt"] = NAMES["cvt"]
# Logits that each source's own code gives for its small model, of the weights and the image by formula.
LOGITS = {
    "t2t": (-0.319286, 0.309288, 0.336803, -0.275046, -0.497216),
    "tiny-transformers-t2t": (-0.319291, 0.309293, 0.336809, -0.275049, -0.497223),
    "tiny-transformers": (-0.377275, -0.086636, 0.557244, -0.406010, -0.251532),  # the average, as at its test
    "tiny-transformers/pit": (-0.709206, 0.958497, -0.793003, 0.833271, -0.478248),
    "tiny-transformers/convit": (-1.173501, 0.828302, 0.165238, -1.167170, 0.869766),
    "tiny-transformers/cvt": (-0.380413, 0.358053, 0.251286, -0.487421, 0.213524),
    "pvt": (-0.230418, -1.029775, -0.239447, 0.828714, 0.468833),
    "pvtv2": (2.923141, -2.883309, 3.139697, -3.125365, 3.048656),
    "cvt": (-0.380413, 0.358053, 0.251286, -0.487421, 0.213524),
    "cyclemlp": (-0.216437, -0.146445, -0.011996, 0.125751, 0.205137),
    "std": (-0.622783, -0.326735, 0.405020, 0.378817, -0.337987),
}
# Those of the heads of devrimcavusoglu/std's small student: one teacher, two, and tokens carried from block 2 to 3.
HEADS = {
    "single": [(0.073812, -0.048803, 0.201544, 0.001770, 0.103244)],
    "multi": [
        (0.009196, 0.078916, 0.031776, 0.185601, -0.064348),
        (0.071977, 0.042015, 0.028692, -0.142747, -0.018046),
    ],
    "inter": [
        (0.036385, -0.051201, 0.063832, 0.155575, -0.016743),
        (0.009020, 0.154697, 0.010394, -0.035646, -0.036997),
    ],
}
CLASS_HEAD = (-0.755856, -0.372816, 0.572042, 0.510949, -0.476122)  # in all of them
# The way back for all of a model's names, each an expression and what it becomes there.
BACK = {
    "t2t": {
        r"embeddings\.0\.cls_token": "cls_token",
        r"embeddings\.0\.layers\.2\.": "tokens_to_token.project.",
        r"embeddings\.0\.layers\.0\.": "tokens_to_token.attention1.",
        r"embeddings\.0\.layers\.1\.": "tokens_to_token.attention2.",
        r"directions": "w",
        r"^(tokens.*)mlp\.fc1": r"\1mlp.0",
        r"^(tokens.*)mlp\.fc2": r"\1mlp.2",
    },
    "tiny-transformers-t2t": {
        r"embeddings\.0\.cls_token": "cls_token",
        r"embeddings\.0\.layers\.2\.": "t2t_module.projection.",
        r"embeddings\.0\.layers\.": "t2t_module.attention.",
        r"kqv": "attn.qkv_transform",
        r"directions": "attn.w",
        r"^(t2t.*\d)\.proj\.": r"\1.attn.projection.",
        r"^blocks\.": "layers.",
        r"attn\.qkv\.": "attn.qkv_transform.",
        r"attn\.proj\.": "attn.projection.",
    },
    "tiny-transformers": {
        r"^blocks\.": "layers.",
        r"attn\.qkv\.": "attn.qkv_transform.",
        r"\.proj\.": ".projection.",
        r"dist_token": "distill_token",
        r"head_dist": "distill_head",
    },
    "tiny-transformers/pit": {
        r"transformers\.(1|2)\.pool": lambda match: f"pools.{int(match[1]) - 1}",
        r"attn\.qkv\.": "attn.qkv_transform.",
        r"attn\.proj\.": "attn.projection.",
    },
    "tiny-transformers/convit": {},
    "pvt": {
        r"embeddings\.3\.cls_token": "cls_token",
        **{rf"embeddings\.{i}\.pos_embed": f"pos_embed{i + 1}" for i in range(4)},
        **{rf"embeddings\.{i}\.": f"patch_embed{i + 1}." for i in range(4)},
        **{rf"^blocks\.{i}\.": f"block{i // 2 + 1}.{i % 2}." for i in range(8)},
    },
    "pvtv2": {
        r"^patch_embed\.": "patch_embed1.",
        **{rf"stages\.{i}\.downsample": f"patch_embed{i + 1}" for i in range(1, 4)},
        **{rf"stages\.{i}\.norm": f"norm{i + 1}" for i in range(4)},
        **{rf"stages\.{i}\.blocks": f"block{i + 1}" for i in range(4)},
        r"dwconv": "dwconv.dwconv",
    },
    "cvt": {
        r"embeddings\.2\.cls_token": "stage2.cls_token",
        r"embeddings\.(\d)": r"stage\1.patch_embed",
        r"^blocks\.0\.": "stage0.blocks.0.",
        r"^blocks\.1\.": "stage1.blocks.0.",
        r"^blocks\.2\.": "stage1.blocks.1.",
        r"^blocks\.3\.": "stage2.blocks.0.",
        r"attn\.([qkv])\.linear": r"attn.proj_\1",
        r"attn\.([qkv])\.(conv|bn)": r"attn.conv_proj_\1.\2",
    },
    "cyclemlp": {
        r"embeddings\.0": "patch_embed.proj",
        **{rf"embeddings\.{i}": f"network.{2 * i - 1}.proj" for i in range(1, 4)},
        **{rf"^blocks\.{i}\.": f"network.0.{i}." for i in range(2)},
        **{rf"^blocks\.{i}\.": f"network.2.{i - 2}." for i in range(2, 4)},
        **{rf"^blocks\.{i}\.": f"network.4.{i - 4}." for i in range(4, 8)},
        **{rf"^blocks\.{i}\.": f"network.6.{i - 8}." for i in range(8, 10)},
    },
    "std": {
        r"^stem\.proj": "per_patch_fc",
        r"^blocks": "mixer_blocks",
        r"norm1": "token_mixer.norm",
        r"norm2": "channel_mixer.norm",
        r"mlp_tokens\.fc": "token_mixer.fn.dense",
        r"mlp_channels\.fc": "channel_mixer.fn.dense",
        r"^norm": "ln",
        r"^head": "classifier",
    },
}
BACK["tiny-transformers/cvt"] = BACK["cvt"]


def by_formula(state):
    """Weights that any program can make: a sine for each element, small, of each tensor's place in the file."""
    made = {}
    for place, (name, value) in enumerate(state.items()):
        waves = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + place).reshape(value.shape)
        positive = name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight"))
        made[name] = (1 + 0.1 * waves if positive else 0.1 * waves).to(value.dtype)
    return made


def image(side):
    """One image, a sine."""
    return torch.sin(torch.arange(3 * side * side) * 0.05).reshape(1, 3, side, side)


def built(source, classes=5):
    """The small model, with weights by the formula, and its side."""
    name, args, side = MODELS[source]
    model = create_backbone(name, num_classes=classes, image_size=side, **args).eval()
    model.load_state_dict(by_formula(model.state_dict()))
    return model, side


def there(name, value):
    """A weight in its shape there: some layers are convolutions there, and patches are flattened, channels last."""
    if name.endswith(("sfc_h.weight", "sfc_w.weight")):
        return value[..., None, None]
    if "token_mixer.fn" in name and name.endswith("weight"):
        return value[..., None]
    return value.permute(0, 2, 3, 1).flatten(1) if name == "per_patch_fc.weight" else value


def published(source, state):
    """Weights by the names that they have there."""
    made = {}
    for name, value in state.items():
        for expression, other in BACK[source].items():
            name = re.sub(expression, other, name)
        made[name] = there(name, value)
    return made


def test_every_source_has_a_model_here():
    assert {source.partition("/")[0] for source in MODELS} | {"vidt"} == set(SOURCES)  # in test_vidt.py


@pytest.mark.parametrize("source", MODELS)
def test_a_file_of_each_source_gives_the_same_logits(source):
    model, side = built(source)
    state = model.state_dict()
    file = published(source, state) | {"left.over": torch.zeros(1)}
    assert NAMES[source].keys() <= file.keys(), "these are the names that the source's code has"
    for name, own in NAMES[source].items():
        assert torch.equal(file[name], there(name, state[own]))
    found, unused = renamed(source.partition("/")[0], file, state)
    assert unused == ["left.over"]
    again = create_backbone(MODELS[source][0], num_classes=5, image_size=side, **MODELS[source][1]).eval()
    again.load_state_dict(found)
    with torch.no_grad():
        assert torch.equal(again(image(side)), model(image(side)))


@pytest.mark.parametrize("source", [source for source in MODELS if source != "std"])
def test_the_tool_writes_what_the_model_of_a_config_reads(source, tmp_path):
    """As `import_weights.py FILE OUT --source NAME --cfg FILE`; std has more than a backbone and is below."""
    model, side = built(source)
    name, args, _ = MODELS[source]
    args = {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()}
    options = {"NAME": name, "NUM_CLASSES": 5, "NORM_EPS": args.pop("norm_eps", 0.0), "ARGS": args}
    cfg = {"TRAINER": "baseline", "MODEL": options, "DATA": {"IMAGE_SIZE": side}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(cfg))
    torch.save({"model": published(source, model.state_dict())}, tmp_path / "file.pth")
    words = ("--key=model", f"--source={source.partition('/')[0]}", f"--cfg={tmp_path / 'model.yaml'}")
    code, output, errors = called("tools/import_weights.py", tmp_path / "file.pth", tmp_path / "plain.pt", *words)
    assert (code, errors) == (0, ""), errors
    assert "unused: " not in output
    model.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
    model.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(model(image(side)), torch.tensor([LOGITS[source]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "vidt"])
def test_what_does_not_fit_is_refused_in_one_line(source):
    model, _ = built(source)
    file = published(source, model.state_dict())
    name, own = next(iter(NAMES[source].items()))
    with pytest.raises(ValueError, match=f"^the file lacks what is here {re.escape(own)}") as error:
        renamed(source, {key: value for key, value in file.items() if key != name}, model.state_dict())
    assert "\n" not in str(error.value)
    shape = (*file[name].shape[:-1], file[name].shape[-1] + 1)
    with pytest.raises(ValueError, match=f"^{re.escape(name)} has the shape ") as error:
        renamed(source, file | {name: torch.zeros(shape)}, model.state_dict())
    assert "\n" not in str(error.value)


def test_two_names_for_one_weight_are_refused():
    model, _ = built("t2t")
    file = published("t2t", model.state_dict())
    twice = file | {"embeddings.0.cls_token": file["cls_token"]}
    with pytest.raises(ValueError, match="^cls_token and embeddings.0.cls_token of the file are both"):
        renamed("t2t", twice, model.state_dict())


# ------------------------------------------------------------------------------------------------------ STD's students
SMALL = """_BASE_: {base}
MODEL: {{NUM_CLASSES: 5, ARGS: {{embed_dim: 16, num_blocks: 4}}}}
DATA: {{IMAGE_SIZE: 16}}
"""
UPDATES = {"single": (3,), "multi": (3,), "inter": (2, 3)}  # the blocks that update tokens
TOKENS = {  # names here of the updates, of the one token set and of its heads, and there
    r"_mlp\.0": "_dist.dense1",
    r"_mlp\.2": "_dist.dense2",
    r"(spatial|channel)_norm": r"\1_dist_norm",
    r"branches\.std\.tokens\.0\.(spatial|channel)": r"\1_dist_token",
    r"branches\.std\.classifiers": "classifier_dist",
}


def small_student(folder, name="inter"):
    """The student of a config of the reproduction, made small, and the file of that config."""
    path = folder / f"{name}.yaml"
    path.write_text(SMALL.format(base=ROOT / f"configs/std/mixer-s4_c100_{name}.yaml"))
    cfg = config.load(str(path))
    run = describe_run(cfg, build_task(cfg, 5), weights=find_pretrained(cfg, fetch=False).teachers)
    return build_student(cfg, build_backbone(cfg, 5), run).eval(), path


def published_student(state, name="inter"):
    """A file of devrimcavusoglu/std, which has an update in every block and uses one or two of them."""
    file, last = {}, UPDATES[name][-1]
    names = {rf"branches\.std\.updates\.{i}\.": f"mixer_blocks.{block}." for i, block in enumerate(UPDATES[name])}
    for name, value in published("std", {key.removeprefix("backbone."): each for key, each in state.items()}).items():
        for expression, other in (names | TOKENS).items():
            name = re.sub(expression, other, name)
        file[name] = value[..., None] if "spatial_dist.dense" in name and name.endswith("weight") else value
    unused = {key.replace(f"blocks.{last}", "blocks.0"): file[key] for key in file if f"blocks.{last}" in key}
    return file | {key: value for key, value in unused.items() if "_dist" in key}


@pytest.mark.parametrize("name", HEADS)
def test_a_student_of_std_is_imported_whole(name, tmp_path):
    """One token set, carried or not, one shared update: head by head as its own code says; saved by several devices."""
    student, cfg = small_student(tmp_path, name)
    student.load_state_dict(by_formula(student.state_dict()))
    file = {f"module.{key}": value for key, value in published_student(student.state_dict(), name).items()}
    torch.save({"model": file, "epoch": 299}, tmp_path / "std.pth")
    words = (tmp_path / "std.pth", tmp_path / "plain.pt", "--key=model", "--source=std", f"--cfg={cfg}")
    code, output, errors = called("tools/import_weights.py", *words)
    assert (code, errors) == (0, "")
    assert "\nunused: 12 tensors: mixer_blocks.0." in output and output.count("mixer_blocks.0.") == 12
    state, said = student_weights(tmp_path / "plain.pt", ema=False)
    assert said == {}
    student, _ = small_student(tmp_path, name)
    student.load_state_dict(state)
    with torch.no_grad():
        heads = student(image(16)).heads
    expected = {"cls": CLASS_HEAD} | {f"std{i}": logits for i, logits in enumerate(HEADS[name])}
    assert heads.keys() == expected.keys()
    for head, logits in expected.items():
        torch.testing.assert_close(heads[head], torch.tensor([logits]), atol=1e-5, rtol=0)


def test_a_file_of_another_arrangement_or_source_is_refused(tmp_path):
    """Both teachers' tokens are in it, and the config has one; a source or a config is missing or unknown."""
    student, both = small_student(tmp_path)
    _, single = small_student(tmp_path, "single")
    torch.save(published_student(student.state_dict()), tmp_path / "std.pth")
    for words, text in (
        (
            ("--source=std", f"--cfg={single}"),
            "spatial_dist_token has the shape (2, 16), branches.std.tokens.0.spatial",
        ),
        (("--source=std",), "--source std needs --cfg"),
        (("--source=vgg", f"--cfg={both}"), "--source is 'vgg', the sources are std, "),
        (("--source=pvt", f"--cfg={both}"), "the file lacks what is here stem.proj.weight"),
    ):
        code, output, errors = called("tools/import_weights.py", tmp_path / "std.pth", tmp_path / "x.pt", *words)
        assert (code, output, len(errors.splitlines())) == (1, "", 1)
        assert text in errors


@pytest.mark.parametrize("source", LOGITS)
def test_logits_are_those_of_the_source_s_own_code(source):
    model, side = built(source)
    with torch.no_grad():
        torch.testing.assert_close(model(image(side)), torch.tensor([LOGITS[source]]), atol=1e-5, rtol=0)
