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

    def lines(self) -> list[str]:
        """Say it in lines for a person."""
        time = "time: no run with a rate yet in this database"
        if self.comparisons_per_minute:
            minutes = self.pairs / self.comparisons_per_minute
            time = (f"time: about {minutes:,.1f} min at the {self.comparisons_per_minute:,.1f} comparisons/min of "
                    f"run {self.rate_run}")
        return [
            f"pairs: {self.pairs:,} over {self.images:,} images",
            f"jobs: {self.jobs:,}",
            f"prompt tokens: {self.prompt_tokens:,} a pair, {self.prompt_tokens * self.pairs:,} in all",
            f"answer tokens: at most {self.max_tokens:,} a pair, {self.max_tokens * self.pairs:,} in all",
            time,
            "nothing was enqueued (--dry-run)",
        ]


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
