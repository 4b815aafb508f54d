"""How far a run is: counts, rate and the time that is left."""

from store_samples import make_row, make_run

from jobs.progress import read_progress
from store.database import Database
from store.jobs import finish_job, start_job
from store.results import record_results
from store.runs import find_run


def test_the_time_left_is_that_of_all_who_work(database: Database) -> None:
    run = make_run(database, 16)      # four jobs of four pairs
    start_job(database, run.id, 0, "one")
    record_results(database, run.id, [make_row(position) for position in range(4)])
    finish_job(database, run.id, 0, seconds=60.0)

    left = [read_progress(database, find_run(database, run.id)).seconds_left]
    for job, worker in ((1, "one"), (2, "two")):
        start_job(database, run.id, job, worker)
        left.append(read_progress(database, find_run(database, run.id)).seconds_left)

    assert left == [180.0, 180.0, 90.0]
