"""Embeddings on disk: what is taken, what is refused with which words, and what a failed writing leaves behind."""

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from store_samples import python

from store.embeddings import EmbeddingsWriter, open_embeddings
from store.errors import EmbeddingsError

TOKENS, HIDDEN, GRID = 6, 8, (2, 3)
NAMES = ("a/one.jpg", "b two.png", "ünïcode 😀.heic", "d\u2028e.jpg")


def make_rows(count: int = len(NAMES)) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, TOKENS, HIDDEN), np.float32)


def write(folder: Path, rows: NDArray[np.float32] | None = None, names: tuple[str, ...] = NAMES, **info: Any) -> None:
    with EmbeddingsWriter(folder, TOKENS, HIDDEN, grid=GRID, **info) as writer:
        writer.append(names, make_rows() if rows is None else rows)


def write_by_hand(folder: Path, names: bytes, content: bytes, info: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "filenames.txt").write_bytes(names)
    (folder / "embeddings.bin").write_bytes(content)
    if info is not None:
        (folder / "embeddings.json").write_text(info if isinstance(info, str) else json.dumps(info))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_embeddings_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = make_rows()
    write(tmp_path, rows, root="/photos", fingerprint="f" * 64, preprocessing={"side": 448})

    read = open_embeddings(tmp_path, hidden=HIDDEN)

    assert (read.filenames, read.tokens, read.hidden, read.grid) == (NAMES, TOKENS, HIDDEN, GRID)
    assert (read.root, read.made_with) == ("/photos", "f" * 64)
    np.testing.assert_array_equal(read.rows, rows.astype(np.float16))
    np.testing.assert_array_equal(read.read(2), rows[2].astype(np.float16))
    assert read.read(2).flags.owndata
    assert read.rows.dtype == np.dtype("<f2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.bin", "embeddings.json", "filenames.txt"]


def test_the_rows_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path)

    with pytest.raises(ValueError, match="read-only"):
        open_embeddings(tmp_path, hidden=HIDDEN).rows[0] = 0


def test_images_may_come_in_several_batches(tmp_path: Path) -> None:
    rows = make_rows()
    with EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID) as writer:
        writer.append(NAMES[:1], rows[:1])
        writer.append([], rows[:0])
        writer.append(NAMES[1:], rows[1:])

    read = open_embeddings(tmp_path, hidden=HIDDEN)
    assert read.filenames == NAMES
    np.testing.assert_array_equal(read.rows, rows.astype(np.float16))


def test_a_folder_of_the_ancestor_has_256_tokens_as_wide_as_the_checkpoint(tmp_path: Path) -> None:
    rows = np.arange(2 * 256 * 4, dtype="<f2").reshape(2, 256, 4)
    write_by_hand(tmp_path, b"one.jpg\r\ntwo.jpg", rows.tobytes())

    read = open_embeddings(tmp_path, hidden=4)

    assert (read.filenames, read.tokens, read.grid, read.root) == (("one.jpg", "two.jpg"), 256, (16, 16), None)
    np.testing.assert_array_equal(read.read(1), rows[1])


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingsError, match=r"none: expected a folder .*, found nothing; `diptych precompute"):
        open_embeddings(tmp_path / "none", hidden=HIDDEN)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddingsError, match="expected a folder of embeddings, found a file"):
        open_embeddings(tmp_path / "file", hidden=HIDDEN)


