"""A real Valkey for tests of the queue: on a socket, without the embedded server's watcher."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.server import find_binary


class Valkey:
    """One server on one folder, which can be killed and started again."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dv-", dir="/tmp"))
        self.socket = self.folder / "s"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        command = [str(find_binary()), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder),
                   "--save", "", "--appendonly", "yes", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self.answers():
            if time.monotonic() > deadline:
                pytest.fail("Valkey did not start")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Say whether it answers, if only to ask for a password."""
        try:
            with redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0)) as connection:
                return bool(connection.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """End the server as a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None

    def remove(self) -> None:
        """End the server and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """Give the URL of its socket."""
        return f"unix://{self.socket}"
