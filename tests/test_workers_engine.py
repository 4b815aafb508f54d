"""The engine: rows in, tokens out, the same for a row whatever stands beside it."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from reference import (
    GREEDY,
    LIMITS,
    PAIRS,
    Generated,
    collect,
    expected_rows,
    generate,
    make_engine,
    make_prompt,
    make_rows,
    prompt_embeddings,
    reference_prompt,
)

from jobs.limits import Limits
from store.records import Sampling
from workers.engine import Engine
from workers.model.cache import KVCache
from workers.model.rope import make_prompt_rotation, position_ids
from workers.model.text import TextModel
from workers.prefill import embed_prompt
from workers.rows import Image, Row, Token

SAMPLED = [
    Sampling(temperature=1.2, top_k=5, top_p=0.95, max_tokens=10),      # by candidates
    Sampling(temperature=1.2, top_k=0, top_p=0.9, repetition_penalty=1.3, max_tokens=10),      # by bisection
]


@pytest.mark.parametrize("sampling", SAMPLED, ids=["candidates", "bisection"])
def test_a_sampled_row_has_the_same_tokens_alone_in_a_batch_of_4_and_of_64(sampling: Sampling) -> None:
    engine, prompt = make_engine(), reference_prompt(0)
    rows = make_rows([PAIRS[place % len(PAIRS)] for place in range(64)])

    of_64 = generate(engine, prompt, rows, sampling)

    assert len({row.token_ids for row in of_64}) > 32      # one seed for all rows would repeat itself
    for start in (0, 60):
        assert generate(engine, prompt, rows[start : start + 4], sampling) == of_64[start : start + 4]
    for place in (0, 2, 63):
        assert generate(engine, prompt, [rows[place]], sampling) == [of_64[place]]


def test_the_order_of_rows_changes_nothing() -> None:
    engine, prompt, rows = make_engine(), reference_prompt(1), make_rows()

    forwards = generate(engine, prompt, rows, SAMPLED[0])

    assert generate(engine, prompt, rows[::-1], SAMPLED[0]) == forwards


def test_rows_with_equal_images_and_seeds_are_equal_and_other_seeds_differ() -> None:
    a, b = make_rows()[0].image_a, make_rows()[0].image_b
    rows = [Row(key, a, b, seed=seed) for key, seed in enumerate([5, 5, 6, 2**53 - 1])]

    tokens = [row.token_ids for row in generate(make_engine(), reference_prompt(0), rows, SAMPLED[0])]

    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3


def test_decode_with_the_cache_equals_running_all_tokens_anew() -> None:
    engine, prompt, sampling = make_engine(), reference_prompt(1), Sampling(
        do_sample=False, repetition_penalty=1.5, max_tokens=6)

    cached = generate(engine, prompt, make_rows()[:1], sampling)

    assert list(cached[0].token_ids) == tokens_without_cache(engine, sampling)


def tokens_without_cache(engine: Engine, sampling: Sampling) -> list[int]:
    """Generate greedily for the first pair, every step from the first token on, with the penalty in numpy."""
    prompt, model = reference_prompt(1), engine.model
    embedded = prompt_embeddings(engine, prompt, PAIRS[:1])
    positions, tokens = position_ids(len(prompt.token_ids), prompt.spans, prompt.grid), list[int]()
    while len(tokens) < sampling.max_tokens and not engine.eos_token_ids & set(tokens):
        cache = KVCache(model.config, 1, embedded.shape[1], model.dtype)
        hidden = model(embedded, make_prompt_rotation(model.config, positions), cache.window(slice(0, 1), 0))
        logits = np.array(model.logits(hidden[:, -1]))[0]
        seen = list({*prompt.token_ids, *tokens})
        factor = np.where(logits[seen] > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        logits[seen] *= factor
        tokens.append(int(logits.argmax()))
        embedded = mx.concatenate([embedded, model.embed(mx.array([tokens[-1:]]))], axis=1)
        positions = np.concatenate([positions, np.full((3, 1), positions.max() + 1, np.int32)], axis=1)
    return tokens


def test_a_strong_penalty_forbids_the_tokens_of_the_prompt_and_all_generated_ones() -> None:
    prompt = reference_prompt(0)
    never_ends = Engine(make_engine().model, [])
    sampling = Sampling(do_sample=False, repetition_penalty=1e6, max_tokens=40)

    for row in generate(never_ends, prompt, make_rows(), sampling):
        assert len(set(row.token_ids)) == 40
        assert not set(row.token_ids) & set(prompt.token_ids)


def test_the_image_that_the_prompt_names_first_comes_first() -> None:
    a_first, b_first = make_prompt("<image_a> or <image_b>?"), make_prompt("<image_b> or <image_a>?")

    forwards = generate(make_engine(), a_first, make_rows([[0, 3], [1, 2]]), GREEDY)
    backwards = generate(make_engine(), b_first, make_rows([[3, 0], [2, 1]]), GREEDY)

    assert b_first.images == ("b", "a")
    assert forwards == backwards
    assert forwards != generate(make_engine(), b_first, make_rows([[0, 3], [1, 2]]), GREEDY)


def test_a_prompt_is_embedded_in_the_models_own_type() -> None:
    engine, prompt = make_engine(), reference_prompt(1)

    embedded = embed_prompt(engine.model, prompt, make_rows(), 0, len(prompt.token_ids))

    np.testing.assert_array_equal(np.array(embedded), np.array(prompt_embeddings(engine, prompt, PAIRS)))
    half = TextModel(engine.model.config)
    half.set_dtype(mx.bfloat16)
    assert embed_prompt(half, prompt, make_rows(), 0, 5).dtype == mx.bfloat16


@pytest.mark.parametrize(("start", "end"), [(0, 3), (100, 260), (100, 400), (300, 301)])
def test_a_part_of_a_prompt_is_embedded_as_it_stands_in_the_whole(start: int, end: int) -> None:
    engine, prompt = make_engine(), reference_prompt(1)

    part = embed_prompt(engine.model, prompt, make_rows(), start, end)

    whole = prompt_embeddings(engine, prompt, PAIRS)
    np.testing.assert_array_equal(np.array(part), np.array(whole[:, start:end]))


def test_a_row_that_has_ended_emits_nothing_more_and_the_last_end_ends_the_steps() -> None:
    expected = expected_rows(0)
    early = [place for place, row in enumerate(expected) if row.finish_reason == "stop"][:2]
    rows = [make_rows()[place] for place in early]

    steps = list(make_engine().generate(reference_prompt(0), rows, GREEDY, LIMITS))

    lengths = [len(expected[place].token_ids) for place in early]
    chunks, decoded = steps[:-max(lengths)], steps[-max(lengths):]
    assert chunks      # of the prefill
    assert not any(chunks)
    assert all(decoded)
    for place, length in zip(early, lengths, strict=True):
        tokens = [token for step in steps for token in step if token.key == place]
        assert [token.finish_reason for token in tokens] == [None] * (length - 1) + ["stop"]


def test_a_row_of_one_token_ends_by_its_length() -> None:
    sampling = Sampling(do_sample=False, max_tokens=1)

    generated = generate(make_engine(), reference_prompt(0), make_rows()[:2], sampling)

    assert generated == [Generated(key, expected_rows(0)[key].token_ids[:1], "length") for key in (0, 1)]


def test_an_ending_token_at_the_last_place_is_a_stop() -> None:
    stopped = next(row for row in expected_rows(0) if row.finish_reason == "stop")
    sampling = Sampling(do_sample=False, max_tokens=len(stopped.token_ids))

    assert generate(make_engine(), reference_prompt(0), [make_rows()[stopped.key]], sampling) == [stopped]


def test_every_ending_token_of_the_checkpoint_ends_a_row() -> None:
    whole = expected_rows(0)[0].token_ids      # ends by length
    engine = Engine(make_engine().model, [*make_engine().eos_token_ids, whole[3]])

    (row,) = generate(engine, reference_prompt(0), make_rows()[:1], GREEDY)

    assert row == Generated(0, whole[: whole.index(whole[3]) + 1], "stop")


def test_the_caller_is_asked_after_every_chunk_of_the_prefill_and_every_step() -> None:
    engine, prompt = Engine(make_engine().model, []), reference_prompt(0)
    three_rows = 3 * (len(prompt.token_ids) - prompt.spans[0][1])

    steps = engine.generate(prompt, make_rows(), Sampling(do_sample=False, max_tokens=2),
                            replace(LIMITS, chunk_tokens=three_rows))

    prefixes = len({a for a, _ in PAIRS})
    assert [len(step) for step in steps] == [0] * (prefixes + 3) + [8, 8]


def test_no_rows_are_no_steps() -> None:
    assert list(make_engine().generate(reference_prompt(0), [], GREEDY, LIMITS)) == []


def test_closing_stops_the_work_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = TextModel.__call__, list[int]()

    def counted(model: TextModel, *args: Any) -> mx.array:
        runs.append(1)
        return run(model, *args)

    monkeypatch.setattr(TextModel, "__call__", counted)      # a decode step
    rows = collect(make_engine().generate(reference_prompt(0), make_rows(), GREEDY, LIMITS))

    first = next(rows)
    rows.close()

    assert first.finish_reason == "stop"
    assert len(runs) == len(first.token_ids)      # each to choose one more, the last of them in vain
    assert len(runs) < GREEDY.max_tokens - 1


def test_tokens_name_their_row_by_its_key() -> None:
    row, sampling = replace(make_rows()[0], key=77), Sampling(do_sample=False, max_tokens=2)
    steps = make_engine().generate(reference_prompt(0), [row], sampling, LIMITS)

    first, second = (token for step in steps for token in step)

    assert first == Token(77, expected_rows(0)[0].token_ids[0], None)
    assert (second.key, second.finish_reason) == (77, "length")


def test_generating_leaves_the_global_random_state_alone() -> None:
    engine, before = make_engine(), np.array(mx.random.state[0])

    generate(engine, reference_prompt(0), make_rows()[:1], SAMPLED[1])

    np.testing.assert_array_equal(np.array(mx.random.state[0]), before)


def test_the_next_step_is_scheduled_before_the_tokens_of_this_one_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, scheduled = mx.async_eval, list[tuple[mx.array, ...]]()
    monkeypatch.setattr(mx, "async_eval", lambda *step: (scheduled.append(step), schedule(*step)))

    steps = make_engine().generate(reference_prompt(0), make_rows()[:2], Sampling(do_sample=False, max_tokens=3),
                                   LIMITS)

    assert [len(scheduled) for step in steps if step] == [2, 3, 3]      # the first ones by joining


def test_the_cache_is_allocated_once_and_written_in_place() -> None:
    config = replace(make_engine().model.config, intermediate_size=10_000, n_layers=4)
    model, images = TextModel(config), np.random.default_rng(0).normal(size=(16, 2, 1, config.hidden_size))
    rows = [Row(key, Image((key, 0), a), Image((key, 1), b), seed=key)
            for key, (a, b) in enumerate(images.astype(np.float16))]
    prompt = replace(make_prompt("?"), token_ids=(2, 4, 19, 19, 5, 6), spans=((2, 3), (3, 4)), grid=(1, 1))
    sampling = Sampling(do_sample=False, max_tokens=4_000)
    tokens = len(prompt.token_ids) + sampling.max_tokens
    block = len(rows) * config.n_kv_heads * tokens * config.head_dim * 4      # bytes: a layer's keys, float32
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    limits = Limits(rows=16, chunk_tokens=12, prefix_bytes=1)
    steps = Engine(model, []).generate(prompt, rows, sampling, limits)
    lengths = [len(next(steps)) for _ in range(28)]

    assert lengths == [0] * (16 + 4) + [16] * 8
    # All else that a step needs is less than the keys of one layer, and so would be its first copy.
    assert mx.get_peak_memory() - before < 2 * config.n_layers * block + block


def test_a_row_of_the_cache_is_cleared_alone_and_in_place() -> None:
    cache = KVCache(make_engine().model.config, rows=16, capacity=2_000, dtype=mx.float32)
    cache.keys, cache.values = ([block + 1 for block in blocks] for blocks in (cache.keys, cache.values))
    cache.eval()
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    cache.clear(3)
    cache.eval()

    assert mx.get_peak_memory() - before < cache.keys[0].nbytes // 16
    for block in (*cache.keys, *cache.values):
        for extreme in (block.min(axis=(1, 2, 3)), block.max(axis=(1, 2, 3))):
            assert extreme.tolist() == [place != 3 for place in range(16)]
