"""The plan: which pairs share a job. A job keeps its composition for ever."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from jobs.prompt import Image
from store.errors import SettingsError
from store.records import PairOrder

CHOICE = 64      # sizes that the next group is chosen from: with more than so many, jobs are large and their cuts few


def first_images(pairs: Sequence[tuple[int, int]], first: Image) -> NDArray[np.int64]:
    """Return for each position the index of the image that the prompt shows first: whose prefix the pair needs."""
    side = "ab".index(first)
    return np.fromiter((pair[side] for pair in pairs), np.int64, len(pairs))      # [pairs]


def plan_jobs(first: NDArray[np.int64], batch_size: int, order: PairOrder) -> list[int]:
    """Return the job of each position: `batch_size` pairs to a job, the last one takes what is left.

    `grouped`: the pairs of a first image are a group; groups line up so that cutting the line into jobs cuts few of
    them, and the parts of one lie in neighbouring jobs. Otherwise they keep the order of the file, where they begin.
    """
    if batch_size < 1:
        raise SettingsError(f"batch size: expected 1 or more, found {batch_size}")
    jobs = np.arange(len(first)) // batch_size                              # [pairs], along the line
    if order == "grouped":
        groups, sizes = _groups(first)
        line = np.argsort(_block_of(sizes, batch_size), kind="stable")      # [groups]
        places = np.argsort(line)                                           # [groups], where in the line each is
        jobs[np.argsort(places[groups], kind="stable")] = jobs.copy()
    return jobs.tolist()


def _groups(first: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the groups in the order of their beginnings; return the group at each position, and their sizes."""
    _, begins, values, sizes = np.unique(first, return_index=True, return_inverse=True, return_counts=True)
    by_begin = np.argsort(begins)
    return np.argsort(by_begin)[values], sizes[by_begin]


def _block_of(sizes: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return the block of each group, named by its first: together, a block's groups fill whole jobs exactly.

    A block of k jobs costs at most k - 1 cuts, however its groups stand: the more blocks, the fewer cuts. One is
    complete when the line is as long, over whole jobs, as it was before: the groups since then make it up. So a group
    comes next that completes a block, the smallest one; else one that fits into the job, of the size that most pairs
    wait in, so that sizes which go well together run out together. What remains, fewer groups than `batch_size`, is
    one block after all others.
    """
    blocks = np.full(len(sizes), len(sizes))      # [groups]
    waiting = _by_value(sizes % batch_size)
    line: list[int] = []
    seen = {0: 0}      # from each length of the line, over whole jobs, to the groups in it then; ascending
    length = 0

    def merit(step: int) -> tuple[int, bool, int]:
        reached = length + step
        return seen.get(reached % batch_size, -1), reached <= batch_size, step * len(waiting[step])

    while waiting:
        step = max(islice(waiting, CHOICE), key=merit)
        line.append(waiting[step].pop())
        if not waiting[step]:
            del waiting[step]
        length = (length + step) % batch_size
        if length not in seen:
            seen[length] = len(line)
            continue
        block = line[seen[length]:]
        blocks[block] = min(block)
        del line[seen[length]:]
        while len(seen) > len(line) + 1:
            seen.popitem()
    return blocks


def _by_value(values: NDArray[np.int64]) -> dict[int, list[int]]:
    """Return where each value stands, its last place first."""
    places: dict[int, list[int]] = {}
    for place, value in enumerate(values.tolist()):
        places.setdefault(value, []).append(place)
    for found in places.values():
        found.reverse()
    return places
