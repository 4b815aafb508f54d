"""The worker: every ticket is done, put back, retried or refused, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from realvalkey import Valkey
from rq import Worker as RqWorker
from rq.utils import current_timestamp

from jobs.queue import TASK, JobQueue, Ticket, connect
from jobs.tickets import TicketError, TicketJob
from store.errors import DatabaseError, DeviceError, DiptychError, QueueError, RunError, WeightsError
from workers import stop as stopping
from workers import worker as working
from workers.stop import Cancelled, Stop, Stopped
from workers.worker import POLL, POLL_PAST, Patience, Work, Worker, make_job_class, work

DATABASE = "0123456789abcdef0123456789abcdef"
RUN = "a1b2c3"
SCRIPT = """
import pathlib, sys, time
from jobs.queue import JobQueue, connect
from workers.stop import Stop, Stopped
from workers.worker import work

url, database, burst, file = sys.argv[1:]
stop = Stop()

def compare(run_id, job):
    print("begun", job, flush=True)
    heard = 0
    while not file or not pathlib.Path(file).exists():      # the file ends the slice in hand
        if stop.now:
            raise Stopped
        if stop.level > heard:
            heard = stop.level
            print("heard", heard, flush=True)
        time.sleep(0.01)

print("waiting", flush=True)
print(work(JobQueue(connect(url), database), compare, prepare=lambda ticket: None,
           give_up=lambda *lost: None, burst=bool(burst), stop=stop))
