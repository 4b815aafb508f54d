"""The page about reliability: its tables are what the suite has written down, in its long form."""

import reliability


def test_the_page_has_the_tables_of_what_was_tried() -> None:
    page, tried = reliability.PAGE.read_text(encoding="utf-8"), reliability.read_measured()

    assert page == reliability.filled(page, tried)
    assert "\n| kill -9 of the worker at random moments | 50 | 2,400 | 0 | 0 | 0 |  |\n" in page
    assert "\n| tickets | 100,000 |" in page
    assert "\n| a run of | 20,000 pairs |\n" in page


def test_of_a_fault_that_was_tried_twice_the_later_one_counts() -> None:
    [one] = reliability.read(['{"fault": "a", "times": 1}', '{"fault": "a", "times": 2}'])

    assert one["times"] == 2
