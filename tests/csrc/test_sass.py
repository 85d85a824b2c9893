"""What the compiler makes of the ring's kernels for an H100: wide accesses, no spills, no division of indices."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from test_kernels_on_cpu import ROOT

NVCC = shutil.which("nvcc")
# On the path, next to nvcc, or of the package nvidia-cuda-nvdisasm.
PLACES = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", f"{sysconfig.get_path('purelib')}/nvidia/cu13/bin"]
NVDISASM = shutil.which("nvdisasm", path=os.pathsep.join(PLACES))

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The kernels for compute capability 9.0, and what ptxas says of them."""
    path = tmp_path_factory.mktemp("sass") / "ring.cubin"
    command = [
        str(NVCC),
        "-std=c++17",
        "-O3",
        "--fmad=false",
        "-arch=sm_90",
        "-Xptxas",
        "-v",
        "-cubin",
        "-o",
        str(path),
    ]
    command += [f"-I{ROOT / 'csrc' / 'include'}", str(ROOT / "csrc" / "src" / "ring_cuda.cu")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return path, done.stderr


def test_nothing_is_spilled(cubin: tuple[Path, str]) -> None:
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", cubin[1])
    assert len(spills) == 18
    assert set(spills) == {("0", "0", "0")}


@pytest.mark.skipif(NVDISASM is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm")
def test_accesses_are_wide_and_no_index_is_divided(cubin: tuple[Path, str]) -> None:
    listing = subprocess.run([str(NVDISASM), cubin[0]], capture_output=True, text=True, timeout=120, check=True).stdout
    found: dict[str, str] = {}
    for section in listing.split(".section\t.text.")[1:]:
        name, code = section.split(",", 1)
        found[name] = code
    assert sum("ring_write_kernel" in name for name in found) == 8
    for name, code in found.items():
        assert not re.search(r"\b(LDG|STG)\.\S*[US]8\b", code), f"{name} reads or writes single bytes"
        assert not re.search(r"\b(LDL|STL)\b", code), f"{name} uses local memory"
        assert not re.search(r"__cuda_\w*(div|rem)_[us](16|64)", code), f"{name} divides an index"
        wide = "Li1E" not in name and not name.startswith("_ZN9lipstream4cuda16ring_keep_kernelIt")
        if wide:  # 8 codes are written by each thread that reads 8 numbers
            assert "LDG.E.128" in code, name
            assert ("STG.E.64" if "13__nv_bfloat16hLi4" in name else "STG.E.128") in code, name
