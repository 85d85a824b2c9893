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
WITHOUT_BARRIERS = "-DLIPSTREAM_WITHOUT_BARRIERS"


def compiled(folder: Path, source: str | Path, *options: str, to: Path | None = None) -> Path:
    """The program of a source, one of `host` by its name, against the stand-ins of `host` for CUDA."""
    path = source if isinstance(source, Path) else HOST / f"{source}.cpp"
    program = to or folder / path.stem
    includes = [f"-I{HOST}", f"-I{ROOT / 'csrc' / 'include'}"]
    includes += ["-isystem", str(ROOT / "csrc" / "third_party" / "tensorrt")]
    command = [COMPILER, *FLAGS, *options, *includes, str(path), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.mark.parametrize("options", [[], SANITIZERS], ids=["plain", "sanitized"])
def test_kernels_give_the_bits_of_the_cpu_ring(tmp_path: Path, options: list[str]) -> None:
    program = compiled(tmp_path, "kernels_test", *options)
    done = subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "340 streams, 0 differences" in done.stdout
