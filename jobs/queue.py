"""The queue: the tickets of one database on a Redis. The database knows what they mean, and what has come of them.

It may lose tickets and deliver one twice; neither does harm.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from rq.utils import current_timestamp, now

from jobs.connection import address, connect
from jobs.tickets import (
    RETRIES,
    SHOWN,
    TASK,
    Ticket,
    TicketError,
    TicketJob,
    as_text,
    parse_ticket_id,
    readable_tickets,
    ticket_data,
)
from store.errors import QueueError

__all__ = ["TASK", "JobQueue", "Refusal", "Ticket", "connect"]

logger = logging.getLogger("diptych.queue")

FAILURE_TTL = 30 * 24 * 3600     # seconds for which a failed job's ticket is kept to be looked at
CHUNK = 1000                     # tickets in one round trip

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry of the queue that is no ticket of ours, and why."""

    entry: bytes | str
    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a ticket."""

    entry: bytes | str     # as it stands in RQ's registry of started jobs
    job_id: str
    execution_id: str
    expires: float         # seconds since the epoch


def asking(method: Callable[Concatenate["JobQueue", P], T]) -> Callable[Concatenate["JobQueue", P], T]:
    """Mend the queue's keys first, and turn an error of Redis into a QueueError with its address."""

    @functools.wraps(method)
    def ask(queue: "JobQueue", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            queue.mend()
            return method(queue, *args, **kwargs)
        except redis.RedisError as error:
            raise QueueError(f"{queue.address}: expected a Redis that answers, found: {error}") from error

    return ask


class JobQueue:
    """The tickets of one database, in the order of their coming. Its methods raise QueueError."""

    def __init__(self, connection: redis.Redis, database_id: str) -> None:
        self.connection = connection
        self.database_id = database_id
        self.address = address(connection)
        name = f"diptych-{database_id}"
        self.rq = Queue(name, connection=connection, serializer=JSONSerializer, job_class=TicketJob)
        self.types = {
            self.rq.key: "list", self.rq.started_job_registry.key: "zset", self.rq.failed_job_registry.key: "zset",
            Queue.redis_queues_keys: "set",
        }

    def mend(self, others: Mapping[str, str] | None = None) -> None:
        """Delete the queue's keys, and others with their types, that a stranger has made something else of.

        What they held is lost already, and every command on them would fail.
        """
        types = self.types | dict(others or {})
        with self.connection.pipeline(transaction=False) as pipe:
            for key in types:
                pipe.type(key)
            found = [as_text(kind) for kind in pipe.execute()]
        for (key, expected), kind in zip(types.items(), found, strict=True):
            if kind not in (expected, "none"):
                logger.warning("the key %r: expected a %s, found a %s; it is deleted, and `diptych resume` puts back "
                               "tickets that are lost", key[:SHOWN], expected, kind)
                self.connection.delete(key)

    @asking
    def put(self, tickets: Iterable[Ticket]) -> int:
        """Append tickets and return how many; those that wait or run already are skipped. May be repeated safely."""
        waiting, running = self._known()
        wanted = [ticket for ticket in dict.fromkeys(tickets) if ticket not in running]
        hollow = self._without_hash([ticket for ticket in wanted if ticket in waiting])
        new = [ticket for ticket in wanted if ticket in hollow or ticket not in waiting]
        for chunk in chunks(new):
            self._push(chunk)
        return len(new)

    def _known(self) -> tuple[set[Ticket], set[Ticket]]:
        """Read the tickets that wait and those that run, both at one moment: one may go from either to the other."""
        with self.connection.pipeline() as pipe:
            pipe.lrange(self.rq.key, 0, -1)
            pipe.zrange(self.rq.started_job_registry.key, 0, -1, withscores=True)
            waiting, started = pipe.execute()
        return set(readable_tickets(waiting)), set(live_tickets(read_leases(started)))

    def _without_hash(self, tickets: list[Ticket]) -> set[Ticket]:
        """Find entries that nothing stands behind: a second copy of a ticket whose first one has been dropped."""
        hollow = set[Ticket]()
        for chunk in chunks(tickets):
            with self.connection.pipeline(transaction=False) as pipe:
                for ticket in chunk:
                    pipe.exists(TicketJob.key_for(ticket.id))
                hollow.update(ticket for ticket, exists in zip(chunk, pipe.execute(), strict=True) if not exists)
        return hollow

    def _push(self, tickets: list[Ticket]) -> None:
        """Append tickets in one transaction, in place of what earlier attempts have left of them."""
        fields, ids = self._fields(), [ticket.id for ticket in tickets]
        with self.connection.pipeline() as pipe:
            pipe.sadd(Queue.redis_queues_keys, self.rq.key)
            pipe.zrem(self.rq.failed_job_registry.key, *ids)
            pipe.delete(*map(TicketJob.key_for, ids))
            for ticket in tickets:
                data = JSONSerializer.dumps(ticket_data(ticket))      # type: ignore[no-untyped-call]  # RQ has none here
                pipe.hset(TicketJob.key_for(ticket.id), mapping=fields | {"data": data})
            pipe.rpush(self.rq.key, *ids)
            pipe.execute()

    def _fields(self) -> dict[Any, Any]:
        """Give what the hashes of all tickets have in common, as RQ writes them.

        Written once, not by RQ's enqueue_many for each: a bulk enqueue is three times as fast.
        """
        job = self.rq.create_job(
            TASK, timeout=-1, result_ttl=0, failure_ttl=FAILURE_TTL, description="a ticket", retry=Retry(max=RETRIES),
            status=JobStatus.QUEUED,
        )
        job.enqueued_at = now()
        return {name: value for name, value in job.to_dict().items() if value != ""}

    @asking
    def waiting(self) -> list[Ticket]:
        """List the tickets that wait, the next one first."""
        return list(readable_tickets(self.connection.lrange(self.rq.key, 0, -1)))

    @asking
    def running(self) -> list[Ticket]:
        """List the tickets that workers hold; an expired lease does not count."""
        return list(live_tickets(self._leases()))

    @asking
    def failed(self) -> list[Ticket]:
        """List the tickets that have used up their retries."""
        entries = cast("list[bytes]", self.connection.zrange(self.rq.failed_job_registry.key, 0, -1))
        return list(readable_tickets(entries))

    @asking
    def next(self, passed_over: Collection[str] = ()) -> Ticket | Refusal | None:
        """Look at the ticket that a worker would take next, or at what stands in its place; None when none waits.

        Tickets of the runs that are passed over wait, for another worker or for later.
        """
        entry = next((entry for entry in self._entries() if not _is_of(entry, passed_over)), None)
        if entry is None:
            return None
        try:
            return self.fetch(parse_ticket_id(entry)).ticket
        except NoSuchJobError as error:
            return Refusal(entry, str(error))

    def _entries(self) -> Iterator[bytes]:
        """Read what waits, the next one first, and no more than is looked at."""
        start, size = 0, 1
        while entries := self.connection.lrange(self.rq.key, start, start + size - 1):
            yield from cast("list[bytes]", entries)
            start, size = start + len(entries), CHUNK

    def fetch(self, ticket: Ticket, job_class: type[TicketJob] = TicketJob) -> TicketJob:
        """Read a ticket's job; raises TicketError when what is there is none of ours."""
        job = job_class(ticket.id, connection=self.connection, serializer=JSONSerializer)
        job.refresh()
        if job.origin != self.rq.name:
            raise TicketError(f"expected a job of {self.rq.name}, found one of {job.origin[:80]!r}")
        return job

    @asking
    def refuse(self, refusal: Refusal) -> None:
        """Drop an entry that is no ticket, and say so. Its hash, which may be another's, is left alone."""
        logger.warning("refused and dropped %r: %s", refusal.entry[:80], refusal.reason)
        self.connection.lrem(self.rq.key, 1, cast("str", refusal.entry))

    @asking
    def discard(self, ticket: Ticket, reason: str) -> None:
        """Drop a ticket whose job is not to be done, and say so."""
        logger.warning("dropped the ticket %s: %s", ticket.id, reason)
        with self.connection.pipeline() as pipe:
            pipe.lrem(self.rq.key, 1, ticket.id)
            pipe.delete(TicketJob.key_for(ticket.id))
            pipe.execute()

    @asking
    def drop(self, run_id: str) -> int:
        """Drop the run's waiting tickets and return how many; those that run are left to their workers."""

        def settle(pipe: Pipeline) -> int:
            entries = pipe.lrange(self.rq.key, 0, -1)
            gone = {ticket.id for ticket in readable_tickets(entries) if ticket.run_id == run_id}
            pipe.multi()
            pipe.delete(self.rq.key)
            for kept in chunks([entry for entry in entries if as_text(entry) not in gone]):
                pipe.rpush(self.rq.key, *kept)
            for dropped in chunks(sorted(gone)):
                pipe.delete(*map(TicketJob.key_for, dropped))
            return len(gone)

        return self.transact(settle, self.rq.key)

    @asking
    def rescue(self, is_dead: Callable[[str], bool]) -> list[Ticket]:
        """Put the tickets of dead workers and expired leases back, at the front, and return them.

        is_dead says of a worker's name whether that worker is gone, whatever its lease. It costs a ticket no retry: the
        database counts the deaths, and knows which pair they are of.
        """

        def settle(pipe: Pipeline) -> list[Ticket]:
            leases = self._leases()
            lost = [lease for lease in leases if self._is_lost(lease, is_dead)]
            held = {lease.job_id for lease in leases if lease not in lost}
            jobs = list(self._started({lease.job_id for lease in lost} - held))
            pipe.multi()
            for lease in lost:
                pipe.zrem(self.rq.started_job_registry.key, lease.entry)
            for job in jobs:
                self.put_back(job, pipe)
            return [job.ticket for job in jobs]

        rescued = self.transact(settle, self.rq.started_job_registry.key)
        for ticket in rescued:
            logger.warning("the worker of job %s is gone: back on the queue", ticket.id)
        return rescued

    def transact(self, settle: Callable[[Pipeline], T], *watched: str, others: Mapping[str, str] | None = None) -> T:
        """Read, then write in one transaction; again from the start when a watched key has changed in between.

        `others` are keys, with their types, that it writes beside the queue's: Redis writes the rest of a transaction
        when one command fails.
        """
        self.mend(others)
        result = self.connection.transaction(
            settle,      # type: ignore[arg-type]  # redis-py's stub does not know value_from_callable
            *watched, value_from_callable=True,
        )
        return cast("T", result)

    def retry(self, job: TicketJob, pipe: Pipeline) -> bool:
        """Write a job to the end of the queue, or, when its retries are used up, to the failed ones; say which."""
        if not job.retries_left:
            job.set_status(JobStatus.FAILED, pipeline=pipe)
            self.rq.failed_job_registry.add(job, ttl=FAILURE_TTL, pipeline=pipe)
            return False
        job.enqueue_at_front_on_retry = False
        job.retry(self.rq, pipe)
        return True

    def put_back(self, job: TicketJob, pipe: Pipeline) -> None:
        """Write a job back to the front of the queue; it has cost no retry."""
        self.rq.enqueue_job(job, pipeline=pipe, at_front=True)

    def _leases(self) -> list[Lease]:
        """Read all leases, also the expired ones. RQ's own readers clean up as they read, which can fail a live job."""
        entries = self.connection.zrange(self.rq.started_job_registry.key, 0, -1, withscores=True)
        return read_leases(cast("list[tuple[bytes, float]]", entries))

    def _is_lost(self, lease: Lease, is_dead: Callable[[str], bool]) -> bool:
        """Say whether a lease has expired or its worker is gone."""
        if lease.expires < current_timestamp():
            return True
        key = f"rq:execution:{lease.job_id}:{lease.execution_id}"
        self.mend({key: "hash"})
        name = self.connection.hget(key, "worker_name")
        return name is not None and is_dead(as_text(name))

    def _started(self, job_ids: Iterable[str]) -> Iterator[TicketJob]:
        """Read the jobs that a worker has begun; one that was put back meanwhile, or is gone, is none."""
        for ticket in readable_tickets(sorted(job_ids)):
            try:
                job = self.fetch(ticket)
            except NoSuchJobError as error:
                logger.warning("dropped the lease of %s: %s", ticket.id, error)
                continue
            if job.get_status(refresh=False) == JobStatus.STARTED:
                yield job


def _is_of(entry: bytes, run_ids: Collection[str]) -> bool:
    return bool(run_ids) and any(ticket.run_id in run_ids for ticket in readable_tickets([entry]))


def read_leases(entries: Iterable[tuple[bytes, float]]) -> list[Lease]:
    """Read the entries of RQ's registry of started jobs."""
    leases = []
    for entry, expires in entries:
        job_id, _, execution_id = as_text(entry).partition(":")
        leases.append(Lease(entry, job_id, execution_id, expires))
    return leases


def live_tickets(leases: Iterable[Lease]) -> Iterator[Ticket]:
    """Give the tickets that are held; an expired lease holds nothing."""
    now = current_timestamp()
    return readable_tickets(lease.job_id for lease in leases if lease.expires >= now)


def chunks(items: list[T]) -> Iterator[list[T]]:
    """Cut a list into pieces for one round trip each."""
    return (items[start:start + CHUNK] for start in range(0, len(items), CHUNK))
