"""diptych cancel: end a run before it is done."""

import click

from cli.options import Globals, pass_globals
from cli.show import count


@click.command("cancel", short_help="Drop what is left of a run.")
@click.argument("run")
@pass_globals
def command(values: Globals, run: str) -> None:
    """Drop the tickets of RUN; a job of it that runs stops at its next step. Results that are there stay.

    `diptych resume RUN` takes it up again.

    \b
    Example:
      diptych cancel night-1
    """
    from jobs.resume import cancel_run_here
    from store.database import open_database
    from store.runs import find_run

    with open_database(values.db, create=False) as database:
        found = find_run(database, run)
        dropped = cancel_run_here(database, values.redis, found)
    click.echo(f"run {found.id}: cancelled; {count(dropped, 'job')} dropped, {found.done:,} of {found.total:,} done")
