"""Deaths: what counts as one, and what takes it back."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from store_samples import make_row, make_run

from store.database import Database, open_database
from store.deaths import begin_alone, forget_deaths, is_tried_alone, leave_alone
from store.jobs import end_job, finish_job, release_job, retry_failed, start_job
from store.results import record_results


def test_each_take_without_an_end_is_a_death_of_the_job(database: Database) -> None:
    run = make_run(database, 12)

    assert [start_job(database, run.id, 0, "w").deaths for _ in range(4)] == [0, 1, 2, 3]
    assert start_job(database, run.id, 1, "w").deaths == 0


@pytest.mark.parametrize(("end", "deaths"), [
    (lambda db, run: record_results(db, run, [make_row(2)]), 0),
    (lambda db, run: finish_job(db, run, 0, 1.0), 0),
    (lambda db, run: end_job(db, run, 0), 0),
    (lambda db, run: release_job(db, run, 0), 1),      # this take was none; the one before it was
    (forget_deaths, 0),
], ids=["a result", "finished", "ended", "left in order", "resumed"])
def test_what_takes_deaths_back(database: Database, end: Callable[[Database, str], object], deaths: int) -> None:
    run = make_run(database, 12)
    for _ in range(2):
        start_job(database, run.id, 0, "w")

    end(database, run.id)

    assert start_job(database, run.id, 0, "w").deaths == deaths


def test_a_result_of_another_job_takes_no_death_back(database: Database) -> None:
    run = make_run(database, 12)
    start_job(database, run.id, 0, "w")

    record_results(database, run.id, [make_row(7)])

    assert start_job(database, run.id, 0, "w").deaths == 1


def test_a_pair_that_is_tried_alone_counts_for_itself(database: Database) -> None:
    run = make_run(database, 12)

    assert [begin_alone(database, run.id, 0, 3) for _ in range(3)] == [0, 1, 2]
    assert begin_alone(database, run.id, 0, 2) == 0

    assert is_tried_alone(database, run.id, 0)
    assert not is_tried_alone(database, run.id, 1)


def test_a_pair_that_has_failed_stays_known_until_it_is_to_be_retried(database: Database) -> None:
    run = make_run(database, 12)
    begin_alone(database, run.id, 0, 1)
    record_results(database, run.id, [make_row(1, error="the worker died")])

    forget_deaths(database, run.id)
    assert is_tried_alone(database, run.id, 0)

    retry_failed(database, run.id)
    forget_deaths(database, run.id)
    assert not is_tried_alone(database, run.id, 0)


def test_another_failure_of_a_pair_takes_no_death_of_its_job_back(database: Database) -> None:
    run = make_run(database, 12)
    record_results(database, run.id, [make_row(1, error="unreadable")])
    start_job(database, run.id, 0, "w")

    record_results(database, run.id, [make_row(1, error="unreadable", attempt=2)])
    assert start_job(database, run.id, 0, "w").deaths == 1

    record_results(database, run.id, [make_row(1, attempt=3)])
    assert start_job(database, run.id, 0, "w").deaths == 0


def test_a_result_an_orderly_end_and_a_resume_take_a_pairs_deaths_back(database: Database) -> None:
    run = make_run(database, 12)
    for position in (1, 2, 3):
        begin_alone(database, run.id, 0, position)
        begin_alone(database, run.id, 0, position)

    record_results(database, run.id, [make_row(1)])
    leave_alone(database, run.id, 2)

    assert [begin_alone(database, run.id, 0, position) for position in (1, 2, 3)] == [0, 1, 2]
    forget_deaths(database, run.id)
    assert not is_tried_alone(database, run.id, 0)
    assert begin_alone(database, run.id, 0, 3) == 0


@pytest.mark.parametrize("location", ["postgresql"], indirect=True)      # SQLite has one writer at a time
@pytest.mark.parametrize("beside", [
    lambda db, run, job: start_job(db, run, job, "another"),
    lambda db, run, job: forget_deaths(db, run),
    lambda db, run, job: [begin_alone(db, run, job, 4 * job + place) for place in (3, 2, 1, 0)],
    lambda db, run, job: retry_failed(db, run),
], ids=["another worker takes the job", "a resume", "pairs are tried alone", "failures are to be retried"])
def test_nobody_waits_for_a_record_that_waits_for_them(
    database: Database, location: str, beside: Callable[[Database, str, int], object]
) -> None:
    run, at, ended = make_run(database, 400), [0], threading.Event()

    def record(job: int) -> None:
        at[0] = job
        start_job(database, run.id, job, "w")
        positions = range(4 * job, 4 * job + 4)
        for position in positions:
            begin_alone(database, run.id, job, position)
        record_results(database, run.id, [make_row(n, error="e" if n % 2 else None) for n in positions])

    def disturb() -> None:
        with open_database(location, create=False) as other:
            while not ended.is_set():
                beside(other, run.id, at[0])

    with ThreadPoolExecutor() as threads:
        disturbing = threads.submit(disturb)
        try:
            for job in range(100):
                record(job)
        finally:
            ended.set()
        disturbing.result()
