"""One attempt at a job: its rows on their way from the embeddings through the engine into the store."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

from jobs.limits import Limits
from store.clock import now
from store.database import Database
from store.errors import EmbeddingsError
from store.records import Comparison, FinishReason, Pair, Run
from store.results import record_results
from workers.reading import in_order, read_ahead, row_reader
from workers.report import Reporter
from workers.rows import Row, Token
from workers.session import Loaded, Session
from workers.stop import Stop

LAST_STEPS = 20          # decode steps whose time says how long the rest will take
RECORD_EVERY = 30.0      # seconds; rows that have finished wait no longer than this for others of their job


@dataclass(frozen=True, slots=True)
class Workplace:
    """What stays the same from job to job."""

    database: Database
    session: Session
    stop: Stop
    reporter: Reporter
    worker: str       # the worker's name, as results record it
    device: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a pair: an answer, or an error."""

    text: str
    thinking: str
    finish_reason: FinishReason | None
    token_ids: tuple[int, ...]
    error: str | None = None


@dataclass
class Attempt:
    """The pairs of a job and what has become of them; leaving it records what has finished."""

    place: Workplace
    run: Run
    loaded: Loaded
    pairs: list[Pair]
    number: int                      # of the attempt
    final: set[int]                  # positions that are done; computed with the others all the same
    open: set[int]                   # positions that are to get a result; of the others only a success is news
    left: int = field(init=False)    # pairs that have not been begun
    begun: dict[int, str] = field(default_factory=dict)             # when, by position
    tokens: dict[int, list[int]] = field(default_factory=dict)      # of rows in hand, by position
    finished: list[Comparison] = field(default_factory=list)
    recorded: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Begin with all pairs left."""
        self.left = len(self.pairs)
        self._by_position = {pair.position: pair for pair in self.pairs}
        self._longest = 0      # tokens of an answer
        self._steps: deque[float] = deque(maxlen=LAST_STEPS)      # seconds of the monotonic clock

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        self.record()

    @cached_property
    def limits(self) -> Limits:
        """Return what the engine may hold for this job."""
        return self.loaded.limits(len(self.pairs))

    def rows(self, stop: Stop) -> Generator[Row, None, None]:
        """Yield the rows in the order of their computing; a pair whose embeddings cannot be used fails alone.

        After the first slice, no more are begun once a stop is requested.
        """
        slice_ = self.limits.rows
        pairs = in_order(self.pairs, self.loaded.inputs)
        with closing(read_ahead(pairs, row_reader(self.run, self.loaded.inputs))) as read:
            for place, (pair, row) in enumerate(read):
                if place >= slice_ and stop.requested:
                    return
                self.left -= 1
                self.begun[pair.position] = now()
                if isinstance(row, EmbeddingsError):
                    self.fail(pair, str(row))
                else:
                    self.tokens[pair.position] = []
                    yield row

    def take(self, step: Sequence[Token]) -> None:
        """Take the tokens of a decode step; a row's one with a reason or an error is its last."""
        if step:
            self._steps.append(time.monotonic())
        for token in step:
            self._take(token)

    def seconds_left(self) -> float | None:
        """Return the seconds until the rows in hand have ended, by the steps so far; None before there are any.

        Answers are taken to be as long as the longest one of this attempt; before there is one, as long as they may be.
        """
        if len(self._steps) < 2 or not self.tokens:
            return None
        a_step = (self._steps[-1] - self._steps[0]) / (len(self._steps) - 1)
        lengths = list(map(len, self.tokens.values()))
        longest = max(self._longest, *lengths) if self._longest else self.run.sampling.max_tokens
        return a_step * (longest - min(lengths))

    def _take(self, token: Token) -> None:
        pair = self._by_position[token.key]
        if token.error is not None:
            self.fail(pair, token.error)
            return
        self.tokens[token.key].append(token.id)
        if token.finish_reason is not None:
            self._finish(pair, token.finish_reason)

    def _finish(self, pair: Pair, reason: FinishReason) -> None:
        ids, prompt = tuple(self.tokens.pop(pair.position)), self.loaded.inputs.prompt
        self._longest = max(self._longest, len(ids))
        try:
            answer = self.loaded.inputs.tokenizer.split(ids, opened_thinking=prompt.opened_thinking)
        except Exception as error:      # a library's, whichever: it is this pair's alone
            self.fail(pair, f"its tokens could not be decoded: {type(error).__name__}: {error}", ids)
            return
        self._add(pair, Outcome(answer.text, answer.thinking, reason, ids))

    def fail(self, pair: Pair, error: str, token_ids: tuple[int, ...] = ()) -> None:
        """Add a pair that has no answer, with the reason."""
        self.tokens.pop(pair.position, None)
        self._add(pair, Outcome("", "", None, token_ids, error))

    def _add(self, pair: Pair, outcome: Outcome) -> None:
        if pair.position in self.final or (outcome.error and pair.position not in self.open):
            return
        result = Comparison(
            position=pair.position, status="failed" if outcome.error else "done", text=outcome.text,
            thinking=outcome.thinking, finish_reason=outcome.finish_reason, token_ids=outcome.token_ids,
            prompt_tokens=len(self.loaded.inputs.prompt.token_ids), seed=pair.seed, batch_size=self.limits.rows,
            job=pair.job, attempt=self.number, worker=self.place.worker, device=self.place.device,
            started_at=self.begun.pop(pair.position, now()), finished_at=now(), error=outcome.error,
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
