"""Jobs: what is left of a run, who works at it and how fast."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection
from store_samples import create_database, make_pairs, make_row, make_run

from store.database import Database
from store.errors import RunError
from store.jobs import (
    JobCounts,
    done_positions,
    finish_job,
    job_counts,
    rate,
    read_pairs,
    release_job,
    start_job,
    unfinished_jobs,
)
from store.records import Pair
from store.results import record_results


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with create_database(tmp_path) as db:
        yield db


def test_a_job_is_unfinished_until_each_of_its_pairs_has_a_row(database: Database) -> None:
    run = make_run(database, 12)
    make_run(database, 12)
    left = [unfinished_jobs(database, run.id)]

    for positions in (range(7), range(7, 8), range(8, 12)):
        record_results(database, run.id, [make_row(position) for position in positions])
        left.append(unfinished_jobs(database, run.id))

    assert left == [[0, 1, 2], [1, 2], [2], []]


def test_failed_rows_are_taken_up_again_only_where_that_was_asked(database: Database) -> None:
    run = make_run(database, 12)
    record_results(database, run.id, [make_row(position, error="unreadable" if position == 5 else None)
                                      for position in range(8)])

    assert unfinished_jobs(database, run.id) == [2]
    assert unfinished_jobs(database, run.id, retry_failed=True) == [1, 2]


def test_only_successes_are_final(database: Database) -> None:
    run = make_run(database, 8)
    record_results(database, run.id, [make_row(1), make_row(2, error="unreadable"), make_row(4)])

    assert done_positions(database, run.id, 0) == {1}
    assert done_positions(database, run.id, 1) == {4}
    assert done_positions(database, run.id, 2) == set()


def test_the_pairs_of_a_job_come_in_order_of_position_wherever_they_stand_in_the_file(database: Database) -> None:
    pairs = [Pair(position, 0, 1, position, (7 * position) % 5) for position in reversed(range(50))]
    run = make_run(database, pairs=pairs)

    for job in range(5):
        assert read_pairs(database, run.id, job) == [pair for pair in reversed(pairs) if pair.job == job]
    assert read_pairs(database, run.id, 5) == read_pairs(database, "nonesuch", 0) == []


def test_no_question_about_one_job_walks_through_the_whole_run(database: Database) -> None:
    run = make_run(database, 100)
    plans: list[str] = []

    def explain(connection: Connection, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        with closing(sqlite3.connect(database.location)) as other:
            plans.extend(row[3] for row in other.execute(f"explain query plan {statement}", parameters))

    with database.read() as connection:
        engine = connection.engine
    event.listen(engine, "after_cursor_execute", explain)
    read_pairs(database, run.id, 3)
    done_positions(database, run.id, 3)

    assert [plan for plan in plans if "pairs_by_job (run_id=? AND job=?)" in plan]
    assert not [plan for plan in plans if plan.startswith("SCAN") or "(run_id=?)" in plan]


def test_each_start_of_a_job_is_an_attempt(database: Database) -> None:
    run = make_run(database)

    attempts = [start_job(database, run.id, job, "w1") for job in (0, 1, 0, 0)]

    assert attempts == [1, 1, 2, 3]


@pytest.mark.parametrize(("run_id", "job"), [("nonesuch", 0), (None, 2), (None, -1), ("../../etc", 0), ("\ud800", 0)])
def test_a_job_that_is_not_planned_cannot_be_started(database: Database, run_id: str | None, job: int) -> None:
    run = make_run(database, 8)

    with pytest.raises(RunError, match="found no such job"):
        start_job(database, run_id or run.id, job, "w1")

    assert job_counts(database, run.id) == JobCounts(queued=2, running=0)


def test_jobs_are_counted_from_start_to_finish(database: Database) -> None:
    run = make_run(database, 12)
    make_run(database, 12)
    counts = [job_counts(database, run.id)]

    start_job(database, run.id, 0, "w1")
    start_job(database, run.id, 1, "w2")
    counts.append(job_counts(database, run.id))
    release_job(database, run.id, 0)
    finish_job(database, run.id, 1, 3.0)
    release_job(database, run.id, 1)
    counts.append(job_counts(database, run.id))

    assert counts == [JobCounts(3, 0), JobCounts(1, 2), JobCounts(2, 0)]
    with database.read() as connection:
        workers = connection.exec_driver_sql(f"select worker from jobs where run_id = '{run.id}' order by job").all()
    assert [worker for worker, in workers] == [None, "w2", None]
    assert job_counts(database, "nonesuch") == JobCounts(0, 0)


def test_the_rate_is_that_of_the_jobs_own_seconds(database: Database) -> None:
    run = make_run(database, 10)
    rates = [rate(database, run.id)]

    for job, seconds in ((0, 2.0), (2, 1.0)):
        start_job(database, run.id, job, "w1")
        finish_job(database, run.id, job, seconds)
        rates.append(rate(database, run.id))

    assert rates == [None, 4 / 2 * 60, (4 + 2) / 3 * 60]


def test_the_rate_follows_the_jobs_that_finished_last(database: Database) -> None:
    run = make_run(database, pairs=make_pairs(40, job_size=1))
    for job in range(40):
        finish_job(database, run.id, job, 100.0 if job < 20 else 0.5)

    assert rate(database, run.id) == 120
