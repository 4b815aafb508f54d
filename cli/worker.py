"""diptych worker: take jobs off the queue."""

from pathlib import Path

import click

from cli.options import Globals, WeightsFolder, memory_limit_option, pass_globals


@click.command("worker", short_help="Take jobs off the queue and record results.")
@click.option("--burst", is_flag=True, help="Stop when the queue is empty, instead of waiting for more.")
@memory_limit_option("Most memory for the model and its work; what is sensible on this device, where it is left out.")
@click.option("--embeds", type=click.Path(path_type=Path), help="Embeddings folder, where it is not as enqueued.")
@click.option("--weights", type=WeightsFolder(), help="Checkpoint folder, where it is not as enqueued.")
@pass_globals
def command(
    values: Globals, burst: bool, memory_limit: int | None, embeds: Path | None, weights: Path | None,
) -> int:
    """Take jobs off the queue, runs in the order of their coming, until stopped; one model in memory.

    The memory is planned before a model is loaded, and the plan is logged: a job of more pairs than fit side by side
    runs in slices. Ctrl-C or SIGTERM: the slice in hand is finished and recorded; a second one stops at the next step.

    \b
    Example:
      diptych worker --burst
      diptych worker --memory-limit 24GB
    """
    from cli.work import work_off
    from workers.service import Options

    return work_off(values, Options(burst=burst, weights=weights, embeds=embeds, memory_limit=memory_limit))
