"""The TensorRT plugin compiles against TensorRT's headers and exports the symbols that TensorRT loads.

Headers: TENSORRT_ROOT/include (those of the repository NVIDIA/TensorRT do). Nothing is run: that takes a GPU.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_kernels_on_cpu import COMPILER, ROOT

HEADERS = Path(os.environ.get("TENSORRT_ROOT", "/nowhere")) / "include"
CUDA = next((p for p in sorted(Path("/usr/local").glob("cuda*/include")) if (p / "cuda_bf16.h").is_file()), None)


@pytest.mark.skipif(not (HEADERS / "NvInfer.h").is_file(), reason="needs TensorRT's headers in TENSORRT_ROOT/include")
@pytest.mark.skipif(CUDA is None, reason="needs CUDA's headers")
def test_the_plugin_compiles_and_exports_its_creators(tmp_path: Path) -> None:
    object_file = tmp_path / "plugin.o"
    command = [COMPILER, *["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC", "-c"]]
    command += ["-isystem", str(HEADERS), "-isystem", str(CUDA), f"-I{ROOT / 'csrc' / 'include'}"]
    command += [str(ROOT / "csrc" / "plugin" / "ring_plugin.cpp"), "-o", str(object_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    symbols = subprocess.run(["nm", object_file], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert {"getCreators", "setLoggerFinder"} <= exported
