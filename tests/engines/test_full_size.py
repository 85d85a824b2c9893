"""The released sizes, random weights, through NVIDIA's builder. The figures stand in docs/engines.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rig import environment

SCRIPT = Path(__file__).with_name("full_size.py")


def run(*arguments: object, **options: Any) -> Any:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize(("size", "layers"), [("1.3b", 0), ("14b", 4)])
def test_full_size(needs_rig: None, tmp_path: Path, size: str, layers: int, precision: str) -> None:
    exported = run("export", size, precision, tmp_path / "bundle", "--layers", layers)
    print(size, precision, "exported", exported)
    for ring in ("native", "function"):
        built = run("build", tmp_path / "bundle", ring, env=environment())
        print(size, precision, ring, built)
        assert "denoiser" in built
        assert all(0.3 < plan["mb"] / exported["mb"] < 1.5 for plan in built.values())


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["wan", "taehv"])
def test_full_size_codec_and_audio_encoder(needs_rig: None, tmp_path: Path, codec: str) -> None:
    """In bf16; an fp8 bundle has the same three graphs."""
    exported = run("export", codec, "bf16", tmp_path / "bundle")
    print(codec, "exported", exported)
    built = run("build", tmp_path / "bundle", "native", env=environment())
    print(codec, built)
    assert {*built} == {"audio_encoder", "video_encoder", "video_decoder"}
