"""A night with faults: a run on the small checkpoint, its undisturbed twin, and what must be true in the end."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import DIPTYCH, run_diptych, wait_for

LONG = os.environ.get("DIPTYCH_FAULTS") == "long"      # `make faults`; else the short form, of `make test`
TALLY = os.environ.get("DIPTYCH_TALLY")                # a file that takes what was tried, a JSON object a line
ROWS = ("select c.position, c.idx_a, c.idx_b, c.status, c.text, c.finish_reason, c.seed, hex(r.token_ids) "
        "from comparisons c left join results r using (run_id, position) where c.run_id = ? order by c.position")
TWINS: dict[tuple[object, ...], list[tuple[object, ...]]] = {}      # results of undisturbed runs, by options and pairs


@dataclass
class Night:
    """A folder with a run in it, and the commands that a person would type there."""

    folder: Path
    options: tuple[object, ...] = ("--max-tokens", 8, "--batch-size", 8, "--seed", 11)
    database: str = "results.db"
    redis: str | None = None      # a URL; None: the embedded server

    @property
    def place(self) -> list[str]:
        """Return the options that every command has."""
        return ["--db", self.database, *(["--redis", self.redis] if self.redis else [])]

    def write_pairs(self, count: int) -> None:
        """Write so many pairs over the four images."""
        lines = (f"{number % 4},{number // 4 % 4}\n" for number in range(count))
        (self.folder / "pairs.txt").write_text("".join(lines))

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return run_diptych(*words, *self.place, cwd=self.folder)

    def enqueue(self) -> str:
        """Enqueue all pairs; return the run's id."""
        done = self.run("enqueue", "pairs.txt", *self.options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def worker(
        self, *words: object, program: Sequence[str] = (str(DIPTYCH),), **env: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a worker; it is killed at the end where it still runs."""
        command, env = [*program, "worker", *map(str, words), *self.place], os.environ | env
        with (self.folder / "worker.log").open("a") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        """Return what workers have said."""
        return (self.folder / "worker.log").read_text()

    def ask(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Ask the database as any SQLite tool would."""
        with closing(sqlite3.connect(f"file:{self.folder / self.database}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def done(self, run_id: str) -> int:
        """Count the pairs that are done."""
        [(done,)] = self.ask("select done from run_summary where run_id = ?", run_id)
        return int(str(done))

    def finish(self) -> None:
        """Let a last worker do what is left."""
        done = self.run("worker", "--burst")
        assert done.returncode == 0, done.stderr

    def wait_for_results(self, run_id: str, more: int = 1) -> int:
        """Wait until so many more pairs are done; return how many are."""
        wanted = self.done(run_id) + more
        wait_for(lambda: self.done(run_id) >= wanted, f"{wanted} results")
        return self.done(run_id)

    def rows(self, run_id: str) -> list[tuple[object, ...]]:
        """Return all pairs with their results."""
        return self.ask(ROWS, run_id)


def impatient(heartbeat: float) -> Sequence[str]:
    """Return the program with other seconds between heartbeats; a lease lasts three."""
    code = f"""
from cli.main import main
from workers.worker import work

work.__kwdefaults__["heartbeat"] = {heartbeat}
main()
"""
    return (sys.executable, "-c", code)


def undisturbed(night: Night) -> list[tuple[object, ...]]:
    """Return the results of the same run without any fault, in a database of its own; computed once."""
    key = (night.options, (night.folder / "pairs.txt").read_text())
    if key not in TWINS:
        twin = Night(night.folder, night.options, "undisturbed.db")
        run_id = twin.enqueue()
        twin.finish()
        TWINS[key] = twin.rows(run_id)
    return TWINS[key]


def check(night: Night, run_id: str, fault: str, **counts: int) -> None:
    """Hold a run to its undisturbed twin: each pair has one result, the same, and the database is sound.

    Writes down what was tried, for docs/reliability.md.
    """
    expected, found = undisturbed(night), night.rows(run_id)
    counts_of = "select count(*), count(distinct position) from results where run_id = ?"
    [(results, positions)] = night.ask(counts_of, run_id)
    outcome = {"pairs": len(expected), "lost": len(expected) - positions, "doubled": results - positions,
               "different": sum(row != twin for row, twin in zip(found, expected, strict=True))}
    tally(fault, **counts, **outcome)

    assert all(row[3] == "done" for row in expected)
    assert outcome == {"pairs": len(found), "lost": 0, "doubled": 0, "different": 0}
    assert night.ask("pragma integrity_check") == [("ok",)]


def tally(fault: str, **counts: int) -> None:
    """Write down what was tried, for docs/reliability.md."""
    if TALLY:
        with Path(TALLY).open("a") as file:
            file.write(json.dumps({"fault": fault} | counts) + "\n")
