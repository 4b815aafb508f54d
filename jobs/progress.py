"""How far a run is: counts, rate and time left, all from the database, so that asking starts no server."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from store.database import Database
from store.jobs import job_counts, rate
from store.records import Run, State
from store.runs import find_run


@dataclass(frozen=True, slots=True)
class Progress:
    """A run's counts, under the names of `status --json`."""

    run: str
    state: State
    total: int
    done: int
    failed: int
    pending: int
    queued_jobs: int
    running_jobs: int
    comparisons_per_minute: float | None      # of the jobs that have ended last; None before the first
    seconds_left: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as `status --json` prints them."""
        return asdict(self)


def read_progress(database: Database, run: Run) -> Progress:
    """Read the counts, the rate of a worker, and the time left with as many workers as there are running jobs."""
    jobs = job_counts(database, run.id)
    per_minute = rate(database, run.id)
    unfinished, workers = run.state in ("queued", "running"), max(jobs.running, 1)
    return Progress(
        run=run.id, state=run.state, total=run.total, done=run.done, failed=run.failed, pending=run.pending,
        queued_jobs=jobs.queued, running_jobs=jobs.running,
        comparisons_per_minute=round(per_minute, 2) if per_minute else None,
        seconds_left=round(60 * run.pending / (per_minute * workers), 1) if per_minute and unfinished else None,
    )


def watch_progress(database: Database, reference: str | None, *, every: float | None) -> Iterator[Progress]:
    """Yield a run's progress, again `every` so many seconds until it has ended; once where that is None."""
    progress = read_progress(database, find_run(database, reference))
    yield progress
    while every is not None and progress.state in ("queued", "running"):
        time.sleep(every)
        progress = read_progress(database, find_run(database, progress.run))
        yield progress
