"""The reference case in tests/data/small: a tiny checkpoint, what transformers computed from it, and changed copies."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from conftest import SMALL, WEIGHTS
from numpy.typing import NDArray

from jobs.limits import Limits
from jobs.prompt import Prompt, build_prompt
from jobs.tokenizer import load_tokenizer
from store.checkpoint import open_checkpoint
from store.records import FinishReason, Sampling
from workers.engine import Engine, Steps
from workers.model.load import load_text_model
from workers.rows import Image, Row

EXPECTED: dict[str, Any] = json.loads((SMALL / "expected.json").read_text())
PAIRS: list[list[int]] = EXPECTED["pairs"]
CASES = (0, 1)               # the two prompts: images first; interleaved with text
GRID = (16, 16)              # merged rows and columns of an image
LIMITS = Limits(rows=64, chunk_tokens=4096, prefix_bytes=2**30)
GREEDY = Sampling(do_sample=False, max_tokens=EXPECTED["max_tokens"])


@cache
def arrays() -> Mapping[str, NDArray[Any]]:
    """Read what transformers computed: embeddings, position_ids_i, last_logits_i."""
    with np.load(SMALL / "expected.npz") as file:
        return dict(file)


def embeddings() -> NDArray[np.float16]:
    """Return the images' embeddings [images, tokens, hidden] as embeddings.bin keeps them."""
    half: NDArray[np.float16] = arrays()["embeddings"].astype(np.float16)
    return half


@cache
def make_engine(weights: Path = WEIGHTS) -> Engine:
    """Load the text model of a checkpoint into an engine; the same one for the same checkpoint."""
    checkpoint = open_checkpoint(weights)
    return Engine(load_text_model(checkpoint), checkpoint.eos_token_ids)


def make_prompt(text: str) -> Prompt:
    """Build a prompt with the reference's tokenizer and template."""
    checkpoint = open_checkpoint(WEIGHTS)
    return build_prompt(checkpoint, load_tokenizer(checkpoint), text, thinking=False, grid=GRID)


def reference_prompt(case: int) -> Prompt:
    """Build one of the two prompts that transformers answered."""
    return make_prompt(EXPECTED["prompts"][case]["prompt"])


def make_rows(pairs: Sequence[Sequence[int]] = PAIRS) -> list[Row]:
    """Make a row for each pair, with key and seed by its place."""
    images = [Image(("reference", index), half) for index, half in enumerate(embeddings())]
    return [Row(place, images[a], images[b], seed=1000 + place) for place, (a, b) in enumerate(pairs)]


@dataclass(frozen=True, slots=True)
class Generated:
    """All tokens of a row, the ending one included."""

    key: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


def collect(steps: Steps) -> Generator[Generated, None, None]:
    """Gather the tokens of each row and yield it when it has ended; closing stops the work."""
    tokens: dict[int, list[int]] = defaultdict(list)
    with closing(steps):
        for step in steps:
            for token in step:
                tokens[token.key].append(token.id)
                if token.finish_reason is not None:
                    yield Generated(token.key, tuple(tokens.pop(token.key)), token.finish_reason)


def generate(
    engine: Engine, prompt: Prompt, rows: Iterable[Row], sampling: Sampling, limits: Limits = LIMITS,
) -> list[Generated]:
    """Generate all rows; return them in the order of their keys."""
    return sorted(collect(engine.generate(prompt, rows, sampling, limits)), key=lambda generated: generated.key)


def expected_rows(case: int) -> list[Generated]:
    """Return what transformers generated greedily for each pair."""
    prompt = EXPECTED["prompts"][case]
    both = zip(prompt["greedy_token_ids"], prompt["finish_reason"], strict=True)
    return [Generated(place, tuple(ids), reason) for place, (ids, reason) in enumerate(both)]


def prompt_embeddings(engine: Engine, prompt: Prompt, pairs: Sequence[Sequence[int]]) -> mx.array:
    """Embed a prompt for pairs, written apart from the engine; return [pairs, tokens, hidden]."""
    text = np.array(engine.model.embed(mx.array(prompt.token_ids)).astype(mx.float32))
    whole = np.repeat(text[None], len(pairs), axis=0)
    for row, (a, b) in enumerate(pairs):
        for image, (start, end) in zip(prompt.images, prompt.spans, strict=True):
            whole[row, start:end] = embeddings()[a if image == "a" else b]
    return mx.array(whole).astype(engine.model.dtype)


def read_weights(folder: Path = WEIGHTS) -> dict[str, mx.array]:
    """Read the tensors of a checkpoint's one file."""
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    return tensors


def copy_checkpoint(
    folder: Path, *, weights: Mapping[str, mx.array] | None = None,
    edit: Callable[[dict[str, Any]], None] = lambda config: None,
) -> Path:
    """Copy the reference's checkpoint with other tensors, or with config.json edited."""
    shutil.copytree(WEIGHTS, folder)
    if weights is not None:
        mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
