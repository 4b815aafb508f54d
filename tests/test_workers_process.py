"""What a worker process may not do, by MLX's rules: compute in a second thread, fork, load a model twice."""

import os
import subprocess
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from conftest import SMALL, WEIGHTS, wait_for
from realvalkey import Valkey
from reference import copy_checkpoint
from store_samples import create_database, make_row, make_run

from cli.main import diptych, run
from jobs.enqueue import Request, enqueue_run, plan_run
from jobs.inputs import Settings
from jobs.queue import JobQueue, connect
from store.checkpoint import Checkpoint, open_checkpoint
from store.database import Database
from store.records import Run, Sampling
from store.results import record_results
from workers import awake, session
from workers.model.text import TextModel
from workers.model.vision import VisionModel
from workers.precompute import precompute
from workers.report import Reporter
from workers.service import Options, run_worker
from workers.stop import Stop
from workers.worker import Work

DECODER = ("__call__", "prefill", "remember", "logits", "embed")      # methods of TextModel that compute
LOADS_MLX = """
import sys
from cli.main import diptych, run

assert run(diptych, sys.argv[1:]) == 0
sys.exit("MLX was loaded" if "mlx.core" in sys.modules else 0)
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with create_database(tmp_path) as opened:
        yield opened


@pytest.fixture
def queue(server: Valkey, database: Database) -> Iterator[JobQueue]:
    with connect(server.url) as connection:
        connection.flushall()
        yield JobQueue(connection, database.id)


def enqueue(database: Database, queue: JobQueue, workspace: Path, weights: str = "vision_weights") -> Run:
    """Enqueue the eight reference pairs as two jobs."""
    settings = Settings(workspace / "embeddings_512", workspace / weights, "Compare these two images.", False,
                        Sampling(max_tokens=4))
    return enqueue_run(database, queue, plan_run(Request(settings, workspace / "pairs.txt", None, 5, 4, None, ())))


def burst(database: Database, queue: JobQueue, reporter: Reporter | None = None) -> Work:
    """Work the queue off in this process."""
    return run_worker(database, queue, Options(burst=True), Stop(), reporter or Reporter())


def embed_images(output: Path) -> int:
    """Compute the embeddings of the four reference images; return how many there are."""
    return precompute(SMALL / "images", output, open_checkpoint(WEIGHTS), batch_size=1, side=56, fit="squash",
                      progress=lambda done, total: None).written


Threads = dict[str, set[int]]


class Watched:
    """Stands for MLX in a module, and notes the threads that take anything from it."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    def __getattr__(self, name: str) -> Any:
        self._threads[name].add(threading.get_ident())
        return getattr(mx, name)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Note the threads in which MLX and the models are called, by the names of the functions."""
    seen: Threads = defaultdict(set)
    watched = Watched(seen)

    def watch(model: type, method: str) -> None:
        call = getattr(model, method)

        def noted(*args: Any) -> Any:
            seen[f"{model.__name__}.{method}"].add(threading.get_ident())
            return call(*args)

        monkeypatch.setattr(model, method, noted)

    for name, module in list(sys.modules.items()):
        if name.startswith(("workers.", "mlx.")) and getattr(module, "mx", None) is mx:
            monkeypatch.setattr(module, "mx", watched)
    for method in DECODER:
        watch(TextModel, method)
    watch(VisionModel, "__call__")
    return seen


def test_one_thread_does_all_that_a_worker_asks_of_mlx(
    database: Database, queue: JobQueue, workspace: Path, threads: Threads
) -> None:
    enqueue(database, queue, workspace)

    assert burst(database, queue) == Work(done=2)

    assert threads.keys() >= {"array", "load", "eval", "async_eval", *(f"TextModel.{method}" for method in DECODER)}
    assert set().union(*threads.values()) == {threading.get_ident()}


def test_the_threads_that_read_images_leave_mlx_alone(tmp_path: Path, threads: Threads) -> None:
    assert embed_images(tmp_path / "out") == 4

    assert threads.keys() >= {"array", "load", "eval", "async_eval", "VisionModel.__call__"}
    assert set().union(*threads.values()) == {threading.get_ident()}


@pytest.fixture(scope="module")
def forks() -> list[int]:
    """Note whenever this process forks; Python keeps such a hook to its end."""
    seen: list[int] = []
    os.register_at_fork(before=lambda: seen.append(os.getpid()))
    return seen


def test_a_process_with_mlx_never_forks(
    database: Database, queue: JobQueue, workspace: Path, tmp_path: Path, forks: list[int]
) -> None:
    enqueue(database, queue, workspace)
    forks.clear()

    assert burst(database, queue) == Work(done=2)      # a chat template's process is spawned, which calls no hook
    assert embed_images(tmp_path / "out") == 4

    assert forks == []


@pytest.mark.parametrize("command", ["enqueue pairs.txt", "status", "results", "resume"])
def test_what_computes_nothing_never_loads_mlx(
    database: Database, queue: JobQueue, server: Valkey, workspace: Path, command: str
) -> None:
    half_done = make_run(database, 8)
    record_results(database, half_done.id, [make_row(position) for position in range(4)])

    asked = subprocess.run([sys.executable, "-c", LOADS_MLX, *command.split()], cwd=workspace, capture_output=True,
                           env=os.environ | {"DIPTYCH_REDIS_URL": server.url}, text=True, check=False)

    assert asked.returncode == 0, asked.stderr
    assert len(queue.waiting()) == {"enqueue pairs.txt": 1, "resume": 1}.get(command, 0)


@pytest.fixture
def caffeinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a Mac as far as sleep goes, whose caffeinate writes how it was called, and stays."""
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/called"\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(awake, "sys", SimpleNamespace(platform="darwin"))
    return tmp_path / "called"


