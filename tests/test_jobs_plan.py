"""The plan of a run: how pairs are divided into jobs."""

import pytest

from jobs.plan import plan_jobs
from store.errors import SettingsError


@pytest.mark.parametrize(("n", "batch_size", "expected"), [
    (5, 2, [0, 0, 1, 1, 2]), (4, 4, [0, 0, 0, 0]), (3, 64, [0, 0, 0]), (3, 1, [0, 1, 2]), (0, 4, []),
])
def test_pairs_fill_jobs_in_the_order_of_their_file(n: int, batch_size: int, expected: list[int]) -> None:
    assert plan_jobs([(0, 1)] * n, batch_size) == expected


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(SettingsError, match=f"batch size: expected 1 or more, found {batch_size}"):
        plan_jobs([(0, 1)], batch_size)
