"""Jobs: which are unfinished, what is in them, who works at them and how fast. They know nothing of the queue."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, update

from store.clock import now
from store.database import Database
from store.errors import RunError
from store.records import Pair
from store.schema import is_to_retry, jobs, lock_run, pairs, results, runs

_LAST = 20      # jobs whose seconds make the rate: enough to be steady, few enough to follow a change of machine
_ROW = (results.c.run_id == pairs.c.run_id) & (results.c.position == pairs.c.position)
_OPEN = results.c.position.is_(None) | is_to_retry      # of a pair and its row, if there is one


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs of a run wait, and how many somebody works at."""

    queued: int
    running: int


@dataclass(frozen=True, slots=True)
class Started:
    """A job that has been begun."""

    attempt: int      # from 1
    deaths: int       # workers that died with it, one after the other, without a result since


def unfinished_jobs(db: Database, run_id: str) -> list[int]:
    """Return the jobs, ascending, that hold a pair without a row, or with a failed one that is to be retried."""
    planned = select(pairs.c.job).distinct().select_from(pairs.outerjoin(results, _ROW))
    with db.read() as connection:
        return list(connection.scalars(planned.where(pairs.c.run_id == run_id, _OPEN).order_by(pairs.c.job)))


def retry_failed(db: Database, run_id: str) -> int:
    """Let the failed rows of a run be computed again, and return how many there are; doing it twice is safe.

    Each stays until another takes its place. The run is unfinished meanwhile, and so are the jobs of these rows.
    """
    failed = (results.c.run_id == run_id) & (results.c.status == "failed")
    again = select(pairs.c.job).select_from(pairs.join(results, _ROW)).where(failed)
    ended = (jobs.c.run_id == run_id) & jobs.c.finished_at.is_not(None) & jobs.c.job.in_(again)
    with db.write() as connection:
        lock_run(connection, run_id)
        count = connection.execute(update(results).where(failed).values(retry=1)).rowcount
        if count:
            waiting = {"worker": None, "started_at": None, "finished_at": None, "seconds": None}
            connection.execute(update(jobs).where(ended).values(waiting))
            connection.execute(update(runs).where(runs.c.id == run_id).values(finished_at=None))
    return count


def read_pairs(db: Database, run_id: str, job: int) -> list[Pair]:
    """Return the pairs of a job in order of position; none for a job that is not planned."""
    columns = (pairs.c.position, pairs.c.idx_a, pairs.c.idx_b, pairs.c.seed, pairs.c.job)
    # The positions first: asked for all at once, SQLite walks through the whole run instead of the index by job.
    positions = select(pairs.c.position).where(pairs.c.run_id == run_id, pairs.c.job == job)
    planned = select(*columns).where(pairs.c.run_id == run_id, pairs.c.position.in_(positions))
    with db.read() as connection:
        return [Pair(*row) for row in connection.execute(planned.order_by(pairs.c.position))]


def open_positions(db: Database, run_id: str, job: int) -> set[int]:
    """Return the positions of a job that have no row, or a failed one that is to be retried."""
    left = select(pairs.c.position).select_from(pairs.outerjoin(results, _ROW))
    with db.read() as connection:
        return set(connection.scalars(left.where(pairs.c.run_id == run_id, pairs.c.job == job, _OPEN)))


def done_positions(db: Database, run_id: str, job: int) -> set[int]:
    """Return the positions of a job whose rows are final; a failed row is not, a later success replaces it."""
    done = select(pairs.c.position).select_from(pairs.join(results, _ROW)).where(
        pairs.c.run_id == run_id, pairs.c.job == job, results.c.status == "done"
    )
    with db.read() as connection:
        return set(connection.scalars(done))


