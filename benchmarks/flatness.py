"""Does a stream get slower, or larger, the longer it runs?

Ten minutes of speech are pushed to a live session on a looped reference, one chunk's length at a time. Each chunk is
timed, and the process's resident memory is read after it. The benchmark passes if the median chunk of the last minute
takes at most 1.1 times that of the first, and memory grows by at most 5 MiB after the first minute. The first ten
seconds, in which the ring and all caches fill, are excluded.

--live decodes, tracks and encodes the reference repeatedly during the stream, instead of preparing it once.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from lipstream import LipSyncEngine, samples
from lipstream.media import FPS, read_audio
from numpy.typing import NDArray
from tqdm import tqdm

from .common import duration, in_fresh_process, main, memory_mib, parser, spread, write

MARKS = (10, 30, 60, 120, 300, 600, 1800, 3600)  # seconds of sound at which the table has a row
SLOWDOWN, GROWTH = 1.1, 5.0
_WARM = 10.0  # seconds
_PERIOD = 60.0


def stream(bundle: str, threads: int, video: Path, audio: Path, seconds: float, live: bool) -> dict[str, list[float]]:
    """Run a session for `seconds` of sound.

    Returns:
        Per chunk `at`, its end on the stream's clock in seconds, `chunk_ms`, its wall time, and `rss_mib`, memory
        after it; `peak_mib` holds one number.
    """
    engine = LipSyncEngine.load(bundle, threads=threads)
    reference = video if live else engine.prepare(video)
    voice, rate = read_audio(audio)
    chunk = engine.manifest.geometry.video_frames
    size = chunk * rate // FPS
    rows: dict[str, list[float]] = {"at": [], "chunk_ms": [], "rss_mib": []}
    frames = pushed = 0
    with (
        engine.session(reference) as session,
        tqdm(total=round(seconds), desc="stream", unit="s", disable=None) as bar,
    ):
        while frames < seconds * FPS:
            session.push_audio(_looped(voice, pushed, size), rate)
            pushed += size
            start = time.perf_counter()
            made = sum(1 for _ in session)
            elapsed = time.perf_counter() - start
            if made:
                frames += made
                rows["at"].append(frames / FPS)
                rows["chunk_ms"].append(1000 * elapsed * chunk / made)
                rows["rss_mib"].append(memory_mib())
                bar.update(min(round(seconds), int(rows["at"][-1])) - bar.n)
    return rows | {"peak_mib": [memory_mib("VmHWM")]}


def _looped(voice: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
    return np.take(voice, np.arange(start, start + count), axis=0, mode="wrap")


def judge(rows: dict[str, list[float]]) -> dict[str, Any]:
    """First minute against the last, a row for each of `MARKS`, and whether it passed."""
    at, ms, rss = (np.array(rows[key]) for key in ("at", "chunk_ms", "rss_mib"))
    end = float(at[-1])
    period = min(_PERIOD, end / 3)
    warm = at > min(_WARM, period / 2)
    first, last = ms[warm & (at <= period)], ms[at > end - period]
    after = rss[at > period]
    growth = float(np.median(after[-25:]) - np.median(after[:25]))
    slowdown = float(np.median(last) / np.median(first))
    table = [
        {
            "seconds": mark,
            "chunk_ms": float(np.median(ms[(at > 0.75 * mark) & (at <= mark)])),
            "rss_mib": float(rss[at <= mark][-1]),
        }
        for mark in MARKS
        if mark <= end + 0.5
    ]
    return {
        "passed": slowdown <= SLOWDOWN and growth <= GROWTH,
        "criteria": {"slowdown_at_most": SLOWDOWN, "growth_mib_at_most": GROWTH},
        "seconds": end,
        "chunks": len(at),
        "first_period_chunk_ms": spread(first),
        "last_period_chunk_ms": spread(last),
        "period_seconds": period,
        "slowdown": slowdown,
        "rss_growth_mib": growth,
        "peak_mib": rows["peak_mib"][0],
        "table": table,
    }


def run(args: argparse.Namespace) -> bool:
    rows = in_fresh_process(stream, args.bundle, args.threads, args.video, args.audio, args.seconds, args.live)
    found = judge(rows)
    for row in found["table"]:
        print(f"{row['seconds']:>5} s: {row['chunk_ms']:7.1f} ms a chunk, {row['rss_mib']:7.1f} MiB resident")
    first, last = found["first_period_chunk_ms"], found["last_period_chunk_ms"]
    print(
        f"{'PASS' if found['passed'] else 'FAIL'}: {found['chunks']} chunks, {found['seconds']:.0f} s; median of the "
        f"first {found['period_seconds']:.0f} s {first['median']:.1f} ms, of the last {last['median']:.1f} ms "
        f"({found['slowdown']:.3f} times); memory {found['rss_growth_mib']:+.1f} MiB in between, "
        f"peak {found['peak_mib']:.0f} MiB"
    )
    write(args.json, "flatness", args, found)
    return bool(found["passed"])


def build_parser() -> argparse.ArgumentParser:
    options = parser("flatness", __doc__, least={"seconds": 6.0})
    options.add_argument("--seconds", type=duration, default=600.0, help="of sound (default 600)")
    options.add_argument("--live", action="store_true", help="an unprepared reference")
    options.add_argument("--video", type=Path, default=samples.FACE, help="default: the shipped sample")
    options.add_argument("--audio", type=Path, default=samples.SPEECH, help="repeated; default: the shipped sample")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
