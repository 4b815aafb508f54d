"""The database: who may open it, what is refused untouched, and what two processes do at once."""

import errno
import os
import sqlite3
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from conftest import wait_for
from sqlalchemy.exc import IntegrityError
from store_samples import create_database, finish, make_row, make_run, python

from store.database import batched, database_exists, open_database
from store.errors import DatabaseError
from store.results import record_results
from store.runs import list_runs
from store.schema import meta
from store.sqlite import locked


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that any user may enter."""
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be somebody who is not root, to whom permissions mean nothing."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def is_locked(path: Path) -> bool:
    """Say whether somebody holds the lock of a database."""
    try:
        with locked(path, timeout=0):
            return False
    except DatabaseError:
        return True


def test_a_database_keeps_its_id(tmp_path: Path) -> None:
    with create_database(tmp_path) as first, create_database(tmp_path) as second:
        ids = {first.id, second.id}
    with open_database(str(tmp_path / "results.db"), create=False) as third:
        ids.add(third.id)

    assert len(ids) == 1
    assert len(third.id) == 32
    assert int(third.id, 16)


def test_a_missing_database_is_made_only_where_that_was_asked(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"no database at .*results\.db; `diptych enqueue` makes one"):
        open_database(str(tmp_path / "results.db"), create=False)

    assert list(tmp_path.iterdir()) == []
    assert not database_exists(str(tmp_path / "results.db"))


def test_an_empty_file_may_become_a_database(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    path.touch()

    with pytest.raises(DatabaseError, match="no database at"):
        open_database(str(path), create=False)
    assert path.stat().st_size == 0
    assert not database_exists(str(path))
    with open_database(str(path), create=True) as db:
        assert list_runs(db) == []
    assert database_exists(str(path))


@pytest.mark.parametrize("content", [b"0,1\n2,3\n", b"SQLite format 3\x00" + b"\xff" * 5000, os.urandom(20_000)])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)

    with pytest.raises(DatabaseError, match=r"pairs\.txt: expected a database.*another --db|pairs\.txt: .*restore"):
        open_database(str(path), create=True)

    assert path.read_bytes() == content


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "photos.db"
    connection = sqlite3.connect(path)
    connection.execute(f"pragma journal_mode={journal}")
    connection.execute("create table runs (id integer, distance real)")
    connection.commit()
    connection.close()
    before = path.read_bytes()

    with pytest.raises(DatabaseError, match=r"photos\.db: expected a database of diptych .*another program's tables"):
        open_database(str(path), create=True)

    assert path.read_bytes() == before


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with create_database(tmp_path) as db, db.write() as connection:
        connection.execute(meta.update().where(meta.c.key == "version").values(value="99"))
    before = (tmp_path / "results.db").read_bytes()

    with pytest.raises(DatabaseError, match=r"expected .* version \d+ or older, found version 99, .*newer.* update"):
        open_database(str(tmp_path / "results.db"), create=True)

    assert (tmp_path / "results.db").read_bytes() == before


@pytest.mark.parametrize(("location", "message"), [
    ("", "expected the path of a file"),
    ("sqlite://", "expected the path of a file"),
    (":memory:", "expected the path of a file"),
    ("a\0b", "expected the path of a file"),
    ("x" * 5000, "x: expected"),
    ("no/such/folder/results.db", "expected a folder where a database can be kept, found No such file or directory"),
    ("/dev/null", "expected a database file, found no regular file"),
    (tempfile.gettempdir(), "expected a database file, found a folder"),
    (f"{__file__}/results.db", "found Not a directory"),
    ("mysql://me:secret@host/name", r"expected a path, sqlite:///PATH or postgresql.*found mysql://"),
    ("postgresql+asyncpg://me:secret@host/name", "found postgresql\\+asyncpg://"),
    ("nonsense://me:secret@host:port:port/", "found a URL that cannot be read"),
    ("sqlite:///results.db?secret=1", r"without options, found sqlite:///results\.db with secret$"),
    ("sqlite:///results.db?password=hush&mode=ro", r"found sqlite:///results\.db with password, mode$"),
    ("sqlite://results.db", "without options, found sqlite://results.db$"),
    ("postgresql+psycopg://u:hush@hush@host/x", "found more than one @.* write % / .* as %25 %2F"),
    ("postgresql+psycopg://u:hush@hu/sh@host/x", "found more than one @"),
    ("postgresql+psycopg://u:hush/@hush@host/x", "found more than one @"),
    ("postgresql+psycopg://u:hush@hush?@host/x", "found more than one @"),
    ("postgresql+psycopg://host:5432/x?password=hush@hush", "one after a ?"),
    ("sqlite://u:hush@hush@host/x", "found more than one @"),
])
def test_a_location_that_cannot_be_is_refused(location: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as refused:
        open_database(location, create=True)

    assert "me:secret" not in str(refused.value)
    assert "hush" not in str(refused.value)


def test_a_path_may_have_any_number_of_ats(tmp_path: Path) -> None:
    path = tmp_path / "me@home:x@y" / "a@b.db"
    path.parent.mkdir()

    for location in (f"sqlite:///{path}", str(path)):
        with open_database(location, create=True) as db:
            assert db.path == path


def test_a_url_and_a_path_name_the_same_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    with create_database(tmp_path) as db:
        for name in ("results.db", "~/results.db", "sqlite:///results.db", f"sqlite+pysqlite:///{tmp_path}/results.db"):
            with open_database(name, create=False) as other:
                assert other.id == db.id
                assert other.location == str((tmp_path / "results.db").resolve())


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    path = tmp_path / "50% off? #1 & ünïcode" / "my results.db"
    path.parent.mkdir()

    with open_database(str(path), create=True) as db:
        run = make_run(db)

    assert sorted(file.name for file in path.parent.iterdir()) == ["my results.db", "my results.db-lock"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select run_id from run_summary").fetchall() == [(run.id,)]


def test_a_link_shares_the_lock_of_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "results.db")

    with create_database(tmp_path) as db, open_database(str(tmp_path / "link.db"), create=False) as other:
        assert (other.path, other.id) == (db.path, db.id)


def test_a_folder_that_cannot_be_written_is_named(shared_folder: Path) -> None:
    shared_folder.chmod(0o555)

    with ordinary_user(), pytest.raises(DatabaseError, match=r"results\.db: .*found Permission denied.*permissions"):
        open_database(str(shared_folder / "results.db"), create=True)


def test_a_file_that_cannot_be_read_is_named(shared_folder: Path) -> None:
    create_database(shared_folder).close()
    (shared_folder / "results.db").chmod(0)

    with ordinary_user(), pytest.raises(DatabaseError, match=r"results\.db: expected .*unable to open.*check"):
        open_database(str(shared_folder / "results.db"), create=False)


def test_a_database_that_cannot_be_written_is_named(shared_folder: Path) -> None:
    create_database(shared_folder).close()
    (shared_folder / "results.db").chmod(0o444)
    shared_folder.chmod(0o555)

    with ordinary_user(), pytest.raises(DatabaseError, match=r"results\.db: .*check the permissions of the file"):
        open_database(str(shared_folder / "results.db"), create=True)


def test_a_database_that_another_user_may_only_read_is_read_while_it_is_written(shared_folder: Path) -> None:
    with create_database(shared_folder) as db:
        make_run(db)

        with ordinary_user(), open_database(db.location, create=False) as other:
            assert [run.total for run in list_runs(other)] == [8]
            with pytest.raises(DatabaseError, match=r"found Permission denied \(results\.db-lock\)"):
                make_run(other)


def test_processes_that_create_a_database_at_once_agree_on_its_id(tmp_path: Path) -> None:
    code = """
