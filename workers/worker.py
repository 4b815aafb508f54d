"""The worker: takes tickets off the queue, one by one, and has their jobs done in this process and thread.

It knows queue and leases, neither models nor results. RQ sees an ordinary worker of its own.
"""

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.retry import Retry
from rq import SimpleWorker
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus
from rq.worker_registration import WORKERS_BY_QUEUE_KEY, clean_worker_registry

from jobs.queue import TASK, JobQueue, Refusal, Ticket
from jobs.tickets import TicketError, TicketJob
from store.errors import DiptychError, EmbeddingsError, QueueError, RunError, SettingsError, WeightsError
from workers.presence import Presence
from workers.stop import Cancelled, Stop, Stopped

logger = logging.getLogger("diptych.worker")

HEARTBEAT = 10.0      # seconds; a third of the time after which a worker counts as lost
OF_A_RUN = (EmbeddingsError, SettingsError, WeightsError)      # a run's own: others may be worked at all the same
PASS_AGAIN = 300.0    # seconds after which a worker that waits tries a run again that it has passed over
POLL = 0.5            # seconds between two looks at an empty queue
POLL_PAST = 5.0       # seconds between two looks past the tickets of runs that are passed over: each reads them all

Compare = Callable[[str, int], None]
Prepare = Callable[[Ticket], None]
GiveUp = Callable[[str, int, BaseException], None]
Fate = Literal["done", "dropped", "cancelled", "back", "retry"]


@dataclass(slots=True)
class Work:
    """What has become of the tickets that a worker met."""

    done: int = 0
    retried: int = 0      # failed, and back on the queue
    failed: int = 0       # failed for the last time
    dropped: int = 0      # no tickets of ours, or of a run that is cancelled or does not exist
    stopped: bool = False
    passed_over: dict[str, DiptychError] = field(default_factory=dict)      # runs that cannot be done here, and why


class GaveUpError(QueueError):
    """Redis is away, and the worker was asked to stop."""


class Patience(ExponentialBackoff):
    """Wait for a Redis that is away until it is back, or until the worker is to stop."""

    def __init__(self, stop: Stop, address: str) -> None:
        super().__init__(cap=2, base=0.05)
        self.stop = stop
        self.address = address

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Stay one: redis-py copies its retries for each connection, and a copied stop would hear nothing."""
        return self

    def compute(self, failures: int) -> float:
        """Give the seconds until the next try; raises GaveUpError."""
        if failures > 3 and self.stop.requested:
            raise GaveUpError(f"{self.address}: Redis does not answer, and the worker was asked to stop")
        if failures == 6:
            logger.warning("%s: Redis does not answer; waiting for it", self.address)
        return super().compute(min(failures, 10))      # 2 ** failures is too large a float after half an hour


def make_job_class(compare: Compare) -> type[TicketJob]:
    """Make the class of jobs whose one function is `compare`, whatever stands in Redis."""
    allowed = {TASK: compare}

    class AllowedJob(TicketJob):
        """A ticket's job that can be run."""

        @property
        def func(self) -> Compare:      # type: ignore[override]  # the base class's never returns
            if self.instance is not None or self.func_name not in allowed:
                raise TicketError(f"{self.id}: expected {TASK}, found another function")
            return allowed[self.func_name]

    return AllowedJob


def fate(error: BaseException | None) -> Fate:
    """Say what becomes of a ticket whose job has ended so."""
    if error is None:
        return "done"
    if isinstance(error, RunError):
        return "dropped"
    if isinstance(error, Cancelled):
        return "cancelled"
    if isinstance(error, Exception) and not isinstance(error, DiptychError | Stopped):
        return "retry"
    return "back"      # stopped, or something that a person must mend first