def start_job(db: Database, run_id: str, job: int, worker: str) -> Started:
    """Mark a job as running. Raises RunError for a job not planned."""
    begun: dict[str, Any] = {
        "attempts": jobs.c.attempts + 1, "deaths": jobs.c.deaths + 1, "worker": worker, "started_at": now(),
        "finished_at": None, "seconds": None,
    }
    with db.write() as connection:
        lock_run(connection, run_id)
        started = update(jobs).where(_is(run_id, job)).values(begun)
        row = connection.execute(started.returning(jobs.c.attempts, jobs.c.deaths)).one_or_none()
        if row is None:
            raise _not_planned(db, run_id, job)
        started_at = func.coalesce(runs.c.started_at, begun["started_at"])
        connection.execute(update(runs).where(runs.c.id == run_id).values(started_at=started_at))
    return Started(attempt=row.attempts, deaths=row.deaths - 1)


def finish_job(db: Database, run_id: str, job: int, seconds: float) -> None:
    """Mark a job as done, after `seconds` of work on all its pairs."""
    with db.write() as connection:
        values = {"finished_at": now(), "seconds": seconds, "deaths": 0}
        connection.execute(update(jobs).where(_is(run_id, job)).values(values))


def end_job(db: Database, run_id: str, job: int) -> int:
    """Mark a job as ended without a time of its own, and return how often it was begun; doing it twice is safe.

    For a job that is given up, or found to be done. Raises RunError for a job not planned.
    """
    values = {"finished_at": func.coalesce(jobs.c.finished_at, now()), "deaths": 0}
    ended = update(jobs).where(_is(run_id, job)).values(values)
    with db.write() as connection:
        attempts: int | None = connection.scalar(ended.returning(jobs.c.attempts))
    if attempts is None:
        raise _not_planned(db, run_id, job)
    return attempts


def release_job(db: Database, run_id: str, job: int) -> None:
    """Mark a job that was left in order as queued again; its attempts still count, and this was no death."""
    unfinished = _is(run_id, job) & jobs.c.finished_at.is_(None)
    lived = case((jobs.c.deaths > 0, jobs.c.deaths - 1), else_=0)
    with db.write() as connection:
        connection.execute(update(jobs).where(unfinished).values(worker=None, started_at=None, deaths=lived))


def job_counts(db: Database, run_id: str) -> JobCounts:
    """Count the jobs of a run that wait, and those that run: a killed worker's too, until it is taken up again.

    No job of a cancelled run waits.
    """
    waits = jobs.c.started_at.is_(None)
    queued = func.coalesce(func.sum(case((waits & runs.c.cancelled_at.is_(None), 1), else_=0)), 0)
    running = func.coalesce(func.sum(case((waits, 0), else_=1)), 0)
    unfinished = select(queued, running).select_from(jobs.join(runs, runs.c.id == jobs.c.run_id)).where(
        jobs.c.run_id == run_id, jobs.c.finished_at.is_(None)
    )
    with db.read() as connection:
        return JobCounts(*map(int, connection.execute(unfinished).one()))


def rate(db: Database, run_id: str) -> float | None:
    """Return comparisons a minute of one worker, from the last jobs that finished; None before the first."""
    timed = jobs.c.finished_at.is_not(None) & jobs.c.seconds.is_not(None)
    finished = select(jobs.c.size, jobs.c.seconds).where(jobs.c.run_id == run_id, timed)
    with db.read() as connection:
        last = connection.execute(finished.order_by(jobs.c.finished_at.desc(), jobs.c.job.desc()).limit(_LAST)).all()
    seconds = sum(job.seconds for job in last)
    return 60 * sum(job.size for job in last) / seconds if seconds else None


def _is(run_id: str, job: int) -> ColumnElement[bool]:
    """Say that a row is this job's."""
    return (jobs.c.run_id == run_id) & (jobs.c.job == job)


def _not_planned(db: Database, run_id: str, job: int) -> RunError:
    """Say that there is no such job."""
    return RunError(f"{db.location}: expected job {job} of run {run_id!r} to be planned, found no such job")
