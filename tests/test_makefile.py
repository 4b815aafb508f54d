"""The Makefile: a Python is found or its absence explained, setup survives what happens to it, targets call diptych."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FINDER = ROOT / ".ci" / "find_python.sh"
TOOLS = ("sh", "cat", "uname", "pwd", "rm", "cp", "mkdir", "make", "dirname", "bash")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for the PATH with the few programs that setup needs, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name} here"))
    return folder


def script(path: Path, text: str) -> Path:
    """Write an executable shell script in place of whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def fake_python(path: Path, version: str = "3.13.1", machine: str = "arm64", *, venv: bool = True) -> Path:
    """Put a Python there that says of itself what it is told to."""
    numbers = tuple(int(part) for part in version.split("."))
    disguise = "; ".join((
        "import platform, sys, ensurepip, venv", f"sys.version_info = {numbers}",
        f"platform.python_version = lambda: {version!r}", f"platform.machine = lambda: {machine!r}",
        "pass" if venv else "sys.modules['ensurepip'] = None", "exec(sys.argv[1])",
    ))
    return script(path, f'exec {shlex.quote(sys.executable)} -c {shlex.quote(disguise)} "$2"')


def fake_mac(tools: Path, *, apple_silicon: bool) -> None:
    """Make uname and sysctl answer as on a Mac."""
    script(tools / "uname", "echo Darwin")
    script(tools / "sysctl", "echo 1" if apple_silicon else "exit 1")


def find(tools: Path, *folders: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the search with nothing but these folders to look in."""
    return subprocess.run(["/bin/sh", FINDER, *folders], env={"PATH": str(tools), **env}, capture_output=True,
                          text=True, check=False)


def test_the_newest_python_on_the_path_is_found(tools: Path) -> None:
    fake_python(tools / "python3", "3.11.9")
    newest = fake_python(tools / "python3.13")

    found = find(tools)

    assert (found.returncode, found.stdout, found.stderr) == (0, f"{newest}\n", "")


def test_a_python_too_old_is_passed_over_for_one_in_the_folders_given(tools: Path, tmp_path: Path) -> None:
    fake_python(tools / "python3", "3.9.6")
    newer = fake_python(tmp_path / "Python Framework" / "python3", "3.12.4")

    found = find(tools, tmp_path / "nothing here", newer.parent)

    assert (found.returncode, found.stdout) == (0, f"{newer}\n")


def test_a_python_that_does_not_run_is_passed_over(tools: Path) -> None:
    script(tools / "python3.14", "echo 'python3.14: command not found' >&2; exit 127")      # as pyenv's shims do
    works = fake_python(tools / "python3.11", "3.11.2")

    assert find(tools).stdout == f"{works}\n"


def test_only_an_old_python_is_named_with_the_ways_to_get_another(tools: Path) -> None:
    old = fake_python(tools / "python3", "3.9.6")

    found = find(tools)

    assert (found.returncode, found.stdout) == (1, "")
    assert f"{old} (3.9.6) is older than 3.11" in found.stderr
    for way in ("brew install python@3.13", "python.org", "apt install python3", "uv python install"):
        assert way in found.stderr


def test_no_python_at_all_is_said(tools: Path) -> None:
    found = find(tools)

    assert found.returncode == 1
    assert "Found: no python3 at all" in found.stderr


def test_a_python_without_venv_is_told_apart_with_debians_package(tools: Path) -> None:
    fake_python(tools / "python3", "3.11.2", venv=False)

    found = find(tools)

    assert found.returncode == 1
    assert "sudo apt install python3.11-venv" in found.stderr


def test_an_x86_python_on_apple_silicon_is_refused_naming_rosetta(tools: Path) -> None:
    fake_mac(tools, apple_silicon=True)
    x86 = fake_python(tools / "python3", "3.13.1", "x86_64")

    found = find(tools)

    assert (found.returncode, found.stdout) == (1, "")
    assert f"{x86} (3.13.1) is for x86_64 and runs under Rosetta" in found.stderr


def test_an_arm_python_is_found_behind_one_for_rosetta(tools: Path, tmp_path: Path) -> None:
    fake_mac(tools, apple_silicon=True)
    fake_python(tools / "python3.13", machine="x86_64")
    arm = fake_python(tmp_path / "homebrew" / "python3.12", "3.12.7")

    assert find(tools, arm.parent).stdout == f"{arm}\n"


def test_an_intel_mac_is_told_that_mlx_needs_apple_silicon(tools: Path) -> None:
    fake_mac(tools, apple_silicon=False)
    fake_python(tools / "python3", machine="x86_64")

    found = find(tools)

    assert "MLX on macOS needs Apple Silicon" in found.stderr
    assert "Rosetta" not in found.stderr


def test_an_x86_python_on_linux_is_taken(tools: Path) -> None:
    script(tools / "uname", "echo Linux")
    x86 = fake_python(tools / "python3", machine="x86_64")

    assert find(tools).stdout == f"{x86}\n"


def test_a_named_python_is_taken_or_refused_but_never_replaced(tools: Path, tmp_path: Path) -> None:
    fake_python(tools / "python3.13")
    named, old = fake_python(tmp_path / "my python", "3.12.1"), fake_python(tmp_path / "old", "3.8.2")

    taken, refused, absent = (find(tools, PYTHON=str(path)) for path in (named, old, tmp_path / "none"))

    assert taken.stdout == f"{named}\n"
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{old} (3.8.2) is older" in refused.stderr
    assert absent.returncode == 1
    assert "none (named by PYTHON) does not run" in absent.stderr


class Checkout:
    """A copy of the files that setup reads, in a folder with a blank, with a Python that only notes what it is told."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder, self.tools, self.log = folder, tools, tools.parent / "log"
        (folder / ".ci").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/find_python.sh", ".ci/run"):
            shutil.copy(ROOT / name, folder / name)
        self.python = script(tools.parent / "python", f"""
            case "$*" in
                "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv >> {self.log} ;;
                "-m pip "*) echo pip >> {self.log}; exit "${{PIP_STATUS:-0}}" ;;
                *) exec {shlex.quote(sys.executable)} "$@" ;;
            esac""")

    def setup(self, **env: str) -> list[str]:
        """Run `make setup`; return what the Python was told to do."""
        self.log.write_text("")
        clean = {"PATH": str(self.tools), "PYTHON": str(self.python), **env}
        subprocess.run(["make", "setup"], cwd=self.folder, env=clean, capture_output=True, check=False)
        return self.log.read_text().split()


@pytest.fixture
def checkout(tmp_path: Path, tools: Path) -> Checkout:
    return Checkout(tmp_path / "my work" / "diptych", tools)


def test_setup_installs_once_and_again_only_when_its_files_change(checkout: Checkout) -> None:
    first, second = checkout.setup(), checkout.setup()
    later = (checkout.folder / ".venv" / ".installed").stat().st_mtime + 10

    os.utime(checkout.folder / "constraints.txt", (later, later))

    assert (first, second, checkout.setup()) == (["venv", "pip"], [], ["pip"])


def test_setup_broken_off_begins_anew(checkout: Checkout) -> None:
    broken = checkout.setup(PIP_STATUS="1")

    again = checkout.setup()

    assert (broken, again, checkout.setup()) == (["venv", "pip"], ["venv", "pip"], [])


def test_an_update_broken_off_begins_anew(checkout: Checkout) -> None:
    checkout.setup()
    later = (checkout.folder / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout.folder / "pyproject.toml", (later, later))

    broken = checkout.setup(PIP_STATUS="1")

    assert (broken, checkout.setup()) == (["pip"], ["venv", "pip"])


def test_setup_in_a_folder_that_was_moved_begins_anew(checkout: Checkout) -> None:
    checkout.setup()

    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))

    assert checkout.setup() == ["venv", "pip"]


