"""What the contenders are to compute: a random checkpoint, random embeddings, the default prompt, lists of pairs."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.prompt import Prompt, build_prompt
from jobs.tokenizer import load_tokenizer
from store.checkpoint import TextConfig, open_checkpoint
from store.embeddings import EmbeddingsWriter
from workers.model.rope import position_ids

PROMPT = "Compare these two images."
GRID = (16, 16)      # merged rows and columns of an image: 256 tokens
PARTNERS = 8         # of each first image in the pairs that share

Pairs = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Workload:
    """A folder for the contenders, and what the driver has to know of it."""

    folder: Path
    text: TextConfig
    prompt: Prompt

    @property
    def prefix_tokens(self) -> int:
        """Return the prompt tokens up to and including the first image."""
        return self.prompt.spans[0][1]

    @property
    def suffix_tokens(self) -> int:
        """Return the prompt tokens after the first image."""
        return len(self.prompt.token_ids) - self.prefix_tokens


def make_workload(folder: Path, weights: Path, images: int) -> Workload:
    """Write the inputs of all contenders into a folder; embeddings are drawn with a fixed seed."""
    checkpoint = open_checkpoint(weights)
    prompt = build_prompt(checkpoint, load_tokenizer(checkpoint), PROMPT, thinking=False, grid=GRID)
    write_embeddings(folder / "embeddings", images, checkpoint.text.hidden_size)
    positions = position_ids(len(prompt.token_ids), prompt.spans, prompt.grid)      # [3, tokens]
    info = {"weights": str(weights.resolve()), "text": PROMPT, "token_ids": prompt.token_ids, "spans": prompt.spans,
            "grid": prompt.grid, "hidden": checkpoint.text.hidden_size, "positions": positions.tolist()}
    (folder / "inputs.json").write_text(json.dumps(info), encoding="utf-8")
    return Workload(folder, checkpoint.text, prompt)


def write_embeddings(folder: Path, images: int, hidden: int) -> None:
    """Write random embeddings as large as those of the checkpoint's tokens, in the real format."""
    rng, tokens = np.random.default_rng(0), GRID[0] * GRID[1]
    with EmbeddingsWriter(folder, tokens=tokens, hidden=hidden, grid=GRID) as writer:
        for index in range(images):
            row = rng.standard_normal((1, tokens, hidden), dtype=np.float32) * np.float32(hidden**-0.5)
            writer.append([f"{index:06d}.jpg"], row)


def make_weights(folder: Path, preset: str) -> Path:
    """Make a random checkpoint in a folder; return the folder."""
    script = Path(__file__).with_name("make_checkpoint.py")
    subprocess.run([sys.executable, str(script), str(folder), "--preset", preset], check=True, stdout=sys.stderr)
    return folder


def shared_pairs(count: int, partners: int = PARTNERS) -> Pairs:
    """List pairs in which each first image has so many partners: 64 with 8 each are over 24 images."""
    firsts = -(-count // partners)
    seconds = 2 * partners      # images that are never first
    return [(first, firsts + (2 * first + partner) % seconds)
            for first in range(firsts) for partner in range(partners)][:count]


def distinct_pairs(count: int) -> Pairs:
    """List pairs of neighbours, none of which share their first image: 64 are over 65 images."""
    return [(index, index + 1) for index in range(count)]


def image_count(*lists: Iterable[tuple[int, int]]) -> int:
    """Return how many images these pairs need."""
    return 1 + max(index for pairs in lists for pair in pairs for index in pair)
