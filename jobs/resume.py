"""Take up a run where it stopped, or stop it: planned minus done goes back to the queue."""

from dataclasses import dataclass

import store.jobs
from jobs.delivery import open_queue, put_back
from jobs.queue import JobQueue
from jobs.server import running_server
from store.database import Database
from store.deaths import forget_deaths
from store.records import Run
from store.runs import cancel_run, lift_cancel


@dataclass(frozen=True, slots=True)
class Resumed:
    """What `resume` found and did."""

    pending: int       # pairs without a result
    failed: int        # pairs that failed
    put_back: int      # jobs whose ticket was missing


def resume(database: Database, queue: JobQueue, run: Run, *, retry_failed: bool = False) -> Resumed:
    """Lift a cancel, forget deaths, and put back on the queue what is planned and not done. Twice does no harm.

    With `retry_failed` the pairs that failed are to be done again; the run is unfinished until they are.
    """
    lift_cancel(database, run.id)
    if retry_failed:
        store.jobs.retry_failed(database, run.id)
    forget_deaths(database, run.id)
    return Resumed(pending=run.pending, failed=run.failed, put_back=put_back(database, queue, run))


def cancel_run_here(database: Database, redis_url: str | None, run: Run) -> int:
    """Mark the run cancelled and drop its tickets; return how many were dropped. A running job sees the mark.

    An embedded server that is not running is left so: the tickets in its log are dropped when a worker meets them.
    """
    cancel_run(database, run.id)
    if redis_url is None and running_server(database.id) is None:
        return 0
    with open_queue(database, redis_url) as queue:
        return queue.drop(run.id)
