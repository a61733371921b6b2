"""Update the tables and pictures of README.md and docs/, each below the command that generates it."""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import make_table  # noqa: E402
import plot  # noqa: E402
import reproduce  # noqa: E402

from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.results.plots import PICTURES  # noqa: E402

COMMAND = re.compile(r"(<!-- python tools/(\w+)\.py (.+?) -->\n)(.*?)(<!-- end -->)", re.S)
RECORD = re.compile(r"(<!-- (logs/\S+) -->\n)(.*?)(<!-- end -->)", re.S)


def filled(text: str, page: Path) -> str:
    """Return a Markdown text with updated tables, and write its pictures.

    page: its path, to which links are relative. Raises ValueError if a command fails, and for an unknown one.
    """

    def fill(match):
        name, words = match[2], shlex.split(match[3])
        if name not in COMMANDS:
            raise ValueError(f"{page}: {name}.py writes nothing into a page, these do: {', '.join(COMMANDS)}")
        return f"{match[1]}{COMMANDS[name](words, page)}{match[5]}"

    def copy(match):
        content = Path(match[2]).read_text()
        block = content if "| --- |" in content else "```\n" + content + "```\n"
        return f"{match[1]}{block}{match[4]}"

    return RECORD.sub(copy, COMMAND.sub(fill, text))


def _table(main):
    """Return the function that generates a table, whose seeds link to their records."""
    return lambda words, page: _said(main, [*words, "--link-from", str(page)])


def _pictures(words: list[str], page: Path) -> str:
    paths = map(Path, _said(plot.main, words).splitlines())
    places = {path.stem: Path(os.path.relpath(path, page.parent)).as_posix() for path in paths}
    return "".join(f"![{PICTURES[name].title}]({place})\n" for name, place in places.items())


def _said(main, words: list[str]) -> str:
    """Return the output of a command. Raises ValueError if it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(words)
    if code:
        raise ValueError(f"{shlex.join(words)}: exit code {code}")
    return said.getvalue()


COMMANDS = {"make_table": _table(make_table.main), "reproduce": _table(reproduce.main), "plot": _pictures}


@streams.program("fill_tables.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a table or a picture cannot be generated."""
    argparse.ArgumentParser(prog="fill_tables.py", description=__doc__).parse_args(argv)
    try:
        with contextlib.chdir(ROOT):
            for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
                text = page.read_text()
                new = filled(text, page)
                if new != text:
                    page.write_text(new)
                    print(page)
    except (ValueError, OSError) as error:
        streams.complain(f"fill_tables.py: {one_line(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
