"""diptych precompute: the embeddings of a folder of images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Globals, pass_globals, weights_option
from cli.show import escape

if TYPE_CHECKING:
    from workers.images import Fit

FAILED = 1      # exit status: some images could not be read


@click.command("precompute", short_help="Compute the embeddings of a folder of images.")
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where they go.")
@weights_option
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images at a time.")
@click.option("--image-size", type=click.IntRange(min=1), metavar="PX",
              help="Side that every image is brought to, a multiple of 28.  [default: the checkpoint's, at most 448]")
@click.option("--fit", type=click.Choice(["squash", "pad", "crop"]), default="squash", show_default=True,
              help="How an image becomes a square: distorted, with a margin, or cut.")
@pass_globals
def command(
    values: Globals, source: Path, output: Path, weights: Path, batch_size: int, image_size: int | None, fit: "Fit"
) -> int:
    """Compute the embeddings of all images in INPUT and its folders, once per image.

    Writes embeddings.bin, filenames.txt and embeddings.json. An image that cannot be read is named and skipped;
    the exit status is then 1.

    \b
    Example:
      diptych precompute photos/ -o embeddings_512
    """
    from cli.progress import make_bar
    from store.checkpoint import open_checkpoint
    from workers.awake import awake
    from workers.precompute import precompute

    checkpoint = open_checkpoint(weights)
    with awake(), make_bar(quiet=values.quiet) as bar:
        task = bar.add_task("images", total=None)
        made = precompute(source, output, checkpoint, batch_size=batch_size, side=image_size, fit=fit,
                          progress=lambda done, total: bar.update(task, completed=done, total=total))
    for name, reason in made.failed:
        click.echo(f"skipped {escape(name)}: {escape(reason)}", err=True)
    if not values.quiet:
        unread = f"; unreadable images: {len(made.failed):,}" if made.failed else ""
        other = f"; other files passed over: {made.skipped:,}" if made.skipped else ""
        other += f" (links that lead outside: {made.outside:,}; copy the files)" if made.outside else ""
        click.echo(f"{made.written:,} embeddings in {output}{unread}{other}", err=True)
    return FAILED if made.failed else 0
