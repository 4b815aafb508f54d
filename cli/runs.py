"""diptych runs: every run, a line each."""

import click

from cli.options import Globals, pass_globals
from cli.show import print_table, short


@click.command("runs", short_help="List every run.")
@pass_globals
def command(values: Globals) -> None:
    """List every run of the database, the latest last.

    \b
    Example:
      diptych runs
    """
    from store.database import open_database
    from store.runs import list_runs

    with open_database(values.db, create=False) as database:
        rows = [
            (run.id, run.name or "", run.state, f"{run.done:,} of {run.total:,}", f"{run.failed:,}", run.created_at,
             short(run.prompt, 40))
            for run in list_runs(database)
        ]
    print_table(("run", "name", "state", "done", "failed", "created", "prompt"), rows)
