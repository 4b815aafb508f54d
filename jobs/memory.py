"""The memory plan: how many rows run side by side, from a checkpoint's headers, a prompt and a limit.

Arithmetic only. It plans what MLX holds; Python itself and the files that it maps are not in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.limits import Limits
from jobs.prompt import Prompt
from jobs.sizes import format_size
from store.checkpoint import Checkpoint, Tensor, TextConfig
from store.errors import SettingsError
from store.records import Sampling
from store.weights import FLOATS, hf_name, text_tensors

FLOAT32 = 4      # bytes
ITEM = {"F32": 4, "BF16": 2, "F16": 2, "U32": 4, "U8": 1}      # bytes of a value; loading refuses other types
BUFFERS = ".inv_freq"      # stored by older exports, and never loaded

# How many arrays of a kind are in memory at once; found with mx.get_peak_memory() on the CPU, and rounded up.
LAYERS = 2                 # whose activations are there: MLX schedules ahead of the device
SCORES = 2                 # attention scores [heads, queries, keys] of the unfused kernel: before and after the softmax
LOGITS = 2                 # as the model gives them, and in float32
LOGITS_SAMPLED = 2         # more, scaled by the temperature, and the noise that draws
LOGITS_PENALIZED = 3       # more, both products of the penalty, and the masks of seen tokens
LOGITS_FILTERED = 14       # more, where top-k or top-p go over the whole vocabulary, in 32 passes scheduled ahead
CANDIDATES_PAY = 64        # where k times this is within the vocabulary, sorting candidates takes a quarter or less

# What is shared out. MLX on Metal begins to free what it keeps at 95 % of the recommended working set.
KEPT = 20                  # 1 / KEPT of the limit is for freed buffers that MLX keeps for the next step
PREFIX_SHARE = 8           # of what is spare, 1 / PREFIX_SHARE goes to more prefixes: they save time, rows save more
CHUNK_SHARE = 4            # and 1 / CHUNK_SHARE to a longer prefill chunk; the rest is for rows

# A stop is heard between two chunks. 5 s at 2 TFLOP/s; the slowest of these Macs, an M1, has a peak of 2.6.
# A fixed number and not a measured one: the same chunks each time give the same bits.
CHUNK_FLOPS = 10e12
CHUNK_TOKENS = 256, 640    # the least and the most by that; beyond, products gain little, and on a CPU a layer's
                           # activations outgrow its caches: 2,048 took 1.3 times as long there (middle checkpoint)
LEAST_CHUNK = 64           # tokens, where memory is short: fewer, and the weights are read for little work

LARGEST_ARRAY = 2**31 - 1  # values: many kernels count them in 32 bits
MOST_BUFFERS = 250_000     # of the 499,000 that Metal gives a process: what prefixes may take, two a layer each


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the arithmetic needs to know of a checkpoint."""

    config: TextConfig
    weights: int      # bytes in memory
    item: int         # bytes of a value in the type that it computes in

    @property
    def kv_token(self) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.config.n_layers * self.config.n_kv_heads * self.config.head_dim * self.item

    def activations(self, keys: int) -> int:
        """Return the bytes that one token takes on its way through the layers, attending to so many keys.

        The sum over a layer, or its attention with scores written out, whichever is more. Fused kernels write no
        scores; a plan takes the larger.
        """
        c = self.config
        attention = 8 * c.hidden_size + 2 * c.n_heads * c.head_dim + 4 * c.n_kv_heads * c.head_dim
        scores = SCORES * c.n_heads * keys * FLOAT32
        return LAYERS * (attention * self.item + max(scores, 5 * c.intermediate_size * self.item))