class Worker(SimpleWorker):
    """An RQ worker that never forks, beats during a job, and runs nothing but the jobs of tickets."""

    def __init__(
        self, queue: JobQueue, compare: Compare, give_up: GiveUp, stop: Stop, *, name: str, heartbeat: float,
        pass_again: float,
    ) -> None:
        job_class = make_job_class(compare)
        super().__init__(
            [queue.rq], name=name, connection=queue.connection, job_class=job_class, serializer=JSONSerializer
        )
        self.log = logger
        self.tickets = queue
        self.ticket_class = job_class
        self.give_up = give_up
        self.stop = stop
        self.interval = heartbeat
        self.pass_again = pass_again
        self.presence = Presence(queue.database_id)
        self.outcome = Work()
        self.types = {self.key: "hash", self.executions_key: "set", self.redis_workers_keys: "set",
                      WORKERS_BY_QUEUE_KEY % queue.rq.name: "set"}      # of the keys that this worker writes
        self._tended = float("-inf")
        self._passed_until: dict[str, float] = {}      # by run; seconds of the monotonic clock

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """Leave the connection's time limit as it is: this worker never blocks in Redis."""
        return connection

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Give the seconds after which a job without a heartbeat is another's: three intervals."""
        return math.ceil(3 * self.interval)

    def run(self, prepare: Prepare, idle: Callable[[], None], *, burst: bool) -> None:
        """Take tickets until asked to stop, or with `burst` until none waits; `idle` is called while none does."""
        with self.present():
            while not self.stop.requested:
                self.tend()
                passed = self.passed_now()
                found = self.tickets.next(passed)
                if isinstance(found, Ticket):
                    self.handle(found, prepare)
                elif found is not None:
                    self.refuse(found)
                elif burst:
                    break
                else:
                    idle()
                    self.stop.wait(POLL_PAST if passed else POLL)

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Be known to RQ and to this machine's other workers."""
        lock = self.presence.announce(self.name)
        try:
            self.tickets.mend(self.types)
            self.register_birth()      # type: ignore[no-untyped-call]  # RQ has no types here
            clean_worker_registry(self.tickets.rq)
            yield
        finally:
            with contextlib.suppress(redis.RedisError, QueueError):
                self.register_death()      # type: ignore[no-untyped-call]  # RQ has no types here
            if lock is not None:
                os.close(lock)      # its file stays, so that a job it could not put back is found

    def tend(self) -> None:
        """Once an interval, say that this worker lives and put back the tickets of those that do not."""
        if time.monotonic() - self._tended < self.interval:
            return
        self._tended = time.monotonic()
        self.tickets.mend(self.types)
        self.heartbeat()
        self.rescue()

    def rescue(self) -> None:
        """Put back the tickets of workers that are gone."""
        gone = self.presence.find_gone()
        self.tickets.rescue(lambda name: self.presence.file_of(name) in gone)
        self.presence.forget(gone)

    def handle(self, ticket: Ticket, prepare: Prepare) -> None:
        """Do the job of a ticket, which is taken when all is prepared for it."""
        try:
            prepare(ticket)
        except RunError as error:
            self.outcome.dropped += 1
            self.tickets.discard(ticket, str(error))
            return
        except Stopped:
            return
        except OF_A_RUN as error:
            self.pass_over(ticket.run_id, error)
            return
        if not self.stop.requested and (taken := self.take(ticket)):
            self.outcome.passed_over.pop(ticket.run_id, None)
            self.execute(*taken)

    def pass_over(self, run_id: str, error: DiptychError) -> None:
        """Leave a run to others, in a burst to the end and else for a while: its files or settings do not do here."""
        told = type(error)(f"{error}; `diptych cancel {run_id}` drops the run")
        self.outcome.passed_over[run_id] = told
        self._passed_until[run_id] = time.monotonic() + self.pass_again
        again = "until a worker is started again" if math.isinf(self.pass_again) else f"for {self.pass_again:g} s"
        logger.error("run %s is passed over %s: %s", run_id, again, told)

    def passed_now(self) -> set[str]:
        """Name the runs that are not to be tried yet."""
        return {run_id for run_id, until in self._passed_until.items() if time.monotonic() < until}

    def refuse(self, found: Refusal) -> None:
        """Drop what is no ticket."""
        self.outcome.dropped += 1
        self.tickets.refuse(found)

    def take(self, ticket: Ticket) -> tuple[TicketJob, Execution] | None:
        """Move a ticket from the queue to a lease in one transaction; None when it waits no longer."""
        try:
            job = self.tickets.fetch(ticket, self.ticket_class)
        except TicketError:
            return None      # changed since it was looked at; the next look will tell

        def settle(pipe: Pipeline) -> Execution | None:
            found = pipe.lpos(self.tickets.rq.key, ticket.id)
            pipe.multi()
            if found is None:
                return None
            pipe.lrem(self.tickets.rq.key, 1, ticket.id)
            execution = Execution.create(job, self.get_heartbeat_ttl(job), pipeline=pipe, worker_name=self.name)
            job.prepare_for_execution(self.name, pipeline=pipe)
            self.set_state(WorkerStatus.BUSY, pipeline=pipe)
            return execution

        execution = self.tickets.transact(settle, self.tickets.rq.key, others=self.types_with(job))
        return (job, execution) if execution else None

    def execute(self, job: TicketJob, execution: Execution) -> None:
        """Do a job and settle its ticket; raises what a person must mend, after putting the ticket back."""
        error: BaseException | None = None
        with beating(self, job, execution):
            try:
                job.perform()
            except BaseException as raised:
                error = raised
        try:
            self.settle(job, execution, error)
            # Asked when the ticket is gone: a resume finds it before, or is found by this question.
            if isinstance(error, Cancelled) and error.is_lifted():
                self.tickets.put([job.ticket])
        except GaveUpError as gave_up:
            logger.warning("%s; the ticket of job %s comes back by itself", gave_up, job.id)
        if isinstance(error, OF_A_RUN):
            self.pass_over(job.ticket.run_id, error)
        elif error is not None and fate(error) == "back" and not isinstance(error, Stopped):
            raise error

    def settle(self, job: TicketJob, execution: Execution, error: BaseException | None) -> None:
        """End the lease, and delete, put back or retry the ticket; without the lease it is another's by now."""
        registry = self.tickets.rq.started_job_registry

        def end(pipe: Pipeline) -> tuple[bool, bool]:
            held = pipe.zscore(registry.key, execution.composite_key) is not None
            pipe.multi()
            self.cleanup_execution(job, pipeline=pipe, execution=execution)
            self.set_state(WorkerStatus.IDLE, pipeline=pipe)
            return held, held and self._write(copy(job), pipe, fate(error))

        held, is_back = self.tickets.transact(end, registry.key, others=self.types_with(job))
        if not held:
            logger.warning("job %s: its lease had run out; what was recorded stays", job.id)
        is_last = held and not is_back and fate(error) == "retry"
        self._count(job, error, is_last=is_last)
        if error is not None and is_last:
            self.abandon(job.ticket, error)

    def abandon(self, ticket: Ticket, error: BaseException) -> None:
        """Have it recorded that a job has failed for the last time; raises what a person must mend."""
        try:
            self.give_up(ticket.run_id, ticket.job, error)
        except RunError as unknown:
            logger.warning("the failed ticket %s is of no run: %s", ticket.id, unknown)

    def types_with(self, job: TicketJob) -> dict[str, str]:
        """Name the keys that this worker writes for a job, with their types."""
        return self.types | {job.key: "hash", ExecutionRegistry.key_template.format(job.id): "zset"}

    def _write(self, job: TicketJob, pipe: Pipeline, outcome: Fate) -> bool:
        """Write what becomes of a ticket, and say whether it is back on the queue."""
        if outcome == "retry":
            return self.tickets.retry(job, pipe)
        if outcome == "back":
            self.tickets.put_back(job, pipe)
            return True
        pipe.delete(job.key)
        return False

    def _count(self, job: TicketJob, error: BaseException | None, *, is_last: bool) -> None:
        """Count and log how a job has ended."""
        match fate(error):
            case "done":
                self.outcome.done += 1
            case "dropped":
                self.outcome.dropped += 1
                logger.warning("dropped the ticket %s: %s", job.id, error)
            case "cancelled":
                self.outcome.dropped += 1
            case "retry":
                self.outcome.retried += not is_last
                self.outcome.failed += is_last
                last = f"for the last time; `diptych resume {job.ticket.run_id} --retry-failed` takes it up again"
                then = last if is_last else "it will be tried again"
                logger.error("job %s failed with %s: %s; %s", job.id, type(error).__name__, error, then)
                logger.debug("job %s", job.id, exc_info=error)


