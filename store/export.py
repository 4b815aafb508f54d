"""Results on their way out: CSV, JSON lines and Parquet, written row by row."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, TextIO

from store.errors import DiptychError, SettingsError
from store.jsonlines import json_line

Row = dict[str, Any]
SQLITE = b"SQLite format 3\0"      # what such a file begins with
PARQUET_ROWS = 10_000      # rows of a row group

# What begins a formula, by OWASP's CSV injection page; the full-width signs do where a spreadsheet speaks Japanese.
_FORMULA = re.compile(r'\A([\s"]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])')
_DROPPED = ("\t", "\r", "\n")      # by a spreadsheet, from the begin of a cell
_SEPARATORS = re.compile("([;\t\r\n])")      # of cells, where a spreadsheet's is not the comma

_PARQUET_TYPES = {
    "position": "int64", "idx_a": "int64", "idx_b": "int64", "prompt_tokens": "int64", "generated_tokens": "int64",
    "seed": "int64", "do_sample": "int64", "temperature": "float64", "top_k": "int64", "top_p": "float64",
    "repetition_penalty": "float64", "max_tokens": "int64", "batch_size": "int64", "attempt": "int64",
}      # every other column is text


def write_csv(rows: Iterable[Row], columns: Sequence[str], out: TextIO) -> int:
    """Write RFC 4180 CSV with a header, every value exactly as it is; a NULL is an empty field. Return the rows."""
    writer = csv.writer(out)
    writer.writerow(columns)
    return sum(bool(writer.writerow(row.values())) for row in rows)


def defuse(row: Row) -> Row:
    """Put an apostrophe before whatever a spreadsheet would take for a formula; all else stays as it is."""
    return {name: _defuse_text(value) if isinstance(value, str) else value for name, value in row.items()}


def _defuse_text(text: str) -> str:
    """Defuse a text, and each part of it that is a cell to a spreadsheet with other separators."""
    defused = "".join(_FORMULA.sub(r"\1'", part) for part in _SEPARATORS.split(text))
    return f"'{defused}" if text.startswith(_DROPPED) else defused


def write_jsonl(rows: Iterable[Row], columns: Sequence[str], out: TextIO) -> int:
    """Write one JSON object a line, in UTF-8; return the rows."""
    return sum(bool(out.write(json_line(row) + "\n")) for row in rows)


def write_parquet(rows: Iterable[Row], columns: Sequence[str], out: IO[bytes]) -> int:
    """Write Parquet in row groups of PARQUET_ROWS; return the rows. Needs `parquet_installed`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, _PARQUET_TYPES.get(name, "string"))()) for name in columns])
    written, remaining = 0, iter(rows)
    with pq.ParquetWriter(out, schema) as writer:
        while block := list(islice(remaining, PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(block, schema=schema))
            written += len(block)
    return written


def check_parquet_installed() -> None:
    """Raise SettingsError where pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SettingsError("--format parquet: expected the package pyarrow, found none; install the extra: "
                            "pip install 'diptych[parquet]' (in a checkout: pip install -e '.[parquet]')") from error


WRITERS: dict[str, Callable[..., int]] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def export(rows: Iterable[Row], columns: Sequence[str], form: str, path: Path) -> int:
    """Write rows to a file that appears whole or not at all; return their number."""
    with replacing(path, binary=form == "parquet") as out:
        return WRITERS[form](rows, columns, out)


def _spare_database(path: Path) -> None:
    """Raise SettingsError for a file that is an SQLite database: it may be the one that the results come from."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(SQLITE)) == SQLITE:
            raise SettingsError(f"{path}: expected a file that may be replaced, found a database; give another -o")


@contextmanager
def replacing(path: Path, *, binary: bool) -> Iterator[IO[Any]]:
    """Open a file beside `path` that takes its place at the end, and goes away on an error."""
    text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "newline": ""}
    _spare_database(path)
    try:
        part = NamedTemporaryFile("wb" if binary else "w", dir=path.parent, prefix=f".{path.name}.",  # noqa: SIM115
                                  delete=False, **text)
    except OSError as error:
        raise DiptychError(f"{path}: expected a file that can be written, found: {error.strerror}") from error
    try:
        with part:
            yield part
        umask = os.umask(0)
        os.umask(umask)
        Path(part.name).chmod(0o666 & ~umask)      # a temporary file is private; a result is as any file
        Path(part.name).replace(path)
    except BaseException:
        Path(part.name).unlink(missing_ok=True)
        raise
