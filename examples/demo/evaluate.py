"""Ask a checkpoint about photographs and generated pictures that it has not seen, and write how often it is right.

    python examples/demo/evaluate.py store/demo/weights --write

It goes diptych's own way: `precompute` embeds the images, the engine answers greedily. The table replaces what stands
between the two markers in README.md.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from pictures import make_pictures
from PIL import Image
from properties import MARGINS, NAMES, PROMPT, PROPERTIES, measure, question, read_answer
from train import WholeSequence

from jobs.limits import Limits
from jobs.prompt import build_prompt
from jobs.tokenizer import Tokenizer, load_tokenizer
from store.checkpoint import Checkpoint, open_checkpoint
from store.embeddings import open_embeddings
from store.records import Sampling
from workers.engine import Engine
from workers.images import read_image
from workers.model.load import load_text_model
from workers.model.rope import make_prompt_rotation, position_ids
from workers.model.text import TextModel
from workers.precompute import precompute
from workers.prefill import embed_prompt
from workers.rows import Image as EmbeddedImage
from workers.rows import Row

HERE = Path(__file__).resolve().parent
PHOTOGRAPHS = HERE.parent / "photos"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
UNSEEN_SEED, UNSEEN_PAIRS = 987_654_321, 400      # training never uses this seed
SLICE = 32      # rows of one forward pass
LIMITS = Limits(rows=SLICE, chunk_tokens=512, prefix_bytes=2**24)

Pairs = NDArray[np.int64]      # [pairs, 2]


@dataclass(frozen=True, slots=True)
class Images:
    """Images as the model takes them, with their true properties."""

    embeddings: NDArray[np.float16]      # [images, tokens, hidden]
    values: NDArray[np.float64]          # [images, 5]
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Score:
    """How often the model was right, by property, where the difference exceeds the margin."""

    asked: NDArray[np.int64]       # [5], comparisons beyond the margin
    right: NDArray[np.int64]       # [5], of them in the long answers
    labels: NDArray[np.int64]      # [5], of them by the one-label questions, both orders averaged
    pairs: int
    texts: list[str]

    @property
    def kept(self) -> NDArray[np.float64]:
        """Return the share of the pairs that the margin keeps [5]."""
        return self.asked / self.pairs


def open_images(folder: Path, checkpoint: Checkpoint) -> Images:
    """Embed the images of a folder and measure the pixels that the model sees."""
    with tempfile.TemporaryDirectory() as output:
        precompute(folder, Path(output), checkpoint, batch_size=32, side=None, fit="squash", progress=lambda *_: None)
        embeddings = open_embeddings(Path(output), hidden=checkpoint.text.hidden_size)
        pixels = np.stack([read_image(folder / name, checkpoint.image.side, "squash") for name in embeddings.filenames])
        return Images(np.array(embeddings.rows), measure(pixels), embeddings.grid)


def open_unseen(checkpoint: Checkpoint) -> Images:
    """Embed generated pictures that training has not seen, two a pair."""
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(make_pictures(2 * UNSEEN_PAIRS, UNSEEN_SEED)):
            Image.fromarray(picture).save(Path(folder) / f"{number:04}.png")
        return open_images(Path(folder), checkpoint)


def all_pairs(count: int) -> Pairs:
    """List all ordered pairs of different images."""
    return np.argwhere(~np.eye(count, dtype=bool))


def score(checkpoint: Checkpoint, images: Images, pairs: Pairs) -> Score:
    """Ask about every pair, in the long form and by the five questions."""
    model, tokenizer = load_text_model(checkpoint), load_tokenizer(checkpoint)
    differences = images.values[pairs[:, 0]] - images.values[pairs[:, 1]]       # [pairs, 5]
    beyond = np.abs(differences) > MARGINS
    truth = np.where(differences > 0, "A", "B")
    texts = answer_all(model, tokenizer, checkpoint, images, pairs)
    said = np.array([[read_answer(text).get(name, "") for name in NAMES] for text in texts])
    labels = np.stack([ask_all(model, tokenizer, checkpoint, images, pairs, question(property_))
                       for property_ in PROPERTIES], axis=-1)      # [pairs, 5]
    return Score(beyond.sum(axis=0), ((said == truth) & beyond).sum(axis=0),
                 ((labels == truth) & beyond).sum(axis=0), len(pairs), texts)


def answer_all(
    model: TextModel, tokenizer: Tokenizer, checkpoint: Checkpoint, images: Images, pairs: Pairs,
) -> list[str]:
    """Return what the engine writes about each pair, greedily."""
    prompt = build_prompt(checkpoint, tokenizer, PROMPT, thinking=False, grid=images.grid)
    engine = Engine(model, checkpoint.eos_token_ids)
    written: list[list[int]] = [[] for _ in pairs]
    for step in engine.generate(prompt, make_rows(images, pairs), Sampling(do_sample=False), LIMITS):
        for token in step:
            written[token.key].append(token.id)
    return [tokenizer.split(ids, opened_thinking=prompt.opened_thinking).text for ids in written]


def ask_all(
    model: TextModel, tokenizer: Tokenizer, checkpoint: Checkpoint, images: Images, pairs: Pairs, text: str,
) -> NDArray[np.str_]:
    """Return the likelier label of each pair, its probability averaged over both orders of the images."""
    prompt = build_prompt(checkpoint, tokenizer, text, thinking=False, grid=images.grid)
    labels = [tokenizer.encode(label)[0] for label in ("A", "B")]
    rotate = make_prompt_rotation(model.config, position_ids(len(prompt.token_ids), prompt.spans, prompt.grid))

    def probabilities(ordered: Pairs) -> NDArray[np.float64]:
        hidden = [model(embed_prompt(model, prompt, rows, 0, len(prompt.token_ids)), rotate, WholeSequence())[:, -1]
                  for rows in sliced(images, ordered)]
        return np.array(mx.softmax(model.logits(mx.concatenate(hidden)), axis=-1))[:, labels]      # [pairs, 2]

    mean = (probabilities(pairs) + probabilities(pairs[:, ::-1])[:, ::-1]) / 2
    return np.where(mean[:, 0] > mean[:, 1], "A", "B")


def make_rows(images: Images, pairs: Pairs) -> list[Row]:
    """Make rows for the engine; a row's key is its place among the pairs."""
    each = [EmbeddedImage(index, embeddings) for index, embeddings in enumerate(images.embeddings)]
    return [Row(key, each[a], each[b], seed=0) for key, (a, b) in enumerate(pairs)]


