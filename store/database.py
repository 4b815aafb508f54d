"""The database: opened, checked, brought up to date, and handed out in transactions. It knows no runs and no results.

SQLite has one connection that writes, used only under a lock beside the file, and a few that can only read; any thread
may use them, one transaction at a time. PostgreSQL has one pool for both. Neither is for use across a fork.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import URL, Engine, QueuePool, create_engine, event, exc, make_url, select
from sqlalchemy.engine import Connection

from store import migrations
from store.errors import DatabaseError
from store.schema import meta
from store.sqlite import advice, connect, locked, tidy

_ADDRESS = re.compile(r"^(postgres|mysql)[+\w]*:?/.*:.*@|\b(password|passwd|pwd)=", re.IGNORECASE)      # and no path
CONNECT_TIMEOUT = 10       # seconds; for a PostgreSQL that does not answer

_Item = TypeVar("_Item")


class Database:
    """One database of runs and results. Close it, or use it as a context manager."""

    def __init__(self, location: str, path: Path | None, reader: Engine, writer: Engine) -> None:
        """Take the engines; `open_database` is the way to make one."""
        self.id = ""                  # 32 hex digits, once it is known to be ours
        self.location = location      # for messages: an absolute path, or a URL without its password
        self.path = path              # None on PostgreSQL
        self._reader = reader
        self._writer = writer
        self._written = False
        self._identity = _identity(path)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection that sees one moment of the database and cannot write; keep it short.

        A long one keeps SQLite's log from being folded in. Raises DatabaseError.
        """
        self._check_in_place()
        with self._explained(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction: committed at the end, rolled back on an exception. Do not nest.

        Waits while another process writes. Raises DatabaseError.
        """
        with self._explained(), self._lock():
            self._check_in_place()
            self._written = True
            with self._writer.begin() as connection:
                yield connection

    def close(self) -> None:
        """Close all connections; SQLite's log is folded in when nobody else has the database open."""
        self._reader.dispose()
        if self.path is None:
            self._writer.dispose()
        elif self._written:
            with self._lock():
                self._writer.dispose()
        elif self.id:
            tidy(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def prepare(self, *, create: bool) -> None:
        """Check what is there, make what is missing, take the migrations that are due, and read the database's id."""
        if self._read_version() < len(migrations.MIGRATIONS):
            with self._lock():      # whoever makes it at this moment has done so when the lock is free
                version = self._read_version()
            if version == 0 and not create:
                raise _missing(self.location)
            with self.write() as connection:
                migrations.migrate(connection)
        with self.read() as connection:
            self.id = connection.execute(select(meta.c.value).where(meta.c.key == "id")).scalar_one()

    def _read_version(self) -> int:
        """Return the schema's version, 0 for an empty database; refuse what is not ours or newer."""
        with self.read() as connection:
            version = migrations.read_version(connection)
        if version is None:
            raise DatabaseError(
                f"{self.location}: expected a database of diptych or an empty one, found another program's tables; "
                "give another --db (nothing was changed)"
            )
        if version > (known := len(migrations.MIGRATIONS)):
            raise DatabaseError(
                f"{self.location}: expected a database of schema version {known} or older, found version {version}, "
                "of a newer diptych; update this one, or give another --db (nothing was changed)"
            )
        return version

    def _lock(self) -> AbstractContextManager[None]:
        """Return the lock under which SQLite is written; PostgreSQL needs none."""
        return nullcontext() if self.path is None else locked(self.path)

    def _check_in_place(self) -> None:
        """Raise DatabaseError when the file was moved or replaced: what is written now would be lost to its name."""
        if _identity(self.path) != self._identity:
            raise DatabaseError(
                f"{self.location}: expected the file that was opened, found that it was moved, deleted or replaced; "
                "put it back and try again"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what a person can mend into a DatabaseError; a broken constraint is a bug and stays what it is."""
        try:
            yield
        except exc.DatabaseError as error:
            if type(error) not in (exc.DatabaseError, exc.OperationalError):
                raise
            what = advice(error.orig) if self.path else "check that the server runs, and user, password and database"
            found = " ".join(str(error.orig).split())
            raise DatabaseError(
                f"{self.location}: expected a database that can be read and written, found: {found}; {what}"
            ) from error


def open_database(location: str, *, create: bool) -> Database:
    """Open the database at a path or an SQLAlchemy URL, and bring its schema up to date; any number may do so at once.

    With `create`, a missing SQLite file or an empty database becomes one. Raises DatabaseError for a database that is
    missing, another program's, from a newer version, no database at all, or out of reach.
    """
    url = _parse(location)
    if url.get_backend_name() == "sqlite":
        database = _sqlite_database(_sqlite_path(url), create=create)
    elif url.drivername in ("postgresql", "postgresql+psycopg"):
        database = _postgres_database(url)
    else:
        raise DatabaseError(
            f"database: expected a path, sqlite:///PATH or postgresql+psycopg://..., found {url.drivername}://"
        )
    try:
        database.prepare(create=create)
    except BaseException:
        database.close()
        raise
    return database


def database_exists(location: str) -> bool:
    """Say whether there is something to open at a path; a server's database counts as there. Raises DatabaseError."""
    url = _parse(location)
    if url.get_backend_name() != "sqlite":
        return True
    try:
        return _sqlite_path(url).stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError:
        return True      # opening it says what is wrong


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Cut a stream into lists of `size`; the last may be shorter."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch


def _parse(location: str) -> URL:
    """Read a location as a URL; whatever has no :// is a path."""
    if "://" not in location and _ADDRESS.search(location):
        # Not shown: it may hold a password.
        raise DatabaseError("database: expected a path, or a URL with ://, found something like an address")
    if "://" not in location:
        return URL.create("sqlite", database=location)
    try:
        url = make_url(location)
    except (exc.ArgumentError, ValueError):
        # Not shown: it may hold a password.
        raise DatabaseError(
            "database: expected a path, sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME, "
            "found a URL that cannot be read"
        ) from None
    before, _, after = location.partition("@")
    # The first @ ends the password for SQLAlchemy: with a second one, the rest of it would be shown as the host.
    if url.username is not None and ("?" in before or "@" in after):
        raise DatabaseError(
            "database: expected postgresql+psycopg://USER:PASSWORD@HOST/NAME, found more than one @, or one after a ?; "
            "in a password write % / ? # @ as %25 %2F %3F %23 %40"
        )
    return url


def _sqlite_path(url: URL) -> Path:
    """Return the absolute path of an SQLite file, links resolved, so that all its names share one lock."""
    if url.drivername not in ("sqlite", "sqlite+pysqlite") or url.query or url.host:
        options = f" with {', '.join(url.query)}" if url.query else ""      # not what they say: it may be a password
        raise DatabaseError(
            f"database: expected a path or sqlite:///PATH without options, found {url.set(query={})!r}{options}"
        )
    if not url.database or url.database == ":memory:":
        raise DatabaseError("database: expected the path of a file, found none; give --db results.db, for example")
    try:
        return Path(url.database).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DatabaseError(f"database: expected the path of a file, found {url.database!r}: {error}") from error


def _sqlite_database(path: Path, *, create: bool) -> Database:
    """Return the engines on an SQLite file, which is made first (empty) where it is missing and `create` allows."""
    try:
        if not path.exists():
            if not create:
                raise _missing(str(path))
            path.touch()
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no regular file"
            raise DatabaseError(f"{path}: expected a database file, found {found}; give another --db")
    except OSError as error:
        raise DatabaseError(
            f"{path}: expected a folder where a database can be kept, found {error.strerror}; "
            "make the folder, check its permissions, or give another --db"
        ) from error
    url = URL.create("sqlite", database=str(path))
    # A connection is kept: the last one to close folds the log in, which costs several flushes to disk.
    writer = create_engine(
        url, creator=lambda: connect(path, "rw"), poolclass=QueuePool, pool_size=1, max_overflow=0
    )
    reader = create_engine(url, creator=lambda: connect(path, "ro"), poolclass=QueuePool, pool_size=1)
    event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(reader, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return Database(str(path), path, reader, writer)


def _postgres_database(url: URL) -> Database:
    """Return the engines on a PostgreSQL database; nothing is connected yet."""
    location = url.set(drivername="postgresql+psycopg")
    options = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT}
    try:
        writer = create_engine(location, connect_args=options, pool_size=2, pool_pre_ping=True, hide_parameters=True)
    except ImportError as error:
        raise DatabaseError(
            "PostgreSQL: expected the psycopg driver, found none; install diptych with its extra: "
            "`pip install 'diptych[postgres]'` (in a checkout: `pip install -e '.[postgres]'`)"
        ) from error
    reader = writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    # The query is left out of messages as well: libpq takes a password there too.
    return Database(location.set(query={}).render_as_string(hide_password=True), None, reader, writer)


def _missing(location: str) -> DatabaseError:
    """Return the error for a database that is not there."""
    return DatabaseError(f"no database at {location}; `diptych enqueue` makes one, --db names another")


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return device and inode, by which a file is known under any name."""
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
