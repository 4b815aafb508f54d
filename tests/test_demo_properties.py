"""The ground truth of the demo's checkpoint: by hand, and there and back."""

from itertools import product

import numpy as np
import pytest
from properties import NAMES, describe, measure, read_answer


def test_plain_pictures_measure_what_they_are_by_hand() -> None:
    red, grey = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    grey[:] = 51

    brightness, warmth, colourfulness, contrast, sharpness = measure(np.stack([red, grey])).T

    assert brightness == pytest.approx([0.2126, 0.2])
    assert warmth == pytest.approx([1.0, 0.0])
    assert colourfulness == pytest.approx([0.3 * np.hypot(1, 0.5), 0.0])      # no spread, 0.3 of the mean opponents
    assert contrast == pytest.approx([0.0, 0.0], abs=1e-12)
    assert sharpness == pytest.approx([-6.0, -6.0])      # the least: log10 of 1e-6


def test_a_chessboard_is_contrasty_and_sharp_by_hand() -> None:
    board = np.indices((8, 8)).sum(axis=0) % 2 * 255
    picture = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)

    values = dict(zip(NAMES, measure(picture[None])[0], strict=True))

    assert values["brightness"] == pytest.approx(0.5)
    assert values["contrast"] == pytest.approx(0.5)
    assert values["colourfulness"] == pytest.approx(0.0)
    assert values["sharpness"] == pytest.approx(np.log10(16 + 1e-6))      # the Laplacian is 4 or -4 everywhere


def test_every_verdict_is_read_back_from_its_sentence() -> None:
    for sides in product(("A", "B", "same"), repeat=len(NAMES)):
        verdict = dict(zip(NAMES, sides, strict=True))

        assert read_answer(describe(verdict)) == verdict
