"""HTML tables for notebooks.  Their colours are the notebook's, so that they can be read on a dark background too."""

import html


def table(titles, rows):
    """Return a table: titles of the columns, empty for none, and rows, each of which begins with its name.

    A cell is an int, a tuple or a text; see also `Wide`.  Numbers are on the right, and so is the title of the last column above numbers.
    """
    last_side = "left" if all(isinstance(row[-1], str) for row in rows) else "right"
    head = f"<thead><tr>{''.join(map(_title, titles[:-1]))}{_title(titles[-1], last_side)}</tr></thead>" if titles else ""
    return f"<table>{head}<tbody>{''.join(map(_row, rows))}</tbody></table>"


class Indented(str):
    """The name of a row in a tree; `level` 0 is not indented."""

    __slots__ = ("level",)

    def __new__(cls, text, level):
        indented = super().__new__(cls, text)
        indented.level = level
        return indented


class Wide(Indented):
    """A text that takes a whole row."""

    __slots__ = ()


def escape(text):
    """Return text as HTML."""
    return html.escape(text)


def _row(cells):
    if isinstance(cells[0], Wide):
        return f'<tr><td colspan="100" style="{_style(cells[0])}">{html.escape(cells[0])}</td></tr>'
    return f"<tr>{_title(cells[0])}{''.join(map(_cell, cells[1:]))}</tr>"


def _style(text, side="left"):
    level = getattr(text, "level", 0)
    return f"text-align: {side}" + (f"; padding-left: {0.5 + 1.5 * level}em" if level else "")


def _title(text, side="left"):
    return f'<th style="{_style(text, side)}">{html.escape(text)}</th>'


def _cell(value):
    style = "text-align: left; white-space: nowrap" if isinstance(value, str) else "text-align: right"
    text = f"{value:,}" if isinstance(value, int) else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f'<td style="{style}">{html.escape(text)}</td>'
