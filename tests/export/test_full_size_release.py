"""The 1.3B student at full size, its weights random: files of a release to a bundle, and a chunk of it on the CPU.

Prints what it took (`pytest -s`); docs/released.md has the numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lipstream import samples

from benchmarks.random_release import write_release

MEASURED = """
import json, sys, time
def gib():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) / 2**20
start = time.perf_counter()
{work}
print(json.dumps({{"seconds": round(time.perf_counter() - start), "peak_gib": round(gib(), 1), **found}}))
"""
EXPORT = """
from lipstream.cli import main
assert main(sys.argv[1:]) == 0
found = {}
"""
CHUNK = """
import numpy as np
from lipstream import LipSyncEngine
from lipstream.media import read_audio
bundle, video, audio = sys.argv[1:]
engine = LipSyncEngine.load(bundle)
loaded = round(time.perf_counter() - start)
samples, rate = read_audio(audio)
with engine.session(video) as session:
    session.push_audio(samples[:rate // 2], rate)
    frames = [frame.image for frame, _ in zip(session, range(9))]
changed = [bool(frame.any()) for frame in frames]
found = {"load_seconds": loaded, "frames": len(frames), "shape": list(frames[0].shape), "pictures": all(changed)}
"""


def measured(work: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", MEASURED.format(work=work), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 22 * 2**30, reason="takes 22 GiB of memory"
)
def test_a_bundle_of_full_size_is_exported_and_makes_a_chunk(tmp_path: Path) -> None:
    """With TAEHV as its encoder, too: the Wan VAE's takes ONNX Runtime 18 GiB more at 512 x 512."""
    files = write_release("1.3b", tmp_path / "files")
    bundle = tmp_path / "bundle"
    exported = measured(EXPORT, "export", *files, "--encoder", "taehv", "--no-parity", "-o", str(bundle), "--json")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert 1.5e9 < manifest["model"]["parameters"] < 1.7e9
    assert manifest["geometry"]["crop_size"] == [512, 512]
    made = measured(CHUNK, str(bundle), str(samples.FACE), str(samples.SPEECH))
    assert made["frames"] == 9
    assert made["shape"] == [320, 384, 3]
    assert made["pictures"]
    size = sum(path.stat().st_size for path in bundle.iterdir()) / 1e9
    print(f"\nexport {exported}; bundle {size:.2f} GB; chunk {made}")
