"""What tests share: a home of their own for embedded servers, the tiny reference checkpoint, and its embeddings."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
import trustme
from realpostgres import Postgres
from realvalkey import Valkey

from store.database import Database, open_database

signal.signal(signal.SIGINT, signal.default_int_handler)      # started in the background, it would be ignored
mx.set_default_device(mx.cpu)      # where a row's float32 sums are the same in any batch; on Metal kernels differ

DATA = Path(__file__).parent / "data"
SMALL = DATA / "small"
WEIGHTS = SMALL / "weights"
CPU = Path(__file__).parent / "cpu"
DIPTYCH = Path(sys.executable).with_name("diptych")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home in a short path (a socket's may have 104 bytes), without the variables of whoever runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="dt-", dir="/tmp"))
    for name in [name for name in os.environ if name.startswith(("GLM_", "DIPTYCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(CPU), prepend=os.pathsep)      # on Metal, rows depend on their batch
    yield folder
    if (folder / ".diptych").exists():
        wait_for(lambda: not server_pids(folder), "the embedded server to end with its last client", seconds=15)
    shutil.rmtree(folder, ignore_errors=True)


def server_pids(folder: Path) -> list[int]:
    """Find live processes whose command line names a folder of this home."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"{folder}/.diptych" in line]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


def run_diptych(*argv: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run([str(DIPTYCH), *map(str, argv)], cwd=cwd, env=os.environ | env, capture_output=True,
                          text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """A real Valkey on a socket of its own."""
    valkey = Valkey()
    valkey.start()
    yield valkey
    valkey.remove()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """An authority for certificates, that nobody else knows."""
    return trustme.CA()


@pytest.fixture(scope="session")
def postgres(authority: trustme.CA) -> Iterator[Postgres]:
    """A real PostgreSQL that is reached over TLS."""
    server = Postgres(authority)
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database may be made, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "results.db")
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_database(f"test-{secrets.token_hex(4)}")


@pytest.fixture
def database(location: str) -> Iterator[Database]:
    """An empty database, of either kind."""
    with open_database(location, create=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of the four reference images, made by the real precompute."""
    from store.checkpoint import open_checkpoint
    from workers.precompute import precompute

    folder = tmp_path_factory.mktemp("reference") / "embeddings"
    precompute(SMALL / "images", folder, open_checkpoint(WEIGHTS), batch_size=3, side=None, fit="squash",
               progress=lambda done, total: None)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, embeddings: Path) -> Path:
    """A folder as a user would stand in: vision_weights, embeddings_512 and pairs.txt under their default names."""
    (tmp_path / "vision_weights").symlink_to(WEIGHTS, target_is_directory=True)
    shutil.copytree(embeddings, tmp_path / "embeddings_512")
    shutil.copy(SMALL / "pairs.txt", tmp_path / "pairs.txt")
    return tmp_path
