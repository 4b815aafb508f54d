"""What the options and variables of the commands promise, seen where it arrives: the run, the queue, the rows."""

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import SMALL, WEIGHTS, run_diptych, server_pids, wait_for
from realvalkey import Valkey

from cli.main import diptych, run
from jobs.queue import JobQueue, Ticket
from store.database import open_database

EXPECTED = json.loads((SMALL / "expected.json").read_text())
FAILING = [4, 5, 6]      # positions of the pairs with image 3


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    server = Valkey()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in the workspace."""
    monkeypatch.chdir(workspace)
    return workspace


@pytest.fixture
def queue_url(here: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stand in the workspace, with the queue on a Valkey that is empty."""
    with redis.Redis.from_url(valkey.url) as connection:
        connection.flushall()
    monkeypatch.setenv("DIPTYCH_REDIS_URL", valkey.url)
    return valkey.url


def rows(query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect("results.db")
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def done(*words: object) -> None:
    """Run a command that must succeed."""
    assert run(diptych, [str(word) for word in words]) == 0


def lose_tickets(url: str) -> None:
    with redis.Redis.from_url(url) as connection:
        connection.flushall()


@pytest.fixture
def elsewhere(here: Path) -> Path:
    """Put pairs, embeddings and weights beside the defaults, under names that only a variable tells."""
    shutil.copytree("embeddings_512", "other_embeddings")
    shutil.copytree(WEIGHTS, "other_weights")
    Path("other.txt").write_text("3,2\n")
    return here


@pytest.mark.parametrize(("variable", "value", "column", "expected"), [
    ("GLM_TEMPERATURE", "1.25", "temperature", 1.25), ("GLM_TOP_K", "7", "top_k", 7),
    ("GLM_TOP_P", "0.35", "top_p", 0.35), ("GLM_REP_PENALTY", "1.5", "repetition_penalty", 1.5),
    ("GLM_SEED", "9007199254740991", "seed", 2**53 - 1), ("GLM_MAX_TOKENS", "13", "max_tokens", 13),
    ("GLM_DO_SAMPLE", "0", "do_sample", 0), ("GLM_DO_SAMPLE", "1", "do_sample", 1),
    ("GLM_BATCH_SIZE", "3", "batch_size", 3), ("GLM_EMBEDS_DIR", "other_embeddings", "embeddings_dir", Path),
    ("GLM_WEIGHTS_DIR", "other_weights", "weights_dir", Path), ("GLM_PAIRS_FILE", "other.txt", "pairs_file", Path),
])
def test_a_variable_of_generation_reaches_the_run(
    queue_url: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, column: str,
    expected: object,
) -> None:
    monkeypatch.setenv(variable, value)

    done("enqueue", *([] if variable == "GLM_PAIRS_FILE" else ["pairs.txt"]))

    assert rows(f"select {column} from run_summary") == [(
        str((elsewhere / value).resolve()) if expected is Path else expected,)]


def test_the_variables_of_the_indices_choose_the_pair(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLM_IDX_A", "3")
    monkeypatch.setenv("GLM_IDX_B", "0")

    done("generate", "--greedy", "--max-tokens", EXPECTED["max_tokens"])

    shown = capsys.readouterr()
    assert "A: 003.png (3)  B: 000.png (0)" in shown.err
    assert shown.out == EXPECTED["prompts"][0]["greedy_text"][EXPECTED["pairs"].index([3, 0])] + "\n"


def test_the_variable_of_the_queue_names_the_one_that_gets_the_tickets(queue_url: str, home: Path) -> None:
    done("enqueue", "pairs.txt", "--batch-size", 3)

    [(run_id,)] = rows("select run_id from run_summary")
    with open_database("results.db", create=False) as database, redis.Redis.from_url(queue_url) as connection:
        assert JobQueue(connection, database.id).waiting() == [Ticket(str(run_id), job) for job in range(3)]
    assert not (home / ".diptych").exists()


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Valkey, int]]:
    """A Valkey with a password, on a port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    server = Valkey("--port", str(port), "--bind", "127.0.0.1", "--requirepass", "hushhush")
    server.start()
    yield server, port
    server.remove()


@pytest.mark.parametrize("form", [
    "redis://:hushhush@127.0.0.1:{port}/0", "redis://127.0.0.1:{port}/0?password=hushhush",
    "unix://{socket}?db=0&password=hushhush",
])
@pytest.mark.parametrize("words", [["--redis", "{url}"], ["--redis={url}"]], ids=["two words", "one word"])
def test_the_recorded_command_line_has_its_password_masked(
    here: Path, guarded: tuple[Valkey, int], form: str, words: list[str]
) -> None:
    server, port = guarded
    url = form.format(port=port, socket=server.socket)

    enqueued = run_diptych("enqueue", "pairs.txt", *(word.format(url=url) for word in words), cwd=here)

    assert enqueued.returncode == 0, enqueued.stderr
    [(argv,)] = rows("select argv from runs")
    assert url.replace("hushhush", "***") in json.loads(str(argv))[-1]
    assert not [file.name for file in here.glob("results.db*") if b"hushhush" in file.read_bytes()]


def spoil_image_3() -> bytes:
    """Change an embedding as a bad disk would, without a trace in size and time; return what was there."""
    file = Path("embeddings_512/embeddings.bin")
    before, good = file.stat(), file.read_bytes()
    half = np.frombuffer(good, "<f2").copy()
    half[-5] = np.nan
    overwrite(file, half.tobytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return good


def overwrite(file: Path, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.write(data)


def test_a_worker_whose_pairs_failed_exits_1(queue_url: str) -> None:
    done("enqueue", "pairs.txt", "--max-tokens", 2)
    spoil_image_3()

    assert run(diptych, ["worker", "--burst"]) == 1

    assert rows("select done, failed from run_summary") == [(5, 3)]


def test_a_worker_that_finds_planned_pairs_without_a_ticket_exits_1_and_names_what_puts_them_back(
    queue_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done("enqueue", "pairs.txt", "--max-tokens", 2)
    run_id = capsys.readouterr().out.strip()
    lose_tickets(queue_url)

    assert run(diptych, ["worker", "--burst"]) == 1

    assert f"run {run_id}: 8 planned pairs" in (said := capsys.readouterr().err)
    assert f"diptych resume {run_id}" in said
    done("resume", run_id)
    done("worker", "--burst")
    assert rows("select done from run_summary") == [(8,)]


def test_a_queue_that_had_to_be_set_aside_is_rebuilt_from_the_database(here: Path, home: Path) -> None:
    enqueued = run_diptych("enqueue", "pairs.txt", "--max-tokens", 2, "--batch-size", 3, cwd=here)
    wait_for(lambda: not server_pids(home), "the embedded server to end")
    [journal] = home.glob(".diptych/*/appendonlydir/*.incr.aof")
    journal.write_bytes(b"*2\r\nnonsense" + journal.read_bytes())

    worked = run_diptych("worker", "--burst", cwd=here)

    assert (enqueued.returncode, worked.returncode) == (0, 0), worked.stderr
    assert "3 jobs were put back on the queue from the database" in worked.stderr
    assert rows("select state, done from run_summary") == [("done", 8)]


def test_failed_pairs_stay_until_a_resume_with_retry_failed_puts_them_back_and_a_success_replaces_them(
    queue_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done("enqueue", "pairs.txt", "--max-tokens", 2, "--batch-size", 3, "--order", "file")
    good = spoil_image_3()
    assert run(diptych, ["worker", "--burst"]) == 1
    overwrite(Path("embeddings_512/embeddings.bin"), good)
    first = rows("select * from results where status = 'done' order by position")

    done("resume")
    assert "3 failed; 0 jobs put back" in capsys.readouterr().out
    done("worker", "--burst")
    failed = rows("select position from results where status = 'failed' order by position")
    assert [position for position, in failed] == FAILING

    done("resume", "--retry-failed")
    assert "3 failed; 2 jobs put back" in capsys.readouterr().out
    done("worker", "--burst")
    assert rows("select done, failed, pending from run_summary") == [(8, 0, 0)]
    again = rows("select position from results where attempt = 2 order by position")
    assert [position for position, in again] == FAILING
    assert rows("select * from results where attempt = 1 order by position") == first
    assert rows("select count(*) from comparisons where error is not null") == [(0,)]


def test_a_workers_log_line_about_a_job_is_a_json_object_when_asked(
    queue_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done("enqueue", "pairs.txt", "--max-tokens", 2, "--batch-size", 5)
    run_id = capsys.readouterr().out.strip()

    done("worker", "--burst", "--log-format", "json")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    about = [line for line in lines if "job" in line]
    assert [(line["run"], line["job"], line["pairs"]) for line in about] == [(run_id, 0, 5), (run_id, 1, 3)]
    assert all(line["seconds"] > 0 and line["comparisons_per_minute"] > 0 for line in about)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_quiet_commands_say_nothing_on_stderr(queue_url: str, here: Path) -> None:
    for words in (("enqueue", "pairs.txt", "--max-tokens", 2), ("worker", "--burst"), ("results",), ("resume",)):
        quiet = run_diptych(*words, "--quiet", cwd=here)

        assert (quiet.returncode, quiet.stderr) == (0, "")
    assert rows("select done from run_summary") == [(8,)]


def test_batch_generate_without_pairs_draws_as_many_as_its_batch_size(queue_url: str) -> None:
    done("batch-generate", "--batch-size", 3, "--max-tokens", 1, "--seed", 4)

    assert rows("select total, done, batch_size, pairs_file from run_summary") == [(3, 3, 3, None)]
    assert all(a != b for a, b in rows("select idx_a, idx_b from comparisons"))


def test_random_pairs_are_distinct_of_two_images_and_the_same_for_a_seed(queue_url: str) -> None:
    for seed in (5, 5, 6):
        done("enqueue", "--random", 12, "--seed", seed)      # all there are of 4 images

    first, again, other = (
        rows(f"select idx_a, idx_b from comparisons where run_id = '{run_id}' order by position")
        for run_id, in rows("select id from runs order by number"))
    assert first == again != other
    assert len(set(first)) == len(first) == 12
    assert all(a != b for a, b in first)


@pytest.mark.parametrize(("words", "order", "jobs"), [
    ((), "grouped", [0, 1, 0, 2, 1, 2, 0, 1]), (("--order", "grouped"), "grouped", [0, 1, 0, 2, 1, 2, 0, 1]),
    (("--order", "file"), "file", [0, 0, 0, 1, 1, 1, 2, 2]),
])
def test_the_order_says_which_pairs_share_a_job(
    queue_url: str, words: tuple[str, ...], order: str, jobs: list[int]
) -> None:
    done("enqueue", "pairs.txt", "--batch-size", 3, *words)

    assert rows("select pair_order from runs") == [(order,)]
    assert [job for job, in rows("select job from pairs order by position")] == jobs
    assert rows("select idx_a, idx_b from pairs order by position") == [tuple(pair) for pair in EXPECTED["pairs"]]


def test_both_orders_give_the_same_rows_and_batch_generate_knows_them_too(queue_url: str) -> None:
    for order in ("grouped", "file"):
        done("batch-generate", "pairs.txt", "--batch-size", 3, "--max-tokens", 4, "--seed", 1, "--order", order)

    grouped, file = (rows("select position, idx_a, idx_b, seed, text, status from comparisons "
                          f"where run_id = '{run_id}' order by position")
                     for run_id, in rows("select id from runs order by number"))
    assert grouped == file
    assert [order for order, in rows("select pair_order from runs order by number")] == ["grouped", "file"]


def test_another_order_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(diptych, ["enqueue", "pairs.txt", "--order", "sorted"]) == 2

    assert "'grouped', 'file'" in capsys.readouterr().err
    assert not Path("results.db").exists()


def test_a_dry_run_says_how_much_of_the_prompts_is_shared_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for order in ("grouped", "file"):
        done("enqueue", "pairs.txt", "--batch-size", 3, "--dry-run", "--order", order)
        shown.append(capsys.readouterr().out)

    assert "first images: 4, shared by 2.0 pairs each; prompt tokens computed: 0.75 of unshared\n" in shown[0]
    assert "first images: 4, shared by 2.0 pairs each; prompt tokens computed: 0.88 of unshared\n" in shown[1]
    assert not Path("results.db").exists()


def test_the_prompt_of_a_file_is_asked_and_recorded(queue_url: str) -> None:
    Path("ask.txt").write_text("Ünlike <image_b>\nthan <image_a>?\n", encoding="utf-8")

    for words in (("--prompt-file", "ask.txt"), ("--prompt", "Ünlike <image_b>\nthan <image_a>?"), ()):
        done("batch-generate", "pairs.txt", "--greedy", "--max-tokens", 8, *words)

    file, option, default = (rows(f"select prompt, prompt_tokens, text from comparisons where run_id = '{run_id}' "
                                  "order by position") for run_id, in rows("select id from runs order by number"))
    assert file == option != default
    assert file[0][0] == "Ünlike <image_b>\nthan <image_a>?"


def test_thinking_reaches_the_prompt(queue_url: str) -> None:
    for word in ("--thinking", "--no-thinking"):
        done("batch-generate", "pairs.txt", "--max-tokens", 1, word)
    done("batch-generate", "pairs.txt", "--max-tokens", 1)

    [(thinking, lengths), (_, plain), (_, default)] = rows(
        "select r.thinking, c.prompt_tokens from runs r join comparisons c on c.run_id = r.id where c.position = 0 "
        "order by r.number")
    assert thinking == 1
    assert lengths != plain
    assert plain == default


def computed(*words: object) -> np.ndarray:
    """Compute the embeddings of the reference images [4, tokens, 64]."""
    done("precompute", SMALL / "images", "-o", "fresh", "--weights", WEIGHTS, *words)
    return np.fromfile("fresh/embeddings.bin", "<f2").reshape(4, -1, 64)


def test_the_image_size_of_precompute_sets_the_tokens_of_an_image(here: Path) -> None:
    assert computed("--image-size", 224).shape == (4, 64, 64)
    assert json.loads(Path("fresh/embeddings.json").read_text())["tokens"] == 64


def test_the_fit_of_precompute_changes_images_that_are_not_square_and_no_others(here: Path) -> None:
    squash, pad, crop = (computed("--image-size", 112, "--fit", fit) for fit in ("squash", "pad", "crop"))

    for other, another in ((squash, pad), (squash, crop), (pad, crop)):
        assert [np.array_equal(other[image], another[image]) for image in range(4)] == [True, False, True, True]


def test_generate_draws_the_indices_that_are_missing_by_the_seed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(*words: object) -> str:
        done("generate", "--max-tokens", 1, *words)
        return capsys.readouterr().err.split("  seed")[0]

    assert drawn("--seed", 1) == drawn("--seed", 1)
    assert len({drawn("--seed", seed) for seed in range(4)}) > 1
    assert {drawn("--seed", seed, "--a", 2) for seed in range(12)} == {      # never B: 002.png
        f"A: 002.png (2)  B: 00{b}.png ({b})" for b in (0, 1, 3)}
