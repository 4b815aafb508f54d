"""The plan of a run: how pairs are divided into jobs."""

import itertools
import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.estimate import count_prefixes
from jobs.plan import first_images, plan_jobs
from store.errors import SettingsError
from store.records import PairOrder

MIXES = {      # partners of each first image
    "1, 2 and 30": [1] * 40 + [2] * 40 + [30] * 40,
    "all pairs of 40": [39] * 40,
    "each pair once": list(range(99, 0, -1)),
    "one large": [1000, 1, 2, 3],
    "no partners shared": [1] * 200,
    "36 to 64": [36 + 17 * image % 29 for image in range(300)],
}


def scattered(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Mix the first images of a file in which image i is the first of sizes[i] pairs, the same way for ever."""
    n = sum(sizes)
    return np.repeat(np.arange(len(sizes)), sizes)[np.arange(n) * 1_000_003 % n]      # a prime that divides no n here


def least_prefixes(sizes: Sequence[int], batch_size: int) -> int:
    """Try every order of the groups and return the fewest prefixes that the jobs of one need."""
    def count(line: Sequence[int]) -> int:
        return count_prefixes(np.arange(sum(line)) // batch_size, np.repeat(np.arange(len(line)), line))

    return min(count(line) for line in set(itertools.permutations(sizes)))


@pytest.mark.parametrize(("n", "batch_size", "expected"), [
    (5, 2, [0, 0, 1, 1, 2]), (4, 4, [0, 0, 0, 0]), (3, 64, [0, 0, 0]), (3, 1, [0, 1, 2]), (0, 4, []),
])
@pytest.mark.parametrize("order", ["grouped", "file"])
def test_pairs_of_one_first_image_fill_jobs_in_the_order_of_their_file(
    n: int, batch_size: int, expected: list[int], order: PairOrder
) -> None:
    assert plan_jobs(np.zeros(n, np.int64), batch_size, order) == expected


def test_the_order_of_the_file_is_kept_when_asked_for() -> None:
    first = scattered(MIXES["1, 2 and 30"])

    assert plan_jobs(first, 50, "file") == [position // 50 for position in range(len(first))]


@pytest.mark.parametrize("order", ["grouped", "file"])
@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_size_below_one_is_refused(batch_size: int, order: PairOrder) -> None:
    with pytest.raises(SettingsError, match=f"batch size: expected 1 or more, found {batch_size}"):
        plan_jobs(np.zeros(1, np.int64), batch_size, order)


@pytest.mark.parametrize("order", ["grouped", "file"])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64, 512, 65_536])
@pytest.mark.parametrize("mix", MIXES)
def test_each_pair_has_a_job_and_all_jobs_but_the_last_are_full(mix: str, batch_size: int, order: PairOrder) -> None:
    n = sum(MIXES[mix])

    jobs = plan_jobs(scattered(MIXES[mix]), batch_size, order)

    full, left = divmod(n, batch_size)
    assert len(jobs) == n
    assert np.bincount(jobs).tolist() == [batch_size] * full + ([left] if left else [])


@pytest.mark.parametrize(("mix", "batch_size", "least"), [
    ("1, 2 and 30", 64, 120),          # each first image in one job
    ("1, 2 and 30", 8, 240),           # and each of 30 partners in four of eight
    ("each pair once", 64, 134),       # 99 first images, 35 of them with more than 64 partners
    ("one large", 64, 19), ("no partners shared", 64, 200),
    ("all pairs of 40", 64, 64),       # no number of them but 64 fills whole jobs: each of 24 borders cuts one
])
def test_no_more_prefixes_are_planned_than_the_mix_needs(mix: str, batch_size: int, least: int) -> None:
    first = scattered(MIXES[mix])

    assert count_prefixes(plan_jobs(first, batch_size, "grouped"), first) == least


def test_of_many_sizes_those_that_fill_jobs_together_are_found() -> None:
    first = scattered(MIXES["36 to 64"])

    prefixes = count_prefixes(plan_jobs(first, 64, "grouped"), first)

    groups, jobs = len(MIXES["36 to 64"]), -(-len(first) // 64)
    assert prefixes - groups < 0.75 * jobs      # where lining up alone cuts one at almost each border


def test_a_small_plan_needs_at_most_one_prefix_more_than_the_best_and_seldom_any() -> None:
    draw = random.Random(0)
    over = []
    for _ in range(150):
        sizes, batch_size = draw.choices([1, 2, 3, 4, 5, 7, 8, 9, 12], k=draw.randint(1, 6)), draw.randint(2, 10)
        first = scattered(sizes)

        found = count_prefixes(plan_jobs(first, batch_size, "grouped"), first)

        over.append(found - least_prefixes(sizes, batch_size))
    assert set(over) <= {0, 1}
    assert sum(over) <= 3


def test_a_group_that_fits_nowhere_leaves_the_others_whole() -> None:
    first = np.repeat(np.arange(1001), [1] + [62, 2] * 500)

    jobs = plan_jobs(first, 64, "grouped")

    assert count_prefixes(jobs, first) == 1001
    assert jobs[0] == 500      # alone


@pytest.mark.parametrize("batch_size", [4, 7, 64])
@pytest.mark.parametrize("mix", MIXES)
def test_the_parts_of_a_first_image_lie_in_neighbouring_jobs(mix: str, batch_size: int) -> None:
    first = scattered(MIXES[mix])

    jobs = np.array(plan_jobs(first, batch_size, "grouped"))

    for image in np.unique(first):
        found = np.unique(jobs[first == image])
        assert found.tolist() == list(range(found[0], found[-1] + 1))


def test_groups_of_equal_size_keep_the_order_in_which_they_begin_in_the_file() -> None:
    first = np.tile([5, 3, 9, 0], 4)

    assert plan_jobs(first, 4, "grouped") == [0, 1, 2, 3] * 4
    assert plan_jobs(first, 6, "grouped") == [0, 0, 1, 2] * 2 + [0, 1, 1, 2] * 2


def test_the_same_pairs_give_the_same_plan_whatever_the_images_numbers_are() -> None:
    first = scattered(MIXES["36 to 64"])
    other_numbers = (first + 5) * 10_007 % 20_011

    plans = [plan_jobs(numbers, 64, "grouped") for numbers in (first, first.copy(), other_numbers)]

    assert plans[0] == plans[1] == plans[2]


def test_pairs_are_told_apart_by_the_image_that_is_shown_first_and_by_nothing_else() -> None:
    pairs = [(0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (1, 2), (2, 1), (2, 0)]      # (a, a), both ways, and one twice

    by_a, by_b = (plan_jobs(first_images(pairs, image), 3, "grouped") for image in ("a", "b"))

    assert by_a == [0, 1, 0, 1, 0, 1, 2, 2]
    assert by_b == [1, 0, 0, 1, 1, 2, 2, 0]


@pytest.mark.parametrize("partners", [1, 2, 50])
def test_a_plan_takes_little_memory(partners: int) -> None:
    first = scattered([partners] * (100_000 // partners))
    tracemalloc.start()

    plan_jobs(first, 64, "grouped")

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(first)      # bytes a pair; the list of pairs itself takes more
