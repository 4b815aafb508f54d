"""The library of matrix products that every contender gets on Linux: found, named, and put before all others.

MLX's wheel for the Linux CPU carries the reference BLAS, 13 to 30 times slower than OpenBLAS; loaded first, OpenBLAS
takes the place of that one, and of the library inside torch as well.
"""

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

PLACES = ("usr/lib/*/openblas-pthread/libopenblas.so.0", "usr/lib/*/libopenblas.so.0", "usr/lib64/libopenblas*.so.0",
          "usr/lib/libopenblas.so*", "opt/OpenBLAS/lib/libopenblas.so*")
MISSING = ("expected OpenBLAS on Linux, found none; install it (Debian: libopenblas0-pthread), name the file with "
           "--blas PATH, or measure without it with --blas none")


class BlasError(Exception):
    """A library of matrix products that is not there, or that a contender did not load."""


def find_blas(asked: str) -> Path | None:
    """Return the file to load first: `auto` looks for OpenBLAS on Linux, `none` is none, all else is a path.

    Raises BlasError where there is no such file.
    """
    if asked == "none" or (asked == "auto" and sys.platform != "linux"):
        return None
    found = [Path(asked)] if asked != "auto" else [*_usual(Path("/")), *_known()]
    file = next((file.resolve() for file in found if file.is_file()), None)
    if file is None:
        raise BlasError(MISSING if asked == "auto" else f"--blas: expected a library, found no file {asked}")
    return file


def _usual(root: Path) -> list[Path]:
    return [file for place in PLACES for file in sorted(root.glob(place))]


def _known() -> list[Path]:
    """Ask the loader, which knows names and no paths; its library is found among those that are mapped then."""
    name = ctypes.util.find_library("openblas")
    if name is None:
        return []
    ctypes.CDLL(name)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({Path(line.split(maxsplit=5)[-1]) for line in lines if "libopenblas" in line})


def describe_blas(file: Path | None) -> str:
    """Name the library as it names itself, with the kernels that it chose for this processor."""
    if file is None:
        return "Accelerate" if sys.platform == "darwin" else "each its own"
    ask = getattr(ctypes.CDLL(str(file)), "openblas_get_config", None)
    if ask is None:
        return file.name
    ask.restype = ctypes.c_char_p
    return str(ask().decode())


def with_blas(file: Path | None) -> dict[str, str]:
    """Return the environment for a contender."""
    first = {} if file is None else {"LD_PRELOAD": str(file)}
    return {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"} | first


def begin_with_blas(asked: str) -> Path | None:
    """Begin this program anew with the library, unless it has it; return its file."""
    try:
        file = find_blas(asked)
    except BlasError as error:
        sys.exit(f"Error: {error}")
    if os.environ.get("LD_PRELOAD") != with_blas(file).get("LD_PRELOAD"):
        os.execve(sys.executable, [sys.executable, *sys.argv], with_blas(file))
    return file


def check_loaded(name: str, file: Path | None, loaded: Sequence[str]) -> None:
    """Raise BlasError for a contender that runs without the library."""
    if file is not None and str(file) not in loaded:
        raise BlasError(f"{name}: expected {file} to be loaded, found {', '.join(loaded) or 'none'}; is it made for "
                        "this machine's processor?")
