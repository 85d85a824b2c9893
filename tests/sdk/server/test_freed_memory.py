"""Memory that sessions leave behind goes back to the system."""

from __future__ import annotations

import asyncio
import sys

import pytest
from lipstream.server import freed_memory
from lipstream.server.freed_memory import FreedMemory


def resident() -> float:
    """MiB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux") or freed_memory._trim() is None, reason="needs glibc")
def test_what_was_freed_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_DELAY", 0.05)
    blocks = [b"x" * (60_000 + i) for i in range(3000)]
    last = blocks[-1]  # what is above the free memory keeps glibc from returning it
    del blocks
    before = resident()

    async def main() -> None:
        freed = FreedMemory()
        for _ in range(5):
            freed.return_soon()
        end = asyncio.get_running_loop().time() + 10
        while resident() > before - 100 and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)

    asyncio.run(main())
    assert resident() <= before - 100
    assert len(last) == 62_999


def test_calls_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_DELAY", 0.05)
    calls: list[int] = []
    monkeypatch.setattr(freed_memory, "_trim", lambda: calls.append)

    async def main() -> None:
        freed = FreedMemory()
        for _ in range(2):
            for _ in range(5):
                freed.return_soon()
            await asyncio.sleep(0.3)

    asyncio.run(main())
    assert calls == [0, 0]
