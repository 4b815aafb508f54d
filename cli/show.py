"""How things look in a terminal: tables, durations, and text that must not drive the terminal."""

from collections.abc import Iterable, Sequence
from typing import IO

FILE_WIDTH = 140      # columns of a table that goes to a file or a pipe


def escape(text: str) -> str:
    """Write control characters as escapes (`\\x1b`), so that a text cannot drive the terminal; \\n stays."""
    return "".join(char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text)


def short(text: str, width: int) -> str:
    """Cut a text to one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def duration(seconds: float) -> str:
    """Write seconds as a person says them: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], out: IO[str] | None = None) -> None:
    """Print a table to stdout or `out`, as wide as the terminal, or FILE_WIDTH where there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape("" if cell is None else str(cell))) for cell in row))
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table)
