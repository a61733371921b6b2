"""Write the tables of README.md anew: each stands below the command that makes it, or the file that holds it."""

import argparse
import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import make_table  # noqa: E402

from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402

TABLE = re.compile(r"(<!-- python tools/make_table\.py (.+?) -->\n)(.*?)(<!-- end -->)", re.S)
RECORD = re.compile(r"(<!-- (logs/\S+) -->\n)(.*?)(<!-- end -->)", re.S)


def filled(text: str) -> str:
    """Return a Markdown text whose tables are made anew. Raises ValueError if one cannot be made."""

    def fill(match):
        table = io.StringIO()
        with contextlib.redirect_stdout(table):
            if make_table.main(shlex.split(match[2])):
                raise ValueError(f"make_table.py {match[2]} failed")
        return f"{match[1]}{table.getvalue()}{match[4]}"

    def copy(match):
        content = Path(match[2]).read_text()
        block = content if "| --- |" in content else "```\n" + content + "```\n"
        return f"{match[1]}{block}{match[4]}"

    return RECORD.sub(copy, TABLE.sub(fill, text))


@streams.program("fill_tables.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a table cannot be made."""
    argparse.ArgumentParser(prog="fill_tables.py", description=__doc__).parse_args(argv)
    readme = ROOT / "README.md"
    try:
        with contextlib.chdir(ROOT):
            readme.write_text(filled(readme.read_text()))
    except (ValueError, OSError) as error:
        streams.complain(f"fill_tables.py: {one_line(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
