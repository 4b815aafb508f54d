"""The files of the demo's checkpoint: GLM-4.6V's own layout at a small size, with a tokenizer for its answers.

The layout is that of `benchmarks/make_checkpoint.py`, which makes random checkpoints; here the vocabulary is made for
the grammar of `properties.py`, and the weights come from training.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))      # scripts, not packages

from make_checkpoint import FRAMES, MERGE, PATCH, SPECIAL, TEMPLATE, Preset, make_small_files, make_tensors
from pictures import SIDE
from properties import NAMES, PROMPT, PROPERTIES, Side, describe, interleaved, question

VOCAB = 366      # bytes, GLM's special tokens, and every word of the grammar as one token
SIZES = Preset(hidden=128, layers=3, heads=4, kv_heads=2, mlp=256, vocab=VOCAB,
               vision_hidden=64, vision_depth=2, vision_heads=2, merger=256, side=SIDE)
END = SPECIAL[0]      # the token that ends an answer
SIDES: tuple[Side, ...] = ("A", "B", "same")


def write_layout(folder: Path, seed: int) -> None:
    """Write a checkpoint that knows nothing yet: configuration, tokenizer, template and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in make_small_files(SIZES).items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE.rstrip("\n"), encoding="utf-8")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    write_weights(folder, make_tensors(SIZES, seed, speakable=list(range(VOCAB))))


def write_weights(folder: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write tensors under their Hugging Face names."""
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def make_tokenizer() -> Tokenizer:
    """Train a byte-level BPE on the grammar, GLM's special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=list(SPECIAL), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(_corpus(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def _corpus() -> Iterator[str]:
    """Write every answer and every question there is."""
    for sides in itertools.product(SIDES, repeat=len(NAMES)):
        yield describe(dict(zip(NAMES, sides, strict=True)))
    for text in (PROMPT, *map(question, PROPERTIES)):
        yield from (text, *re.split("<image_[ab]>", interleaved(text)))


def text_tensors(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Name the decoder's weights as Hugging Face does."""
    return {path if path.startswith("lm_head.") else f"model.language_model.{path}": array
            for path, array in _arrays(model).items()}


def vision_tensors(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Name the vision tower's weights as Hugging Face does, its two products as the convolutions that they are."""
    arrays = _arrays(model)
    patch, cell = arrays["patch_embed.proj.weight"], arrays["downsample.weight"]
    arrays["patch_embed.proj.weight"] = patch.reshape(len(patch), -1, FRAMES, PATCH, PATCH)
    arrays["downsample.weight"] = np.ascontiguousarray(cell.reshape(len(cell), MERGE, MERGE, -1).transpose(0, 3, 1, 2))
    return {f"model.visual.{path}": array for path, array in arrays.items()}


def _arrays(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    parameters: list[tuple[str, mx.array]] = tree_flatten(model.parameters())      # type: ignore[assignment]  # or a dict
    return {path: np.array(array.astype(mx.float32)) for path, array in parameters}
