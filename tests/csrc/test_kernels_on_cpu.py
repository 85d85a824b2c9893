"""The CUDA kernels and launchers, compiled for the host: the bits of the CPU ring, also under sanitizers.

`host/` holds what of CUDA they need, and the test itself, in C++.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture(scope="module", params=[[], SANITIZERS], ids=["plain", "sanitized"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("kernels"), "kernels_test", *request.param)


def test_kernels_give_the_bits_of_the_cpu_ring(kernels: Path) -> None:
    done = subprocess.run([kernels], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "340 streams, 0 differences" in done.stdout


ODD = [None, np.nan, np.inf, -np.inf]


def pictures(shape: tuple[int, int, int], odd: float | None) -> tuple[Any, Any]:
    """uint8 [n, H, W, 3] and float32 [n, 3, H, W]: all grey levels, values outside [0, 1] and half-way, and `odd`."""
    count, height, width = shape
    rng = np.random.default_rng(0)
    planes = rng.uniform(-0.2, 1.2, (count, 3, height, width)).astype(np.float32)
    half = ((np.arange(planes.size // 2) % 255 + 0.5) / 255).astype(np.float32)
    planes.reshape(-1)[: half.size] = half
    planes[-1, -1, -1, -1] = 0.25 if odd is None else odd
    return rng.integers(0, 256, (*shape, 3), np.uint8), planes


def converted(bytes_: Any, planes: Any) -> tuple[Any, Any]:
    """The first as planes, the second as bytes, by NumPy."""
    unpacked = np.ascontiguousarray(bytes_.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    rounded = np.rint(np.clip(np.nan_to_num(planes, nan=0.0), 0, 1) * np.float32(255))  # half to even
    return unpacked, rounded.transpose(0, 2, 3, 1).astype(np.uint8)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("shape", [(3, 17, 31), (1, 1, 1), (2, 32, 16)])
def test_pictures_are_converted_as_by_numpy(kernels: Path, shape: tuple[int, int, int], odd: float | None) -> None:
    """Bit for bit."""
    given, planes = pictures(shape, odd)
    command = [str(kernels), "pictures", str(shape[0]), str(shape[1] * shape[2])]
    sent = given.tobytes() + planes.tobytes()
    found = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=True).stdout
    unpacked, packed = converted(given, planes)
    assert found[: 5 * planes.size] == unpacked.tobytes() + packed.tobytes()
    assert np.frombuffer(found, np.int32, 1, 5 * planes.size).item() == (odd is not None)
