"""The text decoder beside what transformers computed, and its rotary positions by hand."""

import mlx.core as mx
import numpy as np
import pytest
from reference import (
    CASES,
    GREEDY,
    GRID,
    PAIRS,
    arrays,
    expected_rows,
    generate,
    make_engine,
    make_rows,
    prompt_embeddings,
    reference_prompt,
)

from workers.model.cache import KVCache
from workers.model.rope import make_prompt_rotation, make_step_rotation, position_ids
from workers.model.text import attend


@pytest.mark.parametrize("case", CASES)
def test_position_ids_equal_those_of_transformers(case: int) -> None:
    prompt = reference_prompt(case)

    ids = position_ids(len(prompt.token_ids), prompt.spans, GRID)

    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, arrays()[f"position_ids_{case}"])


def test_an_image_moves_the_position_by_its_longer_side() -> None:
    ids = position_ids(10, [(1, 7)], (2, 3))

    np.testing.assert_array_equal(ids, [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6],
    ])


def test_the_rotation_of_a_prompt_equals_that_of_decode_steps_where_the_axes_agree() -> None:
    config = make_engine().model.config
    x = mx.random.normal((2, 3, 5, config.head_dim), key=mx.random.key(0))
    positions = np.tile(np.arange(700, 705, dtype=np.int32), (3, 1))

    of_prompt = make_prompt_rotation(config, positions)(x)
    of_step = make_step_rotation(config, mx.array([700, 700]))(x)

    # float32 angles near 700 are exact to 6e-5; the prompt's are computed in float64.
    np.testing.assert_allclose(np.array(of_prompt), np.array(of_step), atol=3e-4)
    np.testing.assert_array_equal(np.array(of_prompt)[..., config.rotary_dims:], np.array(x)[..., config.rotary_dims:])


