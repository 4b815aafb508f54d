"""The rows of a job: read ahead, in the order in which prefixes are shared."""

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from reference import make_engine, make_prompt, make_rows

from jobs.inputs import Inputs
from store.embeddings import open_embeddings
from store.errors import EmbeddingsError
from store.records import Pair
from workers.reading import in_order, read_ahead, row_reader
from workers.rows import Row

PAIRS = [Pair(position, a, b, seed=position, job=0) for position, (a, b) in enumerate([(2, 0), (1, 3), (2, 1), (1, 0)])]


def inputs(prompt: str) -> Inputs:
    """Make inputs of which only the prompt is there: all that the order looks at."""
    return Inputs(None, None, None, make_prompt(prompt))  # type: ignore[arg-type]


def positions(prompt: str) -> list[int]:
    return [pair.position for pair in in_order(PAIRS, inputs(prompt))]


def test_pairs_with_the_same_first_image_stand_together() -> None:
    assert positions("Which is sharper?") == [1, 3, 0, 2]
    assert positions("<image_b> or <image_a>?") == [0, 3, 2, 1]


def read_by(calls: list[int]) -> Callable[[Pair], Row]:
    row = make_rows()[0]

    def read(pair: Pair) -> Row:
        calls.append(pair.position)
        if pair.position == 1:
            raise EmbeddingsError("went bad")
        return replace(row, key=pair.position)

    return read


def test_every_pair_comes_in_its_order_and_an_unreadable_one_with_its_error() -> None:
    read = list(read_ahead(PAIRS, read_by([]), ahead=2))

    assert [pair.position for pair, _ in read] == [0, 1, 2, 3]
    assert [row.key if isinstance(row, Row) else str(row) for _, row in read] == [0, "went bad", 2, 3]


def test_rows_are_read_before_they_are_asked_for_but_not_all_of_them() -> None:
    calls, fourth = list[int](), threading.Event()

    def read(pair: Pair) -> Row:
        calls.append(pair.position)
        if pair.position == 3:
            fourth.set()
        return make_rows()[0]

    pairs = [replace(PAIRS[0], position=position) for position in range(8)]
    with closing(read_ahead(pairs, read, ahead=4)) as rows:
        next(rows)
        assert fourth.wait(60)      # while nobody asks
        assert calls == [0, 1, 2, 3]


def test_an_image_that_pairs_have_in_common_is_read_once(embeddings: Path) -> None:
    opened = open_embeddings(embeddings, hidden=make_engine().model.config.hidden_size)
    read = row_reader(SimpleNamespace(embeddings_fingerprint="e"), replace(inputs("?"), embeddings=opened))

    first, second = (read(Pair(position, 1, b, seed=7, job=0)) for position, b in enumerate((2, 3)))

    assert first.image_a is second.image_a
    assert first.image_a.key != first.image_b.key
    np.testing.assert_array_equal(second.image_b.embeddings, opened.read(3))


def test_leaving_early_ends_the_reading() -> None:
    before = threading.active_count()

    with closing(read_ahead(PAIRS, read_by([]), ahead=2)) as rows:
        next(rows)

    assert threading.active_count() == before
