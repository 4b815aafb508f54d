"""A worker from start to end: what becomes of runs that fail, block the others, or have lost their tickets."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from realvalkey import Valkey
from store_samples import create_database, make_row, make_run

from jobs.enqueue import Request, enqueue_run, plan_run
from jobs.inputs import Settings
from jobs.queue import JobQueue, Ticket, connect
from jobs.resume import resume
from store.database import Database
from store.deaths import begin_alone, is_tried_alone
from store.errors import EmbeddingsError, WeightsError
from store.jobs import start_job
from store.records import Run, Sampling
from store.results import record_results
from store.runs import cancel_run, find_run
from workers.engine import Engine
from workers.report import Reporter
from workers.service import Options, left_behind, make_lost_check, run_worker
from workers.stop import Stop
from workers.worker import Work


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with create_database(tmp_path) as opened:
        yield opened


@pytest.fixture
def queue(server: Valkey, database: Database) -> Iterator[JobQueue]:
    with connect(server.url) as connection:
        connection.flushall()
        yield JobQueue(connection, database.id)


def enqueue(database: Database, queue: JobQueue, workspace: Path) -> Run:
    """Enqueue the eight reference pairs as two jobs."""
    settings = Settings(workspace / "embeddings_512", workspace / "vision_weights", "Compare these two images.", False,
                        Sampling(max_tokens=4, do_sample=False))
    plan = plan_run(Request(settings, workspace / "pairs.txt", None, 5, 4, None, ()))
    return enqueue_run(database, queue, plan)


def burst(database: Database, queue: JobQueue) -> Work:
    """Work the queue off in this process."""
    return run_worker(database, queue, Options(burst=True), Stop(), Reporter())


def test_an_engine_that_breaks_fails_the_pairs_and_a_retry_takes_them_up(
    database: Database, queue: JobQueue, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = enqueue(database, queue, workspace)

    def breaks(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", breaks)
        assert burst(database, queue) == Work(retried=6, done=2)      # at last each pair by itself
        failed = find_run(database, run.id)
        assert (failed.state, failed.failed, left_behind(database, queue)) == ("done", 8, [])

        assert resume(database, queue, failed, retry_failed=True).put_back == 2
        assert resume(database, queue, failed, retry_failed=True).put_back == 0
        assert find_run(database, run.id).state == "running"
        assert burst(database, queue).done == 2
        assert find_run(database, run.id).state == "done"

    resume(database, queue, failed, retry_failed=True)
    queue.connection.flushall()      # the tickets are lost; a plain resume finds what is to be retried
    assert [lost.id for lost in left_behind(database, queue)] == [run.id]
    assert resume(database, queue, failed).put_back == 2
    assert burst(database, queue) == Work(done=2)
    done = find_run(database, run.id)
    assert (done.state, done.done, done.failed) == ("done", 8, 0)


def test_a_run_that_cannot_be_prepared_is_named_with_the_way_past_it(
    database: Database, queue: JobQueue, workspace: Path
) -> None:
    bad = enqueue(database, queue, workspace)
    good = enqueue(database, queue, workspace)
    (workspace / "embeddings_512").rename(workspace / "elsewhere")

    passed_over = burst(database, queue).passed_over
    assert {run_id: type(error) for run_id, error in passed_over.items()} == {
        bad.id: EmbeddingsError, good.id: EmbeddingsError}
    assert str(passed_over[bad.id]).endswith(f"; `diptych cancel {bad.id}` drops the run")
    assert len(queue.waiting()) == 4

    cancel_run(database, bad.id)
    (workspace / "elsewhere").rename(workspace / "embeddings_512")
    assert burst(database, queue) == Work(done=2, dropped=2)
    assert find_run(database, good.id).state == "done"


@pytest.mark.parametrize(("folder", "error"), [("embeddings_512", EmbeddingsError), ("vision_weights", WeightsError)])
def test_files_that_vanish_between_two_jobs_of_a_run_cost_no_pair(
    database: Database, queue: JobQueue, workspace: Path, folder: str, error: type[Exception]
) -> None:
    weights = (workspace / "vision_weights").resolve()
    (workspace / "vision_weights").unlink()
    shutil.copytree(weights, workspace / "vision_weights")
    run = enqueue(database, queue, workspace)

    class Ejects(Reporter):
        def finished(self, *_: object) -> None:
            (workspace / folder).rename(workspace / "ejected")

    told = run_worker(database, queue, Options(burst=True), Stop(), Ejects()).passed_over[run.id]
    assert isinstance(told, error)
    assert re.search(f"No such file.*put the files back.*`diptych cancel {run.id}` drops the run$", str(told))

    found = find_run(database, run.id)
    assert (found.done, found.failed, queue.waiting()) == (4, 0, [Ticket(run.id, 1)])
    (workspace / "ejected").rename(workspace / folder)
    assert burst(database, queue) == Work(done=1)


def test_runs_with_planned_pairs_and_no_ticket_for_them_are_left_behind(database: Database, queue: JobQueue) -> None:
    whole, partly, finished, dropped = (make_run(database, 8, name=name) for name in ("a", "b", "c", "d"))
    queue.put([Ticket(whole.id, 0), Ticket(whole.id, 1), Ticket(partly.id, 0)])
    record_results(database, finished.id, [make_row(position) for position in range(8)])
    cancel_run(database, dropped.id)

    assert [run.id for run in left_behind(database, queue)] == [partly.id]

    record_results(database, partly.id, [replace(make_row(position), job=1) for position in range(4, 8)])
    assert left_behind(database, queue) == []


def test_a_worker_that_waits_names_a_run_whose_tickets_are_lost_once(
    database: Database, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    look = make_lost_check(database, queue, every=0)
    lost, whole = make_run(database, 8), make_run(database, 8)
    queue.put([Ticket(whole.id, 0), Ticket(whole.id, 1)])

    look()
    assert not caplog.records      # its enqueue may not have come so far
    for _ in range(3):
        look()
    assert [record.message for record in caplog.records] == [
        f"run {lost.id}: 8 planned pairs have no ticket on the queue; put them back: `diptych resume {lost.id}`"]

    resume(database, queue, lost)
    look()
    queue.connection.flushall()
    for _ in range(3):
        look()
    named = sorted(record.message.split(":")[0] for record in caplog.records[1:])
    assert named == sorted([f"run {lost.id}", f"run {whole.id}"])


def test_a_resume_begins_to_count_deaths_anew(database: Database, queue: JobQueue) -> None:
    run = make_run(database, 8)
    for _ in range(3):
        start_job(database, run.id, 0, "died")
    begin_alone(database, run.id, 0, 1)

    resume(database, queue, run)

    assert start_job(database, run.id, 0, "next").deaths == 0
    assert not is_tried_alone(database, run.id, 0)
