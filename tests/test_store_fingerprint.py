"""Fingerprints: what they see of a change, and when a file is not read again."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_samples import create_database

from store.cache import DatabaseCache
from store.fingerprint import BLOCK, HEADER, WHOLE, describe, differences, fingerprint, full_hash

BIG = WHOLE + 40 * 2**20      # bytes; a file of which only blocks are read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two small files."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DatabaseCache]:
    with create_database(tmp_path) as db:
        yield DatabaseCache(db)


def change(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_same_files_elsewhere_have_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "a copy" / "of the weights")

    assert fingerprint(files(folder)) == fingerprint(files(copy)) == fingerprint(files(copy)[::-1])
    assert len(fingerprint(files(folder))) == 64


def test_a_relative_path_is_the_same_as_an_absolute_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    assert fingerprint([Path("config.json"), Path("model.bin")]) == fingerprint(files(folder))


def test_content_name_number_and_settings_of_files_count(folder: Path) -> None:
    seen = [fingerprint(files(folder)), fingerprint(files(folder), settings="grid 4 x 4")]
    change(folder / "model.bin", 999, b"y")
    seen.append(fingerprint(files(folder)))
    (folder / "model.bin").rename(folder / "model2.bin")
    seen.append(fingerprint(files(folder)))
    (folder / "extra").mkdir()
    (folder / "extra" / "config.json").write_text("{}")
    seen.append(fingerprint(files(folder)))
    (folder / "extra" / "config.json").rename(folder / "extra-config.json")
    seen.append(fingerprint(files(folder)))

    assert len(set(seen)) == len(seen)


def test_a_link_counts_under_its_own_name(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(files(folder))
    (folder / "model.bin").rename(tmp_path / "0123abcd")
    (folder / "model.bin").symlink_to(tmp_path / "0123abcd")

    assert fingerprint(files(folder)) == before


@pytest.mark.parametrize("offset", [0, HEADER - 1, BIG - 1, BIG - BLOCK, (BIG - BLOCK) * 100 // 255])
def test_a_change_of_a_sampled_block_of_a_big_file_is_seen(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(BIG)
    before = fingerprint([path])

    change(path, offset, b"y")

    assert fingerprint([path]) != before


def test_a_big_file_is_sampled_and_its_size_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(BIG)
    seen = [fingerprint([path])]

    change(path, HEADER + BLOCK, b"y")
    seen.append(fingerprint([path]))
    os.truncate(path, BIG + 1)
    seen.append(fingerprint([path]))

    assert seen[0] == seen[1] != seen[2]


def test_every_byte_of_a_file_just_not_big_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(WHOLE)
    before = fingerprint([path])

    change(path, HEADER + BLOCK, b"y")

    assert fingerprint([path]) != before


def test_the_full_hash_is_that_of_everything(folder: Path) -> None:
    assert full_hash(folder / "model.bin") == hashlib.sha256(b"x" * 1000).hexdigest()


def test_a_file_that_is_as_it_was_is_not_read_again(folder: Path, cache: DatabaseCache) -> None:
    path = folder / "model.bin"
    stat = path.stat()
    before = fingerprint(files(folder), cache)

    change(path, 0, b"y")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))      # a change that nothing but reading could show

    assert fingerprint(files(folder), cache) == before
    assert fingerprint(files(folder)) != before


@pytest.mark.parametrize("what", ["time", "size", "inode"])
def test_a_file_that_has_changed_is_read_again(folder: Path, cache: DatabaseCache, what: str) -> None:
    path = folder / "model.bin"
    stat = path.stat()
    before = fingerprint(files(folder), cache)

    if what == "inode":
        shutil.copy(path, folder.parent / "new")
        (folder.parent / "new").replace(path)
    change(path, 0, b"y")
    if what == "size":
        os.truncate(path, 999)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (10**6 if what == "time" else 0)))

    assert fingerprint(files(folder), cache) == fingerprint(files(folder)) != before


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    folder: Path, cache: DatabaseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "model.bin"
    read = hashlib.file_digest

    def digest(*arguments: object) -> object:
        change(path, 1000, b"more")
        return read(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", digest)
        fingerprint([path], cache)

    assert cache.get(path, path.stat()) is None
    assert fingerprint([path], cache) == fingerprint([path])


def test_a_missing_file_has_no_fingerprint(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint([folder / "nonesuch"])


def safetensors(path: Path, size: int) -> None:
    """Write what begins as a safetensors file of so many bytes does: with the length of a header of 16, and that."""
    with path.open("wb") as file:
        file.write((16).to_bytes(8, "little") + b'{"a": "16 long"}')
        file.truncate(size)


@pytest.mark.parametrize(("size", "offset", "expected"), [
    (1000, 9, "model.safetensors: its header changed"), (1000, 0, "model.safetensors: its header changed"),
    (1000, 7, "model.safetensors: its header changed"),      # a header longer than the file
    (1000, 23, "model.safetensors: its header changed"), (1000, 24, "model.safetensors changed"),
    (BIG, 9, "model.safetensors: its header changed"), (BIG, BIG - 1, "model.safetensors: a sampled block changed"),
    (1000, 1000, "model.safetensors: expected 1,000 bytes, found 1,001"),
])
def test_what_of_a_weight_file_has_changed_is_said(
    tmp_path: Path, cache: DatabaseCache, size: int, offset: int, expected: str
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors(path, size)
    before = describe([path], cache)

    change(path, offset, b"\1")

    assert differences(before, describe([path], cache)) == [expected]
    assert fingerprint([path], cache) == fingerprint([path])


@pytest.mark.parametrize(("size", "expected"), [
    (1000, "embeddings.bin changed"), (BIG, "embeddings.bin: a sampled block changed"),
])
def test_only_a_safetensors_file_has_a_header(tmp_path: Path, size: int, expected: str) -> None:
    path = tmp_path / "embeddings.bin"
    safetensors(path, size)
    before = describe([path])

    change(path, 9, b"\1")

    assert differences(before, describe([path])) == [expected]


def test_files_that_came_and_went_are_said(folder: Path) -> None:
    before = describe(files(folder))
    (folder / "config.json").rename(folder / "config-2.json")

    assert differences(before, before) == []
    assert differences(before, describe(files(folder))) == ["config-2.json is new", "config.json is missing"]
