"""The device that MLX computes on, in words and in bytes."""

import os
from typing import Any

import mlx.core as mx

from jobs.environment import chip


def device_name() -> str:
    """Name device and chip, as results record them: `gpu: Apple M3 Max`."""
    kind = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    return f"{kind}: {_info().get('device_name') or chip()}"


def memory_limit() -> int:
    """Return the bytes that a model may use: what Metal recommends, elsewhere the machine's memory."""
    info = _info()
    limit = info.get("max_recommended_working_set_size") or info.get("memory_size")
    return int(limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _info() -> dict[str, Any]:
    return dict(mx.device_info(mx.default_device()))
