"""The benchmark: what is computed at each batch size, what is counted, and what follows from made-up records."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import WEIGHTS
from reference import make_engine

import workers.bench
from jobs.inputs import Settings
from store.errors import EmbeddingsError, SettingsError
from store.records import Sampling
from workers.bench import (
    LEAST_PAIRS,
    POOL,
    RANDOM,
    Record,
    Watch,
    Workload,
    fastest,
    measure_sizes,
    open_workload,
    pairs_of,
    recommend,
    seconds_left,
    speed_up,
)
from workers.stop import Stopped

LIMIT = 10**9
SAMPLING = Sampling(max_tokens=2)


def open_small(
    *, partners: int = 8, limit: int = LIMIT, prompt: str = "Which?", embeds: Path = RANDOM,
    sampling: Sampling = SAMPLING,
) -> Workload:
    """Open the reference's checkpoint as a workload."""
    return open_workload(Settings(embeds, WEIGHTS, prompt, False, sampling), partners, limit)


def made_up(batch_size: int, rate: float, peak: int = 100) -> Record:
    """Return a record of 32 pairs with a rate in comparisons per minute."""
    return Record(batch_size, rows=batch_size, pairs=32, seconds=60 * 32 / rate, tokens=64, prompt_tokens=1,
                  peak_bytes=peak, planned_bytes=peak)


