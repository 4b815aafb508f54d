"""The queue: tickets in, tickets out, nothing twice, and nothing that is no ticket."""

import json
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from realvalkey import Valkey
from rq.job import Job
from rq.utils import current_timestamp

from jobs import connection as connections
from jobs.queue import FAILURE_TTL, TASK, JobQueue, Refusal, Ticket, connect
from jobs.tickets import LARGEST, RETRIES, TicketError, TicketJob
from store.errors import QueueError

DATABASE = "0123456789abcdef0123456789abcdef"
RUN = "a1b2c3"
SECRET = "s3cr3t-word"


@pytest.fixture
def queue(server: Valkey) -> Iterator[JobQueue]:
    with connect(server.url) as connection:
        connection.flushall()
        yield JobQueue(connection, DATABASE)


def tickets(*jobs: int, run: str = RUN) -> list[Ticket]:
    return [Ticket(run, job) for job in jobs]


def push(queue: JobQueue, entry: str | bytes, **fields: Any) -> None:
    """Put an entry on the queue by hand, with what a stranger wrote into its hash."""
    if fields:
        queue.connection.hset(f"rq:job:{entry!s}", mapping={"origin": queue.rq.name, "status": "queued"} | fields)
    queue.connection.rpush(queue.rq.key, entry)


def lease(queue: JobQueue, ticket: Ticket, *, seconds: float, worker: str = "somebody") -> None:
    """Take a ticket as a worker does, for so long from now."""
    queue.connection.lrem(queue.rq.key, 1, ticket.id)
    queue.connection.hset(f"rq:job:{ticket.id}", "status", "started")
    queue.connection.hset(f"rq:execution:{ticket.id}:e1", "worker_name", worker)
    queue.connection.zadd(queue.rq.started_job_registry.key, {f"{ticket.id}:e1": current_timestamp() + seconds})


def use_up_retries(queue: JobQueue, ticket: Ticket) -> None:
    """Have a ticket fail as often as it is tried."""
    for _ in range(RETRIES + 1):
        with queue.connection.pipeline() as pipe:
            pipe.delete(queue.rq.key)
            queue.retry(queue.fetch(ticket), pipe)
            pipe.execute()


def nobody(name: str) -> bool:
    return False


def test_tickets_wait_in_the_order_of_their_coming(queue: JobQueue) -> None:
    assert queue.put(tickets(3, 1, 2)) == 3

    assert queue.waiting() == tickets(3, 1, 2)


def test_a_ticket_is_ids_and_nothing_else(queue: JobQueue) -> None:
    queue.put(tickets(7))

    job = Job.fetch(f"{RUN}-7", connection=queue.connection, serializer="json")
    assert (job.func_name, job.args, job.kwargs) == (TASK, [RUN, 7], {})
    assert (job.description, job.meta, job.timeout) == ("a ticket", {}, -1)


def test_looking_at_the_next_ticket_does_not_take_it(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))

    assert queue.next() == Ticket(RUN, 1)
    assert queue.next() == Ticket(RUN, 1)


def test_nothing_is_next_on_an_empty_queue(queue: JobQueue) -> None:
    assert queue.next() is None


def test_tickets_that_wait_are_not_put_twice(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))

    assert queue.put(tickets(1, 2, 3, 3)) == 1

    assert queue.waiting() == tickets(1, 2, 3)


