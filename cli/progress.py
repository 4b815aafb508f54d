"""A progress bar for work: one line a run on stderr, with the rate and the time left."""

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from workers.report import Reporter

if TYPE_CHECKING:
    from rich.progress import TaskID

    from store.records import Comparison, Pair, Run


class Rate(ProgressColumn):
    """Things a minute."""

    def render(self, task: Task) -> Text:
        """Show the rate, as soon as there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{60 * speed:,.1f}/min" if speed else "")


def make_bar(*, quiet: bool) -> Progress:
    """Make a progress bar on stderr; without a terminal it shows its end only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft(compact=True))
    return Progress(*columns, console=Console(stderr=True), disable=quiet, speed_estimate_period=600)


class WorkBar(Reporter, AbstractContextManager["WorkBar"]):
    """Shows a bar for each run that the worker meets."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar = make_bar(quiet=quiet)
        self._tasks: dict[str, TaskID] = {}
        self.failed = 0      # pairs that failed while it looked on

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def loading(self, run: "Run") -> None:
        """Say what is being loaded; a big model takes a while."""
        if not self._bar.disable:
            self._bar.console.print(f"loading {run.weights_dir}", highlight=False, markup=False, soft_wrap=True)

    def started(self, run: "Run", job: int, pairs: int) -> None:
        """Add a bar for a run that is new here."""
        if run.id not in self._tasks:
            name = f"run {run.name or run.id}"
            self._tasks[run.id] = self._bar.add_task(name, total=run.total, completed=run.total - run.pending)

    def row(self, run: "Run", pair: "Pair", result: "Comparison") -> None:
        """Move the run's bar by one."""
        self.failed += result.status == "failed"
        self._bar.advance(self._tasks[run.id])


class PrintedTexts(WorkBar):
    """Prints each pair's text to stdout as it finishes, beside the bar."""

    def row(self, run: "Run", pair: "Pair", result: "Comparison") -> None:
        """Print one pair: its place and indices, then its text."""
        super().row(run, pair, result)
        sys.stdout.write(f"[{pair.position}] {pair.idx_a},{pair.idx_b}: {result.error or result.text}\n")
        sys.stdout.flush()
