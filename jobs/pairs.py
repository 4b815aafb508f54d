"""The pairs of a run: read from a file, or drawn by a seed. It knows how many images there are, not which."""

import hashlib
import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from store.errors import PairsError

HEADER = "idx_a,idx_b"
INTEGER_LIMIT = 2**63      # of an index; beyond it no reader of the database could hold it
SHOWN = 60                 # characters of a line in a message
BLANKS = " \t"
PAIR = re.compile(r"[ \t]*([0-9]{1,18})[ \t]*,[ \t]*([0-9]{1,18})[ \t]*")
NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class PairsFile:
    """A pairs file as it was read, once."""

    pairs: list[tuple[int, int]]      # in the order of the file: a pair's place is its position
    sha256: str                       # of the file's bytes


def read_pairs_file(path: Path, n_images: int) -> PairsFile:
    """Read `idx_a,idx_b` lines; raise PairsError naming file, line and text of the first that is none.

    Blanks, empty lines, `#` comments, a first line `idx_a,idx_b`, a byte order mark and any line ends are allowed.
    """
    data = _read(path)
    pairs: list[tuple[int, int]] = []
    for place, (number, line) in enumerate(_lines(path, data)):
        match = PAIR.fullmatch(line)
        pair = (int(match[1]), int(match[2])) if match else None
        if pair is None or pair[0] >= n_images or pair[1] >= n_images:
            if place == 0 and line.strip(BLANKS) == HEADER:
                continue
            raise PairsError(f"{path}, line {number}: {_fault(line, n_images)}: {_shown(line)}")
        pairs.append(pair)
    if not pairs:
        raise PairsError(f"{path}: expected a pair of image indices a line, as 0,1; found none")
    return PairsFile(pairs, hashlib.sha256(data).hexdigest())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise PairsError(f"{path}: expected a pairs file, found a folder") from None
    except FileNotFoundError:
        raise PairsError(f"{path}: expected a pairs file, found nothing; its lines are idx_a,idx_b, as 0,1") from None
    except (OSError, ValueError) as error:
        raise PairsError(f"{path}: expected a pairs file that can be read, found: {error}") from None


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not empty, without its comment."""
    nul = data.find(b"\0")
    if nul >= 0:
        raise PairsError(f"{path}, line {_line_number(data, nul)}: expected text, found a NUL byte: "
                         f"{_shown(_line_at(data, nul))}; save the file as UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PairsError(f"{path}, line {_line_number(data, error.start)}: expected UTF-8, found bytes that are none: "
                         f"{_shown(_line_at(data, error.start))}; save the file as UTF-8 text") from None
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        content = line.rstrip("\n").partition("#")[0]
        if content.strip(BLANKS):
            yield number, content


def _line_number(data: bytes, place: int) -> int:
    before = data[:place]
    return 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")


def _line_at(data: bytes, place: int) -> str:
    start = max(data.rfind(b"\n", 0, place), data.rfind(b"\r", 0, place)) + 1
    return data[start : place + SHOWN].splitlines()[0].decode("utf-8", errors="backslashreplace")


def _shown(line: str) -> str:
    """Quote a line for a message: shortened, and with control characters escaped."""
    text = line.strip(BLANKS)
    return ascii(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")


def _fault(line: str, n_images: int) -> str:
    """Say what keeps a line from being a pair."""
    columns = [column.strip(BLANKS) for column in line.split(",")]
    if len(columns) != 2:
        return f"expected two columns, idx_a,idx_b, found {len(columns)}"
    for column in columns:
        if not NUMBER.fullmatch(column):
            return f"expected an index in digits 0-9, found {_shown(column) if column else 'nothing'}"
        digits = column.lstrip("+-").lstrip("0")
        if len(digits) > 19 or int(digits or "0") >= INTEGER_LIMIT:
            return "expected an index of at most 64 bits"
        if column[0] in "+-":
            return f"expected an index from 0 without a sign, found {column}"
        if int(column) >= n_images:
            return (f"expected indices from 0 to {n_images - 1} (filenames.txt has {n_images} "
                    f"{'image' if n_images == 1 else 'images'}), found {int(column)}")
    return "expected idx_a,idx_b with at most 18 digits each"


def draw_pairs(n: int, n_images: int, seed: int) -> list[tuple[int, int]]:
    """Draw n ordered pairs a != b by a seed: all distinct while there are any, then all once more, and so on.

    A seed gives the same pairs for ever: of `random`, this uses only Random(seed).random(), whose sequence Python
    promises to keep (sample and shuffle have changed between versions).
    """
    if n < 1:
        raise PairsError(f"--random: expected 1 pair or more, found {n}")
    if n_images < 2:
        raise PairsError(f"--random: expected at least 2 images to draw pairs of, found {n_images}")
    places = n_images * (n_images - 1)
    draw = random.Random(seed)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < n:
        for place in _draw_distinct(min(n - len(pairs), places), places, draw):
            a, b = divmod(place, n_images - 1)
            pairs.append((a, b + (b >= a)))
    return pairs


def _draw_distinct(count: int, limit: int, draw: random.Random) -> Iterator[int]:
    """Yield distinct numbers below the limit: the shuffle of Fisher and Yates, holding only what it has moved."""
    moved: dict[int, int] = {}
    for i in range(count):
        j = i + int(draw.random() * (limit - i))
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)
