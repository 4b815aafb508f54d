"""Runs: made all or nothing, found by what a person types, cancelled and taken up again."""

import re
import signal
import sqlite3
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from store_samples import IMAGES, NEW_RUN, ON_SQLITE, create_database, make_pairs, make_row, make_run, python

from store.database import Database, open_database
from store.errors import RunError
from store.jobs import read_pairs, start_job, unfinished_jobs
from store.records import NewRun, Pair
from store.results import record_results
from store.runs import cancel_run, check_name, create_run, find_run, is_cancelled, lift_cancel, list_runs


def count(db: Database, table: str) -> int:
    with db.read() as connection:
        return int(connection.exec_driver_sql(f"select count(*) from {table}").scalar_one())


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that the next runs get, in order: real ones are drawn."""
    planned: list[str] = []
    monkeypatch.setattr("store.runs.secrets.token_hex", lambda n_bytes: planned.pop(0))
    return planned


def test_a_run_is_read_as_it_was_given(database: Database) -> None:
    made = make_run(database, 10)

    read = find_run(database, made.id)
    assert read == made
    assert {field.name: getattr(read, field.name) for field in fields(NewRun)} == {
        field.name: getattr(NEW_RUN, field.name) for field in fields(NEW_RUN)
    }
    assert re.fullmatch("[0-9a-f]{10}", read.id)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read.created_at)
    assert (read.total, read.done, read.failed, read.pending, read.state) == (10, 0, 0, 10, "queued")
    assert read.finished_at is None


def test_the_pairs_and_jobs_are_those_of_the_plan(database: Database) -> None:
    pairs = make_pairs(10)

    run = make_run(database, pairs=iter(pairs))

    assert unfinished_jobs(database, run.id) == [0, 1, 2]
    assert [pair for job in range(3) for pair in read_pairs(database, run.id, job)] == pairs


def test_the_names_of_images_are_kept_once_for_the_same_embeddings(database: Database) -> None:
    for fingerprint in ("a", "a", "b"):
        make_run(database, embeddings_fingerprint=fingerprint)

    assert count(database, "images") == 2 * len(IMAGES)


def test_a_run_that_cannot_be_made_whole_leaves_nothing(database: Database) -> None:
    def broken() -> Iterator[Pair]:
        yield from make_pairs(25_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_run(database, pairs=broken())

    assert [count(database, table) for table in ("runs", "pairs", "jobs", "images")] == [0, 0, 0, 0]


def test_a_run_whose_maker_is_killed_leaves_nothing(tmp_path: Path) -> None:
    create_database(tmp_path).close()
    code = """
import sys; sys.path.insert(0, "tests")
from store.database import open_database; from store_samples import make_pairs, make_run
def stuck():
    yield from make_pairs(60_000)
    print("in the middle", flush=True); sys.stdin.read()
