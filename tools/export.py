"""Export a trained classifier for other programs: torch.export, ONNX, safetensors, and a model card.

The model is that of TEST.WEIGHTS, with the options of its run (--cfg RUN/config.yaml); its dataset is not needed.
Branches, such as STD's tokens, are kept if they predict: TEST.PREDICTION=cls omits them. Computed in fp32, on the CPU.
ONNX needs the extra: pip install '.[export]' in the checkout.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std import config  # noqa: E402
from pycls_std.core.text import printable  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.ending import leave  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402

KINDS = ("pt2", "onnx", "safetensors")
SPLITS = ("trained on", "tested on", "held out")  # the last may be missing


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="the options of the run, as RUN/config.yaml")
    parser.add_argument("--out", type=Path, default=Path("export"), metavar="FOLDER", help="default: export")
    parser.add_argument("--formats", default=",".join(KINDS), metavar="A,B", help=f"default: {','.join(KINDS)}")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options, as TEST.WEIGHTS=FILE")
    args = parser.parse_intermixed_args(argv)
    args.formats = args.formats.split(",")
    if unknown := set(args.formats) - set(KINDS):
        parser.error(f"--formats has {', '.join(sorted(unknown))}, expected some of {','.join(KINDS)}")
    return args


@streams.program("export.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 weights cannot be read or files not written, 2 usage or options."""
    args = parse(argv)
    try:
        options = config.load(args.cfg, args.overrides)
        if not options.TEST.WEIGHTS:
            raise config.ConfigError("TEST.WEIGHTS is empty, export.py needs TEST.WEIGHTS=CHECKPOINT")
        export(options, args.formats, args.out)
    except config.ConfigError as error:
        streams.complain(f"export.py: {one_line(error)}")
        return 2
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        streams.complain(f"export.py: {one_line(error)}")
        return 1
    return 0


def export(options, kinds: list[str], folder: Path) -> None:
    """Write the files and the card. Raises ValueError before writing any if one cannot be created, or exists."""
    from pycls_std.engine import files  # here, since torch takes seconds to import
    from pycls_std.export.card import CARD, FILES, card
    from pycls_std.export.onnx_file import refuse_absent

    names = [CARD, *(FILES[kind] for kind in kinds)]
    if taken := next((name for name in names if (folder / name).exists()), None):
        raise ValueError(f"{folder / taken} is there already, choose another --out")
    model, facts, arguments = loaded(options)
    if "onnx" in kinds:
        refuse_absent()
    contents, apart = made(model, kinds, options.DATA.IMAGE_SIZE)
    for kind, content in contents.items():
        files.write(folder / FILES[kind], content)
    facts = facts._replace(apart=apart, timm=arguments)
    if "safetensors" in kinds and not facts.parts:
        from pycls_std.export.plain_timm import says_the_same

        facts = facts._replace(same=says_the_same(facts, folder / FILES["safetensors"], model))
    files.write(folder / CARD, card(facts).encode())
    for name in names:
        print(printable(f"{folder / name}: written"))


def made(model, kinds: list[str], image_size: int) -> tuple[dict[str, bytes], dict[str, float]]:
    """Return, by kind, the content of each file, and the difference of its outputs from the model's."""
    from pycls_std.export.deployed import exported, program_file, weights_file
    from pycls_std.export.onnx_file import onnx_file

    program = exported(model, image_size) if set(kinds) - {"safetensors"} else None
    writers: dict[str, Callable[..., tuple[bytes, float]]] = {
        "pt2": program_file,
        "onnx": onnx_file,
        "safetensors": weights_file,
    }
    found = {kind: writers[kind](program, model, image_size) for kind in kinds}
    return {kind: content for kind, (content, _) in found.items()}, {kind: apart for kind, (_, apart) in found.items()}


