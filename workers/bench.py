"""The benchmark: pairs of the same kind at one batch size after another, timed. It knows no queue and no database."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from jobs.inputs import Settings, open_inputs, open_prompt
from jobs.limits import Limits
from jobs.memory import MemoryPlan, plan_memory
from jobs.prompt import Prompt
from store.checkpoint import Checkpoint, open_checkpoint
from store.records import Sampling
from workers.engine import Engine
from workers.model.text import TextModel
from workers.prefill import Counts, Prefill, PrefixCache
from workers.rows import Image, Row

RANDOM = Path("random")      # instead of a folder: embeddings are drawn
LEAST_PAIRS = 32             # at a batch size: fewer would be timed too briefly
FALL = 0.05                  # share of the rate; a larger fall from one size to the next is measured again
REPEATS = 3
CLOSE = 0.05                 # share of the best rate that a smaller batch size may lack
POOL = 8                     # different embeddings in memory; pairs take them in turn, under names of their own
SEED = 0                     # of the embeddings that are drawn

Embedding = NDArray[np.float16]      # [tokens, hidden]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is computed at every batch size, and within which memory."""

    checkpoint: Checkpoint
    prompt: Prompt
    sampling: Sampling
    embeddings: tuple[Embedding, ...]
    images: int | None      # of a run that memory is planned for; None: more than there is room for
    partners: int           # pairs that share a first image
    limit: int              # bytes that MLX may hold

    def plan(self, batch_size: int) -> MemoryPlan:
        """Plan the memory of jobs of so many pairs, as a worker does; raise SettingsError where no row fits."""
        return plan_memory(self.checkpoint, self.prompt, self.sampling, self.limit, batch_size=batch_size,
                           images=self.images)

    def planned_peak(self, batch_size: int) -> int:
        """Return the bytes planned to be in use; of the prefix cache only what these pairs can fill."""
        plan, firsts = self.plan(batch_size), -(-pairs_of(batch_size) // self.partners)
        return plan.peak(plan.rows) - plan.prefix_cache + min(plan.prefix_cache, firsts * plan.prefix)

    def rows(self, count: int) -> list[Row]:
        """Make rows of which `partners` after each other have the same first image; no second image comes twice."""
        return [self._row(key) for key in range(count)]

    def _row(self, key: int) -> Row:
        first = self._image("first", key // self.partners)
        second = self._image("second", key)
        a, b = (first, second) if self.prompt.images[0] == "a" else (second, first)
        return Row(key, a, b, seed=key)

    def _image(self, kind: str, number: int) -> Image:
        return Image((kind, number), self.embeddings[number % len(self.embeddings)])


@dataclass(frozen=True, slots=True)
class Record:
    """What was measured at one batch size."""

    batch_size: int
    rows: int                 # side by side; fewer than the batch size where memory is short
    pairs: int
    seconds: float            # from the beginning of the first prefill to the last token
    tokens: int               # generated
    prompt_tokens: int        # computed; shared prefixes count once
    peak_bytes: int           # in use at once, by mx.get_peak_memory()
    planned_bytes: int        # for the same
    repeats: int = 0          # more measurements, of which this one is the median

    @property
    def tokens_per_second(self) -> float:
        """Return the rate of generated tokens; the time of the prefill is in it."""
        return self.tokens / self.seconds

    @property
    def comparisons_per_minute(self) -> float:
        """Return the rate of pairs."""
        return 60 * self.pairs / self.seconds


class Watch:
    """Hears how a benchmark goes on and does nothing; override what is of interest. What it raises ends it."""

    def begins(self, batch_size: int, pairs: int, *, again: bool) -> None:
        """Hear that a batch size is measured, `again` where that was not foreseen."""

    def computed(self, tokens: int) -> None:
        """Hear of a decode step's tokens, or of no tokens after a chunk of prefill or in the warm-up."""


def open_workload(settings: Settings, partners: int, limit: int) -> Workload:
    """Check all inputs, without loading the model; raise DiptychError.

    Embeddings come from their folder, or are drawn at the checkpoint's own image size: the time that they take does
    not depend on what they show.
    """
    if settings.embeddings_dir != RANDOM:
        inputs = open_inputs(settings)
        images = len(inputs.embeddings.filenames)
        pool = tuple(inputs.embeddings.read(index) for index in range(min(POOL, images)))
        return Workload(inputs.checkpoint, inputs.prompt, settings.sampling, pool, images, partners, limit)
    checkpoint = open_checkpoint(settings.weights_dir)
    side = checkpoint.image.side // checkpoint.image.unit
    _, prompt = open_prompt(settings, checkpoint, (side, side))
    pool = draw_embeddings(side * side, checkpoint.text.hidden_size)
    return Workload(checkpoint, prompt, settings.sampling, pool, None, partners, limit)


def draw_embeddings(tokens: int, hidden: int) -> tuple[Embedding, ...]:
    """Draw finite embeddings of length 1 a token or so, the same each time."""
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal((POOL, tokens, hidden), dtype=np.float32) * np.float32(hidden**-0.5)
    return tuple(drawn.astype(np.float16))


def pairs_of(batch_size: int) -> int:
    """Return how many pairs a batch size is measured with: the fewest whole jobs that have LEAST_PAIRS."""
    return -(-LEAST_PAIRS // batch_size) * batch_size


def measure_sizes(
    model: TextModel, work: Workload, sizes: Sequence[int], watch: Watch | None = None,
) -> Iterator[Record]:
    """Yield a record for each batch size; sizes ascend. Each begins with no prefixes, after an uncounted warm-up.

    Every answer has exactly `max_tokens` tokens: none ends an answer here, so that all sizes do the same work.
    Where a rate falls from one size to the next by more than FALL, both are measured REPEATS times more, in turn, for
    the medians, and the smaller size has a second record, which counts.
    """
    watch, before = watch or Watch(), None
    for size in sizes:
        record = _measure(model, work, size, watch, again=False)
        if before is not None and has_fallen(before, record):
            both = [[_measure(model, work, one, watch, again=True) for one in (before.batch_size, size)]
                    for _ in range(REPEATS)]
            before, record = map(_median, zip(*both, strict=True))
            yield before
        yield record
        before = record


def has_fallen(before: Record, record: Record) -> bool:
    """Say whether the rate has fallen by more than FALL since the next smaller batch size."""
    return record.comparisons_per_minute < (1 - FALL) * before.comparisons_per_minute


def _median(records: Sequence[Record]) -> Record:
    """Return the measurement with the median time, and with the highest peak of all."""
    median = sorted(records, key=lambda record: record.seconds)[len(records) // 2]
    return replace(median, peak_bytes=max(record.peak_bytes for record in records), repeats=len(records))


def _measure(model: TextModel, work: Workload, batch_size: int, watch: Watch, *, again: bool) -> Record:
    plan, pairs = work.plan(batch_size), pairs_of(batch_size)
    rows = work.rows(pairs)
    watch.begins(batch_size, pairs, again=again)
    mx.clear_cache()
    _warm_up(model, work, rows, plan.limits, watch)
    engine = Engine(model, ())      # with no prefixes yet, and no token that ends an answer
    mx.reset_peak_memory()
    began = time.perf_counter()
    for start in range(0, pairs, batch_size):
        _run(engine, work, rows[start : start + batch_size], plan.limits, watch.computed)
    seconds = time.perf_counter() - began
    return Record(
        batch_size=batch_size, rows=plan.rows, pairs=pairs, seconds=seconds, tokens=pairs * work.sampling.max_tokens,
        prompt_tokens=engine.counts.prefix_tokens + engine.counts.suffix_tokens, peak_bytes=mx.get_peak_memory(),
        planned_bytes=work.planned_peak(batch_size),
    )


def _warm_up(model: TextModel, work: Workload, rows: Sequence[Row], limits: Limits, watch: Watch) -> None:
    """Run a chunk of prefill and a step: a GPU compiles its kernels when they are first used."""
    chunk = rows[: min(limits.rows, Prefill(model, work.prompt, limits, PrefixCache(), Counts()).rows)]
    brief = replace(work, sampling=replace(work.sampling, max_tokens=min(2, work.sampling.max_tokens)))
    _run(Engine(model, ()), brief, chunk, limits, lambda _: watch.computed(0))


def _run(
    engine: Engine, work: Workload, rows: Sequence[Row], limits: Limits, computed: Callable[[int], None],
) -> None:
    """Generate for the rows of a job; tell the number of tokens of each step, 0 after a chunk of prefill."""
    left = len(rows) * work.sampling.max_tokens
    with closing(engine.generate(work.prompt, rows, work.sampling, limits)) as steps:
        for step in steps:
            left -= len(step)
            computed(len(step))
    assert left == 0, f"{left} tokens are missing"


def speed_up(records: Sequence[Record], record: Record) -> float | None:
    """Return how many times the rate of batch size 1 a rate is; None where 1 was not measured."""
    if records[0].batch_size != 1:
        return None
    return record.comparisons_per_minute / records[0].comparisons_per_minute


def recommend(records: Sequence[Record], limit: int) -> Record | None:
    """Choose the smallest batch size within CLOSE of the best rate; None where none is within the limit in bytes.

    Smaller jobs lose less when they are interrupted.
    """
    best = fastest(records, limit)
    if best is None:
        return None
    close = (record for record in records if record.peak_bytes <= limit
             and record.comparisons_per_minute >= (1 - CLOSE) * best.comparisons_per_minute)
    return min(close, key=lambda record: record.batch_size)


def fastest(records: Sequence[Record], limit: int) -> Record | None:
    """Return the record with the best rate of those whose peak is within the limit in bytes."""
    fitting = (record for record in records if record.peak_bytes <= limit)
    return max(fitting, key=lambda record: record.comparisons_per_minute, default=None)


def seconds_left(records: Sequence[Record], sizes: Sequence[int]) -> float:
    """Estimate the time that the sizes without a record will take, at the rate of the last one that has one."""
    pairs = sum(pairs_of(size) for size in sizes[len(records) :])
    return 60 * pairs / records[-1].comparisons_per_minute
