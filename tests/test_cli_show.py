"""Tables in a terminal: widths, folding, and as many rows as there are."""

import io
from collections.abc import Iterator

from rich.cells import cell_len

from cli.show import BLOCK, FILE_WIDTH, escape, fold, print_table


def printed(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    out = io.StringIO()
    assert print_table(columns, rows, out) == len(rows)
    return out.getvalue().splitlines()


def test_columns_are_as_wide_as_what_they_hold_with_three_blanks_between() -> None:
    assert printed(("run", "name"), [(1, "a longer one"), (None, "b")]) == [
        "run   name",
        "──────────────────",
        "1     a longer one",
        "      b",
    ]


def test_a_long_text_is_folded_between_words_into_the_width_of_a_file() -> None:
    lines = printed(("position", "text"), [(7, "word " * 100)])

    assert max(map(len, lines)) <= FILE_WIDTH
    assert len(lines) == 2 + 4
    assert all(line.startswith(" " * 11 + "word") for line in lines[3:])
    assert " ".join(lines[2:]).split() == ["7"] + ["word"] * 100


def test_a_word_longer_than_its_column_is_cut() -> None:
    assert fold("see https://example.org now", 10) == ["see", "https://ex", "ample.org", "now"]


def test_wide_characters_count_as_two_columns() -> None:
    assert fold("比較画像 比較", 8) == ["比較画像", "比較"]
    assert fold("比較画像", 5) == ["比較", "画像"]
    lines = printed(("a", "b"), [("比較", "x"), ("yy", "z")])
    assert [cell_len(line) for line in lines[2:]] == [8, 8]


def test_lines_of_a_text_stay_lines() -> None:
    assert fold("one\n\n  two", 20) == ["one", "", "  two"]
    assert fold("", 20) == [""]
    assert fold(" " * 30, 20) == [""]


def test_a_table_is_printed_while_its_rows_still_come() -> None:
    out, printed_by_then = io.StringIO(), []

    def rows() -> Iterator[tuple[object, ...]]:
        for place in range(3 * BLOCK):
            yield place, "(pending)"
            printed_by_then.append(out.getvalue().count("\n"))
        yield 3 * BLOCK, "a text longer than any of the first ones"

    assert print_table(("position", "text"), rows(), out) == 3 * BLOCK + 1

    assert printed_by_then[BLOCK - 2] == 0
    assert printed_by_then[-1] >= 2 * BLOCK
    assert out.getvalue().splitlines()[-1] == f"{3 * BLOCK}           a text longer than any of the first ones"


def test_what_would_drive_the_terminal_is_escaped() -> None:
    assert escape("a\nb é 比") == "a\nb é 比"
    assert escape("\x1b[31m\t\u202e\r\n") == "\\x1b[31m\\t\\u202e\\r\n"
