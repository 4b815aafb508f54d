"""The watcher: a small process that starts the embedded server, and ends it when its last client has gone.

It is run as a file, isolated from packages and from the current folder: standard library only. It knows no queue.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Names inside the server's folder, which is the watcher's and the server's current folder.
CLIENTS_LOCK = Path("clients.lock")      # shared by every client for as long as it uses the server
WATCHER_LOCK = Path("watcher.lock")      # held by the one watcher
SERVER_LOCK = Path("server.lock")        # held by the server, which inherits the open file: free when it is dead
SOCKET = Path("server.sock")
PID = Path("server.pid")
LOG = Path("server.log")
SET_ASIDE = Path("set-aside")            # holds the name of the folder with the queue that could not be loaded

POLL = 0.5              # seconds between two looks at clients and server
SILENCE = 20.0          # seconds without any answer after which a server counts as failed
STOP_LIMIT = 8.0        # seconds for a clean end; the server is gone within 10 s of its last client
LOG_LIMIT = 1_000_000   # bytes; a longer log is begun anew

OPTIONS = (
    "--port", "0", "--unixsocketperm", "700", "--dir", ".", "--daemonize", "no", "--appendonly", "yes",
    "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
)
JOURNALS = (Path("appendonlydir"), Path("appendonly.aof"))      # where Valkey and Redis 7, and where Redis 6 keeps it


def try_lock(path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """Lock a file without waiting and return its descriptor, or None when another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def is_locked(path: Path) -> bool:
    """Say whether another holds the lock for itself."""
    descriptor = try_lock(path, fcntl.LOCK_SH)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def ping() -> bytes:
    """Ask the server of this folder for a sign of life; empty when there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2.0)
        try:
            client.connect(str(SOCKET))
            client.sendall(b"PING\r\n")
            return client.recv(64)
        except OSError:
            return b""


class Server:
    """The one server of the current folder, whoever has started it. It can be ended even when the folder is gone."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.lock = os.open(SERVER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        self.pid: int | None = None

    def is_alive(self) -> bool:
        """Say whether a server runs: it holds the lock as long as it lives."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        return False

    def serve(self) -> None:
        """Have a server that answers: adopt the one that is there, or start one, without its journal if it must be."""
        if self.is_alive():
            self.pid = read_pid()
            if self.is_ready():
                return
            self.stop()
        self.start()
        if not self.is_ready():
            self.stop()
            self.start_without_journal()

    def start(self) -> None:
        """Start the server in a session of its own, where no Ctrl-C and no closing terminal reaches it."""
        lock = try_lock(SERVER_LOCK)
        if lock is None:
            raise SystemExit("another server has just started in this folder")
        SOCKET.unlink(missing_ok=True)
        # The whole path, so that a list of processes tells whose server it is.
        command = [self.binary, *OPTIONS, "--unixsocket", str(SOCKET.absolute())]
        mode = "wb" if LOG.exists() and LOG.stat().st_size > LOG_LIMIT else "ab"
        with LOG.open(mode) as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,),
                                       start_new_session=True)
        self.pid = process.pid
        PID.write_text(str(process.pid))
        os.close(lock)

    def is_ready(self) -> bool:
        """Wait until the server answers, however long it loads; False when it dies or keeps silent."""
        deadline = time.monotonic() + SILENCE
        while self.is_alive() and time.monotonic() < deadline:
            answer = ping()
            if answer.startswith(b"+PONG"):
                return True
            if answer:
                deadline = time.monotonic() + SILENCE
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End the server: cleanly, or by force when it does not go."""
        for signum, limit in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, 1.0)):
            if self.pid is not None and self.is_alive():      # the lock is held, so the process is still the server
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signum)
            deadline = time.monotonic() + limit
            while self.is_alive() and time.monotonic() < deadline:
                time.sleep(0.02)
        self.pid = None
        SOCKET.unlink(missing_ok=True)
        PID.unlink(missing_ok=True)

    def start_without_journal(self) -> None:
        """Set the journal aside and start again; when that is no better, the journal is not to blame and comes back."""
        aside = set_aside()
        if aside is not None:
            self.start()
            if self.is_ready():
                SET_ASIDE.write_text(aside.name)
                return
            self.stop()
            restore(aside)
        raise SystemExit(f"the server ended at once; its log is {LOG.absolute()}")


def read_pid() -> int | None:
    """Read which process the server is, as written by the watcher that has started it."""
    try:
        return int(PID.read_text())
    except (OSError, ValueError):
        return None


def set_aside() -> Path | None:
    """Move the journal to a folder of its own; None when there is no journal."""
    journals = [path for path in JOURNALS if path.exists()]
    if not journals:
        return None
    aside = Path(tempfile.mkdtemp(prefix=time.strftime("set-aside-%Y%m%dT%H%M%S-"), dir="."))
    for path in journals:
        path.rename(aside / path.name)
    return aside


def restore(aside: Path) -> None:
    """Put the journal back in the place of what a failed start may have begun."""
    for path in list(aside.iterdir()):
        shutil.rmtree(path.name, ignore_errors=True)
        path.rename(path.name)
    aside.rmdir()


def watch(server: Server, clients: int) -> None:
    """Keep the server alive while it has clients; end it when the last one has gone."""
    while is_held(clients):
        if not server.is_alive():
            try:
                server.serve()
            except (SystemExit, OSError) as error:
                print(f"watcher: {error}", file=sys.stderr, flush=True)
        time.sleep(POLL)
    server.stop()


def is_held(clients: int) -> bool:
    """Say whether a client holds the lock. When none does, this process does from now on, and comers wait."""
    try:
        fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def detach() -> None:
    """Go on in the background with the log as output; the process that was called ends with success."""
    if os.fork():
        os._exit(0)
    os.setsid()
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)


def main(folder: str, binary: str) -> None:
    """Watch over a folder, unless another watcher does; a failure to start is told on stderr with status 1."""
    os.umask(0o077)
    os.chdir(folder)
    lock = try_lock(WATCHER_LOCK)
    if lock is None:
        return
    clients = os.open(CLIENTS_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    server = Server(binary)
    server.serve()
    detach()
    watch(server, clients)      # the locks of watcher and clients are held until this process ends


if __name__ == "__main__":
    main(*sys.argv[1:])
