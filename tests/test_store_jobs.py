"""Jobs: what is left of a run, who works at it and how fast."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.engine import Connection
from store_samples import ON_SQLITE, make_pairs, make_row, make_run

from store.database import Database
from store.errors import RunError
from store.jobs import (
    JobCounts,
    done_positions,
    end_job,
    finish_job,
    job_counts,
    open_positions,
    rate,
    read_pairs,
    release_job,
    retry_failed,
    start_job,
    unfinished_jobs,
)
from store.records import Pair
from store.results import record_results
from store.runs import cancel_run, find_run
from store.schema import is_to_retry, results


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
    assert retry_failed(database, run.id) == 1
    assert retry_failed(database, run.id) == 1
    assert unfinished_jobs(database, run.id) == [1, 2]


def test_a_run_that_retries_its_failures_is_unfinished_until_each_has_a_new_row(database: Database) -> None:
    run = make_run(database, 8)
    for job in (0, 1):
        start_job(database, run.id, job, "w1")
        record_results(database, run.id, [make_row(position, error="broken" if position in (1, 2, 5) else None)
                                          for position in range(4 * job, 4 * job + 4)])
        finish_job(database, run.id, job, 1.0)
    assert find_run(database, run.id).state == "done"

    retry_failed(database, run.id)
    found = find_run(database, run.id)
    assert (found.state, found.finished_at, found.done, found.failed) == ("running", None, 5, 3)
    assert job_counts(database, run.id) == JobCounts(queued=2, running=0)
    assert open_positions(database, run.id, 0) == {1, 2}
    assert rate(database, run.id) is None

    start_job(database, run.id, 0, "w2")
    record_results(database, run.id, [make_row(1, attempt=2)])      # here its worker is killed
    assert find_run(database, run.id).state == "running"
    assert unfinished_jobs(database, run.id) == [0, 1]

    again = [make_row(2, error="broken", attempt=3), make_row(5, error="broken", attempt=2)]
    assert record_results(database, run.id, again) == 2
    found = find_run(database, run.id)
    assert (found.state, found.done, found.failed, found.pending) == ("done", 6, 2, 0)
    assert found.finished_at is not None
    assert unfinished_jobs(database, run.id) == []
    assert record_results(database, run.id, again) == 0


def test_a_run_without_failures_stays_done_when_they_are_to_be_retried(database: Database) -> None:
    run = make_run(database, 1)
    record_results(database, run.id, [make_row(0)])

    assert retry_failed(database, run.id) == 0

    assert find_run(database, run.id).state == "done"


def test_a_run_that_retries_its_failures_can_be_cancelled(database: Database) -> None:
    run = make_run(database, 1)
    record_results(database, run.id, [make_row(0, error="broken")])

    retry_failed(database, run.id)
    cancel_run(database, run.id)

    assert find_run(database, run.id).state == "cancelled"


def test_only_the_jobs_with_failures_and_not_the_one_in_work_wait_again(database: Database) -> None:
    run = make_run(database, 12)
    record_results(database, run.id, [make_row(0, error="broken"), make_row(8, error="broken")])
    for job in range(3):
        start_job(database, run.id, job, "w1")
    for job in range(2):
        finish_job(database, run.id, job, 1.0)

    retry_failed(database, run.id)

    assert job_counts(database, run.id) == JobCounts(queued=1, running=1)


@ON_SQLITE
def test_looking_for_rows_to_retry_does_not_walk_through_the_results(database: Database) -> None:
    query = str(select(results.c.position).where(results.c.run_id == "x", is_to_retry)).replace(":run_id_1", "'x'")

    with database.read() as connection:
        plan = connection.exec_driver_sql(f"explain query plan {query}").all()

    assert "USING INDEX results_to_retry (run_id=?)" in str(plan)


def test_no_job_of_a_cancelled_run_waits(database: Database) -> None:
    run = make_run(database, 8)
    start_job(database, run.id, 0, "w1")

    cancel_run(database, run.id)

    assert job_counts(database, run.id) == JobCounts(queued=0, running=1)


def test_a_job_that_is_given_up_neither_waits_nor_counts_for_the_rate(database: Database) -> None:
    run = make_run(database, 8)
    for _ in range(2):
        start_job(database, run.id, 0, "w1")
        release_job(database, run.id, 0)

    assert [end_job(database, run.id, 0) for _ in range(2)] == [2, 2]

    assert job_counts(database, run.id) == JobCounts(queued=1, running=0)
    assert rate(database, run.id) is None
    with pytest.raises(RunError, match="found no such job"):
        end_job(database, run.id, 7)


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


@ON_SQLITE
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

    attempts = [start_job(database, run.id, job, "w1").attempt for job in (0, 1, 0, 0)]

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
