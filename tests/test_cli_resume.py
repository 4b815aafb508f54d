"""A run that is stopped anywhere and resumed equals one that was never interrupted: real processes, real signals."""

import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from conftest import DIPTYCH, run_diptych, wait_for

PAIRS = "".join(f"{a},{b}\n" for a in range(4) for b in range(4)) * 3      # 48 pairs, each of them three times
OPTIONS = ("--max-tokens", 24, "--batch-size", 4, "--seed", 11)


def recorded(database: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(database)
    found = connection.execute(
        "select c.position, c.text, c.finish_reason, c.seed, r.token_ids from comparisons c "
        "join results r using (run_id, position) where c.status = 'done' order by c.position").fetchall()
    connection.close()
    return found


def n_done(database: Path) -> int:
    connection = sqlite3.connect(database)
    done: int = connection.execute("select done from run_summary").fetchone()[0]
    connection.close()
    return done


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[object, ...]]]:
    return {}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_a_stopped_and_resumed_run_equals_one_that_was_never_interrupted(
    workspace: Path, undisturbed: dict[str, list[tuple[object, ...]]], number: signal.Signals, status: int
) -> None:
    (workspace / "pairs.txt").write_text(PAIRS)
    if not undisturbed:
        whole = run_diptych("batch-generate", "pairs.txt", *OPTIONS, "--db", "whole.db", cwd=workspace)
        assert whole.returncode == 0, whole.stderr
        undisturbed["rows"] = recorded(workspace / "whole.db")

    run_diptych("enqueue", "pairs.txt", *OPTIONS, cwd=workspace)
    worker = subprocess.Popen([str(DIPTYCH), "worker", "--burst"], cwd=workspace, env=os.environ,
                              stderr=subprocess.DEVNULL)
    wait_for(lambda: n_done(workspace / "results.db") >= 8, "the first results")
    worker.send_signal(number)
    assert worker.wait(timeout=60) == status
    assert 8 <= n_done(workspace / "results.db") < 48

    resumed = run_diptych("resume", cwd=workspace)
    again = run_diptych("resume", cwd=workspace)
    finished = run_diptych("worker", "--burst", cwd=workspace)

    assert (resumed.returncode, again.returncode, finished.returncode) == (0, 0, 0), finished.stderr
    assert recorded(workspace / "results.db") == undisturbed["rows"]
    assert len(undisturbed["rows"]) == 48
    connection = sqlite3.connect(workspace / "results.db")
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


def test_ctrl_c_in_batch_generate_prints_the_command_that_resumes(workspace: Path) -> None:
    (workspace / "pairs.txt").write_text(PAIRS)
    command = [str(DIPTYCH), "batch-generate", "pairs.txt", *map(str, OPTIONS)]
    batch = subprocess.Popen(command, cwd=workspace, env=os.environ, stderr=subprocess.PIPE, text=True)
    wait_for((workspace / "results.db").exists, "the database")
    wait_for(lambda: started(workspace) and n_done(workspace / "results.db") >= 4, "the first results")

    batch.send_signal(signal.SIGINT)
    _, said = batch.communicate(timeout=60)

    run_id = sqlite_value(workspace, "select run_id from run_summary")
    assert batch.returncode == 130, said
    assert f"diptych resume {run_id} && diptych worker --burst" in said


def started(workspace: Path) -> bool:
    return sqlite_value(workspace, "select count(*) from sqlite_master where name = 'run_summary'") == 1 and bool(
        sqlite_value(workspace, "select count(*) from run_summary"))


def sqlite_value(workspace: Path, query: str) -> object:
    connection = sqlite3.connect(workspace / "results.db")
    value: object = connection.execute(query).fetchone()[0]
    connection.close()
    return value


def test_a_cancelled_run_drops_its_jobs_and_resume_takes_it_up_again(workspace: Path) -> None:
    run_id = run_diptych("enqueue", "pairs.txt", *OPTIONS, cwd=workspace).stdout.strip()

    cancelled = run_diptych("cancel", run_id, cwd=workspace)
    idle = run_diptych("worker", "--burst", cwd=workspace)
    assert (cancelled.returncode, idle.returncode) == (0, 0), idle.stderr
    assert sqlite_value(workspace, "select state || done from run_summary") == "cancelled0"

    resumed = run_diptych("resume", run_id[:6], cwd=workspace)
    worked = run_diptych("worker", "--burst", cwd=workspace)
    assert (resumed.returncode, worked.returncode) == (0, 0), worked.stderr
    assert sqlite_value(workspace, "select state || done from run_summary") == "done8"


def test_a_run_that_nobody_works_at_says_so(workspace: Path) -> None:
    run_diptych("enqueue", "pairs.txt", "--max-tokens", 2000, "--greedy", cwd=workspace)
    wait_for(lambda: "no worker is at the embedded queue, to go on: diptych worker --burst"
             in run_diptych("status", cwd=workspace).stdout, "the server of enqueue to end")

    with subprocess.Popen([str(DIPTYCH), "worker", "--burst", "--quiet"], cwd=workspace) as worker:
        wait_for(lambda: "running" in run_diptych("status", cwd=workspace).stdout, "the job")
        beside = run_diptych("status", cwd=workspace).stdout
        worker.kill()

    assert "no worker" not in beside
    wait_for(lambda: "no worker" in run_diptych("status", cwd=workspace).stdout, "its server to end")
