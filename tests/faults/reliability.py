"""Write the tables of docs/reliability.md from what the suite has written down. It tries nothing.

    .venv/bin/python tests/faults/reliability.py

`make faults` runs the suite in its long form and then this.
"""

import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MEASURED, PAGE = HERE / "measured.jsonl", HERE.parents[1] / "docs" / "reliability.md"
COLUMNS = ("times", "pairs", "lost", "doubled", "different", "failed")


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Write a Markdown table."""
    heads = list(heads)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: object) -> str:
    """Write a count; what was not counted is left empty."""
    return f"{value:,}" if isinstance(value, int) else ""


def faults(tried: list[Mapping[str, Any]]) -> str:
    """Write what was done to runs, and what became of their pairs."""
    rows = sorted((one for one in tried if "read" not in one and one["fault"] != "a long run"),
                  key=lambda one: str(one["fault"]))
    return table(["fault", *COLUMNS], [[one["fault"], *(number(one.get(name)) for name in COLUMNS)] for one in rows])


def fuzzed(tried: list[Mapping[str, Any]]) -> str:
    """Write what the readers were given."""
    rows = sorted((one for one in tried if "read" in one), key=lambda one: str(one["fault"]))
    return table(["reader", "inputs", "read", "refused"],
                 [[one["fault"].removeprefix("fuzzed: "), *(number(one[name]) for name in ("times", "read", "refused"))]
                  for one in rows])


def soak(tried: list[Mapping[str, Any]]) -> str:
    """Write what a long run held."""
    [run] = [one for one in tried if one["fault"] == "a long run"]
    return table(["a run of", f"{run['pairs']:,} pairs"], [
        ["memory of the worker, mean of the second quarter", f"{run['memory_2nd_quarter'] / 1e6:.1f} MB"],
        ["memory of the worker, mean of the last quarter", f"{run['memory_last_quarter'] / 1e6:.1f} MB"],
        ["open files, second and last quarter", f"{run['files_2nd_quarter']}, {run['files_last_quarter']}"],
        ["largest write-ahead log of SQLite", f"{run['largest_log'] / 1e6:.1f} MB"],
        ["memory of Redis before and after", f"{run['redis_before'] / 1e6:.2f} MB, {run['redis_after'] / 1e6:.2f} MB"],
        ["time left after a fifth, as `status` said it and as it was",
         f"{run['seconds_left_said']} s, {run['seconds_left_true']} s"],
    ])


def filled(page: str, tried: list[Mapping[str, Any]]) -> str:
    """Return the page with its tables."""
    for name, write in (("faults", faults), ("fuzzed", fuzzed), ("soak", soak)):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        assert begin in page
        text = f"{begin}\n{write(tried)}\n{end}"
        page = re.sub(f"{begin}.*?{end}", lambda _, text=text: text, page, flags=re.DOTALL)      # type: ignore[misc]
    return page


def read(lines: Iterable[str]) -> list[Mapping[str, Any]]:
    """Read what was written down; of a fault that was tried twice, the later one."""
    tried: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        one = json.loads(line)
        tried[one["fault"]] = one
    return list(tried.values())


def read_measured() -> list[Mapping[str, Any]]:
    """Read what the suite has written down."""
    return read(MEASURED.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Fill the page."""
    tried = read_measured()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tried), encoding="utf-8")
    print(f"{PAGE.name}: {len(tried)} faults and figures, on {platform.platform()}", file=sys.stderr)


if __name__ == "__main__":
    main()
