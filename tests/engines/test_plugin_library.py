"""The plugin's library, as nvcc built it, in TensorRT's own registry."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lipstream import plugin
from lipstream.errors import BackendError
from rig import environment

LOAD = """
import tensorrt
from lipstream import plugin
logger = tensorrt.Logger(tensorrt.Logger.ERROR)
builder = tensorrt.Builder(logger)
print("ready", flush=True)
for _ in range(2):
    plugin.load_plugin(tensorrt)
creator = tensorrt.get_plugin_registry().get_creator(plugin.NAME, plugin.VERSION, plugin.NAMESPACE)
print(*[(field.name, field.type.name) for field in creator.field_names])
"""


def test_tensorrt_finds_the_plugin_in_the_library(needs_rig: None) -> None:
    try:
        plugin.library()
    except BackendError:
        pytest.skip("needs nvcc: LipStream was built without its CUDA parts")
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    before, found = done.stdout.split("ready\n")
    assert found == "('eps', 'FLOAT32')\n"
    assert "KVRingWrite" not in before + done.stderr
