"""Time and peak memory of `diptych results` for 1,000,000 rows, to CSV, JSON lines, Parquet and a table.

    .venv/bin/python benchmarks/results.py [--rows 1000000]

Flat memory shows in the peak for all rows beside that for a tenth of them.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from store.database import Database, open_database
from store.records import Comparison, NewRun, Pair, Sampling
from store.results import record_results
from store.runs import create_run

WHEN = "2026-01-01T00:00:00.000Z"
AT_A_TIME = 5_000      # rows of a transaction
TEXT = "Image A is brighter and warmer than image B, which is the sharper of the two. " * 3


def make_run(database: Database, rows: int) -> str:
    """Record a run of so many rows; return its id."""
    new = NewRun(
        name=f"rows-{rows}", prompt="Compare these two images.", thinking=False, sampling=Sampling(), seed=0,
        batch_size=64, pairs_file=None, pairs_sha256=None, embeddings_dir="/embeddings",
        embeddings_fingerprint="0" * 64, weights_dir="/weights", model_fingerprint="0" * 64, version="0",
        environment={}, argv=(),
    )
    pairs = (Pair(place, place % 1000, (place + 1) % 1000, seed=place, job=place // 64) for place in range(rows))
    run = create_run(database, new, pairs, [f"{index}.jpg" for index in range(1000)])
    for start in range(0, rows, AT_A_TIME):
        record_results(database, run.id, list(results(start, min(start + AT_A_TIME, rows))))
    return run.id


def results(start: int, end: int) -> Iterator[Comparison]:
    """Make results of a usual length."""
    for position in range(start, end):
        yield Comparison(
            position=position, status="done", text=TEXT, thinking="", finish_reason="stop",
            token_ids=tuple(range(50)), prompt_tokens=545, seed=position, batch_size=64, job=position // 64, attempt=1,
            worker="worker", device="cpu", started_at=WHEN, finished_at=WHEN,
        )


def measure(folder: Path, run: str, form: str) -> tuple[float, float]:
    """Write all rows in a process of its own; return wall seconds and its peak memory in MB."""
    command = [str(Path(sys.executable).with_name("diptych")), "results", run, "--format", form, "-o", f"out.{form}"]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"results failed with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_maxrss / (1e6 if platform.system() == "Darwin" else 1e3)


def main() -> None:
    """Print a line for each form and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        with open_database(str(folder / "results.db"), create=True) as database:
            runs = {count: make_run(database, count) for count in (rows // 10, rows)}
        for form in ("csv", "jsonl", "parquet", "table"):
            for count, run in runs.items():
                seconds, megabytes = measure(folder, run, form)
                print(f"{form:8} {count:>9,} rows: {seconds:6.1f} s, peak {megabytes:4.0f} MB")


if __name__ == "__main__":
    main()
