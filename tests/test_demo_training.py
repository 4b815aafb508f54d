"""The script that trained the demo's checkpoint still runs: a few steps of each half change its weights."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import train
from layout import write_layout
from mlx.utils import tree_flatten
from pictures import make_pictures
from properties import measure

from store.checkpoint import open_checkpoint
from workers.model.load import load_text_model, load_vision_model


def flat(model: object) -> np.ndarray:
    return np.concatenate([np.array(array).ravel() for _, array in tree_flatten(model.parameters())])      # type: ignore[attr-defined]


def test_two_steps_of_each_half_change_the_weights_and_read_no_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "WARMUP", 1)
    write_layout(tmp_path, 0)
    checkpoint = open_checkpoint(tmp_path)
    pictures = make_pictures(64, 0)
    tower, decoder = load_vision_model(checkpoint), load_text_model(checkpoint)
    before = flat(tower), flat(decoder)
    opened: list[str] = []
    monkeypatch.setattr("PIL.Image.open", lambda *args, **kwargs: opened.append(str(args)))

    train.train_vision(tower, checkpoint.image, pictures, 2, 0)
    embeddings = train.embed_all(tower, checkpoint.image, pictures)
    train.train_text(decoder, checkpoint, embeddings, measure(pictures), 0, part=0, steps=2, rate=1e-3)
    mx.eval(tower.parameters(), decoder.parameters())

    for old, new in zip(before, (flat(tower), flat(decoder)), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).mean() > 0.5
    assert opened == []
