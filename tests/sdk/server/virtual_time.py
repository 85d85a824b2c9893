"""An event loop whose clock jumps to the next timer, and a generator of frames that takes a given time."""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import numpy as np
from lipstream.media import Picture
from lipstream.session import Frame

T = TypeVar("T")
CHUNK = 12


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen"
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs timers in order, without waiting for them."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class SlowSession:
    """As a session and its player: makes chunks of 12 frames from sound, `chunk_seconds` for each; idles without.

    Sound is 25 samples a second, so each frame has one sample.
    """

    def __init__(self) -> None:
        self.chunk_seconds = 0.1
        self.size = (16, 16)
        self._segments: deque[list[Any]] = deque()  # samples, ended
        self._ready: deque[Frame] = deque()
        self._epoch = 0
        self._closed = False

    def push_audio(self, samples: Any, rate: int) -> None:
        if not self._segments or self._segments[-1][1]:
            self._segments.append([[], False])
        self._segments[-1][0] += [int(x) for x in samples[:, 0]]
        self._drop_idle()

    def flush(self) -> None:
        if self._segments:
            self._segments[-1][1] = True

    def interrupt(self, unshown: int = 0) -> float:
        self._epoch += 1
        self._segments.clear()
        self._ready.clear()
        return 0.0

    def close(self) -> None:
        self._closed = True

    async def aclose(self) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        making = asyncio.ensure_future(self._make())
        try:
            while not self._closed:
                if self._ready:
                    yield self._ready.popleft()
                else:
                    await asyncio.sleep(0.01)
        finally:
            making.cancel()

    def _drop_idle(self) -> None:
        while self._ready and self._ready[-1].idle:
            self._ready.pop()

    async def _make(self) -> None:
        while True:
            if len(self._ready) >= CHUNK:
                await asyncio.sleep(0.01)
                continue
            epoch, spoken = self._epoch, bool(self._segments and self._spoken())
            await asyncio.sleep(self.chunk_seconds)
            if epoch != self._epoch:
                continue
            if spoken:
                segment = self._segments[0]
                taken, segment[0] = segment[0][:CHUNK], segment[0][CHUNK:]
                last = segment[1] and not segment[0]
                frames = [frame(x, last and i + 1 == len(taken)) for i, x in enumerate(taken)]
                if last:
                    self._segments.popleft()
            else:
                frames = [] if self._segments and self._spoken() else [frame(None, False)] * CHUNK
            self._ready.extend(frames)

    def _spoken(self) -> bool:
        samples, ended = self._segments[0]
        return ended or len(samples) >= CHUNK


def frame(sample: int | None, last: bool) -> Frame:
    audio = np.full((1, 1), (sample or 0) / 32768, np.float32)
    picture = Picture.of(np.zeros((16, 16, 3), np.uint8))
    return Frame(picture, audio, 0.0, 0, False, end_of_segment=last, speaking=sample is not None, idle=sample is None)
