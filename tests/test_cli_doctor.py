"""What `doctor` finds, and what it says to mend."""

import hashlib
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import WEIGHTS
from realvalkey import Valkey

from cli.main import diptych, run


@pytest.fixture(autouse=True)
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (workspace / "vision_weights").unlink()
    shutil.copytree(WEIGHTS, workspace / "vision_weights")
    monkeypatch.chdir(workspace)
    return workspace


def test_a_machine_with_all_in_place_has_nothing_to_mend(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run(diptych, ["doctor"]) == 0

    out = capsys.readouterr().out
    for topic in ("device", "SQLite", "database", "queue", "weights", "embeddings", "memory plan", "GLM-4.6V-Flash"):
        assert f"{topic}: " in out
    assert "4 images of 256 x 64" in out
    assert not (home / ".diptych").exists()
    assert not Path("results.db").exists()


def test_what_is_missing_is_said_with_the_way_to_mend_it(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("vision_weights")

    assert run(diptych, ["doctor"]) == 1

    out = capsys.readouterr().out
    assert "to mend: vision_weights: expected a folder of weights" in out
    assert "embeddings_512 is there; not checked without usable weights" in out
    assert "memory plan: none without usable weights" in out
    assert "1 to mend" in out


def test_the_memory_of_a_run_is_planned_with_these_weights_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(diptych, ["doctor"]) == 0

    out = capsys.readouterr().out
    assert "memory plan: for 64 pairs a job, the default prompt and answers of 100 tokens\n  weights  " in out
    assert re.search(r"\n  prefix cache +[0-9.]+ KB  4 of ", out)      # of 4 images
    assert "64 of 382.9 KB, a whole job side by side" in out


def test_a_plan_is_made_without_embeddings_too(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("embeddings_512")

    assert run(diptych, ["doctor"]) == 1

    out = capsys.readouterr().out
    assert "64 of 382.9 KB, a whole job side by side" in out
    assert "1 to mend" in out


def test_weights_that_do_not_fit_are_to_mend_and_what_would_fit_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import doctor

    monkeypatch.setattr(doctor, "memory_limit", lambda: 500_000)

    assert run(diptych, ["doctor"]) == 1

    out = capsys.readouterr().out
    assert "memory plan: not usable\n  to mend: memory: expected a limit of at least" in out
    assert "GLM-4.6V-Flash: in 500.0 KB: bf16 needs 19.9 GB, 8-bit needs 10.7 GB, 4-bit needs 5.7 GB" in out


def test_the_quantizations_that_fit_are_named_with_the_pairs_side_by_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import doctor

    monkeypatch.setattr(doctor, "memory_limit", lambda: 17_179_869_184)      # Metal's two thirds of 24 GiB

    assert run(diptych, ["doctor"]) == 0

    found = re.search(r"bf16 needs 19.9 GB, 8-bit (\d+) pairs side by side, 4-bit (\d+) pairs",
                      capsys.readouterr().out)
    assert found is not None
    assert 64 <= int(found[1]) < int(found[2])


def test_a_redis_that_does_not_answer_is_to_mend_and_its_password_is_not_shown(
    capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(diptych, ["doctor", "--redis", "redis://:hushhush@127.0.0.1:1/0"]) == 1

    out = capsys.readouterr().out
    assert "127.0.0.1:1" in out
    assert "hushhush" not in out


def test_verify_finds_a_file_that_is_not_as_it_was_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    notes = Path("vision_weights/.cache/huggingface/download")
    notes.mkdir(parents=True)
    weights = Path("vision_weights/model.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (notes / "model.safetensors.metadata").write_text(f"main\n{digest}\n0.0\n")

    assert run(diptych, ["doctor", "--verify"]) == 0
    assert f"model.safetensors: sha256 {digest}, as downloaded" in capsys.readouterr().out

    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert run(diptych, ["doctor", "--verify"]) == 1
    assert f"expected sha256 {digest}: download the file again" in capsys.readouterr().out


def test_verify_reads_every_embedding(capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(Path("embeddings_512/embeddings.bin").read_bytes())
    data[-2:] = b"\x00\x7c"      # infinity
    Path("embeddings_512/embeddings.bin").write_bytes(data)

    assert run(diptych, ["doctor"]) == 0
    assert run(diptych, ["doctor", "--verify"]) == 1
    assert "003.png" in capsys.readouterr().out


def test_a_database_in_a_synced_folder_is_to_move(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    from store.database import open_database

    folder = here / "Dropbox"
    folder.mkdir()
    with open_database(str(folder / "results.db"), create=True):
        pass

    assert run(diptych, ["doctor", "--db", str(folder / "results.db")]) == 1
    assert "synced folder (dropbox)" in capsys.readouterr().out


@pytest.mark.parametrize("name", [
    "OneDrive - A Firm", "Dropbox (Personal)", "Library/Mobile Documents/com~apple~CloudDocs",
    "Library/CloudStorage/GoogleDrive-me@example.invalid/My Drive", "Google Drive",
])
def test_every_cloud_is_known_by_the_names_of_its_folders(
    capsys: pytest.CaptureFixture[str], here: Path, name: str
) -> None:
    from store.database import open_database

    (here / name).mkdir(parents=True)
    with open_database(str(here / name / "results.db"), create=True):
        pass

    assert run(diptych, ["doctor", "--db", str(here / name / "results.db")]) == 1
    assert "synced folder" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "mend"), [
    ((), None),
    (("--appendonly", "no"), "set appendonly yes"),
    (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "set maxmemory-policy noeviction"),
    (("--maxmemory", "100mb"), None),
])
def test_a_redis_that_may_lose_jobs_is_to_mend(
    capsys: pytest.CaptureFixture[str], here: Path, options: tuple[str, ...], mend: str | None
) -> None:
    server = Valkey(*options)
    server.start()

    run(diptych, ["doctor", "--redis", server.url])
    server.remove()

    out = capsys.readouterr().out
    assert "answers" in out
    assert (mend in out) if mend else "set maxmemory" not in out and "set appendonly" not in out


@pytest.mark.parametrize(("version", "has_bug"), [
    ((3, 6, 99), False), ((3, 7, 0), True), ((3, 51, 2), True), ((3, 51, 3), False),
])
def test_an_sqlite_that_can_lose_the_reset_of_its_log_is_named_and_not_to_mend(
    version: tuple[int, ...], has_bug: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import doctor

    shown = ".".join(map(str, version))
    # Patched in this module alone: SQLAlchemy, too, goes by the version.
    monkeypatch.setattr(doctor, "sqlite3", SimpleNamespace(sqlite_version=shown, sqlite_version_info=version))

    assert run(diptych, ["doctor"]) == 0

    (line,) = re.findall(r"^SQLite: (.*)", capsys.readouterr().out, re.MULTILINE)
    assert line.startswith(shown)
    assert ("WAL-reset bug" in line) == has_bug
