"""diptych status: how far a run is."""

import json
from typing import TYPE_CHECKING

import click

from cli.options import Globals, pass_globals
from cli.show import count, duration

if TYPE_CHECKING:
    from jobs.progress import Progress
    from store.database import Database

WATCH_EVERY = 2.0      # seconds


@click.command("status", short_help="Show how far a run is.")
@click.argument("run", required=False)
@click.option("--watch", is_flag=True, help="Show it again every two seconds until the run has ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object (a line each with --watch).")
@pass_globals
def command(values: Globals, run: str | None, watch: bool, as_json: bool) -> None:
    """Show counts, rate and time left of RUN (an id, a unique beginning of one, or a name; default: the latest).

    \b
    Example:
      diptych status
      diptych status night-1 --watch
    """
    from jobs.progress import watch_progress
    from store.database import open_database

    with open_database(values.db, create=False) as database:
        for progress in watch_progress(database, run, every=WATCH_EVERY if watch else None):
            if as_json:
                click.echo(json.dumps(progress.as_json()))
            else:
                click.echo(_sentence(progress) + _idle(values, database, progress))


def _idle(values: Globals, database: "Database", progress: "Progress") -> str:
    """Say that nobody works at an unfinished run: the embedded server runs as long as a worker does."""
    from jobs.server import running_server

    if values.redis or progress.state not in ("queued", "running"):
        return ""
    if server := running_server(database.id):
        server.close()
        return ""
    return f"; no worker is at the embedded queue, to go on: diptych worker --burst{values.typed}"


def _sentence(progress: "Progress") -> str:
    parts = [f"run {progress.run}: {progress.state}", f"{progress.done:,} of {progress.total:,} done"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.queued_jobs or progress.running_jobs:
        parts.append(f"{count(progress.queued_jobs, 'job')} queued, {progress.running_jobs:,} running")
    if progress.comparisons_per_minute:
        parts.append(f"{progress.comparisons_per_minute:,.1f} comparisons/min")
    if progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    return ", ".join(parts)
