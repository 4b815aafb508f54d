"""Prefill: prompts into the KV cache, in chunks, each prefix once. It knows no sampling and no decode step.

A prefix is all of a prompt up to and including its first image; it does not depend on the second, so that rows with
the same first image share it (RadixAttention, 2023; Hydragen, 2024). The rest of each prompt is run behind it, piece by
piece (chunked prefill: Sarathi, 2023), with pieces of as many rows as fit side by side.
"""

from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import mlx.core as mx
import numpy as np

from jobs.limits import Limits
from jobs.prompt import Prompt
from workers.model.cache import KVCache, Window
from workers.model.rope import Rotate, make_prompt_rotation, position_ids
from workers.model.text import TextModel
from workers.rows import Row, Token

# Tokens of a row in a chunk, where rows wait: a piece does not attend to the pieces behind it, but reads all before it.
PIECE = 96

T = TypeVar("T")
Chunks = Generator[list[Token], None, T]      # an empty list after each chunk: the caller may stop there


class PrefixCache:
    """Prefixes by what they hold; over the budget, the one that was used least recently goes first."""

    def __init__(self) -> None:
        self.budget = 0      # bytes; the prefix used last is kept all the same
        self._kept: OrderedDict[Hashable, KVCache] = OrderedDict()

    def get(self, key: Hashable) -> KVCache | None:
        """Return a prefix [1 row], if it is here, and count this as its use."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def make_room(self, nbytes: int) -> None:
        """Let prefixes go until this many bytes more are within the budget."""
        while self._kept and self.nbytes + nbytes > self.budget:
            self._kept.popitem(last=False)

    def keep(self, key: Hashable, prefix: KVCache) -> None:
        """Keep a prefix, as the one used last."""
        self._kept[key] = prefix

    @property
    def nbytes(self) -> int:
        """Return the bytes of all that is kept."""
        return sum(prefix.nbytes for prefix in self._kept.values())


@dataclass(slots=True)
class Counts:
    """Prompt tokens that were computed, to be compared with what the prompts have."""

    prefix_tokens: int = 0      # of shared prefixes
    suffix_tokens: int = 0      # of all else


class Prefill:
    """Runs the prompts of rows into a cache, a chunk at a time."""

    def __init__(
        self, model: TextModel, prompt: Prompt, limits: Limits, prefixes: PrefixCache, counts: Counts,
    ) -> None:
        """Take a prompt that all rows share; with no bytes for prefixes, each row is run from its first token on."""
        self._model, self._prompt, self._limits = model, prompt, limits
        self._prefixes, self._counts = prefixes, counts
        self._positions = position_ids(len(prompt.token_ids), prompt.spans, prompt.grid)      # [3, tokens]
        self._shared = prompt.spans[0][1] if limits.prefix_bytes else 0                       # tokens
        rest = len(prompt.token_ids) - self._shared
        self.rows = max(1, limits.chunk_tokens // _even(rest, PIECE))                         # of a chunk
        self.next_position = int(self._positions.max()) + 1      # the first decode step's
        prefixes.budget = limits.prefix_bytes
        prefixes.make_room(0)

    def run(self, rows: Sequence[Row], cache: KVCache, place: int) -> Chunks[mx.array]:
        """Run at most `self.rows` rows into their places from `place` on.

        Yields no tokens after each chunk; returns the last hidden states [rows, hidden].
        """
        if self._shared:
            for at, row in enumerate(rows, start=place):
                cache.begin_with((yield from self._prefix(row)), at)
                cache.eval()      # or the copy to come would keep a prefix that the next one puts out
        places = slice(place, place + len(rows))
        *firsts, last = self._pieces(self._shared, len(self._prompt.token_ids), len(rows))
        for piece in firsts:
            self._model.remember(*self._inputs(rows, cache, places, *piece))
            cache.eval()
            yield []
        ends = self._model.prefill(*self._inputs(rows, cache, places, *last))
        mx.eval(ends)      # before the next chunk is scheduled: the cache is written in place
        self._counts.suffix_tokens += len(rows) * (len(self._prompt.token_ids) - self._shared)
        yield []
        return ends

    def _prefix(self, row: Row) -> Chunks[KVCache]:
        """Return the prefix of a row; one that is not kept is made, alone: the same bits, whatever was before."""
        key = (self._prompt.token_ids[: self._shared], self._prompt.grid, row.image(self._prompt.images[0]).key)
        kept = self._prefixes.get(key)
        if kept is not None:
            return kept
        prefix = KVCache(self._model.config, 1, self._shared, self._model.dtype)
        self._prefixes.make_room(prefix.nbytes)
        for piece in self._pieces(0, self._shared, 1):
            self._model.remember(*self._inputs([row], prefix, slice(0, 1), *piece))
            prefix.eval()
            yield []
        self._counts.prefix_tokens += self._shared
        self._prefixes.keep(key, prefix)
        return prefix

    def _pieces(self, start: int, end: int, rows: int) -> list[tuple[int, int]]:
        """Cut the tokens [start, end) of some prompts into the fewest pieces of equal size that fit into a chunk."""
        size = _even(end - start, max(1, self._limits.chunk_tokens // rows))
        return [(at, min(at + size, end)) for at in range(start, end, size)]

    def _inputs(
        self, rows: Sequence[Row], cache: KVCache, places: slice, start: int, end: int,
    ) -> tuple[mx.array, Rotate, Window]:
        """Return what the model takes for the tokens [start, end) of some rows."""
        embedded = embed_prompt(self._model, self._prompt, rows, start, end)
        rotate = make_prompt_rotation(self._model.config, self._positions[:, start:end])
        return embedded, rotate, cache.window(places, start)


def _even(length: int, most: int) -> int:
    """Return the size of pieces that are as few as those of the largest size, and about equal."""
    return ceil(length / ceil(length / most))


def embed_prompt(model: TextModel, prompt: Prompt, rows: Sequence[Row], start: int, end: int) -> mx.array:
    """Embed the tokens [start, end) of a prompt with each row's images in their places, in the model's type."""
    text = model.embed(mx.array(prompt.token_ids[start:end]))      # [tokens, hidden]
    text = mx.broadcast_to(text, (len(rows), *text.shape))         # [rows, tokens, hidden]
    parts, done = [], start
    for which, (first, behind) in zip(prompt.images, prompt.spans, strict=True):
        a, b = max(first, start), min(behind, end)
        if a < b:
            images = np.stack([row.image(which).embeddings[a - first : b - first] for row in rows])
            parts += [text[:, done - start : a - start], mx.array(images).astype(text.dtype)]      # [rows, ., hidden]
            done = b
    return mx.concatenate([*parts, text[:, done - start :]], axis=1)      # [rows, end - start, hidden]
