"""Sizes of memory as a person writes and reads them."""

import pytest

from jobs.sizes import format_size, parse_size


@pytest.mark.parametrize(("text", "size"), [
    ("600MB", 600_000_000), ("24GB", 24_000_000_000), ("24 gb", 24_000_000_000), (" 1.5GB ", 1_500_000_000),
    ("22.5GiB", 24_159_191_040), ("16gib", 17_179_869_184), ("512KB", 512_000), ("1TB", 10**12),
])
def test_a_number_with_a_unit_is_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "24", "GB", "24G", "-1GB", "0GB", "1e3GB", "24GBs", "1,5GB", "inf GB", "٢٤GB"])
def test_what_may_be_meant_otherwise_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (26_419_200, "26.4 MB"), (18_800_558_080, "18.8 GB"),
    (2_500_000_000_000, "2.5 TB"), (2_500_000_000_000_000, "2,500.0 TB"),
])
def test_a_size_is_written_with_one_decimal_of_its_largest_unit(size: int, text: str) -> None:
    assert format_size(size) == text


def test_a_size_that_is_asked_for_is_never_written_smaller_than_it_is() -> None:
    assert format_size(19_910_000_000) == "19.9 GB"
    assert format_size(19_910_000_000, up=True) == "20.0 GB"
    assert parse_size(format_size(19_910_000_001, up=True)) >= 19_910_000_001