@contextlib.contextmanager
def beating(worker: Worker, job: TicketJob, execution: Execution) -> Iterator[None]:
    """Renew the lease of a job from a thread of its own, whatever the job does, and rescue those of others."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(worker.interval):
            try:
                worker.tickets.mend(worker.types_with(job) | {execution.key: "hash"})
                worker.maintain_heartbeats(job, execution)
                worker.rescue()
            except Exception as error:      # whatever it is, the next beat may succeed; without any the lease ends
                logger.warning("job %s: no heartbeat: %s: %s", job.id, type(error).__name__, error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def work(
    queue: JobQueue, compare: Compare, *, prepare: Prepare, give_up: GiveUp, burst: bool, stop: Stop,
    idle: Callable[[], None] = lambda: None, name: str | None = None, heartbeat: float = HEARTBEAT,
    pass_again: float = PASS_AGAIN,
) -> Work:
    """Have the jobs of a queue done until `stop` is requested, or with `burst` until no ticket waits.

    `prepare` is called with a ticket before it is taken, `compare` with its ids after, `idle` while no ticket waits.
    Returning means done. Stopped and a DiptychError put the ticket back at the front, and the latter is raised;
    Cancelled and a RunError drop it; any other exception is retried. `give_up` is called with the ids and the exception
    of a job whose retries are used up. A run whose files or settings do not do is passed over: with `burst` to the end,
    else for `pass_again` seconds.
    Signals set `stop` meanwhile. Raises QueueError when Redis refuses.
    """
    connection, outcome = queue.connection, Work()
    former = connection.get_retry()
    connection.set_retry(Retry(Patience(stop, queue.address), retries=-1))
    try:
        with stop:
            worker = Worker(queue, compare, give_up, stop, name=name or uuid.uuid4().hex, heartbeat=heartbeat,
                            pass_again=math.inf if burst else pass_again)
            outcome = worker.outcome
            worker.run(prepare, idle, burst=burst)
    except GaveUpError as error:
        logger.warning("%s", error)
    except redis.RedisError as error:
        raise QueueError(f"{queue.address}: expected a Redis that works, found: {error}") from error
    finally:
        if former is not None:
            connection.set_retry(former)
    outcome.stopped = stop.requested
    return outcome
