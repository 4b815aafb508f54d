"""How things look in a terminal: tables, durations, and text that must not drive the terminal."""

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest
from typing import TextIO

import click

FILE_WIDTH = 140      # columns of a table that goes to a file or a pipe
BLOCK = 500           # rows that say how wide a table's columns are
GAP = "   "           # between two columns
SLACK = 4             # columns more than the block needs, when more rows follow: their numbers have more digits
NARROWEST = 2         # columns; an East Asian character takes as many

_WORD = re.compile(" *[^ ]+ *")


def escape(text: str) -> str:
    """Write control characters as escapes (`\\x1b`), so that a text cannot drive the terminal; \\n stays."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text)


def short(text: str, width: int) -> str:
    """Cut a text to one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def count(number: int, thing: str) -> str:
    """Write a number of things: 1 job, 2 jobs, 1,000 jobs."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Write seconds as a person says them: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], out: TextIO | None = None) -> int:
    """Print a table to stdout or `out` in flat memory, and return its rows.

    It is as wide as the terminal, or FILE_WIDTH where there is none; the first BLOCK rows say how wide a column is.
    """
    out = out or sys.stdout
    whole = shutil.get_terminal_size().columns if out.isatty() else FILE_WIDTH
    space = whole - len(GAP) * (len(columns) - 1)
    texts = (["" if cell is None else escape(str(cell)) for cell in row] for row in rows)
    block = list(islice(texts, BLOCK))
    widths = _fit(_natural_widths([columns, *block]), space, goes_on=len(block) == BLOCK)
    line = "─" if (out.encoding or "utf-8").lower().startswith("utf") else "-"
    click.echo(click.style("\n".join(_lines(columns, widths)), bold=True), file=out)
    out.write(line * (sum(widths) + whole - space) + "\n")
    return sum(bool(out.write("\n".join(_lines(row, widths)) + "\n")) for row in chain(block, texts))


def fold(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` columns, between words where it can be."""
    return [line for paragraph in text.split("\n") for line in _fold_paragraph(paragraph, width)]


def _fold_paragraph(text: str, width: int) -> list[str]:
    from rich.cells import chop_cells

    if _size(text) <= width:
        return [text]
    lines = [""]
    for word in _WORD.findall(text):
        if _size(lines[-1]) + _size(word.rstrip()) <= width:
            lines[-1] += word
        else:
            lines += chop_cells(word.rstrip(), width)
            lines[-1] += word[len(word.rstrip()):]
    return [line.rstrip() for line in lines if line] or [""]


def _size(text: str) -> int:
    """Count the columns that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _natural_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(_size(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]


def _fit(widths: Sequence[int], space: int, *, goes_on: bool) -> list[int]:
    """Narrow the widest columns until all fit; when more rows follow, the last column takes what is left."""
    fitting = [min(width + SLACK * goes_on, space) for width in widths]
    if goes_on:
        fitting[-1] = space
    while sum(fitting) > space and max(fitting) > NARROWEST:
        fitting[fitting.index(max(fitting))] -= 1
    return fitting


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    """Lay a row out as lines without blanks at their ends."""
    columns = (fold(cell, width) for cell, width in zip(row, widths, strict=True))
    for parts in zip_longest(*columns, fillvalue=""):
        padded = (part + " " * (width - _size(part)) for part, width in zip(parts, widths, strict=True))
        yield GAP.join(padded).rstrip()
