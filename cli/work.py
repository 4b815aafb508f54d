"""What `worker`, `batch-generate` and `glm46v_mlx` have in common: work, then say what became of it."""

import signal
from typing import TYPE_CHECKING

import click

from cli.options import Globals

if TYPE_CHECKING:
    from cli.progress import WorkBar
    from jobs.enqueue import Plan
    from jobs.queue import JobQueue
    from store.database import Database
    from workers.service import Options

FAILED, INTERRUPTED = 1, 130      # exit statuses


def work_off(values: Globals, options: "Options", bar: "WorkBar") -> int:
    """Work the queue off and return the exit status."""
    from jobs.delivery import open_queue
    from store.database import open_database

    with open_database(values.db, create=True) as database, open_queue(database, values.redis) as queue:
        return _work(values, database, queue, options, bar)


def batch_generate(values: Globals, plan: "Plan", bar: "WorkBar") -> int:
    """Enqueue a run, work the queue off, and return the exit status."""
    from jobs.delivery import open_queue
    from jobs.enqueue import enqueue_run
    from store.database import open_database
    from store.runs import find_run
    from workers.service import Options

    with open_database(values.db, create=True) as database, open_queue(database, values.redis) as queue:
        run = enqueue_run(database, queue, plan)
        _say(values, f"run {run.id}: {run.total:,} pairs in {plan.n_jobs:,} jobs")
        status = _work(values, database, queue, Options(burst=True), bar)
        run = find_run(database, run.id)
    _say(values, f"run {run.id}: {run.done:,} of {run.total:,} done, {run.failed:,} failed")
    if run.pending:
        _say(values, f"to resume: diptych resume {run.id} && diptych worker --burst")
    else:
        _say(values, f"to see them: diptych results {run.id}")
    return status


def _work(values: Globals, database: "Database", queue: "JobQueue", options: "Options", bar: "WorkBar") -> int:
    from workers.service import left_behind, run_worker
    from workers.stop import Stop

    stop = Stop()
    with bar:
        run_worker(database, queue, options, stop, bar)
    if stop.requested:
        return INTERRUPTED if stop.signal == signal.SIGINT else 0
    missing = left_behind(database, queue) if options.burst else []
    for run in missing:
        click.echo(f"run {run.id}: {run.pending:,} planned pairs have no ticket on the queue; put them back with: "
                   f"diptych resume {run.id}", err=True)
    return FAILED if missing or bar.failed else 0


def _say(values: Globals, line: str) -> None:
    if not values.quiet:
        click.echo(line, err=True)
