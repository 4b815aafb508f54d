"""What generation needs beside a model: checkpoint, embeddings and prompt, checked together. No queue, no SQL."""

from dataclasses import dataclass
from pathlib import Path

from jobs.prompt import Prompt, build_prompt
from jobs.tokenizer import Tokenizer, load_tokenizer
from store.checkpoint import Checkpoint, open_checkpoint
from store.embeddings import Embeddings, open_embeddings
from store.errors import SettingsError
from store.records import Sampling


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person chose for generation; the same for one pair and for a run."""

    embeddings_dir: Path
    weights_dir: Path
    prompt: str
    thinking: bool
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Inputs:
    """The checked inputs of generation."""

    checkpoint: Checkpoint
    embeddings: Embeddings
    tokenizer: Tokenizer
    prompt: Prompt


def open_inputs(settings: Settings) -> Inputs:
    """Check checkpoint, embeddings and prompt together, without MLX; raise what is wrong with the first that is."""
    checkpoint = open_checkpoint(settings.weights_dir)
    embeddings = open_embeddings(settings.embeddings_dir, hidden=checkpoint.text.hidden_size)
    tokenizer, prompt = open_prompt(settings, checkpoint, embeddings.grid)
    return Inputs(checkpoint, embeddings, tokenizer, prompt)


def open_prompt(settings: Settings, checkpoint: Checkpoint, grid: tuple[int, int]) -> tuple[Tokenizer, Prompt]:
    """Build the prompt for images of `grid` merged rows and columns; raise what is wrong with it or its length."""
    tokenizer = load_tokenizer(checkpoint)
    prompt = build_prompt(checkpoint, tokenizer, settings.prompt, thinking=settings.thinking, grid=grid)
    _check_room(checkpoint.text.max_positions, len(prompt.token_ids), settings.sampling.max_tokens)
    return tokenizer, prompt


def _check_room(positions: int, prompt_tokens: int, max_tokens: int) -> None:
    if prompt_tokens + max_tokens > positions:
        raise SettingsError(f"max_tokens: expected at most {positions - prompt_tokens:,} (the checkpoint's "
                            f"{positions:,} positions less {prompt_tokens:,} prompt tokens), found {max_tokens:,}")
