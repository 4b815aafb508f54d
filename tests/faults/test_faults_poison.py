"""A pair that kills its worker, again and again: it is found and failed, and all others are compared."""

import signal
import sys
from pathlib import Path

from night import Night, check, tally

POISONED, PAIRS = 13, 32      # the position that kills, of so many
DEADLY = f"""
import os, signal
from cli.main import main
from workers.engine import Engine

generate = Engine.generate

def dies(engine, prompt, rows, *rest):
    taken = list(rows)
    if any(row.key == {POISONED} for row in taken):
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(engine, prompt, taken, *rest)

Engine.generate = dies
main()
"""


def test_a_pair_that_kills_its_worker_is_failed_and_the_others_go_on(workspace: Path) -> None:
    night = Night(workspace)
    night.write_pairs(PAIRS)
    run_id = night.enqueue()

    ends = []
    while not ends or ends[-1] == -signal.SIGKILL:
        with night.worker("--burst", program=(sys.executable, "-c", DEADLY)) as worker:
            ends.append(worker.wait(timeout=120))

    failed = night.ask("select position, text, error from comparisons where status = 'failed'")
    assert failed == [(POISONED, "", "the worker died 2 times while it compared this pair by itself")]
    assert night.done(run_id) == PAIRS - 1
    assert ends == [-signal.SIGKILL] * 5 + [1]      # three with its job, two alone; then a pair has failed
    tally("a pair that kills its worker", times=len(ends) - 1, pairs=PAIRS, failed=len(failed))

    assert night.run("resume", "--retry-failed").returncode == 0
    night.finish()
    check(night, run_id, "a pair that kills its worker, retried with one that it does not kill", times=1)