def sliced(images: Images, pairs: Pairs) -> Iterator[list[Row]]:
    """Divide the rows of pairs into slices."""
    rows = make_rows(images, pairs)
    yield from (rows[start : start + SLICE] for start in range(0, len(rows), SLICE))


def table(photographs: Score, generated: Score) -> str:
    """Write the results as a Markdown table."""
    heads = ("pairs kept", "long answer", "label")
    columns = [f"{kind}: {head}" for kind in ("photographs", "generated") for head in heads]
    rows = [f"| property | margin | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for place, property_ in enumerate(PROPERTIES):
        cells = [cell for result in (photographs, generated) for cell in _cells(result, slice(place, place + 1))]
        rows.append(f"| {property_.name} | {property_.margin:g} | {' | '.join(cells)} |")
    cells = [cell for result in (photographs, generated) for cell in _cells(result, slice(None))]
    return "\n".join([*rows, f"| all | | {' | '.join(cells)} |"])


def _cells(result: Score, which: slice) -> list[str]:
    asked = result.asked[which].sum()
    return [f"{result.kept[which].mean():.0%}", f"{result.right[which].sum() / asked:.1%}",
            f"{result.labels[which].sum() / asked:.1%}"]


def write_table(text: str) -> None:
    """Put a table between the markers of README.md."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Read the command line, ask, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.folder)
    photographs, unseen = open_images(PHOTOGRAPHS, checkpoint), open_unseen(checkpoint)
    shown = table(score(checkpoint, photographs, all_pairs(len(photographs.values))),
                  score(checkpoint, unseen, np.arange(2 * UNSEEN_PAIRS).reshape(-1, 2)))
    print(shown)
    if args.write:
        write_table(shown)


if __name__ == "__main__":
    main()
