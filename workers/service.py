"""A worker from start to end: its model, its queue, its stop, and what is left undone when it goes."""

import secrets
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.queue import JobQueue, Ticket
from store.database import Database
from store.errors import RunError
from store.jobs import unfinished_jobs
from store.records import Run
from store.runs import find_run, list_runs
from workers.attempt import Workplace
from workers.awake import awake
from workers.device import device_name
from workers.report import Reporter
from workers.session import Session
from workers.stop import Stop
from workers.tasks import compare_job, give_up_job
from workers.worker import Work, work


@dataclass(frozen=True, slots=True)
class Options:
    """How a worker works."""

    burst: bool
    weights: Path | None = None      # instead of where runs recorded them
    embeds: Path | None = None
    memory_limit: int | None = None      # bytes; None: what is sensible on this device


def run_worker(database: Database, queue: JobQueue, options: Options, stop: Stop, reporter: Reporter) -> Work:
    """Take jobs off the queue until it is empty (burst) or `stop` is requested; say what became of them."""
    session = Session(database, weights=options.weights, embeds=options.embeds, memory_limit=options.memory_limit,
                      reporter=reporter)
    name = f"{socket.gethostname().split('.')[0]}-{secrets.token_hex(4)}"
    place = Workplace(database, session, stop, reporter, worker=name, device=device_name())
    with awake():
        return work(
            queue, partial(compare_job, place), prepare=partial(_prepare, database, session),
            give_up=partial(give_up_job, place), burst=options.burst, stop=stop, name=name,
        )


def _prepare(database: Database, session: Session, ticket: Ticket) -> None:
    """Load the model of a ticket's run before the ticket is taken."""
    if session.holds(ticket.run_id):
        return
    try:
        run = find_run(database, ticket.run_id)
    except RunError:
        return      # a ticket of no run of ours: the job itself says so, and is dropped
    if run.state != "cancelled":
        session.prepare(run)


def left_behind(database: Database, queue: JobQueue) -> list[Run]:
    """Find the runs with planned pairs that no ticket stands for, waiting or running."""
    known = {*queue.waiting(), *queue.running()}
    live = (run for run in list_runs(database) if run.state in ("queued", "running"))
    return [run for run in live if any(Ticket(run.id, job) not in known for job in unfinished_jobs(database, run.id))]
