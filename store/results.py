"""Results: written once, by run and position, and read back as a stream however many there are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Select, case, delete, func, insert, or_, select, update
from sqlalchemy.engine import Connection

from store.clock import now
from store.database import Database, batched
from store.errors import RunError
from store.records import Comparison, Status
from store.schema import COMPARISON_COLUMNS, comparisons, deaths, is_to_retry, jobs, pairs, results, runs
from store.text import clean

__all__ = ["COMPARISON_COLUMNS", "Filters", "read_comparisons", "read_result", "record_results"]

_RANGE = 2_000       # positions a read; short enough that SQLite's log can be folded in between
_CHUNK = 500         # positions in one statement
_FIELDS = [field.name for field in fields(Comparison) if field.name != "job"]      # that stands with the pair


@dataclass(frozen=True, slots=True)
class Filters:
    """Which comparisons are wanted; None lets all through."""

    pair: tuple[int, int] | None = None
    image: str | int | None = None       # A or B: an index (digits alone are one), a name, or the last part of a name
    contains: str | None = None          # in the answer; upper and lower case are alike
    status: Status | None = None
    limit: int | None = None


def record_results(db: Database, run_id: str, rows: Sequence[Comparison]) -> int:
    """Record rows in one transaction with the run's counters; return how many were written.

    Repeating it changes nothing. A done row is final; a failed one is replaced by a done one, and by a failed one of a
    later attempt, or by any when it is to be retried. The run has finished when each pair has a row and none is to be
    retried. Raises RunError for an unknown run.
    """
    with db.write() as connection:
        counts = connection.execute(
            select(runs.c.total, runs.c.done, runs.c.failed).where(runs.c.id == run_id).with_for_update()
        ).one_or_none()
        if counts is None:
            raise RunError(f"{db.location}: expected run {run_id!r}, found no such run")
        known = _read_recorded(connection, run_id, [row.position for row in rows])
        new = _wanted(rows, known)
        replaced = new.keys() & known.keys()      # failures, all of them
        _write(connection, run_id, new, replaced)
        _forget_deaths(connection, run_id, [row for row in new.values() if _is_progress(row, known)])
        succeeded = sum(row.status == "done" for row in new.values())
        done, failed = counts.done + succeeded, counts.failed + len(new) - succeeded - len(replaced)
        values: dict[str, Any] = {"done": done, "failed": failed}
        if new and done + failed == counts.total and not _has_rows_to_retry(connection, run_id):
            values["finished_at"] = now()
        connection.execute(update(runs).where(runs.c.id == run_id).values(values))
    return len(new)


def _is_progress(row: Comparison, known: dict[int, tuple[str, int]]) -> bool:
    """Say whether a row is more than another failure of its pair."""
    return row.status == "done" or row.position not in known


def _forget_deaths(connection: Connection, run_id: str, rows: Sequence[Comparison]) -> None:
    """Take back the deaths of jobs that have come to a result, and of pairs that are done."""
    for numbers in batched(sorted({row.job for row in rows}), _CHUNK):
        connection.execute(update(jobs).where(jobs.c.run_id == run_id, jobs.c.job.in_(numbers), jobs.c.deaths > 0)
                           .values(deaths=0))
    for positions in batched(sorted(row.position for row in rows if row.status == "done"), _CHUNK):
        connection.execute(delete(deaths).where(deaths.c.run_id == run_id, deaths.c.position.in_(positions)))


def read_result(db: Database, run_id: str, position: int) -> Comparison | None:
    """Return the row of one position, token ids included; None while it is pending."""
    row_of_pair = (pairs.c.run_id == results.c.run_id) & (pairs.c.position == results.c.position)
    wanted = select(results, pairs.c.job).join_from(results, pairs, row_of_pair)
    with db.read() as connection:
        row = connection.execute(wanted.where(results.c.run_id == run_id, results.c.position == position)).one_or_none()
    if row is None:
        return None
    values = dict(row._mapping)
    del values["run_id"], values["generated_tokens"], values["retry"]
    values["token_ids"] = tuple(np.frombuffer(values["token_ids"], "<u4").tolist())
    return Comparison(**values)


def read_comparisons(db: Database, run_id: str, filters: Filters) -> Iterator[dict[str, Any]]:
    """Yield the rows of the view `comparisons`, by position, in flat memory.

    Each range of positions is read at once and the connection released, so that a slow reader never holds SQLite's log.
    """
    with db.read() as connection:
        last = connection.scalar(select(func.max(pairs.c.position)).where(pairs.c.run_id == run_id))
    left = filters.limit
    for start in range(0, 0 if last is None else last + 1, _RANGE):
        with db.read() as connection:
            found = connection.execute(_select(run_id, filters, start).limit(left)).all()
        for row in found:
            yield dict(zip(COMPARISON_COLUMNS, row, strict=True))
        left = None if left is None else left - len(found)
        if left == 0:
            return


def _read_recorded(connection: Connection, run_id: str, positions: Iterable[int]) -> dict[int, tuple[str, int]]:
    """Return status and attempt of the rows that are there already, by position."""
    recorded = {}
    # Each attempt is later than one that is to be made again.
    attempt = case((is_to_retry, 0), else_=results.c.attempt).label("attempt")
    for chunk in batched(positions, _CHUNK):
        query = select(results.c.position, results.c.status, attempt).where(
            results.c.run_id == run_id, results.c.position.in_(chunk)
        )
        recorded.update({row.position: (row.status, row.attempt) for row in connection.execute(query)})
    return recorded


def _has_rows_to_retry(connection: Connection, run_id: str) -> bool:
    """Say whether a failed row waits for its job to run again."""
    query = select(results.c.position).where(results.c.run_id == run_id, is_to_retry).limit(1)
    return connection.scalar(query) is not None


def _wanted(rows: Iterable[Comparison], known: dict[int, tuple[str, int]]) -> dict[int, Comparison]:
    """Return the rows that say more than what is known, by position."""
    new: dict[int, Comparison] = {}
    for row in rows:
        old = new.get(row.position)
        status, attempt = (old.status, old.attempt) if old else known.get(row.position, ("pending", 0))
        if status == "pending" or (status == "failed" and (row.status == "done" or row.attempt > attempt)):
            new[row.position] = row
    return new


def _write(connection: Connection, run_id: str, new: dict[int, Comparison], replaced: Iterable[int]) -> None:
    """Insert rows in the place of those that they replace."""
    for chunk in batched(replaced, _CHUNK):
        connection.execute(delete(results).where(results.c.run_id == run_id, results.c.position.in_(chunk)))
    if new:
        connection.execute(insert(results), [_values(run_id, row) for row in new.values()])


def _values(run_id: str, row: Comparison) -> dict[str, Any]:
    """Return the columns of a result."""
    return {name: getattr(row, name) for name in _FIELDS} | {
        "run_id": run_id,
        "token_ids": np.array(row.token_ids, "<u4").tobytes(),
        "generated_tokens": len(row.token_ids),
        "retry": 0,
    }


def _select(run_id: str, filters: Filters, start: int) -> Select[Any]:
    """Select what is wanted of one range of positions."""
    view = comparisons.c
    conditions = [view.run_id == run_id, view.position >= start, view.position < start + _RANGE]
    if filters.pair is not None:
        conditions += [view.idx_a == filters.pair[0], view.idx_b == filters.pair[1]]
    if filters.image is not None:
        conditions.append(_shows(filters.image))
    if filters.contains is not None:
        conditions.append(view.text.icontains(clean(filters.contains), autoescape=True))
    if filters.status is not None:
        conditions.append(view.status == filters.status)
    return select(comparisons).where(*conditions).order_by(view.position)


def _shows(image: str | int) -> ColumnElement[bool]:
    """Say that a row's image A or B is this one."""
    view = comparisons.c
    if isinstance(image, int) or (image.isascii() and image.isdigit()):
        return or_(view.idx_a == int(image), view.idx_b == int(image))
    return or_(*(_is_named(name, clean(image)) for name in (view.image_a, view.image_b)))


def _is_named(name: Any, wanted: str) -> ColumnElement[bool]:
    """Say that a name, or its last part, is this; written without LIKE, in which case and wildcards would count."""
    return or_(name == wanted, func.substr(name, func.length(name) - len(wanted)) == f"/{wanted}")
