"""A session: which files it works with, and what it says of those that are no longer a run's."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import WEIGHTS
from safetensors.numpy import save_file

from jobs.enqueue import Request, plan_run, record_run
from jobs.inputs import Settings
from store.database import Database, open_database
from store.errors import DiptychError, EmbeddingsError, WeightsError
from store.records import Run, Sampling
from store.runs import find_run
from workers.report import Reporter
from workers.session import Session


@pytest.fixture
def database(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database in a folder whose weights may be changed."""
    (workspace / "vision_weights").unlink()
    shutil.copytree(WEIGHTS, workspace / "vision_weights")
    monkeypatch.chdir(workspace)
    with open_database("results.db", create=True) as opened:
        yield opened


@pytest.fixture
def run(database: Database) -> Run:
    settings = Settings(Path("embeddings_512"), Path("vision_weights"), "Which?", False, Sampling())
    return record_run(database, plan_run(Request(settings, Path("pairs.txt"), None, 5, 3, None, ())))


def prepare(database: Database, run: Run, *, weights: Path | None = None) -> None:
    Session(database, weights=weights, embeds=None, reporter=Reporter()).prepare(run)


def append(name: str, more: bytes) -> Callable[[], object]:
    """Return a function that makes a file longer."""
    def change() -> None:
        Path(name).write_bytes(Path(name).read_bytes() + more)

    return change


def replace(name: str, old: bytes, new: bytes) -> Callable[[], object]:
    """Return a function that changes some bytes of a file."""
    def change() -> None:
        content = Path(name).read_bytes()
        assert content.count(old) >= 1
        Path(name).write_bytes(content.replace(old, new, 1))

    return change


def flip(name: str, place: int) -> Callable[[], object]:
    """Return a function that changes a byte of a file."""
    def change() -> None:
        content = bytearray(Path(name).read_bytes())
        content[place] ^= 0x40
        Path(name).write_bytes(content)

    return change


def add_weights() -> None:
    save_file({"more": np.zeros(2, np.float32)}, "vision_weights/more.safetensors")


EMBEDDINGS, NAMES = "embeddings_512/embeddings.bin", "embeddings_512/filenames.txt"
CONFIG, MODEL = "vision_weights/config.json", "vision_weights/model.safetensors"
CHANGES: list[tuple[Callable[[], object], type[DiptychError], str]] = [
    (append(EMBEDDINGS, b"\0\0"), EmbeddingsError, "embeddings.bin: expected 131,072 bytes, found 131,074;"),
    (flip(EMBEDDINGS, 100), EmbeddingsError, "embeddings.bin changed;"),
    (flip(NAMES, 0), EmbeddingsError, "filenames.txt changed;"),
    (lambda: Path(NAMES).write_text("a\nb\n"), EmbeddingsError, "filenames.txt: expected 32 bytes, found 4;"),
    (flip(MODEL, -5), WeightsError, "model.safetensors changed;"),
    (replace(MODEL, b'"pt"', b'"np"'), WeightsError, "model.safetensors: its header changed;"),
    (flip(MODEL, 12), WeightsError, "model.safetensors: its header changed;"),      # no JSON any more
    (append(CONFIG, b"\n"), WeightsError, "config.json: expected 1,603 bytes, found 1,604;"),
    (replace(CONFIG, b"{", b"["), WeightsError, "config.json changed;"),      # cannot be read
    (flip("vision_weights/tokenizer.json", 0), WeightsError, "tokenizer.json changed;"),
    (Path("vision_weights/preprocessor_config.json").unlink, WeightsError, "preprocessor_config.json is missing;"),
    (lambda: [flip(CONFIG, 0)(), Path("vision_weights/tokenizer.json").unlink()], WeightsError, "config.json changed;"),
    (add_weights, WeightsError, "more.safetensors is new;"),
    (lambda: [append(f"vision_weights/{name}", b"\n")() for name in
              ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")],
     WeightsError, "preprocessor_config.json: expected 364 bytes, found 365, and 1 more;"),
]


@pytest.mark.parametrize(("change", "error", "expected"), CHANGES, ids=[expected for _, _, expected in CHANGES])
def test_a_file_that_has_changed_is_refused_with_what_changed_until_it_is_back(
    database: Database, run: Run, change: Callable[[], object], error: type[DiptychError], expected: str
) -> None:
    what = "the checkpoint is not the one" if error is WeightsError else "the embeddings are not those"
    for folder in ("vision_weights", "embeddings_512"):
        shutil.copytree(folder, f"kept/{folder}")

    change()
    with pytest.raises(error) as refused:
        prepare(database, run)

    assert f"{what} that run {run.id} was enqueued with: " in str(refused.value)
    assert expected in str(refused.value)
    assert "put the files back" in str(refused.value)
    shutil.rmtree("vision_weights")
    shutil.rmtree("embeddings_512")
    for folder in ("vision_weights", "embeddings_512"):
        shutil.move(f"kept/{folder}", folder)
    prepare(database, run)


def test_a_run_of_an_older_version_says_that_its_files_have_changed(database: Database, run: Run) -> None:
    with sqlite3.connect("results.db") as connection:
        connection.execute("""update runs set environment = '{"python": "3.11.7"}'""")
    connection.close()
    older = find_run(database, run.id)
    prepare(database, older)

    flip(MODEL, -5)()

    with pytest.raises(WeightsError, match=f"not the one .*: expected fingerprint {run.model_fingerprint[:12]}, found"):
        prepare(database, older)


def test_files_that_are_not_there_are_named_as_for_any_run(database: Database, run: Run) -> None:
    Path("empty").mkdir()

    with pytest.raises(WeightsError, match=r"empty: expected config\.json, found an empty folder"):
        prepare(database, run, weights=Path("empty"))
    shutil.rmtree("embeddings_512")
    with pytest.raises(EmbeddingsError, match="embeddings_512: expected a folder of embeddings, found nothing"):
        prepare(database, run)


def test_what_a_run_records_of_its_files_is_small(run: Run) -> None:
    assert run.environment.keys() >= {"mlx", "python", "weights_files", "embeddings_files"}
    assert all(len(value) < 500 for value in run.environment.values())
    assert str(Path.cwd()) not in str(run.environment)