class Ear(Watch):
    """Remembers what it hears; stops after so many calls."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.begun: list[tuple[int, int, bool]] = []
        self.tokens: list[int] = []
        self.stop_after = stop_after

    def begins(self, batch_size: int, pairs: int, *, again: bool) -> None:
        self.begun.append((batch_size, pairs, again))

    def computed(self, tokens: int) -> None:
        self.tokens.append(tokens)
        if len(self.tokens) == self.stop_after:
            raise Stopped


@pytest.mark.parametrize(("batch_size", "pairs"), [(1, 32), (3, 33), (31, 62), (32, 32), (33, 33), (512, 512)])
def test_a_batch_size_is_measured_with_whole_jobs_of_32_pairs_or_more(batch_size: int, pairs: int) -> None:
    assert pairs_of(batch_size) == pairs
    assert pairs >= LEAST_PAIRS


@pytest.mark.parametrize("prompt", ["Which?", "<image_b> or <image_a>?"])
def test_partners_share_the_image_that_the_prompt_shows_first_and_no_other(prompt: str) -> None:
    work = open_small(partners=4, prompt=prompt)

    rows = work.rows(10)

    first, second = work.prompt.images
    assert [row.image(first).key for row in rows] == [("first", key // 4) for key in range(10)]
    assert len({row.image(second).key for row in rows}) == 10
    assert len({row.seed for row in rows}) == 10


def test_drawn_embeddings_have_the_checkpoints_own_image_size_and_are_the_same_each_time() -> None:
    work, again = open_small(), open_small()

    side = work.checkpoint.image.side // work.checkpoint.image.unit
    assert work.prompt.grid == (side, side)
    assert {embedding.shape for embedding in work.embeddings} == {(side * side, work.checkpoint.text.hidden_size)}
    for embedding, other in zip(work.embeddings, again.embeddings, strict=True):
        assert abs(embedding).max() < 1
        assert (embedding == other).all()


def test_real_embeddings_are_taken_from_their_folder(embeddings: Path) -> None:
    from store.embeddings import open_embeddings

    work = open_small(embeds=embeddings)

    stored = open_embeddings(embeddings, hidden=work.checkpoint.text.hidden_size)
    assert work.images == len(work.embeddings) == 4 < POOL
    assert all((work.embeddings[index] == stored.read(index)).all() for index in range(4))


def test_a_folder_of_embeddings_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingsError, match="nowhere"):
        open_small(embeds=tmp_path / "nowhere")


def test_every_size_does_the_same_work_and_begins_without_prefixes() -> None:
    work, ear = open_small(), Ear()
    prefix, whole = work.prompt.spans[0][1], len(work.prompt.token_ids)

    records = list(measure_sizes(make_engine().model, work, (1, 2, 4), ear))

    # Where a rate has fallen, by chance, the smaller size has a second record.
    assert {record.batch_size: record.rows for record in records} == {1: 1, 2: 2, 4: 4}
    assert {record.pairs for record in records} == {32}
    assert {record.tokens for record in records} == {32 * 2}
    assert {record.prompt_tokens for record in records} == {4 * prefix + 32 * (whole - prefix)}
    assert all(record.seconds > 0 for record in records)
    measured = len(ear.begun)      # a fall between two sizes is measured again
    assert sum(ear.tokens) == measured * 32 * 2      # nothing of the warm-up


def test_without_partners_every_prompt_is_computed_whole() -> None:
    work = open_small(partners=1)

    [record] = measure_sizes(make_engine().model, work, (4,))

    assert record.prompt_tokens == 32 * len(work.prompt.token_ids)


def test_no_token_ends_an_answer() -> None:
    work, ear = open_small(sampling=Sampling(max_tokens=24, temperature=3, top_k=0, top_p=1)), Ear()
    engine = make_engine()
    shown = [token for step in engine.generate(work.prompt, work.rows(32), work.sampling, work.plan(32).limits)
             for token in step]
    assert "stop" in {token.finish_reason for token in shown}      # a worker would end some of them

    [record] = measure_sizes(engine.model, work, (32,), ear)

    assert record.tokens == sum(ear.tokens) == 32 * 24


def test_a_size_beyond_the_memory_runs_in_slices_within_the_limit() -> None:
    work = open_small(limit=8_000_000)

    [record] = measure_sizes(make_engine().model, work, (48,))

    assert record.rows == work.plan(48).rows < 48
    assert record.tokens == 48 * 2
    assert record.peak_bytes <= 1.3 * record.planned_bytes      # what a plan may be wrong by
    assert record.planned_bytes < work.limit


def test_the_planned_peak_counts_only_prefixes_that_the_pairs_can_fill() -> None:
    work = open_small()
    plan = work.plan(64)

    assert plan.prefixes > 8
    assert work.planned_peak(64) == plan.peak(plan.rows) - plan.prefix_cache + 8 * plan.prefix


def test_a_limit_without_room_for_a_row_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected a limit of at least"):
        open_small(limit=10**6).plan(1)


def test_a_watch_can_end_the_benchmark_at_any_chunk_or_step() -> None:
    work, whole = open_small(), Ear()
    list(measure_sizes(make_engine().model, work, (32,), whole))
    finished = []

    for calls in (1, 3, len(whole.tokens) - 1):
        ear = Ear(stop_after=calls)
        with pytest.raises(Stopped):
            finished += measure_sizes(make_engine().model, work, (32,), ear)
        assert len(ear.tokens) == calls

    assert finished == []


def measure_as(monkeypatch: pytest.MonkeyPatch, script: Sequence[Record]) -> tuple[list[Record], list[bool]]:
    """Measure the sizes of a script whose records stand for measurements; return what came of them."""
    left, again_of = iter(script), []

    def scripted(model: object, work: object, size: int, watch: object, *, again: bool) -> Record:
        again_of.append(again)
        record = next(left)
        assert record.batch_size == size
        return record

    monkeypatch.setattr(workers.bench, "_measure", scripted)
    sizes = sorted({record.batch_size for record in script})
    return list(measure_sizes(make_engine().model, open_small(), sizes)), again_of


def test_after_a_fall_of_more_than_5_percent_both_sizes_are_measured_three_times_more_for_the_medians(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [made_up(1, 100), made_up(2, 94), made_up(1, 97), made_up(2, 99, peak=300), made_up(1, 90),
              made_up(2, 70), made_up(1, 96), made_up(2, 98, peak=200), made_up(4, 94)]

    records, again = measure_as(monkeypatch, script)

    assert records == [script[0], replace(script[6], repeats=3), replace(script[7], repeats=3, peak_bytes=300),
                       script[8]]
    assert again == [False, False, *[True] * 6, False]


def test_a_fall_of_less_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    records, again = measure_as(monkeypatch, [made_up(1, 100), made_up(2, 95.1), made_up(4, 91)])

    assert [record.repeats for record in records] == [0, 0, 0]
    assert again == [False] * 3


@pytest.mark.parametrize(("rates", "peaks", "chosen", "best"), [
    ({1: 10, 8: 30, 32: 39, 64: 40}, {}, 32, 64),                   # within 5 % of the best
    ({1: 10, 8: 30, 32: 37.9, 64: 40}, {}, 64, 64),                 # not within 5 %
    ({1: 10, 8: 40, 32: 38, 64: 39}, {}, 8, 8),
    ({1: 10, 8: 30, 64: 40}, {64: 1001}, 8, 8),                     # the best is over the limit: not counted
    ({1: 10, 8: 30, 64: 40}, {8: 1001, 64: 1000}, 64, 64),          # a limit may be reached
    ({1: 10}, {}, 1, 1),
    ({1: 10, 8: 30}, {1: 1001, 8: 1001}, None, None),
])
def test_the_smallest_size_near_the_best_rate_within_the_limit_is_recommended(
    rates: dict[int, float], peaks: dict[int, int], chosen: int | None, best: int | None
) -> None:
    records = [made_up(size, rate, peaks.get(size, 100)) for size, rate in rates.items()]

    recommended, first = recommend(records, 1000), fastest(records, 1000)

    assert (recommended and recommended.batch_size) == chosen
    assert (first and first.batch_size) == best


def test_rates_come_from_pairs_tokens_and_seconds() -> None:
    record = replace(made_up(8, 16), tokens=3200)

    assert record.seconds == 120
    assert record.comparisons_per_minute == 16
    assert record.tokens_per_second == pytest.approx(3200 / 120)


def test_the_speed_up_is_against_batch_size_1_and_unknown_without_it() -> None:
    one, eight = made_up(1, 10), made_up(8, 32)

    assert speed_up([one, eight], one) == 1
    assert speed_up([one, eight], eight) == pytest.approx(3.2)
    assert speed_up([eight], eight) is None


def test_the_time_left_is_that_of_all_sizes_to_go_at_the_last_rate() -> None:
    sizes = (1, 8, 32, 100)

    assert seconds_left([made_up(1, 10)], sizes) == pytest.approx(60 * (32 + 32 + 100) / 10)
    assert seconds_left([made_up(1, 10), made_up(8, 20)], sizes) == pytest.approx(60 * (32 + 100) / 20)
    assert seconds_left([made_up(size, 10) for size in sizes], sizes) == 0
