"""Train the demo's checkpoint: GLM-4.6V's architecture, small, taught to compare two images by five properties.

    LD_PRELOAD=libopenblas.so.0 python examples/demo/train.py OUT --seed 0

First the vision tower learns to measure: a head that is thrown away reads the five properties from its embeddings.
Then the decoder learns to speak about pairs of those embeddings, by cross entropy on the answer alone; here too a head
that is thrown away asks its second layer by how much the images differ. Everything is generated: no network, no
photograph.

It trains in diptych's own model code, which shows that the model differentiates and that what is trained is what runs.
On two cores with OpenBLAS a step of the tower takes as long as in torch with transformers (0.16 s for 64 images), a
step of the decoder 1.3 times as long (0.42 s to 0.32 s for 64 rows): no reason for a second framework.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from layout import text_tensors, vision_tensors, write_layout, write_weights
from lessons import Course, Lesson, Spans, make_courses
from mlx import nn, optimizers
from numpy.typing import NDArray
from pictures import make_pictures
from properties import measure

from store.checkpoint import Checkpoint, ImageConfig, open_checkpoint
from workers.images import patches
from workers.model.cache import Window
from workers.model.load import load_text_model, load_vision_model
from workers.model.rope import make_prompt_rotation, position_ids
from workers.model.text import TextModel
from workers.model.vision import VisionModel

PICTURES = 8192
VISION_STEPS, VISION_BATCH, VISION_RATE = 2000, 64, 2e-3
TEXT_BATCH = 32
TEXT_ROUNDS = ((3000, 1.5e-3), (1500, 7e-4))      # steps and rate; a second, warm start (Loshchilov and Hutter, 2017)
COURSE_SHARES = (0.45, 0.3, 0.15, 0.1)      # asked and compared, then both with the images within the text
HEAD_LAYER = 1         # the decoder's second layer
WARMUP = 100           # steps
LONGEST_GRADIENT = 1.0
REPORT = 200           # steps

Loss = Callable[..., mx.array]


class Measurer(nn.Module):
    """The vision tower with a head that reads standardized properties from the mean of its embeddings."""

    def __init__(self, tower: VisionModel, properties: int) -> None:
        """Put a head on a tower."""
        super().__init__()  # type: ignore[no-untyped-call]  # as MLX has it
        self.tower = tower
        self.head = nn.Linear(tower.config.out_hidden_size, properties)

    def __call__(self, content: mx.array) -> mx.array:
        """Measure pictures from their patches [pictures, patches, content]; return [pictures, properties]."""
        properties: mx.array = self.head(embed(self.tower, content).mean(axis=1))
        return properties


class WholeSequence(Window):
    """A cache that holds nothing: in training all tokens of a row pass at once."""

    mask = None      # causal

    def __init__(self) -> None:
        """Hold nothing."""

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return what came."""
        return keys, values


class Speaker(nn.Module):
    """The decoder with a head that reads, halfway and wherever both images are known, how they differ."""

    def __init__(self, model: TextModel, properties: int) -> None:
        """Put a head behind layer HEAD_LAYER of a decoder."""
        super().__init__()  # type: ignore[no-untyped-call]  # as MLX has it
        self.model = model
        self.head = nn.Linear(model.config.hidden_size, properties)

    def __call__(
        self, ids: mx.array, images: mx.array, spans: Spans, grid: tuple[int, int],
    ) -> tuple[mx.array, mx.array]:
        """Run token ids [rows, tokens] with two images a row [rows, 2, image tokens, hidden] in their spans.

        Return hidden states [rows, tokens, hidden] and differences [rows, tokens behind the images, properties].
        """
        rotate = make_prompt_rotation(self.model.config, position_ids(ids.shape[1], spans, grid))
        hidden = place_images(self.model, ids, images, spans)
        for index, layer in enumerate(self.model.layers):
            hidden = layer(hidden, rotate, WholeSequence(), index)
            if index == HEAD_LAYER:
                differences = self.head(hidden[:, spans[1][1] :])
        return hidden, differences


def place_images(model: TextModel, ids: mx.array, images: mx.array, spans: Spans) -> mx.array:
    """Embed token ids [rows, tokens], and put two images a row [rows, 2, image tokens, hidden] into their spans."""
    (start_a, end_a), (start_b, end_b) = spans
    text = model.embed(ids)
    parts = [text[:, :start_a], images[:, 0], text[:, end_a:start_b], images[:, 1], text[:, end_b:]]
    return mx.concatenate(parts, axis=1)      # [rows, tokens, hidden]


def embed(tower: VisionModel, content: mx.array) -> mx.array:
    """Embed square pictures from their patches; return [pictures, tokens, hidden]."""
    side = int(content.shape[1] ** 0.5)
    return tower(content, (side, side))


def train_vision(tower: VisionModel, image: ImageConfig, pictures: NDArray[np.uint8], steps: int, seed: int) -> None:
    """Teach the tower to measure; turning a picture over changes none of its properties."""
    rng = np.random.default_rng((seed, 1))
    values = measure(pictures)
    targets = ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)
    sharpen_filters(tower, image)
    measurer = Measurer(tower, targets.shape[1])

    def batches() -> Iterator[tuple[mx.array, mx.array]]:
        while True:
            drawn = rng.integers(len(pictures), size=VISION_BATCH)
            yield mx.array(patches(turned(pictures[drawn], rng), image)), mx.array(targets[drawn])

    fit("vision", measurer, measuring_loss, batches(), steps, VISION_RATE)


def measuring_loss(model: Measurer, content: mx.array, targets: mx.array) -> mx.array:
    """Return how far the measures are off; small errors count by their square."""
    return nn.losses.smooth_l1_loss(model(content), targets, beta=0.1, reduction="mean")


