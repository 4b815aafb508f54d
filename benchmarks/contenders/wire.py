"""What the driver and a contender say to each other: one JSON object a line. It knows no model."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]

BLAS_NAMES = ("blas", "blis", "mkl")      # in the names of libraries for matrix products


def serve(load: Callable[[], Answer], packages: tuple[str, ...]) -> None:
    """Load, say so with the versions of these packages, then answer each request until the driver closes stdin."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)      # what libraries print must not stand between the replies
    answer = load()
    ready = {"versions": {name: version(name) for name in packages}, "blas": loaded_blas()}
    for reply in chain([ready], map(answer, map(json.loads, sys.stdin))):
        print(json.dumps(reply), file=replies, flush=True)


def loaded_blas() -> list[str]:
    """List the files of matrix libraries that this process has mapped; none where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(file for file in files if any(name in Path(file).name.lower() for name in BLAS_NAMES))
