"""SQLite files as diptych opens them: write-ahead log, durable, one writer at a time. It knows no tables."""

import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from store.errors import DatabaseError

BUSY_TIMEOUT = 60.0        # seconds; for programs that write without our lock
LOCK_TIMEOUT = 120.0       # seconds; a run of a million pairs is written in less
_WAL_LIMIT = 64 * 2**20    # bytes; to which a longer log is cut back


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """Open an existing file; transactions are begun by hand. Raises sqlite3.Error, and DatabaseError without WAL."""
    address = f"file:{quote(os.fsencode(path))}?mode={mode}"
    connection = sqlite3.connect(
        address, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    try:
        if mode == "rw":
            _prepare_writer(connection, path)
        # Who does not hold the lock must not checkpoint: SQLite before 3.51.3 can lose the log's reset between two.
        connection.execute(f"PRAGMA wal_autocheckpoint={1000 if mode == 'rw' else 0}")
    except BaseException:
        connection.close()
        raise
    # SQLite's own lower() knows ASCII only.
    connection.create_function("lower", 1, _lower, deterministic=True)
    return connection


def _prepare_writer(connection: sqlite3.Connection, path: Path) -> None:
    """Set what holds for a connection that writes: durable at every commit, foreign keys checked."""
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise DatabaseError(
            f"{path}: expected a folder where SQLite can keep a write-ahead log, found journal mode {mode!r}; "
            "give a --db on a local disk (network and cloud-synced folders do not work)"
        )
    flush = ("fullfsync=ON", "checkpoint_fullfsync=ON") if sys.platform == "darwin" else ()
    durable = ("synchronous=FULL", "foreign_keys=ON", f"journal_size_limit={_WAL_LIMIT}")
    for pragma in (*durable, *flush):
        connection.execute(f"PRAGMA {pragma}")


def _lower(text: str | None) -> str | None:
    """Lower a text of any script."""
    return text.lower() if isinstance(text, str) else text


def lock_file(path: Path) -> Path:
    """Return the file whose lock a writer holds."""
    return path.with_name(f"{path.name}-lock")


@contextmanager
def locked(path: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the database's advisory lock, against other processes and other threads alike; it is not re-entrant.

    The lock goes with its holder, kill -9 included. Raises DatabaseError when others hold it for `timeout` seconds.
    """
    try:
        descriptor = os.open(lock_file(path), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DatabaseError(
            f"{path}: expected a database that can be written, found {error.strerror} ({lock_file(path).name}); "
            "check the permissions of file and folder, or give another --db"
        ) from error
    try:
        _wait_for_lock(descriptor, path, timeout)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, path: Path, timeout: float) -> None:
    """Take the lock as soon as nobody holds it."""
    deadline, pause = time.monotonic() + timeout, 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DatabaseError(
                    f"{path}: expected the database to be free to write within {timeout:g} s, found another diptych "
                    "writing all the while; look for one that is stopped, end it, and try again"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        except OSError as error:
            raise DatabaseError(
                f"{path}: expected a file system with locks, found {error.strerror}; give a --db on a local disk"
            ) from error


def tidy(path: Path) -> None:
    """Fold the log into the database and remove it, if nobody else has the database open; harmless at any time."""
    # A reader leaves the log behind; who then copies the .db file alone would miss what stands in the log.
    with suppress(DatabaseError, sqlite3.Error), locked(path, timeout=0), closing(connect(path, "rw")) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


_ROOM = "make room on the disk and try again; nothing that was recorded is lost"
_ADVICE = (
    ("SQLITE_FULL", _ROOM),
    ("SQLITE_IOERR_WRITE", _ROOM),      # by a quota or a limit on the size of files
    ("SQLITE_IOERR", "see that the disk is not full, works, and is a local one; nothing that was recorded is lost"),
    ("SQLITE_READONLY", "check the permissions of the file and of its folder, where SQLite writes even to read"),
    ("SQLITE_BUSY", f"end the program that has held it for {BUSY_TIMEOUT:g} s and try again"),
    ("SQLITE_NOTADB", "give another --db; the file was left as it is"),
    ("SQLITE_CORRUPT", "restore a copy, or save what can be read with `sqlite3 FILE .recover`"),
    ("SQLITE_ERROR", "was it changed by another program? restore a copy, or give another --db"),
    ("SQLITE_", "check that file and folder can be read and written, and lie on a local disk"),
)


def advice(error: BaseException | None) -> str:
    """Say what a person can do about an error of SQLite."""
    name = getattr(error, "sqlite_errorname", None) or "SQLITE_"
    return next(text for prefix, text in _ADVICE if name.startswith(prefix))
