"""`diptych demo` and `--weights demo`: something to try, from anywhere."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import DIPTYCH, run_diptych

from cli.main import diptych, run
from store.demo import PHOTOS


def test_the_commands_that_demo_prints_work_one_after_the_other(tmp_path: Path) -> None:
    laid_out = run_diptych("demo", tmp_path / "first look", cwd=tmp_path)

    lines = laid_out.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["cd", shlex.quote(str(tmp_path / "first look")).split()[0]], ["diptych", "precompute"],
        ["diptych", "generate"], ["diptych", "enqueue"], ["diptych", "worker"], ["diptych", "results"],
        ["diptych", "resume"]]
    path = f"{DIPTYCH.parent}{os.pathsep}{os.environ['PATH']}"
    tried = subprocess.run(["sh", "-ec", laid_out.stdout], env=os.environ | {"PATH": path}, cwd=tmp_path,
                           capture_output=True, text=True, check=False, timeout=300)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.count("Image A is") >= 10
    assert "0 of 14 pairs pending" in tried.stdout


def test_demo_leaves_a_file_of_the_same_name_alone(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("0,1\n")

    refused = run_diptych("demo", tmp_path, cwd=tmp_path)

    assert refused.returncode == 2
    assert "pairs.txt" in refused.stderr
    assert (tmp_path / "pairs.txt").read_text() == "0,1\n"


def test_demo_may_be_laid_out_twice(tmp_path: Path) -> None:
    assert [run_diptych("demo", "here", cwd=tmp_path).returncode for _ in range(2)] == [0, 0]
    assert len(list((tmp_path / "here" / "photos").glob("*.jpg"))) == len(list(PHOTOS.glob("*.jpg")))


def test_demo_without_its_photographs_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.demo.PHOTOS", tmp_path / "none")

    assert run(diptych, ["demo", str(tmp_path / "here")]) == 2
    assert "installed without its photographs" in capsys.readouterr().err
    assert not (tmp_path / "here").exists()


def test_a_folder_called_demo_is_meant_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()

    refused = run_diptych("precompute", PHOTOS, "-o", "embeddings", "--weights", "./demo", cwd=tmp_path)

    assert refused.returncode == 2
    assert "config.json" in refused.stderr


def test_the_variable_names_the_demo_too(tmp_path: Path) -> None:
    made = run_diptych("precompute", PHOTOS, "-o", "embeddings", cwd=tmp_path, GLM_WEIGHTS_DIR="demo")

    assert made.returncode == 0, made.stderr
