"""Sampling: logits in, one token a row out, each row by its own key. It knows no model and no prompt.

Tokens rank by logit, equal logits by lower id. Top-k keeps the first k; top-p keeps the shortest beginning of those
whose probability among them reaches p. (transformers keeps all that equal the k-th.) The vocabulary is never sorted.
"""

import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from jobs.memory import candidates_pay
from store.records import Sampling

# logits [rows, vocab], keys [rows, 2] (None when greedy), seen [rows, vocab] (None without penalty) -> tokens [rows]
Sampler = Callable[[mx.array, mx.array | None, mx.array | None], mx.array]

SMALLEST = 2.0**-126     # the smallest normal float32: what is smaller may count as 0 on the device


def make_sampler(sampling: Sampling) -> Sampler:
    """Make the function that chooses the next token of each row, in float32.

    Order: repetition penalty, temperature, top-k, top-p over the survivors, as transformers. A row's token depends on
    its own logits, key and seen tokens, never on the rows beside it.
    """

    def sample(logits: mx.array, keys: mx.array | None, seen: mx.array | None) -> mx.array:
        logits = logits.astype(mx.float32)
        if seen is not None:
            logits = penalize(logits, seen, sampling.repetition_penalty)
        if not sampling.do_sample:
            return mx.argmax(logits, axis=-1)
        assert keys is not None
        # Less their maximum, which changes no probability: a temperature near 0 then leaves 0 and -inf, never a NaN.
        logits = (logits - logits.max(axis=-1, keepdims=True)) / max(sampling.temperature, SMALLEST)
        if candidates_pay(sampling.top_k, logits.shape[-1]):
            return _sample_candidates(logits, keys, sampling)
        return _draw(_mask(logits, sampling), keys)

    return sample


def _sample_candidates(logits: mx.array, keys: mx.array, sampling: Sampling) -> mx.array:
    ids, values = top_candidates(logits, sampling.top_k)      # [rows, k] each, in order of rank
    probs = mx.softmax(values, axis=-1, precise=True)
    before = mx.cumsum(probs, axis=-1, inclusive=False)       # the probability of better tokens
    kept = mx.where(before < max(sampling.top_p, SMALLEST), values, -mx.inf)
    return mx.take_along_axis(ids, _draw(kept, keys)[:, None], axis=-1)[:, 0]


def _mask(logits: mx.array, sampling: Sampling) -> mx.array:
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = keep_best(logits, mx.ones_like(logits), sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_best(logits, mx.softmax(logits, axis=-1, precise=True), sampling.top_p)
    return logits


def _draw(logits: mx.array, keys: mx.array) -> mx.array:
    # Row by row under vmap: over a whole batch, one key would serve all, and [1, n] would draw otherwise than [b, n].
    draw: mx.array = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(logits, keys)
    return draw


def penalize(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Make seen tokens less likely: divide a positive logit by the penalty, multiply a negative one (CTRL, 2019)."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_candidates(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Return ids and logits [rows, k] of the k best tokens, in order of rank.

    They lie in the k chunks of the vocabulary with the largest maxima: each of those holds a token that beats every
    token of the other chunks. So 2 sorts of about sqrt(k * vocab) values do for one of the vocabulary.
    """
    vocab = logits.shape[-1]
    width = 2 ** round(math.log2(vocab / k) / 2)
    padded = mx.pad(logits, [(0, 0), (0, -vocab % width)], constant_values=-mx.inf)
    chunks = mx.unflatten(padded, -1, (-1, width))                           # [rows, chunks, width]
    best = mx.sort(_best_first(chunks.max(axis=-1))[:, :k], axis=-1)         # [rows, k], by lower id again
    values = mx.take_along_axis(chunks, best[:, :, None], axis=1).flatten(1)      # [rows, k * width]
    ids = (best[:, :, None] * width + mx.arange(width, dtype=mx.uint32)).flatten(1)
    order = _best_first(values)[:, :k]
    return mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def _best_first(values: mx.array) -> mx.array:
    return mx.argsort(-values, axis=-1)      # stable: of equal values, the first comes first


def keep_best(logits: mx.array, weights: mx.array, target: float) -> mx.array:
    """Mask all but the shortest beginning, in order of rank, whose weights [rows, vocab] add up to the target.

    Weights of 1 keep that many tokens, probabilities a nucleus; equal logits must have equal weights. Bisects the
    logit of the last one kept, bit by bit through integers of the same order, in 32 passes without a sort. The best
    one is kept however small the target.
    """
    target = max(target, SMALLEST)
    ranks = ordered(logits)                                                     # [rows, vocab] uint32
    last = mx.zeros((logits.shape[0], 1), mx.uint32)
    for bit in range(31, -1, -1):
        higher = last | (1 << bit)
        reached = mx.where(ranks >= higher, weights, 0).sum(axis=-1, keepdims=True) >= target
        last = mx.where(reached, higher, last)
    tied = ranks == last
    above = mx.where(ranks > last, weights, 0).sum(axis=-1, keepdims=True)      # [rows, 1]
    tied_before = mx.cumsum(mx.where(tied, weights, 0), axis=-1, inclusive=False)
    kept = (ranks > last) | (tied & (above + tied_before < target))
    return mx.where(kept, logits, -mx.inf)


def ordered(values: mx.array) -> mx.array:
    """Return float32 values as uint32 of the same order."""
    bits = (values + 0.0).view(mx.uint32)      # -0.0 becomes 0.0, its equal
    return mx.where(bits >> 31, ~bits, bits | (1 << 31))


def row_keys(seeds: Sequence[int]) -> mx.array:
    """Return the keys [rows, 2] that rows begin with."""
    return mx.stack([mx.random.key(seed) for seed in seeds])


def split_keys(keys: mx.array) -> tuple[mx.array, mx.array]:
    """Split each row's key [rows, 2] into the one it goes on with and the one for this step."""
    both: mx.array = mx.vmap(mx.random.split)(keys)      # [rows, 2, 2]
    return both[:, 0], both[:, 1]


def mark_seen(token_ids: Sequence[int], rows: int, vocab: int) -> mx.array:
    """Return a mask [rows, vocab] of a prompt's tokens."""
    seen = mx.zeros((rows, vocab), mx.bool_)
    seen[:, mx.array(sorted(set(token_ids)))] = True
    return seen


def mark_token(seen: mx.array, tokens: mx.array) -> mx.array:
    """Add a token of each row [rows] to the mask [rows, vocab]."""
    return seen | (mx.arange(seen.shape[-1]) == tokens[:, None])
