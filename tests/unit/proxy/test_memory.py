"""How the kernel's numbers become the share of memory that Envoy is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gatehouse.proxy.edge.memory import (
    BUSY_S,
    IDLE_S,
    MemoryGauge,
    interval_s,
    watch_memory,
    write_saturation,
)


def group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text + "\n")


def gauge(tmp_path: Path, own: str) -> MemoryGauge:
    (tmp_path / "own").write_text(own)
    return MemoryGauge(tmp_path / "fs", tmp_path / "own")


def v2(tmp_path: Path) -> Path:
    mount = tmp_path / "fs"
    group(mount, cgroup__controllers="cpu memory")
    return mount


def test_version_2_counts_what_the_kernel_would_not_give_back(tmp_path: Path) -> None:
    group(
        v2(tmp_path) / "app",
        memory__max="1000",
        memory__current="900",
        memory__stat="anon 500\ninactive_file 300\nactive_file 100",
    )
    read = gauge(tmp_path, "0::/app\n")
    assert read.saturation() == pytest.approx(0.6)
    assert read.group() == "/app"


def test_the_fullest_group_around_decides(tmp_path: Path) -> None:
    mount = v2(tmp_path)
    group(mount / "pod", memory__max="1000", memory__current="950")
    group(mount / "pod" / "app", memory__max="max", memory__current="400")
    assert gauge(tmp_path, "0::/pod/app\n").saturation() == pytest.approx(0.95)


def test_inside_a_container_the_own_group_is_the_root(tmp_path: Path) -> None:
    group(v2(tmp_path), memory__max="200", memory__current="50")
    assert gauge(tmp_path, "0::/somewhere/outside\n").saturation() == pytest.approx(0.25)


def test_version_1(tmp_path: Path) -> None:
    group(
        tmp_path / "fs" / "memory" / "app",
        memory__limit_in_bytes="1000",
        memory__usage_in_bytes="700",
        memory__stat="inactive_file 1\ntotal_inactive_file 200",
    )
    read = gauge(tmp_path, "5:cpu:/app\n4:memory:/app\n")
    assert read.saturation() == pytest.approx(0.5)
    assert read.group() == "/app"


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", ""])
def test_without_a_limit_nothing_is_full(tmp_path: Path, limit: str) -> None:
    group(
        tmp_path / "fs" / "memory" / "app",
        memory__limit_in_bytes=limit,
        memory__usage_in_bytes="700",
    )
    assert gauge(tmp_path, "4:memory:/app\n").saturation() == 0.0


def test_a_machine_without_groups(tmp_path: Path) -> None:
    read = MemoryGauge(tmp_path, tmp_path / "missing")
    assert read.saturation() == 0.0
    assert read.group() == "/"


def test_looks_come_closer_as_memory_fills() -> None:
    delays = [interval_s(share / 100) for share in range(101)]
    assert delays == sorted(delays, reverse=True)
    assert delays[0] == IDLE_S
    assert delays[100] == BUSY_S


def test_the_file_is_replaced_and_not_written_to(tmp_path: Path) -> None:
    file = tmp_path / "saturation"
    write_saturation(file, 0.5)
    first = file.stat().st_ino
    write_saturation(file, 1.0)
    assert file.read_text() == "1.0000"
    assert file.stat().st_ino != first
    assert [path.name for path in tmp_path.iterdir()] == ["saturation"]


@pytest.mark.parametrize(("enabled", "told"), [(True, "0.5000"), (False, "0.0000")])
async def test_envoy_is_told_that_nothing_is_full_where_a_flag_says_so(
    tmp_path: Path, *, enabled: bool, told: str
) -> None:
    group(v2(tmp_path), memory__max="1000", memory__current="500", memory__stat="inactive_file 0")
    stop, seen = asyncio.Event(), list[float]()
    stop.set()
    file = tmp_path / "saturation"
    full = gauge(tmp_path, "0::/")
    await watch_memory(full, file, stop, enabled=lambda: enabled, seen=seen.append)
    assert file.read_text() == told
    assert seen == [float(told)]
