"""Many at one database: two workers, readers and writers beside them; nobody waits in vain, no lease is lost."""

import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import DIPTYCH, wait_for
from night import LONG, Night, check
from realvalkey import Valkey

from jobs.queue import JobQueue, Ticket, connect
from workers.stop import Stop
from workers.worker import Work, work

PAIRS = 1600 if LONG else 160
HEARTBEAT = 10.0 if LONG else 0.5      # seconds; a lease lasts three
EVALUATION = 35.0 if LONG else 3.0     # seconds in one mx.eval


def read_as_a_foreigner(night: Night) -> None:
    """Read everything with a connection that is held open for a while, as a person's tool does."""
    connection = sqlite3.connect(night.folder / night.database, timeout=0)
    connection.execute("begin")
    connection.execute("select count(*), sum(length(text)) from comparisons").fetchall()
    time.sleep(0.2)
    connection.execute("select * from run_summary").fetchall()
    connection.close()


@contextmanager
def watching(night: Night, run_id: str) -> Iterator[subprocess.Popen[str]]:
    """Let `status --watch` look on."""
    command = [str(DIPTYCH), "status", run_id, "--watch", *night.place]
    with (night.folder / "watched").open("w") as out:
        process = subprocess.Popen(command, cwd=night.folder, stdout=out, stderr=out, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_two_workers_and_their_company_are_never_in_each_others_way(workspace: Path) -> None:
    night = Night(workspace)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()
    said, ended = list[str](), threading.Event()

    def repeat(do: Callable[[], object]) -> None:
        while not ended.is_set():
            done = do()
            if done is not None:
                said.append(f"{done.returncode} {done.stderr}")      # type: ignore[attr-defined]  # a finished process

    company = [
        lambda: night.run("status"), lambda: night.run("results", "--format", "jsonl", "-o", "out.jsonl"),
        lambda: night.run("enqueue", "pairs.txt", "--max-tokens", 1, "--batch-size", 64),
        lambda: read_as_a_foreigner(night),
    ]
    threads = [threading.Thread(target=repeat, args=(do,)) for do in company]
    with night.worker() as one, night.worker() as two, watching(night, run_id) as watch:
        for thread in threads:
            thread.start()
        wait_for(lambda: night.done(run_id) == PAIRS, "all pairs", seconds=240)
        ended.set()
        for thread in threads:
            thread.join()
        assert watch.wait(timeout=60) == 0
        for worker in (one, two):
            worker.terminate()
            assert worker.wait(timeout=60) == 0, night.log

    watched = (night.folder / "watched").read_text()
    assert f"{PAIRS} of {PAIRS} done" in watched.replace(",", "")
    assert said
    assert all(line.startswith("0 ") for line in said), said
    assert "locked" not in night.log + "".join(said)
    assert night.ask("select max(attempts) from jobs where run_id = ?", run_id) == [(1,)]      # no lease was lost
    check(night, run_id, "two workers, three commands and a foreign reader at once", times=len(said))


@pytest.fixture
def queue(server: Valkey) -> JobQueue:
    connection = connect(server.url)
    connection.flushall()
    return JobQueue(connection, "0" * 32)


def evaluate(seconds: float) -> float:
    """Compute something in one mx.eval that takes about so long; return how long it took."""
    x = mx.random.normal((256, 256)) / 16
    began = time.monotonic()
    for _ in range(20):
        mx.eval(x @ x)
    each, y = (time.monotonic() - began) / 20, x
    for _ in range(round(seconds / each)):
        y = y @ x
    began = time.monotonic()
    mx.eval(y)
    return time.monotonic() - began


def test_a_lease_is_kept_during_one_long_evaluation(queue: JobQueue) -> None:
    queue.put([Ticket("a1b2c3", 1)])
    took, rescued = list[float](), list[Ticket]()

    def rescue() -> None:      # as a worker elsewhere does, which cannot see this one
        while not took:
            rescued.extend(queue.rescue(lambda name: False))
            time.sleep(0.1)

    other = threading.Thread(target=rescue)
    other.start()
    outcome = work(queue, lambda run_id, job: took.append(evaluate(EVALUATION)), prepare=lambda ticket: None,
                   give_up=lambda *lost: None, burst=True, stop=Stop(), heartbeat=HEARTBEAT)
    other.join()

    assert took[0] > 1.5 * HEARTBEAT
    assert (outcome, rescued) == (Work(done=1), [])
