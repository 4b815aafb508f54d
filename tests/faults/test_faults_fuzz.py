"""Readers of what a stranger may have written: a result, or an error of ours, and never anything else."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import WEIGHTS
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from night import LONG, tally
from redis import Redis

from jobs.pairs import read_pairs_file
from jobs.tickets import TASK, TicketError, TicketJob, parse_ticket_id
from store.checkpoint import open_checkpoint
from store.embeddings import open_embeddings
from store.errors import DiptychError

ROUNDS, INPUTS = (20, 5_000) if LONG else (1, 300)      # of so many inputs; Hypothesis remembers all of a round

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=8)


@st.composite
def spoilt(draw: st.DrawFn, good: bytes) -> bytes:
    """Cut, overwrite and insert bytes of a good file."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)) | st.just(len(data)))
        data[start:end] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, good: Any) -> bytes:
    """Put something else in some places of a good JSON document, or take them away."""
    value = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        _alter(draw, value)
    return json.dumps(value).encode()


def _alter(draw: st.DrawFn, value: Any) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(value[key], dict | list) and draw(st.booleans()):
        _alter(draw, value[key])
    elif isinstance(value, dict) and draw(st.booleans()):
        del value[key]
    else:
        value[key] = draw(anything)


def fuzz(name: str, read: Callable[[Any], object], inputs: st.SearchStrategy[Any],
         refused: type[Exception] = DiptychError) -> None:
    """Read many inputs; anything but a result or our own error is raised. Both must have been there."""
    counts = {"read": 0, "refused": 0}

    @settings(max_examples=INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def try_one(given_: Any) -> None:
        try:
            read(given_)
            counts["read"] += 1
        except refused:
            counts["refused"] += 1

    for number in range(ROUNDS):
        seed(number)(try_one)()
    tally(f"fuzzed: {name}", times=sum(counts.values()), **counts)
    assert sum(counts.values()) >= ROUNDS * INPUTS
    assert min(counts.values()) > 0


def test_pairs_files(tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        read_pairs_file(file, 4)

    lines = st.lists(st.sampled_from(["0,1", "3,3", " 2 , 0 ", "# x", "", "4,0", "1;2", "-1,0", "1,2,3", "\u0661,1"]))
    fuzz("pairs files", read, st.binary() | spoilt(b"0,1\n1,2\n# and\n3,3\n") | st.text().map(lambda t: t.encode())
         | lines.map(lambda some: "\n".join(some).encode()))


def test_embeddings_json(tmp_path: Path, embeddings: Path) -> None:
    folder = tmp_path / "embeddings"
    shutil.copytree(embeddings, folder)
    file = folder / "embeddings.json"
    good = file.read_bytes()
    hidden = json.loads(good)["hidden"]

    def read(data: bytes) -> None:
        file.write_bytes(data)
        open_embeddings(folder, hidden=hidden)

    fuzz("embeddings.json", read, spoilt(good) | altered(json.loads(good)) | anything.map(json.dumps).map(str.encode))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WEIGHTS, tmp_path / "weights"))


def write_and_open(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    open_checkpoint(file.parent)


def test_config_json(checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    good = file.read_bytes()

    fuzz("config.json", partial(write_and_open, file), spoilt(good) | altered(json.loads(good))
         | anything.map(json.dumps).map(str.encode))


def test_safetensors_headers(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.safetensors"))
    good = file.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header, rest = json.loads(good[8 : 8 + size]), good[8 + size :]

    def with_header(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + data + rest

    whole = altered(header).map(with_header) | spoilt(good[8 : 8 + size]).map(with_header)
    fuzz("safetensors headers", partial(write_and_open, file), whole | spoilt(good[: 8 + size]).map(lambda d: d + rest)
         | st.binary(max_size=200) | st.just(good))


def test_tickets() -> None:
    connection = Redis(unix_socket_path="/nowhere")      # never used: what is read is handed over
    good = {"id": "a1b2c3-1", "data": json.dumps([TASK, None, ["a1b2c3", 1], {}]), "origin": "diptych",
            "status": "queued", "retries_left": "3"}

    def read(given_: dict[str, Any]) -> None:
        fields = {key: value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
                  for key, value in given_.items()}
        id_ = fields.pop("id", b"")
        parse_ticket_id(id_)
        job = TicketJob(id_.decode(), connection=connection)
        job.restore({key.encode("utf-8", "replace"): value for key, value in fields.items()})

    call = altered(json.loads(good["data"]))
    values = st.binary() | st.text() | call | anything.map(str) | st.sampled_from([*good.values(), "os.system", "-1"])
    hashes = st.fixed_dictionaries({}, optional={name: st.just(value) | values for name, value in good.items()})
    fuzz("tickets", read, hashes | st.just(good), TicketError)
    connection.close()
