"""The networks of the face stage, read from the package's own files."""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from functools import cache
from importlib.resources import files

import cv2
import numpy as np

from ...errors import LipStreamInternalError

_MOST_IDLE = 4  # instances of a network that wait for another user


@cache
def _read(name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer((files(__name__) / f"{name}.tflite").read_bytes(), np.uint8)


_idle: defaultdict[str, deque[cv2.dnn.Net]] = defaultdict(lambda: deque(maxlen=_MOST_IDLE))


def net_for(owner: object, name: str, outputs: tuple[str, ...]) -> cv2.dnn.Net:
    """Network `name` for `owner`, to be used by one thread at a time; when `owner` is collected, another may use it.

    Loading one and running it for the first time takes some 30 ms.
    """
    try:
        net = _idle[name].pop()
    except IndexError:
        net = cv2.dnn.readNetFromTFLite(_read(name))
        found = tuple(net.getUnconnectedOutLayersNames())
        if set(found) != set(outputs):
            seen = f"OpenCV {cv2.__version__} sees outputs {found} in {name}.tflite, not {outputs}"
            raise LipStreamInternalError(seen) from None
    weakref.finalize(owner, _idle[name].append, net).atexit = False
    return net
