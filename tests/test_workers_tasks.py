"""A job from ticket to results: what fails alone, what is recorded early, what is refused."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, WEIGHTS

from jobs.enqueue import Plan, Request, plan_run, record_run
from jobs.inputs import Settings
from jobs.prompt import Prompt
from jobs.tokenizer import Tokenizer
from store.database import Database, open_database
from store.errors import DeviceError, EmbeddingsError, WeightsError
from store.jobs import JobCounts, job_counts, read_pairs, release_job, retry_failed, start_job
from store.records import Comparison, Pair, Run, Sampling
from store.results import read_result
from store.runs import cancel_run, find_run, lift_cancel
from workers import attempt, tasks
from workers.attempt import Workplace
from workers.engine import Engine, Steps
from workers.report import Reporter
from workers.rows import Image, Row, Token
from workers.session import Session
from workers.single import replay
from workers.stop import Cancelled, Stop, Stopped
from workers.tasks import compare_job, give_up_job

SAMPLING = Sampling(max_tokens=24, do_sample=False)


@pytest.fixture
def database(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.chdir(workspace)
    with open_database("results.db", create=True) as opened:
        yield opened


def plan(**changes: object) -> Plan:
    settings = Settings(Path("embeddings_512"), Path("vision_weights"), "Compare these two images.", False, SAMPLING)
    return plan_run(replace(Request(settings, Path("pairs.txt"), None, 5, 8, None, ()), **changes))


def workplace(database: Database, stop: Stop | None = None, reporter: Reporter | None = None) -> Workplace:
    reporter = reporter or Reporter()
    session = Session(database, weights=None, embeds=None, reporter=reporter)
    return Workplace(database, session, stop or Stop(), reporter, worker="tester", device="cpu")


def rows(query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect("results.db")
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_a_job_that_is_done_again_changes_nothing(database: Database) -> None:
    run = record_run(database, plan())
    compare_job(workplace(database), run.id, 0)
    before = rows("select * from results order by position")

    compare_job(workplace(database), run.id, 0)

    assert rows("select * from results order by position") == before
    assert len(before) == 8


def test_a_partly_done_job_is_computed_whole_and_rows_already_there_stay(database: Database) -> None:
    run = record_run(database, plan())
    compare_job(workplace(database), run.id, 0)
    whole = rows("select position, text, token_ids, seed from results order by position")
    with sqlite3.connect("results.db") as connection:
        connection.execute("delete from results where position in (1, 5)")
        connection.execute("update runs set done = 6, finished_at = null")
    connection.close()

    compare_job(workplace(database), run.id, 0)

    assert rows("select position, text, token_ids, seed from results order by position") == whole
    assert rows("select distinct attempt, batch_size from results where position in (1, 5)") == [(2, 8)]
    assert rows("select distinct attempt from results where position not in (1, 5)") == [(1,)]
    assert find_run(database, run.id).state == "done"


def test_a_pair_whose_embedding_went_bad_fails_alone_with_its_reason(database: Database) -> None:
    run = record_run(database, plan())
    place = workplace(database)
    place.session.prepare(run)
    embeddings = place.session.prepare(run).inputs.embeddings
    embeddings.__dict__["rows"] = spoilt = embeddings.rows.copy()
    spoilt[3, 7, 7] = float("nan")

    compare_job(place, run.id, 0)

    failed = rows("select position, text, error from comparisons where status = 'failed'")
    assert [row[0] for row in failed] == [4, 5, 6]      # the pairs with image 3
    assert all(text == "" and "003.png" in str(error) for _, text, error in failed)
    assert rows("select done, failed, state from run_summary") == [(5, 3, "done")]


def test_a_row_that_falls_otherwise_alone_is_made_again_in_its_job_without_the_pairs_that_had_no_place_in_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = record_run(database, plan()), workplace(database)
    loaded = place.session.prepare(run)
    loaded.inputs.embeddings.__dict__["rows"] = spoilt = loaded.inputs.embeddings.rows.copy()
    spoilt[3] = float("nan")      # pairs 4, 5 and 6
    compare_job(place, run.id, 0)
    generate, given = loaded.engine.generate, list[list[int]]()

    def falls_otherwise_alone(prompt: Prompt, rows: Iterable[Row], *rest: Any) -> Steps:
        taken = list(rows)
        given.append([row.key for row in taken])
        for step in generate(prompt, taken, *rest):
            yield [replace(token, id=token.id ^ (len(taken) == 1)) for token in step]

    monkeypatch.setattr(loaded.engine, "generate", falls_otherwise_alone)

    assert replay(database, place.session, run, 2).first_difference is None
    assert [given[0], sorted(given[1])] == [[2], [0, 1, 2, 3, 7]]


class Died(BaseException):
    """The end of a worker, as far as one test process can have it: nothing is recorded or put in order after it."""


def die_with(
    place: Workplace, run: Run, deadly: set[int], monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = Died
) -> list[list[int]]:
    """Let the engine kill its worker whenever such a pair is among the rows; return what it is given, by positions."""
    loaded, given = place.session.prepare(run), list[list[int]]()
    generate = loaded.engine.generate

    def dies(prompt: Prompt, rows: Iterable[Row], *rest: Any) -> Steps:
        taken = list(rows)
        given.append([row.key for row in taken])
        if deadly & set(given[-1]):
            raise error("by nought")
        yield from generate(prompt, taken, *rest)

    monkeypatch.setattr(loaded.engine, "generate", dies)
    if error is Died:
        for name in ("release_job", "leave_alone"):      # what a killed worker cannot do any more
            monkeypatch.setattr(tasks, name, lambda *_: None)
    return given


def compare_until_done(database: Database, place: Workplace, run: Run) -> list[str]:
    """Have a job compared again and again; return how each attempt ended."""
    ends = []
    while find_run(database, run.id).state != "done":
        place.stop.level = 0
        try:
            compare_job(place, run.id, 0)
            ends.append("ended")
        except (Died, Stopped, ArithmeticError) as error:
            ends.append(type(error).__name__)
        assert len(ends) < 50
    return ends


def test_a_pair_that_kills_its_workers_is_found_and_failed_and_the_others_go_on(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, place = record_run(database, plan()), workplace(database)
    given = die_with(place, run, {3}, monkeypatch)

    deaths = compare_until_done(database, place, run).count("Died")

    together = [len(rows) for rows in given].count(8)
    alone = [rows for rows in given if len(rows) == 1]
    assert (together, deaths) == (3, 5)
    assert alone.count([3]) == 2
    assert all(alone.count([position]) == 1 for position in range(8) if position != 3)
    assert rows("select position, text, error from comparisons where status = 'failed'") == [
        (3, "", "the worker died 2 times while it compared this pair by itself")]
    assert rows("select done, failed from run_summary") == [(7, 1)]
    assert "its workers have died with it; its pairs are tried one at a time" in caplog.text


@pytest.mark.parametrize("deadly", [{3, 6}, {1, 3, 6}, {0, 1, 2, 3, 4, 5, 6, 7}])
def test_each_more_pair_that_kills_costs_two_workers_more(
    database: Database, monkeypatch: pytest.MonkeyPatch, deadly: set[int]
) -> None:
    run, place = record_run(database, plan()), workplace(database)
    die_with(place, run, deadly, monkeypatch)

    ends = compare_until_done(database, place, run)

    assert ends == ["Died"] * (3 + 2 * len(deadly)) + ["ended"]
    assert rows("select position from comparisons where status = 'failed'") == [(n,) for n in sorted(deadly)]


def test_a_pair_that_was_found_to_kill_is_not_tried_again_after_a_stop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopsAfterTheFailure(Reporter):
        def row(self, run: Run, pair: Pair, result: Comparison) -> None:
            place.stop.level = int(pair.position == 4)

    run, place = record_run(database, plan()), workplace(database, reporter=StopsAfterTheFailure())
    given = die_with(place, run, {3}, monkeypatch)

    assert compare_until_done(database, place, run) == ["Died"] * 5 + ["Stopped", "ended"]
    assert sum(3 in rows for rows in given) == 5


def test_a_failure_that_is_there_already_takes_no_death_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "RECORD_EVERY", 0.0)
    run, place = record_run(database, plan()), workplace(database)
    loaded = place.session.prepare(run)
    loaded.inputs.embeddings.__dict__["rows"] = spoilt = loaded.inputs.embeddings.rows.copy()
    spoilt[3] = float("nan")      # pairs 4, 5 and 6 fail at once, and are recorded while the others are computed
    generate = loaded.engine.generate

    def dies(*given: Any) -> Steps:
        for step in generate(*given):
            yield step
            if any(token.key == 0 for token in step):
                raise Died

    monkeypatch.setattr(loaded.engine, "generate", dies)
    monkeypatch.setattr(tasks, "release_job", lambda *_: None)
    for _ in range(4):
        with pytest.raises(Died):
            compare_job(place, run.id, 0)

    assert rows("select failed from run_summary") == [(3,)]
    assert rows("select deaths from jobs") == [(3,)]      # the first attempt came to a result


def test_a_pair_that_raises_fails_alone_in_the_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run, place = record_run(database, plan()), workplace(database)
    die_with(place, run, {3, 5}, monkeypatch, ZeroDivisionError)

    assert compare_until_done(database, place, run) == ["ZeroDivisionError"] * 3 + ["ended"]
    assert rows("select position, text, error from comparisons where status = 'failed'") == [
        (3, "", "ZeroDivisionError: by nought"), (5, "", "ZeroDivisionError: by nought")]
    assert rows("select done, failed from run_summary") == [(6, 2)]


def test_a_cancel_is_heard_while_pairs_are_tried_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000_000, 300))      # ms: less than CANCEL_EVERY passes with each pair
    monkeypatch.setattr(tasks, "time", SimpleNamespace(monotonic=lambda: next(clock) / 1000))
    run = record_run(database, plan())
    for _ in range(3):
        start_job(database, run.id, 0, "died")

    class CancelsAtTheFirstResult(Reporter):
        def row(self, run: Run, *_: object) -> None:
            cancel_run(database, run.id)

    with pytest.raises(Cancelled):
        compare_job(workplace(database, reporter=CancelsAtTheFirstResult()), run.id, 0)

    assert find_run(database, run.id).done < 8


def test_texts_of_pairs_that_are_tried_one_at_a_time_are_those_of_the_job(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, alone = record_run(database, plan()), record_run(database, plan())
    compare_job(workplace(database), whole.id, 0)
    for _ in range(3):
        start_job(database, alone.id, 0, "died")

    compare_job(workplace(database), alone.id, 0)

    texts = "select position, text, token_ids from results where run_id = '{}' order by position"
    assert rows(texts.format(alone.id)) == rows(texts.format(whole.id))
    assert rows(f"select distinct batch_size from results where run_id = '{alone.id}'") == [(1,)]


def test_a_stop_while_pairs_are_tried_alone_is_no_death_of_theirs(database: Database) -> None:
    run, stop = record_run(database, plan()), Stop()
    for _ in range(3):
        start_job(database, run.id, 0, "died")

    class StopsAtTheFirstResult(Reporter):
        def row(self, *_: object) -> None:
            stop.level = 1

    with pytest.raises(Stopped):
        compare_job(workplace(database, stop, StopsAtTheFirstResult()), run.id, 0)

    assert find_run(database, run.id).done == 1
    assert rows("select * from deaths") == []


def test_a_stop_in_the_middle_of_a_pair_that_is_tried_alone_is_no_death_of_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stop = record_run(database, plan()), Stop()
    for _ in range(3):
        start_job(database, run.id, 0, "died")
    place = workplace(database, stop)
    stop_at(place, run, monkeypatch, lambda step: bool(step))

    for _ in range(3):
        stop.level = 0
        with pytest.raises(Stopped):
            compare_job(place, run.id, 0)

    assert find_run(database, run.id).done == 0
    assert rows("select position, count from deaths") == [(0, 0)]


def test_a_second_signal_is_heard_between_two_chunks_of_a_prefill(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stop = record_run(database, plan()), Stop()
    place = workplace(database, stop)
    seen = stop_at(place, run, monkeypatch, lambda step: True)

    with pytest.raises(Stopped):
        compare_job(place, run.id, 0)

    assert seen == [[]]


def stop_at(
    place: Workplace, run: Run, monkeypatch: pytest.MonkeyPatch, when: Callable[[Sequence[Token]], bool]
) -> list[Sequence[Token]]:
    """Let the second signal come with the first step that is such a one; return the steps that were made."""
    loaded, seen = place.session.prepare(run), list[Sequence[Token]]()
    generate = loaded.engine.generate

    def stopped(*given: Any) -> Steps:
        for step in generate(*given):
            seen.append(step)
            place.stop.level = 2 if when(step) else place.stop.level
            yield step

    monkeypatch.setattr(loaded.engine, "generate", stopped)
    return seen


def test_the_seconds_left_are_those_of_the_steps_that_the_youngest_row_has_left(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place, clock = record_run(database, plan()), workplace(database), iter(range(1000))
    monkeypatch.setattr(attempt, "time", SimpleNamespace(monotonic=lambda: next(clock) / 4))
    made = attempt.Attempt(place, run, place.session.prepare(run), read_pairs(database, run.id, 0), 1, set(), set())
    made.tokens = {0: [], 1: []}

    left = []
    for keys in ([0], [], [0], [0, 1], [0, 1]):      # the second row comes later; a chunk of its prefill has no tokens
        made.take([Token(key, 7, None) for key in keys])
        left.append(made.seconds_left())

    assert left == [None, None, 0.25 * 24, 0.25 * 23, 0.25 * 22]
    made.take([Token(1, 7, "stop")])      # an answer of three tokens
    made.take([Token(0, 7, None)])
    assert made.seconds_left() == 0


def test_a_gpu_that_has_failed_ends_its_worker_and_counts_as_its_death(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = record_run(database, plan()), workplace(database)
    loaded = place.session.prepare(run)

    def fails(*_: object) -> Steps:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory "
                           "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)")
        yield []

    with monkeypatch.context() as patch:
        patch.setattr(loaded.engine, "generate", fails)
        for _ in range(3):
            with pytest.raises(DeviceError, match=r"Insufficient Memory.*; start the worker again.*--memory-limit"):
                compare_job(place, run.id, 0)
    compare_job(place, run.id, 0)

    assert rows("select distinct batch_size from results") == [(1,)]      # with the least memory
    assert find_run(database, run.id).done == 8


def test_a_row_whose_logits_are_not_finite_fails_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run, place = record_run(database, plan()), workplace(database)
    loaded, generate = place.session.prepare(run), Engine.generate

    def spoil(engine: Engine, prompt: Prompt, given: Iterable[Row], *rest: Any) -> Steps:
        spoilt = [replace(row, image_b=Image("spoilt", np.full_like(row.image_b.embeddings, np.nan)))
                  if row.key == 2 else row for row in given]
        return generate(engine, prompt, spoilt, *rest)

    monkeypatch.setattr(Engine, "generate", spoil)
    compare_job(place, run.id, 0)

    assert rows("select position, text, error from comparisons where status = 'failed'") == [
        (2, "", "the model's logits are infinite or not a number for this pair")]
    assert rows("select done, failed, state from run_summary") == [(7, 1, "done")]
    assert loaded.inputs is place.session.prepare(run).inputs


def test_a_text_that_cannot_be_decoded_fails_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run, place = record_run(database, plan()), workplace(database)
    tokenizer = place.session.prepare(run).inputs.tokenizer
    split, seen = type(tokenizer).split, list[int]()

    def breaks(self: Tokenizer, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "made up")
        return split(self, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "split", breaks)
    compare_job(place, run.id, 0)

    [(text, error)] = rows("select text, error from comparisons where status = 'failed'")
    assert text == ""
    assert str(error).startswith("its tokens could not be decoded: UnicodeDecodeError: ")
    assert rows("select done, failed, state from run_summary") == [(7, 1, "done")]


class Hears(Reporter):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def started(self, run: Run, job: int, pairs: int) -> None:
        self.heard.append(job)

    def row(self, run: Run, pair: Pair, result: Comparison) -> None:
        self.heard.append((pair.position, result.status))


def test_a_job_that_is_given_up_leaves_its_reason_with_each_pair_that_has_no_row(database: Database) -> None:
    run = record_run(database, plan())
    compare_job(workplace(database), run.id, 0)
    with sqlite3.connect("results.db") as connection:
        connection.execute("delete from results where position in (1, 5)")
        connection.execute("update runs set done = 6, finished_at = null")
    connection.close()
    start_job(database, run.id, 0, "tester")
    release_job(database, run.id, 0)
    reporter = Hears()

    for _ in range(2):
        give_up_job(workplace(database, reporter=reporter), run.id, 0, RuntimeError("out of memory"))

    assert rows("select position, text, finish_reason, generated_tokens, attempt, error from comparisons "
                "where status = 'failed'") == [(position, "", None, 0, 2, "RuntimeError: out of memory")
                                               for position in (1, 5)]
    assert rows("select done, failed, state, finished_at is null from run_summary") == [(6, 2, "done", 0)]
    assert reporter.heard == [0, (1, "failed"), (5, "failed")]
    assert job_counts(database, run.id) == JobCounts(0, 0)


def test_failures_that_are_retried_end_the_run_again_whatever_becomes_of_them(database: Database) -> None:
    run = record_run(database, plan())
    give_up_job(workplace(database), run.id, 0, RuntimeError("early"))      # before it was begun
    assert rows("select distinct status, attempt from results") == [("failed", 1)]

    assert retry_failed(database, run.id) == 8
    assert find_run(database, run.id).state == "queued"
    give_up_job(workplace(database), run.id, 0, RuntimeError("early"))      # in the same way
    assert rows("select failed, state from run_summary") == [(8, "done")]

    retry_failed(database, run.id)
    compare_job(workplace(database), run.id, 0)
    assert rows("select done, failed, state from run_summary") == [(8, 0, "done")]
    assert rows("select distinct error from results") == [(None,)]


def test_a_job_found_done_does_not_wait_any_more(database: Database) -> None:
    run = record_run(database, plan())
    compare_job(workplace(database), run.id, 0)
    with sqlite3.connect("results.db") as connection:      # as if killed before the job was marked
        connection.execute("update jobs set finished_at = null, seconds = null")
    connection.close()

    compare_job(workplace(database), run.id, 0)

    assert job_counts(database, run.id) == JobCounts(0, 0)


def test_a_second_signal_stops_at_the_next_step_and_what_had_finished_is_recorded(database: Database) -> None:
    stop = Stop()

    class StopsAtTheFirstResult(Reporter):
        def row(self, *_: object) -> None:
            stop.level = 2

    run = record_run(database, plan())

    with pytest.raises(Stopped):
        compare_job(workplace(database, stop, StopsAtTheFirstResult()), run.id, 0)

    found = find_run(database, run.id)
    assert 1 <= found.done < 8
    assert found.state == "running"
    assert rows("select started_at, finished_at from jobs") == [(None, None)]


def test_a_first_signal_lets_the_slice_finish(database: Database) -> None:
    stop = Stop()
    stop.request()
    run = record_run(database, plan())

    compare_job(workplace(database, stop), run.id, 0)

    assert find_run(database, run.id).done == 8


def test_a_job_larger_than_memory_allows_runs_in_slices(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record_run(database, plan())
    compare_job(workplace(database), run.id, 0)
    whole = rows("select position, text, token_ids from results order by position")
    again = record_run(database, plan())
    place = workplace(database)
    hold(place, again, monkeypatch, rows=3)

    compare_job(place, again.id, 0)

    assert rows(f"select position, text, token_ids from results where run_id = '{again.id}' order by position") == whole
    assert rows(f"select distinct batch_size from results where run_id = '{again.id}'") == [(3,)]


def test_a_first_signal_lets_the_slice_finish_and_begins_no_more_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    stop.request()
    run = record_run(database, plan())
    place = workplace(database, stop)
    hold(place, run, monkeypatch, rows=3)

    with pytest.raises(Stopped):
        compare_job(place, run.id, 0)

    assert find_run(database, run.id).done == 3
    assert rows("select started_at, finished_at from jobs") == [(None, None)]


def test_an_unreadable_pair_of_a_later_slice_fails_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run, place = record_run(database, plan()), workplace(database)
    hold(place, run, monkeypatch, rows=2)
    embeddings = place.session.prepare(run).inputs.embeddings
    embeddings.__dict__["rows"] = spoilt = embeddings.rows.copy()
    spoilt[3, 7, 7] = float("nan")

    compare_job(place, run.id, 0)

    assert rows("select position from results where status = 'failed' order by position") == [(4,), (5,), (6,)]
    assert rows("select done, failed, state from run_summary") == [(5, 3, "done")]


def test_a_cancel_is_heard_while_rows_wait_for_a_place(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CANCEL_EVERY", 0.0)

    class Cancels(Reporter):
        def row(self, run: Run, pair: Pair, result: Comparison) -> None:
            if find_run(database, run.id).state != "cancelled":
                cancel_run(database, run.id)

    run = record_run(database, plan())
    place = workplace(database, reporter=Cancels())
    hold(place, run, monkeypatch, rows=2)

    with pytest.raises(Cancelled):
        compare_job(place, run.id, 0)

    assert 1 <= find_run(database, run.id).done <= 2


def hold(place: Workplace, run: Run, monkeypatch: pytest.MonkeyPatch, *, rows: int) -> None:
    """Let a run's slices have so many rows only."""
    loaded = place.session.prepare(run)
    smaller = replace(loaded, plan=replace(loaded.plan, fitting=rows))
    monkeypatch.setattr(place.session, "prepare", lambda run: smaller)