import sys, time; from pathlib import Path; from store.database import open_database
folder = Path(sys.argv[1]); (folder / f"ready{sys.argv[2]}").touch()
while not (folder / "go").exists(): time.sleep(0.001)
with open_database(str(folder / "results.db"), create=True) as db: print(db.id)
"""
    processes = [python(code, tmp_path, number) for number in range(4)]
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 4, "four processes to be ready")

    (tmp_path / "go").touch()
    ids = {finish(process) for process in processes}

    with open_database(str(tmp_path / "results.db"), create=False) as db:
        assert ids == {f"{db.id}\n"}


def test_a_database_that_is_being_made_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_database(tmp_path).close()
    (tmp_path / "results.db").rename(tmp_path / "made.db")
    (tmp_path / "results.db").touch()
    waits = threading.Event()
    monkeypatch.setattr("store.sqlite.time.sleep", lambda seconds: waits.set())

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "results.db"):
            opened = pool.submit(open_database, str(tmp_path / "results.db"), create=False)
            assert waits.wait(30)
            (tmp_path / "results.db").write_bytes((tmp_path / "made.db").read_bytes())
        opened.result().close()


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    code = """
import sys; from store.database import open_database; from store.schema import meta
with open_database(sys.argv[1], create=False) as db:
    for _ in range(100):
        with db.write() as connection:
            value = int(connection.scalar(meta.select().with_only_columns(meta.c.value).where(meta.c.key == "count")))
            connection.execute(meta.update().where(meta.c.key == "count").values(value=str(value + 1)))
