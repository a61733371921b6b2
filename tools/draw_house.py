"""Draw the package's layers ("floors") from the imports of its files: docs/pictures/house.svg."""

import argparse
import ast
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from floors import FILES, FLOORS, TOP, imported_parts, part  # noqa: E402

from pycls_std.process import streams  # noqa: E402

PICTURE = ROOT / "docs" / "pictures" / "house.svg"
WIDTH, HEIGHT = 960, 88  # pixels: width of the picture, height of a floor
BOX, GAP = (104, 34), 10  # size of a part's box; width of the gap for a line that crosses a floor
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a0479b", "#8a6d00", "#555555")


def imports() -> dict[str, set[str]]:
    """Return which other parts each part imports."""
    found: dict[str, set[str]] = {name: set() for name in (*FLOORS, *TOP)}
    for path in FILES:
        name = part(path)
        if name in found:  # not the package's own __init__.py, which imports parts lazily
            found[name] |= found.keys() & set(imported_parts(ast.parse(path.read_text()))) - {name}
    return found


def direct(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports without the redundant ones, which are also reached by another import."""

    def below(name):
        return found[name].union(*map(below, found[name]))

    return {name: {low for low in lows if not any(low in below(via) for via in lows)} for name, lows in found.items()}


def floors(allowed: dict[str, set[str]]) -> list[list[str]]:
    """Return the parts by floor, lowest first: each is one above the highest part that it may import."""

    def floor(name):
        return 1 + max(map(floor, allowed[name]), default=-1)

    heights = {name: floor(name) for name in allowed}
    return [[name for name in heights if heights[name] == height] for height in range(max(heights.values()) + 1)]


def routed(stories: list[list], lines: dict[str, set[str]]) -> tuple[list[list], list[list]]:
    """Return the floors with a gap for every line that crosses one, and each line as the boxes and gaps on its way."""
    height = {name: number for number, story in enumerate(stories) for name in story}
    routes = []
    for name in height:
        for low in sorted(lines[name], key=list(height).index):
            gaps = [(name, low, passed) for passed in range(height[name] - 1, height[low], -1)]
            routes.append([name, *gaps, low])
    gaps = [point for route in routes for point in route[1:-1]]
    return [[*story, *(gap for gap in gaps if gap[2] == number)] for number, story in enumerate(stories)], routes


def places(stories: list[list], routes: list[list]) -> dict[object, tuple[float, float]]:
    """Return the centre of each box and gap, pixels: on its floor, sorted by the positions that it leads to."""
    found: dict[object, tuple[float, float]] = {}
    for number, story in enumerate(stories):
        leads = {point: [found[b][0] for route in routes for a, b in pairwise(route) if a == point] for point in story}
        widths = {point: BOX[0] if isinstance(point, str) else GAP for point in story}
        space, x = (WIDTH - sum(widths.values())) / (len(story) + 1), 0.0
        for point in sorted(story, key=lambda point: sum(leads[point]) / max(len(leads[point]), 1)):
            found[point] = x + space + widths[point] / 2, (len(stories) - number - 0.5) * HEIGHT
            x += space + widths[point]
    return found


def drawn() -> str:
    """Return the picture as SVG."""
    found = imports()
    stories, routes = routed(floors(FLOORS | TOP), direct(found))
    centres, half, parts = places(stories, routes), BOX[1] / 2, []
    for route in routes:
        curve = ""
        for (x, y), (a, b) in pairwise(centres[point] for point in route):
            start, middle, end = y + half, (y + b) / 2, b - half
            curve += f"{'L' if curve else 'M'}{x:.0f} {start:.0f}"
            curve += f" C{x:.0f} {middle:.0f} {a:.0f} {middle:.0f} {a:.0f} {end:.0f} "
        colour = COLOURS[list(found).index(route[0]) % len(COLOURS)]
        parts.append(f'<path d="{curve.strip()}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for name in found:
        x, y = centres[name]
        corner = f'x="{x - BOX[0] / 2:.0f}" y="{y - half:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5"'
        parts.append(f'<rect {corner} fill="#f4f4f4" stroke="#333333"/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" font-size="15">{name}</text>')
    size = f'width="{WIDTH}" height="{len(stories) * HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" text-anchor="middle">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


@streams.program("draw_house.py")
def main(argv: list[str] | None = None) -> int:
    """Write the picture, and return 0."""
    argparse.ArgumentParser(prog="draw_house.py", description=__doc__).parse_args(argv)
    PICTURE.write_text(drawn())
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