def test_finished_rows_are_recorded_while_others_go_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "RECORD_EVERY", 0.0)
    seen: list[int] = []

    class Looks(Reporter):
        def row(self, run: Run, pair: Pair, result: object) -> None:
            seen.append(find_run(database, run.id).done)

    run = record_run(database, plan())

    compare_job(workplace(database, reporter=Looks()), run.id, 0)

    assert seen[0] == 0
    assert 0 < seen[-1] < 8


def test_a_cancelled_run_stops_in_the_middle_of_a_job_and_can_be_taken_up_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "CANCEL_EVERY", 0.0)

    class Cancels(Reporter):
        def row(self, run: Run, pair: Pair, result: object) -> None:
            if find_run(database, run.id).state != "cancelled":
                cancel_run(database, run.id)

    run = record_run(database, plan())
    with pytest.raises(Cancelled) as left:
        compare_job(workplace(database, reporter=Cancels()), run.id, 0)
    assert find_run(database, run.id).state == "cancelled"
    assert 1 <= find_run(database, run.id).done < 8
    with pytest.raises(Cancelled):
        compare_job(workplace(database), run.id, 0)

    assert not left.value.is_lifted()
    lift_cancel(database, run.id)
    assert left.value.is_lifted()
    compare_job(workplace(database), run.id, 0)
    assert find_run(database, run.id).done == 8


