"""The benchmark beside other engines: its arithmetic, its tables, and a small run with diptych alone."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import contender
import pytest
import report
from blas import BlasError, check_loaded, describe_blas, find_blas, with_blas
from bound import count_flops, share_computed
from contender import Contender, ContenderError, Kind
from tables import render
from workload import distinct_pairs, image_count, make_weights, shared_pairs

from store.checkpoint import open_checkpoint
from store.config import TextConfig

ROOT = Path(__file__).parent.parent
THROUGHPUT = ROOT / "benchmarks" / "throughput.py"
FOREIGN = ("mlx-vlm-1", "mlx-vlm-8", "transformers", "transformers-own")


@pytest.fixture
def text() -> TextConfig:
    """The sizes of the reference's decoder."""
    return open_checkpoint(ROOT / "tests" / "data" / "small" / "weights").text


def flops_token_by_token(c: TextConfig, firsts: list[int], prefix: int, suffix: int, new_tokens: int) -> int:
    """Count the work of pairs, given by their first images, one token and one layer after the other."""
    width, kv, done, total = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, set[int](), 0
    for first in firsts:
        for place in range(prefix + suffix + new_tokens - 1):
            if place < prefix and first in done:
                continue
            for layer in range(c.n_layers):
                total += 2 * 2 * c.hidden_size * kv      # key and value
                if layer < c.n_layers - 1 or place >= prefix + suffix - 1:
                    total += 2 * 2 * c.hidden_size * width + 3 * 2 * c.hidden_size * c.intermediate_size
                    total += 2 * 2 * width * (place + 1)      # attention to all before and to itself
            if place >= prefix + suffix - 1:
                total += 2 * c.hidden_size * c.vocab_size
        done.add(first)
    return total


def test_the_counted_work_is_that_of_each_token_in_each_layer(text: TextConfig) -> None:
    firsts = [0, 0, 0, 1, 2, 2]

    counted = count_flops(text, prefixes=3, pairs=6, prefix=7, suffix=5, new_tokens=4)

    assert counted == flops_token_by_token(text, firsts, prefix=7, suffix=5, new_tokens=4)


def test_without_partners_all_prompt_tokens_are_computed_and_with_many_only_those_of_the_rest() -> None:
    assert share_computed(prefix=300, suffix=100, partners=1) == 1
    assert share_computed(prefix=300, suffix=100, partners=3) == pytest.approx((300 + 3 * 100) / (3 * 400))
    assert share_computed(prefix=300, suffix=100, partners=10**9) == pytest.approx(1 / 4)


def test_the_pairs_that_share_are_64_over_24_images_with_8_partners_for_each_first_one() -> None:
    pairs = shared_pairs(64)

    assert len(set(pairs)) == 64
    assert image_count(pairs) == len({index for pair in pairs for index in pair}) == 24
    assert set(Counter(first for first, _ in pairs).values()) == {8}
    assert not {first for first, _ in pairs} & {second for _, second in pairs}


def test_the_pairs_that_do_not_share_are_64_over_65_images() -> None:
    pairs = distinct_pairs(64)

    assert len({first for first, _ in pairs}) == 64
    assert image_count(pairs) == len({index for pair in pairs for index in pair}) == 65


def measured() -> dict[str, Any]:
    """Return figures whose ratios are easy to see."""
    seconds = {"ours": [9, 10, 30], "mlx-vlm-1": [50, 50, 50], "mlx-vlm-8": [20, 40, 60], "transformers": [25, 25, 25]}
    contenders = {name: {"title": name, "seconds": values, "equal_rows": 60} for name, values in seconds.items()}
    case = {"pairs": 64, "images": 24, "first_images": 8, "flops": 500, "matrix_rates": [90, 100],
            "contenders": contenders}
    machine = {"chip": "a chip", "cores": 2, "os": "an OS", "python": "3", "blas": "a BLAS", "diptych": "1", "mlx": "2"}
    return {"machine": machine, "versions": {"mlx-vlm-1": {"mlx": "2", "mlx-vlm": "3"}}, "cases": {"shared": case},
            "model": {"prompt_tokens": 400, "new_tokens": 16, "rounds": 3},
            "prompt_tokens": [{"partners": 2, "pairs": 4, "prefix": 300, "suffix": 100, "computed": 1000}]}


def test_the_table_takes_medians_the_better_prefill_and_the_best_matrix_rate() -> None:
    table = render(measured())

    assert "| ours | 384.0 | 4.00 | 2.50 | 50% | 60 of 64 |" in table      # 10 s; beside 40, 25 and 5
    assert "| mlx-vlm-1 | 76.8 | 0.80 | 0.50 | 10% | 60 of 64 |" in table
    assert "| counted bound | 768.0 | 8.00 | 5.00 | 100% |  |" in table


def test_the_table_names_machine_blas_and_versions_once() -> None:
    table = render(measured())

    assert "a chip, 2 cores, an OS; Python 3; BLAS: a BLAS; diptych 1, mlx 2, mlx-vlm 3." in table


def test_the_table_of_prompt_tokens_has_the_formula_beside_the_count() -> None:
    assert "| 2 | 250.0 | 0.625 | 0.625 |" in render(measured())


