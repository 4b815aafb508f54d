"""Decode: rows side by side, a token each a step; where rows have ended, others join in their places."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from jobs.prompt import Prompt
from store.records import FinishReason, Sampling
from workers.model.cache import KVCache, Window
from workers.model.rope import make_step_rotation
from workers.model.text import TextModel
from workers.rows import Row, Token
from workers.sampling import make_sampler, mark_seen, mark_token, row_keys, split_keys

BROKEN = "the model's logits are infinite or not a number for this pair"
ALWAYS = np.iinfo(np.int32).max      # a step after all others: what was "written" then, every row may read


@dataclass(frozen=True, slots=True)
class Carried:
    """What rows carry on the device from one step to the next."""

    tokens: mx.array             # [rows]: chosen last, not yet run
    broken: mx.array             # [rows] bool: their logits were not finite, and the token means nothing
    joined: mx.array             # [rows] int32: the step that each began with
    keys: mx.array | None        # [rows, 2]; None when greedy
    seen: mx.array | None        # [rows, vocab] bool; None without a repetition penalty

    def take(self, places: Sequence[int]) -> "Carried":
        """Return the rows at some places, in that order."""
        order = mx.array(list(places))
        keys, seen = (None if own is None else own[order] for own in (self.keys, self.seen))
        return Carried(self.tokens[order], self.broken[order], self.joined[order], keys, seen)

    def join(self, others: "Carried") -> "Carried":
        """Return these rows and others behind them."""
        both = ((self.keys, others.keys), (self.seen, others.seen))
        keys, seen = (None if own is None or theirs is None else mx.concatenate([own, theirs]) for own, theirs in both)
        return Carried(mx.concatenate([self.tokens, others.tokens]),
                       mx.concatenate([self.broken, others.broken]), mx.concatenate([self.joined, others.joined]),
                       keys, seen)


@dataclass(slots=True)
class Running:
    """A row in its place of the batch; its images are in the cache."""

    key: int
    joined: int             # the step that it began with
    read: int = 0           # tokens
    ended: bool = False


class Batch:
    """The rows of a slice in decode, each in a place of the KV cache, live ones and some that have ended.

    The tokens of one step stand in one slot of the cache for all rows, and the slots are written in a ring: attention
    knows no order but that of the rotary positions. So a row that joins later needs no cache of its own shape, only a
    mask that hides the slots of the steps before it. Its price: once the ring is full, every step reads all of it,
    `max_tokens` however short the answers are.
    """

    def __init__(
        self, model: TextModel, eos_token_ids: Collection[int], prompt: Prompt, sampling: Sampling, places: int,
        position: int,
    ) -> None:
        """Allocate the cache; `position` is each row's first in decode, which images move less than tokens."""
        self._model, self._eos_token_ids, self._prompt, self._sampling = model, eos_token_ids, prompt, sampling
        self._places, self._position = places, position
        self._slots = max(sampling.max_tokens - 1, 1)      # the last token of a row is never run
        self._sampler = make_sampler(sampling)
        self.cache = KVCache(model.config, places, len(prompt.token_ids) + self._slots, model.dtype)
        self._running: list[Running] = []
        self._carried: Carried | None = None
        self._steps = 0      # scheduled so far

    @property
    def live(self) -> int:
        """Count the rows that have not ended."""
        return sum(not running.ended for running in self._running)

    @property
    def ended(self) -> int:
        """Count the rows that have ended and are still in their places."""
        return len(self._running) - self.live

    @property
    def free(self) -> int:
        """Count the places without a live row."""
        return self._places - self.live

    def close_up(self) -> int:
        """Let the rows that have ended leave, move others into their places; return the first place behind all."""
        if self._carried is not None and self.ended:
            mx.eval(self._carried.tokens)      # the step in hand still reads the cache
            sources = _sources([running.ended for running in self._running])
            for target, source in enumerate(sources):
                if source != target:
                    self.cache.move(source, target)
            self._clean(range(len(sources), len(self._running)), self._carried.broken)
            self._carried = self._carried.take(sources) if sources else None
            self._running = [self._running[source] for source in sources]
        return len(self._running)

    def join(self, rows: Sequence[Row], hidden: mx.array) -> None:
        """Let rows whose prompts are in the cache, behind all others, begin from their last hidden states."""
        if not self._running:
            self._steps = 0
        penalized, vocab = self._sampling.repetition_penalty != 1, self._model.config.vocab_size
        begun = self._choose(hidden, Carried(
            tokens=mx.zeros(len(rows), mx.uint32), broken=mx.zeros(len(rows), mx.bool_),      # chosen here
            joined=mx.full(len(rows), self._steps, mx.int32),
            keys=row_keys([row.seed for row in rows]) if self._sampling.do_sample else None,
            seen=mark_seen(self._prompt.token_ids, len(rows), vocab) if penalized else None,
        ))
        self._carried = begun if self._carried is None else self._carried.join(begun)
        mx.async_eval(self._carried.tokens, self._carried.broken)
        self._running += [Running(row.key, self._steps) for row in rows]

    def step(self) -> list[Token]:
        """Return the next token of each live row.

        The step after it is scheduled before these tokens are read, from tokens that are still to come: the device
        never waits for whoever reads. Rows that end here are computed once in vain.
        """
        carried = self._carried
        assert carried is not None
        if any(not running.ended and running.read + 1 < self._sampling.max_tokens for running in self._running):
            self._carried = self._run(carried)
            mx.async_eval(self._carried.tokens, self._carried.broken)
        ids = np.asarray(carried.tokens).tolist()      # waits for the device
        each = zip(self._running, ids, np.asarray(carried.broken).tolist(), strict=True)
        return [self._read(running, id_, broken) for running, id_, broken in each if not running.ended]

    def _clean(self, left: range, broken: mx.array) -> None:
        """Clear those of the places just left whose rows are broken as of the step in hand, live, ended or moved.

        Attention multiplies also what a mask hides, and 0 times NaN is NaN: the next row there would break with them.
        """
        is_broken = np.asarray(broken)
        for place in left:
            if is_broken[place]:
                self.cache.clear(place)

    def _read(self, running: Running, token_id: int, broken: bool) -> Token:
        running.read += 1
        if broken:
            running.ended = True
            return Token(running.key, token_id, None, error=BROKEN)
        reason: FinishReason | None = "length" if running.read == self._sampling.max_tokens else None
        reason = "stop" if token_id in self._eos_token_ids else reason
        running.ended = reason is not None
        return Token(running.key, token_id, reason)

    def _run(self, carried: Carried) -> Carried:
        """Run the tokens at hand and choose the next."""
        rotate = make_step_rotation(self._model.config, self._position + self._steps - carried.joined)
        hidden = self._model(self._model.embed(carried.tokens[:, None]), rotate, self._window(carried))
        self._steps += 1
        return self._choose(hidden[:, -1], carried)

    def _window(self, carried: Carried) -> Window:
        """Open the slot of this step; a mask hides what stands in others from before a row joined."""
        prompt, slots = len(self._prompt.token_ids), np.arange(min(self._steps + 1, self._slots))
        written = self._steps - (self._steps - slots) % self._slots      # [slots]: the step that wrote each one last
        mask = None
        if max(running.joined for running in self._running) > written.min():
            steps = np.concatenate([np.full(prompt, ALWAYS), written]).astype(np.int32)      # [tokens]
            mask = (mx.array(steps) >= carried.joined[:, None])[:, None, None]               # [rows, 1, 1, tokens]
        return self.cache.window(slice(0, len(self._running)), prompt + self._steps % self._slots,
                                 end=prompt + len(slots), mask=mask)

    def _choose(self, hidden: mx.array, carried: Carried) -> Carried:
        """Choose a token a row from the hidden states [rows, hidden] of the positions before them."""
        keys, seen, for_this = carried.keys, carried.seen, None
        if keys is not None:
            keys, for_this = split_keys(keys)
        logits = self._model.logits(hidden)                       # [rows, vocab]
        tokens = self._sampler(logits, for_this, seen)            # [rows]
        broken = ~mx.isfinite(logits).all(axis=-1)                # [rows]
        if seen is not None:
            seen = mark_token(seen, tokens)
        return Carried(tokens, broken, carried.joined, keys, seen)


def _sources(ended: Sequence[bool]) -> list[int]:
    """Return which place fills each of the first ones: live rows stay where they can, the last ones fill the gaps."""
    count = sum(not gone for gone in ended)
    last = [place for place, gone in enumerate(ended) if not gone and place >= count]
    return [last.pop() if gone else place for place, gone in enumerate(ended[:count])]
