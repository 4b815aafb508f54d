"""Names and texts that would drive a terminal, a page, a spreadsheet or a shell: they stay content."""

import csv
import io
import json
import logging
import re
from pathlib import Path

import pytest
from store_samples import NEW_RUN, make_row

from cli.logs import set_up_logging
from cli.main import diptych, run
from store.database import open_database
from store.records import Pair
from store.results import record_results
from store.runs import create_run

CONTENTS = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred\x9b1m\x7f\x08\x08",
    "one\ntwo\r\nthree\rfour\u2028five\x85six\x0bseven",
    "a\x00b\x00",
    "=HYPERLINK(\"http://example.invalid\",\"click\")",
    "@SUM(1+1)*cmd|'/c calc'!A0",
    "-1+1", "+1", "\t=1", "ok;=1+1", "two\n \"@SUM(1)", "\uff1d1+1", "a\t\uff0b1;;\u3000\uff0d1\r\uff20x", " -1;x=1",
    "[bold red]not markup[/] {braces} %s %(a)s $HOME `id` ; rm -rf x",
    "'; drop table results; --",
    "\u202eright to left\u202c \u2066isolated\u2069 \u200bzero width \N{PILE OF POO} e\u0301",
    "x" * 100_000,
    " \"word,\" " * 12_500,
    "\ud800 alone",
)
STORED = tuple(re.sub("[\x00\ud800]", "\ufffd", content) for content in CONTENTS)
DEFUSED = {
    "=HYPERLINK(\"http://example.invalid\",\"click\")": "'=HYPERLINK(\"http://example.invalid\",\"click\")",
    "@SUM(1+1)*cmd|'/c calc'!A0": "'@SUM(1+1)*cmd|'/c calc'!A0",
    "-1+1": "'-1+1", "+1": "'+1", "\t=1": "'\t'=1", "ok;=1+1": "ok;'=1+1", "two\n \"@SUM(1)": "two\n \"'@SUM(1)",
    "\uff1d1+1": "'\uff1d1+1", "a\t\uff0b1;;\u3000\uff0d1\r\uff20x": "a\t'\uff0b1;;\u3000'\uff0d1\r'\uff20x",
    " -1;x=1": " '-1;x=1", "'; drop table results; --": "'; drop table results; '--",
}
FORMULA = re.compile(r'[\s"]*[=+\-@\uff1d\uff0b\uff0d\uff20]')
DRIVING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a database in which everything that can be is hostile."""
    monkeypatch.chdir(tmp_path)
    count = len(CONTENTS)
    pairs = [Pair(place, place, (place + 1) % count, seed=place, job=0) for place in range(count)]
    with open_database("results.db", create=True) as database:
        made = create_run(database, NEW_RUN, pairs, [f"{content}.jpg" for content in STORED])
        record_results(database, made.id, [
            make_row(place, text=content, thinking=content) if place % 2 else make_row(place, error=content)
            for place, content in enumerate(CONTENTS)])
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(diptych, list(words)) == 0
    out, err = capsys.readouterr()
    assert not DRIVING.search(err)
    return out


@pytest.mark.parametrize("words", [
    ("results",), ("results", "--status", "failed"), ("results", "--format", "jsonl"), ("runs",), ("status",),
    *(("results", "--image", f"{content}.jpg") for content in STORED),
    *(("results", "--contains", content[:10_000]) for content in STORED),
], ids=lambda words: " ".join(words)[:40].encode("unicode_escape").decode())
def test_what_a_terminal_shows_does_not_drive_it(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert not DRIVING.search(said(capsys, *words))


def columns(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [row[name] or "" for row in rows] for name in ("image_a", "text", "thinking", "error")}


EXPECTED = {
    "image_a": [f"{content}.jpg" for content in STORED],
    "text": [content if place % 2 else "" for place, content in enumerate(STORED)],
    "thinking": [content if place % 2 else "" for place, content in enumerate(STORED)],
    "error": ["" if place % 2 else content for place, content in enumerate(STORED)],
}


def test_csv_json_lines_and_parquet_hold_what_was_recorded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet

    csv.field_size_limit(200_000)
    as_csv = said(capsys, "results", "--format", "csv")
    as_json = said(capsys, "results", "--format", "jsonl")
    said(capsys, "results", "--format", "parquet", "-o", "out.parquet")

    assert columns(list(csv.DictReader(io.StringIO(as_csv, newline="")))) == EXPECTED
    assert as_json.count("\n") == len(CONTENTS)
    assert columns([json.loads(line) for line in as_json.removesuffix("\n").split("\n")]) == EXPECTED
    assert columns(pyarrow.parquet.read_table("out.parquet").to_pylist()) == EXPECTED


def test_a_spreadsheet_is_given_no_formula(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv.field_size_limit(200_000)
    rows = list(csv.DictReader(io.StringIO(said(capsys, "results", "--format", "csv", "--spreadsheet"), newline="")))

    cells = [cell for row in rows for cell in row.values() if cell]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\n"]
    assert [row["text"] or row["error"] for row in rows] == [DEFUSED.get(content, content) for content in STORED]


def test_a_spreadsheet_whose_separator_is_another_is_given_no_formula(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, defused = (re.split("[;\t\r\n]", said(capsys, "results", "--format", "csv", *words))
                      for words in ((), ("--spreadsheet",)))

    assert len([cell for cell in plain if FORMULA.match(cell)]) > 5
    assert not [cell for cell in defused if FORMULA.match(cell)]


def test_a_log_line_for_machines_does_not_drive_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json", quiet=False)

    for content in STORED:
        logging.getLogger("diptych.worker").info("%s", content)

    logged = capsys.readouterr().err
    assert not DRIVING.search(logged)
    assert [json.loads(line)["message"] for line in logged.splitlines()] == list(STORED)


@pytest.mark.parametrize("content", STORED[:-3], ids=lambda content: content[:20].encode("unicode_escape").decode())
def test_an_error_that_quotes_does_not_drive_the_terminal(
    here: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    Path("pairs.txt").write_text(f"0,{content}\n", encoding="utf-8")

    assert run(diptych, ["enqueue", "pairs.txt"]) == 2
    assert run(diptych, ["results", content]) == 2

    assert not DRIVING.search(capsys.readouterr().err)


def test_a_text_too_long_to_look_for_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(diptych, ["results", "--contains", "é%" * 5_000]) == 0
    assert run(diptych, ["results", "--contains", "x" * 10_001]) == 2
    assert "expected at most 10,000 characters, found 10,001" in capsys.readouterr().err
