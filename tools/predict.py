"""Print a trained model's predictions for images, draw a detector's boxes, and write all predictions as JSON.

The model is that of TEST.WEIGHTS, with the options of its run (--cfg RUN/config.yaml); its dataset is not needed.
"""

import argparse
import json
import sys
from itertools import count
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std import config  # noqa: E402
from pycls_std.core.text import printable  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.ending import leave  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402

RESULTS = "predictions.json"
COLOURS = ("#ffd400", "#00e0ff", "#ff5ad2", "#5cff5c", "#ff9a3c", "#b69cff", "#ff6b6b", "#c8ff00")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments; a word with `=` that is not a file is an option."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="the options of the run, as RUN/config.yaml")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="FOLDER", help="default: predictions")
    parser.add_argument(
        "--threshold", type=score, default=0.5, metavar="T", help="lowest score of a box to draw, 0 to 1, default: 0.5"
    )
    parser.add_argument("words", nargs="+", metavar="KEY=VALUE | image", help="options, as TEST.WEIGHTS=FILE; images")
    args = parser.parse_intermixed_args(argv)
    args.overrides = [word for word in args.words if "=" in word and not Path(word).is_file()]
    args.images = [word for word in args.words if word not in args.overrides]
    if not args.images:
        parser.error("name an image")
    return args


def score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


@streams.program("predict.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 images, weights or results cannot be read or written, 2 usage or options."""
    args = parse(argv)
    try:
        options = config.load(args.cfg, args.overrides)
        if not options.TEST.WEIGHTS:
            raise config.ConfigError("TEST.WEIGHTS is empty, predict.py needs TEST.WEIGHTS=CHECKPOINT")
        return predict(options, args)
    except config.ConfigError as error:
        streams.complain(f"predict.py: {one_line(error)}")
        return 2
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        streams.complain(f"predict.py: {one_line(error)}")
        return 1


def predict(options, args: argparse.Namespace) -> int:
    """Print and write the predictions for every image; return the exit code. Images that fail are skipped."""
    places = picture_places(args.images, args.out)
    view, rows, failed = viewer(options), [], 0
    for number, (path, place) in enumerate(zip(args.images, places, strict=True)):
        try:
            image = upright(path)
            shown = view(image, number, least=args.threshold)
        except (ValueError, OSError, MemoryError) as error:
            name = "" if isinstance(error, OSError) else f"{path}: "  # an OSError has it in its text
            streams.complain(f"predict.py: {name}{one_line(error)}")
            failed += 1
            continue
        print(printable(path), *(f"  {printable(line)}" for line in shown.lines), sep="\n")
        rows += [{"file_name": path} | row for row in shown.rows]
        if shown.boxes is not None:
            write(place, png(image, shown.boxes))
    if failed < len(args.images):
        lines = ",\n".join(map(json.dumps, rows))
        write(args.out / RESULTS, f"[\n{lines}\n]\n".encode())
    return 1 if failed else 0


def viewer(options):
    """Return the function that predicts images; warn if the student was trained with other options."""
    from pycls_std.builders.weights import student_weights  # here, since torch takes seconds to import
    from pycls_std.measure.showing import Viewer
    from pycls_std.run.identity import changed_shape, refuse_other_model

    weights, saved = student_weights(Path(options.TEST.WEIGHTS), ema=options.TEST.EMA)
    if saved:
        refuse_other_model(saved["config"], config.dump(options), options.TEST.WEIGHTS)
    changed = changed_shape(saved["config"], config.dump(options)) if saved else []
    if changed:
        streams.complain(
            f"predict.py: warning: {options.TEST.WEIGHTS} was trained with other options: {'; '.join(changed)}"
        )
    return Viewer(options, weights, saved)


# --------------------------------------------------------------------------------------------------------------- images
def upright(path: str):
    """Return an RGB image, rotated by its EXIF orientation.

    Raises OSError if it is not an image, and ValueError for a folder.
    """
    from PIL import ImageOps

    from pycls_std.datasets.decoding import naming, open_image, to_rgb

    if Path(path).is_dir():
        raise ValueError(f"it is a folder, name its images: {Path(path) / '*'}")
    image = open_image(path)
    with naming(path):
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def png(image, boxes: list) -> bytes:
    """Return an image with its boxes as PNG, the highest score on top. boxes: see `tasks/contract.py`."""
    import matplotlib
    import torch
    from torchvision.io import encode_png
    from torchvision.transforms.v2.functional import pil_to_tensor
    from torchvision.utils import draw_bounding_boxes

    pixels, boxes = pil_to_tensor(image), boxes[::-1]
    if boxes:
        shorter = min(image.size)
        pixels = draw_bounding_boxes(
            pixels,
            torch.tensor([box.corners for box in boxes]),
            [box.text for box in boxes],
            [COLOURS[box.label % len(COLOURS)] for box in boxes],
            width=max(1, shorter // 240),
            font=str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"),
            font_size=max(9, shorter // 40),
            fill_labels=True,
        )
    return encode_png(pixels).numpy().tobytes()


# ---------------------------------------------------------------------------------------------------------------- files
def picture_places(images: list[str], folder: Path) -> list[Path]:
    """Return the path of each image's picture: <its name>.png, with a number appended to duplicate names.

    Raises ValueError if a result would overwrite a file.
    """
    places = {}
    for path in images:
        names = (f"{Path(path).stem}{f'-{number}' if number > 1 else ''}.png" for number in count(1))
        places[next(name for name in names if name not in places)] = path
    taken = next((name for name in (RESULTS, *places) if (folder / name).exists()), None)
    if taken:
        raise ValueError(f"{folder / taken} is there already, choose another --out")
    return [folder / name for name in places]


def write(path: Path, content: bytes) -> None:
    """Write a file atomically, and print its path."""
    from pycls_std.engine import files

    files.write(path, content)
    print(f"  {printable(str(path))}: written")


if __name__ == "__main__":
    leave(main())