# ------------------------------------------------------------------------------------------------------------ the model
def loaded(options):
    """Return the deployed student, the facts of its card, and timm's arguments for its backbone, None if not timm's."""
    import torch

    from pycls_std.builders.models import student_arguments
    from pycls_std.builders.weights import student_weights
    from pycls_std.export.card import Facts
    from pycls_std.export.deployed import Deployed
    from pycls_std.export.plain_timm import plain_timm
    from pycls_std.measure.showing import Viewer
    from pycls_std.run.identity import changed_shape

    if options.TASK.NAME != "classification":
        raise config.ConfigError(f"TASK.NAME is {options.TASK.NAME}, export.py writes classifiers")
    options.defrost()
    options.DEVICE = "cpu"
    source = options.TEST.WEIGHTS
    weights, saved = student_weights(Path(source), ema=options.TEST.EMA)
    if changed := changed_shape(saved["config"], config.dump(options)) if saved else []:
        raise ValueError(f"{source} was trained with other options: {'; '.join(changed)}")
    viewer = Viewer(options, weights, saved)
    student = viewer.student.to(memory_format=torch.contiguous_format)
    model = Deployed(student, viewer.task, viewer.prediction)
    arguments, classes = student_arguments(options), tuple(map(str, viewer.info.classes))
    facts = Facts(
        name=options.NAME,
        model=options.MODEL.NAME,
        arguments=arguments,
        prediction=viewer.prediction,
        parts=tuple(model.student.branches),
        parameters=student.parameters_of(viewer.task.prediction_heads(student.heads)[viewer.prediction]),
        classes=classes,
        image_size=options.DATA.IMAGE_SIZE,
        mean=viewer.normalization.mean,
        std=viewer.normalization.std,
        resize=resized(options.DATA),
        training=training(options, saved, viewer),
        apart={},
        timm=None,
        same=False,
    )
    return model, facts, plain_timm(options.MODEL.NAME, num_classes=len(classes), **arguments)


def resized(data) -> str:
    """Return as text how an image is resized before it is normalised."""
    from pycls_std.datasets.transforms import resized_side

    side = resized_side(data.IMAGE_SIZE, data.CROP_RATIO)
    what = "both sides are" if data.FIT == "squash" else "the shorter side is"
    cut = " and the centre cut out" if data.FIT == "crop" or data.CROP_RATIO < 1 else ""
    return f"{what} resized to {side} ({data.INTERPOLATION}){cut}"


# ------------------------------------------------------------------------------------------------------------- its run
def training(options, saved: dict, viewer) -> dict[str, str]:
    """Return the card's facts on the training, from the checkpoint and the run record that contains it."""
    from pycls_std.config.published import of_the_run
    from pycls_std.run.record import commit

    run = Path(options.TEST.WEIGHTS).absolute().parent.parent
    record, lines = record_of(run, saved)
    images = saved.get("data", {}).get("images", [])
    pairs = zip(options.DISTILLATION.TEACHERS, options.DISTILLATION.TEACHER_WEIGHTS, strict=True)
    commits = dict.fromkeys(start["commit"] for start in record.get("starts", ()) if "commit" in start)
    return {
        "data": f"{viewer.info.name or options.DATA.NAME} (DATA.NAME {options.DATA.NAME})"
        + "".join(f", {number} images {how}" for number, how in zip(images, SPLITS, strict=False)),
        "method": options.TRAINER,
        "teachers": "; ".join(f"{name}, {of_the_run([origin])[0]}" for name, origin in pairs) or "none",
        "epochs": f"{saved['epoch']} of {options.OPTIM.MAX_EPOCH}" if "epoch" in saved else "not known",
        "metrics": metrics(lines, saved, viewer, ema=options.TEST.EMA),
        "precision": f"trained in {options.PRECISION}, exported in fp32",
        "commit": ", ".join(commits) or "of the training not known",
        "exported by": f"pycls_std, commit {commit()}",
    }


def record_of(run: Path, saved: dict) -> tuple[dict, list[dict]]:
    """Return run.json and the lines of metrics.jsonl of the run that wrote a checkpoint; empty for another run's.

    The record has the options of the last start, which may differ from a checkpoint's where a resume may change them.
    """
    from pycls_std.results.read import document
    from pycls_std.run.identity import same_run

    try:
        if not saved or not same_run(saved["config"], (run / "config.yaml").read_text()):
            return {}, []
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return {}, []
    return document(run, "run.json"), lines


def metrics(lines: list[dict], saved: dict, viewer, *, ema: bool) -> str:
    """Return the scores of the checkpoint's epoch, as text."""
    line = next((line for line in lines if line.get("epoch") == saved.get("epoch")), {})
    prefix, known = "ema" if ema else "test", viewer.task.scores
    own = {score: f"{prefix}/{viewer.prediction}_{score}" for score in known}
    own = {score: tag if tag in line else f"{prefix}/{score}" for score, tag in own.items()}
    texts = [f"{known[score]['label']} {line[tag]:.2f}" for score, tag in own.items() if tag in line]
    held = any(tag.startswith("val/") for tag in line)
    chosen = "" if held else "; if this epoch was chosen as the best on it, that is optimistic"
    return f"on the test split {', '.join(texts)}{chosen}" if texts else "not known: no record beside the checkpoint"


if __name__ == "__main__":
    leave(main())
