"""How `bench` goes on: a bar and a line a batch size, at the end a sentence or a document, and a plot beside them."""

import json
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import click

from cli.options import Globals
from cli.plot import draw_plot
from cli.progress import make_bar
from cli.rates import FOOTNOTE, HEAD, document, recommendation, table_line
from cli.show import duration, escape
from cli.work import FAILED, INTERRUPTED, say
from jobs.environment import environment
from jobs.inputs import Settings
from jobs.sizes import format_size
from store import demo
from store.errors import SettingsError
from store.fingerprint import fingerprint
from workers.awake import awake
from workers.bench import RANDOM, REPEATS, Record, Watch, Workload, measure_sizes, pairs_of, seconds_left
from workers.device import device_name
from workers.model.load import load_text_model
from workers.stop import Stop, Stopped


@dataclass
class Measuring:
    """What was asked for, and what is finished of it."""

    values: Globals
    sizes: tuple[int, ...]
    settings: Settings
    as_json: bool
    plot: Path | None
    records: list[Record] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """Add a record, in the place of an older one of the same size."""
        self.records = [known for known in self.records if known.batch_size != record.batch_size] + [record]

    @property
    def embeddings(self) -> str:
        """Say where the embeddings come from."""
        folder = self.settings.embeddings_dir
        return str(folder) if folder == RANDOM else str(folder.resolve())

    @property
    def complete(self) -> bool:
        """Say whether all sizes are measured."""
        return len(self.records) == len(self.sizes)


class Bar(Watch, AbstractContextManager["Bar"]):
    """Shows how far the benchmark is on a terminal, and ends it where a stop is requested."""

    def __init__(self, measuring: Measuring, stop: Stop) -> None:
        self._bar = make_bar(quiet=measuring.values.quiet or not sys.stderr.isatty())
        self._task = self._bar.add_task("", total=sum(map(pairs_of, measuring.sizes)))
        self._tokens, self._stop = measuring.settings.sampling.max_tokens, stop

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begins(self, batch_size: int, pairs: int, *, again: bool) -> None:
        """Name the batch size; pairs that are compared again were not foreseen."""
        total = (self._bar.tasks[self._task].total or 0) + pairs * again
        self._bar.update(self._task, total=total, description=f"batch {batch_size}{' again' if again else ''}")

    def computed(self, tokens: int) -> None:
        """Move on by the tokens' part of a pair; raise Stopped where that is wished."""
        if self._stop.requested:
            raise Stopped
        self._bar.advance(self._task, tokens / self._tokens)


def measure(work: Workload, measuring: Measuring) -> int:
    """Load the model, measure all sizes and show each; return the exit status. Whatever ends it, the rest is shown."""
    for size in measuring.sizes:
        work.plan(size)      # before the model is loaded
    _say_what(work, measuring)
    model = load_text_model(work.checkpoint)
    show = _make_show(measuring)
    try:
        with awake(), Stop() as stop, suppress(Stopped), Bar(measuring, stop) as bar:
            show(HEAD)
            for record in measure_sizes(model, work, measuring.sizes, bar):
                measuring.take(record)
                show(table_line(measuring.records, record))
                _say_left(measuring)
                _draw(work, measuring)
    finally:
        _show_end(work, measuring)
    if measuring.complete:
        return 0
    return INTERRUPTED if stop.signal == signal.SIGINT else FAILED


def _say_what(work: Workload, measuring: Measuring) -> None:
    prompt, values, sizes = work.prompt, measuring.values, measuring.sizes
    tokens, prefix = len(prompt.token_ids), prompt.spans[0][1]
    shared = f"{prefix:,} of them shared by {work.partners:,} pairs" if work.partners > 1 else "none of them shared"
    say(values, f"{device_name()}, memory limit {format_size(work.limit)}, embeddings: {escape(measuring.embeddings)}")
    say(values, f"{sum(map(pairs_of, sizes)):,} pairs over {len(sizes)} batch sizes; a pair has {tokens:,} prompt "
                f"tokens, {shared}, and an answer of {work.sampling.max_tokens:,}, which no token ends")
    say(values, f"loading {escape(str(work.checkpoint.folder))}")


def _make_show(measuring: Measuring) -> Callable[[str], None]:
    """Make the function that prints a line of the table."""
    # A bar takes the place of both streams, to write above itself: right for a terminal, wrong for a file or a pipe.
    file = None if sys.stdout.isatty() else sys.stdout

    def show(line: str) -> None:
        if not measuring.as_json:
            print(line, file=file or sys.stdout, flush=True)
        elif not measuring.values.quiet:
            print(line, file=sys.stderr)

    return show


def _say_left(measuring: Measuring) -> None:
    """Say how long it will take; on a terminal the bar does."""
    left = measuring.sizes[len(measuring.records) :]
    if left and not sys.stderr.isatty():
        seconds = seconds_left(measuring.records, measuring.sizes)
        say(measuring.values, f"about {duration(seconds)} left at the rate of this one; batch sizes to go: {len(left)}")


def _draw(work: Workload, measuring: Measuring) -> None:
    """Write the plot of what is finished; each time anew, so that it is there whatever comes."""
    if measuring.plot is None:
        return
    folder = work.checkpoint.folder
    weights = demo.NAME if folder == demo.WEIGHTS else folder.name
    title = f"{device_name()}, {weights}, answers of {work.sampling.max_tokens} tokens"
    try:
        measuring.plot.write_text(draw_plot(measuring.records, work.limit, title), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--plot: expected a file that can be written, found {measuring.plot}: {error.strerror}; "
                            "name another") from error


def _show_end(work: Workload, measuring: Measuring) -> None:
    records, n = measuring.records, len(measuring.sizes)
    if not measuring.complete:
        click.echo(f"ended after {len(records)} of {n} batch sizes", err=True)
    if measuring.as_json:
        machine = environment() | {"device": device_name()}
        checkpoint = {"folder": str(work.checkpoint.folder.resolve()), "model_type": work.checkpoint.model_type,
                      "fingerprint": fingerprint(work.checkpoint.files)}
        found = document(records, work, machine, checkpoint, measuring.embeddings, complete=measuring.complete)
        click.echo(json.dumps(found, indent=2))
    elif records:
        if any(record.repeats for record in records):
            click.echo(FOOTNOTE.format(REPEATS))
        click.echo(f"\n{recommendation(records, work.limit)}")
