"""What this machine has for a run, and what to mend. It starts no server and changes nothing."""

import platform
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.environment import chip, mask_passwords, package_version
from jobs.queue import connect
from jobs.server import find_binary, running_server
from store.checkpoint import Checkpoint, open_checkpoint
from store.database import database_exists, open_database
from store.embeddings import open_embeddings
from store.errors import DiptychError, WeightsError
from store.fingerprint import full_hash
from store.runs import list_runs
from workers.device import device_name, memory_limit

GB = 1e9
TEXT_PARAMETERS = 9.40e9           # of GLM-4.6V-Flash's text decoder; the vision tower is not needed to generate
BITS = {"bf16": 16.0, "8-bit": 8.5, "4-bit": 4.5}      # a weight, scales and biases of groups of 64 included
WORKING_GB = 4.0                   # KV cache of 64 rows of 645 tokens at 40,960 bytes each (1.7), the rest activations
WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))      # SQLite versions, both included


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `mend` says what to do where something is wrong."""

    topic: str
    found: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Patient:
    """What to look at."""

    db: str
    redis: str | None
    weights: Path
    embeds: Path


def examine(patient: Patient, *, verify: bool) -> Iterator[Finding]:
    """Yield what was found, one topic after the other; with `verify` every byte of weights and embeddings is read."""
    yield from (_program(), _machine(), _device(), _sqlite())
    for topic, look in (("database", _database), ("queue", _queue), ("weights", _weights), ("embeddings", _embeddings)):
        yield _guarded(topic, look, patient)
    yield _fitting(memory_limit())
    if verify:
        yield from _verify(patient)


def _guarded(topic: str, look: Callable[[Patient], Finding], patient: Patient) -> Finding:
    try:
        return look(patient)
    except DiptychError as error:
        return Finding(topic, "not usable", str(error))


def _program() -> Finding:
    return Finding("diptych", f"{package_version('diptych')}, Python {platform.python_version()}, "
                              f"mlx {package_version('mlx')}, rq {package_version('rq')}")


def _machine() -> Finding:
    found = f"{chip()}, {platform.platform()}"
    if platform.system() == "Darwin" and platform.machine() == "x86_64" and _on_apple_silicon():
        return Finding("machine", found, "this Python is for Intel and runs in Rosetta, where MLX has no GPU: install "
                                         "an arm64 Python (brew install python@3.13) and make .venv anew")
    return Finding("machine", found)


def _on_apple_silicon() -> bool:
    command = ["/usr/sbin/sysctl", "-n", "hw.optional.arm64"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "1"


def _device() -> Finding:
    return Finding("device", f"{device_name()}, {memory_limit() / GB:.1f} GB for a model")


def _sqlite() -> Finding:
    low, high = WAL_RESET_BUG
    note = ""
    if low <= sqlite3.sqlite_version_info <= high:
        note = " (has the WAL-reset bug of 3.7.0 to 3.51.2: diptych's own lock keeps clear of it)"
    return Finding("SQLite", sqlite3.sqlite_version + note)


def _database(patient: Patient) -> Finding:
    if not database_exists(patient.db):
        return Finding("database", f"none yet at {mask_passwords(patient.db)}; enqueue makes one")
    with open_database(patient.db, create=False) as database:
        runs = list_runs(database)
        done, total = sum(run.done for run in runs), sum(run.total for run in runs)
        found = f"{database.location}, runs: {len(runs):,}, {done:,} of {total:,} pairs done"
        return Finding("database", found, _synced(database.path))


def _synced(path: Path | None) -> str | None:
    """SQLite's WAL does not work where several machines see one file."""
    parts = {part.lower() for part in path.resolve().parts} if path else set()
    cloud = parts & {"mobile documents", "dropbox", "onedrive", "google drive", "cloudstorage"}
    return f"the database lies in a synced folder ({cloud.pop()}): move it to a local one" if cloud else None


