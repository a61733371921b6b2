"""Style of figures: sizes, colours and lines that are distinct in print and to the colour-blind, captions, files.

Everything is drawn without pyplot and with fixed settings, so a figure's bytes are the same wherever it is drawn.
Source of the colours: Okabe and Ito, Color Universal Design, 2008; their yellow, faint on paper, is grey here.
"""

import io
import math
import re
import textwrap
from functools import wraps
from html import escape

from pycls_std.core.text import printable, shortened

COLUMN, PAGE = 3.5, 7.0  # width in inches of one column of a journal, and of two
LINE = 0.155  # height in inches of a line of text
ENTRY = 0.139  # height in inches of a line of a legend
CHARACTER = 0.068  # width in inches of most characters, with room to spare
MOST = 8  # maximum number of lines in one panel, one per colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1)), (0, (2, 2)), (0, (8, 2, 2, 2)))
MARKERS = "os^Dv*XP"
BACKGROUND = "#B8B8B8"  # colour of lines in the background, for comparison
SETTINGS = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib
    "font.size": 8,
    **{f"{part}.labelsize": 8 for part in ("axes", "xtick", "ytick")},
    "axes.titlesize": 8,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "text.parse_math": False,  # names of rows and classes are not formulas
    "svg.hashsalt": "pycls_std",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


def styled(function):
    """Decorate a function that draws or saves, to run with our matplotlib settings, whatever the user's are."""

    @wraps(function)
    def drawn(*words, **options):
        import matplotlib  # here, since the import is slow and rarely needed

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(SETTINGS)
            return function(*words, **options)

    return drawn


def look(position: int) -> dict:
    """Return colour, dashes and marker of the line at a position, which repeat after MOST."""
    number = position % MOST
    return {"color": COLOURS[number], "linestyle": DASHES[number], "marker": MARKERS[number]}


def label(text: str, most: int = 48) -> str:
    """Return a name for a legend or axis. matplotlib would omit names that begin with _ from legends."""
    text = shortened(printable(text), most)
    return f" {text}" if text.startswith("_") else text


def title(text: str, inches: float) -> str:
    """Return a name as the title of axes of this width, on two lines if necessary."""
    wide = max(8, int(inches / CHARACTER))
    text = label(text, 2 * wide)
    if len(text) <= wide:
        return text
    cut = max((text.rfind(sign, 0, wide) for sign in "_- ,"), default=-1) + 1
    cut = cut if len(text) - cut <= wide and cut > 0 else wide
    return text[:cut] + "\n" + text[cut:]


def canvas(panels: int, *, height: float, width: float = COLUMN, columns: int = 1, legend=(), caption="", **shared):
    """Return a figure with this number of panels, a legend and a caption below, and its axes in reading order.

    height: of each panel, in inches. legend: pairs of a name and a `look`. shared: sharex and sharey.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    names = [label(name) for name, _ in legend]
    lines = textwrap.wrap(printable(caption), int(width / CHARACTER))
    longest = max(map(len, names), default=1) * CHARACTER + 0.5
    beside = max(1, min(len(names), int(width / longest)))
    own = ENTRY * math.ceil(len(names) / beside) + 0.1 if names else 0.0
    footer = own + LINE * len(lines) + 0.06
    grid = math.ceil(panels / columns)
    total = grid * height + footer + 0.05
    space = (0, footer / total, 1, 1 - (footer + 0.05) / total)
    layout = ConstrainedLayoutEngine(rect=space, h_pad=0.04, w_pad=0.05)
    figure = Figure(figsize=(width, total), layout=layout)
    axes = list(figure.subplots(grid, columns, squeeze=False, **shared).flat)
    for extra in axes[panels:]:
        extra.remove()
    for each in axes[max(0, panels - columns) : panels]:  # the grid cell below one of them may be empty
        each.tick_params(labelbottom=True)
    if names:
        handles = [Line2D([], [], **style) for _, style in legend]
        place = (0.05 / width, footer / total)
        tight = {"borderpad": 0, "labelspacing": 0.25, "handlelength": 3.2, "columnspacing": 1, "frameon": False}
        figure.legend(handles, names, loc="upper left", bbox_to_anchor=place, borderaxespad=0, ncols=beside, **tight)
    for number, line in enumerate(lines):
        above = (footer - own - LINE * number) / total
        figure.text(0.05 / width, above, line, va="top", color="#404040")
    return figure, axes[:panels]


def epochs_axis(axes) -> None:
    """Set the ticks of an epoch axis: a few integers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def logarithmic(axes, which: str, values: list[float]) -> None:
    """Make axis x or y logarithmic if its values are positive and span more than a factor of 20."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if min(values) <= 0 or max(values) / min(values) <= 20:
        return
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) / min(values) < 200 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@styled
def rendered(figure, kind: str) -> bytes:
    """Return the bytes of a figure as png or svg, reproducible, without dates and versions."""
    empty = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    content = io.BytesIO()
    figure.savefig(content, format=kind, metadata=empty[kind])
    return content.getvalue()


def inlined(svg: str, prefix: str, alternative: str) -> str:
    """Return an SVG file as an inline element of a page; its ids get a prefix, so that several can be on one page.

    alternative: its description for screen readers. The element has no external URLs and styles nothing else.
    """
    body = svg[svg.index("<svg") :]
    head, _, body = body.partition(">")
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = body.replace("xlink:href", "href")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box, head
    wide = float(box[1].split()[2]) * 96 / 72  # pixels
    words = f'viewBox="{box[1]}" style="width:{wide:.0f}px" role="img" aria-label="{escape(alternative)}"'
    return f"<svg {words}>{body.strip()}"
