"""diptych resume: put back on the queue what is planned and not done."""

import click

from cli.options import Globals, pass_globals
from cli.show import count


@click.command("resume", short_help="Put back on the queue what is not done.")
@click.argument("run", required=False)
@click.option("--retry-failed", is_flag=True, help="Pairs that failed as well.")
@pass_globals
def command(values: Globals, run: str | None, retry_failed: bool) -> None:
    """Put the jobs of RUN that are not done back on the queue (default: the latest run), and lift a cancel.

    Doing it twice does no harm: what waits or runs already is left alone. Results that are there stay.

    \b
    Example:
      diptych resume
      diptych worker --burst
    """
    from jobs.delivery import open_queue
    from jobs.resume import resume
    from store.database import open_database
    from store.runs import find_run

    with open_database(values.db, create=False) as database:
        found = find_run(database, run)
        with open_queue(database, values.redis) as queue:
            resumed = resume(database, queue, found, retry_failed=retry_failed)
    click.echo(f"run {found.id}: {resumed.pending:,} of {found.total:,} pairs pending, {resumed.failed:,} failed; "
               f"{count(resumed.put_back, 'job')} put back on the queue")
    if (resumed.pending or resumed.put_back) and not values.quiet:
        click.echo(f"next: diptych worker --burst{values.typed}", err=True)
