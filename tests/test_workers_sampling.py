"""Sampling beside a reference in numpy that is written from the definition, with a sort and in float64."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from store.records import SEED_LIMIT, Sampling
from workers.sampling import (
    keep_best,
    make_sampler,
    mark_seen,
    mark_token,
    ordered,
    row_keys,
    split_keys,
    top_candidates,
)

DRAWS = 20_000
VOCAB = 160
Floats = NDArray[np.float64]

SETTINGS = [
    Sampling(temperature=1.0, top_k=0, top_p=1.0),
    Sampling(temperature=0.7, top_k=0, top_p=0.9),
    Sampling(temperature=0.8, top_k=50, top_p=0.6),          # too many of so few for candidates
    Sampling(temperature=1.5, top_k=50, top_p=1.0),
    Sampling(temperature=0.8, top_k=2, top_p=1.0),           # candidates
    Sampling(temperature=2.0, top_k=2, top_p=0.6),
    Sampling(temperature=2.0, top_k=1, top_p=0.5),
    Sampling(temperature=3.0, top_k=10_000, top_p=0.95),     # more than there are
    Sampling(temperature=2.0, top_k=2, top_p=0.7, repetition_penalty=1.4),
    Sampling(temperature=1.3, top_k=20, top_p=0.8, repetition_penalty=1.4),
    Sampling(temperature=1.3, top_k=0, top_p=0.8, repetition_penalty=0.8),
]


def some_logits(rows: int = 1, vocab: int = VOCAB, seed: int = 0) -> NDArray[np.float32]:
    return (2 * np.random.default_rng(seed).normal(size=(rows, vocab))).astype(np.float32)


def exact_probabilities(logits: NDArray[Any], seen: NDArray[np.bool_], sampling: Sampling) -> Floats:
    """Penalty, temperature, the first k by rank, then the shortest beginning of those that reaches p."""
    x = logits.astype(np.float64)
    x = np.where(seen, np.where(x > 0, x / sampling.repetition_penalty, x * sampling.repetition_penalty), x)
    x = x / sampling.temperature
    order = np.lexsort((np.arange(len(x)), -x))[: sampling.top_k or None]
    probs = np.exp(x[order] - x[order].max())
    probs /= probs.sum()
    if sampling.top_p < 1:
        probs = probs[: int((np.cumsum(probs) < sampling.top_p).sum()) + 1]
    whole = np.zeros(len(x))
    whole[order[: len(probs)]] = probs / probs.sum()
    return whole


@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"T{s.temperature}-k{s.top_k}-p{s.top_p}")
def test_draws_follow_the_exact_distribution_and_never_leave_its_support(sampling: Sampling) -> None:
    logits = some_logits()
    seen = np.zeros(VOCAB, bool)
    seen[[0, *np.argsort(-logits[0])[:3], *np.argsort(logits[0])[:3]]] = True
    mask = mx.array(np.tile(seen, (DRAWS, 1))) if sampling.repetition_penalty != 1 else None

    keys = mx.random.split(mx.random.key(7), DRAWS)
    drawn = make_sampler(sampling)(mx.array(np.repeat(logits, DRAWS, axis=0)), keys, mask)

    expected = exact_probabilities(logits[0], seen, sampling)
    counts = np.bincount(np.array(drawn), minlength=VOCAB)
    assert counts[expected == 0].sum() == 0
    # A frequency of n draws has the standard error sqrt(p (1 - p) / n); 5 of them, and one draw for the rarest tokens.
    tolerance = 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1 / DRAWS
    assert (np.abs(counts / DRAWS - expected) <= tolerance).all()


def test_greedy_takes_the_largest_logit_after_the_penalty_and_the_lower_id_of_equals() -> None:
    logits = mx.array([[1.0, 3.0, 3.0, 2.9], [-1.0, -1.2, -5.0, -3.0]])
    seen = mx.array([[False, False, False, False], [True, False, False, False]])
    greedy = Sampling(do_sample=False, repetition_penalty=1.5)

    assert make_sampler(Sampling(do_sample=False))(logits, None, None).tolist() == [1, 0]
    assert make_sampler(greedy)(logits, None, seen).tolist() == [1, 1]


def extreme(**values: float) -> Sampling:
    """Make settings past their checks: the sampler does not rely on them."""
    sampling = Sampling()
    for name, value in values.items():
        object.__setattr__(sampling, name, value)
    return sampling


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-36, 1e-40, 1e-300])      # the last are 0 in float32
@pytest.mark.parametrize(("top_k", "top_p"), [(2, 0.9), (2, 1.0), (50, 1.0), (0, 0.9), (0, 1.0)])
def test_a_temperature_near_zero_is_greedy(temperature: float, top_k: int, top_p: float) -> None:
    logits, keys = mx.array(100 * some_logits(8)), row_keys(range(8))

    drawn = make_sampler(extreme(temperature=temperature, top_k=top_k, top_p=top_p))(logits, keys, None)

    np.testing.assert_array_equal(np.array(drawn), np.array(logits).argmax(axis=-1))


@pytest.mark.parametrize("top_p", [1e-9, 1e-38, 1e-45, 1e-300])
@pytest.mark.parametrize("top_k", [0, 2, 50])
def test_a_nucleus_near_nothing_keeps_the_best_token(top_p: float, top_k: int) -> None:
    logits, keys = mx.array(some_logits(8)), row_keys(range(8))

    drawn = make_sampler(extreme(temperature=2.0, top_k=top_k, top_p=top_p))(logits, keys, None)

    np.testing.assert_array_equal(np.array(drawn), np.array(logits).argmax(axis=-1))


@pytest.mark.parametrize("target", [0.0, 1e-45, 1e-300])
def test_bisection_keeps_the_best_token_however_small_the_target(target: float) -> None:
    logits = mx.array([[1.0, 3.0, 3.0, -mx.inf]])

    kept = np.isfinite(np.array(keep_best(logits, mx.softmax(logits, axis=-1), target)))

    assert np.flatnonzero(kept).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e6, 1e30, 1e300])
@pytest.mark.parametrize("top_k", [0, 2, 50])
def test_a_temperature_near_infinity_draws_from_all_that_are_kept(temperature: float, top_k: int) -> None:
    logits, keys = mx.array(np.repeat(some_logits(), 500, axis=0)), row_keys(range(500))

    drawn = np.array(make_sampler(extreme(temperature=temperature, top_k=top_k, top_p=1.0))(logits, keys, None))

    assert drawn.max() < VOCAB
    assert len(set(drawn.tolist())) > (top_k or VOCAB) // 2


@pytest.mark.parametrize("k", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("vocab", [3_200, 3_217])
def test_candidates_are_the_best_tokens_in_order_of_rank(k: int, vocab: int) -> None:
    logits = np.concatenate([some_logits(2, vocab), np.round(some_logits(2, vocab))])      # the latter with many equals

    ids, values = top_candidates(mx.array(logits), k)

    expected = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(np.array(ids), expected)
    np.testing.assert_array_equal(np.array(values), np.take_along_axis(logits, expected, axis=-1))


@pytest.mark.parametrize("k", [1, 5, 64, 159])
def test_bisection_keeps_the_same_tokens_as_a_sort(k: int) -> None:
    logits = np.concatenate([some_logits(2), np.round(some_logits(2)), np.zeros((1, VOCAB), np.float32)])

    kept = np.isfinite(np.array(keep_best(mx.array(logits), mx.ones(logits.shape), k)))

    expected = np.zeros_like(kept)
    np.put_along_axis(expected, np.argsort(-logits, axis=-1, kind="stable")[:, :k], True, axis=-1)
    np.testing.assert_array_equal(kept, expected)


def test_of_equal_logits_at_the_edge_of_the_nucleus_the_lower_ids_stay() -> None:
    logits = mx.zeros((1, 10))

    kept = np.isfinite(np.array(keep_best(logits, mx.softmax(logits, axis=-1), 0.35)))

    assert np.flatnonzero(kept).tolist() == [0, 1, 2, 3]


def test_integers_have_the_order_of_the_floats_that_they_stand_for() -> None:
    values = np.array([-np.inf, -3e38, -1.5, -1e-40, 0.0, 1e-40, 0.1, 7.0, np.inf], np.float32)

    integers = np.array(ordered(mx.array(values)))

    assert integers.dtype == np.uint32
    assert (np.diff(integers.astype(np.int64)) > 0).all()


@pytest.mark.parametrize("sampling", [SETTINGS[0], SETTINGS[1], SETTINGS[2], SETTINGS[4], SETTINGS[8]])
def test_a_row_draws_the_same_token_alone_in_a_batch_of_4_and_of_64(sampling: Sampling) -> None:
    logits, keys = mx.array(some_logits(64)), row_keys(range(64))
    seen = mark_seen([3, 5], 64, VOCAB) if sampling.repetition_penalty != 1 else None
    sample = make_sampler(sampling)

    def draw(start: int, stop: int) -> list[int]:
        tokens = sample(logits[start:stop], keys[start:stop], None if seen is None else seen[start:stop])
        return [int(token) for token in np.array(tokens)]

    of_64 = draw(0, 64)
    assert [draw(row, row + 1)[0] for row in range(64)] == of_64
    assert [token for row in range(0, 64, 4) for token in draw(row, row + 4)] == of_64


def test_keys_of_rows_split_apart_from_each_other() -> None:
    keys = row_keys([0, 1, 2**32, SEED_LIMIT - 1, 1])
    following, step = split_keys(keys)

    alone = [np.concatenate(split_keys(keys[row : row + 1])) for row in range(5)]

    np.testing.assert_array_equal(np.stack([np.array(following), np.array(step)], axis=1), np.stack(alone))
    both = np.concatenate([np.array(following), np.array(step)])
    assert len({tuple(key) for key in both}) == 8      # rows 1 and 4 have the same seed, all others their own
    np.testing.assert_array_equal(both[1], both[4])


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = np.array(mx.random.state[0])

    keys, step = split_keys(row_keys([1, 2]))
    mx.eval(keys, make_sampler(Sampling())(mx.array(some_logits(2)), step, None))

    np.testing.assert_array_equal(np.array(mx.random.state[0]), before)


def test_seen_tokens_are_those_of_the_prompt_and_each_rows_own() -> None:
    seen = mark_token(mark_seen([4, 1, 4], 2, 6), mx.array([5, 0]))

    np.testing.assert_array_equal(np.array(seen), [[0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0]])
