"""`diptych bench`: its table, document and plot, what it refuses, and what an interruption leaves."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import DIPTYCH, WEIGHTS, run_diptych

from cli.main import diptych, run
from cli.plot import draw_plot, ticks
from cli.rates import HEAD, recommendation, table_line
from workers.bench import Record

GB = 10**9
SVG = "{http://www.w3.org/2000/svg}"
SMALL = ("bench", "--weights", WEIGHTS, "--max-tokens", 2)


def made_up(batch_size: int, rate: float, gigabytes: float = 20) -> Record:
    """Return a record with a rate in comparisons per minute and a peak."""
    pairs = max(batch_size, 32)
    return Record(batch_size, rows=batch_size, pairs=pairs, seconds=60 * pairs / rate, tokens=100 * pairs,
                  prompt_tokens=1, peak_bytes=int(gigabytes * GB), planned_bytes=int(1.1 * gigabytes * GB))


RECORDS = [made_up(1, 10), made_up(8, 30), made_up(32, 39), replace(made_up(64, 40, 22), repeats=3)]


def test_the_table_is_on_stdout_the_time_left_on_stderr_and_nothing_is_recorded(tmp_path: Path) -> None:
    done = run_diptych(*SMALL, "--batch-sizes", "1,2,3", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == HEAD
    sizes = [line.replace("*", "").split()[:3] for line in lines[1:] if re.match(r" +\d", line)]
    measured = {size: counts for size, *counts in sizes}
    assert measured == {"1": ["1", "32"], "2": ["2", "32"], "3": ["3", "33"]}
    assert lines[-1].startswith("--batch-size ")
    assert list(tmp_path.iterdir()) == []
    left = [line for line in done.stderr.splitlines() if line.startswith("about ")]
    assert list(dict.fromkeys(line[-1] for line in left)) == ["2", "1"]      # again after a fall
    assert all(" left at the rate of this one; batch sizes to go: " in line for line in left)


def test_the_document_has_the_rates_and_all_that_they_were_measured_with(capsys: pytest.CaptureFixture[str]) -> None:
    status = run(diptych, [*map(str, SMALL), "--batch-sizes", "1,2", "--json", "--partners", "4", "--memory-limit",
                           "1GB", "--greedy"])

    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert status == 0
    assert found.keys() == {"complete", "recommended_batch_size", "recommendation", "machine", "checkpoint", "workload",
                            "sizes"}
    assert found["complete"] is True
    assert found["recommended_batch_size"] in (1, 2)
    assert found["machine"].keys() == {"diptych", "mlx", "python", "os", "chip", "device", "memory_limit"}
    assert found["machine"]["memory_limit"] == GB
    assert found["checkpoint"].keys() == {"folder", "model_type", "fingerprint"}
    check_workload(found["workload"])
    for size, entry in zip((1, 2), found["sizes"], strict=True):
        check_entry(entry, size)
    assert HEAD in captured.err


def check_workload(workload: dict[str, Any]) -> None:
    """Compare with what was asked for."""
    expected = {"prompt": "Compare these two images.", "image_tokens": 256, "partners": 4, "embeddings": "random",
                "max_tokens": 2, "do_sample": False, "thinking": False}
    assert expected.items() <= workload.items()
    assert 256 < workload["prefix_tokens"] < workload["prompt_tokens"]


def check_entry(entry: dict[str, Any], size: int) -> None:
    """Compare the rates of a batch size with its times."""
    assert entry.keys() == {"batch_size", "rows", "pairs", "seconds", "tokens", "prompt_tokens", "peak_bytes",
                            "planned_bytes", "repeats", "tokens_per_second", "speed_up", "comparisons_per_minute"}
    assert (entry["batch_size"], entry["rows"], entry["pairs"], entry["tokens"]) == (size, size, 32, 64)
    assert entry["comparisons_per_minute"] == pytest.approx(60 * 32 / entry["seconds"], rel=1e-3)
    assert entry["tokens_per_second"] == pytest.approx(64 / entry["seconds"], rel=1e-3)
    assert 0 < entry["peak_bytes"] < GB


def test_quiet_leaves_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run(diptych, [*map(str, SMALL), "--batch-sizes", "32", "--json", "--quiet"])

    captured = capsys.readouterr()
    assert captured.err == ""
    assert [entry["speed_up"] for entry in json.loads(captured.out)["sizes"]] == [None]


@pytest.mark.parametrize(("words", "variables", "expected"), [
    ((), {}, "random"),      # not the default folder of other commands, though it is there
    (("--embeds", "embeddings_512"), {}, "embeddings_512"),
    ((), {"GLM_EMBEDS_DIR": "embeddings_512"}, "embeddings_512"),
    (("--embeds", "random"), {"GLM_EMBEDS_DIR": "embeddings_512"}, "random"),
])
def test_embeddings_are_drawn_unless_a_folder_is_named(
    capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
    variables: dict[str, str], expected: str,
) -> None:
    monkeypatch.chdir(workspace)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    status = run(diptych, [*map(str, SMALL), "--batch-sizes", "32", "--json", *words])

    assert status == 0
    assert Path(json.loads(capsys.readouterr().out)["workload"]["embeddings"]).name == expected


@pytest.mark.parametrize(("words", "expected"), [
    (("--batch-sizes", "0,1"), "whole numbers from 1"),
    (("--batch-sizes", "4,1"), "ascending"),
    (("--batch-sizes", "4,4"), "ascending"),
    (("--batch-sizes", ""), "ascending"),
    (("--batch-sizes", "1,,2"), "ascending"),
    (("--batch-sizes", "1,two"), "'1,two'"),
    (("--batch-sizes", "1,99999999"), "65,536"),
    (("--partners", "0"), "--partners"),
    (("--plot", "bench.png"), ".svg"),
    (("--plot", "nowhere/bench.svg"), "nowhere"),
    (("--weights", "nowhere"), "nowhere"),
    (("--embeds", "nowhere"), "nowhere"),
    (("--memory-limit", "1MB"), "expected a limit of at least"),
    (("--memory-limit", "900TB"), "--memory-limit: expected at most"),
    (("--max-tokens", "0"), "max_tokens"),
    (("--prompt", "<image_a>"), "<image_b>"),
])
def test_what_cannot_be_measured_is_refused_before_anything_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    status = run(diptych, ["bench", "--weights", str(WEIGHTS), *words])

    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert (status, captured.out) == (2, "")
    assert last.startswith("Error: ")
    assert expected in last


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A benchmark in a process of its own, whose second size takes long; its table is on stderr."""
    words = (*SMALL, "--batch-sizes", "1,2048", "--json", "--plot", "bench.svg")
    process = subprocess.Popen([str(DIPTYCH), *map(str, words)], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def read_until(process: subprocess.Popen[str], beginning: str) -> None:
    """Read the lines of stderr up to one that begins so."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(beginning):
            return
    pytest.fail("".join(lines))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_an_interrupted_benchmark_shows_the_sizes_that_are_finished(
    bench: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    read_until(bench, "    1 ")
    read_until(bench, "about ")

    bench.send_signal(signum)
    out, err = bench.communicate(timeout=60)

    assert bench.returncode == status
    assert err.splitlines()[-1] == "ended after 1 of 2 batch sizes"
    found = json.loads(out)
    assert (found["complete"], found["recommended_batch_size"]) == (False, 1)
    assert [entry["batch_size"] for entry in found["sizes"]] == [1]
    assert ElementTree.parse(tmp_path / "bench.svg").getroot().tag == f"{SVG}svg"


def test_a_benchmark_that_is_interrupted_at_once_says_that_nothing_is_finished(
    bench: subprocess.Popen[str], tmp_path: Path
) -> None:
    read_until(bench, HEAD)

    bench.send_signal(signal.SIGINT)
    out, err = bench.communicate(timeout=60)

    assert bench.returncode == 130
    assert err.splitlines()[-1] == "ended after 0 of 2 batch sizes"
    found = json.loads(out)
    assert (found["complete"], found["recommended_batch_size"], found["recommendation"]) == (False, None, None)
    assert found["sizes"] == []
    assert not (tmp_path / "bench.svg").exists()


def test_with_a_bar_on_the_terminal_the_table_goes_to_its_file_all_the_same(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    words = [str(DIPTYCH), *map(str, SMALL), "--batch-sizes", "16,32"]

    with (tmp_path / "table.txt").open("w") as table:
        process = subprocess.Popen(words, cwd=tmp_path, stdout=table, stderr=end, env=os.environ | {"TERM": "xterm"})
        os.close(end)
        shown = read_terminal(terminal)
        status = process.wait(timeout=60)

    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert (status, lines[0], len(lines)) == (0, HEAD, len(lines))
    assert {line.split()[0].rstrip("*") for line in lines if re.match(r" +\d", line)} == {"16", "32"}
    assert "batch 32" in shown
    assert HEAD not in shown


def read_terminal(terminal: int) -> str:
    """Read what a terminal shows until its last writer is gone."""
    shown = b""
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:      # Linux says so at the end
            read = b""
        if not read:
            os.close(terminal)
            return shown.decode(errors="replace")
        shown += read


def test_a_line_of_the_table_fits_its_head_and_marks_what_was_measured_again() -> None:
    lines = [table_line(RECORDS, record) for record in RECORDS]

    assert {len(line) for line in lines} == {len(HEAD)}
    assert len(HEAD) < 80
    assert [line.split()[0] for line in lines] == ["1", "8", "32", "64*"]
    assert [line.split()[5] for line in lines] == ["1.0x", "3.0x", "3.9x", "4.0x"]
    assert table_line(RECORDS[1:], RECORDS[1]).split()[5] == "-"


def test_the_recommendation_is_one_sentence_with_rate_memory_and_what_more_would_gain() -> None:
    assert recommendation(RECORDS, 24 * GB) == (
        "--batch-size 32: 39.0 comparisons/min, 3.9 times batch size 1, peak 20.0 GB of 24.0 GB; "
        "the fastest, 64, gains 2.6 %")
    assert recommendation(RECORDS[:2], 24 * GB).endswith("; none is faster")
    assert recommendation(RECORDS, 10 * GB).startswith("no --batch-size to recommend: every peak, from 20.0 GB on, ")


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:1], [made_up(1, 0.4, 0.001), made_up(2, 0.5, 0.002)]])
def test_the_plot_has_a_point_for_each_size_in_both_charts(records: list[Record]) -> None:
    drawing = ElementTree.fromstring(draw_plot(records, 24 * GB, 'a "device" <of> & mine'))

    for kind in ("rate", "peak"):
        dots = drawing.findall(f".//{SVG}circle[@class='{kind}']")
        assert len(dots) == len(records)
        assert [float(dot.get("cx", "")) for dot in dots] == sorted(float(dot.get("cx", "")) for dot in dots)
        [curve] = drawing.findall(f".//{SVG}polyline[@class='line {kind}']")
        assert curve.get("points") == " ".join(f"{dot.get('cx')},{dot.get('cy')}" for dot in dots)
    assert len(drawing.findall(f".//{SVG}circle[@class='chosen']")) == 1
    assert 'a "device" <of> & mine' in [text.text for text in drawing.iter(f"{SVG}text")]


def test_the_axes_are_labelled_with_units_and_follow_the_readers_theme() -> None:
    drawing = ElementTree.fromstring(draw_plot(RECORDS, 24 * GB, "a device"))

    texts = [text.text or "" for text in drawing.iter(f"{SVG}text")]
    assert "comparisons per minute; ring: --batch-size 32" in texts
    assert "peak memory (GB); dashed: planned, and the limit" in texts
    assert texts.count("batch size (pairs)") == 2
    assert all(texts.count(str(size)) >= 2 for size in (1, 8, 32, 64))
    assert "prefers-color-scheme: dark" in (drawing.findtext(f"{SVG}style") or "")
    assert len(drawing.findall(f".//{SVG}line[@class='limit']")) == 1


def test_a_limit_far_above_the_peaks_is_left_out_of_the_plot() -> None:
    drawing = ElementTree.fromstring(draw_plot(RECORDS, 500 * GB, "a device"))

    assert drawing.findall(f".//{SVG}line[@class='limit']") == []


def test_higher_values_stand_higher_and_all_within_the_drawing() -> None:
    drawing = ElementTree.fromstring(draw_plot(RECORDS, 24 * GB, "a device"))

    heights = [float(dot.get("cy", "")) for dot in drawing.findall(f".//{SVG}circle[@class='rate']")]
    assert heights == sorted(heights, reverse=True)
    for dot in drawing.iter(f"{SVG}circle"):
        assert 0 < float(dot.get("cx", "")) < 720
        assert 0 < float(dot.get("cy", "")) < 500


@pytest.mark.parametrize(("most", "expected"), [
    (11, [0, 2, 4, 6, 8, 10]), (44, [0, 10, 20, 30, 40]), (26.4, [0, 5, 10, 15, 20, 25]),
    (0.23, [0, 0.05, 0.1, 0.15, 0.2]), (4000, [0, 1000, 2000, 3000, 4000]),
])
def test_the_grid_stands_at_round_values(most: float, expected: list[float]) -> None:
    assert ticks(most) == expected
