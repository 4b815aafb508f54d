"""From a request to a run: what the order of the plan changes, what it leaves, and what outlives the request."""

from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from realvalkey import Valkey

from jobs.enqueue import Plan, Request, enqueue_run, plan_run, record_run
from jobs.inputs import Settings
from jobs.queue import JobQueue, Ticket, connect
from jobs.resume import resume
from store.database import Database, open_database
from store.jobs import read_pairs
from store.records import Pair, PairOrder, Run, Sampling
from store.runs import find_run

PAIRS = ((0, 1), (1, 0), (0, 2), (2, 2), (3, 0), (2, 3), (0, 3), (1, 2))      # as in pairs.txt


@pytest.fixture
def database(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.chdir(workspace)
    with open_database("results.db", create=True) as opened:
        yield opened


def plan(order: PairOrder, prompt: str = "Compare these two images.") -> Plan:
    settings = Settings(Path("embeddings_512"), Path("vision_weights"), prompt, False, Sampling())
    return plan_run(Request(settings, Path("pairs.txt"), None, 5, 3, None, (), order))


def recorded(database: Database, made: Plan) -> list[list[Pair]]:
    """Record a run; return the pairs of its jobs as a worker reads them."""
    return planned(database, record_run(database, made), made)


def planned(database: Database, run: Run, made: Plan) -> list[list[Pair]]:
    """Read the pairs of a run's jobs as a worker does."""
    return [read_pairs(database, run.id, job) for job in range(made.n_jobs)]


def test_the_order_changes_the_job_of_a_pair_and_neither_position_nor_seed(database: Database) -> None:
    grouped, file = ([pair for job in recorded(database, plan(order)) for pair in job] for order in ("grouped", "file"))

    def without_job(pairs: list[Pair]) -> list[tuple[object, ...]]:
        return sorted(astuple(pair)[:4] for pair in pairs)

    assert without_job(grouped) == without_job(file)
    assert [(pair.idx_a, pair.idx_b) for pair in sorted(grouped, key=lambda pair: pair.position)] == list(PAIRS)
    assert [pair.position for pair in grouped] == [0, 2, 6, 1, 4, 7, 3, 5]
    assert [pair.position for pair in file] == list(range(8))


@pytest.mark.parametrize(("prompt", "jobs"), [
    ("Compare <image_a> with <image_b>.", [[(0, 1), (0, 2), (0, 3)], [(1, 0), (3, 0), (1, 2)], [(2, 2), (2, 3)]]),
    ("Compare <image_b> with <image_a>.", [[(0, 1), (1, 0), (3, 0)], [(0, 2), (2, 2), (1, 2)], [(2, 3), (0, 3)]]),
])
def test_pairs_share_a_job_by_the_image_that_the_prompt_shows_first(
    database: Database, prompt: str, jobs: list[list[tuple[int, int]]]
) -> None:
    found = recorded(database, plan("grouped", prompt))

    assert [[(pair.idx_a, pair.idx_b) for pair in job] for job in found] == jobs


@pytest.mark.parametrize("order", ["grouped", "file"])
def test_a_run_keeps_the_order_that_it_was_planned_in(database: Database, order: PairOrder) -> None:
    run = record_run(database, plan(order))

    assert find_run(database, run.id).pair_order == order


@pytest.mark.parametrize("change", [lambda file: file.write_text("3,3\n3,1\n"), Path.unlink],
                         ids=["overwritten", "deleted"])
def test_a_run_is_resumed_with_its_own_pairs_whatever_has_become_of_their_file(
    database: Database, server: Valkey, change: Callable[[Path], object]
) -> None:
    made = plan("grouped")
    with connect(server.url) as connection:
        queue = JobQueue(connection, database.id)
        run = enqueue_run(database, queue, made)
        before, tickets = planned(database, run, made), queue.waiting()
        change(Path("pairs.txt"))
        connection.flushall()

        resumed = resume(database, queue, find_run(database, run.id))

        assert (resumed.pending, resumed.put_back) == (len(PAIRS), made.n_jobs)
        assert queue.waiting() == tickets == [Ticket(run.id, job) for job in range(made.n_jobs)]
    assert planned(database, run, made) == before
    assert sorted((pair.idx_a, pair.idx_b) for job in before for pair in job) == sorted(PAIRS)
