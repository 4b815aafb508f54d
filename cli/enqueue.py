"""diptych enqueue: a run in the store, its jobs on the queue."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cli.options import (
    Command,
    Globals,
    batch_size_option,
    decorate,
    generation_options,
    memory_limit_option,
    pass_globals,
    seed_option,
)
from cli.show import count, duration

if TYPE_CHECKING:
    from jobs.enqueue import Plan
    from jobs.estimate import Estimate
    from jobs.inputs import Settings
    from store.records import PairOrder


def run_options(function: Command) -> Command:
    """Accept what makes a run beside the options of generation: its pairs, seed and name."""
    options = (
        click.argument("pairs", type=click.Path(path_type=Path), envvar="GLM_PAIRS_FILE", required=False),
        click.option("--random", type=click.IntRange(min=1), metavar="N",
                     help="Instead of a file: N ordered pairs, drawn by the seed; distinct while there are any."),
        seed_option("Seed of the run; a row's own is derived from it.  [default: drawn, and recorded]"),
        click.option("--name", help="A name for the run, to ask for it later."),
        click.option("--order", type=click.Choice(["grouped", "file"]), default="grouped", show_default=True,
                     help="Pairs with the same first image share a job as far as possible, or as the file has them. "
                          "Positions and seeds stay the same."),
    )
    return decorate(function, options)


def make_plan(pairs: Path | None, random: int | None, name: str | None, order: "PairOrder", seed: int | None,
              batch_size: int, settings: "Settings") -> "Plan":
    """Check what was asked for and plan it; nothing is written."""
    from jobs.enqueue import Request, plan_run
    from jobs.seeds import draw_seed

    if random and click.get_current_context().get_parameter_source("pairs") != ParameterSource.COMMANDLINE:
        pairs = None      # a file that only the variable names gives way
    drawn = draw_seed() if seed is None else seed
    return plan_run(Request(settings, pairs, random, drawn, batch_size, name, tuple(sys.argv), order))


@click.command("enqueue", short_help="Plan a run: pairs in the database, jobs on the queue.")
@run_options
@batch_size_option(64)
@generation_options
@click.option("--dry-run", is_flag=True, help="Check and show the plan; write nothing.")
@memory_limit_option("With --dry-run: plan for a machine with that much memory.")
@pass_globals
def command(
    values: Globals, pairs: Path | None, random: int | None, name: str | None, order: "PairOrder", seed: int | None,
    batch_size: int, settings: "Settings", dry_run: bool, memory_limit: int | None,
) -> int:
    """Check PAIRS (lines of `idx_a,idx_b`, 0-based into filenames.txt) and put them on the queue as one run.

    Prints the run's id. Nothing is written when anything is wrong.

    \b
    Example:
      diptych enqueue pairs.txt --batch-size 64 --max-tokens 50 --seed 42
      diptych enqueue --random 1000 --prompt "Which image is sharper?" --greedy
    """
    from cli.memory import memory_lines
    from jobs.delivery import check_redis, open_queue
    from jobs.enqueue import enqueue_run
    from jobs.estimate import estimate
    from store.database import open_database

    if memory_limit and not dry_run:
        raise click.UsageError("--memory-limit: expected --dry-run with it, found none; a run's memory is the worker's")
    plan = make_plan(pairs, random, name, order, seed, batch_size, settings)
    if dry_run:
        _show(estimate(plan, values.db), memory_lines(plan, memory_limit))
        return 0
    check_redis(values.redis)
    with open_database(values.db, create=True) as database, open_queue(database, values.redis) as queue:
        run = enqueue_run(database, queue, plan)
    if not values.quiet:
        click.echo(f"{count(run.total, 'pair')} in {count(plan.n_jobs, 'job')}; next: diptych worker{values.typed}",
                   err=True)
    click.echo(run.id)
    return 0


def _show(cost: "Estimate", memory: Sequence[str]) -> None:
    for line in (*_work(cost), _sharing(cost), _time(cost), *memory):
        click.echo(line)
    click.echo("nothing was enqueued (--dry-run)", err=True)


def _work(cost: "Estimate") -> tuple[str, ...]:
    return (
        f"pairs: {cost.pairs:,} over {cost.images:,} images, jobs: {cost.jobs:,}",
        f"prompt tokens: {cost.prompt_tokens:,} a pair, {cost.prompt_tokens * cost.pairs:,} in all",
        f"answer tokens: at most {cost.max_tokens:,} a pair, {cost.max_tokens * cost.pairs:,} in all",
    )


def _sharing(cost: "Estimate") -> str:
    return (f"first images: {cost.first_images:,}, shared by {cost.pairs_a_first_image:,.1f} pairs each; "
            f"prompt tokens computed: {cost.computed_share:.2f} of unshared")


def _time(cost: "Estimate") -> str:
    if cost.seconds is None:
        return "time: no run in this database has a rate yet"
    rate = f"{cost.comparisons_per_minute:,.1f} comparisons/min of run {cost.rate_run}"
    return f"time: about {duration(cost.seconds)} at the {rate}"
