"""Runs: made once with all their pairs, found by id or name, cancelled and taken up again."""

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from sqlalchemy import Executable, Row, Select, func, insert, select, update
from sqlalchemy.engine import Connection

from store.clock import now
from store.database import Database, batched
from store.errors import RunError
from store.records import NewRun, Pair, Run, Sampling
from store.schema import images as images_table
from store.schema import insert_into, jobs, run_summary, runs
from store.schema import pairs as pairs_table
from store.text import clean

_CACHE = 32 * 1024      # KiB of pages: the index by job of a million pairs is filled without spilling
ID_LENGTH = 10        # hex digits
NAME_LENGTH = 100     # characters, at most
_CHUNK = 10_000       # rows a statement; some 5 MB of parameters
_SHOWN = 5            # runs that an error lists
_LIKE_AN_ID = re.compile(rf"[0-9a-fA-F]{{{ID_LENGTH}}}")


def create_run(db: Database, run: NewRun, pairs: Iterable[Pair], images: Sequence[str]) -> Run:
    """Record a run with its pairs, its jobs and the names of its images: all of it or nothing, in flat memory.

    A name may be used again: it then means the latest run of that name. Raises RunError for a name that could be taken
    for something else, and for a run without pairs.
    """
    if run.name is not None:
        check_name(run.name)
    run_id = secrets.token_hex(ID_LENGTH // 2)
    sizes: Counter[int] = Counter()
    with db.write() as connection:
        if connection.dialect.name == "sqlite":      # here alone: a worker's pages would fill it night after night
            connection.exec_driver_sql(f"PRAGMA cache_size=-{_CACHE}")
        connection.execute(insert(runs).values(**_values(run), id=run_id))
        _insert_images(connection, run.embeddings_fingerprint, images)
        _insert(connection, insert(pairs_table), _pair_rows(run_id, pairs, sizes))
        if not sizes:
            raise RunError("run: expected at least one pair, found none; nothing was enqueued")
        _insert(connection, insert(jobs), _job_rows(run_id, sizes))
        connection.execute(update(runs).where(runs.c.id == run_id).values(total=sizes.total()))
    return find_run(db, run_id)


def check_name(name: str) -> None:
    """Raise RunError for a name that is blank, too long, hard to type, or looks like an option or an id."""
    if not name or name != name.strip() or not name.isprintable() or len(name) > NAME_LENGTH:
        expected = f"1 to {NAME_LENGTH} printable characters without blanks around them"
    elif name.startswith("-"):
        expected = "a name that does not begin with - (it would be read as an option)"
    elif _LIKE_AN_ID.fullmatch(name):
        expected = f"a name that is not {ID_LENGTH} hex digits (it would be read as a run's id)"
    else:
        return
    raise RunError(f"name of the run: expected {expected}, found {name[:NAME_LENGTH]!r}")


def find_run(db: Database, reference: str | None) -> Run:
    """Return the run of that id, else the latest of that name, else the one whose id begins so; None is the latest.

    Raises RunError, which lists candidates, when there is none or more than one.
    """
    with db.read() as connection:
        rows = _matching(connection, reference)
        shown = rows or connection.execute(_newest_first().limit(_SHOWN + 1)).all()
    if len(rows) == 1:
        return _run(rows[0])
    if not shown:
        raise RunError(f"{db.location}: expected a run, found none yet; `diptych enqueue PAIRS` makes one")
    found = f"{len(rows)} whose ids begin so" if rows else "none"
    raise RunError(
        f"run {reference!r}: expected an id, the beginning of one, or a name; found {found}. {_candidates(shown)}"
    )


def list_runs(db: Database) -> list[Run]:
    """Return every run, in the order of their making."""
    with db.read() as connection:
        return [_run(row) for row in connection.execute(_newest_first())][::-1]


def cancel_run(db: Database, run_id: str) -> None:
    """Mark a run as cancelled; doing it twice is safe. Raises RunError for a run that is done or unknown."""
    unfinished = (runs.c.id == run_id) & runs.c.finished_at.is_(None)
    cancelled_at = func.coalesce(runs.c.cancelled_at, now())
    with db.write() as connection:
        changed = connection.execute(update(runs).where(unfinished).values(cancelled_at=cancelled_at)).rowcount
    if not changed:
        state = find_run(db, run_id).state
        raise RunError(f"run {run_id}: expected pairs that are still to do, found it {state}; nothing to cancel")


def lift_cancel(db: Database, run_id: str) -> None:
    """Let a cancelled run go on; one that is not cancelled stays as it is."""
    with db.write() as connection:
        connection.execute(update(runs).where(runs.c.id == run_id).values(cancelled_at=None))


def is_cancelled(db: Database, run_id: str) -> bool:
    """Say whether a run is cancelled, by one look-up: cheap enough to ask every second."""
    with db.read() as connection:
        return connection.scalar(select(runs.c.cancelled_at).where(runs.c.id == run_id)) is not None


def _values(run: NewRun) -> dict[str, Any]:
    """Return the columns of a run that has not begun."""
    values = asdict(run)
    sampling: dict[str, Any] = values.pop("sampling")
    changed = {
        "number": select(func.coalesce(func.max(runs.c.number), 0) + 1).scalar_subquery(),
        "thinking": int(run.thinking),
        "do_sample": int(run.sampling.do_sample),
        "environment": json.dumps({clean(key): clean(value) for key, value in run.environment.items()}),
        "argv": json.dumps([clean(argument) for argument in run.argv]),
        "created_at": now(),
    }
    return values | sampling | changed | {"total": 0, "done": 0, "failed": 0}


def _pair_rows(run_id: str, pairs: Iterable[Pair], sizes: Counter[int]) -> Iterator[dict[str, Any]]:
    """Turn pairs into rows, and count the pairs of each job on the way."""
    for pair in pairs:
        sizes[pair.job] += 1
        yield {"run_id": run_id, "position": pair.position, "idx_a": pair.idx_a, "idx_b": pair.idx_b,
               "seed": pair.seed, "job": pair.job}


def _job_rows(run_id: str, sizes: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """Turn the jobs' sizes into rows."""
    return ({"run_id": run_id, "job": job, "size": size, "attempts": 0} for job, size in sizes.items())


def _insert_images(connection: Connection, fingerprint: str, names: Sequence[str]) -> None:
    """Record the images' names, unless an earlier run on the same embeddings has."""
    known = select(images_table.c.idx).where(images_table.c.embeddings_fingerprint == fingerprint).limit(1)
    if connection.execute(known).first() is None:
        rows = ({"embeddings_fingerprint": fingerprint, "idx": idx, "name": name} for idx, name in enumerate(names))
        # On PostgreSQL another run may be recording them at this moment.
        _insert(connection, insert_into(connection, images_table).on_conflict_do_nothing(), rows)


def _insert(connection: Connection, statement: Executable, rows: Iterable[dict[str, Any]]) -> None:
    """Insert a stream of rows in chunks."""
    for chunk in batched(rows, _CHUNK):
        connection.execute(statement, chunk)


@cache
def _newest_first() -> Select[Any]:
    """Select all runs with their state, the latest first."""
    joined = runs.join(run_summary, run_summary.c.run_id == runs.c.id)
    return select(runs, run_summary.c.state).select_from(joined).order_by(runs.c.number.desc(), runs.c.id)


def _matching(connection: Connection, reference: str | None) -> Sequence[Row[Any]]:
    """Return the one run that a reference means, or none, or all whose id begins so."""
    if reference is None:
        return connection.execute(_newest_first().limit(1)).all()
    wanted = clean(reference)
    if not wanted:
        return []
    exact = (runs.c.id == wanted, runs.c.name == wanted)
    beginning = func.substr(runs.c.id, 1, len(wanted)) == wanted.lower()
    queries = [_newest_first().where(condition).limit(1) for condition in exact]
    for query in (*queries, _newest_first().where(beginning)):
        if rows := connection.execute(query).all():
            return rows
    return []


def _candidates(rows: Sequence[Row[Any]]) -> str:
    """List runs in one line of an error."""
    listed = ", ".join(f"{row.id} ({row.name})" if row.name else row.id for row in rows[:_SHOWN])
    return f"There are: {listed}" + (", and more: `diptych runs` lists them" if len(rows) > _SHOWN else "")


def _run(row: Row[Any]) -> Run:
    """Turn a row into a record."""
    sampling = Sampling(bool(row.do_sample), row.temperature, row.top_k, row.top_p, row.repetition_penalty,
                        row.max_tokens)
    return Run(
        id=row.id, name=row.name, prompt=row.prompt, thinking=bool(row.thinking), sampling=sampling, seed=row.seed,
        batch_size=row.batch_size, pair_order=row.pair_order, pairs_file=row.pairs_file, pairs_sha256=row.pairs_sha256,
        embeddings_dir=row.embeddings_dir, embeddings_fingerprint=row.embeddings_fingerprint,
        weights_dir=row.weights_dir, model_fingerprint=row.model_fingerprint, version=row.version,
        environment=json.loads(row.environment), argv=tuple(json.loads(row.argv)), created_at=row.created_at,
        finished_at=row.finished_at, state=row.state, total=row.total, done=row.done, failed=row.failed,
    )
