"""A machine with an H100, simulated, and commands of the documentation that run on it in this process."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import doubles
import pytest
import torch._dynamo  # noqa: F401 (imported later, it looks for the double's spec)
from doubles import builder
from doubles.device import Device
from lipstream import samples
from lipstream.cli import build_parser, main
from lipstream.gpu import Driver, Gpu
from lipstream.server.app import create_app
from lipstream.server.settings import Settings
from starlette.testclient import TestClient

H100 = Driver("13.0", (Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 << 30),))


@contextmanager
def simulated_h100(folder: Path) -> Iterator[None]:
    """Work in `folder`, which gets a video, in.mp4."""
    device = Device(3)
    shutil.copy(samples.FACE, folder / "in.mp4")
    with doubles.gpu(device), pytest.MonkeyPatch.context() as patch:
        builder.add(sys.modules["tensorrt"])
        patch.setattr("lipstream_engines.runner.polygraphy", builder.polygraphy(device).__getitem__)
        for module in ("lipstream.cli.diagnosis", "lipstream.backends.device", "lipstream_engines.build"):
            patch.setattr(f"{module}.driver", lambda: H100)
        patch.setattr("benchmarks.stream.WARM_UP", 2)
        patch.setattr("benchmarks.stream.DEADLINE", 40.0)  # no waiting for real time
        patch.setenv("LIPSTREAM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield
    assert not device.hazards


def serve(words: list[str]) -> bool:
    """Whether the server becomes ready; without its port."""
    args = build_parser().parse_args(words)
    with TestClient(create_app(Settings(bundle=args.bundle, max_sessions=args.max_sessions))) as client:
        while (found := client.get("/v1/health/ready")).status_code == 503:
            time.sleep(0.05)
        return found.status_code == 200


def run(command: str) -> bool:
    """Run a command in this process, its stream benchmark for two chunks; whether it succeeded."""
    from benchmarks import common, stream

    words = shlex.split(command)
    if words[:2] == ["lipstream", "serve"]:
        return serve(words[1:])
    if words[0] == "lipstream":
        return main(words[1:]) == 0
    assert words[:3] == ["python", "-m", "benchmarks.stream"]
    return common.main(stream.run, stream.build_parser().parse_args([*words[3:], "--chunks", "2"])) == 0
