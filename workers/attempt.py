"""One attempt at a job: its rows on their way from the embeddings through the engine into the store."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

from jobs.limits import Limits
from store.clock import now
from store.database import Database
from store.errors import EmbeddingsError
from store.records import Comparison, Pair, Run
from store.results import record_results
from workers.reading import in_order, read_ahead, row_reader
from workers.report import Reporter
from workers.rows import Row, Token
from workers.session import Loaded, Session
from workers.stop import Stop

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


@dataclass
class Attempt:
    """The pairs of a job and what has become of them; leaving it records what has finished."""

    place: Workplace
    run: Run
    loaded: Loaded
    pairs: list[Pair]
    number: int                      # of the attempt
    final: set[int]                  # positions that need no result any more; computed with the others all the same
    left: int = field(init=False)    # pairs that have not been begun
    begun: dict[int, str] = field(default_factory=dict)             # when, by position
    tokens: dict[int, list[int]] = field(default_factory=dict)      # of rows in hand, by position
    finished: list[Comparison] = field(default_factory=list)
    recorded: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Begin with all pairs left."""
        self.left = len(self.pairs)
        self._by_position = {pair.position: pair for pair in self.pairs}

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
                    self._add(pair, error=str(row))
                else:
                    self.tokens[pair.position] = []
                    yield row

    def take(self, token: Token) -> None:
        """Take one token of a row; the one with a reason is its last."""
        self.tokens[token.key].append(token.id)
        if token.finish_reason is not None:
            self._add(self._by_position[token.key], last=token)

    def _add(self, pair: Pair, *, last: Token | None = None, error: str | None = None) -> None:
        ids, prompt = tuple(self.tokens.pop(pair.position, ())), self.loaded.inputs.prompt
        if pair.position in self.final:
            return
        answer = self.loaded.inputs.tokenizer.split(ids, opened_thinking=prompt.opened_thinking)
        result = Comparison(
            position=pair.position, status="failed" if error else "done", text=answer.text, thinking=answer.thinking,
            finish_reason=last.finish_reason if last else None, token_ids=ids, prompt_tokens=len(prompt.token_ids),
            seed=pair.seed, batch_size=self.limits.rows, job=pair.job, attempt=self.number, worker=self.place.worker,
            device=self.place.device, started_at=self.begun.pop(pair.position), finished_at=now(), error=error,
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
