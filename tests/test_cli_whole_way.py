"""From images to a results database through the installed commands, compared with what transformers computed."""

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from conftest import DIPTYCH, SMALL, run_diptych, wait_for

EXPECTED = json.loads((SMALL / "expected.json").read_text())
GREEDY = ("--greedy", "--max-tokens", EXPECTED["max_tokens"])


def rows(database: Path, query: str = "select * from results order by run_id, position") -> list[dict[str, object]]:
    with sqlite3.connect(database) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(query)]
    connection.close()
    return found


@pytest.mark.parametrize("case", EXPECTED["prompts"], ids=["images first", "interleaved"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_whole_way_gives_the_tokens_that_transformers_gave(workspace: Path, case: dict, batch_size: int) -> None:
    words = ("enqueue", "pairs.txt", *GREEDY, "--batch-size", batch_size, "--prompt", case["prompt"])
    if case is EXPECTED["prompts"][1]:
        assert "<image_a>" in case["prompt"]

    enqueued = run_diptych(*words, cwd=workspace)
    worked = run_diptych("worker", "--burst", cwd=workspace)
    shown = run_diptych("results", "--format", "jsonl", cwd=workspace)

    assert (enqueued.returncode, worked.returncode, shown.returncode) == (0, 0, 0), enqueued.stderr + worked.stderr
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["text"] for row in found] == case["greedy_text"]
    assert [row["finish_reason"] for row in found] == case["finish_reason"]
    assert [row["generated_tokens"] for row in found] == [len(ids) for ids in case["greedy_token_ids"]]
    assert [[row["idx_a"], row["idx_b"]] for row in found] == EXPECTED["pairs"]
    assert {row["prompt_tokens"] for row in found} == {len(case["prompt_ids"])}
    assert enqueued.stdout.strip() == found[0]["run_id"]


def test_precompute_writes_the_float16_of_what_transformers_computed(workspace: Path) -> None:
    import numpy as np

    made = run_diptych("precompute", SMALL / "images", "-o", "fresh", "--weights", "vision_weights", cwd=workspace)

    expected = np.load(SMALL / "expected.npz")["embeddings"]
    stored = np.fromfile(workspace / "fresh" / "embeddings.bin", "<f2").reshape(expected.shape)
    assert made.returncode == 0, made.stderr
    # Half a unit in the last place of float16 beside the 1e-4 that the float32 values may differ.
    assert np.all(np.abs(stored - expected) <= 1e-4 + np.abs(expected) * 2.0**-11)
    assert (workspace / "fresh" / "filenames.txt").read_text().split() == ["000.png", "001.png", "002.png", "003.png"]


def test_batch_generate_works_a_run_off_and_says_where_the_results_are(workspace: Path) -> None:
    done = run_diptych("batch-generate", "pairs.txt", "--max-tokens", 4, "--seed", 1, cwd=workspace)

    run_id = rows(workspace / "results.db", "select run_id from run_summary")[0]["run_id"]
    assert done.returncode == 0, done.stderr
    assert f"diptych results {run_id}" in done.stderr
    assert rows(workspace / "results.db", "select state, done, pending from run_summary") == [
        {"state": "done", "done": 8, "pending": 0}]


def test_a_second_enqueue_is_picked_up_by_the_worker_that_runs(workspace: Path) -> None:
    first = run_diptych("enqueue", "pairs.txt", *GREEDY, cwd=workspace)
    worker = subprocess.Popen([str(DIPTYCH), "worker"], cwd=workspace, env=os.environ, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: "done" in states(workspace), "the first run")
        second = run_diptych("enqueue", "pairs.txt", *GREEDY, cwd=workspace)
        wait_for(lambda: states(workspace) == ["done", "done"], "the second run")
    finally:
        worker.send_signal(signal.SIGTERM)
        status = worker.wait(timeout=60)

    assert first.returncode == second.returncode == 0
    assert status == 0


def states(workspace: Path) -> list[str]:
    return [str(row["state"]) for row in rows(workspace / "results.db", "select state from run_summary")]


def test_generate_streams_the_text_of_a_recorded_row_and_opens_no_database(workspace: Path) -> None:
    run_diptych("batch-generate", "pairs.txt", "--max-tokens", 12, "--seed", 7, "--db", "there.db", cwd=workspace)
    row = rows(workspace / "there.db", "select * from comparisons where position = 5")[0]

    one = run_diptych("generate", "--a", row["idx_a"], "--b", row["idx_b"], "--seed", row["seed"], "--max-tokens", 12,
                      cwd=workspace)

    assert one.returncode == 0, one.stderr
    assert one.stdout == f"{row['text']}\n"
    assert not (workspace / "results.db").exists()


def test_replay_of_a_recorded_row_says_equal_and_shows_the_token_that_differs(workspace: Path) -> None:
    run_diptych("batch-generate", "pairs.txt", "--max-tokens", 12, "--seed", 7, cwd=workspace)

    equal = run_diptych("replay", rows(workspace / "results.db")[0]["run_id"], 2, cwd=workspace)
    assert (equal.returncode, equal.stdout[:5]) == (0, "equal"), equal.stderr

    with sqlite3.connect(workspace / "results.db") as connection:
        connection.execute("update results set token_ids = (select token_ids from results where position = 0) "
                           "where position = 2")
    connection.close()
    differs = run_diptych("replay", rows(workspace / "results.db")[0]["run_id"], 2, cwd=workspace)
    assert differs.returncode == 1
    assert "different from token" in differs.stdout


def test_the_drop_in_prints_each_text_as_the_ancestor_did(workspace: Path) -> None:
    glm46v_mlx = DIPTYCH.with_name("glm46v_mlx")
    settings = {"GLM_BATCH_GENERATE": "1", "GLM_PAIRS_FILE": "pairs.txt", "GLM_DO_SAMPLE": "0", "GLM_MAX_TOKENS": "24",
                "GLM_BATCH_SIZE": "8"}

    done = subprocess.run([str(glm46v_mlx)], cwd=workspace, env=os.environ | settings, capture_output=True, text=True,
                          check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    expected = EXPECTED["prompts"][0]["greedy_text"]
    for position, ((a, b), text) in enumerate(zip(EXPECTED["pairs"], expected, strict=True)):
        assert f"[{position}] {a},{b}: {text}\n" in done.stdout


@pytest.mark.parametrize(("settings", "status"), [
    ({}, 2), ({"GLM_GENERATE": "1", "GLM_MAX_TOKENS": "2"}, 0),
    ({"GLM_GENERATE": "1", "GLM_BATCH_GENERATE": "1", "GLM_MAX_TOKENS": "2", "GLM_BATCH_SIZE": "3"}, 0),
])
def test_the_drop_in_takes_its_mode_from_the_variables(workspace: Path, settings: dict, status: int) -> None:
    glm46v_mlx = DIPTYCH.with_name("glm46v_mlx")

    done = subprocess.run([str(glm46v_mlx)], cwd=workspace, env=os.environ | settings, capture_output=True, text=True,
                          check=False, timeout=120)

    assert done.returncode == status, done.stderr
    if "GLM_BATCH_GENERATE" in settings:
        assert len([line for line in done.stdout.splitlines() if line.startswith("[")]) == 3
