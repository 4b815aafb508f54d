"""The vision tower beside what transformers computed from the same images."""

from functools import cache

import mlx.core as mx
import numpy as np
from conftest import SMALL, WEIGHTS
from numpy.typing import NDArray
from reference import arrays

from store.checkpoint import open_checkpoint
from workers.images import patches, read_image
from workers.model.load import load_vision_model
from workers.model.vision import VisionModel, cubic_weights, merge_order

PATCH_GRID = (32, 32)      # of 448 x 448 pixels, before the merge


@cache
def vision() -> VisionModel:
    return load_vision_model(open_checkpoint(WEIGHTS))


@cache
def reference_patches() -> NDArray[np.float32]:
    images = [read_image(path, 448, "squash") for path in sorted((SMALL / "images").iterdir())]
    return patches(np.stack(images), open_checkpoint(WEIGHTS).image)


def test_embeddings_of_all_images_equal_those_of_transformers() -> None:
    embeddings = np.array(vision()(mx.array(reference_patches()), PATCH_GRID))

    expected = arrays()["embeddings"]
    assert embeddings.shape == expected.shape
    # float32 sums in another order; 3e-6 where this was written. The position table, 24 x 24, is sampled at 32 x 32.
    assert np.abs(embeddings - expected).max() <= 1e-4


def test_images_of_one_call_do_not_see_each_other() -> None:
    together = np.array(vision()(mx.array(reference_patches()), PATCH_GRID))
    alone = [np.array(vision()(mx.array(one[None]), PATCH_GRID))[0] for one in reference_patches()]

    # equal but for float32 sums that a BLAS may take in another order for more rows
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_a_position_table_of_the_grids_own_size_is_taken_as_it_is() -> None:
    np.testing.assert_allclose(cubic_weights(24, 24), np.eye(24), atol=1e-7)


def test_sampling_between_two_cells_weighs_four_and_beyond_the_border_repeats_it() -> None:
    weights = cubic_weights(12, 6)      # places -0.25, 0.25, 0.75, ... of cells 0 to 5

    # Keys' kernel with a = -0.75 at distances 1.25, 0.25, 0.75, 1.75
    taps = np.array([-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    np.testing.assert_allclose(weights[5], [0, *taps, 0], atol=1e-7)                     # place 2.25
    np.testing.assert_allclose(weights[1], [taps[0] + taps[1], *taps[2:], 0, 0, 0], atol=1e-7)      # place 0.25
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_four_consecutive_patches_are_one_merge_cell() -> None:
    order = merge_order((4, 6), 2)

    assert order[:8].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert sorted(order) == list(range(24))


def test_an_image_of_another_shape_keeps_rows_and_columns_apart() -> None:
    model, rng = vision(), np.random.default_rng(0)
    patch = rng.normal(size=reference_patches().shape[-1]).astype(np.float32)
    wide = np.array(model(mx.array(np.tile(patch, (1, 4 * 8, 1))), (4, 8)))[0].reshape(2, 4, -1)
    tall = np.array(model(mx.array(np.tile(patch, (1, 4 * 8, 1))), (8, 4)))[0].reshape(4, 2, -1)

    # The same patch everywhere: only positions differ, and those of a tall image are not those of a wide one.
    assert not np.allclose(wide, tall.transpose(1, 0, 2), atol=1e-3)
    assert np.isfinite(wide).all()