def test_weights_that_are_no_longer_those_of_the_run_are_refused_and_the_job_stays_to_be_done(
    database: Database, workspace: Path
) -> None:
    import shutil

    (workspace / "vision_weights").unlink()
    shutil.copytree(WEIGHTS, workspace / "vision_weights")
    run = record_run(database, plan())
    weights = workspace / "vision_weights" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1000] ^= 1
    weights.write_bytes(changed)

    with pytest.raises(WeightsError, match=f"not the one that run {run.id} was enqueued with"):
        compare_job(workplace(database), run.id, 0)

    assert rows("select done, state from run_summary") == [(0, "queued")]


def test_embeddings_that_are_no_longer_those_of_the_run_are_refused(database: Database, workspace: Path) -> None:
    run = record_run(database, plan())
    embeddings = workspace / "embeddings_512" / "embeddings.bin"
    changed = bytearray(embeddings.read_bytes())
    changed[0] ^= 1
    embeddings.write_bytes(changed)

    with pytest.raises(EmbeddingsError, match="not those that run"):
        compare_job(workplace(database), run.id, 0)


def test_a_run_goes_on_where_its_files_have_moved_to(database: Database, workspace: Path) -> None:
    run = record_run(database, plan())
    (workspace / "embeddings_512").rename(workspace / "elsewhere")
    reporter = Reporter()
    session = Session(database, weights=SMALL / "weights", embeds=workspace / "elsewhere", reporter=reporter)

    compare_job(Workplace(database, session, Stop(), reporter, "tester", "cpu"), run.id, 0)

    assert find_run(database, run.id).done == 8


def test_a_result_carries_what_it_was_made_with(database: Database) -> None:
    run = record_run(database, plan())

    compare_job(workplace(database), run.id, 0)

    result = read_result(database, run.id, 2)
    assert result is not None
    assert (result.worker, result.device, result.attempt, result.batch_size) == ("tester", "cpu", 1, 8)
    assert result.started_at <= result.finished_at
    assert result.prompt_tokens == len(plan().inputs.prompt.token_ids)
