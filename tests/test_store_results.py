"""Results: recorded once each, by whomever and how often; read back as they were, however many there are."""

import random
import sqlite3
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from store_samples import ON_SQLITE, finish, make_row, make_run, python

from store.database import Database
from store.errors import RunError
from store.records import Comparison
from store.results import COMPARISON_COLUMNS, Filters, read_comparisons, read_result, record_results
from store.runs import find_run, list_runs


def counters(db: Database, run_id: str) -> tuple[int, int]:
    run = find_run(db, run_id)
    return run.done, run.failed


def found(db: Database, run_id: str, **filters: Any) -> list[int]:
    return [row["position"] for row in read_comparisons(db, run_id, Filters(**filters))]


def test_a_row_is_read_as_it_was_recorded(database: Database) -> None:
    run = make_run(database)
    rows = [make_row(0, thinking="Hm.", finish_reason="length", token_ids=(0, 2**32 - 1), seed=2**53 - 1, batch_size=3),
            make_row(1, token_ids=()), make_row(7, error="expected finite numbers, found NaN", attempt=2)]

    recorded = record_results(database, run.id, rows)

    assert recorded == 3
    assert [read_result(database, run.id, row.position) for row in rows] == rows
    assert read_result(database, run.id, 2) is None
    assert read_result(database, "nonesuch", 0) is None


def test_hostile_text_is_kept_as_every_database_can_hold_it(database: Database) -> None:
    text = "'; DROP TABLE runs; --\x00\ud800 \x1b[31m\r\n=1+1\u2028<b>😀" + "x" * 100_000
    kept = text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    run = make_run(database)

    record_results(database, run.id, [make_row(0, text=text, thinking=text), make_row(1, error=text)])

    done, failed = read_result(database, run.id, 0), read_result(database, run.id, 1)
    assert done is not None
    assert (done.text, done.thinking) == (kept, kept)
    assert failed is not None
    assert (failed.text, failed.error) == ("", kept)
    assert next(read_comparisons(database, run.id, Filters()))["text"] == kept


def test_recording_the_same_rows_again_changes_nothing(database: Database) -> None:
    run = make_run(database)
    rows = [make_row(0), make_row(1, error="unreadable"), make_row(1, error="unreadable"), make_row(0)]

    written = [record_results(database, run.id, rows) for _ in range(3)]

    assert written == [2, 0, 0]
    assert counters(database, run.id) == (1, 1)


@pytest.mark.parametrize(("first", "second", "kept"), [
    (make_row(0), make_row(0, text="other", attempt=2), 0),
    (make_row(0), make_row(0, error="late", attempt=2), 0),
    (make_row(0, error="early"), make_row(0, attempt=2), 1),
    (make_row(0, error="late", attempt=2), make_row(0, attempt=1), 1),
    (make_row(0, error="early"), make_row(0, error="late", attempt=2), 1),
    (make_row(0, error="late", attempt=2), make_row(0, error="early"), 0),
], ids=["done-done", "done-failed", "failed-done", "failed-earlier-done", "failed-failed", "failed-earlier-failed"])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_success_is_final_and_a_failure_gives_way(
    database: Database, first: Comparison, second: Comparison, kept: int, at_once: bool
) -> None:
    run = make_run(database)

    for rows in [[first, second]] if at_once else [[first], [second]]:
        record_results(database, run.id, rows)

    row = (first, second)[kept]
    assert read_result(database, run.id, 0) == row
    assert counters(database, run.id) == ((1, 0) if row.status == "done" else (0, 1))


def test_counters_are_exact_after_any_sequence(database: Database) -> None:
    draw = random.Random(0)
    run = make_run(database, 12)
    for _ in range(60):
        record_results(database, run.id, [
            make_row(draw.randrange(12), attempt=draw.randint(1, 3), error=draw.choice([None, "unreadable", "broken"]))
            for _ in range(draw.randint(0, 5))
        ])

        with database.read() as connection:
            rows = connection.exec_driver_sql("select status, count(*) from comparisons group by status").all()
        counted = dict(map(tuple, rows))
        now = find_run(database, run.id)
        expected = [counted.get(status, 0) for status in ("done", "failed", "pending")]
        assert [now.done, now.failed, now.pending] == expected
        assert (now.finished_at is not None) == (now.pending == 0)


