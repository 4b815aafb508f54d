"""diptych bench: what this machine compares in a minute, at one batch size after another."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import LARGEST_BATCH, Globals, generation_options, memory_limit_option, pass_globals

if TYPE_CHECKING:
    from jobs.inputs import Settings

BATCH_SIZES = "1,4,8,16,32,64,96,128,192,256,512"
PARTNERS = 8


class BatchSizes(click.ParamType[tuple[int, ...]]):
    """Batch sizes, each larger than the one before."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the sizes."""
        words = str(value).split(",")
        sizes = [int(word) for word in words if word.strip().isdecimal()]
        if len(sizes) < len(words) or sizes != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= LARGEST_BATCH:
            self.fail(f"expected whole numbers from 1 to {LARGEST_BATCH:,}, ascending, with commas between, as 1,8,64, "
                      f"found {value!r}", param, ctx)
        return tuple(sizes)


class SvgFile(click.Path):
    """A file for a plot, in a folder that exists: it is known before hours are spent."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        file = Path(os.fsdecode(super().convert(value, param, ctx)))
        if file.suffix.lower() != ".svg":
            self.fail(f"expected a name that ends in .svg, found {str(file)!r}", param, ctx)
        if not file.parent.is_dir():
            self.fail(f"expected a folder that exists, found none at {str(file.parent)!r}", param, ctx)
        return file


# Embeddings are drawn unless a folder is named, by the option or its variable.
@click.command("bench", short_help="Measure the speed at several batch sizes, and recommend one.",
               context_settings={"default_map": {"embeds": "random"}})
@click.option("--batch-sizes", type=BatchSizes(), default=BATCH_SIZES, show_default=True,
              help="Batch sizes to try, ascending.")
@click.option("--partners", type=click.IntRange(min=1), default=PARTNERS, show_default=True,
              help="Pairs that share a first image; 1 is none.")
@memory_limit_option("Most memory for the model and its work; what is sensible on this device, where it is left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end; the table goes to stderr.")
@click.option("--plot", type=SvgFile(dir_okay=False, writable=True), metavar="FILE.svg",
              help="Draw rate and memory into an SVG file.")
@generation_options
@pass_globals
def command(
    values: Globals, batch_sizes: tuple[int, ...], partners: int, memory_limit: int | None, as_json: bool,
    plot: Path | None, settings: "Settings",
) -> int:
    """Compare pairs at one batch size after another: their rates, the memory, and which --batch-size to take.

    Each size compares as many pairs as it has, at least 32, with an empty prefix cache and after a short warm-up that
    is not counted; it is timed from the first prefill to the last token, without loading the model. Each answer has
    exactly --max-tokens: no token ends it. Without --embeds the embeddings are random (the speed does not depend on
    what they show), as many tokens an image as the checkpoint has by default. Nothing is recorded.

    How long it will take is shown as soon as there is a rate. Ctrl-C ends it at the next step; what is finished is
    shown.

    \b
    Example:
      diptych bench --max-tokens 50 --plot bench.svg
      diptych bench --batch-sizes 1,32,64,128 --memory-limit 24GB --json > bench.json
    """
    from cli.measuring import Measuring, measure
    from workers import device
    from workers.bench import open_workload

    limit = device.memory_limit(memory_limit)
    device.apply_limit(limit)
    work = open_workload(settings, partners, limit)
    return measure(work, Measuring(values, batch_sizes, settings, as_json, plot))
