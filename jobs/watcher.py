"""The watcher: a small process that starts the embedded server, and ends it when its last client has gone.

It is run as a file, isolated from packages and from the current folder: standard library only. It knows no queue.
"""

import fcntl
import os
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
    """Ask the server for a sign of life; empty when there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2.0)
        try:
            client.connect(str(SOCKET))
            client.sendall(b"PING\r\n")
            return client.recv(64)
        except OSError:
            return b""


def start_server(binary: str) -> None:
    """Start the server in a session of its own, where no Ctrl-C and no closing terminal reaches it."""
    lock = try_lock(SERVER_LOCK)
    if lock is None:
        raise SystemExit("another server has just started in this folder")
    SOCKET.unlink(missing_ok=True)
    # The whole path, so that a list of processes tells whose server it is.
    command = [binary, *OPTIONS, "--unixsocket", str(SOCKET.absolute())]
    mode = "wb" if LOG.exists() and LOG.stat().st_size > LOG_LIMIT else "ab"
    with LOG.open(mode) as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,),
                                   start_new_session=True)
    PID.write_text(str(process.pid))
    os.close(lock)


def is_ready() -> bool:
    """Wait until the server answers, however long it loads; False when it dies or keeps silent."""
    deadline = time.monotonic() + SILENCE
    while is_locked(SERVER_LOCK) and time.monotonic() < deadline:
        answer = ping()
        if answer.startswith(b"+PONG"):
            return True
        if answer:
            deadline = time.monotonic() + SILENCE
        time.sleep(0.02)
    return False


def stop_server() -> None:
    """End the server: cleanly, or by force when it does not go."""
    for signum, limit in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, 1.0)):
        if is_locked(SERVER_LOCK):
            send(signum)
        deadline = time.monotonic() + limit
        while is_locked(SERVER_LOCK) and time.monotonic() < deadline:
            time.sleep(0.02)
    SOCKET.unlink(missing_ok=True)
    PID.unlink(missing_ok=True)


def send(signum: int) -> None:
    """Send the server a signal. Its lock was held a moment ago, so the recorded process is still the server."""
    try:
        os.kill(int(PID.read_text()), signum)
    except (OSError, ValueError) as error:
        print(f"watcher: no signal to the server: {error}", file=sys.stderr)


def serve(binary: str) -> None:
    """Have a server that answers: adopt the one that is there, or start one, with an empty queue if it must be."""
    if is_locked(SERVER_LOCK):
        if is_ready():
            return
        stop_server()
    start_server(binary)
    if not is_ready():
        stop_server()
        start_without_journal(binary)


def start_without_journal(binary: str) -> None:
    """Set the journal aside and start again; when that is no better, the journal was not to blame and comes back."""
    journals = [path for path in JOURNALS if path.exists()]
    if not journals:
        raise SystemExit(f"the server ended at once; its log is {LOG.resolve()}")
    aside = Path(tempfile.mkdtemp(prefix=time.strftime("set-aside-%Y%m%dT%H%M%S-"), dir="."))
    for path in journals:
        path.rename(aside / path.name)
    start_server(binary)
    if is_ready():
        SET_ASIDE.write_text(aside.name)
        return
    stop_server()
    restore(aside)
    raise SystemExit(f"the server ended at once; its log is {LOG.resolve()}")


def restore(aside: Path) -> None:
    """Put the journal back that was set aside without need."""
    for path in list(aside.iterdir()):
        if not Path(path.name).exists():
            path.rename(path.name)
    if not any(aside.iterdir()):
        aside.rmdir()


def watch(binary: str) -> None:
    """Keep the server alive while it has clients; end it when the last one has gone."""
    while try_lock(CLIENTS_LOCK) is None:
        if not is_locked(SERVER_LOCK):
            try:
                serve(binary)
            except (SystemExit, OSError) as error:
                print(f"watcher: {error}", file=sys.stderr)
        time.sleep(POLL)
    stop_server()


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
    serve(binary)
    detach()
    watch(binary)      # clients' and watcher's locks are held until the process ends, after its server


if __name__ == "__main__":
    main(*sys.argv[1:])