def test_a_run_ends_with_its_last_row(database: Database) -> None:
    run = make_run(database, 3)
    states = []

    for position in (2, 0, 0, 1):
        record_results(database, run.id, [make_row(position, error="unreadable" if position == 0 else None)])
        states.append(find_run(database, run.id).state)

    assert states == ["queued", "queued", "queued", "done"]


def test_two_processes_that_record_the_same_rows_leave_each_once(database: Database, location: str) -> None:
    code = """
import sys; sys.path.insert(0, "tests")
from store.database import open_database; from store.results import record_results; from store_samples import make_row
with open_database(sys.argv[1], create=False) as db:
    for start in range(0, 400, 4):
        record_results(db, sys.argv[2], [make_row(n, text=sys.argv[3]) for n in range(start, start + 4)])
"""
    run = make_run(database, 400)

    for process in [python(code, location, run.id, number) for number in range(2)]:
        finish(process)

    assert counters(database, run.id) == (400, 0)
    assert found(database, run.id, status="done") == list(range(400))


def test_an_unknown_run_has_no_results(database: Database) -> None:
    with pytest.raises(RunError, match="expected run 'nonesuch', found no such run"):
        record_results(database, "nonesuch", [make_row(0)])

    assert found(database, "nonesuch") == []


@pytest.mark.parametrize("row", [
    make_row(8), make_row(0, error="x", status="done"), replace(make_row(0), status="failed"),
    replace(make_row(0), status="unsure"), replace(make_row(0), finish_reason="tired"),
])
def test_a_row_that_makes_no_sense_is_refused_with_its_neighbours(database: Database, row: Comparison) -> None:
    run = make_run(database, 8)

    with pytest.raises(IntegrityError):
        record_results(database, run.id, [make_row(1), row])

    assert [(run.done, run.failed) for run in list_runs(database)] == [(0, 0)]


def test_a_pending_pair_has_its_seed_and_its_job_and_no_answer(database: Database) -> None:
    run = make_run(database, 8)

    rows = list(read_comparisons(database, run.id, Filters()))

    assert rows[5] == {
        "run_id": run.id, "position": 5, "idx_a": 1, "idx_b": 2, "image_a": "cats/two.jpg", "image_b": "dogs/one.jpg",
        "status": "pending", "text": None, "thinking": None, "finish_reason": None, "prompt_tokens": None,
        "generated_tokens": None, "seed": 1005, "do_sample": 1, "temperature": 0.7, "top_k": 40, "top_p": 0.9,
        "repetition_penalty": 1.1, "max_tokens": 20, "prompt": "Compare these two images.", "batch_size": None,
        "job_id": f"{run.id}-1", "attempt": None, "worker": None, "device": None, "started_at": None,
        "finished_at": None, "error": None,
    }


def test_a_comparison_has_what_was_recorded_in_the_order_of_the_view(database: Database) -> None:
    run = make_run(database, 8)
    record_results(database, run.id, [make_row(5, batch_size=3, attempt=2)])

    row = list(read_comparisons(database, run.id, Filters()))[5]

    assert tuple(row) == COMPARISON_COLUMNS
    assert {name: row[name] for name in ("status", "text", "generated_tokens", "batch_size", "attempt", "worker")} == {
        "status": "done", "text": "Answer 5.", "generated_tokens": 3, "batch_size": 3, "attempt": 2, "worker": "w1"}


def test_images_without_a_name_are_none(database: Database) -> None:
    run = make_run(database, 1)
    with database.write() as connection:
        connection.exec_driver_sql("delete from images where idx = 1")

    row = next(read_comparisons(database, run.id, Filters()))

    assert (row["image_a"], row["image_b"]) == ("cats/one.jpg", None)


