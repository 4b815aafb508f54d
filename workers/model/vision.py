"""The vision tower of GLM-4.6V: patches in, image embeddings out. It knows no files and no text."""

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from store.checkpoint import VisionConfig

Grid = tuple[int, int]      # rows and columns of patches, before the merge

CUBIC = -0.75      # the constant of torch's bicubic kernel
LAYER_NORM_EPS = 1e-5


class PatchEmbed(nn.Module):
    """The convolution of a patch with stride equal to its size: a product with its flattened content."""

    def __init__(self, config: VisionConfig) -> None:
        """Lay out the projection."""
        super().__init__()
        content = config.in_channels * config.temporal_patch_size * config.patch_size**2
        self.proj = nn.Linear(content, config.hidden_size, bias=True)


class Embeddings(nn.Module):
    """The learned table of positions, table_side x table_side."""

    def __init__(self, config: VisionConfig) -> None:
        """Lay out the table."""
        super().__init__()
        self.position_embedding = nn.Embedding(config.table_side**2, config.hidden_size)


class Attention(nn.Module):
    """Full attention within an image."""

    def __init__(self, config: VisionConfig) -> None:
        """Lay out the projections, without biases."""
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """Attend within x [images, patches, hidden]; cos and sin are [patches, head_dim], float32."""
        images, patches, _ = x.shape
        qkv = self.qkv(x).reshape(images, patches, 3, self.n_heads, -1)
        queries, keys, values = qkv.transpose(2, 0, 3, 1, 4)      # [images, n_heads, patches, head_dim] each
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        attended = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=queries.shape[-1] ** -0.5)
        return self.proj(attended.swapaxes(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        """Lay out the projections."""
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [images, tokens, hidden]."""
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        """Lay out the block under the names of the checkpoint."""
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm2 = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config)
        self.mlp = MLP(config.hidden_size, config.out_hidden_size)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """Transform x [images, patches, hidden]."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Merger(MLP):
    """From merged patches to the text decoder's width: projection, norm, GELU, then SwiGLU."""

    def __init__(self, config: VisionConfig) -> None:
        """Lay out the merger under the names of the checkpoint."""
        super().__init__(config.out_hidden_size, config.intermediate_size)
        self.proj = nn.Linear(config.out_hidden_size, config.out_hidden_size, bias=False)
        self.post_projection_norm = nn.LayerNorm(config.out_hidden_size, LAYER_NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [images, tokens, out_hidden]."""
        return super().__call__(nn.gelu(self.post_projection_norm(self.proj(x))))


class VisionModel(nn.Module):
    """The tower; its weights come from `load_vision_model`."""

    def __init__(self, config: VisionConfig) -> None:
        """Lay out the tower under the names of the checkpoint."""
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.embeddings = Embeddings(config)
        self.post_conv_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.blocks = [Block(config) for _ in range(config.depth)]
        self.post_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.downsample = nn.Linear(config.merge_size**2 * config.hidden_size, config.out_hidden_size, bias=True)
        self.merger = Merger(config)

    @property
    def dtype(self) -> mx.Dtype:
        """Return the type that the tower computes in: that of its weights."""
        return self.patch_embed.proj.weight.dtype

    def __call__(self, patches: mx.array, grid: Grid) -> mx.array:
        """Embed images of one size: patches [images, rows * cols, content] -> [images, tokens, out_hidden].

        `grid` is rows and columns of patches. They stand in the order of the merge cells, (rows / merge, cols / merge,
        merge, merge); the content of each is (channel, frame, row, col). No image sees another.
        """
        x = self.post_conv_layernorm(self.patch_embed.proj(patches.astype(self.dtype)))
        x = x + self._positions(grid).astype(x.dtype)        # [images, patches, hidden]
        cos, sin = rotation(self.config, grid)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.post_layernorm(x)
        x = mx.unflatten(x, 1, (-1, self.config.merge_size**2)).flatten(-2)      # [images, tokens, merge^2 * hidden]
        return self.merger(self.downsample(x))

    def _positions(self, grid: Grid) -> mx.array:
        """Sample the position table at the grid, bicubic; return [patches, hidden], float32, in merge order."""
        side, (rows, cols) = self.config.table_side, grid
        table = self.embeddings.position_embedding.weight.astype(mx.float32).reshape(side, side, -1)
        down, across = mx.array(cubic_weights(rows, side)), mx.array(cubic_weights(cols, side))
        sampled = mx.einsum("rs,stc,kt->rkc", down, table, across)      # [rows, cols, hidden]
        return sampled.reshape(rows * cols, -1)[mx.array(merge_order(grid, self.config.merge_size))]


def merge_order(grid: Grid, merge: int) -> NDArray[np.int64]:
    """Return the row-major index of each patch in merge order [patches]."""
    rows, cols = grid
    cells = np.arange(rows * cols).reshape(rows // merge, merge, cols // merge, merge)
    return cells.transpose(0, 2, 1, 3).reshape(-1)


def rotation(config: VisionConfig, grid: Grid) -> tuple[mx.array, mx.array]:
    """Return cos and sin [patches, head_dim] in merge order: row angles, then column angles, and both again."""
    quarter = config.hidden_size // config.n_heads // 4
    frequencies = config.rope_theta ** -(np.arange(quarter) / quarter)      # [head_dim / 4]
    places = np.indices(grid).reshape(2, -1)[:, merge_order(grid, config.merge_size)]      # [2, patches]
    angles = np.concatenate([np.outer(axis, frequencies) for axis in places] * 2, axis=-1)      # [patches, head_dim]
    return mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotate x [images, n_heads, patches, head_dim] in float32, pairs (i, i + head_dim / 2)."""
    first, second = x.split(2, axis=-1)
    turned = x * cos + mx.concatenate([-second, first], axis=-1) * sin
    return turned.astype(x.dtype)


def cubic_weights(count: int, side: int) -> NDArray[np.float32]:
    """Return the weights [count, side] that sample a line of `side` cells at `count` evenly spaced places.

    As torch's grid_sample: bicubic, align_corners=False, border padding (a tap outside counts for the border cell).
    """
    places = (np.arange(count) + 0.5) / count * side - 0.5      # [count], in cells
    base = np.floor(places).astype(int)
    weights = np.zeros((count, side))
    for tap in (-1, 0, 1, 2):
        cell = np.clip(base + tap, 0, side - 1)
        np.add.at(weights, (np.arange(count), cell), cubic(places - (base + tap)))
    return weights.astype(np.float32)


def cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic convolution kernel (Keys, 1981) at distances below 2."""
    d = np.abs(distance)
    near = ((CUBIC + 2) * d - (CUBIC + 3)) * d**2 + 1
    far = ((d - 5) * d + 8) * d * CUBIC - 4 * CUBIC
    return np.where(d <= 1, near, far)
