"""Settings of all tests: hypothesis without deadlines, since nothing here may depend on how fast a machine is.

Where pytest-xdist runs them in several processes, each computes on one thread: they would only hold each other up.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch and OpenCV are imported

from hypothesis import settings

settings.register_profile("lipstream", deadline=None)
settings.load_profile("lipstream")