def test_each_axis_turns_its_own_section_of_frequencies() -> None:
    config = make_engine().model.config
    x = mx.ones((1, 1, 1, config.head_dim))
    t, h, _ = config.mrope_section

    turned = [np.array(make_prompt_rotation(config, np.array(ids, np.int32)[:, None])(x)).ravel()
              for ids in ([0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9])]

    changed = [sorted(set(np.flatnonzero(one != turned[0]) // 2)) for one in turned[1:]]
    assert changed == [list(range(t)), list(range(t, t + h)), list(range(t + h, config.rotary_dims // 2))]


@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_last_prompt_position_equal_those_of_transformers(case: int) -> None:
    engine, prompt = make_engine(), reference_prompt(case)
    model, tokens = engine.model, len(prompt.token_ids)
    rotate = make_prompt_rotation(model.config, position_ids(tokens, prompt.spans, GRID))
    cache = KVCache(model.config, len(PAIRS), tokens, model.dtype)

    hidden = model(prompt_embeddings(engine, prompt, PAIRS), rotate, cache.window(slice(0, len(PAIRS)), 0))
    logits = np.array(model.logits(hidden[:, -1]))

    # float32 sums in another order; 3e-6 where this was written.
    assert np.abs(logits - arrays()[f"last_logits_{case}"]).max() <= 1e-3


def test_a_prompt_in_two_chunks_equals_the_prompt_in_one_piece() -> None:
    engine, prompt = make_engine(), reference_prompt(1)
    model, tokens, cut = engine.model, len(prompt.token_ids), 300
    ids = position_ids(tokens, prompt.spans, GRID)
    embedded = prompt_embeddings(engine, prompt, PAIRS[:2])
    whole, parts = (KVCache(model.config, 2, tokens, model.dtype) for _ in range(2))
    both = slice(0, 2)

    expected = model(embedded, make_prompt_rotation(model.config, ids), whole.window(both, 0))
    model.remember(embedded[:, :cut], make_prompt_rotation(model.config, ids[:, :cut]), parts.window(both, 0))
    rest = model(embedded[:, cut:], make_prompt_rotation(model.config, ids[:, cut:]), parts.window(both, cut))

    # the same float32 products in blocks of another size
    np.testing.assert_allclose(np.array(rest), np.array(expected[:, cut:]), atol=1e-4)


def test_a_prefill_gives_the_last_position_and_all_keys_and_values_without_the_rest_of_the_last_layer() -> None:
    engine, prompt = make_engine(), reference_prompt(1)
    model, tokens = engine.model, len(prompt.token_ids)
    rotate = make_prompt_rotation(model.config, position_ids(tokens, prompt.spans, GRID))
    embedded = prompt_embeddings(engine, prompt, PAIRS[:2])
    whole, ends = (KVCache(model.config, 2, tokens, model.dtype) for _ in range(2))
    expected = model(embedded, rotate, whole.window(slice(0, 2), 0))[:, -1]

    hidden = model.prefill(embedded, rotate, ends.window(slice(0, 2), 0))

    # the same float32 products, the last layer's for one position at a time
    np.testing.assert_allclose(np.array(hidden), np.array(expected), atol=1e-4)
    np.testing.assert_array_equal(np.array(ends.keys[-1]), np.array(whole.keys[-1]))
    np.testing.assert_array_equal(np.array(ends.values[-1]), np.array(whole.values[-1]))


def test_rows_of_a_cache_are_filled_apart() -> None:
    config = make_engine().model.config
    cache = KVCache(config, 3, 4, mx.float32)
    ones = mx.ones((1, config.n_kv_heads, 2, config.head_dim))

    keys, values = cache.window(slice(1, 2), 1).update(0, ones, 2 * ones)

    assert keys.shape == (1, config.n_kv_heads, 3, config.head_dim)
    written = np.zeros((3, 4))
    written[1, 1:3] = 1
    np.testing.assert_array_equal(np.array(cache.keys[0])[:, 0, :, 0], written)
    np.testing.assert_array_equal(np.array(cache.values[0])[:, 0, :, 0], 2 * written)
    np.testing.assert_array_equal(np.array(values)[0, 0, :, 0], [0, 2, 2])


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_finish_reasons_equal_those_of_transformers_one_by_one(case: int) -> None:
    engine, prompt = make_engine(), reference_prompt(case)

    generated = [generate(engine, prompt, [row], GREEDY)[0] for row in make_rows()]

    assert generated == expected_rows(case)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_finish_reasons_equal_those_of_transformers_in_one_batch(case: int) -> None:
    generated = generate(make_engine(), reference_prompt(case), make_rows(), GREEDY)

    assert generated == expected_rows(case)


def test_a_row_of_a_cache_begins_with_a_prefix_and_moves_as_a_whole() -> None:
    config = make_engine().model.config
    cache, prefix = KVCache(config, 3, 4, mx.float32), KVCache(config, 1, 2, mx.float32)
    prefix.window(slice(0, 1), 0).update(1, mx.ones((1, config.n_kv_heads, 2, config.head_dim)),
                                         mx.full((1, config.n_kv_heads, 2, config.head_dim), 2))

    cache.begin_with(prefix, 2)
    cache.move(2, 0)

    expected = np.zeros((3, 4))
    expected[[0, 2], :2] = 1
    np.testing.assert_array_equal(np.array(cache.keys[1])[:, 0, :, 0], expected)
    np.testing.assert_array_equal(np.array(cache.values[1])[:, 0, :, 0], 2 * expected)


@pytest.mark.parametrize("device", [mx.cpu, mx.gpu])
@pytest.mark.parametrize("masked", [False, True])
def test_a_token_attends_alike_whether_its_query_heads_are_multiplied_together_or_not(
    device: mx.DeviceType, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=(3, heads, tokens, 8)).astype(np.float32)
                             for heads, tokens in ((6, 1), (2, 5), (2, 5)))
    seen = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], bool) | (not masked)
    scores = np.einsum("rhd,rhkd->rhk", queries[:, :, 0], keys.repeat(3, axis=1)) / 8**0.5
    weights = np.where(seen[:, None], np.exp(scores), 0)
    expected = np.einsum("rhk,rhkd->rhd", weights / weights.sum(-1, keepdims=True), values.repeat(3, axis=1))
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))      # where it is computed stays the same

    mask = mx.array(seen)[:, None, None] if masked else None
    attended = attend(mx.array(queries), mx.array(keys), mx.array(values), mask)

    np.testing.assert_allclose(np.array(attended)[:, :, 0], expected, rtol=1e-5)
