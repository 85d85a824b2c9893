#!/usr/bin/env python3
"""Draw the work of the TensorRT backend on the lanes of the double: `python tests/doubles/draw.py OUT.svg`.

The order and the overlaps are the backend's; the durations are made up (`trt.DURATIONS`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "engines")]

from lipstream import LipSyncEngine  # noqa: E402
from lipstream.bundle import Bundle  # noqa: E402

import doubles  # noqa: E402
from benchmarks import stream, timeline  # noqa: E402
from doubles.device import Device  # noqa: E402

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, doubles.gpu(Device(0)):
        plans = doubles.write_plans(Bundle.load("tiny"), "native", Path(folder) / "plans")
        spans = stream.record(LipSyncEngine.load(plans.path), None)
    title = "Three chunks of one stream on the three lanes (order as run by a double of the GPU; durations made up)"
    Path(sys.argv[1]).write_text(timeline.draw(spans, title))