def test_a_second_copy_whose_ticket_was_dropped_does_not_keep_it_from_being_put(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    queue.connection.delete(TicketJob.key_for(f"{RUN}-1"))      # as a worker does that drops the first of two copies

    assert queue.put(tickets(1, 2)) == 1
    assert sorted(ticket.job for ticket in queue.waiting()) == [1, 1, 2]
    assert isinstance(queue.next(), Ticket)


def test_tickets_that_run_are_not_put_twice(queue: JobQueue) -> None:
    queue.put(tickets(1))
    lease(queue, Ticket(RUN, 1), seconds=60)

    assert queue.put(tickets(1)) == 0

    assert (queue.waiting(), queue.running()) == ([], tickets(1))


def test_a_ticket_whose_lease_has_expired_is_put_again(queue: JobQueue) -> None:
    queue.put(tickets(1))
    lease(queue, Ticket(RUN, 1), seconds=-1)

    assert queue.put(tickets(1)) == 1

    assert (queue.waiting(), queue.running()) == (tickets(1), [])


def test_reading_the_queue_changes_nothing(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    lease(queue, Ticket(RUN, 1), seconds=-1)

    queue.running(), queue.waiting(), queue.failed(), queue.next()

    assert queue.connection.zcard(queue.rq.started_job_registry.key) == 1


def test_more_tickets_than_one_round_trip_carries_arrive_in_order(queue: JobQueue) -> None:
    many = tickets(*range(2500))

    assert queue.put(many) == 2500

    assert queue.waiting() == many


def test_two_databases_on_one_redis_never_see_each_others_tickets(queue: JobQueue) -> None:
    other = JobQueue(queue.connection, "f" * 32)
    queue.put(tickets(1))

    assert (other.waiting(), other.next(), other.put(tickets(1, run="other"))) == ([], None, 1)
    assert queue.waiting() == tickets(1)


def test_dropping_a_run_leaves_the_other_runs_in_order(queue: JobQueue) -> None:
    queue.put([Ticket("x", 1), Ticket("y", 1), Ticket("x", 2), Ticket("y", 2), Ticket("x-1", 1)])
    push(queue, b"\xff garbage")

    assert queue.drop("x") == 2

    assert queue.waiting() == [Ticket("y", 1), Ticket("y", 2), Ticket("x-1", 1)]
    assert not queue.connection.exists("rq:job:x-1", "rq:job:x-2")
    assert queue.connection.lindex(queue.rq.key, -1) == b"\xff garbage"
    assert queue.drop("x") == 0


def test_an_expired_lease_puts_its_ticket_back_at_the_front(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    lease(queue, Ticket(RUN, 1), seconds=-1)

    assert queue.rescue(nobody) == tickets(1)

    assert (queue.waiting(), queue.running()) == (tickets(1, 2), [])
    assert queue.rescue(nobody) == []


def test_a_live_lease_is_left_alone(queue: JobQueue) -> None:
    queue.put(tickets(1))
    lease(queue, Ticket(RUN, 1), seconds=60)

    assert queue.rescue(nobody) == []

    assert queue.running() == tickets(1)


def test_a_dead_workers_ticket_is_back_before_its_lease_expires(queue: JobQueue) -> None:
    queue.put(tickets(1, 2))
    lease(queue, Ticket(RUN, 1), seconds=60, worker="dead")
    lease(queue, Ticket(RUN, 2), seconds=60, worker="alive")

    assert queue.rescue(lambda name: name == "dead") == tickets(1)

    assert (queue.waiting(), queue.running()) == (tickets(1), tickets(2))


def test_a_ticket_held_by_another_worker_by_now_is_not_put_back(queue: JobQueue) -> None:
    queue.put(tickets(1))
    lease(queue, Ticket(RUN, 1), seconds=60)
    queue.connection.zadd(queue.rq.started_job_registry.key, {f"{RUN}-1:e0": current_timestamp() - 1})

    assert queue.rescue(nobody) == []

    assert (queue.waiting(), queue.running()) == ([], tickets(1))


def test_the_deaths_of_its_workers_cost_a_ticket_no_retry(queue: JobQueue) -> None:
    queue.put(tickets(1))
    for _ in range(6):
        lease(queue, Ticket(RUN, 1), seconds=-1)
        assert queue.rescue(nobody) == tickets(1)

    assert queue.fetch(Ticket(RUN, 1)).retries_left == RETRIES
    assert (queue.waiting(), queue.failed()) == (tickets(1), [])


def test_tickets_of_runs_that_are_passed_over_wait_for_another_worker(queue: JobQueue) -> None:
    queue.put([*tickets(*range(1500), run="broken"), *tickets(1, 2)])

    assert queue.next(["broken"]) == Ticket(RUN, 1)
    assert queue.next(["broken", RUN]) is None
    assert queue.next() == Ticket("broken", 0)


def test_a_failed_ticket_put_again_has_all_its_tries_again(queue: JobQueue) -> None:
    queue.put(tickets(1))
    use_up_retries(queue, Ticket(RUN, 1))
    assert queue.failed() == tickets(1)

    assert queue.put(tickets(1)) == 1

    assert queue.failed() == []
    assert queue.connection.ttl(f"rq:job:{RUN}-1") == -1
    assert queue.connection.hget(f"rq:job:{RUN}-1", "retries_left") == b"3"


def test_a_failed_ticket_is_kept_for_a_while_and_not_for_ever(queue: JobQueue) -> None:
    queue.put(tickets(1))
    use_up_retries(queue, Ticket(RUN, 1))

    expires = queue.connection.zscore(queue.rq.failed_job_registry.key, f"{RUN}-1")
    assert 1 <= queue.connection.ttl(TicketJob.key_for(f"{RUN}-1")) <= FAILURE_TTL
    assert current_timestamp() < expires <= current_timestamp() + FAILURE_TTL


def call(*parts: Any) -> str:
    return json.dumps(parts)


GOOD = call(TASK, None, [RUN, 1], {})
HOSTILE: dict[str, dict[str, Any]] = {
    "another function": {"data": call("os.system", None, ["true"], {})},
    "a method of an object": {"data": call("compare_job", TASK, [RUN, 1], {})},
    "a pickle": {"data": pickle.dumps((TASK, None, (RUN, 1), {}))},
    "another run than its id": {"data": call(TASK, None, ["other", 1], {})},
    "another job than its id": {"data": call(TASK, None, [RUN, 2], {})},
    "keyword arguments": {"data": call(TASK, None, [RUN, 1], {"more": 1})},
    "a third argument": {"data": call(TASK, None, [RUN, 1, "more"], {})},
    "no arguments": {"data": call(TASK, None, None, {})},
    "no list": {"data": "17"},
    "no JSON": {"data": b"\xff\xfe\x00"},
    "deep nesting": {"data": "[" * (LARGEST - 100)},
    "an enormous call": {"data": "x" * 20_000_000},
    "an unknown status": {"data": GOOD, "status": "no status"},
    "no number of retries": {"data": GOOD, "retries_left": "many"},
    "another queue": {"data": GOOD, "origin": "diptych-other"},
    "no call": {"description": "nothing"},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_job_by_hand_is_refused_and_the_next_ticket_is_there(queue: JobQueue, fields: dict[str, Any]) -> None:
    push(queue, f"{RUN}-1", **fields)
    queue.put(tickets(2))

    found = queue.next()

    assert isinstance(found, Refusal)
    queue.refuse(found)
    assert queue.next() == Ticket(RUN, 2)


def test_an_enormous_job_is_refused_without_being_read(queue: JobQueue) -> None:
    push(queue, f"{RUN}-1", data=GOOD, retries_left="1" * 5_000_000)

    size = 5_000_000 + len(GOOD) + len(queue.rq.name) + len("queued")
    assert queue.next() == Refusal(b"a1b2c3-1", f"expected at most 1,000 bytes, found {size:,}")


@pytest.mark.parametrize("entry", [
    "../../etc/passwd-1", "a b-1", "run", "run--", "-1", "run-01", "run-1'; drop table runs;--", "run-9999999999",
    "r" * 65 + "-1", "run-1\n", "\u0661-1", b"\xff\xfe-1", "run-\u0661", f"{RUN}-1:e1", "",
])
def test_an_entry_that_is_no_id_is_refused_and_the_next_ticket_is_there(queue: JobQueue, entry: str | bytes) -> None:
    push(queue, entry)
    queue.put(tickets(2))

    found = queue.next()

    assert isinstance(found, Refusal)
    queue.refuse(found)
    assert queue.next() == Ticket(RUN, 2)


@pytest.mark.parametrize("make", [
    lambda redis, key: None, lambda redis, key: redis.set(key, "text"), lambda redis, key: redis.rpush(key, "list"),
], ids=["nothing", "a string", "a list"])
def test_an_entry_without_a_hash_is_refused(queue: JobQueue, make: Any) -> None:
    make(queue.connection, f"rq:job:{RUN}-1")
    push(queue, f"{RUN}-1")

    assert isinstance(queue.next(), Refusal)


@pytest.mark.parametrize("read", [
    lambda queue: queue.fetch(Ticket(RUN, 1)),
    lambda queue: TicketJob.fetch_many([f"{RUN}-1"], queue.connection)[0],      # as RQ reads several
], ids=["one", "several"])
def test_callbacks_webhooks_and_limits_by_hand_are_not_even_read(queue: JobQueue, read: Any) -> None:
    webhook = json.dumps([{"url": "http://127.0.0.1:9/", "job_status": "finished"}])
    push(queue, f"{RUN}-1", data=GOOD, success_callback_name="os.abort", failure_callback_name="os.abort",
         stopped_callback_name="os.abort", webhooks=webhook, retry_intervals="[1000000]", retries_left="1000000",
         rate_limit_key="x", rate_limit_concurrency="1", repeats_left="9", group_id="g", timeout="1",
         dependency_ids='["x"]', result=b"\x80", meta=b"\x80")

    job = read(queue)

    assert (job.success_callback, job.failure_callback, job.stopped_callback, job.webhooks) == (None, None, None, [])
    assert (job.retry_intervals, job.retries_left, job.timeout, job.has_rate_limit) == (None, 3, -1, False)
    assert (job.repeats_left, job.group_id, job._dependency_ids, job.meta) == (None, None, [], {})


def test_a_ticket_is_never_run_outside_a_worker(queue: JobQueue) -> None:
    queue.put(tickets(1))

    with pytest.raises(TicketError, match="only a worker"):
        queue.fetch(Ticket(RUN, 1)).perform()


def test_a_hostile_lease_does_not_keep_others_from_being_rescued(queue: JobQueue) -> None:
    queue.put(tickets(1))
    lease(queue, Ticket(RUN, 1), seconds=-1)
    push(queue, f"{RUN}-5", **HOSTILE["a pickle"], status="started")
    hostile = {b"\xff:e": 1.0, "no colon": 2.0, "": 3.0, f"{RUN}-5:e1": 4.0, "gone-1:e1": 5.0, "../x-1:e": 6.0}
    queue.connection.zadd(queue.rq.started_job_registry.key, hostile)

    assert queue.rescue(nobody) == tickets(1)

    assert queue.connection.zcard(queue.rq.started_job_registry.key) == 0


KEYS = ("rq:queue:diptych-", "rq:wip:diptych-", "rq:failed:diptych-", "rq:queues")      # the queue's own


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("act", "result"), [
    (lambda queue: queue.put(tickets(1, 2)), 2), (JobQueue.waiting, []), (JobQueue.running, []), (JobQueue.failed, []),
    (JobQueue.next, None), (lambda queue: queue.drop(RUN), 0), (lambda queue: queue.rescue(nobody), []),
], ids=["put", "waiting", "running", "failed", "next", "drop", "rescue"])
def test_a_key_that_a_stranger_made_something_else_of_is_deleted_and_named(
    queue: JobQueue, key: str, act: Callable[[JobQueue], object], result: object, caplog: pytest.LogCaptureFixture
) -> None:
    whole = key + DATABASE if key.endswith("-") else key
    queue.connection.set(whole, "a string")

    assert act(queue) == result

    [told] = caplog.messages
    assert re.fullmatch(f"the key '{whole}': expected a (list|zset|set), found a string; it is deleted, and "
                        "`diptych resume` puts back tickets that are lost", told)
    assert queue.put(tickets(3)) == 1
    assert queue.waiting()[-1:] == tickets(3)


def test_a_lease_whose_record_a_stranger_made_something_else_of_runs_out_by_itself(
    queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(tickets(1, 2))
    lease(queue, Ticket(RUN, 1), seconds=60)
    lease(queue, Ticket(RUN, 2), seconds=60, worker="dead")
    queue.connection.set(f"rq:execution:{RUN}-1:e1", "a string")

    assert queue.rescue(lambda name: name == "dead") == tickets(2)

    assert (queue.waiting(), queue.running()) == (tickets(2), tickets(1))
    assert f"the key 'rq:execution:{RUN}-1:e1': expected a hash, found a string" in caplog.text


def test_a_redis_that_refuses_is_an_error_with_its_address(queue: JobQueue, server: Valkey) -> None:
    queue.connection.config_set("maxmemory", "1")
    try:
        with pytest.raises(QueueError, match=f"{server.socket}.*maxmemory"):
            queue.put(tickets(1))
    finally:
        queue.connection.config_set("maxmemory", "0")


@pytest.mark.parametrize(("url", "shown"), [
    (f"http://user:{SECRET}@localhost:6379", "http://***@localhost:6379"),
    (f"user:{SECRET}@localhost:6379", "***@localhost:6379"),
    (f"redis://:{SECRET}/more@localhost", "redis://***@localhost"),
    (f"redis://{SECRET}/more@localhost", "redis://***@localhost"),
    (f"redis://:{SECRET}#more@localhost", "redis://***@localhost"),
    (f"redis://:{SECRET}@localhost:port", "redis://***@localhost:port"),
    (f"redis://:{SECRET}@localhost:0", "redis://***@localhost:0"),
    (f"redis://localhost:1/0?password={SECRET}@x&db=1", "redis://localhost:1/0"),
    (f"redis://:{SECRET}@localhost:1/0", "redis://***@localhost:1/0"),
    (f"rediss://:{SECRET}@localhost:1/0", "rediss://***@localhost:1/0"),
    (f"redis://:{SECRET}@localhost:1/0?socket_timeout=soon", "redis://***@localhost:1/0"),
    (f"unix://:{SECRET}@/no/such/socket", "unix://***@/no/such/socket"),
    ("", ""),
])
def test_a_url_that_leads_nowhere_is_an_error_with_its_address_and_no_password(url: str, shown: str) -> None:
    with pytest.raises(QueueError) as caught:
        connect(url)

    assert str(caught.value).startswith(shown)
    assert "expected" in str(caught.value)
    assert SECRET not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


def test_a_redis_that_accepts_but_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_LIMIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        with pytest.raises(QueueError, match=rf"redis://127\.0\.0\.1:{port}: expected a Redis that answers"):
            connect(f"redis://127.0.0.1:{port}")


def test_a_redis_that_is_too_old_is_an_error(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "OLDEST", (99, 0))

    with pytest.raises(QueueError, match=r"expected Redis 6.2 or newer.*found 7\.2"):
        connect(server.url)


def test_a_password_in_the_url_opens_and_a_wrong_or_missing_one_does_not() -> None:
    valkey = Valkey("--requirepass", "p/w d")
    try:
        valkey.start()
        with connect(f"unix://:p%2Fw%20d@{valkey.socket}") as connection:
            assert connection.ping()
        for url in (f"unix://:{SECRET}@{valkey.socket}", valkey.url):
            with pytest.raises(QueueError, match=f"{valkey.socket}: expected a Redis that answers") as caught:
                connect(url)
            assert SECRET not in str(caught.value)
    finally:
        valkey.remove()


def test_a_socket_with_a_blank_in_its_path_is_reached_by_url(server: Valkey, tmp_path: Path) -> None:
    (tmp_path / "a b").symlink_to(server.socket)

    with connect(f"unix://{tmp_path}/a%20b") as connection:
        assert isinstance(connection, redis.Redis)
        assert connection.ping()
