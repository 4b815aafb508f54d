"""The schema: the contract of the two views, the steps that lead to it, and the tables that queries name."""

from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from store_samples import create_database, make_run

from store import migrations, schema
from store.database import open_database
from store.jobs import start_job
from store.runs import list_runs

# As design.md section 5 orders them; written out, so that a change of the schema cannot change them unseen.
COMPARISONS = """run_id, position, idx_a, idx_b, image_a, image_b, status, text, thinking, finish_reason, prompt_tokens,
    generated_tokens, seed, do_sample, temperature, top_k, top_p, repetition_penalty, max_tokens, prompt, batch_size,
    job_id, attempt, worker, device, started_at, finished_at, error"""
RUN_SUMMARY = """run_id, name, state, created_at, finished_at, total, done, failed, pending, seed, do_sample,
    temperature, top_k, top_p, repetition_penalty, max_tokens, prompt, batch_size, pairs_file, embeddings_dir,
    weights_dir, model_fingerprint, embeddings_fingerprint, version"""


def add_note(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN note TEXT")


def fail(connection: Connection) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(("view", "columns"), [("comparisons", COMPARISONS), ("run_summary", RUN_SUMMARY)])
def test_the_views_have_the_columns_of_the_contract(tmp_path: Path, view: str, columns: str) -> None:
    with create_database(tmp_path) as db, db.read() as connection:
        found = connection.exec_driver_sql(f"select * from {view}").keys()

    assert list(found) == columns.replace("\n", "").replace(" ", "").split(",")


def test_queries_name_the_tables_that_the_migrations_make(tmp_path: Path) -> None:
    with create_database(tmp_path) as db, db.read() as connection:
        inspector = inspect(connection)
        found = {name: ([(column["name"], column["nullable"]) for column in inspector.get_columns(name)],
                        inspector.get_pk_constraint(name)["constrained_columns"])
                 for name in inspector.get_table_names()}

    assert found == {name: ([(column.name, column.nullable) for column in table.columns],
                            [column.name for column in table.primary_key])
                     for name, table in schema.metadata.tables.items()}
    assert tuple(schema.comparisons.c.keys()) == schema.COMPARISON_COLUMNS


FIRST_RUN = {      # as the first version of the schema had it
    "id": "a1b2c3d4e5", "number": 1, "prompt": "Which?", "thinking": 0, "do_sample": 1, "temperature": 0.8, "top_k": 50,
    "top_p": 0.6, "repetition_penalty": 1.0, "max_tokens": 100, "seed": 7, "batch_size": 4, "embeddings_dir": "/e",
    "embeddings_fingerprint": "0", "weights_dir": "/w", "model_fingerprint": "1", "version": "0.1.0",
    "environment": "{}", "argv": "[]", "created_at": "2026-01-01T00:00:00.000Z", "total": 1, "done": 0, "failed": 0,
}


def test_a_run_of_the_first_version_was_divided_as_its_file_had_it_and_no_worker_died_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:1])
        with create_database(tmp_path) as old, old.write() as connection:
            columns, values = ", ".join(FIRST_RUN), ", ".join(f":{name}" for name in FIRST_RUN)
            connection.execute(text(f"INSERT INTO runs ({columns}) VALUES ({values})"), FIRST_RUN)
            connection.exec_driver_sql("INSERT INTO jobs (run_id, job, size, attempts) VALUES ('a1b2c3d4e5', 0, 1, 2)")

    with open_database(str(tmp_path / "results.db"), create=False) as database:
        [run] = list_runs(database)
        started = start_job(database, run.id, 0, "w")

    assert (run.id, run.pair_order, run.total) == ("a1b2c3d4e5", "file", 1)
    assert (started.attempt, started.deaths) == (3, 0)


def test_an_older_database_is_brought_up_to_date_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create_database(tmp_path) as db:
        run = make_run(db)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, add_note))

    with open_database(str(tmp_path / "results.db"), create=False) as newer, newer.read() as connection:
        notes = connection.exec_driver_sql("select id, note from runs").all()
        version = migrations.read_version(connection)

    assert notes == [(run.id, None)]
    assert version == len(migrations.MIGRATIONS)
    assert newer.id == db.id


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_database(tmp_path).close()
    steps = migrations.MIGRATIONS

    monkeypatch.setattr(migrations, "MIGRATIONS", (*steps, add_note, fail))
    with pytest.raises(ZeroDivisionError):
        open_database(str(tmp_path / "results.db"), create=False)
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)

    with open_database(str(tmp_path / "results.db"), create=False) as db:
        assert list_runs(db) == []
        with db.read() as connection:
            assert "note" not in connection.exec_driver_sql("select * from runs").keys()  # noqa: SIM118 (not a dict)


def test_migrating_twice_is_safe(tmp_path: Path) -> None:
    with create_database(tmp_path) as db:
        with db.write() as connection:
            migrations.migrate(connection)

        with db.read() as connection:
            assert dict(connection.execute(schema.meta.select()).all())["id"] == db.id
