"""A long run: a worker that grows neither in memory nor in open files, a queue and a log that stay small."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil
from night import LONG, Night, tally
from realvalkey import Valkey

from jobs.queue import connect

PAIRS = 20_000 if LONG else 480
GROWTH = 0.02 if LONG else 0.15      # of the worker's memory, from the second quarter to the last
WAL = 16 * 2**20                     # bytes
LEFT = 2**17                         # bytes of Redis's memory, which are its own to and fro


@dataclass(frozen=True)
class Sample:
    """What a worker holds at a moment."""

    done: int         # pairs
    memory: int       # bytes resident
    files: int        # open ones
    log: int          # bytes of SQLite's write-ahead log


def take(night: Night, run_id: str, pid: int) -> Sample:
    process, log = psutil.Process(pid), night.folder / f"{night.database}-wal"
    return Sample(night.done(run_id), process.memory_info().rss, process.num_fds(),
                  log.stat().st_size if log.exists() else 0)


def used(server: Valkey) -> int:
    with connect(server.url) as connection:
        return int(connection.info("memory")["used_memory"])


def test_a_long_run_needs_no_more_in_its_last_quarter_than_in_its_second(workspace: Path) -> None:
    server = Valkey()
    server.start()
    night = Night(workspace, options=("--max-tokens", 8, "--batch-size", 32, "--seed", 1), redis=server.url)
    night.write_pairs(64)
    night.enqueue()
    night.finish()      # so that Redis has met every command, of each of which it keeps its latencies
    night.write_pairs(PAIRS)
    before, samples, said = used(server), list[Sample](), dict[str, float]()
    run_id = night.enqueue()

    with night.worker("--burst") as worker:
        while worker.poll() is None:
            samples.append(take(night, run_id, worker.pid))
            if not said and samples[-1].done >= PAIRS / 5:
                said = json.loads(night.run("status", "--json").stdout) | {"at": time.monotonic()}
            time.sleep(0.2)
        assert worker.returncode == 0, night.log
    ended, after = time.monotonic(), used(server)
    server.remove()

    working = [sample for sample in samples if 0 < sample.done < PAIRS]
    quarters = [[sample for sample in working if number <= 4 * sample.done / PAIRS < number + 1] for number in range(4)]
    memory = [mean(sample.memory for sample in quarter) for quarter in quarters]
    files = [min(sample.files for sample in quarter) for quarter in quarters]      # one more is open for moments
    tally("a long run", pairs=PAIRS, memory_2nd_quarter=round(memory[1]), memory_last_quarter=round(memory[3]),
          files_2nd_quarter=files[1], files_last_quarter=files[3], largest_log=max(sample.log for sample in samples),
          redis_before=before, redis_after=after, seconds_left_said=round(said["seconds_left"]),
          seconds_left_true=round(ended - said["at"]))
    assert memory[3] < (1 + GROWTH) * memory[1]
    assert files[3] <= files[1]
    assert max(sample.log for sample in samples) < WAL
    assert after < before + LEFT
    assert said["comparisons_per_minute"] > 0
    assert not LONG or abs(said["seconds_left"] - (ended - said["at"])) < 0.25 * (ended - said["at"])