make_run(open_database(sys.argv[1], create=False), pairs=stuck())
"""
    maker = python(code, tmp_path / "results.db", stdin=-1)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "in the middle\n"
    log = tmp_path / "results.db-wal"

    maker.send_signal(signal.SIGKILL)
    maker.communicate()

    assert log.exists()
    with open_database(str(tmp_path / "results.db"), create=False) as db:
        assert list_runs(db) == []
        assert [count(db, table) for table in ("pairs", "jobs", "images")] == [0, 0, 0]
        with db.write() as connection:
            assert connection.exec_driver_sql("pragma integrity_check").scalar() == "ok"
        assert make_run(db).total == 8


@ON_SQLITE
def test_a_run_of_many_pairs_is_made_in_flat_memory(database: Database) -> None:
    def peak(pairs: int) -> int:
        tracemalloc.start()
        make_run(database, pairs=(Pair(n, n % 4, 1, 2**53 - 1 - n, n // 64) for n in range(pairs)))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(30_000) < 1.1 * peak(15_000)


def test_a_run_without_pairs_is_refused(database: Database) -> None:
    with pytest.raises(RunError, match="expected at least one pair, found none"):
        make_run(database, pairs=[])

    assert list_runs(database) == []


def test_hostile_text_is_kept_as_every_database_can_hold_it(database: Database) -> None:
    text = "'; DROP TABLE runs; --\x00\ud800 \x1b[31m\n<b>" + "x" * 100_000
    kept = text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")

    run = create_run(database, NewRun(**{field.name: getattr(NEW_RUN, field.name) for field in fields(NEW_RUN)} | {
        "prompt": text, "argv": (text,), "environment": {"chip": text}, "weights_dir": text}), make_pairs(1), [text])

    assert (run.prompt, run.argv, run.environment, run.weights_dir) == (kept, (kept,), {"chip": kept}, kept)
    with database.read() as connection:
        assert connection.exec_driver_sql("select image_a from comparisons").scalar() == kept


@pytest.mark.parametrize("name", ["night", "2026-01-31 first try", "a/b", "ünïcode 😀", "abc", "0", "x" * 100])
def test_a_name_that_a_person_can_type_is_taken(database: Database, name: str) -> None:
    run = make_run(database, name=name)

    assert find_run(database, name).id == run.id


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\tb", "\x1b[31m", "a\u202eb", "a\x00", "\ud800", "x" * 101,
                                  "-n", "--all", "0123456789", "ABCDEFabcd"])
def test_a_name_that_could_mean_something_else_is_refused(database: Database, name: str) -> None:
    with pytest.raises(RunError, match="name of the run: expected"):
        check_name(name)
    with pytest.raises(RunError, match="name of the run: expected"):
        make_run(database, name=name)

    assert list_runs(database) == []


def test_a_name_used_twice_means_the_latest_run(database: Database) -> None:
    runs = [make_run(database, name=name) for name in ("night", "night", "day")]

    assert find_run(database, "night").id == runs[1].id


def test_no_reference_means_the_latest_run(database: Database) -> None:
    runs = [make_run(database) for _ in range(5)]

    assert find_run(database, None).id == runs[-1].id
    assert [run.id for run in list_runs(database)] == [run.id for run in runs]


def test_the_beginning_of_an_id_is_enough_while_it_is_the_only_one(database: Database, ids: list[str]) -> None:
    ids += ["abc0000000", "abd0000000", "f000000000"]
    for _ in range(3):
        make_run(database)

    assert find_run(database, "abc0000000").id == "abc0000000"
    assert find_run(database, "abd").id == "abd0000000"
    assert find_run(database, "F").id == "f000000000"
    with pytest.raises(RunError, match=r"found 2 whose ids begin so.*abd0000000 \(night\), abc0000000 \(night\)$"):
        find_run(database, "ab")


def test_an_id_goes_before_a_name_and_a_name_before_the_beginning_of_an_id(database: Database, ids: list[str]) -> None:
    ids += ["abc0000000", "f000000000"]
    make_run(database, name=None)
    named = make_run(database, name="abc")

    assert find_run(database, "abc").id == named.id
    assert find_run(database, "abc0").id == "abc0000000"


@pytest.mark.parametrize("reference", ["zzz", "", "%", "_", "a\x00", "\ud800", "'; drop table runs; --", "x" * 100_000])
def test_an_unknown_reference_lists_the_runs_that_there_are(database: Database, reference: str) -> None:
    runs = [make_run(database, name=f"night {number}") for number in range(7)]

    with pytest.raises(RunError, match="expected an id, the beginning of one, or a name; found none") as refused:
        find_run(database, reference)

    assert f"{runs[-1].id} (night 6), " in str(refused.value)
    assert "night 1" not in str(refused.value)
    assert str(refused.value).endswith("and more: `diptych runs` lists them")


@pytest.mark.parametrize("reference", [None, "night"])
def test_without_any_run_the_error_says_how_to_make_one(database: Database, reference: str | None) -> None:
    with pytest.raises(RunError, match="expected a run, found none yet; `diptych enqueue PAIRS` makes one"):
        find_run(database, reference)


def test_a_run_is_queued_then_running_then_done(database: Database) -> None:
    run = make_run(database, 2)
    states = [run.state]

    start_job(database, run.id, 0, "w1")
    states.append(find_run(database, run.id).state)
    record_results(database, run.id, [make_row(0), make_row(1, error="unreadable")])
    states.append(find_run(database, run.id).state)

    assert states == ["queued", "running", "done"]


def test_a_cancelled_run_goes_on_when_the_cancel_is_lifted(database: Database) -> None:
    run = make_run(database)
    other = make_run(database)
    start_job(database, run.id, 0, "w1")

    cancel_run(database, run.id)
    cancel_run(database, run.id)

    assert find_run(database, run.id).state == "cancelled"
    assert [is_cancelled(database, run_id) for run_id in (run.id, other.id)] == [True, False]
    lift_cancel(database, run.id)
    lift_cancel(database, run.id)
    assert find_run(database, run.id).state == "running"
    assert not is_cancelled(database, run.id)


def test_only_a_run_with_something_to_do_can_be_cancelled(database: Database) -> None:
    run = make_run(database, 1)
    record_results(database, run.id, [make_row(0)])

    with pytest.raises(RunError, match="expected pairs that are still to do, found it done"):
        cancel_run(database, run.id)
    with pytest.raises(RunError, match="expected an id"):
        cancel_run(database, "nonesuch")


@ON_SQLITE
def test_the_view_of_runs_says_the_same_as_the_records(database: Database) -> None:
    run = make_run(database, 3)
    cancelled = make_run(database, 3)
    start_job(database, run.id, 0, "w1")
    record_results(database, run.id, [make_row(0), make_row(1, error="unreadable")])
    cancel_run(database, cancelled.id)

    connection = sqlite3.connect(database.location)
    connection.row_factory = sqlite3.Row
    rows = [dict(row) for row in connection.execute("select * from run_summary order by created_at, total")]
    connection.close()

    for row, record in zip(rows, list_runs(database), strict=True):
        known = asdict(record) | asdict(record.sampling) | {"run_id": record.id, "pending": record.pending}
        assert row == {name: known[name] for name in row}
    assert [row["state"] for row in rows] == ["running", "cancelled"]