def test_the_page_has_the_tables_of_the_figures_that_were_measured() -> None:
    page = report.PAGE.read_text(encoding="utf-8")

    assert page == report.filled(page)
    for name in ("throughput", "sizes", "busy"):
        assert f"<!-- {name} -->\n" in page


def test_a_contender_that_is_left_out_leaves_its_ratio_empty() -> None:
    result = measured()
    del result["cases"]["shared"]["contenders"]["transformers"]

    assert "| ours | 384.0 | 4.00 |  | 50% | 60 of 64 |" in render(result)


def test_a_run_of_diptych_alone_counts_tokens_and_writes_what_it_measured(tmp_path: Path) -> None:
    weights, output = make_weights(tmp_path / "weights", "tiny"), tmp_path / "figures.json"

    shown = throughput("--pairs", "4", "--new-tokens", "3", "--rounds", "2", "--blas", "none", "--weights", weights,
                       "--output", output, *(word for name in FOREIGN for word in ("--without", name)))

    result = json.loads(output.read_text())
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.rstrip("\n") == render(result)
    for count in result["prompt_tokens"]:
        share = count["computed"] / count["pairs"] / (count["prefix"] + count["suffix"])
        assert share == pytest.approx(share_computed(count["prefix"], count["suffix"], count["partners"]))
    assert [count["partners"] for count in result["prompt_tokens"]] == [1, 2, 4, 8, 16]
    for case, firsts in (("shared", 1), ("distinct", 4)):
        ours, unshared = result["cases"][case]["contenders"].values()
        assert ours["equal_rows"] == unshared["equal_rows"] == 4
        assert len(ours["seconds"]) == len(result["cases"][case]["matrix_rates"]) == 2
        assert ours["counts"]["prefix_tokens"] == firsts * result["model"]["prefix_tokens"]
        assert unshared["counts"]["prefix_tokens"] == 0


def throughput(*argv: object) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in a process of its own."""
    return subprocess.run([sys.executable, str(THROUGHPUT), *map(str, argv)], capture_output=True, text=True,
                          check=False, timeout=120)


def test_a_contender_that_is_not_installed_is_named_with_the_way_to_leave_it_out(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights", "tiny")

    shown = throughput("--case", "shared", "--pairs", "1", "--blas", "none", "--weights", weights, "--python", "false")

    assert shown.returncode == 1
    assert "mlx-vlm, prefill batch 1: expected an answer, found that false ended with status 1" in shown.stderr
    assert "benchmarks/requirements.txt" in shown.stderr
    assert "--without mlx-vlm-1" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_an_interpreter_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContenderError, match="nowhere/python"):
        Contender(Kind("one", "One", "one.py"), str(tmp_path / "nowhere" / "python"), tmp_path, {})


def test_a_contender_that_generates_fewer_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"versions": {}, "blas": []}, {"seconds": 1.0, "tokens": [[1, 2, 3], [1, 2]]}]
    (tmp_path / "short.py").write_text(f"import sys\nfor answer in {[json.dumps(answer) for answer in answers]}:\n"
                                       "    print(answer, flush=True)\nsys.stdin.read()\n")
    monkeypatch.setattr(contender, "SCRIPTS", tmp_path)

    with Contender(Kind("short", "Short", "short.py"), sys.executable, tmp_path, os.environ) as short:
        assert short.ready() == answers[0]
        with pytest.raises(ContenderError, match=r"Short: expected 2 rows of 3 tokens, found \[3, 2\]"):
            short.generate([(0, 1), (1, 2)], 3)


def test_what_a_library_prints_does_not_stand_between_the_answers(tmp_path: Path) -> None:
    script = tmp_path / "loud.py"
    script.write_text("from wire import serve\nprint('before')\n\n\ndef answer(request):\n    print('noise')\n"
                      "    return {'twice': 2 * request['number']}\n\n\nserve(lambda: answer, ())\n")
    env = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks" / "contenders")}

    done = subprocess.run([sys.executable, "-u", str(script)], input='{"number": 2}\n{"number": 3}\n', env=env,
                          capture_output=True, text=True, check=True)

    first, ready, *replies = done.stdout.splitlines()
    assert (first, json.loads(ready)["versions"], replies) == ("before", {}, ['{"twice": 4}', '{"twice": 6}'])
    assert done.stderr == "noise\nnoise\n"


def test_a_library_that_is_not_there_is_refused_and_none_is_none(tmp_path: Path) -> None:
    with pytest.raises(BlasError, match=r"expected a library, found no file .*libnone\.so"):
        find_blas(str(tmp_path / "libnone.so"))
    assert find_blas("none") is None
    assert describe_blas(None)


def test_on_linux_the_run_is_refused_without_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blas.PLACES", ())
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")

    with pytest.raises(BlasError, match=r"expected OpenBLAS on Linux, found none; .*--blas none"):
        find_blas("auto")


def test_the_library_goes_before_all_others_and_a_contender_without_it_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "libopenblas.so.0"

    assert with_blas(library)["LD_PRELOAD"] == str(library)
    assert "LD_PRELOAD" not in with_blas(None)
    check_loaded("One", library, [str(library), "/usr/lib/libother.so"])
    with pytest.raises(BlasError, match=r"One: expected .*libopenblas\.so\.0 to be loaded, found .*libother\.so"):
        check_loaded("One", library, ["/usr/lib/libother.so"])
