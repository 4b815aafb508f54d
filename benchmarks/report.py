"""Write the tables of docs/performance.md from the figures in benchmarks/measured/. It measures nothing.

    .venv/bin/python benchmarks/report.py

`make bench` measures all of them again and then runs this.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import markdown, render

HERE = Path(__file__).resolve().parent
MEASURED, PAGE = HERE / "measured", HERE.parent / "docs" / "performance.md"


def sizes(result: Mapping[str, Any]) -> str:
    """Write what `diptych bench --json` has measured, and its recommendation."""
    again = any(size["repeats"] for size in result["sizes"])
    heads = ["batch", "rows side by side", "pairs", "tok/s", "speed-up", "comparisons per minute", "peak memory",
             "planned", "peak / planned"]
    lines = [[f"{size['batch_size']}", f"{size['rows']}", f"{size['pairs']}", f"{size['tokens_per_second']:.1f}",
              f"{size['speed_up']:.2f}", f"{size['comparisons_per_minute']:.1f}", f"{size['peak_bytes'] / 1e9:.2f} GB",
              f"{size['planned_bytes'] / 1e9:.2f} GB", f"{size['peak_bytes'] / size['planned_bytes']:.2f}"]
             for size in result["sizes"]]
    note = "After a fall of more than 5 % both sizes were measured again, for medians.\n\n" if again else ""
    return f"{markdown(heads, lines)}\n\n{note}{result['recommendation']}"


def busy(result: Mapping[str, Any]) -> str:
    """Write what busy.py has measured."""
    heads = ["pairs in a job", "pairs", "seconds", "in the engine", "share"]
    lines = [[f"{one['batch_size']}", f"{one['pairs']:,}", f"{one['wall_s']:.1f}", f"{one['engine_s']:.1f}",
              f"{one['engine_share']:.1%}"] for one in result["shares"]]
    return markdown(heads, lines)


def fill(page: str, name: str, text: str) -> str:
    """Put a text between the marks of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    assert begin in page
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)


def filled(page: str) -> str:
    """Return the page with all tables as they were measured."""
    for name, write in (("throughput", render), ("sizes", sizes), ("busy", busy)):
        result = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
        page = fill(page, name, write(result))
    return page


def main() -> None:
    """Fill the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
