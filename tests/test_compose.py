"""docker-compose.yml: a queue with a password that only this machine reaches, a worker with a database of its own."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from jobs.server import find_binary

ROOT = Path(__file__).parent.parent
PASSWORD = "right-one"      # of a server that lives for one test


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture
def queue(compose: dict[str, Any]) -> Iterator[Path]:
    """The socket of a real server, started by the file's very command, with a stand-in for the image's entrypoint."""
    command = [word.replace("$$", "$") for word in compose["services"]["queue"]["command"]]
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp") as folder:
        path, entrypoint = Path(folder) / "s", Path(folder) / "docker-entrypoint.sh"
        here = f"--port 0 --unixsocket {path} --dir {folder}"
        entrypoint.write_text(f'#!/bin/sh\nshift\nexec "{find_binary()}" "$@" {here}\n')
        entrypoint.chmod(0o700)
        env = {"PATH": f"{folder}:{os.environ['PATH']}", "VALKEYCLI_AUTH": PASSWORD}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            next(line for line in server.stdout if "Ready to accept connections" in line)
            yield path
            server.terminate()
            server.stdout.read()


def seconds(duration: str) -> int:
    """Read a duration as Compose writes it: 1h30m, 90s."""
    assert re.fullmatch(r"(\d+[hms])+", duration), duration
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)(.)", duration))


def test_the_password_stands_on_no_command_line(queue: Path) -> None:
    listed = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout

    assert str(queue) in listed
    assert PASSWORD not in listed


def test_the_queue_asks_for_the_password_and_keeps_every_job(queue: Path) -> None:
    with redis.Redis(unix_socket_path=str(queue)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(unix_socket_path=str(queue), password=PASSWORD) as known:
        settings = known.config_get("appendonly", "appendfsync", "maxmemory-policy")

    assert settings == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


def test_the_password_must_be_set_and_is_written_nowhere(compose: dict[str, Any]) -> None:
    queue, worker = compose["services"]["queue"], compose["services"]["worker"]
    password = queue["environment"]["VALKEYCLI_AUTH"]

    assert re.fullmatch(r"\$\{DIPTYCH_REDIS_PASSWORD:\?[^}]+\}", password)
    assert set(queue["environment"].values()) == {password}
    assert worker["environment"]["DIPTYCH_REDIS_URL"] == "redis://:${DIPTYCH_REDIS_PASSWORD}@queue:6379/0"


def test_only_this_machine_reaches_a_port(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert ports == ["127.0.0.1:6379:6379"]


def test_the_queue_outlives_its_container(compose: dict[str, Any]) -> None:
    assert compose["services"]["queue"]["volumes"] == ["queue:/data"]
    assert "queue" in compose["volumes"]


def test_the_worker_starts_only_when_asked_for(compose: dict[str, Any]) -> None:
    assert compose["services"]["worker"]["profiles"] == ["worker"]


def test_the_worker_writes_its_database_to_a_volume_and_nothing_to_the_host(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    mounts = [mount for mount in worker["volumes"] if not isinstance(mount, str)]

    assert worker["environment"]["DIPTYCH_DB"] == "/data/results.db"
    assert [mount for mount in worker["volumes"] if isinstance(mount, str)] == ["results:/data"]
    assert "results" in compose["volumes"]
    assert {mount["target"] for mount in mounts} == {"/embeddings", "/weights"}
    assert all(mount["type"] == "bind" and mount["read_only"] for mount in mounts)


def test_a_worker_that_is_stopped_has_time_for_the_pairs_in_its_hands(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]

    assert seconds(worker.get("stop_grace_period", "10s")) >= 300      # Docker's own 10 s would kill it amid a slice


def test_the_workers_image_copies_all_that_its_installation_needs(compose: dict[str, Any]) -> None:
    recipe = compose["services"]["worker"]["build"]["dockerfile_inline"]
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", recipe, re.MULTILINE) for word in line.split()}

    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "cli", "jobs", "store", "workers",
                      "examples"}      # store/demo links to the photographs there
    assert all((ROOT / name).exists() for name in copied)
