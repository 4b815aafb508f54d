"""The KV cache of a slice: one block a layer, allocated once and written in place. It knows no model and no prompt."""

from dataclasses import dataclass

import mlx.core as mx

from store.checkpoint import TextConfig


class KVCache:
    """Keys and values of a slice's rows, a block [rows, n_kv_heads, capacity, head_dim] each a layer.

    MLX writes into a block where no scheduled work still reads it, and copies the block where some does. So a piece
    of the prefill is evaluated before the next is scheduled. Decode steps may overlap: MLX runs 10 tasks ahead at
    most, and has read a block in one step long before it comes to write it in the next.
    """

    def __init__(self, config: TextConfig, rows: int, capacity: int, dtype: mx.Dtype) -> None:
        """Allocate room for `capacity` tokens a row."""
        shape = (rows, config.n_kv_heads, capacity, config.head_dim)
        self.keys = [mx.zeros(shape, dtype) for _ in range(config.n_layers)]
        self.values = [mx.zeros(shape, dtype) for _ in range(config.n_layers)]

    def window(self, rows: slice, offset: int) -> "Window":
        """Open some rows for tokens that come at `offset`; what stands before it is theirs already."""
        return Window(self, rows, offset)


@dataclass(frozen=True, slots=True)
class Window:
    """Where one forward pass reads and writes: some rows of a cache, and the tokens that they hold already."""

    cache: KVCache
    rows: slice
    offset: int      # tokens

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write a layer's keys and values [rows, n_kv_heads, tokens, head_dim] at the offset; return all up to them."""
        end = self.offset + keys.shape[2]
        self.cache.keys[layer][self.rows, :, self.offset:end] = keys
        self.cache.values[layer][self.rows, :, self.offset:end] = values
        return (self.cache.keys[layer][self.rows, :, :end],          # [rows, n_kv_heads, end, head_dim]
                self.cache.values[layer][self.rows, :, :end])