def after(condition: Callable[[], object], call: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that does not begin before the condition holds."""

    def waits(*args: Any) -> Any:
        wait_for(condition, "caffeinate to be called")
        return call(*args)

    return waits


@pytest.mark.parametrize("command", [
    "batch-generate pairs.txt --max-tokens 2", f"precompute {SMALL}/images -o out --image-size 56",
    "bench --batch-sizes 1 --max-tokens 1",
], ids=["worker", "precompute", "bench"])
def test_a_mac_is_awake_while_a_model_computes(
    server: Valkey, workspace: Path, caffeinate: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DIPTYCH_REDIS_URL", server.url)
    for model, method in ((TextModel, "prefill"), (VisionModel, "__call__")):
        called = after(lambda: caffeinate.exists() and caffeinate.read_text().endswith("\n"), getattr(model, method))
        monkeypatch.setattr(model, method, called)

    assert run(diptych, command.split()) == 0

    assert caffeinate.read_text().split() == ["-i", "-w", str(os.getpid())]


class Loadings(Reporter):
    """Remembers for which runs a model was loaded."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def loading(self, run: Run) -> None:
        self.runs.append(run.id)


def test_two_runs_of_one_checkpoint_load_it_once(database: Database, queue: JobQueue, workspace: Path) -> None:
    first, _ = (enqueue(database, queue, workspace) for _ in range(2))
    heard = Loadings()

    assert burst(database, queue, heard) == Work(done=4)

    assert heard.runs == [first.id]


def test_a_model_is_let_go_before_another_is_loaded(
    database: Database, queue: JobQueue, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_checkpoint(workspace / "other_weights", edit=lambda config: config.update(comment="another one"))
    for weights in ("vision_weights", "other_weights"):
        enqueue(database, queue, workspace, weights)
    load, loaded, alive = session.load_text_model, list[weakref.ref[TextModel]](), list[int]()

    def noted(checkpoint: Checkpoint) -> TextModel:
        alive.append(sum(model() is not None for model in loaded))
        model = load(checkpoint)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(session, "load_text_model", noted)

    assert burst(database, queue) == Work(done=4)

    assert alive == [0, 0]
