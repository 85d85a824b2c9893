"""The frameworks, each installed into a separate folder, because their dependencies conflict."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], str]:
    """Run a script with a framework installed beside what is here; what it printed."""
    folders: dict[str, str] = {}

    def run(requirement: str, script: Path) -> str:
        if requirement not in folders:
            # LIPSTREAM_BESIDE_LIVEKIT_AGENTS and so on: a folder that has it already.
            name = re.split(r"[\[=]", requirement)[0].upper().replace("-", "_")
            folders[requirement] = os.environ.get(f"LIPSTREAM_BESIDE_{name}", "")
        if not folders[requirement]:
            folder = tmp_path_factory.mktemp("beside")
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), requirement]
            subprocess.run(install, check=True, timeout=900)
            folders[requirement] = str(folder)
        environment = {**os.environ, "BESIDE": folders[requirement], "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout

    return run
