"""diptych worker: take jobs off the queue."""

from pathlib import Path

import click

from cli.options import Globals, WeightsFolder, pass_globals


@click.command("worker", short_help="Take jobs off the queue and record results.")
@click.option("--burst", is_flag=True, help="Stop when the queue is empty, instead of waiting for more.")
@click.option("--embeds", type=click.Path(path_type=Path), help="Embeddings folder, where it is not as enqueued.")
@click.option("--weights", type=WeightsFolder(), help="Checkpoint folder, where it is not as enqueued.")
@pass_globals
def command(values: Globals, burst: bool, embeds: Path | None, weights: Path | None) -> int:
    """Take jobs off the queue, runs in the order of their coming, until stopped; one model in memory.

    Ctrl-C or SIGTERM: the slice in hand is finished and recorded; a second one stops at the next step.

    \b
    Example:
      diptych worker --burst
    """
    from cli.work import work_off
    from workers.service import Options

    return work_off(values, Options(burst=burst, weights=weights, embeds=embeds))
