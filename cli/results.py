"""diptych results: the comparisons of a run, as a table or for other programs."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Globals, pass_globals
from cli.show import print_table

if TYPE_CHECKING:
    from store.records import Run

TABLE_ROWS = 100      # rows of a table when no --limit is given: more is for a file
DIGITS = 18           # of an integer that is sure to fit the 64 bits of a database
LONGEST = 10_000      # characters of a text to look for
TABLE_COLUMNS = ("position", "image_a", "image_b", "text")


class PairType(click.ParamType[tuple[int, int]]):
    """Two indices with a comma: 3,17."""

    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return the two indices."""
        words = str(value).split(",")
        if len(words) != 2 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
            self.fail(f"expected two indices with a comma, as 3,17, found {value!r}", param, ctx)
        for word in words:
            check_digits(ctx, param, word.strip())
        return int(words[0]), int(words[1])


def check_digits(ctx: click.Context | None, param: click.Parameter | None, value: Any) -> Any:
    """Refuse an integer of more digits than a database holds; let all else through, a name too."""
    word = str(value)
    if word.isascii() and word.isdigit() and len(word.lstrip("0")) > DIGITS:
        raise click.BadParameter(f"expected at most {DIGITS} digits, found {len(word)}; name another", ctx, param)
    return value


def check_length(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> str | None:
    """Refuse a text that is too long for SQLite to look for: its patterns have 50,000 bytes."""
    if value is not None and len(value) > LONGEST:
        raise click.BadParameter(f"expected at most {LONGEST:,} characters, found {len(value):,}", ctx, param)
    return value


@click.command("results", short_help="Query the results of a run.")
@click.argument("run", required=False)
@click.option("--format", "form", type=click.Choice(["table", "csv", "jsonl", "parquet"]), default=None,
              help="parquet needs the extra of that name, and -o.  [default: what -o ends in, else table]")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of stdout.")
@click.option("--spreadsheet", is_flag=True,
              help="With csv: put ' before what a spreadsheet would take for a formula.")
@click.option("--pair", type=PairType(), help="Only this pair of indices.")
@click.option("--image", metavar="X", callback=check_digits,
              help="Only pairs with this image: an index, or a name in filenames.txt.")
@click.option("--contains", metavar="TEXT", callback=check_length,
              help="Only texts that contain this; upper and lower case are the same.")
@click.option("--status", type=click.Choice(["pending", "done", "failed"]), help="Only these pairs.")
@click.option("--limit", type=click.IntRange(min=1), callback=check_digits,
              help=f"At most so many.  [table: {TABLE_ROWS}; else: all]")
@pass_globals
def command(
    values: Globals, run: str | None, form: str | None, output: Path | None, spreadsheet: bool, limit: int | None,
    **filters: Any,
) -> None:
    """Show the pairs of RUN with what the model wrote (an id, a unique beginning of one, or a name; default: latest).

    The columns are those of the view `comparisons`; a table shows the chief ones.

    \b
    Example:
      diptych results
      diptych results night-1 --format csv -o night-1.csv
      diptych results --contains sharper --limit 10
    """
    from store.database import open_database
    from store.export import defuse
    from store.results import Filters, read_comparisons
    from store.runs import find_run

    form = form or form_of(output)
    check_output(form, output)
    if spreadsheet and form != "csv":
        raise click.UsageError(f"--spreadsheet: expected --format csv, found {form}; leave one of them out")
    most = limit or (TABLE_ROWS if form == "table" and output is None else None)
    with open_database(values.db, create=False) as database:
        found = find_run(database, run)
        rows = read_comparisons(database, found.id, Filters(**filters, limit=most))
        if spreadsheet:
            rows = map(defuse, rows)
        written = _write(rows, form, output)
    sys.stdout.flush()      # before the summary, where both go to one place
    if not values.quiet:
        click.echo(_summary(found, written, output, cut=limit is None and written == most), err=True)


def form_of(output: Path | None) -> str:
    """Take the form from the ending of a file's name; a table where it says nothing."""
    ending = output.suffix.lower().removeprefix(".") if output else ""
    return ending if ending in ("csv", "jsonl", "parquet") else "table"


def check_output(form: str, output: Path | None) -> None:
    """Refuse a form that cannot go where it should."""
    from store.export import check_parquet_installed

    if form == "parquet":
        check_parquet_installed()
        if output is None:
            raise click.UsageError("--format parquet: expected a file to write, found none; add -o results.parquet")


def _write(rows: Iterator[dict[str, Any]], form: str, output: Path | None) -> int:
    from store.export import WRITERS, export, replacing
    from store.results import COMPARISON_COLUMNS

    if form == "table":
        if output is None:
            return _table(rows)
        with replacing(output, binary=False) as out:
            return _table(rows, out)
    if output is not None:
        return export(rows, COMPARISON_COLUMNS, form, output)
    write: Callable[..., int] = WRITERS[form]
    sys.stdout.reconfigure(encoding="utf-8", newline="")      # type: ignore[union-attr]  # a TextIOWrapper here
    return write(rows, COMPARISON_COLUMNS, sys.stdout)


def _table(rows: Iterator[dict[str, Any]], out: Any = None) -> int:
    return print_table(TABLE_COLUMNS, (_cells(row) for row in rows), out)


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["position"], row["image_a"], row["image_b"], _answer(row)


def _answer(row: dict[str, Any]) -> str:
    if row["status"] == "done":
        return str(row["text"])
    return f"({row['status']}: {row['error']})" if row["error"] else f"({row['status']})"


def _summary(run: "Run", written: int, output: Path | None, *, cut: bool) -> str:
    where = f" to {output}" if output else ""
    failed = f", {run.failed:,} failed" if run.failed else ""
    more = "; --limit or --format csv for more" if cut and written < run.total else ""
    return f"run {run.id}: {run.done:,} of {run.total:,} done{failed}; {written:,} rows{where}{more}"
