"""The options that commands share: the global ones, and those of generation with the ancestor's variables."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from store.records import SEED_LIMIT, Sampling

if TYPE_CHECKING:
    from jobs.inputs import Settings

Command = Callable[..., Any]
DEFAULT_PROMPT = "Compare these two images."
LARGEST_BATCH = 65_536      # pairs; far beyond what any memory holds
SEED = click.IntRange(0, SEED_LIMIT - 1)


@dataclass(frozen=True, slots=True)
class Globals:
    """What the global options say."""

    db: str
    redis: str | None
    log_format: str
    quiet: bool
    typed: str      # --db and --redis as they were typed, to be repeated in the commands that a message names


_GLOBAL_DEFAULTS: dict[str, Any] = {"db": "results.db", "redis": None, "log_format": "text", "quiet": False}
_TYPED = "diptych.typed"


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a global option's value for the command; after the command's name wins over before, both over variables."""
    meta, key, name = ctx.find_root().meta, f"diptych.{param.name}", param.name or ""
    if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
        meta[key] = value
        if name in ("db", "redis"):
            meta[_TYPED] = meta.get(_TYPED, {}) | {name: value}
    elif value is not None:
        meta.setdefault(key, value)


def global_options(function: Command) -> Command:
    """Accept --db, --redis, --log-format and --quiet here; `pass_globals` hands them over."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember, "default": None}
    options = (
        click.option("--db", metavar="PATH|URL", envvar="DIPTYCH_DB", show_envvar=True, **shared,
                     help="Results database.  [default: results.db]"),
        click.option("--redis", metavar="URL", envvar="DIPTYCH_REDIS_URL", show_envvar=True, **shared,
                     help="Redis or Valkey of the queue.  [default: the embedded server of this database]"),
        click.option("--log-format", type=click.Choice(["text", "json"]), **shared, help="Form of log lines.  [text]"),
        click.option("--quiet", is_flag=True, **shared, help="No progress and no log lines, only errors."),
        click.version_option(package_name="diptych", prog_name="diptych"),
    )
    return decorate(function, options)


def decorate(function: Command, options: Iterable[Callable[[Command], Command]]) -> Command:
    """Apply decorators as if they stood above the function in this order."""
    return reduce(lambda inner, option: option(inner), reversed(list(options)), function)


def _words(typed: dict[str, str]) -> str:
    """Write options for a shell, passwords masked, with a blank before each."""
    from jobs.environment import mask_passwords

    return "".join(f" --{name} {shlex.quote(mask_passwords(value))}" for name, value in typed.items())


def pass_globals(function: Command) -> Command:
    """Pass Globals as the first argument, set up logging by them, and accept the global options after the name."""

    @wraps(function)
    def with_globals(*args: Any, **kwargs: Any) -> Any:
        from cli.logs import set_up_logging

        meta = click.get_current_context().find_root().meta
        given = {key: meta.get(f"diptych.{key}", default) for key, default in _GLOBAL_DEFAULTS.items()}
        values = Globals(**given, typed=_words(meta.get(_TYPED, {})))
        set_up_logging(values.log_format, quiet=values.quiet)
        return function(values, *args, **kwargs)

    return global_options(with_globals)


def embeds_option(function: Command) -> Command:
    """Accept --embeds."""
    return click.option("--embeds", type=click.Path(path_type=Path), envvar="GLM_EMBEDS_DIR", show_envvar=True,
                        default=Path("embeddings_512"), show_default=True,
                        help="Folder with embeddings.bin and filenames.txt.")(function)


class WeightsFolder(click.ParamType[Path]):
    """The folder of a checkpoint; the word `demo` is the one that ships."""

    name = "DIR|demo"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the folder."""
        from store import demo

        return demo.WEIGHTS if str(value) == demo.NAME else Path(value)


def weights_option(function: Command) -> Command:
    """Accept --weights."""
    return click.option("--weights", type=WeightsFolder(), envvar="GLM_WEIGHTS_DIR", show_envvar=True,
                        default="vision_weights", show_default=True,
                        help="Folder of the checkpoint, as downloaded; `demo` is the small one that ships.")(function)


class Size(click.ParamType[int]):
    """A size of memory in bytes, written with its unit."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        from jobs.sizes import parse_size

        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def memory_limit_option(text: str) -> Callable[[Command], Command]:
    """Accept --memory-limit."""
    return click.option("--memory-limit", type=Size(), default=None, help=f"{text} As 600MB, 24GB or 22.5GiB.")


def batch_size_option(default: int) -> Callable[[Command], Command]:
    """Accept --batch-size with the ancestor's variable."""
    return click.option("--batch-size", type=click.IntRange(1, LARGEST_BATCH), envvar="GLM_BATCH_SIZE",
                        show_envvar=True, default=default, show_default=True,
                        help="Pairs of a job, computed side by side; a job left in the middle is computed again.")


def seed_option(text: str) -> Callable[[Command], Command]:
    """Accept --seed; without it one is drawn and recorded."""
    return click.option("--seed", type=SEED, envvar="GLM_SEED", show_envvar=True, default=None, help=text)


def generation_options(function: Command) -> Command:
    """Accept the options of generation and pass them as one argument, `settings`."""

    def var(name: str, **more: Any) -> dict[str, Any]:
        return {"envvar": name, "show_envvar": True, "show_default": True, **more}

    options = (
        embeds_option,
        weights_option,
        click.option("--max-tokens", type=int, default=100, **var("GLM_MAX_TOKENS"), help="Most tokens of an answer."),
        click.option("--sample/--greedy", "do_sample", default=True, **var("GLM_DO_SAMPLE"),
                     help="Draw tokens, or take the likeliest."),
        click.option("--temperature", type=float, default=0.8, **var("GLM_TEMPERATURE"), help="Of sampling."),
        click.option("--top-k", type=int, default=50, **var("GLM_TOP_K"), help="Likeliest tokens kept; 0 is off."),
        click.option("--top-p", type=float, default=0.6, **var("GLM_TOP_P"), help="Probability kept; 1 is off."),
        click.option("--repetition-penalty", type=float, default=1.0, **var("GLM_REP_PENALTY"), help="1.0 is none."),
        click.option("--prompt", default=None, metavar="TEXT",
                     help="What to ask; <image_a> and <image_b> say where the images go, otherwise they come first.  "
                          f"[default: {DEFAULT_PROMPT}]"),
        click.option("--prompt-file", type=click.Path(path_type=Path), default=None, help="A file with the prompt."),
        click.option("--thinking/--no-thinking", default=False, show_default=True, help="Let the model think first."),
    )

    @wraps(function)
    def with_settings(*args: Any, **kwargs: Any) -> Any:
        return function(*args, settings=_settings(kwargs), **kwargs)

    return decorate(with_settings, options)


def _settings(kwargs: dict[str, Any]) -> "Settings":
    from jobs.inputs import Settings

    sampling = Sampling(**{name: kwargs.pop(name) for name in Sampling.__dataclass_fields__})
    prompt = _prompt(kwargs.pop("prompt"), kwargs.pop("prompt_file"))
    return Settings(kwargs.pop("embeds"), kwargs.pop("weights"), prompt, kwargs.pop("thinking"), sampling)


def _prompt(text: str | None, file: Path | None) -> str:
    if text is not None and file is not None:
        raise click.UsageError("expected --prompt or --prompt-file, found both")
    if file is None:
        return DEFAULT_PROMPT if text is None else text
    try:
        return file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--prompt-file: expected a UTF-8 text file, found {file}: {error}") from error
