"""diptych demo: photographs and pairs to try things with."""

import shlex
from pathlib import Path

import click

from cli.options import Globals, pass_globals

COMMANDS = """\
cd {folder}
diptych precompute photos -o embeddings --weights demo
diptych generate --a 3 --b 11 --embeds embeddings --weights demo --greedy
diptych enqueue pairs.txt --embeds embeddings --weights demo --greedy --name first
diptych worker --burst
diptych results first
diptych resume first"""


@click.command("demo", short_help="Lay out photographs and pairs to try things with.")
@click.argument("folder", type=click.Path(path_type=Path))
@pass_globals
def command(values: Globals, folder: Path) -> None:
    """Copy the photographs and the pairs file that ship with diptych into FOLDER, and print the commands to try.

    They use `--weights demo`, a small checkpoint that ships too: it compares brightness, warmth, colour, contrast and
    sharpness, in seconds on any machine.

    \b
    Example:
      diptych demo /tmp/first-look
    """
    from store.demo import lay_out

    photos = lay_out(folder)
    if not values.quiet:
        click.echo(f"{photos} photographs and pairs.txt are in {folder}; to try, in this order:", err=True)
    click.echo(COMMANDS.format(folder=shlex.quote(str(folder))))