@pytest.mark.parametrize(("filters", "positions"), [
    ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ({"pair": (1, 2)}, [1, 5]),
    ({"pair": (2, 1)}, []),
    ({"image": 3}, [2, 3, 6, 7]),
    ({"image": "3"}, [2, 3, 6, 7]),
    ({"image": "cats/two.jpg"}, [0, 1, 4, 5]),
    ({"image": "two.jpg"}, [0, 1, 4, 5]),
    ({"image": "one.jpg"}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ({"image": "wo.jpg"}, []),
    ({"image": "TWO.JPG"}, []),
    ({"image": "100%_sure.png"}, [2, 3, 6, 7]),
    ({"image": "100%"}, []),
    ({"image": "a/very/long/path/that/no/image/has.jpg"}, []),
    ({"image": "²"}, []),
    ({"status": "done"}, [0, 1, 2, 3]),
    ({"status": "failed"}, [4]),
    ({"status": "pending"}, [5, 6, 7]),
    ({"contains": "bright"}, [0, 1, 2]),
    ({"contains": "BRIGHT"}, [0, 1, 2]),
    ({"contains": "äRGER"}, [2]),
    ({"contains": "100%"}, [1]),
    ({"contains": "1%"}, []),
    ({"contains": "a_b"}, [3]),
    ({"contains": "/"}, [3]),
    ({"contains": "unreadable"}, []),
    ({"contains": "' or 1=1 --"}, []),
    ({"contains": "\x00"}, [2]),
    ({"contains": "", "limit": 2}, [0, 1]),
    ({"limit": 3}, [0, 1, 2]),
    ({"limit": 0}, []),
    ({"status": "done", "contains": "bright", "image": 2, "limit": 5}, [1, 2]),
])
def test_filters_let_through_what_they_say(database: Database, filters: dict[str, Any], positions: list[int]) -> None:
    texts = ("A is Brighter.", "brighter: 100% sure", "brightest, kein Ärger \x00", "a_b or a/b; axb 1000")
    run = make_run(database, 8)
    other = make_run(database, 8)
    record_results(database, run.id, [make_row(position, text=text) for position, text in enumerate(texts)])
    record_results(database, run.id, [make_row(4, error="unreadable: bright")])
    record_results(database, other.id, [make_row(position, text="bright") for position in range(8)])

    assert found(database, run.id, **filters) == positions


def test_a_limit_counts_over_ranges(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.results._RANGE", 3)
    run = make_run(database, 20)
    record_results(database, run.id, [make_row(position) for position in range(0, 20, 2)])

    assert found(database, run.id) == list(range(20))
    assert found(database, run.id, status="done", limit=7) == [0, 2, 4, 6, 8, 10, 12]


@ON_SQLITE
def test_many_rows_are_read_in_flat_memory(database: Database) -> None:
    def peak(rows: int) -> int:
        run = make_run(database, rows)
        record_results(database, run.id, [make_row(n, text=f"Answer {n}. " * 50) for n in range(rows)])
        tracemalloc.start()
        for number, row in enumerate(read_comparisons(database, run.id, Filters())):
            assert (row["position"], row["text"]) == (number, f"Answer {number}. " * 50)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert number == rows - 1
        return used

    assert peak(24_000) < 1.2 * peak(6_000)


@ON_SQLITE
def test_a_slow_reader_does_not_hold_the_log(database: Database) -> None:
    run = make_run(database, 5_000)
    rows = read_comparisons(database, run.id, Filters())
    next(rows)
    record_results(database, run.id, [make_row(4_999)])

    connection = sqlite3.connect(database.location, timeout=0)
    busy, _, _ = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
    connection.close()

    assert busy == 0
    assert [row["status"] for row in rows][-1] == "done"


@ON_SQLITE
def test_a_range_of_the_view_is_found_by_keys_alone(database: Database) -> None:
    with database.read() as connection:
        plan = connection.exec_driver_sql(
            "explain query plan select * from comparisons where run_id = 'a' and position >= 5 and position < 9"
            " and status = 'done' order by position"
        ).all()

    steps = [row[3] for row in plan]
    assert not [step for step in steps if not step.startswith("SEARCH")]
    assert any("(run_id=? AND position>? AND position<?)" in step for step in steps)
