"""The text decoder of GLM-4.6V: hidden states in, hidden states out. It knows no images, no sampling and no prompt."""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
from mlx import nn

from store.checkpoint import TextConfig
from workers.model.cache import Window
from workers.model.rope import Rotate


class Attention(nn.Module):
    """Causal attention with grouped key and value heads."""

    def __init__(self, config: TextConfig) -> None:
        """Lay out the projections; only queries, keys and values have biases."""
        super().__init__()
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=True)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, rotate: Rotate, cache: Window, layer: int, *, last: bool = False) -> mx.array:
        """Attend from x [rows, tokens, hidden], or from its last position, to everything in the cache and to x."""
        keys, values = self.remember(x, rotate, cache, layer)
        queries = rotate(self._heads(self.q_proj(x[:, -1:] if last else x)))      # [rows, n_heads, tokens, head_dim]
        attended = attend(queries, keys, values, cache.mask)
        return self.o_proj(attended.swapaxes(1, 2).flatten(-2))      # [rows, tokens or 1, hidden]

    def remember(self, x: mx.array, rotate: Rotate, cache: Window, layer: int) -> tuple[mx.array, mx.array]:
        """Write the keys and values of x into the cache; return all [rows, n_kv_heads, end, head_dim] each."""
        return cache.update(layer, rotate(self._heads(self.k_proj(x))), self._heads(self.v_proj(x)))

    def _heads(self, x: mx.array) -> mx.array:
        return mx.unflatten(x, -1, (-1, self.head_dim)).swapaxes(1, 2)


def attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None) -> mx.array:
    """Attend from queries [rows, n_heads, tokens, head_dim] to what a mask leaves; without one, causally.

    On the CPU MLX has no kernel for this and multiplies each head by itself. There all query heads of a key and value
    head are one product, for a single token: the same sums in half the time.
    """
    rows, n_heads, tokens, head_dim = queries.shape
    causal = "causal" if mask is None and tokens > 1 else mask
    if tokens == 1 and mx.default_device() == mx.Device(mx.cpu):
        queries = queries.reshape(rows, keys.shape[1], -1, head_dim)
    attended = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=head_dim**-0.5, mask=causal)
    return attended.reshape(rows, n_heads, tokens, head_dim)


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return SiLU(gate) * up, in float32 inside: one kernel, and on a CPU a third less than by way of a sigmoid."""
    wide = gate.astype(mx.float32)
    return (wide / (1 + mx.exp(-wide))).astype(gate.dtype) * up


class MLP(nn.Module):
    """SwiGLU; gate and up are one projection, gate first."""

    def __init__(self, config: TextConfig) -> None:
        """Lay out the projections, without biases."""
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [rows, tokens, hidden]."""
        gate, up = self.gate_up_proj(x).split(2, axis=-1)    # [rows, tokens, intermediate] each
        return self.down_proj(swiglu(gate, up))


class Layer(nn.Module):
    """Attention, then MLP, each between two norms."""

    def __init__(self, config: TextConfig) -> None:
        """Lay out the block under the names of the checkpoint."""
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_self_attn_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array, rotate: Rotate, cache: Window, layer: int, *, last: bool = False) -> mx.array:
        """Transform x [rows, tokens, hidden], or its last position only; all of it goes into the cache."""
        attended = self.self_attn(self.input_layernorm(x), rotate, cache, layer, last=last)
        x = (x[:, -1:] if last else x) + self.post_self_attn_layernorm(attended)
        out: mx.array = x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return out

    def remember(self, x: mx.array, rotate: Rotate, cache: Window, layer: int) -> None:
        """Write the keys and values of x [rows, tokens, hidden] into the cache, and compute nothing else."""
        self.self_attn.remember(self.input_layernorm(x), rotate, cache, layer)


class TextModel(nn.Module):
    """The decoder with its embedding of tokens and its head."""

    def __init__(self, config: TextConfig) -> None:
        """Lay out the decoder; its weights come from `load_text_model`."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config) for _ in range(config.n_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def dtype(self) -> mx.Dtype:
        """Return the type that the model computes in: that of its weights."""
        dtype: mx.Dtype = self.norm.weight.dtype
        return dtype

    def embed(self, token_ids: mx.array) -> mx.array:
        """Look up token ids of any shape [...]; return [..., hidden]."""
        hidden: mx.array = self.embed_tokens(token_ids)
        return hidden

    def __call__(self, hidden: mx.array, rotate: Rotate, cache: Window) -> mx.array:
        """Run embedded tokens [rows, tokens, hidden] through all layers, behind what the cache holds."""
        return self._run(self.layers, hidden, rotate, cache)

    def prefill(self, hidden: mx.array, rotate: Rotate, cache: Window) -> mx.array:
        """Run the end of prompts [rows, tokens, hidden] into the cache; return their last positions [rows, hidden].

        Of what the last layer makes of a prompt, only the last position is read; the others end as keys and values.
        """
        hidden = self._run(self.layers[:-1], hidden, rotate, cache)
        ends: mx.array = self.layers[-1](hidden, rotate, cache, len(self.layers) - 1, last=True)
        return ends[:, 0]

    def remember(self, hidden: mx.array, rotate: Rotate, cache: Window) -> None:
        """Run a part of prompts [rows, tokens, hidden] that others follow into the cache."""
        hidden = self._run(self.layers[:-1], hidden, rotate, cache)
        self.layers[-1].remember(hidden, rotate, cache, len(self.layers) - 1)

    def _run(self, layers: Sequence[Layer], hidden: mx.array, rotate: Rotate, cache: Window) -> mx.array:
        for index, layer in enumerate(layers):
            hidden = layer(hidden, rotate, cache, index)
        return hidden

    def logits(self, hidden: mx.array) -> mx.array:
        """Return the logits [rows, vocab] of one position's hidden states [rows, hidden]."""
        project = self.embed_tokens.as_linear if self.config.tie_word_embeddings else self.lm_head
        logits: mx.array = project(self.norm(hidden))
        return logits
