"""A job: ids from a ticket in, results in the store out. May be repeated: what is recorded stays."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

from store.clock import now
from store.database import Database
from store.deaths import begin_alone, is_tried_alone, leave_alone
from store.errors import DeviceError, DiptychError
from store.jobs import done_positions, end_job, finish_job, open_positions, read_pairs, release_job, start_job
from store.records import Comparison, Pair, Run
from store.results import record_results
from store.runs import find_run, is_cancelled
from workers.attempt import Attempt, Workplace
from workers.stop import Cancelled, Stop, Stopped

logger = logging.getLogger("diptych.worker")

DEATHS_OF_JOB = 3       # workers, one after the other without a result, before its pairs are tried one at a time
DEATHS_OF_PAIR = 2      # workers, with this pair alone, before it is failed
METAL = "[METAL]"       # what such an error begins with
CANCEL_EVERY = 1.0       # seconds between two looks whether the run was cancelled

Compute = Callable[[Attempt, Stop, Callable[[], bool]], bool]      # False when the run was cancelled on the way


def compare_job(place: Workplace, run_id: str, job: int) -> None:
    """Compute the pairs of a job and record their results.

    A job without an open pair is left alone. Another is computed whole again in its old composition; rows already there
    stay, but for a failure that has become a success. Raises Stopped where a signal leaves pairs undone, and Cancelled
    for a cancelled run: what had finished is recorded.
    """
    run, pairs = find_run(place.database, run_id), read_pairs(place.database, run_id, job)
    cancelled = Cancelled(partial(_is_lifted, place.database, run_id))
    if run.state == "cancelled":
        raise cancelled
    left = open_positions(place.database, run_id, job)
    if pairs and not left:
        end_job(place.database, run_id, job)
        return
    attempt, compute = _begin(place, run, job, pairs, left)
    check, began = make_cancel_check(place.database, run_id), time.monotonic()
    with released(place.database, run_id, job):
        if not compute(attempt, place.stop, check):
            raise cancelled
    _finish(place, run, job, len(pairs), time.monotonic() - began)


def _begin(
    place: Workplace, run: Run, job: int, pairs: list[Pair], left: set[int]
) -> tuple[Attempt, Compute]:
    """Take a job whose files are those of its run; say how it is to be computed."""
    loaded, final = place.session.prepare(run), done_positions(place.database, run.id, job)
    started = start_job(place.database, run.id, job, place.worker)
    place.reporter.started(run, job, len(pairs))
    alone = started.deaths >= DEATHS_OF_JOB or is_tried_alone(place.database, run.id, job)
    return Attempt(place, run, loaded, pairs, started.attempt, final, left), _compute_alone if alone else _compute


@contextmanager
def released(database: Database, run_id: str, job: int) -> Iterator[None]:
    """Mark a job that is left before its end as queued again; where its worker dies with it, that counts."""
    try:
        yield
    except BaseException as error:
        if not is_death(error):
            release_job(database, run_id, job)
        raise


def is_death(error: BaseException) -> bool:
    """Say whether an error counts as the death of a worker: a device that is lost, or what nobody has thought of."""
    foreseen = isinstance(error, DiptychError | Stopped | Cancelled) and not isinstance(error, DeviceError)
    return isinstance(error, Exception) and not foreseen


def _is_lifted(database: Database, run_id: str) -> bool:
    return not is_cancelled(database, run_id)


def give_up_job(place: Workplace, run_id: str, job: int, error: BaseException) -> None:
    """Record the pairs of a job that has failed for the last time as failed; rows that are there stay.

    May be repeated safely. Raises RunError for a job not planned.
    """
    attempt = max(end_job(place.database, run_id, job), 1)      # 0 when it failed before it was begun
    run, left, at = find_run(place.database, run_id), open_positions(place.database, run_id, job), now()
    pairs = read_pairs(place.database, run_id, job)
    results = {
        pair: Comparison(
            position=pair.position, status="failed", text="", thinking="", finish_reason=None, token_ids=(),
            prompt_tokens=0, seed=pair.seed, batch_size=len(pairs), job=job, attempt=attempt, worker=place.worker,
            device=place.device, started_at=at, finished_at=at, error=f"{type(error).__name__}: {error}",
        )
        for pair in pairs if pair.position in left
    }
    record_results(place.database, run_id, list(results.values()))
    if results:
        place.reporter.started(run, job, len(pairs))      # it may never have come so far, or in another worker
    for pair, result in results.items():
        place.reporter.row(run, pair, result)


def _finish(place: Workplace, run: Run, job: int, pairs: int, seconds: float) -> None:
    finish_job(place.database, run.id, job, seconds)
    place.reporter.finished(run, job, seconds)
    per_minute = 60 * pairs / seconds
    logger.info("run %s job %d: %d pairs in %.1f s, %.1f comparisons/min", run.id, job, pairs, seconds, per_minute,
                extra={"fields": {"run": run.id, "job": job, "pairs": pairs, "seconds": round(seconds, 3),
                                  "comparisons_per_minute": round(per_minute, 2)}})


def _compute(attempt: Attempt, stop: Stop, cancelled: Callable[[], bool]) -> bool:
    """Compute and record the pairs of a job; False when the run was cancelled on the way.

    Raises Stopped at a second signal, and after a first one when the rows in hand have ended and others are left.
    """
    run, loaded, heed = attempt.run, attempt.loaded, make_stop_check(stop, attempt.seconds_left)
    with (lost_device(), attempt, closing(attempt.rows(stop)) as rows,
          closing(loaded.engine.generate(loaded.inputs.prompt, rows, run.sampling, attempt.limits)) as steps):
        for step in steps:
            attempt.take(step)
            attempt.record_if_due()
            heed()
            if cancelled():
                return False
        if attempt.left:
            raise Stopped
    return True


def _compute_alone(attempt: Attempt, stop: Stop, cancelled: Callable[[], bool]) -> bool:
    """Compute the open pairs of a job one at a time, for it has killed its workers; False when the run was cancelled.

    A pair that kills its worker again and again is failed, and so is one that raises; the others go on.
    """
    place, run = attempt.place, attempt.run
    logger.warning("run %s job %d: its workers have died with it; its pairs are tried one at a time", run.id,
                   attempt.pairs[0].job)
    for pair in [pair for pair in attempt.pairs if pair.position in attempt.open]:
        if stop.requested:
            raise Stopped
        one = Attempt(place, run, attempt.loaded, [pair], attempt.number, attempt.final, attempt.open)
        if begin_alone(place.database, run.id, pair.job, pair.position) >= DEATHS_OF_PAIR:
            with one:
                one.fail(pair, f"the worker died {DEATHS_OF_PAIR} times while it compared this pair by itself")
        elif not _compute_one(one, stop, cancelled):
            return False
    return True


def _compute_one(attempt: Attempt, stop: Stop, cancelled: Callable[[], bool]) -> bool:
    """Compute a pair by itself; being left in order is no death, and an error of its own is its failure."""
    [pair], completed = attempt.pairs, False
    try:
        completed = _compute(attempt, stop, cancelled)
    except Exception as error:
        if isinstance(error, DeviceError) or not is_death(error):
            raise
        with attempt:
            attempt.fail(pair, f"{type(error).__name__}: {error}")
        completed = True
    finally:
        if not completed and not isinstance(sys.exception(), DeviceError):
            leave_alone(attempt.place.database, attempt.run.id, pair.position)
    return completed


@contextmanager
def lost_device() -> Iterator[None]:
    """Raise DeviceError for what MLX raises when a Metal command buffer has failed: from then on, all others do."""
    try:
        yield
    except RuntimeError as error:
        if METAL not in str(error):
            raise
        raise DeviceError(f"expected a GPU that computes, found: {error}; start the worker again, if this "
                          "comes back with a smaller --memory-limit") from error


def make_stop_check(stop: Stop, seconds_left: Callable[[], float | None]) -> Callable[[], None]:
    """Make a function that says when a stop was heard, and how long it takes as soon as that can be told.

    It raises Stopped when the stop is for now.
    """
    heard = told = False

    def heed() -> None:
        nonlocal heard, told
        if stop.now:
            raise Stopped
        if not stop.requested or told:
            return
        left = seconds_left()
        if left is not None:
            told = True
            logger.info("finishing, about %d s; again to stop now", math.ceil(left))
        elif not heard:
            logger.info("finishing the pairs in hand; again to stop now")
        heard = True

    return heed


def make_cancel_check(database: Database, run_id: str) -> Callable[[], bool]:
    """Make a function that says whether the run was cancelled, and asks the database once a second at most."""
    asked = time.monotonic()

    def cancelled() -> bool:
        nonlocal asked
        if time.monotonic() - asked < CANCEL_EVERY:
            return False
        asked = time.monotonic()
        return is_cancelled(database, run_id)

    return cancelled
