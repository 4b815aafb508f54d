"""The device's memory: what is sensible, what may be asked for, and what MLX is held to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from store.errors import SettingsError
from workers import device
from workers.device import apply_limit, machine_memory, memory_limit

MAC = {"device_name": "Apple M3", "memory_size": 24 * 2**30, "max_recommended_working_set_size": 16 * 2**30}
CARD = {"device_name": "a card", "total_memory": 80 * 10**9, "free_memory": 79 * 10**9}


@pytest.fixture
def limits() -> Iterator[None]:
    """MLX's limits, put back behind the test."""
    memory, cache = mx.set_memory_limit(10**9), mx.set_cache_limit(0)
    mx.clear_cache()
    yield
    mx.set_memory_limit(memory)
    mx.set_cache_limit(cache)


def stand_in(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any]) -> None:
    """Let MLX tell of a GPU that is not here."""
    monkeypatch.setattr(device, "_info", lambda: info)
    monkeypatch.setattr(device, "_is_gpu", lambda: True)


def test_on_a_cpu_a_quarter_of_the_memory_is_left_to_others() -> None:
    assert memory_limit() == machine_memory() * 3 // 4


def test_on_a_mac_the_limit_is_what_metal_recommends_and_no_more_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, MAC)

    assert memory_limit() == 16 * 2**30
    assert memory_limit(8 * 10**9) == 8 * 10**9
    with pytest.raises(SettingsError, match=r"at most the 17\.2 GB that gpu: Apple M3 has .* found 20\.0 GB"):
        memory_limit(20 * 10**9)


def test_on_a_card_the_limit_leaves_a_tenth_and_what_others_have_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, CARD)
    assert memory_limit() == 72 * 10**9
    assert memory_limit(80 * 10**9) == 80 * 10**9

    stand_in(monkeypatch, CARD | {"free_memory": 30 * 10**9})
    assert memory_limit() == 30 * 10**9


def test_a_card_that_says_little_of_itself_has_a_limit_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, {"memory_size": 80 * 10**9})
    assert memory_limit() == 72 * 10**9

    stand_in(monkeypatch, {})
    assert memory_limit() == machine_memory() * 3 // 4


def test_more_than_the_machine_has_is_refused() -> None:
    assert memory_limit(machine_memory()) == machine_memory()
    with pytest.raises(SettingsError, match="--memory-limit: expected at most"):
        memory_limit(machine_memory() + 1)


@pytest.mark.parametrize(("lines", "file"), [
    (["0::/box/worker"], "box/worker/memory.max"), (["0::/box/worker"], "box/memory.max"), (["0::/"], "memory.max"),
    (["5:cpu:/x", "4:memory:/docker/1"], "memory/docker/1/memory.limit_in_bytes"),
    (["4:memory:/docker/1"], "memory/memory.limit_in_bytes"),
])
def test_the_limit_of_a_container_is_found_in_either_version(tmp_path: Path, lines: list[str], file: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("2000000000\n")
    (tmp_path / "box").mkdir(exist_ok=True)
    (tmp_path / "box" / "other.max").write_text("1\n")

    assert list(device._container_limits(lines, tmp_path)) == [2_000_000_000]


def test_a_container_without_a_limit_has_the_machine_s_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")

    assert list(device._container_limits(["0::/"], tmp_path)) == []


@pytest.mark.usefixtures("limits")
def test_freed_buffers_are_kept_up_to_their_share_of_the_limit() -> None:
    apply_limit(200_000_000)

    for n in range(20):
        mx.eval(mx.zeros(1_000_000 + n))      # 4 MB each, of no size twice

    assert mx.get_cache_memory() <= 10_000_000
    assert mx.set_memory_limit(200_000_000) == 200_000_000


def test_only_a_mac_of_macos_15_keeps_memory_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    wired: list[int] = []
    for name in ("set_memory_limit", "set_cache_limit"):
        monkeypatch.setattr(mx, name, lambda limit: None)
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)

    for info, version in ((CARD, 0), (MAC, 14), (MAC, 15), (MAC, 26)):
        stand_in(monkeypatch, info)
        monkeypatch.setattr(device, "_macos", lambda version=version: version)
        apply_limit(8 * 10**9)

    assert wired == [8 * 10**9, 8 * 10**9]
