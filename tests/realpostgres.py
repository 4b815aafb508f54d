"""A real PostgreSQL for tests: on 127.0.0.1, with a password, reached over TLS only."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import trustme

PASSWORD = "hush/hush@%"
PLACES = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin")
HBA = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"


def find_program(name: str) -> Path:
    """Find a program of PostgreSQL; a test is skipped where there is none, except in CI, where it fails."""
    found = shutil.which(name) or max((str(path) for place in PLACES for path in Path("/").glob(f"{place[1:]}/{name}")),
                                      default=None)
    if found is None:
        missing = f"no {name}: install PostgreSQL (Debian: postgresql, Homebrew: postgresql@17)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return Path(found)


class Postgres:
    """One server, as a user without privileges, which is what it insists on."""

    def __init__(self, authority: trustme.CA) -> None:
        self.programs = {name: find_program(name) for name in ("initdb", "postgres")}
        self.folder = Path(tempfile.mkdtemp(prefix="dp-", dir="/tmp"))
        self.user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.authority = self.folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        server = authority.issue_cert("localhost")
        server.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "server.pem"))
        (self.folder / "hba").write_text(HBA)
        (self.folder / "server.pem").chmod(0o600)
        if self.user:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "nobody", "nogroup")

    def start(self) -> None:
        """Make an empty cluster and start the server."""
        folder = self.folder
        (folder / "authority.pem").chmod(0o644)
        folder.chmod(0o755)
        subprocess.run([self.programs["initdb"], "-D", folder / "data", "-U", "diptych", "-A", "trust", "--no-sync"],
                       **self.user, check=True, capture_output=True)
        settings = {"ssl": "on", "ssl_cert_file": folder / "server.pem", "ssl_key_file": folder / "server.pem",
                    "hba_file": folder / "hba", "listen_addresses": "127.0.0.1", "unix_socket_directories": folder,
                    "fsync": "off", "max_connections": 50}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([self.programs["postgres"], "-D", folder / "data", "-p", str(self.port),
                                             *options], **self.user, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self.answers():
            if time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
            time.sleep(0.05)
        quoted = PASSWORD.replace("'", "''")
        self.execute(f"alter role diptych password '{quoted}'")

    def answers(self) -> bool:
        """Say whether it takes connections."""
        with contextlib.suppress(psycopg.OperationalError):
            self.execute("select 1")
            return True
        return False

    def execute(self, statement: str) -> None:
        """Run a statement as the owner, on the socket."""
        where = {"host": str(self.folder), "port": self.port, "user": "diptych", "dbname": "postgres"}
        with psycopg.connect(**where, autocommit=True) as connection:      # type: ignore[arg-type]  # a port is a number
            connection.execute(statement.encode())

    def make_database(self, name: str) -> str:
        """Make an empty database and return its URL, with TLS and the server's name checked."""
        self.execute(f'create database "{name}"')
        return f"{self.url(name)}?sslmode=verify-full&sslrootcert={self.authority}"

    def url(self, name: str) -> str:
        """Return a database's URL, with its password and nothing about TLS."""
        return f"postgresql+psycopg://diptych:{quote(PASSWORD, safe='')}@localhost:{self.port}/{name}"

    def remove(self) -> None:
        """End the server and delete its folder."""
        if self.process:
            self.process.send_signal(signal.SIGQUIT)      # at once; nothing is to be kept
            self.process.wait()
        shutil.rmtree(self.folder)


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
