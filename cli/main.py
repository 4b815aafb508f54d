"""The `diptych` command: its commands by name, and the one place where errors become messages and exit statuses."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from cli.options import global_options
from cli.show import escape
from store.errors import DiptychError

COMMANDS = (
    "precompute", "generate", "enqueue", "worker", "batch-generate", "status", "runs", "results", "resume", "replay",
    "cancel", "doctor", "bench", "demo",
)
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130      # exit statuses; 0 is done


class Commands(click.Group):
    """Commands that live in a module each, imported when they are called or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module; None for a name that is no command's."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"cli.{cmd_name.replace('-', '_')}").command
        return command


@click.command(cls=Commands, invoke_without_command=True,
               context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@global_options
@click.pass_context
def diptych(ctx: click.Context) -> None:
    """Compare pairs of images with GLM-4.6V-Flash, many at a time, so that interrupted runs resume.

    \b
    Example, from a folder of images to answers:
      diptych precompute photos/ -o embeddings_512
      diptych batch-generate pairs.txt --max-tokens 50
      diptych results --format csv -o results.csv
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(diptych, argv))


def run(command: click.Command, argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status. What goes wrong is one message on stderr, unless DIPTYCH_DEBUG=1."""
    try:
        status = command.main(list(sys.argv[1:] if argv is None else argv), standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has had enough (`| head`); what Python would flush at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DiptychError as error:
        return _fail(error, str(error), BAD_INPUT)
    except Exception as error:
        return _fail(error, f"{type(error).__name__}: {error} (unexpected; DIPTYCH_DEBUG=1 shows where)", FAILED)


def _fail(error: Exception, message: str, status: int) -> int:
    if os.environ.get("DIPTYCH_DEBUG") == "1":
        raise error
    click.echo(f"Error: {escape(' '.join(message.split()))}", err=True)
    return status
