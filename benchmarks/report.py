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
    heads = ["batch", "rows side by side", "pairs", "tok/s", "speed-up", "comparisons per minute", "peak memory",
             "planned", "peak / planned"]
    lines = [[f"{size['batch_size']}", f"{size['rows']}", f"{size['pairs']}", f"{size['tokens_per_second']:.1f}",
              f"{size['speed_up']:.2f}", f"{size['comparisons_per_minute']:.1f}", f"{size['peak_bytes'] / 1e9:.2f} GB",
              f"{size['planned_bytes'] / 1e9:.2f} GB", f"{size['peak_bytes'] / size['planned_bytes']:.2f}"]
             for size in result["sizes"]]
    return f"{markdown(heads, lines)}\n\n{result['recommendation']}"


def busy(result: Mapping[str, Any]) -> str:
    """Write what busy.py has measured."""
    return (f"{result['pairs']:,} pairs in jobs of {result['batch_size']} through queue and store, on the small model "
            f"that ships: {result['engine_share']:.1%} of {result['wall_s']:.0f} s were spent in the engine.")


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
