"""Source distribution and wheel: built from each other, installed without a compiler, run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES = 20e6
"""Of the wheel without CUDA."""

pytestmark = pytest.mark.slow


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    command = [str(python), "-m", "pip", *map(str, arguments), "--quiet"]
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = "import os, sys, scikit_build_core.build as b; os.chdir(sys.argv[1]); b.build_sdist(sys.argv[2])"
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    pip("install", "scikit-build-core", "pybind11", python=environment / "bin" / "python")
    subprocess.run([environment / "bin" / "python", "-c", code, ROOT, folder], check=True, capture_output=True)
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", sdist, "--no-deps", "--wheel-dir", folder, "-C", "cmake.define.LIPSTREAM_CUDA=OFF")
    (found,) = folder.glob("*.whl")
    return found


def test_the_source_distribution_is_complete(sdist: Path) -> None:
    """Every file of the repository, so that it can be tested from, too."""
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {name for name in listed.splitlines() if Path(ROOT, name).is_file()}
    assert {name for name in tracked - inside if not name.startswith(".")} == set()


def test_the_wheel_is_small_and_holds_what_runs(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES
    names = ZipFile(wheel).namelist()
    assert "lipstream/bundles/tiny/manifest.json" in names
    assert "lipstream/sample/face.mp4" in names
    assert "lipstream/py.typed" in names
    assert any(name.startswith("lipstream/_native") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]


def test_it_runs_where_there_is_no_compiler(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / "bin"
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    bare["PATH"] = str(bin)  # no compiler, no git
    command = [bin / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel]
    subprocess.run(command, check=True, env=bare, capture_output=True)
    program = (ROOT / "examples" / "quickstart.py").read_text()
    (tmp_path / "quickstart.py").write_text(program)
    subprocess.run([bin / "python", "quickstart.py", "out.mp4"], cwd=tmp_path, env=bare, check=True)
    shown = subprocess.run([bin / "lipstream", "doctor"], env=bare, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout
    assert (tmp_path / "out.mp4").stat().st_size > 50_000
