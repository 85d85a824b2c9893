"""The CUDA kernels and launchers, compiled for the host: the bits of the CPU ring, also under sanitizers.

`host/` holds what of CUDA they need, and the test itself, in C++.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HOST = Path(__file__).parent / "host"
ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or ""
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-ffp-contract=off", "-pthread", "-x", "c++"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "kernels_test"
    includes = [f"-I{HOST}", f"-I{ROOT / 'csrc' / 'include'}"]
    command = [COMPILER, *FLAGS, *options, *includes, str(HOST / "kernels_test.cpp"), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    return subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("options", [[], SANITIZERS], ids=["plain", "sanitized"])
def test_kernels_give_the_bits_of_the_cpu_ring(tmp_path: Path, options: list[str]) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "210 streams, 0 differences" in done.stdout


def test_a_missing_barrier_is_detected(tmp_path: Path) -> None:
    done = run(tmp_path, "-DLIPSTREAM_WITHOUT_BARRIERS")
    assert done.returncode == 1
    assert "differs" in done.stderr
