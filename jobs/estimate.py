"""What a plan will cost, before it is enqueued: jobs, tokens, what they share, and the time by the last run's rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.enqueue import Plan
from jobs.plan import first_images
from store.database import database_exists, open_database
from store.jobs import rate
from store.runs import list_runs


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan in figures."""

    pairs: int
    jobs: int
    images: int                           # distinct ones
    first_images: int                     # distinct ones among those that the prompt shows first
    prefixes: int                         # of all jobs together: one for each first image of a job
    prefix_tokens: int                    # of a pair: up to and including its first image
    prompt_tokens: int                    # of a pair: prefix and suffix
    max_tokens: int                       # of an answer
    rate_run: str | None                  # the run that the rate comes from
    comparisons_per_minute: float | None

    @property
    def pairs_a_first_image(self) -> float:
        """Return how many pairs share a first image, on average."""
        return self.pairs / self.first_images

    @property
    def computed_share(self) -> float:
        """Return the prompt tokens to compute over those of all pairs, where each job computes a prefix once.

        With k pairs to a prefix of p tokens, and suffixes of s tokens: (p / k + s) / (p + s).
        """
        suffixes = self.pairs * (self.prompt_tokens - self.prefix_tokens)
        return (self.prefixes * self.prefix_tokens + suffixes) / (self.pairs * self.prompt_tokens)

    @property
    def seconds(self) -> float | None:
        """Return the time it takes at that rate."""
        return 60 * self.pairs / self.comparisons_per_minute if self.comparisons_per_minute else None


def estimate(plan: Plan, location: str) -> Estimate:
    """Count what the plan holds; take the rate from the database's last run that has one."""
    run, per_minute = _last_rate(location)
    prompt = plan.inputs.prompt
    first = first_images(plan.pairs, prompt.images[0])
    return Estimate(
        pairs=len(plan.pairs), jobs=plan.n_jobs, images=len({index for pair in plan.pairs for index in pair}),
        first_images=len(np.unique(first)), prefixes=count_prefixes(plan.jobs, first),
        prefix_tokens=prompt.spans[0][1], prompt_tokens=len(prompt.token_ids),
        max_tokens=plan.request.settings.sampling.max_tokens, rate_run=run, comparisons_per_minute=per_minute,
    )


def count_prefixes(jobs: Sequence[int], first: NDArray[np.int64]) -> int:
    """Count the first images of each job, over all jobs; `jobs` and `first` have an entry a position."""
    values, numbers = np.unique(first, return_inverse=True)
    return len(np.unique(np.asarray(jobs) * len(values) + numbers))


def _last_rate(location: str) -> tuple[str | None, float | None]:
    if not database_exists(location):
        return None, None
    with open_database(location, create=False) as database:
        rates = ((run.id, rate(database, run.id)) for run in reversed(list_runs(database)))
        return next((found for found in rates if found[1]), (None, None))
