"""diptych doctor: what this machine has, and what to mend."""

from pathlib import Path

import click

from cli.options import DEFAULT_PROMPT, Globals, embeds_option, pass_globals, weights_option
from cli.show import escape

TO_MEND = 1          # exit status
BATCH_SIZE = 64      # of enqueue


@click.command("doctor", short_help="Show what this machine has, and what to mend.")
@embeds_option
@weights_option
@click.option("--verify", is_flag=True, help="Read every byte of weights and embeddings, and hash them.")
@pass_globals
def command(values: Globals, embeds: Path, weights: Path, verify: bool) -> int:
    """Look at device, SQLite, queue, weights and embeddings, plan the memory of a run, and say what to mend.

    Starts no server and changes nothing. The exit status is 1 when there is something to mend.

    \b
    Example:
      diptych doctor
      diptych doctor --weights GLM-4.6V-Flash-4bit --verify
    """
    from workers.doctor import Patient, examine

    mends = 0
    patient = Patient(values.db, values.redis, weights, embeds, DEFAULT_PROMPT, BATCH_SIZE)
    for finding in examine(patient, verify=verify):
        click.echo(f"{finding.topic}: {escape(finding.found)}")
        if finding.mend is not None:
            mends += 1
            click.echo(f"  to mend: {escape(finding.mend)}")
    click.echo("all is well" if not mends else f"{mends} to mend")
    return TO_MEND if mends else 0
