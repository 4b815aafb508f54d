"""Share of a worker's wall time that it spends in the engine: 2,000 pairs through queue and store, on the demo model.

    .venv/bin/python benchmarks/busy.py [--pairs 2000] [--batch-sizes 64,128] [--json busy.json]

The demo model is so small that all else weighs more beside it than beside a real one; on Linux OpenBLAS, loaded first
as in throughput.py, makes the engine faster still. The wall time runs from the first job's first prefill to the end of
the last job: reading embeddings, texts, transactions, tickets and leases.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from blas import begin_with_blas, describe_blas

from jobs.delivery import open_queue
from jobs.enqueue import Request, enqueue_run, plan_run
from jobs.environment import environment
from jobs.inputs import Settings
from jobs.prompt import Prompt
from store import demo
from store.checkpoint import open_checkpoint
from store.database import open_database
from store.records import Run, Sampling
from workers.engine import Engine
from workers.precompute import precompute
from workers.report import Reporter
from workers.rows import Row, Token
from workers.service import Options, run_worker
from workers.stop import Stop

T = TypeVar("T")
END: Any = object()
TIMES = 3


class Clock:
    """Adds up the seconds that a caller waits for an iterator."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.seconds = 0.0

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield what the iterator yields, timed."""
        self.began = self.began or time.perf_counter()
        stream = iter(items)
        while True:
            asked = time.perf_counter()
            item = next(stream, END)
            self.seconds += time.perf_counter() - asked
            if item is END:
                return
            yield cast("T", item)


class LastJob(Reporter):
    """Remembers when the last job ended."""

    ended = 0.0

    def finished(self, run: Run, job: int, seconds: float) -> None:
        """Look at the clock."""
        self.ended = time.perf_counter()


def measure(folder: Path, settings: Settings, pairs: int, batch_size: int) -> dict[str, float]:
    """Run so many random pairs through a queue and a store of their own."""
    engine, reading, last, generate = Clock(), Clock(), LastJob(), Engine.generate

    def watched(self: Engine, prompt: Prompt, rows: Iterable[Row], *rest: Any) -> Iterator[list[Token]]:
        return engine.watch(generate(self, prompt, reading.watch(rows), *rest))

    folder.mkdir()
    Engine.generate = watched  # type: ignore[method-assign,assignment]
    with open_database(str(folder / "results.db"), create=True) as database, open_queue(database, None) as queue:
        request = Request(settings, None, pairs, 1, batch_size, None, ())
        enqueue_run(database, queue, plan_run(request))
        run_worker(database, queue, Options(burst=True), Stop(), last)
    Engine.generate = generate  # type: ignore[method-assign]
    assert engine.began is not None
    wall, inside = last.ended - engine.began, engine.seconds - reading.seconds      # the engine asks for rows
    return {"pairs": pairs, "batch_size": batch_size, "wall_s": round(wall, 2), "engine_s": round(inside, 2),
            "engine_share": round(inside / wall, 4)}


def main() -> None:
    """Print the share, and as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--batch-sizes", default="64,128", help="pairs in a job; `enqueue` makes jobs of 64")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--blas", default="auto", help="auto, none, or the library to load first")
    given = parser.parse_args()
    blas = begin_with_blas(given.blas)
    shares = [share_in(given.pairs, int(size)) for size in given.batch_sizes.split(",")]
    for found in shares:
        print("{pairs:,} pairs in jobs of {batch_size}: {wall_s:.1f} s, of which {engine_s:.1f} s in the engine: "
              "{engine_share:.1%}".format(**found))
    if given.json:
        found = {"shares": shares} | environment() | {"blas": describe_blas(blas)}
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def share_in(pairs: int, batch_size: int) -> dict[str, float]:
    """Measure in a folder of its own, with embeddings of the photographs that ship; the median of TIMES."""
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        os.environ["HOME"] = str(folder)      # of the queue's server
        precompute(demo.PHOTOS, folder / "embeddings", open_checkpoint(demo.WEIGHTS), batch_size=8, side=None,
                   fit="squash", progress=lambda done, of: None)
        settings = Settings(folder / "embeddings", demo.WEIGHTS, "Compare these two images.", False, Sampling())
        return sorted((measure(folder / str(n), settings, pairs, batch_size) for n in range(TIMES)),
                      key=lambda found: found["engine_share"])[TIMES // 2]


if __name__ == "__main__":
    main()
