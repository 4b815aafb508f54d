"""What the tests of the store share: a database, runs of a few pairs, and rows that a worker might record."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store.database import Database, open_database
from store.records import Comparison, NewRun, Pair, Run, Sampling
from store.runs import create_run

ON_SQLITE = pytest.mark.parametrize("location", ["sqlite"], indirect=True)      # for what PostgreSQL does differently
ROOT = Path(__file__).parent.parent
IMAGES = ("cats/one.jpg", "cats/two.jpg", "dogs/one.jpg", "100%_sure.png")
NEW_RUN = NewRun(
    name="night", prompt="Compare these two images.", thinking=False,
    sampling=Sampling(do_sample=True, temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_tokens=20),
    seed=2**53 - 1, batch_size=4, pairs_file="/data/pairs.txt", pairs_sha256="a" * 64,
    embeddings_dir="/data/embeddings", embeddings_fingerprint="e" * 64, weights_dir="/data/weights",
    model_fingerprint="f" * 64, version="0.1.0",
    environment={"python": "3.11.7", "chip": "Apple M4"}, argv=("diptych", "enqueue", "pairs.txt"), pair_order="file",
)


def create_database(folder: Path) -> Database:
    """Make a database in a folder."""
    return open_database(str(folder / "results.db"), create=True)


def make_pairs(count: int, job_size: int = 4) -> list[Pair]:
    """Make pairs of the sample images, divided into jobs in the order of the file."""
    return [Pair(position, position % 4, (position + 1) % 4, 1000 + position, position // job_size)
            for position in range(count)]


def make_run(db: Database, count: int = 8, *, pairs: Iterable[Pair] | None = None, **changes: Any) -> Run:
    """Record a run of the sample images."""
    return create_run(db, replace(NEW_RUN, **changes), make_pairs(count) if pairs is None else pairs, IMAGES)


def make_row(position: int, **changes: Any) -> Comparison:
    """Make the row of a success, or of a failure when `error` is given."""
    failed = changes.get("error") is not None
    row = Comparison(
        position=position, status="failed" if failed else "done", text="" if failed else f"Answer {position}.",
        thinking="", finish_reason=None if failed else "stop", token_ids=() if failed else (5, 151_551, position),
        prompt_tokens=545, seed=1000 + position, batch_size=4, job=position // 4, attempt=1, worker="w1",
        device="Apple M4", started_at="2026-01-01T00:00:00.000Z", finished_at="2026-01-01T00:00:09.000Z",
    )
    return replace(row, **changes)


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a process that runs a piece of code in the project; its arguments are sys.argv[1:]."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """Wait for a process to end well, and return what it printed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out
