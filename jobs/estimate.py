"""What a plan will cost, before it is enqueued: jobs, tokens, and the time by the last run's rate."""

from dataclasses import dataclass

from jobs.enqueue import Plan
from store.database import database_exists, open_database
from store.jobs import rate
from store.runs import list_runs


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan in figures."""

    pairs: int
    jobs: int
    images: int                           # distinct ones
    prompt_tokens: int                    # of a pair
    max_tokens: int                       # of an answer
    rate_run: str | None                  # the run that the rate comes from
    comparisons_per_minute: float | None

    @property
    def seconds(self) -> float | None:
        """Return the time it takes at that rate."""
        return 60 * self.pairs / self.comparisons_per_minute if self.comparisons_per_minute else None


def estimate(plan: Plan, location: str) -> Estimate:
    """Count what the plan holds; take the rate from the database's last run that has one."""
    run, per_minute = _last_rate(location)
    return Estimate(
        pairs=len(plan.pairs), jobs=plan.n_jobs, images=len({index for pair in plan.pairs for index in pair}),
        prompt_tokens=len(plan.inputs.prompt.token_ids), max_tokens=plan.request.settings.sampling.max_tokens,
        rate_run=run, comparisons_per_minute=per_minute,
    )


def _last_rate(location: str) -> tuple[str | None, float | None]:
    if not database_exists(location):
        return None, None
    with open_database(location, create=False) as database:
        rates = ((run.id, rate(database, run.id)) for run in reversed(list_runs(database)))
        return next((found for found in rates if found[1]), (None, None))
