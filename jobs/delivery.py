"""The queue that belongs to a database: its embedded server, or the Redis that a person named."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.queue import JobQueue, Ticket, connect
from jobs.server import forget_lost_queue, lost_queue, open_server
from store.database import Database
from store.jobs import unfinished_jobs
from store.records import Run
from store.runs import list_runs

logger = logging.getLogger("diptych.queue")


@contextmanager
def open_queue(database: Database, redis_url: str | None) -> Iterator[JobQueue]:
    """Open the queue of this database: on `redis_url`, or on the embedded server, which is started if it must be.

    A server that had to set aside what it could not load gets its tickets back from the database.
    """
    if redis_url is not None:
        yield JobQueue(connect(redis_url), database.id)
        return
    with open_server(database.id) as connection:
        queue = JobQueue(connection, database.id)
        if (aside := lost_queue(database.id)) is not None:
            restored = put_back_all(database, queue)
            forget_lost_queue(database.id)
            logger.warning("%s jobs were put back on the queue from the database; the former queue is in %s", restored,
                           aside)
        yield queue


def check_redis(redis_url: str | None) -> None:
    """Raise QueueError where the Redis that a person named does not answer, before anything is written."""
    if redis_url is not None:
        connect(redis_url).close()


def put_back_all(database: Database, queue: JobQueue) -> int:
    """Put back the tickets of every run that is neither done nor cancelled; return how many were missing."""
    live = (run for run in list_runs(database) if run.state in ("queued", "running"))
    return sum(put_back(database, queue, run) for run in live)


def put_back(database: Database, queue: JobQueue, run: Run) -> int:
    """Put on the queue what is planned and not done, without what is there already; return how many were missing."""
    return queue.put(Ticket(run.id, job) for job in unfinished_jobs(database, run.id))
