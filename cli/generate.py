"""diptych generate: one pair, now."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cli.options import Command, Globals, generation_options, pass_globals, seed_option
from cli.show import escape

if TYPE_CHECKING:
    from jobs.inputs import Settings


def index_option(letter: str) -> Callable[[Command], Command]:
    """Accept --a or --b."""
    return click.option(f"--{letter}", f"idx_{letter}", type=int, envvar=f"GLM_IDX_{letter.upper()}", show_envvar=True,
                        help=f"Index of image {letter.upper()}, 0-based into filenames.txt.  [default: drawn]")


@click.command("generate", short_help="Compare one pair now, without database or queue.")
@index_option("a")
@index_option("b")
@seed_option("The row's own seed, used as it is.  [default: drawn, and shown]")
@generation_options
@pass_globals
def command(values: Globals, idx_a: int | None, idx_b: int | None, seed: int | None, settings: "Settings") -> None:
    """Compare one pair in this process; the text is streamed to stdout.

    Opens neither database nor queue. With the seed of a recorded row it gives the same text.

    \b
    Example:
      diptych generate --a 0 --b 1 --max-tokens 100
      diptych generate --greedy --prompt "Which image is sharper?"
    """
    from jobs.seeds import draw_seed
    from workers.single import OnePair

    one = OnePair(settings, idx_a, idx_b, draw_seed() if seed is None else seed)
    if not values.quiet:
        pair = one.pair
        click.echo(f"A: {escape(pair.image_a)} ({pair.idx_a})  B: {escape(pair.image_b)} ({pair.idx_b})  "
                   f"seed {one.seed}", err=True)
    for piece in one.stream():
        click.echo(escape(piece) if sys.stdout.isatty() else piece, nl=False)
    click.echo()