print("signal", stop.signal, flush=True)
"""


@pytest.fixture
def queue(server: Valkey) -> Iterator[JobQueue]:
    with connect(server.url) as connection:
        connection.flushall()
        yield JobQueue(connection, DATABASE)


def tickets(*jobs: int, run: str = RUN) -> list[Ticket]:
    return [Ticket(run, job) for job in jobs]


def nothing(*_: object) -> None:
    pass


def burst(queue: JobQueue, compare: Callable[[str, int], None] = nothing,
          prepare: Callable[[Ticket], None] = nothing, heartbeat: float = 10.0,
          give_up: Callable[[str, int, BaseException], None] = nothing) -> Work:
    """Work the queue off in this process."""
    return work(queue, compare, prepare=prepare, give_up=give_up, burst=True, stop=Stop(), heartbeat=heartbeat)


@contextmanager
def worker(url: str, *, burst: bool = False, until: Path | str = "") -> Iterator[subprocess.Popen[str]]:
    """Run a worker in a process of its own; its jobs last until the file is there."""
    command = [sys.executable, "-c", SCRIPT, url, DATABASE, "yes" if burst else "", str(until)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert read(process) == "waiting"
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_burst_does_every_job_in_order_and_ends(queue: JobQueue) -> None:
    queue.put(tickets(3, 1, 2))
    done: list[tuple[str, int]] = []

    outcome = burst(queue, lambda run_id, job: done.append((run_id, job)))

    assert done == [(RUN, 3), (RUN, 1), (RUN, 2)]
    assert outcome == Work(done=3)
    assert (queue.waiting(), queue.running(), queue.failed()) == ([], [], [])


def test_a_finished_job_leaves_nothing_in_redis(queue: JobQueue) -> None:
    queue.put(tickets(1))

    burst(queue)

    keys = {key.decode().split(":")[1] for key in queue.connection.scan_iter()}
    assert keys <= {"queues", "worker"}      # the worker's own, for a minute
    assert all(queue.connection.ttl(key) > 0 for key in queue.connection.scan_iter("rq:worker:*"))


def test_the_ticket_still_waits_while_its_model_is_loaded(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    seen = []

    burst(queue, prepare=lambda ticket: seen.append((ticket, queue.waiting())))

    assert seen == [(Ticket(RUN, 1), tickets(1, 2)), (Ticket(RUN, 2), tickets(2))]


@pytest.mark.parametrize("where", ["prepare", "compare"])
def test_a_run_whose_files_do_not_do_is_passed_over_and_others_are_worked_at(
    queue: JobQueue, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put([*tickets(1, 2, run="broken"), *tickets(1, 2)])
    done = []

    def refuse(place: str, run_id: str, job: int) -> None:
        if run_id == "broken":
            if where == place:
                raise WeightsError("changed on disk")
        elif place == "compare":
            done.append(job)

    for _ in range(5):      # more often than a job is retried: it costs no retry
        outcome = burst(queue, lambda run_id, job: refuse("compare", run_id, job),
                        lambda ticket: refuse("prepare", ticket.run_id, ticket.job))
        assert str(outcome.passed_over["broken"]) == "changed on disk; `diptych cancel broken` drops the run"

    assert done == [1, 2]
    assert (queue.waiting(), queue.running(), queue.failed()) == (tickets(1, 2, run="broken"), [], [])
    assert "run broken is passed over until a worker is started again: changed on disk" in caplog.text


def patient(queue: JobQueue, stop: Stop, prepare: Callable[[Ticket], None],
            compare: Callable[[str, int], None] = nothing, *, pass_again: float) -> Work:
    """Work the queue off in this process, and wait for more until `stop`, or for 50 looks at the queue."""
    looks = iter(range(50))

    def idle() -> None:
        if next(looks, None) is None:
            stop.request()

    return work(queue, compare, prepare=prepare, give_up=nothing, burst=False, stop=stop, idle=idle,
                pass_again=pass_again)


def test_a_worker_that_waits_tries_a_run_again_that_it_has_passed_over(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(working, "POLL_PAST", 0.01)
    queue.put([*tickets(1, 2, run="broken"), *tickets(1)])
    stop, tried, done = Stop(), list[str](), list[tuple[str, int]]()

    def prepare(ticket: Ticket) -> None:
        if ticket.run_id == "broken":
            tried.append("broken")
            if len(tried) < 3:      # then the disk is there again
                raise WeightsError(f"away, {len(tried)}")

    def compare(run_id: str, job: int) -> None:
        done.append((run_id, job))
        if len(done) == 3:
            stop.request()

    outcome = patient(queue, stop, prepare, compare, pass_again=0.05)

    assert done == [(RUN, 1), ("broken", 1), ("broken", 2)]
    assert outcome == Work(done=3, stopped=True)
    assert [line for line in caplog.messages if "passed over" in line] == [
        f"run broken is passed over for 0.05 s: away, {trial}; `diptych cancel broken` drops the run"
        for trial in (1, 2)]


def test_a_run_is_not_tried_again_before_its_time(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "POLL_PAST", 0.01)
    queue.put(tickets(1))
    stop, tried = Stop(), list[Ticket]()

    def prepare(ticket: Ticket) -> None:
        tried.append(ticket)
        if len(tried) == 2:
            stop.request()
        raise WeightsError("away")

    assert patient(queue, stop, prepare, pass_again=300).passed_over.keys() == {RUN}
    assert tried == tickets(1)


def test_a_worker_looks_less_often_past_the_tickets_of_runs_that_it_passes_over(queue: JobQueue) -> None:
    queue.put(tickets(1))
    waited = []

    class Noted(Stop):
        def wait(self, seconds: float) -> bool:
            waited.append(seconds)
            time.sleep(0.5)      # until it is to be tried again
            if len(waited) == 2:
                self.request()
            return self.requested

    stop = Noted()

    def prepare(ticket: Ticket) -> None:
        if waited:
            raise RunError("no such run")
        raise WeightsError("away")

    patient(queue, stop, prepare, pass_again=0.4)

    assert waited == [POLL_PAST, POLL]


@pytest.mark.parametrize("error", [DatabaseError("disk full"), DeviceError("a GPU that computes nothing more")],
                         ids=["disk", "device"])
def test_what_keeps_a_worker_from_recording_anything_ends_it_and_the_job_goes_back_to_the_front(
    queue: JobQueue, error: DiptychError
) -> None:
    queue.put(tickets(1, 2))

    def compare(run_id: str, job: int) -> None:
        raise error

    for _ in range(5):      # more often than a job is retried: it costs no retry
        with pytest.raises(type(error), match=str(error)):
            burst(queue, compare)

    assert (queue.waiting(), queue.running(), queue.failed()) == (tickets(1, 2), [], [])


@pytest.mark.parametrize("where", ["prepare", "compare"])
def test_a_ticket_of_a_run_that_does_not_exist_is_dropped_and_the_worker_goes_on(queue: JobQueue, where: str) -> None:
    queue.put([Ticket("nowhere", 1), Ticket(RUN, 1)])

    def refuse(place: str, run_id: str) -> None:
        if where == place and run_id == "nowhere":
            raise RunError("no such run")

    outcome = burst(queue, lambda run_id, job: refuse("compare", run_id), lambda t: refuse("prepare", t.run_id))

    assert outcome == Work(done=1, dropped=1)
    assert not queue.connection.exists("rq:job:nowhere-1")


def test_a_job_that_raises_is_tried_again_after_the_others_and_fails_in_the_end(
    queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(tickets(1, 2))
    tried = []

    def compare(run_id: str, job: int) -> None:
        tried.append(job)
        if job == 1:
            raise ZeroDivisionError("by nought")

    outcome = burst(queue, compare)

    assert tried == [1, 2, 1, 1, 1]
    assert outcome == Work(done=1, retried=3, failed=1)
    assert (queue.waiting(), queue.failed()) == ([], tickets(1))
    assert "job a1b2c3-1 failed with ZeroDivisionError: by nought; for the last time" in caplog.text


def test_a_job_is_given_up_once_when_its_ticket_has_failed(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    given_up: list[tuple[str, int, str, list[Ticket]]] = []

    def compare(run_id: str, job: int) -> None:
        raise ZeroDivisionError("by nought")

    def give_up(run_id: str, job: int, error: BaseException) -> None:
        given_up.append((run_id, job, repr(error), queue.failed()))

    assert burst(queue, compare, give_up=give_up) == Work(retried=6, failed=2)

    assert given_up == [(RUN, 1, "ZeroDivisionError('by nought')", tickets(1)),
                        (RUN, 2, "ZeroDivisionError('by nought')", tickets(1, 2))]


def test_a_job_of_no_run_that_is_given_up_does_no_harm(queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
    queue.put(tickets(1, 2))

    def compare(run_id: str, job: int) -> None:
        if job == 1:
            raise ZeroDivisionError

    def give_up(run_id: str, job: int, error: BaseException) -> None:
        raise RunError("no such run")

    assert burst(queue, compare, give_up=give_up) == Work(done=1, retried=3, failed=1)
    assert "the failed ticket a1b2c3-1 is of no run: no such run" in caplog.text


def test_what_a_person_must_mend_before_a_failure_can_be_recorded_ends_the_worker(queue: JobQueue) -> None:
    queue.put(tickets(1))

    def compare(run_id: str, job: int) -> None:
        raise ZeroDivisionError

    def give_up(run_id: str, job: int, error: BaseException) -> None:
        raise DatabaseError("disk full")

    with pytest.raises(DatabaseError, match="disk full"):
        burst(queue, compare, give_up=give_up)

    assert (queue.waiting(), queue.running(), queue.failed()) == ([], [], tickets(1))


def test_a_failure_of_a_job_that_is_anothers_by_now_is_not_the_last(queue: JobQueue) -> None:
    queue.put(tickets(1))
    queue.connection.hset(f"rq:job:{RUN}-1", "retries_left", "0")

    def compare(run_id: str, job: int) -> None:
        queue.connection.delete(queue.rq.started_job_registry.key)
        raise ZeroDivisionError

    def give_up(*_: object) -> None:
        pytest.fail("given up")

    assert burst(queue, compare, give_up=give_up) == Work(retried=1)


def test_the_ticket_of_a_cancelled_run_is_dropped(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))

    def compare(run_id: str, job: int) -> None:
        raise Cancelled(lambda: False)

    assert burst(queue, compare) == Work(dropped=2)
    assert (queue.waiting(), queue.running(), queue.failed()) == ([], [], [])


def test_a_ticket_comes_back_when_the_cancel_is_lifted_while_its_job_is_left(queue: JobQueue) -> None:
    queue.put(tickets(1))
    tried = []

    def is_lifted() -> bool:
        assert (queue.waiting(), queue.running()) == ([], [])      # asked when a resume would put it back itself
        return True

    def compare(run_id: str, job: int) -> None:
        tried.append(job)
        if len(tried) == 1:
            raise Cancelled(is_lifted)

    assert burst(queue, compare) == Work(done=1, dropped=1)
    assert tried == [1, 1]


def test_a_heartbeat_that_fails_in_any_way_does_not_end_the_heartbeats(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(tickets(1))
    beats: list[int] = []

    def beat(*_: object) -> None:
        beats.append(1)
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(Worker, "maintain_heartbeats", beat)

    burst(queue, lambda run_id, job: wait_for(lambda: len(beats) >= 2, "a second beat"), heartbeat=0.05)

    assert "job a1b2c3-1: no heartbeat: ZeroDivisionError: by nought" in caplog.text


def test_a_job_that_recovers_is_done(queue: JobQueue) -> None:
    queue.put(tickets(1))
    tried = []

    def compare(run_id: str, job: int) -> None:
        tried.append(job)
        if len(tried) < 3:
            raise ZeroDivisionError

    assert burst(queue, compare) == Work(done=1, retried=2)


def test_an_interrupt_inside_a_job_puts_it_back(queue: JobQueue) -> None:
    queue.put(tickets(1))

    def compare(run_id: str, job: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        burst(queue, compare)

    assert (queue.waiting(), queue.running()) == (tickets(1), [])


@pytest.mark.parametrize(("owner", "method", "waiting", "running"), [
    (TicketJob, "prepare_for_execution", tickets(1), []), (Worker, "cleanup_execution", [], tickets(1)),
], ids=["taken", "settled"])
def test_a_ticket_is_never_neither_waiting_nor_leased(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, waiting: list[Ticket],
    running: list[Ticket],
) -> None:
    queue.put(tickets(1))
    step = getattr(owner, method)

    def dies_after(*args: Any, **kwargs: Any) -> None:      # in the middle of the transaction
        step(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, dies_after)
        with pytest.raises(KeyboardInterrupt):
            burst(queue)

    assert (queue.waiting(), queue.running()) == (waiting, running)
    assert burst(queue) == Work(done=1)


def test_what_a_stranger_puts_on_the_queue_is_refused_and_the_worker_lives_on(
    queue: JobQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {"x-1": f'["os.system", null, ["touch {tmp_path}/run"], {{}}]', "x-2": b"\x80\x04\x95pickled",
           "x-3": "y" * 10_000_000, "x-4": f'["compare_job", "{TASK}", ["x", 4], {{}}]'}
    for job_id, data in bad.items():
        queue.connection.hset(f"rq:job:{job_id}", mapping={"data": data, "origin": queue.rq.name, "status": "queued"})
    queue.connection.rpush(queue.rq.key, *bad, "../../etc/passwd-1", b"\xff", "missing-1")
    queue.put(tickets(1))
    done = []

    outcome = burst(queue, lambda run_id, job: done.append((run_id, job)))

    assert outcome == Work(done=1, dropped=7)
    assert done == [(RUN, 1)]
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("refused and dropped") == 7


KEYS = [      # all that a worker named "w" writes, while it does the first of two jobs
    f"rq:queue:diptych-{DATABASE}", f"rq:wip:diptych-{DATABASE}", f"rq:failed:diptych-{DATABASE}", "rq:queues",
    "rq:workers", f"rq:workers:diptych-{DATABASE}", "rq:worker:w", "rq:worker:w:executions", f"rq:job:{RUN}-1",
    f"rq:executions:{RUN}-1", f"rq:execution:{RUN}-1:*",
]


def spoil(queue: JobQueue, key: str) -> None:
    """Put a string where a stranger may: in place of a key."""
    found = list(queue.connection.scan_iter(key)) if "*" in key else [key]
    for spoilt in found:
        queue.connection.set(spoilt, "a string")


@pytest.mark.parametrize("retries_left", ["3", "0"], ids=["retried", "failed"])
@pytest.mark.parametrize("where", ["prepare", "compare"])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_a_stranger_makes_something_else_of_does_not_end_a_worker(
    queue: JobQueue, key: str, where: str, retries_left: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(tickets(1, 2))
    queue.connection.hset(f"rq:job:{RUN}-1", "retries_left", retries_left)
    spoilt, done = list[str](), list[int]()

    def meet(place: str, job: int) -> None:
        if place == where and job == 1 and not spoilt:
            spoilt.append(key)
            spoil(queue, key)
            if where == "compare":
                raise ZeroDivisionError

    for _ in range(2):
        work(queue, lambda run_id, job: meet("compare", job) or done.append(job), burst=True, stop=Stop(), name="w",
             prepare=lambda ticket: meet("prepare", ticket.job), give_up=nothing)
        queue.put(tickets(*({1, 2} - {*done})))      # as a resume does

    assert sorted(done) == [1, 2]
    assert (queue.waiting(), queue.running()) == ([], [])
    assert [line for line in caplog.messages if "found a string" in line and repr(key) not in line] == []


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_a_stranger_makes_something_else_of_does_not_end_the_heartbeats(
    queue: JobQueue, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(tickets(1))

    def compare(run_id: str, job: int) -> None:
        spoil(queue, key)
        wait_for(lambda: caplog.messages, "a heartbeat")
        time.sleep(0.1)

    outcome = work(queue, compare, prepare=nothing, give_up=nothing, burst=True, stop=Stop(), name="w", heartbeat=0.05)

    assert outcome == Work(done=1)
    assert "no heartbeat" not in caplog.text
    assert len([line for line in caplog.messages if "found a string" in line]) == 1


@pytest.mark.parametrize("key", KEYS[:8])
def test_a_key_that_a_stranger_makes_something_else_of_does_not_end_an_idle_worker(
    queue: JobQueue, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    stop, done = Stop(), list[int]()

    def idle() -> None:
        spoil(queue, key)
        time.sleep(0.05)
        queue.put(tickets(1))

    def compare(run_id: str, job: int) -> None:
        done.append(job)
        stop.request()

    outcome = work(queue, compare, prepare=nothing, give_up=nothing, burst=False, stop=stop, idle=idle, name="w",
                   heartbeat=0.05)

    assert (outcome, done) == (Work(done=1, stopped=True), [1])
    assert len([line for line in caplog.messages if "found a string" in line]) == 1


def test_a_worker_is_born_beside_keys_that_a_stranger_made_something_else_of(queue: JobQueue) -> None:
    for key in KEYS[:8]:
        spoil(queue, key)

    assert work(queue, nothing, prepare=nothing, give_up=nothing, burst=True, stop=Stop(), name="w") == Work()


def test_callbacks_and_webhooks_by_hand_do_nothing(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    for job in (1, 2):
        queue.connection.hset(f"rq:job:{RUN}-{job}", mapping={
            "success_callback_name": "os.abort", "failure_callback_name": "os.abort", "retries_left": "0",
            "webhooks": '[{"url": "http://127.0.0.1:9/", "job_status": "finished"}]', "timeout": "1",
        })

    def compare(run_id: str, job: int) -> None:
        if job == 2:
            raise ZeroDivisionError

    assert burst(queue, compare) == Work(done=1, failed=1)


def test_a_workers_job_class_knows_one_function_only(queue: JobQueue) -> None:
    queue.put(tickets(1))
    job = queue.fetch(Ticket(RUN, 1), make_job_class(nothing))
    assert job.func is nothing

    job.func_name = "os.system"
    with pytest.raises(TicketError, match=f"expected {TASK}"):
        _ = job.func
    job.func_name = TASK
    job.instance = "text"
    with pytest.raises(TicketError, match=f"expected {TASK}"):
        _ = job.func


def test_a_long_job_keeps_its_lease(queue: JobQueue) -> None:
    queue.put(tickets(1))
    rescued = []

    def compare(run_id: str, job: int) -> None:
        expires = queue.connection.zrange(queue.rq.started_job_registry.key, 0, -1, withscores=True)[0][1]
        while current_timestamp() < expires + 2:      # RQ counts whole seconds
            rescued.extend(queue.rescue(lambda name: False))
            time.sleep(0.05)
        assert queue.running() == tickets(1)

    assert burst(queue, compare, heartbeat=0.3) == Work(done=1)
    assert rescued == []


def test_a_job_whose_lease_went_to_another_is_left_to_the_other(queue: JobQueue) -> None:
    queue.put(tickets(1))
    registry = queue.rq.started_job_registry.key

    def compare(run_id: str, job: int) -> None:      # as if this process had slept past its lease
        queue.connection.delete(registry)
        queue.connection.zadd(registry, {f"{RUN}-1:other": current_timestamp() + 60})

    burst(queue, compare)

    assert queue.running() == tickets(1)
    assert queue.connection.hget(f"rq:job:{RUN}-1", "status") == b"started"


def test_a_wiped_queue_in_the_middle_of_a_job_does_no_harm(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))

    assert burst(queue, lambda run_id, job: queue.connection.flushall() and None) == Work(done=1)

    assert (queue.waiting(), queue.running()) == ([], [])


def test_a_worker_killed_in_a_job_gives_it_up_to_the_next_one_at_once(queue: JobQueue, server: Valkey) -> None:
    queue.put(tickets(1, 2))
    with worker(server.url) as killed:
        assert read(killed) == "begun 1"
        killed.kill()
        killed.wait()
    assert queue.running() == tickets(1)      # its lease has 30 s
    done = []

    outcome = burst(queue, lambda run_id, job: done.append(job))

    assert done == [1, 2]
    assert outcome == Work(done=2)


def test_a_worker_that_starts_beside_a_busy_one_leaves_its_job_alone(queue: JobQueue, server: Valkey) -> None:
    queue.put(tickets(1, 2))
    with worker(server.url) as busy:
        assert read(busy) == "begun 1"

        assert burst(queue) == Work(done=1)

        assert queue.running() == tickets(1)


def test_a_busy_worker_puts_back_what_a_dead_one_leaves(queue: JobQueue, server: Valkey) -> None:
    left: list[Ticket] = []

    def compare(run_id: str, job: int) -> None:
        if job == 2:
            return
        queue.put(tickets(2))
        with worker(server.url) as killed:
            read(killed)
            assert queue.waiting() == []
        wait_for(lambda: queue.waiting() == tickets(2), "the ticket of the dead one")
        left.extend(queue.waiting())

    queue.put(tickets(1))

    assert burst(queue, compare, heartbeat=0.2) == Work(done=2)
    assert left == tickets(2)


def test_an_idle_worker_takes_what_is_put_later_and_what_a_dead_one_leaves(queue: JobQueue, server: Valkey) -> None:
    done: list[int] = []
    stop = Stop()

    def compare(run_id: str, job: int) -> None:
        if job == 1:      # busy, so that the other takes the second one
            queue.put(tickets(2))
            with worker(server.url) as killed:
                read(killed)
        done.append(job)
        if len(done) == 2:
            stop.request()

    def meanwhile() -> None:
        with connect(server.url) as connection:
            JobQueue(connection, DATABASE).put(tickets(1))

    queue.put(tickets(9, run="other"))
    with worker(server.url) as first:
        read(first)
        putter = threading.Timer(1.0, meanwhile)
        first.kill()
        first.wait()
        putter.start()
        outcome = work(queue, lambda run_id, job: compare(run_id, job) if run_id == RUN else None, prepare=nothing,
                       give_up=nothing, burst=False, stop=stop, heartbeat=0.2)
        putter.join()

    assert done == [1, 2]
    assert outcome == Work(done=3, stopped=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_worker_finish_what_is_in_hand(
    queue: JobQueue, server: Valkey, tmp_path: Path, signum: int
) -> None:
    queue.put(tickets(1, 2))
    with worker(server.url, until=tmp_path / "end") as process:
        assert read(process) == "begun 1"
        process.send_signal(signum)
        assert read(process) == "heard 1"
        (tmp_path / "end").touch()

        assert "done=1" in read(process)
        assert read(process) == f"signal {signum}"
        assert process.wait() == 0

    assert (queue.waiting(), queue.running()) == (tickets(2), [])


def test_a_second_signal_stops_at_the_next_step_and_the_ticket_goes_back(queue: JobQueue, server: Valkey) -> None:
    queue.put(tickets(1, 2))
    with worker(server.url) as process:
        assert read(process) == "begun 1"
        process.send_signal(signal.SIGTERM)
        assert read(process) == "heard 1"
        time.sleep(2 * stopping.SAME_PRESS)      # or it would be taken for the same press
        process.send_signal(signal.SIGTERM)

        assert "done=0" in read(process)
        assert read(process) == f"signal {int(signal.SIGTERM)}"
        assert process.wait() == 0

    assert (queue.waiting(), queue.running(), queue.failed()) == (tickets(1, 2), [], [])


def test_a_waiting_worker_leaves_at_the_first_signal(queue: JobQueue, server: Valkey) -> None:
    with worker(server.url) as process:
        wait_for(lambda: RqWorker.count(queue=queue.rq), "the worker to be at work")
        process.send_signal(signal.SIGINT)

        assert "stopped=True" in read(process)
        assert read(process) == f"signal {int(signal.SIGINT)}"


def test_the_same_press_heard_twice_is_one_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.level, stop.requested, stop.now) == (1, True, False)

        monkeypatch.setattr(stopping, "SAME_PRESS", -1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.level, stop.now, stop.signal) == (2, True, signal.SIGINT)


def test_signals_are_given_back_after_work(queue: JobQueue) -> None:
    before = [signal.getsignal(signum) for signum in stopping.SIGNALS]

    with Stop() as stop:
        work(queue, nothing, prepare=nothing, give_up=nothing, burst=True, stop=stop)
        assert [signal.getsignal(signum) for signum in stopping.SIGNALS] != before

    assert [signal.getsignal(signum) for signum in stopping.SIGNALS] == before


def test_a_stop_wakes_who_waits_for_it() -> None:
    stop = Stop()
    assert stop.wait(0.01) is False

    threading.Timer(0.05, stop.request).start()

    assert stop.wait(600) is True
    assert stop.wait(600) is True


def test_a_stop_while_a_model_is_loaded_leaves_the_ticket(queue: JobQueue) -> None:
    queue.put(tickets(1))
    stop = Stop()

    outcome = work(queue, nothing, prepare=lambda ticket: stop.request(), give_up=nothing, burst=True, stop=stop)

    assert outcome == Work(stopped=True)
    assert queue.waiting() == tickets(1)


def test_a_job_left_before_its_end_goes_back_to_the_front(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    stop = Stop()

    def compare(run_id: str, job: int) -> None:
        stop.request()
        raise Stopped

    assert work(queue, compare, prepare=nothing, give_up=nothing, burst=True, stop=stop) == Work(stopped=True)
    assert (queue.waiting(), queue.running()) == (tickets(1, 2), [])


def test_a_redis_that_goes_away_in_a_job_is_waited_for() -> None:
    valkey = Valkey()
    try:
        valkey.start()
        with connect(valkey.url) as connection:
            queue = JobQueue(connection, DATABASE)
            queue.put(tickets(1, 2))

            def compare(run_id: str, job: int) -> None:
                if job == 1:
                    valkey.kill()
                    threading.Timer(0.5, valkey.start).start()

            assert burst(queue, compare, heartbeat=0.1) == Work(done=2)
            assert (queue.waiting(), queue.running()) == ([], [])
    finally:
        valkey.remove()


def test_a_worker_asked_to_stop_does_not_wait_for_a_redis_that_is_away() -> None:
    valkey = Valkey()
    try:
        valkey.start()
        with connect(valkey.url) as connection:
            queue = JobQueue(connection, DATABASE)
            queue.put(tickets(1, 2))
            stop = Stop()

            def compare(run_id: str, job: int) -> None:
                valkey.kill()
                stop.request()

            assert work(queue, compare, prepare=nothing, give_up=nothing, burst=True, stop=stop) == Work(stopped=True)

            valkey.start()
            assert queue.running() == tickets(1)      # the ticket comes back with the next worker
            assert burst(queue) == Work(done=2)
    finally:
        valkey.remove()


def test_a_redis_that_refuses_to_write_is_an_error(queue: JobQueue) -> None:
    queue.put(tickets(1))
    queue.connection.config_set("maxmemory", "1")
    try:
        with pytest.raises(QueueError, match="maxmemory"):
            burst(queue)
    finally:
        queue.connection.config_set("maxmemory", "0")

    assert queue.waiting() == tickets(1)


def test_patience_lasts_for_days() -> None:
    assert Patience(Stop(), "here").compute(100_000) == 2


def test_the_connection_has_its_own_patience_back_after_work(queue: JobQueue) -> None:
    before = queue.connection.get_retry()

    burst(queue)

    assert queue.connection.get_retry() == before


def test_a_worker_works_where_its_home_cannot_be_written(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.put(tickets(1))
    monkeypatch.setenv("HOME", "/dev/null")

    assert burst(queue) == Work(done=1)
