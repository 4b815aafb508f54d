"""A worker from start to end: its model, its queue, its stop, and what is left undone when it goes."""

import logging
import secrets
import socket
import time
from collections.abc import Callable
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
from workers.tasks import compare_job, give_up_job, lost_device
from workers.worker import Work, work

logger = logging.getLogger("diptych.worker")

LOOK_EVERY = 10.0      # seconds between two looks of a worker that waits for runs whose tickets are lost


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
            give_up=partial(give_up_job, place), idle=make_lost_check(database, queue), burst=options.burst, stop=stop,
            name=name,
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
        with lost_device():
            session.prepare(run)


def left_behind(database: Database, queue: JobQueue) -> list[Run]:
    """Find the runs with planned pairs that no ticket stands for, waiting or running."""
    known = {*queue.waiting(), *queue.running()}
    live = (run for run in list_runs(database) if run.state in ("queued", "running"))
    return [run for run in live if any(Ticket(run.id, job) not in known for job in unfinished_jobs(database, run.id))]


def make_lost_check(database: Database, queue: JobQueue, every: float = LOOK_EVERY) -> Callable[[], None]:
    """Make a function for a worker that waits: it names the runs whose tickets are lost, once.

    A run counts when two looks have found it so: an enqueue writes its pairs first and its tickets then.
    """
    looked, found, told = float("-inf"), set[str](), set[str]()

    def look() -> None:
        nonlocal looked, found, told
        if time.monotonic() - looked < every:
            return
        lost = {run.id: run for run in left_behind(database, queue)}
        for run_id in [run_id for run_id in lost if run_id in found - told]:
            logger.warning("run %s: %d planned pairs have no ticket on the queue; put them back: `diptych resume %s`",
                           run_id, lost[run_id].pending, run_id)
        told = (lost.keys() & found) | (lost.keys() & told)
        looked, found = time.monotonic(), set(lost)

    return look
