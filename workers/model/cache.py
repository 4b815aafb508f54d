"""The KV cache of rows side by side: one block a layer, allocated once and written in place. It knows no model."""

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx

from store.checkpoint import TextConfig


class KVCache:
    """Keys and values of rows, a block [rows, n_kv_heads, capacity, head_dim] each a layer.

    MLX writes into a block where no scheduled work still reads it, and copies the block where some does. So a chunk
    of the prefill is evaluated before the next is scheduled. Decode steps may overlap: MLX runs a bounded number of
    operations ahead, and with more layers than these span has read a block in one step before it comes to write it in
    the next. A model of a few layers may have blocks copied: small ones, and the result is the same.
    """

    def __init__(self, config: TextConfig, rows: int, capacity: int, dtype: mx.Dtype) -> None:
        """Allocate room for `capacity` tokens a row."""
        shape = (rows, config.n_kv_heads, capacity, config.head_dim)
        self.keys = [mx.zeros(shape, dtype) for _ in range(config.n_layers)]
        self.values = [mx.zeros(shape, dtype) for _ in range(config.n_layers)]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all blocks."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def _blocks(self) -> Iterable[mx.array]:
        return (*self.keys, *self.values)

    def window(self, rows: slice, offset: int, *, end: int | None = None, mask: mx.array | None = None) -> "Window":
        """Open some rows for tokens that come at `offset`; what is read ends behind them, or at `end`."""
        return Window(self, rows, offset, end, mask)

    def eval(self) -> None:
        """Compute what was written."""
        mx.eval(*self._blocks)

    def begin_with(self, prefix: "KVCache", row: int) -> None:
        """Copy the one row of another cache to the beginning of a row here."""
        for block, source in zip(self._blocks, prefix._blocks, strict=True):
            block[row : row + 1, :, : source.shape[2]] = source

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        # Apart first: a block whose own slice is the source would be copied whole.
        rows = [block[source : source + 1] + 0 for block in self._blocks]      # [1, n_kv_heads, capacity, head_dim]
        mx.eval(rows)
        for block, row in zip(self._blocks, rows, strict=True):
            block[target : target + 1] = row

    def clear(self, row: int) -> None:
        """Write zeros over a row."""
        for block in self._blocks:
            block[row : row + 1] = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Where one forward pass reads and writes: some rows of a cache, and a place among their tokens."""

    cache: KVCache
    rows: slice
    offset: int                  # tokens before those that come
    end: int | None              # tokens that are read, those that come included; None: up to them
    mask: mx.array | None        # [rows, 1, 1, end] bool: what each row may read of them; None: all, causally

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write a layer's keys and values [rows, n_kv_heads, tokens, head_dim] at the offset; return all to be read."""
        behind = self.offset + keys.shape[2]
        self.cache.keys[layer][self.rows, :, self.offset:behind] = keys
        self.cache.values[layer][self.rows, :, self.offset:behind] = values
        end = self.end or behind
        return (self.cache.keys[layer][self.rows, :, :end],          # [rows, n_kv_heads, end, head_dim]
                self.cache.values[layer][self.rows, :, :end])
