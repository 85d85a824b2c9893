"""A stream of 24 hours by simulated clock: does it drift, slow down or grow?

Everything of a session runs except the networks and the blending: audio at 44.1 kHz is pushed in pieces of odd
lengths, resampled, and cut into windows; noise, rotation tables and the ring are real; frames are counted and get
their audio. The networks are replaced by a copy, so a day takes minutes. The benchmark passes if the number of frames
matches the audio's length, each frame has its samples and none is lost or repeated, the last hour's chunks take at
most 1.1 times the first's, and memory grows by at most 5 MiB after the first hour.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from lipstream.backends.base import Array
from lipstream.backends.ring import Ring
from lipstream.backends.stepped import SteppedStream
from lipstream.bundle import AudioGeometry, Geometry, Manifest
from lipstream.media import FPS, Picture
from lipstream.session import LipSyncSession
from lipstream.session.reference import SourceFrame
from numpy.typing import NDArray
from tqdm import tqdm

from .common import main, memory_mib, parser, spread, write

RATE = 44_100
SLOWDOWN, GROWTH = 1.1, 5.0
GEOMETRY = Geometry(
    crop_size=(16, 16),
    crop_box=(0.0, 0.0, 420.0, 560.0),
    latent_size=(2, 2),
    latent_channels=4,
    spatial=8,
    temporal=4,
    sequence="reference",
    chunk_frames=3,
    window=7,
    sink=1,
    tokens=4,
    num_heads=2,
    head_dim=12,
    num_layers=2,
)
AUDIO = AudioGeometry(sample_rate=16_000, samples_per_frame=640, lookback=5880, lookahead=760, features=4)


class Copies:
    """See `lipstream.backends.steps.Steps`: the ring is real, the networks copy."""

    def __init__(self) -> None:
        self.ring = Ring(GEOMETRY)

    def encode_audio(self, samples: Array) -> Array:
        return np.resize(samples, (GEOMETRY.video_frames, AUDIO.features)).astype(np.float32)

    def encode_video(self, frames: Array) -> Array:
        return np.resize(frames, (2, GEOMETRY.latent_channels, GEOMETRY.chunk_frames, *GEOMETRY.latent_size))

    def begin_chunk(self, chunk: int) -> None:
        self.ring.begin(chunk)

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        self.ring.swap()
        return latent * np.float32(0.5)

    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        self.ring.swap()

    def decode(self, latent: Array) -> Array:
        return np.resize(latent, (GEOMETRY.video_frames, 3, *GEOMETRY.crop_size))


class Still:
    """A reference of one picture; see `lipstream.session.reference.Reference`."""

    def __init__(self) -> None:
        image = np.zeros((16, 16, 3), np.uint8)
        self._frame = SourceFrame(Picture.of(image), image, np.eye(2, 3))

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        return [self._frame] * count

    def latents(self, first: int) -> None: ...

    def close(self) -> None: ...


class Untouched:
    """See `lipstream.face.FacePipeline`: returns the frame unchanged."""

    overlay = None

    def crop(self, frame: Picture, matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
        return frame.rgb

    def composite(
        self,
        frame: Picture,
        generated: Array,
        source_crop: NDArray[np.uint8],
        matrix: NDArray[np.float64],
        share: float = 1.0,
    ) -> Picture:
        return frame


def simulate(hours: float) -> dict[str, Any]:
    """Run the session and return its counters, hour by hour."""
    manifest = Manifest({"name": "copies"}, GEOMETRY, AUDIO, (0.999, 0.769, 0.0), "fp32")
    chunks = SteppedStream(Copies(), manifest.t_list, GEOMETRY.sequence, np.ones(GEOMETRY.latent_size, np.float32))
    rng = np.random.default_rng(0)
    total = int(hours * 3600 * RATE)
    sound = rng.standard_normal(RATE, np.float32) * np.float32(0.1)
    pushed = frames = samples = out_of_order = 0
    rows: list[dict[str, float]] = []
    chunk_ms: list[float] = []
    with (
        ThreadPoolExecutor(1) as pool,
        LipSyncSession(manifest, chunks, Still(), Untouched(), pool) as session,
        tqdm(total=round(hours * 60), desc="simulated", unit="min", disable=None) as bar,
    ):
        while pushed < total:
            piece = min(int(rng.integers(10_000, RATE)), total - pushed)
            session.push_audio(sound[:piece], RATE)
            pushed += piece
            if pushed == total:
                session.flush()
            begun, made = time.perf_counter(), 0
            for frame in session:
                out_of_order += frame.index != frames or frame.pts != frames / FPS
                frames += 1
                made += 1
                samples += len(frame.audio)
            if made:
                chunk_ms.append(1000 * (time.perf_counter() - begun) * GEOMETRY.video_frames / made)
            bar.update(frames // (60 * FPS) - bar.n)
            if frames >= (len(rows) + 1) * 3600 * FPS or pushed == total:
                rows.append(
                    {
                        "hours": frames / FPS / 3600,
                        "drift_samples": samples - round(frames * RATE / FPS),
                        "chunk_ms": spread(chunk_ms)["median"],
                        "rss_mib": memory_mib(),
                    }
                )
                chunk_ms.clear()
    return {
        "frames": frames,
        "frames_wanted": -(-total * FPS // RATE),
        "samples_pushed": pushed,
        "samples_given": samples,
        "out_of_order": out_of_order,
        "hours": rows,
    }


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """Summarise the simulation, and check the criteria."""
    rows = found["hours"]
    slowdown = rows[-1]["chunk_ms"] / rows[0]["chunk_ms"]
    growth = rows[-1]["rss_mib"] - rows[0]["rss_mib"]
    exact = found["frames"] == found["frames_wanted"] and found["out_of_order"] == 0
    exact = exact and 0 <= found["samples_given"] - found["samples_pushed"] < RATE / FPS  # filled up with silence
    passed = exact and slowdown <= SLOWDOWN and growth <= GROWTH
    return found | {"slowdown": slowdown, "rss_growth_mib": growth, "exact": exact, "passed": passed}


def run(args: argparse.Namespace) -> bool:
    found = judge(simulate(args.hours))
    silence = found["samples_given"] - found["samples_pushed"]
    print(
        f"{found['frames']} frames of {found['frames_wanted']}, {silence} samples of silence at the end, "
        f"{found['out_of_order']} out of order; chunks {found['slowdown']:.2f} times as long in the last hour, "
        f"memory grew by {found['rss_growth_mib']:.1f} MiB: {'PASS' if found['passed'] else 'FAIL'}"
    )
    write(args.json, "drift", args, found)
    return bool(found["passed"])


def build_parser() -> argparse.ArgumentParser:
    options = parser("drift", __doc__, bundle=False, least={"hours": 0.02})
    options.add_argument("--hours", type=float, default=24.0, help="of sound (default 24)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
