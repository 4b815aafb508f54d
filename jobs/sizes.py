"""Sizes of memory in words: `600MB`, `24GB`, `22.5GiB` in, `18.8 GB` out."""

import math
import re

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*([KMGT]i?B)", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes of a number with a unit, upper or lower case; raise ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a number with a unit, as 600MB, 24GB or 22.5GiB, found {text!r}")
    number, unit = match.groups()
    size = int(float(number) * {name.lower(): bytes_ for name, bytes_ in UNITS.items()}[unit.lower()])
    if size < 1:
        raise ValueError(f"expected more than nothing, found {text!r}")
    return size


def format_size(size: int, *, up: bool = False) -> str:
    """Write bytes for a person, in the largest decimal unit of which there is one: `26.4 MB`; `up` rounds up."""
    for unit in ("TB", "GB", "MB", "KB"):
        if size >= UNITS[unit]:
            tenths = size / (UNITS[unit] // 10)
            return f"{(math.ceil(tenths) if up else round(tenths)) / 10:,.1f} {unit}"
    return f"{size} bytes"