def _queue(patient: Patient) -> Finding:
    if patient.redis is not None:
        connect(patient.redis).close()
        return Finding("queue", f"{mask_passwords(patient.redis)} answers")
    running = "not running now"
    if database_exists(patient.db):
        with open_database(patient.db, create=False) as database:
            running = "running" if running_server(database.id) else running
    return Finding("queue", f"embedded server: {find_binary()}, {running}")


def _weights(patient: Patient) -> Finding:
    checkpoint = open_checkpoint(patient.weights)
    size = sum(file.stat().st_size for file in checkpoint.files)
    quantization = checkpoint.quantization
    bits = f"{quantization['bits']}-bit" if quantization else "/".join(sorted(_dtypes(checkpoint)))
    found = f"{patient.weights}: {checkpoint.model_type}, {bits}, {size / GB:.2f} GB"
    too_big = size > memory_limit()
    mend = f"larger than the {memory_limit() / GB:.1f} GB a model may use here: take a smaller quantization"
    return Finding("weights", found, mend if too_big else None)


def _dtypes(checkpoint: Checkpoint) -> set[str]:
    return {tensor.dtype for tensor in checkpoint.tensors.values()}


def _embeddings(patient: Patient) -> Finding:
    try:
        hidden = open_checkpoint(patient.weights).text.hidden_size
    except WeightsError:
        there = "is there" if patient.embeds.is_dir() else "is not there"
        return Finding("embeddings", f"{patient.embeds} {there}; not checked without usable weights")
    embeddings = open_embeddings(patient.embeds, hidden=hidden)
    n, tokens = len(embeddings.filenames), embeddings.tokens
    return Finding("embeddings", f"{patient.embeds}: {n:,} images of {tokens} x {hidden}")


def _fitting(limit: int) -> Finding:
    """Say which quantization of GLM-4.6V-Flash fits: weights of the text decoder, and WORKING_GB to work in."""
    sizes = {name: TEXT_PARAMETERS * bits / 8 / GB + WORKING_GB for name, bits in BITS.items()}
    fits = [name for name, size in sizes.items() if size <= limit / GB]
    needs = ", ".join(f"{name} {size:.0f} GB" for name, size in sizes.items())
    best = f"{fits[0]} fits" if fits else "none fits; with a small --batch-size 4-bit may"
    return Finding("GLM-4.6V-Flash", f"{best} in {limit / GB:.1f} GB (needs about: {needs})")


def _verify(patient: Patient) -> Iterator[Finding]:
    yield _guarded("every embedding", _verify_embeddings, patient)
    try:
        checkpoint = open_checkpoint(patient.weights)
    except DiptychError:
        return      # said already
    for file in checkpoint.files:
        yield _verify_file(checkpoint.folder, file)


def _verify_embeddings(patient: Patient) -> Finding:
    embeddings = open_embeddings(patient.embeds, hidden=open_checkpoint(patient.weights).text.hidden_size)
    embeddings.check_finite(range(len(embeddings.filenames)))
    return Finding("every embedding", f"finite; embeddings.bin sha256 {full_hash(patient.embeds / 'embeddings.bin')}")


def _verify_file(folder: Path, file: Path) -> Finding:
    """Hash a file, and compare with what `hf download` noted beside it: the etag of a big file is its sha256."""
    found, expected = full_hash(file), _downloaded_sha256(folder, file)
    verdict = "as downloaded" if found == expected else "nothing to compare with" if expected is None else "CHANGED"
    mend = f"expected sha256 {expected}: download the file again" if verdict == "CHANGED" else None
    return Finding(file.name, f"sha256 {found}, {verdict}", mend)


def _downloaded_sha256(folder: Path, file: Path) -> str | None:
    note = folder / ".cache" / "huggingface" / "download" / f"{file.relative_to(folder)}.metadata"
    lines = note.read_text(errors="replace").splitlines() if note.is_file() else []
    return lines[1] if len(lines) > 1 and len(lines[1]) == 64 else None

