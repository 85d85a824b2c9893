"""The metrics hook, for Prometheus; and how many sessions this machine can run."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine import LipSyncEngine
from ..media import FPS
from ..session.reference import PreparedReference
from .frame_encoder import JpegPacker

_COUNTERS = {
    "sessions_opened": "sessions that were opened",
    "sessions_closed": "sessions that ended",
    "interrupts": "interrupts",
    "chunks": "chunks that were made",
    "frames": "frames that were made",
    "pictures_dropped": "pictures left out for clients that are slow",
}
_SECONDS = {
    "first_frame": "from a segment's first sound to its first frame",
    "chunk": "to make a chunk of 12 frames",
    "queue": "of sound that waits when a chunk begins",
    "interrupt": "from an interrupt until the next chunk may begin",
    "lateness": "by which a frame is behind its clock",
}
_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.48, 0.64, 1, 2, 5, 10, 30, 60)


class Measures:
    """See `lipstream.metrics.Metrics`. Attributes: active: sessions on this server; its gauge. rejected: by reason."""

    def __init__(self, version: str, bundle: str) -> None:
        self._registry = registry = CollectorRegistry()
        self._counters = {n: Counter(f"lipstream_{n}", text, registry=registry) for n, text in _COUNTERS.items()}
        self._seconds = {
            n: Histogram(f"lipstream_{n}_seconds", f"seconds {text}", registry=registry, buckets=_BUCKETS)
            for n, text in _SECONDS.items()
        }
        self.active = Gauge("lipstream_sessions_active", "sessions that are open", registry=registry)
        self.most = Gauge("lipstream_sessions_most", "sessions that are admitted at once", registry=registry)
        self.rejected = Counter("lipstream_sessions_rejected", "connections refused", ["reason"], registry=registry)
        info = Gauge("lipstream_build_info", "what runs", ["version", "bundle"], registry=registry)
        info.labels(version, bundle).set(1)

    def count(self, name: str, by: int = 1) -> None:
        self._counters[name].inc(by)

    def observe(self, name: str, seconds: float) -> None:
        self._seconds[name].observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)


def sessions_that_fit(engine: LipSyncEngine, reference: PreparedReference, share: float = 0.75) -> int:
    """How many sessions this machine runs in real time, by running one as fast as it goes for a second or two.

    Args:
        share: of what it can do that is to be used.
    """
    engine.warmup()
    packer = JpegPacker()
    with engine.session(reference, idle="closed") as session:
        frames = session.frames()
        for _ in range(3 * 12):
            next(frames)
        begun, count = time.perf_counter(), 0
        while count < 4 * 12:
            packer.pack(next(frames).image)
            count += 1
        rate = count / (time.perf_counter() - begun)
    return max(1, int(share * rate / FPS))
