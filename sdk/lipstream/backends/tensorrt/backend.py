"""The TensorRT backend: a bundle of plans, loaded once and shared by all streams."""

from __future__ import annotations

from ...bundle import Bundle
from .resources import Resources
from .stream import TensorRTStream, Workspace
from .trace import Trace

try:
    import nvtx
except ImportError:
    nvtx = None


class TensorRTBackend:
    """A bundle that `lipstream build` wrote, on the first GPU of this process (CUDA_VISIBLE_DEVICES chooses it).

    All streams share the engines, the constants, three lanes, and the scratch memory of each lane. Chunks of all
    sessions are enqueued in the order in which they were started. Memory and captured graphs of a closed stream are
    reused by the next one.

    Args:
        threads: ignored: the GPU computes.

    Raises:
        BackendError, PlanError, GpuMemoryError: see `Resources`.
    """

    reuses_streams = True
    encode_clip = None

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        self.resources = Resources(bundle)
        self._free: list[Workspace] = []

    def open_stream(self) -> TensorRTStream:
        """Open a new stream. Raises GpuMemoryError; open streams continue."""
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = Workspace(self.resources)
        return TensorRTStream(self.resources, workspace, self._free.append)

    def trace(self) -> Trace:
        """Start to record the work on the lanes; for a few chunks."""
        trace = Trace(nvtx)
        for lane in self.resources.lanes:
            lane.trace = trace
        return trace
