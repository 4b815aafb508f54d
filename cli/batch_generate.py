"""diptych batch-generate: enqueue and work off, in one command."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.enqueue import make_plan, run_options
from cli.options import Globals, batch_size_option, generation_options, pass_globals

if TYPE_CHECKING:
    from jobs.inputs import Settings
    from store.records import PairOrder


def make_command(*, print_texts: bool) -> click.Command:
    """Make the command; with `print_texts` each pair's text goes to stdout as it finishes."""

    @click.command("batch-generate", short_help="Enqueue a run and work it off, with a progress bar.")
    @run_options
    @batch_size_option(4)
    @generation_options
    @pass_globals
    def command(
        values: Globals, pairs: Path | None, random: int | None, name: str | None, order: "PairOrder",
        seed: int | None, batch_size: int, settings: "Settings",
    ) -> int:
        """Compare PAIRS in one command: enqueue them, work the queue off, say where the results are.

        Without PAIRS, --batch-size random pairs. On Ctrl-C it prints the command that resumes.

        \b
        Example:
          diptych batch-generate pairs.txt --batch-size 64 --max-tokens 50
        """
        from cli.work import batch_generate

        drawn = random or (None if pairs else batch_size)
        plan = make_plan(pairs, drawn, name, order, seed, batch_size, settings)
        return batch_generate(values, plan, print_texts=print_texts)

    return command


command = make_command(print_texts=False)