"""
    with create_database(tmp_path) as db:
        with db.write() as connection:
            connection.execute(meta.insert().values(key="count", value="0"))
        processes = [python(code, db.location) for _ in range(3)]
        for process in processes:
            finish(process)

        with db.read() as connection:
            assert dict(connection.execute(meta.select()).all())["count"] == "300"


def test_no_other_program_writes_between_what_a_transaction_reads_and_what_it_writes(tmp_path: Path) -> None:
    with create_database(tmp_path) as db, closing(sqlite3.connect(db.location, timeout=0)) as foreign:
        with db.write() as connection:
            before = dict(connection.execute(meta.select()).all())
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                foreign.execute("insert into diptych values ('theirs', '1')")
            connection.execute(meta.insert().values(key="ours", value="1"))

        with db.read() as connection:
            assert dict(connection.execute(meta.select()).all()) == before | {"ours": "1"}


def test_a_program_that_writes_without_our_lock_is_waited_for(tmp_path: Path) -> None:
    with create_database(tmp_path) as db, closing(sqlite3.connect(db.location, isolation_level=None)) as foreign:
        run, path = make_run(db), tmp_path / "results.db"
        foreign.execute("begin immediate")

        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(record_results, db, run.id, [make_row(0)])
            wait_for(lambda: is_locked(path) or written.done(), "the writer to begin")
            assert not wait([written], timeout=0.3).done
            foreign.execute("commit")
            assert written.result() == 1

        assert [run.done for run in list_runs(db)] == [1]


def test_readers_see_what_is_committed_while_another_process_writes(tmp_path: Path) -> None:
    code = """
import sys; from store_samples import make_run; from store.database import open_database; from store.schema import meta
with open_database(sys.argv[1], create=False) as db, db.write() as connection:
    connection.execute(meta.insert().values(key="half", value="way")); print("writing", flush=True); sys.stdin.read()
