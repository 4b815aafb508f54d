"""Precompute: images to embeddings on the real vision tower, and what becomes of images that cannot be embedded."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from store.checkpoint import Checkpoint, open_checkpoint
from store.embeddings import Embeddings, open_embeddings
from store.errors import ImagesError, WeightsError
from store.fingerprint import fingerprint
from workers import precompute as module
from workers.precompute import Precomputed, precompute

SMALL = Path(__file__).parent / "data" / "small"
SIDE = 56      # 4 tokens an image: fast, where the reference is not needed


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(SMALL / "weights")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make seven small images of one colour each, one in a folder of its own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(7):
        name = f"more/{i}.png" if i == 3 else f"{i}.png"
        Image.new("RGB", (70, 50), (30 * i, 255 - 30 * i, 7 * i)).save(folder / name)
    return folder


def run(photos: Path, output: Path, checkpoint: Checkpoint, **options: Any) -> Precomputed:
    defaults = {"batch_size": 3, "side": SIDE, "fit": "squash", "progress": lambda done, total: None}
    return precompute(photos, output, checkpoint, **(defaults | options))


def opened(output: Path) -> Embeddings:
    return open_embeddings(output, hidden=64)


def row(output: Path, name: str) -> NDArray[np.float16]:
    embeddings = opened(output)
    return embeddings.read(embeddings.filenames.index(name))


def test_the_embeddings_of_the_reference_come_out(tmp_path: Path, checkpoint: Checkpoint) -> None:
    made = run(SMALL / "images", tmp_path / "out", checkpoint, side=None)

    want = np.load(SMALL / "expected.npz")["embeddings"]
    got = np.asarray(opened(tmp_path / "out").rows)
    assert (made.written, made.skipped, made.failed) == (4, 0, [])
    # 1e-4 between two float32 computations, and half a unit of float16 (11 bits) on top.
    assert (np.abs(got - want) <= 1e-4 + np.abs(want) * 2.0**-11).all()


def test_what_was_done_stands_beside_the_embeddings(tmp_path: Path, photos: Path, checkpoint: Checkpoint) -> None:
    (photos / "notes.txt").write_text("x")

    made = run(photos, tmp_path / "out", checkpoint, fit="crop")

    info = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert (made.written, made.skipped) == (7, 1)
    assert opened(tmp_path / "out").filenames == ("0.png", "1.png", "2.png", "4.png", "5.png", "6.png", "more/3.png")
    assert (info["tokens"], info["hidden"], info["grid"]) == (4, 64, [2, 2])
    assert info["root"] == str(photos.resolve())
    assert info["fingerprint"] == fingerprint(checkpoint.files)
    assert info["preprocessing"]["side"] == 56
    assert info["preprocessing"]["fit"] == "crop"


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50])
def test_any_batch_size_gives_the_same_embeddings(
    tmp_path: Path, photos: Path, checkpoint: Checkpoint, batch_size: int,
) -> None:
    run(photos, tmp_path / "three", checkpoint)

    run(photos, tmp_path / "other", checkpoint, batch_size=batch_size)

    # Not bit for bit: a product's order of addition may depend on its rows; float16 keeps 11 bits.
    np.testing.assert_allclose(opened(tmp_path / "other").rows, opened(tmp_path / "three").rows, rtol=2e-3, atol=1e-4)


def test_unreadable_images_are_named_and_the_others_stay_aligned(
    tmp_path: Path, photos: Path, checkpoint: Checkpoint,
) -> None:
    run(photos, tmp_path / "good", checkpoint)
    data = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(data[: len(data) // 2])
    (photos / "6.png").write_bytes(b"no image")

    made = run(photos, tmp_path / "out", checkpoint)

    assert made.written == 5
    assert [name for name, _ in made.failed] == ["1.png", "6.png"]
    assert made.failed[1][1] == "expected an image, found a file of no known format"
    assert opened(tmp_path / "out").filenames == ("0.png", "2.png", "4.png", "5.png", "more/3.png")
    for name in opened(tmp_path / "out").filenames:
        np.testing.assert_allclose(row(tmp_path / "out", name), row(tmp_path / "good", name), rtol=2e-3, atol=1e-4)


def test_an_image_whose_embedding_is_not_finite_is_named_and_left_out(
    tmp_path: Path, photos: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(model: Any, config: Any, batches: Any) -> Any:
        for batch in batches:
            rows = np.ones((len(batch), 4, 64), np.float32)
            for place, (name, _) in enumerate(batch):
                rows[place, 1, 2] = {"2.png": np.nan, "4.png": 1e6, "5.png": -np.inf, "6.png": 65504}.get(name, 1)
            yield [name for name, _ in batch], rows

    monkeypatch.setattr(module, "_embed", spoil)

    made = run(photos, tmp_path / "out", checkpoint)

    assert [name for name, _ in made.failed] == ["2.png", "4.png", "5.png"]
    assert "finite" in made.failed[0][1]
    assert opened(tmp_path / "out").filenames == ("0.png", "1.png", "6.png", "more/3.png")
    assert row(tmp_path / "out", "6.png")[1, 2] == 65504


def test_progress_is_told_after_each_batch(tmp_path: Path, photos: Path, checkpoint: Checkpoint) -> None:
    (photos / "6.png").write_bytes(b"no image")
    told: list[tuple[int, int]] = []

    run(photos, tmp_path / "out", checkpoint, batch_size=4, progress=lambda done, total: told.append((done, total)))

    assert len(told) == 2
    assert told[-1] == (7, 7)
    assert all(total == 7 for _, total in told)


def test_a_folder_of_unreadable_images_is_an_error_and_leaves_the_old_files(
    tmp_path: Path, photos: Path, checkpoint: Checkpoint,
) -> None:
    run(photos, tmp_path / "out", checkpoint)
    before = (tmp_path / "out" / "embeddings.bin").read_bytes()
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")

    with pytest.raises(ImagesError, match=r"found none among 7: 0\.png: expected an image, found a file"):
        run(photos, tmp_path / "out", checkpoint)

    assert (tmp_path / "out" / "embeddings.bin").read_bytes() == before


def test_an_interrupt_leaves_the_old_files_as_they_were(tmp_path: Path, photos: Path, checkpoint: Checkpoint) -> None:
    run(photos, tmp_path / "out", checkpoint)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out", checkpoint, side=84, progress=interrupt)

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_second_run_replaces_the_first(tmp_path: Path, photos: Path, checkpoint: Checkpoint) -> None:
    run(photos, tmp_path / "out", checkpoint)
    (photos / "0.png").unlink()

    run(photos, tmp_path / "out", checkpoint, side=84)

    assert opened(tmp_path / "out").rows.shape == (6, 9, 64)


def test_a_bomb_is_refused_by_name_and_without_a_warning(
    tmp_path: Path, photos: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (90, 90)).save(photos / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made = run(photos, tmp_path / "out", checkpoint)

    assert made.written == 7
    assert [name for name, _ in made.failed] == ["bomb.png"]
    assert not warned


@pytest.mark.parametrize("side", [0, 30, -28, 2212, 10**9])
def test_a_side_that_the_checkpoint_cannot_take_is_refused(
    tmp_path: Path, photos: Path, checkpoint: Checkpoint, side: int,
) -> None:
    with pytest.raises(ImagesError, match=f"expected a multiple of 28 up to 2184, found {side}"):
        run(photos, tmp_path / "out", checkpoint, side=side)

    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_vision_tower_is_refused(tmp_path: Path, photos: Path, checkpoint: Checkpoint) -> None:
    text = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("model.visual.")}

    with pytest.raises(WeightsError, match="expected the weights of the vision tower"):
        run(photos, tmp_path / "out", dataclasses.replace(checkpoint, tensors=text))


def test_the_text_decoders_weights_are_never_read(tmp_path: Path, photos: Path, checkpoint: Checkpoint) -> None:
    weights = Path(shutil.copytree(SMALL / "weights", tmp_path / "weights"))
    tensors = load_file(weights / "model.safetensors")
    (weights / "model.safetensors").unlink()
    save_file({k: v for k, v in tensors.items() if k.startswith("model.visual.")}, weights / "vision.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("model.visual.")}, weights / "text.safetensors")
    divided = open_checkpoint(weights)
    header = (weights / "text.safetensors").read_bytes()[:8]
    (weights / "text.safetensors").write_bytes(header)      # whoever opens it fails

    made = run(photos, tmp_path / "out", divided)

    assert made.written == 7
