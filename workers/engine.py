"""The engine: image embeddings and token ids in, tokens out. It knows no queue, no SQL and no paths."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from jobs.prompt import Prompt
from store.records import FinishReason, Sampling
from workers.model.cache import KVCache
from workers.model.rope import Rotate, make_prompt_rotation, make_step_rotation, position_ids
from workers.model.text import TextModel
from workers.sampling import make_sampler, mark_seen, mark_token, row_keys, split_keys

PREFILL_ROWS = 8      # rows of one prefill piece: bounds the memory of activations, and the time until a stop is heard


@dataclass(frozen=True, slots=True)
class Row:
    """One pair to compare; `key` is the caller's name for it."""

    key: int
    image_a: NDArray[np.float16]      # [tokens, hidden]
    image_b: NDArray[np.float16]
    seed: int                         # below 2**53


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a row; the last one has the reason why the row ended."""

    key: int
    id: int
    finish_reason: FinishReason | None


Steps = Generator[list[Token], None, None]


class Engine:
    """Generates for slices of rows that share a prompt, with one model."""

    def __init__(self, model: TextModel, eos_token_ids: Iterable[int], *, prefill_rows: int = PREFILL_ROWS) -> None:
        """Take a loaded model, and the tokens that end a row."""
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.prefill_rows = prefill_rows

    def generate(self, prompt: Prompt, rows: Sequence[Row], sampling: Sampling) -> Steps:
        """Yield the tokens of one slice: a list a decode step, and an empty list after each piece of the prefill.

        A row's tokens depend on its images, its seed and the settings, not on the rows beside it. Closing the
        generator between two lists stops the work.
        """
        if not rows:
            return
        positions = position_ids(len(prompt.token_ids), prompt.spans, prompt.grid)      # [3, tokens]
        cache = KVCache(self.model.config, len(rows), len(prompt.token_ids) + sampling.max_tokens, self.model.dtype)
        hidden: list[mx.array] = []
        for last in self._prefill(prompt, rows, make_prompt_rotation(self.model.config, positions), cache):
            hidden.append(last)
            yield []
        decoder = _Decoder(self.model, prompt, rows, sampling, cache, int(positions.max()) + 1)
        yield from self._read(rows, decoder.run(mx.concatenate(hidden), sampling.max_tokens), sampling.max_tokens)

    def _prefill(self, prompt: Prompt, rows: Sequence[Row], rotate: Rotate, cache: KVCache) -> Iterator[mx.array]:
        """Run the prompts into the cache, some rows at a time; yield their hidden states at the end [n, hidden]."""
        for start in range(0, len(rows), self.prefill_rows):
            piece = slice(start, min(start + self.prefill_rows, len(rows)))
            hidden = self.model(embed_prompt(self.model, prompt, rows[piece]), rotate, cache.window(piece, 0))[:, -1]
            mx.eval(hidden)      # before the next piece is scheduled: the cache is written in place
            yield hidden

    def _read(self, rows: Sequence[Row], steps: Iterator[mx.array], max_tokens: int) -> Steps:
        """Read steps and yield the tokens of the rows that have not ended before, until all have."""
        running = list(range(len(rows)))
        for count, tokens in enumerate(steps, start=1):
            ids = np.asarray(tokens).tolist()      # waits for the device
            step = [Token(rows[i].key, ids[i], self._reason(ids[i], count == max_tokens)) for i in running]
            running = [i for i, token in zip(running, step, strict=True) if token.finish_reason is None]
            yield step
            if not running:
                return

    def _reason(self, token_id: int, is_last: bool) -> FinishReason | None:
        if token_id in self.eos_token_ids:
            return "stop"
        return "length" if is_last else None


def embed_prompt(model: TextModel, prompt: Prompt, rows: Sequence[Row]) -> mx.array:
    """Embed a prompt with each row's images in their places, in the model's type; return [rows, tokens, hidden]."""
    text = model.embed(mx.array(prompt.token_ids))                 # [tokens, hidden]
    text = mx.broadcast_to(text, (len(rows), *text.shape))         # [rows, tokens, hidden]
    parts, done = [], 0
    for image, (start, end) in zip(prompt.images, prompt.spans, strict=True):
        embeddings = np.stack([row.image_a if image == "a" else row.image_b for row in rows])
        parts += [text[:, done:start], mx.array(embeddings).astype(text.dtype)]      # [rows, end - start, hidden]
        done = end
    return mx.concatenate([*parts, text[:, done:]], axis=1)


class _Decoder:
    """What a slice carries from one decode step to the next: its cache, its keys, the tokens that it has seen."""

    def __init__(
        self, model: TextModel, prompt: Prompt, rows: Sequence[Row], sampling: Sampling, cache: KVCache, position: int,
    ) -> None:
        """Stand behind the prompt; `position` is the first decode step's, which images move less than tokens."""
        vocab = model.config.vocab_size
        self._model, self._cache = model, cache
        self._position, self._offset = position, len(prompt.token_ids)
        self._sampler = make_sampler(sampling)
        self._keys = row_keys([row.seed for row in rows]) if sampling.do_sample else None
        self._seen = mark_seen(prompt.token_ids, len(rows), vocab) if sampling.repetition_penalty != 1 else None

    def run(self, hidden: mx.array, max_tokens: int) -> Iterator[mx.array]:
        """Yield the tokens [rows] of each step, lazy, from the prompts' last hidden states [rows, hidden] on.

        The step after the one yielded is scheduled already, from its token that is still to come: the device never
        waits for whoever reads. When all rows end early, that one step was in vain.
        """
        tokens = self._choose(hidden)
        mx.async_eval(tokens)
        for _ in range(max_tokens - 1):
            following = self._step(tokens)
            mx.async_eval(following)
            yield tokens
            tokens = following
        yield tokens

    def _choose(self, hidden: mx.array) -> mx.array:
        keys = None
        if self._keys is not None:
            self._keys, keys = split_keys(self._keys)
        tokens = self._sampler(self._model.logits(hidden), keys, self._seen)      # [rows]
        if self._seen is not None:
            self._seen = mark_token(self._seen, tokens)
        return tokens

    def _step(self, tokens: mx.array) -> mx.array:
        rotate = make_step_rotation(self._model.config, self._position)
        window = self._cache.window(slice(0, tokens.shape[0]), self._offset)
        hidden = self._model(self._model.embed(tokens[:, None]), rotate, window)      # [rows, 1, hidden]
        self._position += 1
        self._offset += 1
        return self._choose(hidden[:, -1])
