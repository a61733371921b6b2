"""HTML elements and style of a report, which needs no scripts, no network and no other files.

It is responsive, from phone to desktop, where wide tables scroll in their own box, and printable.
"""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #ffffff; --line: #c9c9c9; --soft: #f3f3f3; --link: #0b57a4 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #161616; --line: #4a4a4a; --soft: #242424; --link: #8ab8f5 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; font: 1rem/1.45 system-ui, sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
h3 { margin-top: 2rem }
a { color: var(--link) }
.box { overflow-x: auto; max-width: 100%; overflow-wrap: normal; margin-bottom: .6rem }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .25rem 0; font-weight: 600 }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap }
thead th { background: var(--soft); vertical-align: bottom; white-space: normal; min-width: 4.5rem }
tbody th { font-weight: 600 }
tbody tr:hover { background: var(--soft) }
code, pre { font: .8125rem/1.4 ui-monospace, monospace }
pre { padding: .6rem; background: var(--soft); overflow: auto; max-height: 30rem; overflow-wrap: normal }
summary { cursor: pointer; padding: .3rem 0 }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0 }
figure.wide { grid-column: 1 / -1 }
figcaption { font-weight: 600; padding: .3rem 0 }
.picture { background: #ffffff; border: 1px solid var(--line); overflow-x: auto; width: fit-content;
  max-width: 100% }
.picture svg { display: block; height: auto; max-width: 100% }
.wide svg { max-width: none }
.picture svg * { stroke-linejoin: round; stroke-linecap: butt }
:focus-visible { outline: 2px solid var(--link) }
@media (max-width: 30rem) { body { padding: .5rem } }
@media print {
  body { max-width: none; padding: 0; font-size: 9pt }
  .box { overflow: visible }
  table { font-size: 7pt }
  th, td { white-space: normal; padding: .15rem .3rem }
  .wide svg { max-width: 100% }
  figure, tr { break-inside: avoid }
  h2, h3 { break-after: avoid }
  details:not([open]) { display: none }
}
"""
# Nothing may be loaded from anywhere, whatever a record contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Html(str):
    """Text that is already HTML; `cell` escapes any other text."""


def page(title: str, body: str) -> str:
    """Return a whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n"
        "</html>\n"
    )


def cell(content: str) -> str:
    """Return content as HTML."""
    return content if isinstance(content, Html) else escape(content)


def grid(caption: str, columns: list[str], rows: list[list[str]]) -> Html:
    """Return a table whose first column is the row header, in a scrolling box. Cells are text, or `Html`."""
    head = "".join(f'<th scope="col">{cell(column)}</th>' for column in columns)
    lines = [
        f'<tr><th scope="row">{cell(first)}</th>{"".join(f"<td>{cell(each)}</td>" for each in others)}</tr>'
        for first, *others in rows
    ]
    body = "\n".join(lines)
    return Html(
        f'<div class="box" role="region" aria-label="{escape(caption)}" tabindex="0">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        "</div>\n"
    )


def anchor(url: str, content: str) -> Html:
    """Return a link."""
    return Html(f'<a href="{escape(url)}">{cell(content)}</a>')


def folded(summary: str, content: str) -> Html:
    """Return HTML that is collapsed until clicked."""
    return Html(f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>\n")


def listing(lines: Sequence[str]) -> Html:
    """Return an unordered list, "" for no lines."""
    return Html("<ul>\n" + "".join(f"<li>{cell(line)}</li>\n" for line in lines) + "</ul>\n" if lines else "")
