"""Share of a worker's wall time that it spends in the engine: 2,000 pairs through queue and store, on the demo model.

    .venv/bin/python benchmarks/busy.py [--pairs 2000] [--batch-size 64] [--json busy.json]

The demo model is so small that all else weighs more beside it than beside a real one; on Linux OpenBLAS, loaded first
as in throughput.py, makes the engine faster still. The wall time runs from the first job's first prefill to the end of
the last job: reading embeddings, texts, transactions, tickets and leases.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from blas import begin_with_blas, describe_blas

from jobs.delivery import open_queue
from jobs.enqueue import Request, enqueue_run, plan_run
from jobs.environment import environment
from jobs.inputs import Settings
from store import demo
from store.checkpoint import open_checkpoint
from store.database import open_database
from store.records import Run, Sampling
from workers.engine import Engine, Steps
from workers.precompute import precompute
from workers.report import Reporter
from workers.rows import Token
from workers.service import Options, run_worker
from workers.stop import Stop


class Clock:
    """Adds up the seconds that a caller waits for the engine."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.engine = 0.0      # seconds

    def watch(self, steps: Steps) -> Iterator[list[Token]]:
        """Yield what the engine yields, timed."""
        self.began = self.began or time.perf_counter()
        while True:
            asked = time.perf_counter()
            step = next(steps, None)
            self.engine += time.perf_counter() - asked
            if step is None:
                return
            yield step


class LastJob(Reporter):
    """Remembers when the last job ended."""

    ended = 0.0

    def finished(self, run: Run, job: int, seconds: float) -> None:
        """Look at the clock."""
        self.ended = time.perf_counter()


def measure(folder: Path, settings: Settings, pairs: int, batch_size: int) -> dict[str, float]:
    """Run so many random pairs through a queue and a store of their own."""
    clock, last, generate = Clock(), LastJob(), Engine.generate
    Engine.generate = lambda *args: clock.watch(generate(*args))  # type: ignore[method-assign,assignment,return-value]
    with open_database(str(folder / "results.db"), create=True) as database, open_queue(database, None) as queue:
        request = Request(settings, None, pairs, 1, batch_size, None, ())
        enqueue_run(database, queue, plan_run(request))
        run_worker(database, queue, Options(burst=True), Stop(), last)
    assert clock.began is not None
    wall = last.ended - clock.began
    return {"pairs": pairs, "batch_size": batch_size, "wall_s": round(wall, 2), "engine_s": round(clock.engine, 2),
            "engine_share": round(clock.engine / wall, 4)}


def main() -> None:
    """Print the share, and as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--blas", default="auto", help="auto, none, or the library to load first")
    given = parser.parse_args()
    blas = begin_with_blas(given.blas)
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        os.environ["HOME"] = str(folder)      # of the queue's server
        precompute(demo.PHOTOS, folder / "embeddings", open_checkpoint(demo.WEIGHTS), batch_size=8, side=None,
                   fit="squash", progress=lambda done, of: None)
        settings = Settings(folder / "embeddings", demo.WEIGHTS, "Compare these two images.", False, Sampling())
        found = measure(folder, settings, given.pairs, given.batch_size)
    print("{pairs:,} pairs in jobs of {batch_size}: {wall_s:.1f} s, of which {engine_s:.1f} s in the engine: "
          "{engine_share:.1%}".format(**found))
    if given.json:
        given.json.write_text(json.dumps(found | environment() | {"blas": describe_blas(blas)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
