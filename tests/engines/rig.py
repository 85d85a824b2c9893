"""A `tensorrt` that parses and builds without a GPU, for tests: NVIDIA's Python bindings on TensorRT-RTX's libraries.

Found in LIPSTREAM_TRT_RIG (a folder to put on the import path), or assembled by `trt_cpu_rig.py` of the folder `shared`
beside the checkout. Used in separate processes, since its libraries are not those of an installed TensorRT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
TOOL = SHARED / "tools" / "trt_cpu_rig.py"


@cache
def rig() -> str | None:
    """The folder; None if it is not available."""
    if given := os.environ.get("LIPSTREAM_TRT_RIG"):
        return given
    if not TOOL.is_file():
        return None
    folder = Path(tempfile.gettempdir()) / f"lipstream-trt-rig-{os.getuid()}"
    subprocess.run([sys.executable, TOOL, folder], check=True, capture_output=True, timeout=600)
    return str(folder)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process in which `import tensorrt` gives the rig's."""
    found = rig()
    assert found
    return {**os.environ, "PYTHONPATH": found, **more}


def lipstream(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command with the rig's TensorRT."""
    command = [sys.executable, "-m", "lipstream", *map(str, arguments)]
    return subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=600, check=False
    )


def lipstream_json(*arguments: object, **variables: str) -> dict[str, object]:
    done = lipstream(*arguments, "--json", **variables)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result
