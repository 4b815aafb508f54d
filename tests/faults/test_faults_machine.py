"""Any order of events: each planned pair ends with exactly one result, equal to that of an undisturbed run.

Store, queue, engine and worker are the real ones, in this process. A crash is an exception that leaves nothing behind
it in order: no row is recorded, no ticket settled, and the lock of the worker is gone, as after kill -9.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from conftest import WEIGHTS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from night import LONG, tally
from realvalkey import Valkey
from rq.executions import Execution
from sqlalchemy import text

from jobs.enqueue import Plan, Request, enqueue_run, plan_run
from jobs.inputs import Settings
from jobs.queue import JobQueue, Ticket, connect
from jobs.resume import resume
from jobs.tickets import TicketJob
from store.database import open_database
from store.records import Comparison, Pair, Run, Sampling
from store.runs import cancel_run, find_run, list_runs
from workers import tasks
from workers.attempt import Attempt, Workplace
from workers.report import Reporter
from workers.session import Session
from workers.stop import Stop
from workers.tasks import compare_job, give_up_job
from workers.worker import Worker, work

EXAMPLES, STEPS = (200, 40) if LONG else (20, 15)
JOB, N_PAIRS = 3, 8
ROWS = "select position, status, text, seed, token_ids from results where run_id = :run order by position"


class Died(BaseException):
    """The end of a worker process, as far as one test process can have it."""


class Fate(Reporter):
    """Ends the worker, well or not, when so many rows have been computed."""

    def __init__(self) -> None:
        self.stop, self.rows, self.ending = Stop(), 0, "well"

    def row(self, run: Run, pair: Pair, result: Comparison) -> None:
        self.rows -= 1
        if self.rows == 0 and self.ending == "crash":
            raise Died
        if self.rows == 0:
            self.stop.request()


class Night(RuleBasedStateMachine):
    """What people, systems and accidents do to the runs of a database."""

    runs = Bundle("runs")
    plan: Plan
    expected: list[tuple[object, ...]]
    server: Valkey
    counted: Counter[str]

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.database = open_database(f"{self.folder.name}/results.db", create=True)
        self.connection = connect(self.server.url)
        self.connection.flushall()
        self.queue = JobQueue(self.connection, self.database.id)
        self.fate = Fate()
        self.session = Session(self.database, weights=None, embeds=None, reporter=self.fate)

    @rule(target=runs)
    def enqueue(self) -> str:
        return enqueue_run(self.database, self.queue, self.plan).id

    @rule(rows=st.integers(1, 2 * N_PAIRS), ending=st.sampled_from(["stop", "crash"]))
    def work(self, rows: int, ending: str) -> None:
        self.fate.stop, self.fate.rows, self.fate.ending = Stop(), rows, ending
        with suppress(Died):
            self.work_all()

    @rule(run=runs)
    def resume(self, run: str) -> None:
        resume(self.database, self.queue, find_run(self.database, run))

    @rule(run=runs)
    def cancel(self, run: str) -> None:
        if find_run(self.database, run).state in ("queued", "running"):
            cancel_run(self.database, run)

    @rule(run=runs, job=st.integers(0, N_PAIRS // JOB))
    def duplicate_ticket(self, run: str, job: int) -> None:
        self.queue.put([Ticket(run, job)])
        self.connection.rpush(self.queue.rq.key, f"{run}-{job}")

    @rule()
    def wipe(self) -> None:
        self.connection.flushall()

    @invariant()
    def what_is_recorded_is_right(self) -> None:
        for run in list_runs(self.database) if hasattr(self, "database") else []:
            done = [row for row in self.results(run.id) if row[1] == "done"]      # else its worker was killed too often
            assert all(row == self.expected[int(str(row[0]))] for row in done)
            assert run.done == len(done)

    def teardown(self) -> None:
        if not hasattr(self, "database"):
            return
        for run in list_runs(self.database):
            resume(self.database, self.queue, run, retry_failed=True)
        self.fate.stop, self.fate.rows = Stop(), 0      # never
        self.work_all()
        for run in list_runs(self.database):
            self.count(found := self.results(run.id))
            assert found == self.expected
            assert find_run(self.database, run.id).state == "done"
        assert (self.queue.waiting(), self.queue.running(), self.queue.failed()) == ([], [], [])
        self.counted["times"] += 1
        self.database.close()
        self.connection.close()
        self.folder.cleanup()

    def count(self, found: list[tuple[object, ...]]) -> None:
        """Count what has become of the pairs of a run."""
        positions = {row[0] for row in found}
        self.counted.update(
            pairs=len(self.expected), lost=len(self.expected) - len(positions), doubled=len(found) - len(positions),
            different=sum(row not in self.expected for row in found))

    def work_all(self) -> None:
        """Let a worker take jobs until none waits, or until its fate overtakes it."""
        place = Workplace(self.database, self.session, self.fate.stop, self.fate, worker="w", device="cpu")
        with mortal():
            work(self.queue, partial(compare_job, place), prepare=lambda ticket: None,
                 give_up=partial(give_up_job, place), burst=True, stop=self.fate.stop)

    def results(self, run: str) -> list[tuple[object, ...]]:
        with self.database.read() as connection:
            return [tuple(row) for row in connection.execute(text(ROWS), {"run": run})]


@contextmanager
def mortal() -> Iterator[None]:
    """Within it, Died leaves nothing in order behind it; a worker's lock ends with the worker all the same."""
    leave, settle, release = Attempt.__exit__, Worker.settle, tasks.release_job

    def left(attempt: Attempt, kind: type[BaseException] | None, *raised: object) -> None:
        if kind is not Died:
            leave(attempt, kind, *raised)

    def released(*of: Any) -> None:
        if not isinstance(sys.exception(), Died):
            release(*of)

    def settled(worker: Worker, job: TicketJob, execution: Execution, error: BaseException | None) -> None:
        if isinstance(error, Died):
            raise error
        settle(worker, job, execution, error)

    with (patch.object(Attempt, "__exit__", left), patch.object(tasks, "release_job", released),
          patch.object(Worker, "settle", settled)):
        yield


@pytest.fixture
def machine(tmp_path: Path, embeddings: Path) -> Iterator[type[Night]]:
    """Give the machine its server, its plan, and what an undisturbed run of it gives."""
    (tmp_path / "pairs.txt").write_text("".join(f"{n % 4},{n // 2 % 4}\n" for n in range(N_PAIRS)))
    made = Settings(embeddings, WEIGHTS, "Compare these two images.", False, Sampling(max_tokens=3, do_sample=True))
    server = Valkey()
    server.start()
    Night.server, Night.expected, Night.counted = server, [], Counter()
    Night.plan = plan_run(Request(made, tmp_path / "pairs.txt", None, 5, JOB, None, ()))
    undisturbed = Night()
    undisturbed.begin()
    run = undisturbed.enqueue()
    undisturbed.work_all()
    Night.expected = undisturbed.results(run)
    undisturbed.teardown()
    Night.counted = Counter(lost=0, doubled=0, different=0)
    yield Night
    server.remove()


def test_each_pair_ends_with_one_result_whatever_happens_and_in_whatever_order(machine: type[Night]) -> None:
    assert len(Night.expected) == N_PAIRS

    run_state_machine_as_test(machine, settings=settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck),
        database=None, derandomize=not LONG))

    counted = machine.counted
    tally("crash, stop, resume, cancel, wipe and doubled ticket in any order, in one process", **counted)
    assert counted["times"] >= EXAMPLES
    assert counted["pairs"] > 0
    assert counted["lost"] == counted["doubled"] == counted["different"] == 0
