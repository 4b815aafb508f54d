"""What `worker`, `batch-generate` and `glm46v_mlx` have in common: work, then say what became of it."""

import logging
import signal
from typing import TYPE_CHECKING

import click

from cli.options import Globals
from cli.show import count

if TYPE_CHECKING:
    from jobs.enqueue import Plan
    from store.records import Run
    from workers.service import Options
    from workers.stop import Stop
    from workers.worker import Work

logger = logging.getLogger("diptych.worker")

FAILED, INTERRUPTED = 1, 130      # exit statuses


def work_off(values: Globals, options: "Options") -> int:
    """Work the queue off, or wait for more; return the exit status."""
    from cli.progress import WorkBar
    from jobs.delivery import open_queue
    from store.database import open_database
    from store.runs import list_runs
    from workers.service import left_behind, run_worker
    from workers.stop import Stop
    from workers.worker import Work

    with (open_database(values.db, create=not options.burst) as database, open_queue(database, values.redis) as queue,
          Stop() as stop, WorkBar(quiet=values.quiet or values.log_format == "json") as bar):
        if not options.burst:
            say(values, f"waiting for jobs in {database.location}; Ctrl-C ends it")
        work = run_worker(database, queue, options, stop, bar)
        missing = left_behind(database, queue) if options.burst and not stop.requested else []
        begun = [run for run in list_runs(database) if run.state == "running"] if stop.requested else []
    if options.burst and work == Work():
        say(values, "no job waited")
    say_left(values, begun)
    say_lost(values, missing)
    refuse_idleness(work, stop)
    return exit_status(stop, failed=bool(missing or bar.failed or work.passed_over))


def batch_generate(values: Globals, plan: "Plan", *, print_texts: bool) -> int:
    """Enqueue a run, work the queue off, and return the exit status of this run."""
    from cli.progress import PrintedTexts, WorkBar
    from jobs.delivery import check_redis, open_queue
    from jobs.enqueue import enqueue_run
    from store.database import open_database
    from store.runs import find_run
    from workers.service import Options, run_worker
    from workers.stop import Stop

    check_redis(values.redis)
    with (open_database(values.db, create=True) as database, open_queue(database, values.redis) as queue,
          Stop() as stop):
        ahead = len(queue.waiting())
        run = enqueue_run(database, queue, plan)
        say(values, f"run {run.id}: {count(run.total, 'pair')} in {count(plan.n_jobs, 'job')}")
        if ahead:
            say(values, f"other runs come first: {count(ahead, 'job')}")
        quiet = values.quiet or values.log_format == "json"
        with (PrintedTexts(run.id, quiet=quiet) if print_texts else WorkBar(quiet=quiet)) as bar:
            work = run_worker(database, queue, Options(burst=True), stop, bar)
        run = find_run(database, run.id)
    refuse_idleness(work, stop)
    say_outcome(values, run)
    return exit_status(stop, failed=bool(run.pending or run.failed))


def refuse_idleness(work: "Work", stop: "Stop") -> None:
    """Raise what keeps the worker from its runs, where that was all it met and nobody asked it to stop."""
    if work.passed_over and not work.done and not stop.requested:
        raise next(iter(work.passed_over.values()))


def exit_status(stop: "Stop", *, failed: bool) -> int:
    """Return 130 after Ctrl-C, 0 after SIGTERM, else whether something failed."""
    if stop.requested:
        return INTERRUPTED if stop.signal == signal.SIGINT else 0
    return FAILED if failed else 0


def say_outcome(values: Globals, run: "Run") -> None:
    """Say how far a run is, and the command that comes next."""
    say(values, f"run {run.id}: {run.done:,} of {run.total:,} done, {run.failed:,} failed")
    if run.pending:
        resume = f"diptych resume {run.id}{values.typed} && diptych worker --burst{values.typed}"
        click.echo(f"to resume: {resume}", err=True)
    else:
        say(values, f"to see them: diptych results {run.id}{values.typed}")


def say_left(values: Globals, runs: "list[Run]") -> None:
    """Say what a worker that was stopped has left to do, and how it goes on."""
    for run in runs:
        say(values, f"run {run.id}: {run.done:,} of {run.total:,} done, {run.failed:,} failed")
    if runs:
        say(values, f"to go on: diptych worker --burst{values.typed}")


def say_lost(values: Globals, runs: "list[Run]") -> None:
    """Name the runs whose planned pairs no ticket stands for."""
    for run in runs:
        click.echo(f"run {run.id}: {run.pending:,} planned pairs have no ticket on the queue; put them back with: "
                   f"diptych resume {run.id}{values.typed}", err=True)


def say(values: Globals, line: str) -> None:
    """Print a line for a person on stderr, unless --quiet; among log lines for machines it is one of them."""
    if values.log_format == "json":
        logger.info("%s", line)
    elif not values.quiet:
        click.echo(line, err=True)
