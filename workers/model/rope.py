"""Rotary positions of the text decoder: where each token stands, and what that turns. It knows no weights."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from store.checkpoint import TextConfig

Rotate = Callable[[mx.array], mx.array]      # queries or keys [rows, heads, tokens, head_dim], rotated


def position_ids(token_count: int, spans: Sequence[tuple[int, int]], grid: tuple[int, int]) -> NDArray[np.int32]:
    """Return the positions [3, tokens] on the axes t, h and w of a prompt with an image at each span [start, end).

    Text advances all three by one a token. An image of `grid` merged rows and columns stays at one t, spreads its
    rows over h and its columns over w, and moves what follows by the longer side only.
    """
    ids = np.empty((3, token_count), np.int32)
    rows, cols = np.indices(grid).reshape(2, -1)             # [rows * cols] each
    cells = np.stack([np.zeros_like(rows), rows, cols])      # [3, rows * cols]
    position = token = 0
    for start, end in spans:
        ids[:, token:start] = position + np.arange(start - token)
        position += start - token
        ids[:, start:end] = position + cells
        position += max(grid)
        token = end
    ids[:, token:] = position + np.arange(token_count - token)
    return ids


def make_prompt_rotation(config: TextConfig, ids: NDArray[np.int32]) -> Rotate:
    """Make the rotation of tokens at positions [3, tokens], or of the last of them, the same for all rows."""
    dims = config.rotary_dims
    frequencies = config.rope_theta ** -(np.arange(0, dims, 2) / dims)      # [dims / 2]
    axes = np.repeat(np.arange(3), config.mrope_section)                    # [dims / 2]: which axis turns a frequency
    angles = ids[axes].T * frequencies                                      # [tokens, dims / 2], float64
    all_cos, all_sin = mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))

    def rotate(x: mx.array) -> mx.array:
        cos, sin = all_cos[-x.shape[2]:], all_sin[-x.shape[2]:]
        even, odd = x[..., 0:dims:2], x[..., 1:dims:2]       # pairs (2i, 2i + 1): "traditional", not NeoX
        turned = mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)      # float32
        turned = turned.flatten(-2).astype(x.dtype)          # [rows, heads, tokens, dims]
        return mx.concatenate([turned, x[..., dims:]], axis=-1)

    return rotate


def make_step_rotation(config: TextConfig, positions: mx.array) -> Rotate:
    """Make the rotation of text from each row's position [rows] on; there t, h and w are equal, as at every step."""

    def rotate(x: mx.array) -> mx.array:
        return mx.fast.rope(
            x, config.rotary_dims, traditional=True, base=config.rope_theta, scale=1.0, offset=positions)

    return rotate