def test_setup_whose_python_is_gone_begins_anew(checkout: Checkout) -> None:
    checkout.setup()

    (checkout.folder / ".venv" / "bin" / "python").unlink()

    assert checkout.setup() == ["venv", "pip"]


def test_setup_without_a_python_stops_before_anything_is_made(checkout: Checkout) -> None:
    assert checkout.setup(PYTHON="/nowhere/python3") == []
    assert not (checkout.folder / ".venv").exists()


def test_ci_runs_the_very_command_that_a_person_runs(checkout: Checkout) -> None:
    script(checkout.tools / "make", "pwd; echo make $*")

    done = subprocess.run([shutil.which("bash") or "bash", checkout.folder / ".ci" / "run"], stdin=subprocess.DEVNULL,
                          env={"PATH": str(checkout.tools), "CI": "true"}, capture_output=True, text=True, check=True)

    assert done.stdout == f"{checkout.folder}\nmake test\n"


def make_says(*words: str) -> list[str]:
    """Return the commands that make would run, a line each."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize(("words", "command"), [
    ("generate", "generate"),
    ("generate A=5 B=10 TOKENS=50", "generate --a 5 --b 10 --max-tokens 50"),
    ("generate EMBEDS=out A=0 B=1 TOKENS=100", "generate --a 0 --b 1 --max-tokens 100 --embeds out"),
    ("batch-generate", "batch-generate"),
    ("batch-generate BATCH=64 TOKENS=50", "batch-generate --batch-size 64 --max-tokens 50"),
    ("batch-generate PAIRS=pairs.txt", "batch-generate pairs.txt"),
    ("batch-generate EMBEDS=e BATCH=4 WEIGHTS=w", "batch-generate --batch-size 4 --embeds e --weights w"),
    ("precompute INPUT=/path/to/images OUTPUT=my_embeddings BATCH=8 WEIGHTS=w",
     "precompute /path/to/images --output my_embeddings --batch-size 8 --weights w"),
    ("precompute 'INPUT=Anna'\\''s photos, 2024' OUTPUT=o", "precompute 'Anna'\\''s photos, 2024' --output o"),
])
def test_the_ancestors_targets_pass_on_what_is_set_and_nothing_else(words: str, command: str) -> None:
    program, *arguments = shlex.split(make_says(*shlex.split(words))[-1])

    assert program == ".venv/bin/diptych"
    assert arguments == shlex.split(command)
    import_module(f"cli.{arguments[0].replace('-', '_')}").command.make_context("diptych", arguments[1:])


def test_make_test_runs_the_four_checks_in_order() -> None:
    checks = [line for line in make_says("test") if line.startswith(".venv/bin/") and "pip" not in line]

    assert [re.sub(r".*/bin/(python -m )?(\S+).*", r"\2", line) for line in checks] == [
        "ruff", "mypy", "lint-imports", "pytest"]


def test_make_alone_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert targets
    for target in targets[1].split():
        assert f"  {target} " in done.stdout


def test_the_makefile_uses_nothing_that_macos_make_lacks() -> None:
    text = (ROOT / "Makefile").read_text()

    for newer in (".ONESHELL", ".SHELLFLAGS", ".RECIPEPREFIX", "::=", "!=\t", "&:", "$(file", "$(let", "$(intcmp"):
        assert newer not in text
