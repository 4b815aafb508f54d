"""Packaging: the rooms' plain names are ours wherever a command runs, and a plain install has all of them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "jobs", "store", "workers")
SCRIPTS = Path(sys.executable).parent
MAC = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain install, from a wheel, in a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps",
                    "--no-build-isolation", "--wheel-dir", source / "dist", source], check=True)
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as files:
        files.extractall(target)
    return target


def strangers(folder: Path) -> Path:
    """Put packages there with the names of ours, which fail when they are imported."""
    for room in ROOMS:
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text("raise RuntimeError('a stranger was imported')\n")
    return folder


@pytest.mark.parametrize("command", ["diptych --version", "diptych results --help", "glm46v_mlx --help"])
def test_a_command_takes_our_packages_in_a_folder_with_a_strangers(command: str, tmp_path: Path) -> None:
    program, *options = command.split()

    done = subprocess.run([SCRIPTS / program, *options], cwd=strangers(tmp_path), capture_output=True, text=True,
                          check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_queue_server_starts_in_a_folder_with_a_strangers_packages(tmp_path: Path) -> None:
    script = "from jobs.server import open_server\nwith open_server('a' * 32) as server: print(server.ping())"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=strangers(tmp_path), env=env, capture_output=True,
                          text=True, check=False)

    assert done.stdout == "True\n", done.stderr


def test_all_rooms_come_from_one_checkout() -> None:
    assert {Path(str(import_module(room).__file__)).parent.parent for room in ROOMS} == {ROOT}


def test_no_other_package_installed_here_has_a_room_of_the_same_name() -> None:
    owners = packages_distributions()

    assert {owner for room in ROOMS for owner in owners.get(room, [])} <= {"diptych"}


def test_pyproject_lists_every_package_folder(project: dict[str, Any]) -> None:
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".")
               for room in ROOMS for path in (ROOT / room).rglob("*.py")}

    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_the_distribution_can_not_be_uploaded(project: dict[str, Any]) -> None:
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]


def backends(lines: list[str], platform: dict[str, str]) -> list[set[str]]:
    """Return the extras of each line that installs MLX on a platform."""
    requirements = [Requirement(line) for line in lines]
    return [requirement.extras for requirement in requirements if canonicalize_name(requirement.name).startswith("mlx")
            and (requirement.marker is None or requirement.marker.evaluate(platform))]


@pytest.mark.parametrize(("platform", "found"), [(MAC, [set()]), (LINUX, [{"cpu"}])], ids=["mac", "linux"])
def test_a_plain_install_has_one_mlx_and_on_linux_its_backend_for_the_cpu(
    project: dict[str, Any], platform: dict[str, str], found: list[set[str]]
) -> None:
    assert backends(project["project"]["dependencies"], platform) == found


@pytest.mark.parametrize(("platform", "found"), [(MAC, {}), (LINUX, {"cuda": [{"cuda13"}]})], ids=["mac", "linux"])
def test_no_extra_brings_another_mlx_but_cuda_on_linux(
    project: dict[str, Any], platform: dict[str, str], found: dict[str, list[set[str]]]
) -> None:
    extras = project["project"]["optional-dependencies"]

    assert {extra: brought for extra, lines in extras.items() if (brought := backends(lines, platform))} == found


def read_pins() -> dict[str, Requirement]:
    """Return the lines of constraints.txt by package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_constraints_pin_every_package_that_setup_installs(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    chosen = [line for extra in ("dev", "parquet", "heic", "postgres") for line in extras[extra]]
    pins = read_pins()

    for requirement in map(Requirement, [*project["project"]["dependencies"], *chosen]):
        if requirement.name != "diptych":
            (pin,) = pins[canonicalize_name(requirement.name)].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), requirement


def test_constraints_name_no_place_to_load_from() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")

    assert "://" not in text
    assert not re.search(r"^\s*-|@", text, re.MULTILINE)


def test_a_plain_install_has_every_file_of_every_room(installed: Path) -> None:
    sources = {path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}

    assert sources == {path.relative_to(installed) for room in ROOMS for path in (installed / room).rglob("*.py")}


def test_a_plain_install_has_what_the_demo_needs(installed: Path) -> None:
    demo = ROOT / "store" / "demo"
    shipped = [path.relative_to(ROOT) for folder in ("weights", "photos") for path in (demo / folder).iterdir()]

    assert len(shipped) >= 18
    for path in (*shipped, Path("store/demo/pairs.txt")):
        assert (installed / path).read_bytes() == (ROOT / path).read_bytes()


def test_a_plain_install_runs_away_from_its_checkout(installed: Path, tmp_path: Path) -> None:
    script = "import cli.main; print(cli.main.__file__); cli.main.main(['runs', '--help'])"

    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)},
                          capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{installed}/cli/main.py\nUsage: ")
