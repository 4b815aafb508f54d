"""A progress bar for work: one line a run on stderr, with the rate and the time left."""

import logging
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from cli.show import duration, escape
from jobs.memory import describe_plan
from workers.report import Reporter

if TYPE_CHECKING:
    from rich.progress import TaskID

    from jobs.memory import MemoryPlan
    from store.records import Comparison, Pair, Run

logger = logging.getLogger("diptych.worker")


def rate(task: Task) -> float | None:
    """Return things a second since the task began here; what was there before (`fields["before"]`) does not count."""
    done = task.completed - task.fields.get("before", 0)
    elapsed = task.finished_time or task.elapsed
    return done / elapsed if done > 0 and elapsed else None


class Rate(ProgressColumn):
    """Things a minute."""

    def render(self, task: Task) -> Text:
        """Show the rate, as soon as there is one."""
        speed = rate(task)
        return Text(f"{60 * speed:,.1f}/min" if speed else "")


class TimeLeft(ProgressColumn):
    """What is left at that rate."""

    def render(self, task: Task) -> Text:
        """Show the time, as soon as there is a rate."""
        speed = rate(task)
        return Text(f"{duration(task.remaining / speed)} left" if speed and task.remaining else "")


def make_bar(*, quiet: bool) -> Progress:
    """Make a progress bar on stderr; without a terminal it shows its end only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft())
    # Texts on stdout go above the bar where both are on the terminal; into a file or a pipe they go as they are.
    return Progress(*columns, console=Console(stderr=True), disable=quiet, redirect_stdout=sys.stdout.isatty())


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

    def planned(self, run: "Run", plan: "MemoryPlan") -> None:
        """Log the memory plan of a run."""
        for line in describe_plan(plan):
            logger.info("run %s memory: %s", run.id, line)

    def loading(self, run: "Run") -> None:
        """Say what is being loaded; a big model takes a while."""
        if not self._bar.disable:
            self._bar.console.print(f"loading {run.weights_dir}", highlight=False, markup=False, soft_wrap=True)

    def started(self, run: "Run", job: int, pairs: int) -> None:
        """Add a bar for a run that is new here; one that others work at too may have come further."""
        final = run.total - run.pending
        if run.id not in self._tasks:
            name = escape(f"run {run.name or run.id}").replace("[", r"\[")      # not rich's markup
            self._tasks[run.id] = self._bar.add_task(name, total=run.total, completed=final, before=final)
        self._bar.update(self._tasks[run.id], completed=final)

    def row(self, run: "Run", pair: "Pair", result: "Comparison") -> None:
        """Move the run's bar by one; a failure that is tried again has been counted before."""
        self.failed += result.status == "failed"
        task = self._bar.tasks[self._tasks[run.id]]
        if task.completed < run.total:
            self._bar.advance(task.id)


class PrintedTexts(WorkBar):
    """Prints each text of one run to stdout as it finishes, beside the bar."""

    def __init__(self, run_id: str, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._run_id = run_id

    def row(self, run: "Run", pair: "Pair", result: "Comparison") -> None:
        """Print one pair: its place and indices, then its text."""
        super().row(run, pair, result)
        if run.id == self._run_id:
            line = f"[{pair.position}] {pair.idx_a},{pair.idx_b}: {result.error or result.text}\n"
            sys.stdout.write(escape(line) if sys.stdout.isatty() else line)
            sys.stdout.flush()