@pytest.mark.parametrize("name", ["embeddings.bin", "filenames.txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(EmbeddingsError, match=f"{name}: expected a file, found No such file.*`diptych precompute"):
        open_embeddings(tmp_path, hidden=HIDDEN)


@pytest.mark.parametrize("change", [-1, 1, 2 * TOKENS * HIDDEN, -2 * TOKENS * HIDDEN])
def test_a_wrong_size_is_refused_with_the_arithmetic(tmp_path: Path, change: int) -> None:
    write(tmp_path)
    content = (tmp_path / "embeddings.bin").read_bytes()
    (tmp_path / "embeddings.bin").write_bytes((content + bytes(change if change > 0 else 0))[: len(content) + change])

    with pytest.raises(EmbeddingsError, match=rf"expected 4 x 6 x 8 x 2 = 384 bytes .*, found {384 + change:,};"):
        open_embeddings(tmp_path, hidden=HIDDEN)


def test_another_width_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    write(tmp_path)

    with pytest.raises(EmbeddingsError, match="expected embeddings 16 wide, as the checkpoint is, found 8"):
        open_embeddings(tmp_path, hidden=16)


@pytest.mark.parametrize(("names", "message"), [
    (b"", "line 1: expected the path of an image, found an empty file"),
    (b"\n", "line 1: .* found an empty file"),
    (b"a.jpg\n\nb.jpg\n", "line 2: expected the path of an image, found an empty line"),
    (b"a.jpg\n\n", "line 2: .* found an empty line"),
    (b"a.jpg\nb\0.jpg\n", r"line 2: .* found U\+0000"),
    (b"a.jpg\nb\xff.jpg\n", "line 2: expected UTF-8, found 0xff"),
])
def test_names_that_cannot_be_are_refused_with_their_line(tmp_path: Path, names: bytes, message: str) -> None:
    write_by_hand(tmp_path, names, bytes(2 * 256 * HIDDEN * 2))

    with pytest.raises(EmbeddingsError, match=rf"filenames\.txt, {message}"):
        open_embeddings(tmp_path, hidden=HIDDEN)


GOOD = {"tokens": TOKENS, "hidden": HIDDEN, "grid": list(GRID), "root": None}


@pytest.mark.parametrize(("info", "message"), [
    ("{", "expected JSON"),
    ("\udcff", "expected JSON"),
    ("[" * 100_000, "expected JSON"),
    ("[]", r"expected an object, found \[\]"),
    ("null", "expected an object, found null"),
    (GOOD | {"tokens": "6"}, 'expected tokens to be a whole number, 1 or more, found "6"'),
    (GOOD | {"tokens": True}, "expected tokens to be .*, found true"),
    (GOOD | {"tokens": 0}, "expected tokens to be .*, found 0"),
    (GOOD | {"tokens": 2**63}, "expected tokens to be"),
    (GOOD | {"hidden": 8.0}, "expected hidden to be .*, found 8.0"),
    ({"tokens": 6, "hidden": 8}, "expected grid to be two whole numbers, rows and columns, found null"),
    (GOOD | {"grid": [6]}, "expected grid to be"),
    (GOOD | {"grid": [3, 3]}, "expected a grid of 6 tokens, found 3 x 3"),
    (GOOD | {"root": 5}, "expected root to be a text or null, found 5"),
    (GOOD | {"fingerprint": []}, "expected fingerprint to be a text or null"),
    (GOOD | {"complete": False}, "expected a complete folder, found that precompute was interrupted"),
])
def test_an_embeddings_json_that_cannot_be_is_refused(tmp_path: Path, info: object, message: str) -> None:
    write_by_hand(tmp_path, b"a.jpg\n", bytes(TOKENS * HIDDEN * 2))
    text = info if isinstance(info, str) else json.dumps(info)
    (tmp_path / "embeddings.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(EmbeddingsError, match=rf"embeddings\.json: {message}"):
        open_embeddings(tmp_path, hidden=HIDDEN)


def test_an_embeddings_json_by_hand_is_taken(tmp_path: Path) -> None:
    write_by_hand(tmp_path, b"\xef\xbb\xbfa.jpg\n", bytes(TOKENS * HIDDEN * 2), GOOD | {"comment": "by hand"})

    assert open_embeddings(tmp_path, hidden=HIDDEN).filenames == ("a.jpg",)


def test_names_that_were_changed_afterwards_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "filenames.txt").write_text("one\ntwo\nthree\nfour\n")

    with pytest.raises(EmbeddingsError, match=r"filenames\.txt: expected the names that embeddings\.json was"):
        open_embeddings(tmp_path, hidden=HIDDEN)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_image_that_is_not_finite_is_named_when_it_is_used(tmp_path: Path, value: float) -> None:
    write(tmp_path)
    rows = np.fromfile(tmp_path / "embeddings.bin", "<f2").reshape(4, TOKENS, HIDDEN)
    rows[2, 5, 7] = value
    rows[0] = np.finfo(np.float16).max
    rows.tofile(tmp_path / "embeddings.bin")
    read = open_embeddings(tmp_path, hidden=HIDDEN)

    read.check_finite([0, 1, 3, 3, 0])
    for look in (lambda: read.read(2), lambda: read.check_finite([3, 2, 0])):
        with pytest.raises(EmbeddingsError, match=r"found infinity or NaN for image 2 \(ünïcode 😀\.heic\)"):
            look()


def test_images_are_checked_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"{number}.jpg" for number in range(50))
    write(tmp_path, make_rows(50), names)
    rows = np.fromfile(tmp_path / "embeddings.bin", "<f2").reshape(50, TOKENS, HIDDEN)
    rows[[37, 48], 0, 0] = np.nan
    rows.tofile(tmp_path / "embeddings.bin")
    read = open_embeddings(tmp_path, hidden=HIDDEN)
    monkeypatch.setattr("store.embeddings._BLOCK", 3 * TOKENS * HIDDEN * 2)

    read.check_finite(set(range(50)) - {37, 48})
    with pytest.raises(EmbeddingsError, match="image 37 "):
        read.check_finite(range(50))


@pytest.mark.parametrize("index", [-1, 4, 2**70])
def test_an_index_that_no_image_has_is_refused(tmp_path: Path, index: int) -> None:
    write(tmp_path)
    read = open_embeddings(tmp_path, hidden=HIDDEN)

    for look in (lambda: read.read(index), lambda: read.check_finite([0, index])):
        with pytest.raises(EmbeddingsError, match=f"expected an index of 0 to 3, found {index}"):
            look()


def test_the_fingerprint_is_that_of_content_names_and_grid(tmp_path: Path) -> None:
    rows, changed = make_rows(), make_rows()
    changed[3, 5, 7] += 1
    write(tmp_path / "a", rows, root="/photos")
    write(tmp_path / "b", rows, root="/other photos")
    write(tmp_path / "c", changed, root="/photos")
    write(tmp_path / "d", rows, ("1", "2", "3", "4"), root="/photos")
    with EmbeddingsWriter(tmp_path / "e", TOKENS, HIDDEN, grid=(3, 2)) as writer:
        writer.append(NAMES, rows)

    a, b, c, d, e = (open_embeddings(tmp_path / name, hidden=HIDDEN).fingerprint() for name in "abcde")

    assert a == b
    assert len({a, c, d, e}) == 4


def test_new_embeddings_replace_the_old_ones_at_the_end(tmp_path: Path) -> None:
    write(tmp_path)
    before = snapshot(tmp_path)
    rows = make_rows(1) + 1

    with EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID) as writer:
        writer.append(["new.jpg"], rows)
        during = {name: content for name, content in snapshot(tmp_path).items() if name in before}

    assert during == before
    read = open_embeddings(tmp_path, hidden=HIDDEN)
    assert read.filenames == ("new.jpg",)
    np.testing.assert_array_equal(read.rows, rows.astype(np.float16))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_embeddings_alone(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path)
    before = snapshot(tmp_path)

    with suppress(error), EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID) as writer:
        writer.append(NAMES, make_rows())
        raise error

    assert snapshot(tmp_path) == before


def test_a_writer_without_any_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    before = snapshot(tmp_path)

    with (
        pytest.raises(EmbeddingsError, match="expected at least one image, found none"),
        EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID),
    ):
        pass

    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("value", [np.inf, np.nan, 65_520.0, -1e30])
def test_a_row_that_float16_cannot_hold_is_refused_and_the_others_go_on(tmp_path: Path, value: float) -> None:
    rows = make_rows()
    broken = rows.copy()
    broken[1, 0, 0] = value

    with EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID) as writer:
        with pytest.raises(EmbeddingsError, match=r"b two\.png: expected finite numbers within float16"):
            writer.append(NAMES, broken)
        writer.append(NAMES[2:], rows[2:])

    read = open_embeddings(tmp_path, hidden=HIDDEN)
    assert read.filenames == NAMES[2:]
    np.testing.assert_array_equal(read.rows, rows[2:].astype(np.float16))


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\rb.jpg", "a\0b.jpg", "", "\udcff.jpg"])
def test_a_name_that_no_line_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(EmbeddingsError, match="rename the image"),
        EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID) as writer,
    ):
        writer.append([name], make_rows(1))

    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with EmbeddingsWriter(tmp_path, TOKENS, HIDDEN, grid=GRID) as writer:
        writer.append(NAMES, make_rows())
        with pytest.raises(EmbeddingsError, match="found another precompute at work"):
            write(tmp_path)

    assert open_embeddings(tmp_path, hidden=HIDDEN).filenames == NAMES


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddingsError, match="out: expected a folder that can be written, found Not a directory"):
        write(tmp_path / "file" / "out")


KILLED = """
import sys; sys.path.insert(0, "tests")
import os, signal; from pathlib import Path; from test_store_embeddings import *
folder, step = Path(sys.argv[1]), int(sys.argv[2]); replace = Path.replace
def die(self, target):
    global step
    if step == 0: os.kill(os.getpid(), signal.SIGKILL)
    step -= 1
    return replace(self, target)
Path.replace = die
write(folder, make_rows() + 1, ("1", "2", "3", "4"))
"""


@pytest.mark.parametrize("step", range(5))
def test_a_writer_that_is_killed_leaves_old_or_new_files_or_a_folder_that_is_refused(tmp_path: Path, step: int) -> None:
    write(tmp_path)
    old = snapshot(tmp_path)

    writer = python(KILLED, tmp_path, step)
    _, errors = writer.communicate()

    assert writer.returncode == (-signal.SIGKILL if step < 4 else 0), errors
    if step == 0:
        assert {name: content for name, content in snapshot(tmp_path).items() if name in old} == old
        assert open_embeddings(tmp_path, hidden=HIDDEN).filenames == NAMES
    elif step < 4:
        with pytest.raises(EmbeddingsError, match="interrupted while it replaced the files"):
            open_embeddings(tmp_path, hidden=HIDDEN)
    write(tmp_path, make_rows() + 1, ("1", "2", "3", "4"))
    assert open_embeddings(tmp_path, hidden=HIDDEN).filenames == ("1", "2", "3", "4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.bin", "embeddings.json", "filenames.txt"]
