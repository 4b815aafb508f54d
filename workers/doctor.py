"""What this machine has for a run, and what to mend. It starts no server and changes nothing."""

import math
import platform
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from jobs.environment import chip, mask_passwords, package_version
from jobs.memory import Decoder, Demand, Needs, describe_plan, plan_memory, share_out
from jobs.prompt import build_prompt
from jobs.queue import connect
from jobs.server import find_binary, running_server
from jobs.sizes import format_size
from jobs.tokenizer import load_tokenizer
from store.checkpoint import Checkpoint, TextConfig, open_checkpoint
from store.database import database_exists, open_database
from store.embeddings import open_embeddings
from store.errors import DiptychError, EmbeddingsError, WeightsError
from store.fingerprint import full_hash
from store.records import Sampling
from store.runs import list_runs
from store.weights import text_tensors
from workers.device import device_name, memory_limit

BITS = {"bf16": 16.0, "8-bit": 8.5, "4-bit": 4.5}      # a weight, scales and biases of groups of 64 included
FLASH = TextConfig(                # GLM-4.6V-Flash's config.json
    hidden_size=4096, intermediate_size=13696, n_layers=40, n_heads=32, n_kv_heads=2, head_dim=128, vocab_size=151552,
    rms_norm_eps=1e-5, rope_theta=500000.0, rotary_dims=64, mrope_section=(8, 12, 12), tie_word_embeddings=False,
    max_positions=131072,
)
FLASH_DEMAND = Demand(prompt_tokens=545, prefix_tokens=261, sampling=Sampling())      # of its template, 256 an image
SYNCED = ("mobile documents", "cloudstorage", "dropbox", "onedrive", "google drive")      # or what a name begins with
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
    prompt: str          # of the run that memory is planned for
    batch_size: int      # of its jobs


def examine(patient: Patient, *, verify: bool) -> Iterator[Finding]:
    """Yield what was found, one topic after the other; with `verify` every byte of weights and embeddings is read."""
    yield from (_program(), _machine(), _device(), _sqlite())
    looks = (("database", _database), ("queue", _queue), ("weights", _weights), ("embeddings", _embeddings),
             ("memory plan", _memory_plan))
    for topic, look in looks:
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
    return Finding("device", f"{device_name()}, {format_size(memory_limit())} for a model")


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
    cloud = next((name for name in SYNCED for part in parts if f"{part} ".startswith(f"{name} ")), None)
    return f"the database lies in a synced folder ({cloud}): move it to a local one" if cloud else None


def _queue(patient: Patient) -> Finding:
    if patient.redis is not None:
        with connect(patient.redis) as connection:
            return Finding("queue", f"{mask_passwords(patient.redis)} answers", _forgetful(connection))
    running = "not running now"
    if database_exists(patient.db):
        with open_database(patient.db, create=False) as database:
            running = "running" if running_server(database.id) else running
    return Finding("queue", f"embedded server: {find_binary()}, {running}")


def _forgetful(connection: redis.Redis) -> str | None:
    """Say how a Redis of the user's own may lose tickets; results are safe, and `diptych resume` makes tickets anew."""
    memory = connection.info("memory")
    if memory["maxmemory"] and memory["maxmemory_policy"] != "noeviction":
        policy = memory["maxmemory_policy"]
        return f"it may drop jobs when its memory is full ({policy}): set maxmemory-policy noeviction"
    if not connection.info("persistence")["aof_enabled"]:
        return "it loses jobs when it restarts: set appendonly yes, or run `diptych resume` after each restart"
    return None


def _weights(patient: Patient) -> Finding:
    checkpoint = open_checkpoint(patient.weights)
    size = sum(file.stat().st_size for file in checkpoint.files)
    quantization = checkpoint.quantization
    bits = f"{quantization['bits']}-bit" if quantization else "/".join(sorted(_dtypes(checkpoint)))
    return Finding("weights", f"{patient.weights}: {checkpoint.model_type}, {bits}, {format_size(size)}")


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


def _memory_plan(patient: Patient) -> Finding:
    """Plan a run with these weights and embeddings, and the defaults of all else."""
    try:
        checkpoint = open_checkpoint(patient.weights)
    except WeightsError:
        return Finding("memory plan", "none without usable weights")
    grid, images = _images(patient, checkpoint)
    prompt = build_prompt(checkpoint, load_tokenizer(checkpoint), patient.prompt, thinking=False, grid=grid)
    sampling = Sampling()
    plan = plan_memory(checkpoint, prompt, sampling, memory_limit(), batch_size=patient.batch_size, images=images)
    what = f"for {patient.batch_size} pairs a job, the default prompt and answers of {sampling.max_tokens} tokens"
    return Finding("memory plan", "\n  ".join([what, *describe_plan(plan)]))


def _images(patient: Patient, checkpoint: Checkpoint) -> tuple[tuple[int, int], int]:
    """Return the grid of an image's embeddings and how many images there are; without embeddings, as many as pairs."""
    try:
        embeddings = open_embeddings(patient.embeds, hidden=checkpoint.text.hidden_size)
    except EmbeddingsError:
        side = checkpoint.image.side // checkpoint.image.unit
        return (side, side), patient.batch_size
    return embeddings.grid, len(embeddings.filenames)


def _fitting(limit: int) -> Finding:
    """Say which quantization of GLM-4.6V-Flash fits, and how many pairs side by side."""
    parameters = sum(math.prod(shape) for shape in text_tensors(FLASH).values())
    needs = {name: Needs(Decoder(FLASH, int(parameters * bits / 8), item=2), FLASH_DEMAND)
             for name, bits in BITS.items()}
    fits = ", ".join(f"{name} {_fit(needed, limit)}" for name, needed in needs.items())
    return Finding("GLM-4.6V-Flash", f"in {format_size(limit)}: {fits}")


def _fit(needs: Needs, limit: int) -> str:
    if needs.least_limit > limit:
        return f"needs {format_size(needs.least_limit, up=True)}"
    return f"{share_out(needs, limit).rows:,} pairs side by side"


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

