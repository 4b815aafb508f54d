"""diptych replay: make a recorded row again and compare."""

import click

from cli.options import Globals, pass_globals
from cli.show import escape

DIFFERS = 1      # exit status


@click.command("replay", short_help="Generate a recorded row again and compare.")
@click.argument("run")
@click.argument("position", type=click.IntRange(min=0))
@pass_globals
def command(values: Globals, run: str, position: int) -> int:
    """Generate the pair at POSITION of RUN again from its recorded settings, and compare token by token.

    Says `equal` (exit status 0), or shows the first token that differs (exit status 1).

    \b
    Example:
      diptych replay night-1 412
    """
    from store.database import open_database
    from store.runs import find_run
    from workers.single import replay_run

    with open_database(values.db, create=False) as database:
        found = replay_run(database, find_run(database, run), position)
    place = found.first_difference
    if place is None:
        click.echo(f"equal: {len(found.recorded)} tokens")
        return 0
    recorded, generated = (tokens[place : place + 1] or ("the end",) for tokens in (found.recorded, found.generated))
    click.echo(f"different from token {place} on: recorded {recorded[0]}, generated {generated[0]}")
    click.echo(f"recorded:  {escape(found.recorded_text)}\ngenerated: {escape(found.generated_text)}")
    return DIFFERS
