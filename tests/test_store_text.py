"""Text that every database can hold."""

import pytest

from store.text import clean


@pytest.mark.parametrize(("given", "kept"), [
    ("a\x00b", "a\ufffdb"),
    ("a\ud83db", "a\ufffdb"),
    ("\udc80\udcff", "\ufffd\ufffd"),
])
def test_what_databases_refuse_becomes_a_replacement_character(given: str, kept: str) -> None:
    assert clean(given) == kept


def test_all_other_text_stays_as_it_is() -> None:
    text = "tab\tnewline\r\n \x1b[31m \x85 \u2028 é 中 😀 \ufffd =1+1 <b>" + "x" * 100_000

    assert clean(text) == text