def sharpen_filters(tower: VisionModel, image: ImageConfig) -> None:
    """Give half of the patch filters, random ones, the Laplacian's eye for grey detail to begin with."""
    weight = np.array(tower.patch_embed.proj.weight)
    shape = (len(weight), -1, image.temporal_patch_size, image.patch_size, image.patch_size)
    half = weight.reshape(shape)[len(weight) // 2 :].mean(axis=1, keepdims=True)      # [filters, 1, T, ph, pw]
    inner = half[..., 1:-1, 1:-1]
    around = half[..., 2:, 1:-1] + half[..., :-2, 1:-1] + half[..., 1:-1, 2:] + half[..., 1:-1, :-2]
    edges = np.pad(4 * inner - around, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)))
    weight.reshape(shape)[len(weight) // 2 :] = 3 * edges
    tower.patch_embed.proj.weight = mx.array(weight)


def turned(pictures: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a batch of pictures over in one of eight ways."""
    down, across, over = rng.integers(2, size=3)
    pictures = pictures[:, :: 1 - 2 * down, :: 1 - 2 * across]
    return pictures.swapaxes(1, 2) if over else pictures


def embed_all(tower: VisionModel, image: ImageConfig, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Embed pictures as `precompute` does, rounded to 16 bits; return [pictures, tokens, hidden]."""
    parts = [np.array(embed(tower, mx.array(patches(pictures[start : start + 64], image))))
             for start in range(0, len(pictures), 64)]
    return np.concatenate(parts).astype(np.float16)


def train_text(
    model: TextModel, checkpoint: Checkpoint, embeddings: NDArray[np.float16], values: NDArray[np.float64],
    seed: int, *, part: int, steps: int, rate: float,
) -> None:
    """Teach the decoder to answer about pairs of embedded pictures; each part of the training has pairs of its own."""
    rng = np.random.default_rng((seed, 2 + part))
    mx.random.seed(seed)      # for the head's first weights, whatever was drawn before
    courses = make_courses(checkpoint)
    spread = values.std(axis=0)

    def batches() -> Iterator[tuple[Lesson, mx.array, mx.array]]:
        while True:
            course: Course = courses[rng.choice(len(courses), p=COURSE_SHARES)]
            lesson = course.lesson(values, TEXT_BATCH, rng)
            differences = (values[lesson.pairs[:, 0]] - values[lesson.pairs[:, 1]]) / spread      # [rows, properties]
            images = mx.array(embeddings[lesson.pairs]).astype(mx.float32)                  # [rows, 2, tokens, hidden]
            yield lesson, images, mx.array(differences.astype(np.float32))

    fit("text", Speaker(model, values.shape[1]), speaking_loss, batches(), steps, rate)


def speaking_loss(speaker: Speaker, lesson: Lesson, images: mx.array, differences: mx.array) -> mx.array:
    """Return the mean cross entropy of the answers' tokens, and with it how far the differences are off."""
    hidden, compared = speaker(mx.array(lesson.ids), images, lesson.spans, lesson.grid)
    logits = speaker.model.logits(hidden[:, lesson.first - 1 : -1].flatten(0, 1))      # [rows * taught tokens, vocab]
    targets, taught = mx.array(lesson.ids[:, lesson.first :]), mx.array(lesson.taught[:, lesson.first :])
    losses = nn.losses.cross_entropy(logits, targets.flatten())
    wanted = mx.broadcast_to(differences[:, None], compared.shape)
    off = nn.losses.smooth_l1_loss(compared, wanted, beta=0.3, reduction="mean")
    return (losses * taught.flatten()).sum() / taught.sum() + off


def fit(
    name: str, model: nn.Module, loss: Loss, batches: Iterator[tuple[Any, ...]], steps: int, rate: float,
) -> None:
    """Train a model by AdamW, its rate rising for WARMUP steps and falling to zero after them."""
    schedule = optimizers.join_schedules(
        [optimizers.linear_schedule(0, rate, WARMUP), optimizers.cosine_decay(rate, max(1, steps - WARMUP))], [WARMUP])
    optimizer = optimizers.AdamW(schedule, weight_decay=0.01)
    loss_and_gradient = nn.value_and_grad(model, loss)
    began, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        value, gradient = loss_and_gradient(model, *next(batches))
        gradient, _ = optimizers.clip_grad_norm(gradient, LONGEST_GRADIENT)
        optimizer.update(model, gradient)
        mx.eval(value, model.parameters(), optimizer.state)
        total += value.item()
        if step % REPORT == 0 or step == steps:
            print(f"{name} step {step:,} of {steps:,}: loss {total / ((step - 1) % REPORT + 1):.4f}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)
            total = 0.0


def train(folder: Path, seed: int) -> None:
    """Make a checkpoint in a folder: generate pictures, train both halves, write the weights."""
    write_layout(folder, seed)
    checkpoint = open_checkpoint(folder)
    mx.random.seed(seed)
    pictures = make_pictures(PICTURES, seed, processes=2)
    print(f"{len(pictures):,} pictures", flush=True)
    tower, model = load_vision_model(checkpoint), load_text_model(checkpoint)
    train_vision(tower, checkpoint.image, pictures, VISION_STEPS, seed)
    write_weights(folder, {**text_tensors(model), **vision_tensors(tower)})
    embeddings, values = embed_all(tower, checkpoint.image, pictures), measure(pictures)
    for part, (steps, rate) in enumerate(TEXT_ROUNDS):
        train_text(model, checkpoint, embeddings, values, seed, part=part, steps=steps, rate=rate)
        write_weights(folder, {**text_tensors(model), **vision_tensors(tower)})


def main() -> None:
    """Read the command line, train, say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    train(args.folder, args.seed)
    print(f"{args.folder}: trained in {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
