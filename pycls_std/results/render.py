"""Render a table of results as Markdown, CSV or LaTeX."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from pycls_std import config
from pycls_std.core.text import printable
from pycls_std.results.columns import ALWAYS, chosen, digits, headings

# Escapes of LaTeX's special characters; dashes are separated, since two would become one.
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "-": "{-}"}
)
# Columns that are only used to make others.
INNER = ("folders",)


def link_from(page: Path) -> Callable[[Path], str]:
    """Return a function from a folder to its URL relative to the page."""
    start = os.path.abspath(page.parent)
    return lambda folder: quote(os.fsencode(os.path.relpath(os.path.abspath(folder), start)))


def cells(table: pd.DataFrame, columns: Sequence[str] = (), link: Callable[[Path], str] | None = None) -> pd.DataFrame:
    """Return a table as text with headings, without empty columns.

    columns: see `columns.chosen`. link: from a folder to its URL; each seed then links to its record.
    """
    catalogue, varied = config.Catalogue(), _varied(table)
    names = headings(catalogue, varied)
    kept = [
        key
        for key in chosen(catalogue, columns, varied)
        if key in table and (not columns and key in ALWAYS or not _is_empty(table[key]))
    ]
    names = {key: _compared(names[key], key, table.attrs) for key in kept}
    rows = [row for _, row in table.iterrows()]
    shown = pd.DataFrame({names[key]: [_cell(row, key) for row in rows] for key in kept}).astype(str)
    if link and "n" in kept:
        shown["n"] = [_linked(row, link) for row in rows]
    return shown


def markdown(table: pd.DataFrame, columns: Sequence[str] = (), link: Callable[[Path], str] | None = None) -> str:
    """Return a GitHub table; mean +- sample standard deviation in percent."""
    return grid(cells(table, columns, link))


def grid(texts: pd.DataFrame) -> str:
    """Return a GitHub table of texts."""
    shown = texts.map(plain)
    lines = [shown.columns, ["---"] * len(shown.columns), *shown.itertuples(index=False)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def csv(table: pd.DataFrame, columns: Sequence[str] = (), link=None) -> str:
    """Return the columns, by default all, as numbers, with separate means and standard deviations.

    Text that a spreadsheet would take for a formula is quoted.

    With gains or differences from published values, `selection` states which epoch's scores they are of, and `baseline`
    the baseline; columns selected on the test split are named optimistic_.
    """
    own = [key for key in table if key not in INNER]
    if columns:
        wanted = chosen(config.Catalogue(), columns, _varied(table))
        parts = ("_std", "_mean", "_low", "_high")
        own = [key for key in own if {key, *(key.removesuffix(part) for part in parts)} & set(wanted)]
    compared = any(key == "gain" or key.startswith("delta_") for key in own)
    said = {key: table.attrs[key] for key in ("selection", "baseline") if compared and key in table.attrs}
    flattering = {key: f"optimistic_{key}" for key in own if key.startswith("best_")}
    shown = table[own].assign(**said).rename(columns=flattering)
    return shown.map(_no_formula).to_csv(index=False, float_format="%.4f")


def latex(table: pd.DataFrame, columns: Sequence[str] = (), link=None) -> str:
    """Return a tabular with booktabs rules, and below it the notes of the table's attrs."""
    shown = cells(table, columns)
    style = shown.style.format(escape="latex").format_index(escape="latex", axis=1)  # % begins a comment there
    text, notes = style.hide(axis="index").to_latex(hrules=True), table.attrs.get("notes")
    if notes:
        cell = f"\\multicolumn{{{len(shown.columns)}}}{{p{{\\linewidth}}}}{{{notes.translate(LATEX)}}}"
        text = text.replace(r"\bottomrule", f"\\midrule\n{cell} \\\\\n\\bottomrule")
    return text


def plain(text: str) -> str:
    """Return a text on one line, escaped for a Markdown table: no cell separators, HTML or terminal control codes."""
    return printable(" ".join(text.replace("|", r"\|").replace("<", "&lt;").split()))


def _no_formula(cell):
    risky = isinstance(cell, str) and len(cell) > 1 and cell[0] in "=+-@\t\r"
    return f"'{cell}" if risky else cell


FORMATS = {"md": markdown, "csv": csv, "latex": latex}


def _compared(heading: str, key: str, attrs: dict) -> str:
    """Return a heading; of a gain with the baseline's name, and of comparisons with a selection other than the last."""
    if key == "gain" and "baseline" in attrs:
        heading = heading.replace("the baseline", attrs["baseline"])
    by = attrs.get("selection") == "held-out" and (key == "gain" or key.startswith("delta_"))
    return f"held-out-selected {heading}" if by else heading


def _varied(table: pd.DataFrame) -> list[str]:
    """Return the columns that are option keys."""
    return [key for key in table if "." in key]


def _is_empty(column: pd.Series) -> bool:
    return all(text in ("nan", "None", "", "-") for text in column.map(str))


def _cell(row: pd.Series, key: str) -> str:
    value = row[key]
    if value is None or value == "" or isinstance(value, float) and math.isnan(value):
        return "-"
    if not isinstance(value, float):
        return str(value)
    sign, places = "+" if key.startswith("delta_") else "", digits(key)
    deviation = row.get(f"{key}_std", math.nan)
    spread = "" if math.isnan(deviation) else f" ± {deviation:.{places}f}"
    return f"{value:{sign}.{places}f}{spread}"


def _linked(row: pd.Series, link: Callable[[Path], str]) -> str:
    """Return the number of runs, and their seeds with links to their records."""
    folders = row.get("folders")
    if not isinstance(folders, dict):
        return str(row["n"])
    seeds = [f"[{seed.removeprefix('seed')}]({link(folder)})" for seed, folder in folders.items()]
    return f"{row['n']}: {', '.join(seeds)}"
