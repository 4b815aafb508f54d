"""Signals as people and systems send them: Ctrl-C once and twice, SIGTERM, a closing terminal, a sleeping Mac."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DIPTYCH, wait_for
from night import LONG, Night, check, impatient

HEARTBEAT = 10.0 if LONG else 0.3      # seconds; a lease lasts three
COMPILED = 0.5      # seconds; on the CPU MLX calls its compiler first with system(), which ignores SIGINT meanwhile
ASLEEP = 40.0 if LONG else 3.0         # seconds
# Runs a command in a terminal of its own, says its process id, and closes the terminal when a line comes.
TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
print(pid, flush=True)
sys.stdin.readline()
os.close(terminal)
os.waitpid(pid, 0)
"""


def make_night(workspace: Path, pairs: int = 64, tokens: int = 200) -> tuple[Night, str]:
    """Enqueue jobs that take some seconds each."""
    night = Night(workspace, options=("--max-tokens", tokens, "--batch-size", 16, "--seed", 3, "--greedy"))
    night.write_pairs(pairs)
    return night, night.enqueue()


def attempts(night: Night) -> list[tuple[object, ...]]:
    return night.ask("select job, attempts, worker is not null, finished_at is not null from jobs order by job")


def is_begun(night: Night) -> bool:
    return any(row[2] for row in attempts(night))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_one_signal_finishes_the_slice_in_hand_and_says_how_long_it_takes(
    workspace: Path, signum: signal.Signals, status: int
) -> None:
    night, run_id = make_night(workspace)
    with night.worker() as worker:
        wait_for(lambda: is_begun(night), "the first job")
        time.sleep(COMPILED)
        worker.send_signal(signum)
        assert worker.wait(timeout=120) == status

    assert re.search(r"finishing, about \d+ s; again to stop now", night.log), night.log
    assert "to go on: diptych worker --burst" in night.log
    assert night.done(run_id) % 16 == 0      # the job in hand, whole
    assert night.done(run_id) < 64
    night.finish()
    check(night, run_id, f"{signum.name} once", times=1)


def test_a_second_ctrl_c_stops_at_once_and_the_job_goes_back(workspace: Path) -> None:
    night, run_id = make_night(workspace, tokens=1500)
    with night.worker() as worker:
        wait_for(lambda: is_begun(night), "the first job")
        time.sleep(COMPILED)
        worker.send_signal(signal.SIGINT)
        wait_for(lambda: "again to stop now" in night.log, "the answer")
        time.sleep(0.5)      # longer than the same press may be heard twice
        worker.send_signal(signal.SIGINT)
        assert worker.wait(timeout=60) == 130

    assert night.done(run_id) < 16
    assert attempts(night)[0] == (0, 1, 0, 0)      # queued again; the attempt counts
    night.finish()
    check(night, run_id, "SIGINT twice", times=1)


@pytest.mark.parametrize("command", [("nohup", str(DIPTYCH)), (str(DIPTYCH),)])
def test_a_terminal_that_closes_costs_nothing(workspace: Path, command: tuple[str, ...]) -> None:
    night, run_id = make_night(workspace)
    words = [sys.executable, "-c", TERMINAL, *command, "worker", "--burst", *night.place]
    with subprocess.Popen(words, cwd=workspace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as terminal:
        assert terminal.stdin
        assert terminal.stdout
        pid = int(terminal.stdout.readline())
        wait_for(lambda: is_begun(night), "the first job")
        terminal.stdin.write("\n")
        terminal.stdin.flush()
        terminal.wait(timeout=120)      # until the worker has ended

    assert pid > 0
    if command[0] == "nohup":
        assert night.done(run_id) == 64      # its server was still there
    else:
        assert night.done(run_id) < 64
    night.finish()
    check(night, run_id, f"terminal closed under a worker{' of nohup' * (command[0] == 'nohup')}", times=1)


def test_a_worker_that_sleeps_past_its_lease_does_no_harm_when_it_wakes(workspace: Path) -> None:
    night, run_id = make_night(workspace, pairs=32)
    program = impatient(HEARTBEAT)
    with night.worker(program=program) as asleep:
        wait_for(lambda: is_begun(night), "the first job")
        os.kill(asleep.pid, signal.SIGSTOP)
        time.sleep(ASLEEP)
        with night.worker(program=program) as other:
            wait_for(lambda: night.done(run_id) == 32, "all pairs, from the other worker", seconds=120)
            os.kill(asleep.pid, signal.SIGCONT)
            wait_for(lambda: "its lease had run out; what was recorded stays" in night.log, "the sleeper to see it")
            for worker in (asleep, other):
                worker.terminate()
                assert worker.wait(timeout=60) == 0, night.log

    assert [row[1] for row in attempts(night)] == [2, 1]
    check(night, run_id, f"worker stopped for {ASLEEP:.0f} s, past its lease of {3 * HEARTBEAT:.0f} s, and woken",
          times=1)
