"""The plan: which pairs share a job. A job keeps its composition for ever."""

from collections.abc import Sequence

from store.errors import SettingsError


def plan_jobs(pairs: Sequence[tuple[int, int]], batch_size: int) -> list[int]:
    """Return the job of each position: the pairs in their file's order, `batch_size` to a job."""
    if batch_size < 1:
        raise SettingsError(f"batch size: expected 1 or more, found {batch_size}")
    return [position // batch_size for position in range(len(pairs))]
