"""What every command says of itself, and what asking costs."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import DIPTYCH, run_diptych

from cli.main import COMMANDS, diptych


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = CliRunner().invoke(diptych, [name, "--help"])

    assert shown.exit_code == 0
    assert "Example:" in shown.output
    assert f"diptych {name}" in shown.output
    assert "--db" in shown.output


def test_help_loads_neither_mlx_nor_rq_nor_sqlalchemy() -> None:
    code = ("import sys; from cli.main import run, diptych; assert run(diptych, ['--help']) == 0; "
            "loaded = {'mlx', 'rq', 'sqlalchemy', 'redis', 'numpy', 'rich'} & set(sys.modules); sys.exit(str(loaded) "
            "if loaded else 0)")

    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize("words", [("--db", "x.db", "runs"), ("runs", "--db", "x.db"),
                                   ("--db", "y.db", "runs", "--db", "x.db")])
def test_global_options_are_accepted_before_and_after_the_command_and_the_latter_wins(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    asked = run_diptych(*words, cwd=tmp_path, DIPTYCH_DB="z.db")

    assert asked.returncode == 2
    assert "x.db" in asked.stderr


def test_the_database_comes_from_the_environment_when_no_option_names_it(tmp_path: Path) -> None:
    asked = run_diptych("runs", cwd=tmp_path, DIPTYCH_DB="z.db")

    assert "z.db" in asked.stderr


def test_version_names_the_program() -> None:
    shown = subprocess.run([str(DIPTYCH), "--version"], capture_output=True, text=True, check=False)

    assert shown.stdout.startswith("diptych, version ")
