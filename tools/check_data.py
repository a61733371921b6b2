"""Read every image of a config's dataset, and list all that cannot be read."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std import config  # noqa: E402
from pycls_std.core.text import printable  # noqa: E402
from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402


@streams.program("check_data.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 all images are valid, 1 some are not or the data is unusable, 2 usage or options."""
    parser = argparse.ArgumentParser(prog="check_data.py", description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file of options; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE | KEY=VALUE", help="options that replace the file's")
    args = parser.parse_intermixed_args(argv)
    try:
        cfg = config.load(args.cfg, args.overrides)
        from pycls_std.builders.data import scan  # here, since torch takes seconds to import

        bad = 0
        for split in ("train", "test"):
            faults, images, left_out = scan(cfg, split)
            if left_out:
                print(left_out)
            for fault in tqdm(faults, desc=split, total=images, leave=False, disable=not sys.stderr.isatty()):
                if fault:
                    bad += 1
                    print(printable(fault))
            print(f"{split}: {images} images read")
    except config.ConfigError as error:
        streams.complain(f"check_data.py: {one_line(error)}")
        return 2
    except (ValueError, OSError, MemoryError) as error:
        streams.complain(f"check_data.py: {one_line(error)}")
        return 1
    if bad:
        streams.complain(f"check_data.py: {bad} images cannot be used")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
