"""A job: ids from a ticket in, results in the store out. May be repeated: what is recorded stays."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from store.clock import now
from store.database import Database
from store.errors import EmbeddingsError
from store.jobs import done_positions, end_job, finish_job, open_positions, read_pairs, release_job, start_job
from store.records import Comparison, FinishReason, Pair, Run
from store.results import record_results
from store.runs import find_run, is_cancelled
from workers.engine import Row
from workers.report import Reporter
from workers.session import Loaded, Session
from workers.stop import Cancelled, Stop, Stopped

logger = logging.getLogger("diptych.worker")

RECORD_EVERY = 30.0      # seconds; rows that have finished wait no longer than this for the rest of their slice
CANCEL_EVERY = 1.0       # seconds between two looks whether the run was cancelled


@dataclass(frozen=True, slots=True)
class Workplace:
    """What stays the same from job to job."""

    database: Database
    session: Session
    stop: Stop
    reporter: Reporter
    worker: str       # the worker's name, as results record it
    device: str


def compare_job(place: Workplace, run_id: str, job: int) -> None:
    """Compute the pairs of a job and record their results.

    A job that is all done is left alone. A partly done one is computed whole again in its old composition; rows already
    there stay. Raises Stopped at a second signal, and Cancelled for a cancelled run: what had finished is recorded.
    """
    run, pairs = find_run(place.database, run_id), read_pairs(place.database, run_id, job)
    final = done_positions(place.database, run_id, job)
    cancelled = Cancelled(partial(_is_lifted, place.database, run_id))
    if run.state == "cancelled":
        raise cancelled
    if pairs and final.issuperset(pair.position for pair in pairs):
        end_job(place.database, run_id, job)
        return
    loaded = place.session.prepare(run)
    attempt = start_job(place.database, run_id, job, place.worker)
    place.reporter.started(run, job, len(pairs))
    began = time.monotonic()
    try:
        completed = _compute(Slice(place, run, loaded, pairs, attempt, final))
    except BaseException:
        release_job(place.database, run_id, job)
        raise
    if completed:
        _finish(place, run, job, len(pairs), time.monotonic() - began)
    else:
        release_job(place.database, run_id, job)
        raise cancelled


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


def _compute(slice_: "Slice") -> bool:
    """Compute and record one slice; False when the run was cancelled on the way."""
    place, run, loaded = slice_.place, slice_.run, slice_.loaded
    cancelled, heed = make_cancel_check(place.database, run.id), make_stop_check(place.stop)
    with slice_:
        rows = slice_.read_rows()
        with closing(loaded.engine.generate(loaded.inputs.prompt, rows, run.sampling)) as steps:
            for step in steps:
                for token in step:
                    slice_.take(token.key, token.id, token.finish_reason)
                slice_.record_if_due()
                heed()
                if cancelled():
                    return False
    return True


def make_stop_check(stop: Stop) -> Callable[[], None]:
    """Make a function that says once that a stop was heard, and raises Stopped when it is for now."""
    said = False

    def heed() -> None:
        nonlocal said
        if stop.now:
            raise Stopped
        if stop.requested and not said:
            said = True
            logger.info("finishing the slice in hand; once more to stop now")

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


@dataclass
class Slice:
    """The rows of one forward pass on their way into the store; leaving it records what has finished."""

    place: Workplace
    run: Run
    loaded: Loaded
    pairs: list[Pair]
    attempt: int
    final: set[int]                  # positions that need no result any more; computed with the others all the same
    started_at: str = field(default_factory=now)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: list[Comparison] = field(default_factory=list)
    recorded: float = field(default_factory=time.monotonic)

    def __enter__(self) -> "Slice":
        return self

    def __exit__(self, *_: object) -> None:
        self.record()

    def read_rows(self) -> list[Row]:
        """Read the embeddings of each pair; a pair whose embeddings cannot be used fails alone."""
        rows, unreadable = [], []
        for pair in self.pairs:
            try:
                rows.append(self._read(pair))
            except EmbeddingsError as error:
                unreadable.append((pair, str(error)))
        self.tokens = {row.key: [] for row in rows}
        for pair, reason in unreadable:
            self._add(pair, error=reason)
        return rows

    def _read(self, pair: Pair) -> Row:
        read = self.loaded.inputs.embeddings.read
        return Row(key=pair.position, image_a=read(pair.idx_a), image_b=read(pair.idx_b), seed=pair.seed)

    def take(self, position: int, token: int, finish_reason: FinishReason | None) -> None:
        """Take one token of a row; the one with a reason is its last."""
        self.tokens[position].append(token)
        if finish_reason is not None:
            self._add(next(pair for pair in self.pairs if pair.position == position), finish_reason=finish_reason)

    def _add(self, pair: Pair, *, finish_reason: FinishReason | None = None, error: str | None = None) -> None:
        if pair.position in self.final:
            return
        ids, prompt = tuple(self.tokens.get(pair.position, ())), self.loaded.inputs.prompt
        answer = self.loaded.inputs.tokenizer.split(ids, opened_thinking=prompt.opened_thinking)
        result = Comparison(
            position=pair.position, status="failed" if error else "done", text=answer.text, thinking=answer.thinking,
            finish_reason=finish_reason, token_ids=ids, prompt_tokens=len(prompt.token_ids), seed=pair.seed,
            batch_size=len(self.tokens), job=pair.job, attempt=self.attempt, worker=self.place.worker,
            device=self.place.device, started_at=self.started_at, finished_at=now(), error=error,
        )
        self.finished.append(result)
        self.place.reporter.row(self.run, pair, result)

    def record_if_due(self) -> None:
        """Record what has finished when the last record is RECORD_EVERY ago."""
        if self.finished and time.monotonic() - self.recorded >= RECORD_EVERY:
            self.record()

    def record(self) -> None:
        """Write what has finished to the store, in one transaction."""
        if self.finished:
            record_results(self.place.database, self.run.id, self.finished)
        self.finished, self.recorded = [], time.monotonic()

