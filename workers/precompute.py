"""Embeddings of a folder of images: files are read ahead in threads while the device computes. No text, no database."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from store.checkpoint import Checkpoint, ImageConfig
from store.embeddings import EmbeddingsWriter
from store.errors import ImagesError, WeightsError
from store.fingerprint import fingerprint
from workers.images import Fit, find_images, patches, read_image
from workers.model.load import load_vision_model
from workers.model.vision import VisionModel

READERS = min(4, os.cpu_count() or 1)      # threads that decode images; beyond that the device is what one waits for
BATCHES_AHEAD = 2                          # images read ahead, in batches
FLOAT16_LIMIT = 65520                      # from here on a number rounds to infinity in float16

Pixels = NDArray[np.uint8]                            # [side, side, 3]
Read = tuple[str, Pixels | str]                       # an image's name, and its pixels or what is wrong with them
Batch = list[tuple[str, Pixels]]
Embedded = tuple[list[str], NDArray[np.float32]]      # names, and embeddings [n, tokens, hidden]
Failure = tuple[str, str]                             # an image's name, and why it has no embedding


@dataclass(frozen=True, slots=True)
class Precomputed:
    """What became of a folder's images."""

    written: int
    skipped: int                # files that are no images, links that lead outside among them
    outside: int                # links that lead outside of the folder
    failed: list[Failure]       # images that could not be read or embedded, in order


def precompute(
    source: Path, output: Path, checkpoint: Checkpoint, *, batch_size: int, side: int | None, fit: Fit,
    progress: Callable[[int, int], object],
) -> Precomputed:
    """Write the embeddings of all images under `source`; one that cannot be read is named, skipped and counted.

    `side` is in pixels, None for the checkpoint's own; `progress` is told how many of how many images are done, after
    each batch. Files that stand in `output` are replaced at the end or, on any error and on Ctrl-C, left as they are.
    Raise ImagesError, WeightsError or EmbeddingsError.
    """
    side = _check_side(checkpoint.image, side)
    if not checkpoint.has_vision:
        raise WeightsError(f"{checkpoint.folder}: expected the weights of the vision tower, found the text decoder's "
                           "only; precompute with the checkpoint as it is downloaded")
    found = find_images(source)
    model = load_vision_model(checkpoint)
    failed: list[Failure] = []
    written = 0
    with (
        _open_writer(source, output, checkpoint, side, fit) as writer,
        warnings.catch_warnings(),
        closing(_read_ahead(source, found.paths, side, fit, BATCHES_AHEAD * batch_size)) as images,
    ):
        # Here, not in the readers: filters belong to the whole process, and setting them is not safe in threads.
        warnings.filterwarnings("ignore", module="PIL")      # of metadata, and of sizes, which read_image checks
        for names, rows in _embed(model, checkpoint.image, _batches(images, batch_size, failed)):
            kept = _keep_finite(names, rows, failed)
            writer.append([names[i] for i in kept], rows[kept])
            written += len(kept)
            progress(written + len(failed), len(found.paths))
        if not written:
            raise ImagesError(f"{source}: expected an image that can be read, found none among {len(failed)}: "
                              f"{failed[0][0]}: {failed[0][1]}")
    order = {name: place for place, name in enumerate(found.paths)}
    return Precomputed(written, found.skipped, found.outside, sorted(failed, key=lambda failure: order[failure[0]]))


def _check_side(config: ImageConfig, side: int | None) -> int:
    if side is None:
        return config.side
    if side % config.unit or not 0 < side <= config.largest_side:
        raise ImagesError(f"--image-size: expected a multiple of {config.unit} up to {config.largest_side}, "
                          f"found {side}")
    return side


def _open_writer(source: Path, output: Path, checkpoint: Checkpoint, side: int, fit: Fit) -> EmbeddingsWriter:
    cells, image = side // checkpoint.image.unit, checkpoint.image
    return EmbeddingsWriter(
        output, cells * cells, checkpoint.vision.out_hidden_size, grid=(cells, cells), root=str(source.resolve()),
        fingerprint=fingerprint(checkpoint.files),
        preprocessing={"side": side, "fit": fit, "resample": "bicubic", "mean": image.mean, "std": image.std},
    )


def _read_ahead(folder: Path, names: Sequence[str], side: int, fit: Fit, ahead: int) -> Generator[Read, None, None]:
    """Yield, in order, each image's name and its pixels or what is wrong with it; up to `ahead` more are being read."""
    pool = ThreadPoolExecutor(READERS)
    waiting: deque[Future[Read]] = deque()
    try:
        for name in names:
            waiting.append(pool.submit(_read, folder, name, side, fit))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(folder: Path, name: str, side: int, fit: Fit) -> Read:
    try:
        return name, read_image(folder / name, side, fit)
    except ImagesError as error:
        return name, str(error).removeprefix(f"{folder / name}: ")


def _batches(images: Iterable[Read], batch_size: int, failed: list[Failure]) -> Iterator[Batch]:
    """Gather the images that can be read; the others go to `failed`."""
    batch: list[tuple[str, Pixels]] = []
    for name, pixels in images:
        if isinstance(pixels, str):
            failed.append((name, pixels))
            continue
        batch.append((name, pixels))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _embed(model: VisionModel, config: ImageConfig, batches: Iterable[Batch]) -> Iterator[Embedded]:
    """Yield each batch's names and embeddings, once the next batch is on the device."""
    last: tuple[list[str], mx.array] | None = None
    for batch in batches:
        pixels = np.stack([image for _, image in batch])      # [n, side, side, 3]
        rows = pixels.shape[1] // config.patch_size
        embeddings = model(mx.array(patches(pixels, config)), (rows, rows)).astype(mx.float32)
        mx.async_eval(embeddings)
        if last:
            yield last[0], np.array(last[1])
        last = [name for name, _ in batch], embeddings
    if last:
        yield last[0], np.array(last[1])


def _keep_finite(names: Sequence[str], rows: NDArray[np.float32], failed: list[Failure]) -> list[int]:
    """Return the places of the embeddings that float16 can hold; the others go to `failed`."""
    finite = np.abs(rows).max(axis=(1, 2)) < FLOAT16_LIMIT      # false for NaN too
    reason = "expected an embedding of finite numbers in float16, found others; are the weights intact?"
    failed += [(name, reason) for name, good in zip(names, finite, strict=True) if not good]
    return [int(place) for place in np.flatnonzero(finite)]
