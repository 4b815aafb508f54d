"""What `results`, `status` and `runs` show of a database, by hostile texts too."""

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest
from conftest import run_diptych

from cli.main import diptych, run

HUGE = "99999999999999999999"
HOSTILE = 'red \x1b[31m"quoted", line\r\nbreak\ttab =1+1 ünïcode \u202e end'


@pytest.fixture
def worked(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of 8 pairs done, one of whose texts is hostile."""
    done = run_diptych("batch-generate", "pairs.txt", "--max-tokens", 4, "--seed", 3, "--name", "night", cwd=workspace)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(workspace / "results.db") as connection:
        connection.execute("update results set text = ? where position = 1", (HOSTILE,))
        connection.execute("update results set text = 'The 100% sharper_one' where position = 2")
    connection.close()
    monkeypatch.chdir(workspace)
    return workspace


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(diptych, ["results", *words]) == 0
    return capsys.readouterr().out


def view(workspace: Path) -> list[dict[str, object]]:
    connection = sqlite3.connect(workspace / "results.db")
    connection.row_factory = sqlite3.Row
    found = [dict(row) for row in connection.execute("select * from comparisons order by position")]
    connection.close()
    return found


def test_csv_is_exact(worked: Path) -> None:
    asked = run_diptych("results", "--format", "csv", "-o", "out.csv", cwd=worked)

    with (worked / "out.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert asked.returncode == 0, asked.stderr
    assert found[1]["text"] == HOSTILE
    assert list(found[0]) == list(view(worked)[0])
    assert [row["seed"] for row in found] == [str(row["seed"]) for row in view(worked)]


def test_csv_to_stdout_has_the_bytes_of_the_file(worked: Path) -> None:
    import subprocess

    from conftest import DIPTYCH

    run_diptych("results", "--format", "csv", "-o", "out.csv", cwd=worked)
    piped = subprocess.run([str(DIPTYCH), "results", "--format", "csv"], cwd=worked, capture_output=True, check=True)

    assert piped.stdout == (worked / "out.csv").read_bytes()


def test_jsonl_has_a_line_for_each_pair_with_the_columns_of_the_view(worked: Path) -> None:
    asked = run_diptych("results", "--format", "jsonl", cwd=worked)

    found = [json.loads(line) for line in asked.stdout.split("\n") if line]
    assert [row["text"] for row in found] == [row["text"] for row in view(worked)]
    assert [list(row) for row in found] == [list(row) for row in view(worked)]


def test_parquet_holds_the_same_rows(worked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    shown(capsys, "--format", "parquet", "-o", "out.parquet")

    found = pq.read_table(worked / "out.parquet").to_pylist()
    assert [row["text"] for row in found] == [row["text"] for row in view(worked)]
    assert [row["seed"] for row in found] == [row["seed"] for row in view(worked)]


def test_parquet_without_its_extra_says_what_to_install(
    worked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)

    assert run(diptych, ["results", "--format", "parquet", "-o", "out.parquet"]) == 2
    assert "diptych[parquet]" in capsys.readouterr().err
    assert not (worked / "out.parquet").exists()


def test_a_table_escapes_what_would_drive_the_terminal(worked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = shown(capsys)

    assert "\x1b" not in table
    assert "\u202e" not in table
    assert "\\x1b[31m" in table


def test_replay_escapes_what_would_drive_the_terminal(worked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(worked / "results.db") as connection:
        connection.execute("update results set token_ids = x'00000000' where position = 1")
    connection.close()

    assert run(diptych, ["replay", "night", "1"]) == 1

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


@pytest.mark.parametrize("words", [
    ("results", "--limit", HUGE), ("results", "--pair", f"{HUGE},0"), ("results", "--pair", "0," + "9" * 5000),
    ("results", "--image", HUGE), ("replay", "night", HUGE),
])
def test_integers_that_no_database_holds_are_refused(
    worked: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(diptych, list(words)) == 2
    assert "unexpected" not in capsys.readouterr().err


def test_the_table_in_a_file_has_every_row(worked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "--format", "table", "-o", "out.txt")

    lines = (worked / "out.txt").read_text().splitlines()
    assert lines[0].split() == ["position", "image_a", "image_b", "text"]
    assert [line.split()[0] for line in lines[2:] if line[:1].isdigit()] == [str(place) for place in range(8)]


@pytest.mark.parametrize(("words", "positions"), [
    (("--pair", "0,2"), [2]), (("--pair", "2,2"), [3]), (("--pair", "3,3"), []),
    (("--image", "003.png"), [4, 5, 6]), (("--image", "3"), [4, 5, 6]),
    (("--contains", "SHARPER_one"), [2]), (("--contains", "100%"), [2]), (("--contains", "1_0%"), []),
    (("--status", "failed"), []), (("--status", "done", "--limit", "2"), [0, 1]),
])
def test_filters_select_the_rows(
    worked: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], positions: list[int]
) -> None:
    out = shown(capsys, "--format", "csv", *words)

    assert [int(row["position"]) for row in csv.DictReader(io.StringIO(out, newline=""))] == positions


def test_a_live_run_says_how_much_of_it_is_done(workspace: Path) -> None:
    run_diptych("enqueue", "pairs.txt", cwd=workspace)

    asked = run_diptych("results", "--format", "csv", cwd=workspace)
    status = run_diptych("status", "--json", cwd=workspace)

    assert "0 of 8 done" in asked.stderr
    assert len(asked.stdout.splitlines()) == 9
    facts = json.loads(status.stdout)
    assert list(facts) == ["run", "state", "total", "done", "failed", "pending", "queued_jobs", "running_jobs",
                           "comparisons_per_minute", "seconds_left"]
    assert (facts["state"], facts["pending"], facts["queued_jobs"]) == ("queued", 8, 1)


def test_status_and_runs_of_a_finished_run(worked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(diptych, ["status", "night", "--watch"]) == 0
    assert "8 of 8 done" in capsys.readouterr().out
    assert run(diptych, ["runs"]) == 0
    assert "night" in capsys.readouterr().out


def test_asking_starts_no_server_and_makes_no_database(tmp_path: Path, home: Path) -> None:
    for words in (("status",), ("runs",), ("results",), ("replay", "x", "0"), ("resume",)):
        asked = run_diptych(*words, cwd=tmp_path)
        assert asked.returncode == 2
        assert "results.db" in asked.stderr

    assert not (tmp_path / "results.db").exists()
    assert not (home / ".diptych").exists()


def test_a_reader_that_has_had_enough_is_no_error(worked: Path) -> None:
    import subprocess

    from conftest import DIPTYCH

    piped = subprocess.run(f"{DIPTYCH} results --format csv | head -1", shell=True, cwd=worked, capture_output=True,
                           text=True, check=True)

    assert piped.stdout.startswith("run_id,position")
    assert "Error" not in piped.stderr


def test_a_file_s_ending_says_the_form(worked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "-o", "out.csv")
    shown(capsys, "-o", "out.jsonl", "--format", "csv")

    assert (worked / "out.csv").read_text().startswith("run_id,position,")
    assert (worked / "out.jsonl").read_bytes() == (worked / "out.csv").read_bytes()


def test_formulas_are_defused_for_a_spreadsheet_only_where_that_is_asked(
    worked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect("results.db") as connection:
        connection.execute("update results set text = '=HYPERLINK(\"http://x\")' where position = 3")
    connection.close()

    exact = list(csv.DictReader(io.StringIO(shown(capsys, "--format", "csv"))))
    defused = list(csv.DictReader(io.StringIO(shown(capsys, "--format", "csv", "--spreadsheet"))))

    assert exact[3]["text"] == '=HYPERLINK("http://x")'
    assert defused[3] == exact[3] | {"text": "'" + exact[3]["text"]}
    assert defused[:3] == exact[:3]
    assert run(diptych, ["results", "--format", "jsonl", "--spreadsheet"]) == 2
    assert "expected --format csv, found jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "table"])
def test_a_database_is_never_replaced_by_results(
    worked: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert run(diptych, ["results", "--format", form, "-o", "results.db"]) == 2
    assert "results.db: expected a file that may be replaced, found a database" in capsys.readouterr().err

    assert len(view(worked)) == 8