"""
    with create_database(tmp_path) as db:
        run = make_run(db)
        record_results(db, run.id, [make_row(0)])
        writer = python(f"import sys; sys.path.insert(0, 'tests')\n{code}", db.location, stdin=-1)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"

        seen = list_runs(db)
        foreign = sqlite3.connect(db.location, timeout=0)
        answers = foreign.execute("select text from comparisons where status = 'done'").fetchall()
        half = foreign.execute("select count(*) from diptych where key = 'half'").fetchone()
        foreign.close()
        finish(writer)

        assert [run.done for run in seen] == [1]
        assert answers == [("Answer 0.",)]
        assert half == (0,)
        with db.read() as connection:
            assert ("half", "way") in connection.execute(meta.select()).all()


def test_a_reading_connection_cannot_write(tmp_path: Path) -> None:
    with (
        create_database(tmp_path) as db,
        pytest.raises(DatabaseError, match="attempt to write a readonly database; check the permissions"),
        db.read() as connection,
    ):
        connection.execute(meta.insert().values(key="a", value="b"))


def test_a_read_sees_one_moment(tmp_path: Path) -> None:
    with create_database(tmp_path) as db:
        with db.read() as connection:
            before = connection.execute(meta.select()).all()
            make_run(db)
            with db.write() as other:
                other.execute(meta.insert().values(key="a", value="b"))
            after = connection.execute(meta.select()).all()

        assert before == after


def test_an_exception_rolls_a_transaction_back(tmp_path: Path) -> None:
    with create_database(tmp_path) as db:
        with suppress(ZeroDivisionError), db.write() as connection:
            connection.execute(meta.insert().values(key="a", value="b"))
            raise ZeroDivisionError

        with db.write() as connection:
            assert "a" not in dict(connection.execute(meta.select()).all())


def test_a_broken_constraint_is_a_bug_and_no_error_of_the_user(tmp_path: Path) -> None:
    with create_database(tmp_path) as db, pytest.raises(IntegrityError), db.write() as connection:
        connection.execute(meta.insert().values(key="id", value="again"))


def test_a_full_disk_is_named_and_costs_nothing(tmp_path: Path) -> None:
    with create_database(tmp_path) as db:
        run = make_run(db)
        with db.write() as connection:
            pages = connection.exec_driver_sql("pragma page_count").scalar()
            connection.exec_driver_sql(f"pragma max_page_count = {pages}")

        with pytest.raises(DatabaseError, match="database or disk is full; make room"):
            record_results(db, run.id, [make_row(position, text="x" * 20_000) for position in range(8)])

        assert [run.done for run in list_runs(db)] == [0]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_database_that_was_moved_while_open_takes_no_more_rows(tmp_path: Path, replaced: bool) -> None:
    with create_database(tmp_path) as db:
        run = make_run(db)
        (tmp_path / "results.db").rename(tmp_path / "old.db")
        if replaced:
            create_database(tmp_path).close()

        with pytest.raises(DatabaseError, match=r"results\.db: .*moved, deleted or replaced; put it back"):
            record_results(db, run.id, [make_row(0)])
        with pytest.raises(DatabaseError, match="moved, deleted or replaced"):
            list_runs(db)


def test_closing_leaves_one_file_with_everything_in_it(tmp_path: Path) -> None:
    with create_database(tmp_path) as db:
        make_run(db)
    with open_database(str(tmp_path / "results.db"), create=False) as db:
        assert len(list_runs(db)) == 1

    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.db", "results.db-lock"]


def test_closing_after_writing_folds_the_log_in_only_under_the_lock(tmp_path: Path) -> None:
    db, log = create_database(tmp_path), tmp_path / "results.db-wal"
    make_run(db)

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "results.db"):
            closed = pool.submit(db.close)
            assert not wait([closed], timeout=0.5).done
            assert log.exists()
        closed.result()

    assert not log.exists()


def test_a_reader_that_outlives_the_writer_folds_the_log_in(tmp_path: Path) -> None:
    writer = create_database(tmp_path)
    reader = open_database(str(tmp_path / "results.db"), create=False)
    assert list_runs(reader) == []
    make_run(writer)
    writer.close()
    assert (tmp_path / "results.db-wal").exists()

    reader.close()

    assert not (tmp_path / "results.db-wal").exists()


def test_a_reader_does_not_wait_for_a_writer_when_it_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_database(tmp_path).close()
    reader = open_database(str(tmp_path / "results.db"), create=False)
    waits: list[float] = []
    monkeypatch.setattr("store.sqlite.time.sleep", waits.append)

    with locked(tmp_path / "results.db"):
        reader.close()

    assert waits == []


def test_the_lock_is_refused_to_a_second_holder_and_free_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    code = """
import sys; from pathlib import Path; from store.sqlite import locked
with locked(Path(sys.argv[1])): print("locked", flush=True); sys.stdin.read()
"""
    holder = python(code, path, stdin=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"

    with pytest.raises(DatabaseError, match="found another diptych writing"), locked(path, timeout=0):
        pass
    holder.kill()
    holder.communicate()

    with locked(path, timeout=0), pytest.raises(DatabaseError), locked(path, timeout=0):
        pass


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_what_is_committed_is_on_disk(tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)

    with create_database(tmp_path) as db, db.write() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "fullfsync", "checkpoint_fullfsync")
        found = {name: connection.exec_driver_sql(f"pragma {name}").scalar() for name in names}

    flushes = int(platform == "darwin")
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "fullfsync": flushes,
                     "checkpoint_fullfsync": flushes}


def test_only_who_holds_the_lock_folds_the_log_in(tmp_path: Path) -> None:
    with create_database(tmp_path) as db:
        with db.read() as connection:
            assert connection.exec_driver_sql("pragma wal_autocheckpoint").scalar() == 0
        assert db.path is not None
        with db.write() as connection:
            assert connection.exec_driver_sql("pragma wal_autocheckpoint").scalar() == 1000
            with pytest.raises(DatabaseError), locked(db.path, timeout=0):
                pass


def test_a_file_system_without_a_write_ahead_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    # SQLite's own stand-in for a file system without shared memory.
    monkeypatch.setattr(sqlite3, "connect", lambda address, **options: connect(f"{address}&vfs=unix-none", **options))

    with pytest.raises(DatabaseError, match="found journal mode 'delete'; give a --db on a local disk"):
        create_database(tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("store.sqlite.fcntl.flock", fail)

    with pytest.raises(DatabaseError, match=r"results\.db: expected a file system with locks, found No locks .*--db"):
        create_database(tmp_path)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(DatabaseError, match=r"expected the psycopg driver.*'diptych\[postgres\]'") as refused:
        open_database("postgresql+psycopg://me:secret@localhost/name", create=True)

    assert "secret" not in str(refused.value)


def test_a_postgresql_that_does_not_answer_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    location = "postgresql://me:secret@127.0.0.1:1/name?connect_timeout=5&password=secret"

    with pytest.raises(DatabaseError, match=r"//me:\*\*\*@127.0.0.1:1/name: .*check that the server runs") as refused:
        open_database(location, create=True)

    assert "secret" not in str(refused.value)


def test_a_password_may_have_any_character_that_is_escaped() -> None:
    pytest.importorskip("psycopg")
    location = "postgresql+psycopg://me%40home:s%40e%3Fc%2Fret@127.0.0.1:1/name?connect_timeout=5&application_name=a%40b"

    with pytest.raises(DatabaseError, match=r"//me%40home:\*\*\*@127.0.0.1:1/name: .*check that the server runs"):
        open_database(location, create=True)


def test_a_stream_is_cut_into_batches() -> None:
    assert list(batched(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []


def test_a_database_is_as_private_as_the_user_wants_it(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        create_database(tmp_path).close()
    finally:
        os.umask(old)

    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("location", [
    "postgresql+psycopg//me:hush@host/name", "postgres:/me:hush@host/name", "host=127.0.0.1 port=1 password=hush",
])
def test_what_looks_like_an_address_is_no_path_and_is_not_shown(location: str) -> None:
    with pytest.raises(DatabaseError, match="expected a path, or a URL with ://") as refused:
        open_database(location, create=True)

    assert "hush" not in str(refused.value)


def test_a_folder_may_be_called_as_a_server_is(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()

    open_database(str(tmp_path / "postgres" / "results.db"), create=True).close()
