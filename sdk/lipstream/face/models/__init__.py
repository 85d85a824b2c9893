"""The networks of the face stage, read from the package's own files."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import cv2
import numpy as np

from ...errors import LipStreamInternalError


@cache
def _read(name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer((files(__name__) / f"{name}.tflite").read_bytes(), np.uint8)


def load_net(name: str, outputs: tuple[str, ...]) -> cv2.dnn.Net:
    """A new instance of network `name`; the file is read once per process, an instance serves one thread at a time."""
    net = cv2.dnn.readNetFromTFLite(_read(name))
    found = tuple(net.getUnconnectedOutLayersNames())
    if set(found) != set(outputs):
        raise LipStreamInternalError(f"OpenCV {cv2.__version__} sees outputs {found} in {name}.tflite, not {outputs}")
    return net
