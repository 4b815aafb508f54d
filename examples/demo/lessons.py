"""What the decoder learns from: pairs of measured pictures, asked about and answered, as token ids. It knows no MLX."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from layout import END
from numpy.typing import NDArray
from properties import PROMPT, PROPERTIES, compare, describe, interleaved, question

from jobs.prompt import Prompt, build_prompt
from jobs.tokenizer import Tokenizer, load_tokenizer
from store.checkpoint import Checkpoint

NEAR = 0.3        # share of pairs that are alike in one property
NEARBY = 0.15     # of all pictures, in the order of that property: how far apart such a pair may be

Random = np.random.Generator
Spans = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch: rows of one layout."""

    pairs: NDArray[np.int64]          # [rows, 2], indices of pictures
    ids: NDArray[np.int32]            # [rows, tokens]: prompt, answer, END, then padding
    taught: NDArray[np.float32]       # [rows, tokens]: 1 where a token belongs to an answer
    spans: Spans                      # of the image blocks in ids
    grid: tuple[int, int]             # rows and columns of an image's tokens
    first: int                        # the earliest token that is taught


class Course:
    """Prompts of one kind and one layout, ready to be filled with pairs."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Tokenizer, *, asks: bool) -> None:
        """Take prompts whose images stand in the same places: one a property if it `asks`, else one in all."""
        self.prompts, self.tokenizer, self.asks = prompts, tokenizer, asks
        self.end = tokenizer.specials[END]

    def lesson(self, values: NDArray[np.float64], rows: int, rng: Random) -> Lesson:
        """Draw pairs of pictures measured as `values` [pictures, 5], and write prompts and answers."""
        pairs = draw_pairs(values, rows, rng)
        written = [self._write(values[a], values[b], rng) for a, b in pairs]
        width = max(len(prompt) + len(answer) for prompt, answer in written)
        ids = np.full((rows, width), self.end, np.int32)
        taught = np.zeros((rows, width), np.float32)
        for row, (prompt, answer) in enumerate(written):
            ids[row, : len(prompt) + len(answer)] = (*prompt, *answer)
            taught[row, len(prompt) : len(prompt) + len(answer)] = 1
        first = min(len(prompt) for prompt, _ in written)
        return Lesson(pairs, ids, taught, self.prompts[0].spans, self.prompts[0].grid, first)

    def _write(self, a: NDArray[np.float64], b: NDArray[np.float64], rng: Random) -> tuple[Sequence[int], list[int]]:
        """Return the token ids of a prompt and of its answer about images measured as a and b."""
        place = int(rng.integers(len(self.prompts)))
        answer = ("A" if a[place] > b[place] else "B") if self.asks else describe(compare(a, b))
        return self.prompts[place].token_ids, [*self.tokenizer.encode(answer), self.end]


def make_courses(checkpoint: Checkpoint) -> list[Course]:
    """Make the four courses: to ask and to compare, with the images before the text and within it."""
    tokenizer = load_tokenizer(checkpoint)
    cells = checkpoint.image.side // (checkpoint.image.patch_size * checkpoint.image.merge_size)
    questions = [question(property_) for property_ in PROPERTIES]

    def prompts(texts: list[str]) -> list[Prompt]:
        return [build_prompt(checkpoint, tokenizer, text, thinking=False, grid=(cells, cells)) for text in texts]

    return [
        Course(prompts(questions), tokenizer, asks=True),
        Course(prompts([PROMPT]), tokenizer, asks=False),
        Course(prompts(list(map(interleaved, questions))), tokenizer, asks=True),
        Course(prompts([interleaved(PROMPT)]), tokenizer, asks=False),
    ]


def draw_pairs(values: NDArray[np.float64], rows: int, rng: Random) -> NDArray[np.int64]:
    """Draw pairs [rows, 2] of different pictures, a share of them alike in one property."""
    count = len(values)
    first = rng.integers(count, size=rows)
    second = (first + rng.integers(1, count, size=rows)) % count
    order = values.argsort(axis=0)                                     # [pictures, 5]
    for row in np.flatnonzero(rng.random(rows) < NEAR):
        column = rng.integers(values.shape[1])
        place = int(rng.integers(count))
        other = place + int(rng.integers(1, max(2, int(NEARBY * count))))
        both = order[[place, other % count], column]
        first[row], second[row] = both if rng.random() < 0.5 else both[::-1]
    return np.stack([first, second], axis=-1)
