"""Embeddings of images on disk: embeddings.bin, filenames.txt and embeddings.json, read and written. No database."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from store.errors import EmbeddingsError
from store.fingerprint import FingerprintCache, fingerprint

BIN, NAMES, INFO = "embeddings.bin", "filenames.txt", "embeddings.json"
TOKENS, GRID = 256, (16, 16)      # of a folder without embeddings.json, as the ancestor wrote it
_CHANGING = "embeddings.json.changing"
_ITEM = 2                         # bytes of a float16
_EXPONENT = 0x7C00                # of a float16: all ones is infinity or not a number
_BLOCK = 32 * 2**20               # bytes that are checked at once


@dataclass(frozen=True)
class Embeddings:
    """A checked folder of embeddings; the rows are mapped, not read."""

    folder: Path
    filenames: tuple[str, ...]
    tokens: int                   # of an image
    hidden: int
    root: str | None              # the folder of images, absolute, where it is known
    grid: tuple[int, int]         # rows, columns; their product is `tokens`
    made_with: str | None         # the fingerprint of the checkpoint that made them, where it is known

    @cached_property
    def rows(self) -> NDArray[np.float16]:
        """Map the file: [images, tokens, hidden], read-only."""
        shape = (len(self.filenames), self.tokens, self.hidden)
        return np.memmap(self.folder / BIN, np.dtype("<f2"), "r", shape=shape)

    def read(self, index: int) -> NDArray[np.float16]:
        """Return a copy of one image's embedding, [tokens, hidden]. Raises EmbeddingsError when it is not finite."""
        self._check_range([index])
        row = np.array(self.rows[index])
        if _not_finite(row[None]).any():
            raise self._broken(index)
        return row

    def check_finite(self, indices: Iterable[int]) -> None:
        """Raise EmbeddingsError for the first of these images whose embedding is not finite; each is read once."""
        wanted = sorted(set(indices))
        self._check_range(wanted)
        size = max(1, _BLOCK // (self.tokens * self.hidden * _ITEM))
        for start in range(0, len(wanted), size):
            block = wanted[start : start + size]
            broken = _not_finite(self.rows[block])
            if broken.any():
                raise self._broken(block[int(broken.argmax())])

    def fingerprint(self, cache: FingerprintCache | None = None) -> str:
        """Return what tells these embeddings from others: content, names and grid, wherever the folder lies."""
        files = (self.folder / BIN, self.folder / NAMES)
        return fingerprint(files, cache, settings=f"tokens {self.tokens}, hidden {self.hidden}, grid {self.grid}")

    def _check_range(self, indices: Sequence[int]) -> None:
        """Raise EmbeddingsError for an index that no image has."""
        for index in indices:
            if not 0 <= index < len(self.filenames):
                last = len(self.filenames) - 1
                raise EmbeddingsError(f"{self.folder}: expected an index of 0 to {last}, found {index}")

    def _broken(self, index: int) -> EmbeddingsError:
        """Return the error for an image with a value that is not finite."""
        return EmbeddingsError(
            f"{self.folder / BIN}: expected finite numbers, found infinity or NaN for image {index} "
            f"({self.filenames[index]}); run `diptych precompute` again"
        )


def open_embeddings(folder: Path, *, hidden: int) -> Embeddings:
    """Open a folder of embeddings for a checkpoint of this width. Raises EmbeddingsError for whatever does not fit."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise EmbeddingsError(f"{folder}: expected a folder of embeddings, found {found}; {_make(folder)}")
    info = _read_info(folder / INFO, hidden)
    if info["hidden"] != hidden:
        raise EmbeddingsError(
            f"{folder}: expected embeddings {hidden} wide, as the checkpoint is, found {info['hidden']} ({INFO}); "
            "give the --weights that made them, or run `diptych precompute` with these"
        )
    filenames = _read_filenames(folder / NAMES, info["filenames_sha256"])
    _check_size(folder / BIN, len(filenames), info["tokens"], hidden)
    return Embeddings(folder, filenames, info["tokens"], hidden, info["root"], info["grid"], info["fingerprint"])


class EmbeddingsWriter:
    """Writes a folder of embeddings: a context manager that replaces the old files at its end, or leaves them alone."""

    def __init__(
        self, folder: Path, tokens: int, hidden: int, *, grid: tuple[int, int], root: str | None = None,
        fingerprint: str | None = None, preprocessing: dict[str, Any] | None = None,
    ) -> None:
        """Say what will be written; `fingerprint` is the checkpoint's. Nothing is touched before `with`."""
        self._folder = folder
        self._shape = (tokens, hidden)
        self._info = {"tokens": tokens, "hidden": hidden, "grid": list(grid), "root": root, "fingerprint": fingerprint,
                      "preprocessing": preprocessing or {}}
        self._names: list[str] = []
        self._bin: BinaryIO
        self._lock: int

    def __enter__(self) -> Self:
        """Make the folder, and the file that grows. Raises EmbeddingsError when another process writes here."""
        with _explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY)
        try:
            _lock(self._lock, self._folder)
            with _explained(self._folder):
                self._bin = self._part(BIN).open("wb")
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def append(self, names: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Add images with their embeddings, [n, tokens, hidden]: all, or none where it raises EmbeddingsError."""
        assert rows.shape == (len(names), *self._shape), f"{rows.shape} is not {(len(names), *self._shape)}"
        for name in names:
            _check_name(name)
        with np.errstate(over="ignore"):      # beyond float16 becomes infinity, which is refused below
            halves = np.ascontiguousarray(rows, "<f2")
        broken = _not_finite(halves)
        if broken.any():
            name = names[int(broken.argmax())]
            raise EmbeddingsError(f"{name}: expected finite numbers within float16, found infinity or NaN")
        with _explained(self._folder):
            self._bin.write(halves.data)
        self._names += names

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Replace the files if all went well; take the temporary ones away in any case."""
        try:
            if kind is None:
                with _explained(self._folder):
                    self._finish()
        finally:
            self._bin.close()
            for name in (BIN, NAMES, INFO, _CHANGING):
                self._part(name).unlink(missing_ok=True)
            os.close(self._lock)

    def _finish(self) -> None:
        """Put the new files into place, after all of them are on disk."""
        if not self._names:
            raise EmbeddingsError(f"{self._folder}: expected at least one image, found none; nothing was written")
        names = "".join(f"{name}\n" for name in self._names).encode()
        info = self._info | {"filenames_sha256": hashlib.sha256(names).hexdigest(), "complete": True}
        _flush(self._bin)
        self._write(NAMES, names)
        self._write(INFO, json.dumps(info, indent=2).encode() + b"\n")
        self._write(_CHANGING, json.dumps(info | {"complete": False}).encode())
        # While `complete` is false no reader takes the folder: old and new files may stand side by side.
        self._replace(INFO, by=_CHANGING)
        self._replace(BIN, by=BIN)
        self._replace(NAMES, by=NAMES)
        self._replace(INFO, by=INFO)

    def _write(self, name: str, content: bytes) -> None:
        """Write one small temporary file to disk."""
        with self._part(name).open("wb") as file:
            file.write(content)
            _flush(file)

    def _replace(self, name: str, *, by: str) -> None:
        """Give a temporary file its name, on disk before anything else happens."""
        self._part(by).replace(self._folder / name)
        os.fsync(self._lock)

    def _part(self, name: str) -> Path:
        """Return the temporary file beside a file."""
        return self._folder / f".{name}.part"


def _not_finite(rows: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Say of each of [n, tokens, hidden] whether a value is infinite or not a number, by the bits."""
    return np.asarray((rows.view(np.uint16) & _EXPONENT).max(axis=(1, 2)) == _EXPONENT)


def _read_info(path: Path, hidden: int) -> dict[str, Any]:
    """Return what embeddings.json says, checked; without the file, what the ancestor's folders are."""
    ancestor = {"tokens": TOKENS, "hidden": hidden, "grid": list(GRID), "complete": True}
    try:
        info: Any = json.loads(path.read_bytes()) if path.exists() else ancestor
    except (ValueError, RecursionError) as error:
        raise _bad_info(path, "JSON", str(error)) from error
    except OSError as error:
        raise _bad_info(path, "a file that can be read", str(error.strerror)) from error
    if not isinstance(info, dict):
        raise _bad_info(path, "an object", json.dumps(info)[:100])
    if info.get("complete", True) is not True:
        raise _bad_info(path, "a complete folder", "that precompute was interrupted while it replaced the files")
    for key, (expected, fits) in _FIELDS.items():
        if not fits(info.setdefault(key, None)):
            raise _bad_info(path, f"{key} to be {expected}", json.dumps(info[key])[:100])
    rows, columns = info["grid"]
    if rows * columns != info["tokens"]:
        raise _bad_info(path, f"a grid of {info['tokens']} tokens", f"{rows} x {columns}")
    return info | {"grid": (rows, columns)}


def _is_size(value: object) -> bool:
    """Say whether a value is a whole number of at least 1 that an array may have as its side."""
    return type(value) is int and 1 <= value < 2**31


def _is_grid(value: object) -> bool:
    """Say whether a value is rows and columns."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))


def _is_text(value: object) -> bool:
    """Say whether a value is a text, or absent."""
    return value is None or isinstance(value, str)


_FIELDS = {
    "tokens": ("a whole number, 1 or more", _is_size),
    "hidden": ("a whole number, 1 or more", _is_size),
    "grid": ("two whole numbers, rows and columns", _is_grid),
    "root": ("a text or null", _is_text),
    "fingerprint": ("a text or null", _is_text),
    "filenames_sha256": ("a text or null", _is_text),
}


def _bad_info(path: Path, expected: str, found: str) -> EmbeddingsError:
    """Return the error for an embeddings.json that does not fit."""
    return EmbeddingsError(f"{path}: expected {expected}, found {found}; {_make(path.parent)}")


def _read_filenames(path: Path, sha256: str | None) -> tuple[str, ...]:
    """Return the images' names, one a line."""
    content = _read_bytes(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise EmbeddingsError(f"{path}: expected the names that {INFO} was written with, found others; "
                              f"put the file back as it was, or {_make(path.parent)}")
    try:
        lines = content.decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise EmbeddingsError(f"{path}, line {line}: expected UTF-8, found {error.object[error.start]:#04x}") from error
    names = tuple(line.removesuffix("\r") for line in lines)
    for number, name in enumerate(names, 1):
        if not name or "\0" in name:
            found = "U+0000" if name else "an empty line" if content.strip() else "an empty file"
            raise EmbeddingsError(f"{path}, line {number}: expected the path of an image, found {found}")
    return names


def _read_bytes(path: Path) -> bytes:
    """Return what is in a file that has to be there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EmbeddingsError(f"{path}: expected a file, found {error.strerror}; {_make(path.parent)}") from error


def _check_size(path: Path, images: int, tokens: int, hidden: int) -> None:
    """Raise EmbeddingsError unless embeddings.bin has the bytes that the names and the sizes make."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise EmbeddingsError(f"{path}: expected a file, found {error.strerror}; {_make(path.parent)}") from error
    expected = images * tokens * hidden * _ITEM
    if size != expected:
        raise EmbeddingsError(
            f"{path}: expected {images} x {tokens} x {hidden} x {_ITEM} = {expected:,} bytes (images x tokens x hidden "
            f"x float16), found {size:,}; was it made for another checkpoint, or cut off?"
        )


def _check_name(name: str) -> None:
    """Raise EmbeddingsError for a name that filenames.txt cannot hold on one line."""
    if not name or any(character in name for character in "\n\r\0"):
        raise EmbeddingsError(f"{name!r}: expected a name without newlines, found one; rename the image")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise EmbeddingsError(f"{name!r}: expected a name in UTF-8, found other bytes; rename the image") from error


def _make(folder: Path) -> str:
    """Say how embeddings are made."""
    return f"`diptych precompute IMAGES --output {folder}` makes them"


def _flush(file: BinaryIO) -> None:
    """Bring what was written to disk."""
    file.flush()
    os.fsync(file.fileno())


def _lock(descriptor: int, folder: Path) -> None:
    """Lock the folder against a second writer, where the file system has locks; the lock goes with its holder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EmbeddingsError(
            f"{folder}: expected a folder that nobody writes to, found another precompute at work; wait for its end"
        ) from None
    except OSError:
        pass      # a network share may have none; two writers at once are the user's to avoid there


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into an EmbeddingsError."""
    try:
        yield
    except OSError as error:
        raise EmbeddingsError(
            f"{folder}: expected a folder that can be written, found {error.strerror}; "
            "the files that were there are kept"
        ) from error
