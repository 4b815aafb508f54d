"""Fingerprints: whether files are the same as when a run was planned, and else what of them is not.

A change between sampled blocks is not seen.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

BLOCK = 64 * 2**10             # bytes
BLOCKS = 256                   # of a big file, evenly spread from its begin to its end
HEADER = 2**20                 # bytes; the header of a safetensors file of this model is about 100 KB
WHOLE = HEADER + BLOCKS * BLOCK      # bytes; files up to here are read whole
DIGITS = 12                    # of a hash, for what need not withstand an attack


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What tells how a file has changed."""

    size: int         # bytes
    header: str       # the begin of its hash; empty for a file that is no safetensors
    content: str      # the begin of the hash that the fingerprint is made of


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


def describe(files: Sequence[Path], cache: FingerprintCache | None = None) -> dict[str, FileFacts]:
    """Return the facts of files that lie in one folder, by their names. Raises OSError for one that cannot be read."""
    return {file.name: FileFacts(file.stat().st_size, _header_hash(file)[:DIGITS], _file_hash(file, cache)[:DIGITS])
            for file in files}


def differences(before: Mapping[str, FileFacts], now: Mapping[str, FileFacts]) -> list[str]:
    """Say in a few words for each file that is not as it was what of it has changed."""
    return [_difference(name, before.get(name), now.get(name))
            for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def _difference(name: str, before: FileFacts | None, now: FileFacts | None) -> str:
    if now is None:
        return f"{name} is missing"
    if before is None:
        return f"{name} is new"
    if before.size != now.size:
        return f"{name}: expected {before.size:,} bytes, found {now.size:,}"
    if before.header != now.header:
        return f"{name}: its header changed"
    return f"{name}: a sampled block changed" if now.size > WHOLE else f"{name} changed"


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


def _header_hash(path: Path) -> str:
    """Hash the header of a safetensors file, as far as the fingerprint reads it; return nothing for any other file."""
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        length = file.read(8)      # of the header that follows, little-endian
        header = file.read(min(int.from_bytes(length, "little"), HEADER))
    return hashlib.sha256(length + header).hexdigest()


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
