"""The device that MLX computes on, in words and in bytes."""

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import mlx.core as mx

from jobs.environment import chip
from jobs.memory import KEPT
from jobs.sizes import format_size
from store.errors import SettingsError

# What is left to others where nothing recommends a size.
CPU_SHARE = 3, 4       # of the machine's memory: the system, Python and the page cache need theirs
CUDA_SHARE = 9, 10     # of the card's memory: MLX's own limit there
CGROUPS = Path("/sys/fs/cgroup")


def device_name() -> str:
    """Name device and chip, as results record them: `gpu: Apple M3 Max`."""
    kind = "gpu" if _is_gpu() else "cpu"
    return f"{kind}: {_info().get('device_name') or chip()}"


def memory_limit(asked: int | None = None) -> int:
    """Return the bytes that MLX may hold: what was asked for, else what is sensible here. Ask before loading a model.

    Raises SettingsError for more than the device has: on Metal the recommended working set, elsewhere its memory.
    """
    sensible, most = _memory()
    if asked is None:
        return sensible
    if asked > most:
        more = ("; macOS gives a GPU more with `sudo sysctl iogpu.wired_limit_mb=...`" if mx.metal.is_available()
                else "")
        raise SettingsError(f"--memory-limit: expected at most the {format_size(most)} that {device_name()} has for a "
                            f"model, found {format_size(asked)}; leave it out for {format_size(sensible)}{more}")
    return asked


def apply_limit(limit: int) -> None:
    """Hold MLX to a limit in bytes; may be repeated.

    Over it, MLX waits for work that is under way before it begins more. Freed buffers are kept for reuse up to the
    share that the memory plan leaves for them. On Metal what is in use stays resident, which macOS 15 allows.
    """
    mx.set_memory_limit(limit)
    mx.set_cache_limit(limit // KEPT)
    recommended = _info().get("max_recommended_working_set_size")
    if recommended and _macos() >= 15:
        mx.set_wired_limit(min(limit, int(recommended)))


def _memory() -> tuple[int, int]:
    """Return the bytes that are sensible to use, and the most that there are."""
    info = _info()
    if recommended := info.get("max_recommended_working_set_size"):      # Metal
        return int(recommended), int(recommended)
    card = info.get("total_memory") or info.get("memory_size")           # CUDA
    if _is_gpu() and card:
        return min(_share(int(card), CUDA_SHARE), int(info.get("free_memory") or card)), int(card)
    machine = machine_memory()
    return _share(machine, CPU_SHARE), machine


def _share(size: int, share: tuple[int, int]) -> int:
    return size * share[0] // share[1]


def machine_memory() -> int:
    """Return the bytes of memory that this process may have: the machine's, or what a container leaves of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = Path("/proc/self/cgroup")
    lines = groups.read_text().splitlines() if groups.is_file() else []
    return min([physical, *_container_limits(lines, CGROUPS)])


def _container_limits(lines: Iterable[str], root: Path) -> Iterator[int]:
    """Yield the memory limits of the control groups in /proc/self/cgroup, and of those that they lie in."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):      # the second version names none
            folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                file = folder / str(group).lstrip("/") / name
                limit = file.read_text().strip() if file.is_file() else "max"
                if limit.isdecimal():
                    yield int(limit)


def _is_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)


def _macos() -> int:
    """Return the version of macOS, as 15; 0 elsewhere."""
    return int(platform.mac_ver()[0].partition(".")[0] or 0)


def _info() -> dict[str, Any]:
    return dict(mx.device_info(mx.default_device()))
