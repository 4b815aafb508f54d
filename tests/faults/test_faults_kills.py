"""kill -9 of the worker at random moments: nothing is lost, nothing is there twice, and nobody's help is needed."""

import random
import time
from pathlib import Path

import pytest
from conftest import wait_for
from night import LONG, Night, check, impatient
from realvalkey import Valkey

KILLS = 50 if LONG else 4
PAIRS = 2400 if LONG else 240
HEARTBEAT = 10.0 if LONG else 0.5      # seconds; a lease lasts three
LEASE = 60      # seconds; after so many, a killed worker's job must be back


def test_a_run_whose_worker_is_killed_again_and_again_ends_as_if_it_never_was(workspace: Path) -> None:
    night, rng = Night(workspace), random.Random(5)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()

    began, moments = time.monotonic(), []
    with night.worker():
        moments.append(night.wait_for_results(run_id))
    start = time.monotonic() - began      # seconds, to the first results
    for _ in range(KILLS - 1):
        with night.worker() as worker:
            time.sleep(rng.uniform(0.2, start + 1.0))
            assert worker.poll() is None, night.log
            moments.append(night.done(run_id))
    before = night.done(run_id)
    night.finish()

    check(night, run_id, "kill -9 of the worker at random moments", times=KILLS)
    assert 0 < before < PAIRS
    assert not LONG or len(set(moments)) > KILLS // 3


def make_long_job(workspace: Path, redis: str | None = None) -> tuple[Night, str]:
    """Enqueue one job that is not done before its worker is killed."""
    night = Night(workspace, options=("--max-tokens", 400, "--batch-size", 64, "--seed", 1, "--greedy"), redis=redis)
    night.write_pairs(64)
    return night, night.enqueue()


def is_taken_by(night: Night, attempt: int) -> bool:
    return bool(night.ask("select 1 from jobs where attempts = ? and worker is not null", attempt))


def test_the_job_of_a_killed_worker_is_back_at_once_when_a_new_one_starts_here(workspace: Path) -> None:
    night, run_id = make_long_job(workspace)
    with night.worker():
        wait_for(lambda: is_taken_by(night, 1), "the job to be taken")

    with night.worker("--burst") as second:
        wait_for(lambda: is_taken_by(night, 2), "the job to be taken again", seconds=20)
        assert second.wait(timeout=120) == 0

    assert "back on the queue" in night.log
    check(night, run_id, "job of a killed worker, taken by the next one here at once", times=1)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_the_job_of_a_killed_worker_comes_back_to_one_that_waits(
    workspace: Path, server: Valkey, tmp_path: Path, where: str
) -> None:
    night, run_id = make_long_job(workspace, server.url)
    home = {"HOME": str(tmp_path / "another")} if where == "elsewhere" else {}      # where it sees no lock of the first
    with night.worker(program=impatient(HEARTBEAT)) as first:
        wait_for(lambda: is_taken_by(night, 1), "the job to be taken")
        with night.worker(program=impatient(HEARTBEAT), **home) as waits:
            first.kill()
            wait_for(lambda: is_taken_by(night, 2), "the job to be taken by the other", seconds=LEASE)
            wait_for(lambda: night.done(run_id) == 64, "its pairs")
            waits.terminate()
            assert waits.wait(timeout=30) == 0

    check(night, run_id, f"job of a killed worker, taken by another that waits {where}", times=1)
