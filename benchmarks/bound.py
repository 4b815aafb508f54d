"""The counted bound: the least work that a list of pairs asks for, over the rate at which a device multiplies matrices.

The work is counted in FLOP, two for each multiplication with its addition, and only where tokens need it:
- products with the decoder's matrices: q, k, v, o, gate, up, down of every layer, the head once for each new token;
- the two products of attention, for each query only with the keys that it may see;
- each first image once: everything up to and including it is computed once for all pairs that share it;
- in the last layer, only keys and values of all prompt tokens but the last, whose output alone is read;
- the last new token of a pair is chosen, never run.
Norms, rotations, softmax, sampling and moving data are not counted. So no program can do better on a device whose
rate was measured well, short of computing less than the model says.
"""

from dataclasses import dataclass

from store.checkpoint import TextConfig


@dataclass(frozen=True, slots=True)
class Decoder:
    """The work of one token in one layer, in FLOP."""

    config: TextConfig

    @property
    def keys_values(self) -> int:
        """Return the work of its key and value."""
        return 2 * self.config.hidden_size * 2 * self.config.n_kv_heads * self.config.head_dim

    @property
    def rest(self) -> int:
        """Return the work of its other products: q and o, gate, up and down."""
        c = self.config
        return 2 * c.hidden_size * (2 * c.n_heads * c.head_dim + 3 * c.intermediate_size)

    def attention(self, first: int, count: int) -> int:
        """Return the work of attention for `count` tokens of which the first sees `first` keys, each next one more."""
        seen = count * first + count * (count - 1) // 2
        return 4 * self.config.n_heads * self.config.head_dim * seen

    def run(self, first: int, count: int) -> int:
        """Return the work of so many tokens in one layer, of which the first sees `first` keys."""
        return count * (self.keys_values + self.rest) + self.attention(first, count)

    @property
    def head(self) -> int:
        """Return the work of the logits of one position."""
        return 2 * self.config.hidden_size * self.config.vocab_size


def count_flops(config: TextConfig, prefixes: int, pairs: int, prefix: int, suffix: int, new_tokens: int) -> int:
    """Count the least work for pairs over so many first images; `prefix`, `suffix` and `new_tokens` are in tokens."""
    decoder, inner = Decoder(config), config.n_layers - 1
    prompt = prefix + suffix
    for_prefix = inner * decoder.run(1, prefix) + prefix * decoder.keys_values
    last_layer = suffix * decoder.keys_values + decoder.rest + decoder.attention(prompt, 1)
    for_suffix = inner * decoder.run(prefix + 1, suffix) + last_layer
    decode = config.n_layers * decoder.run(prompt + 1, new_tokens - 1)
    return prefixes * for_prefix + pairs * (for_suffix + decode + new_tokens * decoder.head)


def share_computed(prefix: int, suffix: int, partners: int) -> float:
    """Return the share of prompt tokens that is computed when each first image has so many partners."""
    return (prefix + partners * suffix) / (partners * (prefix + suffix))
