"""From a request to a run: what the order of the plan changes, and what it leaves as it is."""

from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from jobs.enqueue import Plan, Request, plan_run, record_run
from jobs.inputs import Settings
from store.database import Database, open_database
from store.jobs import read_pairs
from store.records import Pair, PairOrder, Sampling
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
    run = record_run(database, made)
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
