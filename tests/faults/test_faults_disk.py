"""Disks that are full, files that are read-only, moved or changed: a clear error, and the job stays to be done."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DIPTYCH
from night import LONG, Night, check
from realvalkey import Valkey

PAIRS = 640 if LONG else 160
ROOM = 64      # KiB that the results may still take
FULL = 'ulimit -f "$1"; shift; exec "$@"'
# Root is not held to permissions; without this capability (CAP_DAC_OVERRIDE) it is.
AS_ANYBODY = """
import ctypes, os, sys
if os.getuid() == 0:
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def night(workspace: Path) -> Iterator[Night]:
    server = Valkey()
    server.start()
    made = Night(workspace, redis=server.url)
    made.write_pairs(PAIRS)
    yield made
    server.remove()


def test_a_full_disk_ends_the_worker_and_costs_nothing(night: Night) -> None:
    run_id = night.enqueue()
    blocks = (night.folder / night.database).stat().st_size // 512 + 2 * ROOM      # of 512 bytes, as POSIX has it

    with night.worker("--burst", program=("sh", "-c", FULL, "sh", str(blocks), str(DIPTYCH))) as worker:
        assert worker.wait(timeout=120) == 2, night.log
    assert "results.db: " in night.log
    assert "make room on the disk and try again; nothing that was recorded is lost" in night.log
    before = night.done(run_id)
    night.finish()

    assert 0 < before < PAIRS
    check(night, run_id, "disk full while results are written", times=1)


def test_a_database_that_is_read_only_ends_the_worker_and_costs_nothing(night: Night) -> None:
    run_id = night.enqueue()
    files = [night.folder, night.folder / night.database]
    for file in files:
        file.chmod(0o555)

    with night.worker("--burst", program=(sys.executable, "-c", AS_ANYBODY, str(DIPTYCH))) as worker:
        assert worker.wait(timeout=120) == 2, night.log
    for file in files:
        file.chmod(0o755)
    assert "check the permissions" in night.log
    night.finish()

    check(night, run_id, "database read-only", times=1)


def test_a_database_that_is_moved_under_a_worker_ends_it_and_costs_nothing(night: Night) -> None:
    run_id = night.enqueue()
    database, elsewhere = night.folder / night.database, night.folder / "elsewhere.db"

    with night.worker("--burst") as worker:
        night.wait_for_results(run_id)
        database.rename(elsewhere)
        assert worker.wait(timeout=120) == 2, night.log
    assert "expected the file that was opened, found that it was moved, deleted or replaced; put it back" in night.log
    assert not database.exists()
    elsewhere.rename(database)
    night.finish()

    check(night, run_id, "database moved under a worker", times=1)


def flip(path: Path, place: int) -> None:
    """Change a byte of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))


def append(path: Path, more: bytes) -> None:
    """Make a file longer."""
    with path.open("ab") as file:
        file.write(more)


# What is done to a folder, and what is said of it: the file's name, and what of it has changed.
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "embeddings, size": (lambda folder: append(folder / "embeddings_512" / "embeddings.bin", b"\0" * 2),
                         "enqueued with: embeddings.bin: expected 131,072 bytes, found 131,074;"),
    "embeddings, a block": (lambda folder: flip(folder / "embeddings_512" / "embeddings.bin", 101),
                            "enqueued with: embeddings.bin changed;"),
    "embeddings, names": (lambda folder: (folder / "embeddings_512" / "filenames.txt").write_text("a\nb\nc\nd\n"),
                          "enqueued with: filenames.txt: expected 32 bytes, found 8;"),
    "weights, configuration": (lambda folder: append(folder / "vision_weights" / "config.json", b"\n"),
                               "enqueued with: config.json: expected 1,603 bytes, found 1,604;"),
    "weights, a block": (lambda folder: flip(folder / "vision_weights" / "model.safetensors", 10_000),
                         "enqueued with: model.safetensors changed;"),
    "weights, header": (lambda folder: flip(folder / "vision_weights" / "model.safetensors", 20),
                        "enqueued with: model.safetensors: its header changed;"),
}
WHEN = ("before any work", "between interrupt and resume")
ALL = [(name, when) for name in CHANGES for when in WHEN]
CASES = ALL if LONG else ALL[::3]      # each of them in test_workers_session.py


@pytest.mark.parametrize(("name", "when"), CASES)
def test_files_that_have_changed_are_refused_and_named_until_they_are_back(night: Night, name: str, when: str) -> None:
    folder, kept = night.folder, night.folder / "kept"
    weights = (folder / "vision_weights").resolve()
    (folder / "vision_weights").unlink()
    shutil.copytree(weights, folder / "vision_weights")
    run_id = night.enqueue()
    if when != "before any work":
        with night.worker() as worker:
            night.wait_for_results(run_id)
            worker.kill()
    before = night.done(run_id)
    for part in ("embeddings_512", "vision_weights"):
        shutil.copytree(folder / part, kept / part)

    change, said = CHANGES[name]
    change(folder)
    resumed = night.run("resume")
    refused = night.run("worker", "--burst")

    assert resumed.returncode in (0, 1)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert f"`diptych cancel {run_id}` drops the run" in refused.stderr
    assert night.done(run_id) == before

    for part in ("embeddings_512", "vision_weights"):
        shutil.rmtree(folder / part)
        shutil.copytree(kept / part, folder / part)
    night.finish()
    check(night, run_id, f"changed {when}: {name}", times=1)
