"""Pairs files and drawn pairs: what is a pair, what is refused and how it is named, and what a seed stands for."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from jobs.pairs import draw_pairs, read_pairs_file
from jobs.seeds import draw_seed, row_seed
from store.errors import PairsError
from store.records import SEED_LIMIT

BOM = b"\xef\xbb\xbf"
SEED_42 = [(6, 3), (0, 4), (2, 9), (2, 5), (7, 4), (6, 9)]
ROW_SEEDS = (5126517397526721, 8352127235825198)      # sha256 of "0:0" and "42:7"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.txt"


def refusal(file: Path, data: bytes) -> str:
    file.write_bytes(data)
    with pytest.raises(PairsError) as caught:
        read_pairs_file(file, 10)
    return str(caught.value)


@pytest.mark.parametrize("data", [
    b"0,1\n2,3\n", b"0,1\n2,3", b"0,1\r\n2,3\r\n", b"0,1\r2,3\r", BOM + b"0,1\n2,3\n", b"idx_a,idx_b\n0,1\n2,3\n",
    BOM + b"idx_a,idx_b\r\n0,1\r\n2,3\r\n", b" 0 ,\t1 \n2,3\n", b"\n\n0,1\n \t\n2,3\n\n",
    b"# of Monday\n0,1\n# of Tuesday\n2,3 # sharp\n", "# fotos für Zoë\n0,1\n2,3".encode(), b"00,01\n2,003\n",
    b"# made by hand\n\n idx_a,idx_b \n0,1\n2,3\n",
])
def test_pairs_are_read_in_the_order_of_the_file(file: Path, data: bytes) -> None:
    file.write_bytes(data)

    read = read_pairs_file(file, 10)

    assert read.pairs == [(0, 1), (2, 3)]
    assert read.sha256 == hashlib.sha256(data).hexdigest()


def test_a_pair_may_stand_twice_and_be_of_one_image(file: Path) -> None:
    file.write_bytes(b"1,0\n2,2\n1,0\n")

    assert read_pairs_file(file, 3).pairs == [(1, 0), (2, 2), (1, 0)]


@pytest.mark.parametrize(("line", "expected"), [
    (b"one,2", "expected an index in digits 0-9, found 'one': 'one,2'"),
    (b"5", "expected two columns, idx_a,idx_b, found 1: '5'"),
    (b"5;6", "expected two columns, idx_a,idx_b, found 1: '5;6'"),
    (b"1,2,3", "expected two columns, idx_a,idx_b, found 3: '1,2,3'"),
    (b"1,", "expected an index in digits 0-9, found nothing: '1,'"),
    (b"1,-2", "expected an index from 0 without a sign, found -2: '1,-2'"),
    (b"+1,2", "expected an index from 0 without a sign, found +1: '+1,2'"),
    (b"1,10", "expected indices from 0 to 9 (filenames.txt has 10 images), found 10: '1,10'"),
    (b"99,10", "expected indices from 0 to 9 (filenames.txt has 10 images), found 99: '99,10'"),
    (b"1,9223372036854775808", "expected an index of at most 64 bits: '1,9223372036854775808'"),
    (b"9223372036854775807,0", "expected indices from 0 to 9 (filenames.txt has 10 images), found 9223372036854775807"),
    (b"9" * 5000 + b",1", "expected an index of at most 64 bits: '" + "9" * 60 + "'..."),
    (b"1.5,2", "expected an index in digits 0-9, found '1.5': '1.5,2'"),
    (b"1_0,2", "expected an index in digits 0-9, found '1_0': '1_0,2'"),
    (b"0x1,2", "expected an index in digits 0-9, found '0x1': '0x1,2'"),
    ("٣,1".encode(), r"expected an index in digits 0-9, found '\u0663': '\u0663,1'"),
    ("\uff11,1".encode(), r"expected an index in digits 0-9, found '\uff11': '\uff11,1'"),
    ("1,2\u2028".encode(), r"found '2\u2028'"),
    (b"idx_a,idx_b", "expected an index in digits 0-9, found 'idx_a': 'idx_a,idx_b'"),
    (b"\x1b[2J,1", r"expected an index in digits 0-9, found '\x1b[2J': '\x1b[2J,1'"),
    (b"1,\x002", r"expected text, found a NUL byte: '1,\x002'"),
    (b"1,\xff", r"expected UTF-8, found bytes that are none: '1,\\xff'"),
])
def test_a_line_that_is_no_pair_is_refused_with_file_line_and_text(file: Path, line: bytes, expected: str) -> None:
    message = refusal(file, b"# first\r\n0,1\r\n" + line + b"\r\n2,3\r\n")

    assert message.startswith(f"{file}, line 3: ")
    assert expected in message


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("line", [b"x,1", b"1,\0", b"1,\xff"])
def test_lines_are_counted_as_an_editor_does(file: Path, end: bytes, line: bytes) -> None:
    assert f"{file}, line 3: " in refusal(file, b"0,1" + end + end + line + end + b"2,3")


def test_a_long_line_is_shortened_in_the_message(file: Path) -> None:
    assert len(refusal(file, b"x" * 100_000)) < len(str(file)) + 200


def test_a_file_in_utf_16_is_refused(file: Path) -> None:
    assert "line 1: expected text, found a NUL byte" in refusal(file, "0,1\n".encode("utf-16"))


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# nothing\n", b"idx_a,idx_b\n", BOM])
def test_a_file_without_pairs_is_refused(file: Path, data: bytes) -> None:
    assert f"{file}: expected a pair of image indices a line" in refusal(file, data)


def test_a_missing_file_and_a_folder_are_refused(file: Path) -> None:
    with pytest.raises(PairsError, match="expected a pairs file, found nothing"):
        read_pairs_file(file, 10)
    with pytest.raises(PairsError, match="expected a pairs file, found a folder"):
        read_pairs_file(file.parent, 10)


def test_a_hundred_thousand_pairs_are_all_read(file: Path) -> None:
    file.write_text("".join(f"{i % 1000},{i // 1000}\n" for i in range(100_000)))

    assert read_pairs_file(file, 1000).pairs == [(i % 1000, i // 1000) for i in range(100_000)]


def test_drawn_pairs_are_of_two_images_and_distinct_while_there_are_any() -> None:
    pairs = draw_pairs(20 * 19, 20, seed=7)

    assert len(set(pairs)) == 20 * 19
    assert all(a != b and 0 <= a < 20 and 0 <= b < 20 for a, b in pairs)


def test_when_all_pairs_are_drawn_they_come_once_more() -> None:
    pairs = draw_pairs(15, 3, seed=7)

    assert len(set(pairs[:6])) == len(set(pairs[6:12])) == 6
    assert set(Counter(pairs).values()) == {2, 3}


def test_fewer_drawn_pairs_are_the_beginning_of_more() -> None:
    assert draw_pairs(5, 100, seed=3) == draw_pairs(50, 100, seed=3)[:5]


def test_a_seed_draws_the_same_pairs_for_ever() -> None:
    assert draw_pairs(6, 10, seed=42) == SEED_42
    assert draw_pairs(6, 10, seed=43) != SEED_42


def test_every_pair_is_drawn_about_equally_often() -> None:
    counts = Counter(draw_pairs(1, 4, seed=seed)[0] for seed in range(12_000))

    # 1,000 of each are expected; 5 standard deviations of a binomial count are 152.
    assert len(counts) == 12
    assert all(abs(count - 1000) < 152 for count in counts.values())


@pytest.mark.parametrize(("n", "n_images", "expected"), [
    (0, 10, "expected 1 pair or more, found 0"), (-1, 10, "found -1"), (1, 1, "at least 2 images"), (1, 0, "found 0"),
])
def test_pairs_that_cannot_be_drawn_are_refused(n: int, n_images: int, expected: str) -> None:
    with pytest.raises(PairsError, match=expected):
        draw_pairs(n, n_images, seed=0)


def test_a_rows_seed_is_the_same_for_ever_and_fits_a_double() -> None:
    seeds = {row_seed(run, position) for run in (0, 1, 2**53 - 1) for position in range(1000)}

    assert (row_seed(0, 0), row_seed(42, 7)) == ROW_SEEDS
    assert len(seeds) == 3000
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
    assert row_seed(1, 11) != row_seed(11, 1)


def test_a_drawn_seed_is_another_each_time_and_in_range() -> None:
    seeds = {draw_seed() for _ in range(100)}

    assert len(seeds) == 100
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
