"""Render a table of results as Markdown, CSV or LaTeX."""

import math

import pandas as pd

from pycls_std import config
from pycls_std.core.text import printable
from pycls_std.results.table import headings

# Columns that are there even if no row has a value in them.
ALWAYS = ("run", "model", "method", "teachers", "data", "epochs", "n", "status")


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it is shown: text under headings, without the columns in which no row has a value."""
    columns = {
        key: heading
        for key, heading in headings(config.Catalogue()).items()
        if key in table and (key in ALWAYS or not table[key].isna().all())
    }
    rows = [row for _, row in table.iterrows()]
    shown = pd.DataFrame({heading: [_cell(row, key) for row in rows] for key, heading in columns.items()})
    return shown.astype(str)


def markdown(table: pd.DataFrame) -> str:
    """Return a GitHub table; mean +- sample deviation in percent."""
    return grid(cells(table))


def grid(texts: pd.DataFrame) -> str:
    """Return a GitHub table of texts."""
    shown = texts.map(plain)
    lines = [shown.columns, ["---"] * len(shown.columns), *shown.itertuples(index=False)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def csv(table: pd.DataFrame) -> str:
    """Return all columns as numbers, means and deviations apart. No text is a formula to a spreadsheet."""
    return table.map(_no_formula).to_csv(index=False, float_format="%.4f")


def latex(table: pd.DataFrame) -> str:
    """Return a tabular with booktabs rules."""
    shown = cells(table).style.format(escape="latex").format_index(escape="latex", axis=1)  # % begins a comment there
    return shown.hide(axis="index").to_latex(hrules=True)


def plain(text: str) -> str:
    """Return a text of one line that neither ends a cell of a Markdown table, nor is HTML, nor steers a terminal."""
    return printable(" ".join(text.replace("|", r"\|").replace("<", "&lt;").split()))


def _no_formula(cell):
    risky = isinstance(cell, str) and len(cell) > 1 and cell[0] in "=+-@\t\r"
    return f"'{cell}" if risky else cell


FORMATS = {"md": markdown, "csv": csv, "latex": latex}


def _cell(row: pd.Series, key: str) -> str:
    value = row[key]
    if value is None or isinstance(value, float) and math.isnan(value):
        return "-"
    if key in ("epochs", "n"):
        return str(int(value))
    if not isinstance(value, float):
        return str(value)
    deviation = row.get(f"{key}_std", math.nan)
    return f"{value:.2f}" if math.isnan(deviation) else f"{value:.2f} ± {deviation:.2f}"
