"""The queue's server killed, gone, wiped or replaced by an empty one: tickets are lost, results never."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_for
from night import LONG, Night, check
from realvalkey import Valkey

from jobs.queue import connect
from jobs.server import running_server
from store.database import open_database

KILLS = 20 if LONG else 3
AWAY = 30 if LONG else 5      # seconds without a server
PAIRS = 640 if LONG else 160


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    server = Valkey()
    server.start()
    yield server
    server.remove()


def kill_embedded(night: Night) -> None:
    """End the embedded server as a crash would."""
    with open_database(str(night.folder / night.database), create=False) as database:
        connection = running_server(database.id)
    if connection is not None:
        with connection:
            os.kill(int(connection.info("server")["process_id"]), signal.SIGKILL)


def test_the_embedded_server_may_be_killed_again_and_again(workspace: Path) -> None:
    night = Night(workspace)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()

    with night.worker("--burst") as worker:
        for _ in range(KILLS):
            night.wait_for_results(run_id)
            kill_embedded(night)
        assert worker.wait(timeout=300) in (0, 1), night.log
    resumed = night.run("resume")
    night.finish()

    assert resumed.returncode == 0
    check(night, run_id, "embedded server killed under a worker", times=KILLS)


def test_a_worker_waits_for_a_server_that_is_gone_and_says_so(workspace: Path, valkey: Valkey) -> None:
    night = Night(workspace, redis=valkey.url)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()

    with night.worker("--burst") as worker:
        night.wait_for_results(run_id)
        valkey.kill()
        time.sleep(AWAY)
        assert worker.poll() is None
        assert "Redis does not answer; waiting for it" in night.log
        valkey.start()
        assert worker.wait(timeout=300) == 0, night.log

    check(night, run_id, f"server gone for {AWAY} s in the middle of a job", times=1)


def wipe(server: Valkey) -> None:
    with connect(server.url) as connection:
        connection.flushall()


def replace(server: Valkey) -> None:
    server.kill()
    for path in sorted(server.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    server.start()


@pytest.mark.parametrize(("fault", "name"), [(wipe, "FLUSHALL in the middle of a run"),
                                             (replace, "server replaced by an empty one")])
def test_lost_tickets_are_named_and_a_resume_brings_them_back(
    workspace: Path, valkey: Valkey, fault: Callable[[Valkey], None], name: str
) -> None:
    night = Night(workspace, redis=valkey.url)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()

    with night.worker("--burst") as worker:
        night.wait_for_results(run_id)
        fault(valkey)
        assert worker.wait(timeout=300) == 1, night.log
    assert 0 < night.done(run_id) < PAIRS
    assert "planned pairs have no ticket on the queue; put them back with: diptych resume" in night.log

    resumed = night.run("resume")
    night.finish()

    assert resumed.returncode == 0
    check(night, run_id, name, times=1)


def test_a_waiting_worker_takes_up_what_a_resume_brings_back_after_a_wipe(workspace: Path, valkey: Valkey) -> None:
    night = Night(workspace, redis=valkey.url)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()

    with night.worker() as worker:
        night.wait_for_results(run_id)
        for _ in range(KILLS):
            wipe(valkey)
            assert night.run("resume").returncode == 0
        wait_for(lambda: night.done(run_id) == PAIRS, "all pairs", seconds=120)
        worker.terminate()
        assert worker.wait(timeout=30) == 0

    check(night, run_id, "FLUSHALL and resume under a worker", times=KILLS)
