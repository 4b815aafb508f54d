"""Redis and PostgreSQL over TLS, by URL: commands work, strangers are refused, passwords stay where they are."""

import asyncio
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trustme
from conftest import DIPTYCH, run_diptych
from realpostgres import PASSWORD as DATABASE_PASSWORD
from realpostgres import Postgres
from realvalkey import Valkey

REDIS_PASSWORD = "murmur"
SECRETS = (REDIS_PASSWORD, DATABASE_PASSWORD, DATABASE_PASSWORD.replace("/", "%2F"), "hush")


class TlsFront:
    """What stands before a Valkey that knows no TLS: it speaks TLS outside, and its socket inside."""

    def __init__(self, socket: Path, authority: trustme.CA) -> None:
        self.socket = socket
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self.context)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def start(self) -> int:
        """Listen; return the port."""
        self.thread.start()
        listening = asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
        self.server = asyncio.run_coroutine_threadsafe(listening, self.loop).result()
        return int(self.server.sockets[0].getsockname()[1])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside_reader, inside_writer = await asyncio.open_unix_connection(str(self.socket))
        await asyncio.gather(self.pass_on(reader, inside_writer), self.pass_on(inside_reader, writer))

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass      # a client that went away
        finally:
            writer.close()

    def stop(self) -> None:
        """Hang up."""
        async def end() -> None:
            self.server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def redis_port(authority: trustme.CA) -> Iterator[int]:
    valkey = Valkey("--requirepass", REDIS_PASSWORD)
    valkey.start()
    front = TlsFront(valkey.socket, authority)
    yield front.start()
    front.stop()
    valkey.remove()


def dump(postgres: Postgres, location: str) -> str:
    """Return everything that stands in a database, as text."""
    import psycopg

    with psycopg.connect(location.replace("+psycopg", "")) as connection:
        tables = connection.execute("select relname from pg_class where relkind in ('r', 'v') and relnamespace = "
                                    "'public'::regnamespace").fetchall()
        assert {"runs", "results", "jobs"} <= {name for (name,) in tables}
        return repr([connection.execute(f'select * from "{name}"'.encode()).fetchall() for (name,) in tables])


def command_lines(process: subprocess.Popen[str]) -> list[str]:
    """Return the arguments of a process and of all that it has started."""
    try:
        parent = psutil.Process(process.pid)
        return [word for each in (parent, *parent.children(recursive=True)) for word in each.cmdline()]
    except psutil.NoSuchProcess:
        return []


def test_a_run_over_tls_to_redis_and_postgresql_shows_no_password(
    workspace: Path, redis_port: int, postgres: Postgres
) -> None:
    location = postgres.make_database("tls")
    redis = f"rediss://:{REDIS_PASSWORD}@localhost:{redis_port}/0?ssl_ca_certs={postgres.authority}"
    env = {"DIPTYCH_DB": location, "DIPTYCH_REDIS_URL": redis}
    options = ("pairs.txt", "--max-tokens", 4, "--batch-size", 4, "--seed", 5, "--greedy")
    read = ("results", "--format", "jsonl")

    enqueued = run_diptych("enqueue", *options, cwd=workspace, **env)
    words, seen = [str(DIPTYCH), "--log-format", "json", "worker", "--burst"], set[str]()
    with (workspace / "log").open("w") as log:
        worker = subprocess.Popen(words, cwd=workspace, env=os.environ | env, stderr=log, text=True)
        while worker.poll() is None:
            seen.update(command_lines(worker))
    others = [run_diptych(*words, cwd=workspace, **env) for words in (
        ("status",), ("resume",), ("doctor",), ("runs",), ("enqueue", "--dry-run", *options), read)]

    log_text = (workspace / "log").read_text()
    assert (enqueued.returncode, worker.returncode) == (0, 0), enqueued.stderr + log_text
    assert [done.returncode for done in others] == [0] * len(others), [done.stderr for done in others]
    shown = [log_text, dump(postgres, location), *seen, *(done.stdout + done.stderr for done in (enqueued, *others))]
    assert not [text for text in shown for secret in SECRETS if secret in text]
    assert "worker" in seen

    run_diptych("batch-generate", *options, "--db", "here.db", cwd=workspace)
    here = run_diptych(*read, "--db", "here.db", cwd=workspace).stdout
    assert answers(others[-1].stdout) == answers(here)
    assert len(answers(here)) == len((workspace / "pairs.txt").read_text().split())


def answers(jsonl: str) -> list[tuple[object, ...]]:
    """Return what must not depend on where results are kept."""
    rows = map(json.loads, jsonl.splitlines())
    return [(row["position"], row["text"], row["seed"], row["status"]) for row in rows]


def test_a_redis_whose_certificate_nobody_vouches_for_is_refused(workspace: Path, redis_port: int) -> None:
    refused = run_diptych("enqueue", "pairs.txt", cwd=workspace,
                          DIPTYCH_REDIS_URL=f"rediss://:{REDIS_PASSWORD}@localhost:{redis_port}/0")

    assert refused.returncode == 2
    assert "certificate verify failed" in refused.stderr
    assert "ssl_ca_certs=FILE" in refused.stderr
    assert REDIS_PASSWORD not in refused.stderr


def test_a_postgresql_is_not_spoken_to_in_the_clear(workspace: Path, redis_port: int, postgres: Postgres) -> None:
    redis = f"rediss://:{REDIS_PASSWORD}@localhost:{redis_port}/0?ssl_ca_certs={postgres.authority}"
    clear, stranger = (f"{postgres.url('postgres')}?{options}" for options in (
        "sslmode=disable", "sslmode=verify-full&sslrootcert=/nonexistent.pem"))

    for location, why in ((clear, "no encryption"), (stranger, "nonexistent.pem")):
        refused = run_diptych("enqueue", "pairs.txt", "--redis", redis, "--db", location, cwd=workspace)
        assert refused.returncode == 2
        assert why in refused.stderr
        assert not [secret for secret in SECRETS if secret in refused.stderr]
