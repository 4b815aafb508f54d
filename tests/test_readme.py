"""The README is true: its commands exist with their options, and `make demo` prints what it shows."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.main import COMMANDS, diptych

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def commands() -> list[str]:
    """Every `diptych ...` line in the code blocks of the documentation."""
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    parts = [part.strip().removeprefix("caffeinate -i ") for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("diptych ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documentation_is_understood(line: str) -> None:
    _, name, *words = shlex.split(line)

    assert name in COMMANDS
    command = diptych.get_command(click.Context(diptych), name)
    assert command is not None
    with command.make_context(name, words, resilient_parsing=False):
        pass


def test_every_target_in_the_documentation_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^make ([a-z-]+)", PAGES[0].read_text(), re.MULTILINE))

    assert {"demo", "test", "generate", "batch-generate", "precompute"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_make_demo_prints_what_the_readme_shows_twice_in_a_row(tmp_path: Path, home: Path) -> None:
    """Its very recipe, beside a copy of what it reads; the environment is the one that runs this test."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent, target_is_directory=True)
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    recipe = subprocess.run(["make", "-n", "-o", ".venv/.installed", "demo"], cwd=tmp_path, env=alone,
                            capture_output=True, text=True, check=True).stdout

    printed = [subprocess.run(["sh", "-e"], input=recipe, cwd=tmp_path, env=os.environ, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False) for _ in range(2)]

    assert [done.returncode for done in printed] == [0, 0], printed[-1].stdout
    shown = re.search(r"<!-- demo -->\n```\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    assert shown
    lines = [line.rstrip() for line in printed[1].stdout.splitlines()]
    for line in shown[1].splitlines():
        if line != "..." and not re.match("run [0-9a-f]{10}|─", line):      # an id and a rate are of that run alone
            assert line in lines
    assert (tmp_path / "results.db").exists()
