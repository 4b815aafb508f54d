"""--memory-limit, and what is said of the memory before a run begins."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import run_diptych

from cli.main import diptych, run
from cli.memory import memory_lines
from jobs.enqueue import Plan, Request, plan_run
from jobs.inputs import Settings
from store.records import Sampling


@pytest.fixture
def plan(workspace: Path) -> Plan:
    settings = Settings(workspace / "embeddings_512", workspace / "vision_weights", "Which?", False, Sampling())
    (workspace / "pairs.txt").write_text("0,1\n" * 512)
    return plan_run(Request(settings, workspace / "pairs.txt", None, 5, 512, None, ()))


def test_a_plan_for_another_machine_is_made_for_the_limit_that_is_asked_for(plan: Plan) -> None:
    lines = memory_lines(plan, 100_000_000)

    assert lines[0] == "memory:"
    assert "a job of 512 pairs runs in slices of " in "\n".join(lines)
    assert lines[-1].endswith("of a limit of 100.0 MB")


def test_a_plan_is_made_for_no_more_pairs_than_the_run_has(plan: Plan) -> None:
    of_two = replace(plan, pairs=plan.pairs[:2])

    assert "2 of " in next(line for line in memory_lines(of_two, None) if "rows" in line)


def test_a_plan_for_this_machine_is_made_for_what_its_device_has(plan: Plan) -> None:
    from jobs.sizes import format_size
    from workers.device import memory_limit

    assert memory_lines(plan, None)[-1].endswith(f"of a limit of {format_size(memory_limit())}")


def test_where_the_run_does_not_fit_that_is_said_for_another_machine_may_do_it(plan: Plan) -> None:
    [line] = memory_lines(plan, 1_000_000)

    assert line.startswith("memory: expected a limit of at least")


def test_without_mlx_a_limit_is_asked_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.device", None)

    [line] = memory_lines(plan, None)

    assert "--memory-limit SIZE" in line
    assert len(memory_lines(plan, 100_000_000)) > 1


@pytest.mark.parametrize("size", ["24", "lots", "0GB"])
def test_a_limit_without_a_size_is_refused(capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert run(diptych, ["worker", "--burst", "--memory-limit", size]) == 2

    assert "'--memory-limit': expected" in capsys.readouterr().err


def test_a_worker_is_not_given_more_than_the_machine_has(
    capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    assert run(diptych, ["enqueue", "pairs.txt", "--max-tokens", "2"]) == 0

    assert run(diptych, ["worker", "--burst", "--memory-limit", "900TB"]) == 2

    assert "Error: --memory-limit: expected at most the " in capsys.readouterr().err


def test_a_worker_with_too_little_memory_says_so_and_leaves_the_jobs_to_another(workspace: Path) -> None:
    run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, "--greedy", cwd=workspace)

    small = run_diptych("worker", "--burst", "--memory-limit", "1MB", cwd=workspace)
    large = run_diptych("worker", "--burst", "--memory-limit", "100MB", cwd=workspace)

    assert small.returncode == 2
    assert "Error: memory: expected a limit of at least" in small.stderr
    assert large.returncode == 0, large.stderr


def test_a_limit_changes_the_slices_and_not_the_texts(workspace: Path) -> None:
    lines = [f"{place % 4},{place * 3 % 4}\n" for place in range(12)]
    (workspace / "many.txt").write_text("".join(lines))

    wide = work(workspace, "wide.db", "1GB")
    narrow = work(workspace, "narrow.db", "6MB")

    assert {row["batch_size"] for row in wide} == {12}
    assert {row["batch_size"] for row in narrow} < {1, 2, 3, 4, 5, 6}
    assert [(row["seed"], row["text"]) for row in narrow] == [(row["seed"], row["text"]) for row in wide]


def work(workspace: Path, db: str, limit: str) -> list[dict[str, Any]]:
    """Compute the twelve pairs as one job within a limit; return its results."""
    run_diptych("enqueue", "many.txt", "--batch-size", 12, "--max-tokens", 3, "--seed", 1, "--db", db, cwd=workspace)
    done = run_diptych("worker", "--burst", "--memory-limit", limit, "--db", db, cwd=workspace)
    assert done.returncode == 0, done.stderr
    results = run_diptych("results", "--format", "jsonl", "--db", db, cwd=workspace).stdout
    return [json.loads(line) for line in results.splitlines()]


def test_a_dry_run_shows_the_memory_plan_of_this_machine_or_of_another(workspace: Path) -> None:
    here = run_diptych("enqueue", "pairs.txt", "--dry-run", cwd=workspace)
    there = run_diptych("enqueue", "pairs.txt", "--dry-run", "--memory-limit", "1.5GB", cwd=workspace)

    assert (here.returncode, there.returncode) == (0, 0)
    assert "of a limit of 1.5 GB" in there.stdout
    assert "of a limit of" in here.stdout
    assert "1.5 GB" not in here.stdout
    assert not (workspace / "results.db").exists()
