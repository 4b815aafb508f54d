"""What `worker` and `batch-generate` say at their end, and which runs they answer for."""

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from conftest import DIPTYCH, run_diptych, wait_for
from rich.progress import Progress

from cli.progress import rate


def test_hints_repeat_the_database_that_was_typed(workspace: Path) -> None:
    done = run_diptych("batch-generate", "pairs.txt", "--max-tokens", 2, "--db", "my runs.db", cwd=workspace)

    hint = next(line for line in done.stderr.splitlines() if line.startswith("to see them: diptych "))
    assert hint.endswith("--db 'my runs.db'")
    shown = run_diptych("results", hint.split()[5], "--db", "my runs.db", cwd=workspace)
    assert shown.returncode == 0


def test_a_complete_run_is_a_success_whatever_became_of_an_older_one(workspace: Path) -> None:
    older = run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, cwd=workspace).stdout.strip()
    lose_the_queue(workspace)

    done = run_diptych("batch-generate", "pairs.txt", "--max-tokens", 2, cwd=workspace)
    burst = run_diptych("worker", "--burst", cwd=workspace)

    assert done.returncode == 0, done.stderr
    assert burst.returncode == 1
    assert f"diptych resume {older}" in burst.stderr


def lose_the_queue(workspace: Path) -> None:
    """Empty the embedded queue's journal, as a wiped server would be."""
    import os
    import shutil

    from conftest import server_pids

    home = Path(os.environ["HOME"])
    wait_for(lambda: not server_pids(home), "the server to end", seconds=15)
    for journal in (home / ".diptych").glob("*/appendonlydir"):
        shutil.rmtree(journal)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_worker_that_is_asked_to_stop_ends_as_asked_also_when_it_has_passed_over_its_runs(
    workspace: Path, signum: int, status: int
) -> None:
    enqueue_broken(workspace)
    log = workspace / "worker.log"

    with log.open("w") as stderr, subprocess.Popen([DIPTYCH, "worker"], cwd=workspace, stderr=stderr) as worker:
        try:
            wait_for(lambda: "is passed over for 300 s" in log.read_text(), "the run to be passed over")
            worker.send_signal(signum)
            assert worker.wait(60) == status, log.read_text()
        finally:
            worker.kill()

    assert "Error" not in log.read_text()


def test_a_burst_names_lost_tickets_beside_a_run_that_it_passes_over(workspace: Path) -> None:
    lost = run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, cwd=workspace).stdout.strip()
    lose_the_queue(workspace)
    broken = enqueue_broken(workspace)

    burst = run_diptych("worker", "--burst", cwd=workspace)

    assert burst.returncode == 2
    assert f"diptych resume {lost}" in burst.stderr
    assert f"diptych cancel {broken}` drops the run" in burst.stderr.splitlines()[-1]


def enqueue_broken(workspace: Path) -> str:
    """Enqueue a run whose embeddings then change, and return its id."""
    run_id = run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, cwd=workspace).stdout.strip()
    with (workspace / "embeddings_512" / "embeddings.bin").open("ab") as file:
        file.write(b"xx")
    return run_id


def test_the_drop_in_prints_the_texts_of_its_own_run_only(workspace: Path) -> None:
    run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, cwd=workspace)
    settings = {"GLM_BATCH_GENERATE": "1", "GLM_BATCH_SIZE": "2", "GLM_MAX_TOKENS": "2"}

    done = subprocess.run([str(DIPTYCH.with_name("glm46v_mlx"))], cwd=workspace, env=os.environ | settings,
                          capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    assert places(done.stdout) == [0, 1]
    assert "other runs come first: 1 job" in done.stderr


def test_a_worker_with_nothing_to_do_in_a_wrong_folder_makes_no_database(tmp_path: Path) -> None:
    idle = run_diptych("worker", "--burst", cwd=tmp_path)

    assert idle.returncode == 2
    assert "results.db" in idle.stderr
    assert not (tmp_path / "results.db").exists()


def test_a_pairs_file_beside_random_is_refused_and_one_from_the_variable_gives_way(workspace: Path) -> None:
    both = run_diptych("enqueue", "pairs.txt", "--random", 3, cwd=workspace)
    variable = run_diptych("enqueue", "--random", 3, cwd=workspace, GLM_PAIRS_FILE="pairs.txt")

    assert both.returncode == 2
    assert "found both" in both.stderr
    assert variable.returncode == 0, variable.stderr
    status = run_diptych("status", "--json", cwd=workspace)
    assert json.loads(status.stdout)["total"] == 3


def test_passwords_of_both_forms_are_masked_where_a_command_line_is_recorded() -> None:
    from jobs.environment import mask_argv

    masked = mask_argv(("diptych", "--redis", "redis://me:hushhush@host:1/0", "rediss://host/0?a=b&password=hushhush",
                        "postgresql+psycopg://me:hush@hush@host/db"))

    assert masked == ("diptych", "--redis", "redis://me:***@host:1/0", "rediss://host/0?a=b&password=***",
                      "postgresql+psycopg://me:***@host/db")


def test_the_rate_counts_from_the_start_of_the_work_and_not_what_was_there_before() -> None:
    clock = iter([0.0, 10.0, 10.0, 10.0, 10.0])
    bar = Progress(get_time=lambda: next(clock, 10.0), disable=True)
    task = bar.add_task("run", total=100, completed=40, before=40)

    bar.update(task, completed=60)

    assert rate(bar.tasks[0]) == 2.0


def test_a_bar_of_a_resumed_run_counts_each_pair_once(workspace: Path) -> None:
    run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, "--batch-size", 8, cwd=workspace)
    run_diptych("worker", "--burst", cwd=workspace)
    with sqlite3.connect(workspace / "results.db") as connection:
        connection.execute("delete from results where position = 3")
        connection.execute("update runs set done = 7, finished_at = null")
        connection.execute("update jobs set finished_at = null, started_at = null")
    connection.close()

    run_diptych("resume", cwd=workspace)
    worked = run_diptych("worker", "--burst", cwd=workspace)

    assert worked.returncode == 0, worked.stderr
    assert " 8/8 " in worked.stderr


def test_texts_go_into_a_file_while_the_bar_is_on_the_terminal(workspace: Path) -> None:
    settings = {"GLM_BATCH_GENERATE": "1", "GLM_PAIRS_FILE": "pairs.txt", "GLM_MAX_TOKENS": "2"}
    terminal, inside = pty.openpty()

    with (workspace / "texts.txt").open("w") as texts:
        done = subprocess.run([DIPTYCH.with_name("glm46v_mlx")], cwd=workspace, env=os.environ | settings,
                              stdout=texts, stderr=inside, check=False, timeout=120)
    os.close(inside)
    os.close(terminal)

    assert done.returncode == 0
    assert places((workspace / "texts.txt").read_text()) == list(range(8))


def places(printed: str) -> list[int]:
    """Return the positions of the texts that were printed, each as it finished."""
    return sorted(int(place) for place in re.findall(r"^\[(\d+)\] \d+,\d+: ", printed, re.MULTILINE))
