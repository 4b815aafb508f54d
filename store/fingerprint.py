"""Fingerprints: whether files are the same as when a run was planned. A change between sampled blocks is not seen."""

import hashlib
import os
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Protocol

BLOCK = 64 * 2**10             # bytes
BLOCKS = 256                   # of a big file, evenly spread from its begin to its end
HEADER = 2**20                 # bytes; the header of a safetensors file of this model is about 100 KB
WHOLE = HEADER + BLOCKS * BLOCK      # bytes; files up to here are read whole


class FingerprintCache(Protocol):
    """Where the hashes of files are kept; a file that has changed in size, time or inode is not found."""

    def get(self, path: Path, stat: os.stat_result) -> str | None:
        """Return the hash that was put for this file as it is now."""

    def put(self, path: Path, stat: os.stat_result, sha256: str) -> None:
        """Keep the hash of a file, in the place of an older one."""


def fingerprint(files: Sequence[Path], cache: FingerprintCache | None = None, *, settings: str = "") -> str:
    """Return the sha256 of files and of their names relative to the folder that holds them all, in any order.

    Small files are read whole; of a big one its size, its first MiB and 256 blocks of 64 KiB at fixed places.
    `settings` is hashed with them. The folder itself does not count: a copy elsewhere has the same fingerprint.
    Raises OSError for a file that cannot be read.
    """
    paths = [file.absolute() for file in files]      # links stay links: a downloaded file's name is the link's
    folder = os.path.commonpath([path.parent for path in paths])
    lines = sorted(f"{os.path.relpath(path, folder)}\0{_file_hash(path, cache)}" for path in paths)
    return hashlib.sha256("\n".join((*lines, settings)).encode(errors="surrogateescape")).hexdigest()


def full_hash(path: Path) -> str:
    """Return the sha256 of everything in a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_hash(path: Path, cache: FingerprintCache | None) -> str:
    """Return the hash of a file, out of the cache where it has it."""
    stat = path.stat()      # before it is read: if it changes meanwhile, what is kept fits no file
    known = cache.get(path, stat) if cache else None
    if known is not None:
        return known
    with path.open("rb") as file:
        sha256 = _sampled_hash(file, stat.st_size)
    if cache:
        cache.put(path, stat, sha256)
    return sha256


def _sampled_hash(file: BufferedReader, size: int) -> str:
    """Hash a small file whole, a big one by its size, its header and its blocks."""
    if size <= WHOLE:
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256(f"{size}\n".encode())
    digest.update(file.read(HEADER))
    for number in range(BLOCKS):
        file.seek((size - BLOCK) * number // (BLOCKS - 1))
        digest.update(file.read(BLOCK))
    return digest.hexdigest()
