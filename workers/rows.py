"""What goes into the engine and what comes out: rows and their tokens."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.prompt import Image as Which
from store.records import FinishReason


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the model reads it."""

    key: Hashable                       # names the content: equal keys, equal embeddings
    embeddings: NDArray[np.float16]     # [tokens, hidden]


@dataclass(frozen=True, slots=True)
class Row:
    """One pair to compare; `key` is the caller's name for it."""

    key: int
    image_a: Image
    image_b: Image
    seed: int      # below 2**53

    def image(self, which: Which) -> Image:
        """Return one of the two by its letter."""
        return self.image_a if which == "a" else self.image_b


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a row; the last one has the reason why the row ended, or the error that ended it."""

    key: int
    id: int
    finish_reason: FinishReason | None
    error: str | None = None      # then `id` means nothing