@dataclass(frozen=True, slots=True)
class Demand:
    """What the arithmetic needs to know of a run."""

    prompt_tokens: int
    prefix_tokens: int              # of them, up to and including the first image
    sampling: Sampling
    batch_size: int | None = None   # pairs of a job; a slice has no more rows
    images: int | None = None       # first images there can be; more prefixes are of no use


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run asks of the memory, in bytes."""

    decoder: Decoder
    demand: Demand

    @property
    def prefix(self) -> int:
        """Return a prefix's: its keys and values."""
        return self.demand.prefix_tokens * self.decoder.kv_token

    @property
    def kv_row(self) -> int:
        """Return a row's keys and values, of prompt and answer."""
        return self._capacity * self.decoder.kv_token

    @property
    def row(self) -> int:
        """Return all of a row's: keys and values, a decode step's activations, and what choosing a token takes."""
        vocab = self.decoder.config.vocab_size
        logits = _logits_copies(self.demand.sampling, vocab) * vocab * FLOAT32
        return self.kv_row + logits + self.decoder.activations(self._capacity)

    @property
    def token(self) -> int:
        """Return the activations of one token of a prefill chunk."""
        return self.decoder.activations(self.demand.prompt_tokens)

    @property
    def least(self) -> int:
        """Return what one row needs: a prefix, the shortest chunk, the row, and room to move it."""
        return self.decoder.weights + self.prefix + LEAST_CHUNK * self.token + self.row + self.kv_row

    @property
    def least_limit(self) -> int:
        """Return the smallest limit that one row fits in."""
        return -(-self.least * KEPT // (KEPT - 1))

    @property
    def most_chunk(self) -> int:
        """Return the tokens of the longest chunk that is of use: no job has more."""
        tokens, job = most_chunk_tokens(self.decoder.config), self.demand.batch_size
        return max(min(tokens, job * self.demand.prompt_tokens) if job else tokens, LEAST_CHUNK)

    @property
    def most_rows(self) -> int:
        """Return the rows whose largest array, a layer's keys or the logits, has values that 32 bits can count."""
        c = self.decoder.config
        return max(LARGEST_ARRAY // max(c.n_kv_heads * c.head_dim * self._capacity, c.vocab_size), 1)

    @property
    def most_prefixes(self) -> int:
        """Return the prefixes of use beside the one at work: of other images, in buffers that the device has."""
        buffers = MOST_BUFFERS // (2 * self.decoder.config.n_layers)
        return buffers if self.demand.images is None else min(buffers, max(self.demand.images - 1, 0))

    @property
    def _capacity(self) -> int:
        return self.demand.prompt_tokens + self.demand.sampling.max_tokens      # of a row


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What goes where, in bytes."""

    limit: int
    weights: int
    prefix: int              # one prefix
    prefix_cache: int        # all that are kept
    chunk: int               # activations of a prefill chunk
    chunk_tokens: int
    row: int                 # KV cache, logits and activations of one row
    moved: int               # a row's KV cache once more, while it moves into another's place
    fitting: int             # rows that fit side by side
    batch_size: int | None

    @property
    def rows(self) -> int:
        """Return the rows of a slice."""
        return min(self.fitting, self.batch_size or self.fitting)

    @property
    def prefixes(self) -> int:
        """Return how many prefixes are kept."""
        return self.prefix_cache // self.prefix

    @property
    def limits(self) -> Limits:
        """Return what the engine may hold."""
        return Limits(rows=self.rows, chunk_tokens=self.chunk_tokens, prefix_bytes=self.prefix_cache)

    @property
    def reserve(self) -> int:
        """Return what is planned beyond use: freed buffers that MLX keeps, no more than it is given to free."""
        return self.moved + min(self.limit // KEPT, self.chunk + self.rows * self.row)

    @property
    def total(self) -> int:
        """Return all that is planned; it is within the limit."""
        return self.peak(self.rows) + self.reserve

    def peak(self, rows: int) -> int:
        """Return the most bytes in use with so many rows."""
        return self.weights + self.prefix_cache + self.chunk + rows * self.row


def plan_memory(
    checkpoint: Checkpoint, prompt: Prompt, sampling: Sampling, limit: int, *, batch_size: int | None = None,
    images: int | None = None,
) -> MemoryPlan:
    """Plan a run's memory within a limit in bytes; raise SettingsError where not even one row fits.

    The same values give the same plan, a larger limit no fewer rows. A job has `batch_size` pairs and the run at most
    so many `images`, where they are known: rows and prefixes beyond that would be of no use.
    """
    demand = Demand(len(prompt.token_ids), prompt.spans[0][1], sampling, batch_size, images)
    return share_out(Needs(read_decoder(checkpoint), demand), limit)


def read_decoder(checkpoint: Checkpoint) -> Decoder:
    """Read what a checkpoint's text decoder weighs from the headers of its files; the vision tower is never loaded.

    Floating tensors are loaded in the one type that most of their values have, packed ones as they are.
    """
    tensors = _text_tensors(checkpoint)
    sizes = dict.fromkeys(FLOATS, 0)
    for tensor in tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += math.prod(tensor.shape)
    item = ITEM[max(sizes, key=lambda dtype: sizes[dtype])]
    weights = sum(math.prod(tensor.shape) * (item if tensor.dtype in FLOATS else ITEM.get(tensor.dtype, 8))
                  for tensor in tensors.values())
    return Decoder(checkpoint.text, weights, item)


def _text_tensors(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    parts = ("model.language_model.",) if checkpoint.text.tie_word_embeddings else ("model.language_model.", "lm_head.")
    return {name: tensor for name, tensor in checkpoint.tensors.items()
            if hf_name(name).startswith(parts) and not name.endswith(BUFFERS)}


def share_out(needs: Needs, limit: int) -> MemoryPlan:
    """Share a limit out: first what one row needs, then of the rest some to prefixes and chunk, most to rows."""
    spare = limit - limit // KEPT - needs.least
    if spare < 0:
        raise _too_little(needs, limit)
    prefixes = min(spare // PREFIX_SHARE, needs.most_prefixes * needs.prefix)      # more than the one in use
    longer = min(spare // CHUNK_SHARE, (needs.most_chunk - LEAST_CHUNK) * needs.token)
    fitting = 1 + (spare - prefixes - longer) // needs.row
    chunk_tokens = LEAST_CHUNK + longer // needs.token
    return MemoryPlan(
        limit=limit, weights=needs.decoder.weights, prefix=needs.prefix, prefix_cache=needs.prefix + prefixes,
        chunk=chunk_tokens * needs.token, chunk_tokens=chunk_tokens, row=needs.row, moved=needs.kv_row,
        fitting=min(fitting, needs.most_rows), batch_size=needs.demand.batch_size,
    )


def candidates_pay(top_k: int, vocab: int) -> bool:
    """Say whether top-k looks at candidates only, and not at the whole vocabulary."""
    return 0 < top_k * CANDIDATES_PAY <= vocab


def _logits_copies(sampling: Sampling, vocab: int) -> int:
    """Count the arrays [vocab] in float32 that choosing a row's next token takes."""
    copies = LOGITS + LOGITS_PENALIZED * (sampling.repetition_penalty != 1)
    if not sampling.do_sample:
        return copies
    candidates = candidates_pay(sampling.top_k, vocab)
    filtered = 0 < sampling.top_k < vocab or sampling.top_p < 1
    return copies + LOGITS_SAMPLED + LOGITS_FILTERED * (filtered and not candidates)


def most_chunk_tokens(config: TextConfig) -> int:
    """Return the tokens of a prefill chunk that computes for CHUNK_FLOPS: two for each weight of the layers.

    Chunked prefill is Sarathi's (2023); there it lets others decode between two chunks, here a stop be heard.
    """
    weights = sum(math.prod(shape) for name, shape in text_tensors(config).items() if ".layers." in name)
    least, most = CHUNK_TOKENS
    return min(max(int(CHUNK_FLOPS / (2 * weights)), least), most)


def _too_little(needs: Needs, limit: int) -> SettingsError:
    weights = needs.decoder.weights
    mend = "take weights of fewer bits" if 2 * weights > needs.least else "ask for fewer --max-tokens"
    return SettingsError(
        f"memory: expected a limit of at least {format_size(needs.least_limit, up=True)} for one pair "
        f"({format_size(weights)} of it for the weights), found {format_size(limit)}; {mend}, or give a larger "
        "--memory-limit"
    )


def describe_plan(plan: MemoryPlan) -> list[str]:
    """Write a plan as lines of name, size and note."""
    prefixes = f"{plan.prefixes:,} of {format_size(plan.prefix)}"
    rows = f"{plan.rows:,} of {format_size(plan.row)}, {_slices(plan)}"
    table = (
        ("weights", plan.weights, "the text decoder"),
        ("prefix cache", plan.prefix_cache, prefixes),
        ("prefill chunk", plan.chunk, f"{plan.chunk_tokens:,} tokens"),
        ("rows", plan.rows * plan.row, rows),
        ("reserve", plan.reserve, "what MLX keeps for the next step"),
        ("in all", plan.total, f"of a limit of {format_size(plan.limit)}"),
    )
    return [f"{name:<13}  {format_size(size):>10}  {note}" for name, size, note in table]


def _slices(plan: MemoryPlan) -> str:
    """Say what the rows mean for a job."""
    if plan.batch_size is None:
        return "side by side"
    if plan.fitting < plan.batch_size:
        return f"side by side: a job of {plan.batch_size:,} pairs runs in slices of {plan.rows:,}"
    return f"a whole job side by side; {plan.fitting:,} would fit"
