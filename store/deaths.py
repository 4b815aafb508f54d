"""Deaths: how often a worker was gone between taking a job, or a pair alone, and the next result of it.

Nobody sees a worker die. So a take counts as a death from its beginning on, until a result or an orderly end takes the
count back: what is left at the next take is the number of workers that died.
"""

from sqlalchemy import ColumnElement, delete, func, select, update

from store.database import Database
from store.schema import deaths, insert_into, is_to_retry, jobs, lock_run, results


def begin_alone(db: Database, run_id: str, job: int, position: int) -> int:
    """Count the take of a pair by itself, and return how many before it ended in a death."""
    row = {"run_id": run_id, "position": position, "job": job, "count": 1}
    with db.write() as connection:
        taken = insert_into(connection, deaths).values(row).on_conflict_do_update(
            index_elements=[deaths.c.run_id, deaths.c.position], set_={"count": deaths.c.count + 1})
        count: int | None = connection.scalar(taken.returning(deaths.c.count))
    assert count is not None
    return count - 1


def leave_alone(db: Database, run_id: str, position: int) -> None:
    """Take back the count of a pair that was left in order, without a result."""
    of_pair = (deaths.c.run_id == run_id) & (deaths.c.position == position)
    with db.write() as connection:
        connection.execute(update(deaths).where(of_pair, deaths.c.count > 0).values(count=deaths.c.count - 1))


def is_tried_alone(db: Database, run_id: str, job: int) -> bool:
    """Say whether pairs of this job have been tried by themselves and have not been done since."""
    tried = select(func.count()).select_from(deaths).where(_of(run_id), deaths.c.job == job)
    with db.read() as connection:
        return bool(connection.scalar(tried))


def forget_deaths(db: Database, run_id: str) -> None:
    """Begin to count anew, for a person has looked at it; doing it twice is safe.

    A pair that has failed stays known, unless it is to be retried: its job never again runs with it in one batch.
    """
    failed = select(results.c.position).where(results.c.run_id == run_id, results.c.status == "failed", ~is_to_retry)
    with db.write() as connection:
        lock_run(connection, run_id)
        connection.execute(delete(deaths).where(_of(run_id), deaths.c.position.not_in(failed)))
        connection.execute(update(jobs).where(jobs.c.run_id == run_id, jobs.c.deaths > 0).values(deaths=0))


def _of(run_id: str) -> ColumnElement[bool]:
    return deaths.c.run_id == run_id
