"""The metrics hook, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_COUNTERS = {
    "sessions_opened": "sessions opened",
    "sessions_closed": "sessions closed",
    "interrupts": "interrupts",
    "chunks": "chunks generated",
    "frames": "frames generated",
    "pictures_dropped": "pictures dropped for slow clients",
    "pictures_skipped": "pictures not generated because they would be late",
}
_SECONDS = {
    "first_frame": "from a segment's first sound to its first frame",
    "chunk": "to generate a chunk of 12 frames, without compositing them",
    "queue": "of audio pending when a chunk begins",
    "interrupt": "from an interrupt until the next chunk may begin",
    "lateness": "by which a frame comes after it was due",
}
_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.48, 0.64, 1, 2, 5, 10, 30, 60)


class PrometheusMetrics:
    """See `lipstream.metrics.Metrics`.

    Attributes:
        active, most: gauges of open sessions, and of sessions admitted at once. rejected: connections, by reason.
    """

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
        info = Gauge("lipstream_build_info", "versions", ["version", "bundle"], registry=registry)
        info.labels(version, bundle).set(1)

    def count(self, name: str, by: int = 1) -> None:
        self._counters[name].inc(by)

    def observe(self, name: str, seconds: float) -> None:
        self._seconds[name].observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
