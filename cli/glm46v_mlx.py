"""glm46v_mlx: the drop-in for the ancestor; its mode and all else come from the GLM_ variables."""

import os

import click

from cli import generate
from cli.batch_generate import make_command
from cli.main import run


@click.command("glm46v_mlx", context_settings={"help_option_names": ["-h", "--help"]})
def glm46v_mlx() -> int:
    """Compare image pairs as the variables say.

    GLM_GENERATE=1 compares one pair, GLM_BATCH_GENERATE=1 the pairs of GLM_PAIRS_FILE, or GLM_BATCH_SIZE random ones;
    both: the batch. Each pair's text goes to stdout as it finishes. The other variables are those of
    `diptych generate --help` and `diptych batch-generate --help`.

    \b
    Example:
      GLM_BATCH_GENERATE=1 GLM_PAIRS_FILE=pairs.txt GLM_EMBEDS_DIR=embeddings_out glm46v_mlx
    """
    if os.environ.get("GLM_BATCH_GENERATE") == "1":
        return _invoke(make_command(print_texts=True))
    if os.environ.get("GLM_GENERATE") == "1":
        return _invoke(generate.command)
    raise click.UsageError("expected GLM_GENERATE=1 or GLM_BATCH_GENERATE=1 in the environment, found neither")


def _invoke(command: click.Command) -> int:
    """Run a command with no words but the environment's."""
    status = command.main([], standalone_mode=False)
    return status if isinstance(status, int) else 0


def main() -> None:
    """Run it and exit with its status."""
    raise SystemExit(run(glm46v_mlx))
