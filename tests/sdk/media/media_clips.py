"""Clips written with PyAV only, whose frames show their number as a bar code that survives any codec."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

BITS, CELL = 10, 8
WIDTH, HEIGHT = BITS * CELL, 48


def stamped(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Frame with `number` in binary, black and white cells along its top, grey below."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        image[: height // 2, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    row = image[HEIGHT // 4, CELL // 2 : BITS * CELL : CELL, 1]
    return int(sum(int(value > 127) << bit for bit, value in enumerate(row)))


def write_clip(
    path: Path,
    frames: Sequence[NDArray[np.uint8]] | Sequence[av.VideoFrame],
    *,
    rate: int | Fraction = 25,
    times: Sequence[Fraction] | None = None,
    clock: Fraction = Fraction(1, 90_000),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    form: str | None = None,
    rotate: float | None = None,
    mirror: bool = False,
    options: dict[str, str] | None = None,
    audio: NDArray[np.float32] | None = None,
    audio_rate: int = 48_000,
) -> Path:
    """`times`: start of each frame in seconds; by default frame k starts at k / rate."""
    first = frames[0]
    height, width = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        stream = container.add_stream(codec, rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if isinstance(first, av.VideoFrame):
            stream.codec_context.colorspace = first.colorspace
            stream.codec_context.color_range = first.color_range
        if times is not None:
            stream.codec_context.time_base = clock
        if rotate is not None:
            stream.set_display_rotation(rotate, mirror, False)
        sound = container.add_stream("aac", rate=audio_rate, layout="mono") if audio is not None else None
        for k, item in enumerate(frames):
            frame = item if isinstance(item, av.VideoFrame) else av.VideoFrame.from_ndarray(item, format="rgb24")
            frame.time_base = 1 / Fraction(rate) if times is None else clock
            frame.pts = k if times is None else round(times[k] / clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None and audio is not None:
            for packet in encoded(sound, audio, audio_rate):
                container.mux(packet)
    return path


def encoded(stream: Any, samples: NDArray[np.float32], rate: int) -> list[av.Packet]:
    """Packets of float32 [n, channels] in one go."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), "flt", stream.layout.name)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return [*stream.encode(frame), *stream.encode(None)]


def write_sound(path: Path, samples: NDArray[np.float32], rate: int, codec: str, layout: str = "mono") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for packet in encoded(stream, samples, rate):
            container.mux(packet)
    return path


def cut(path: Path, part: float) -> Path:
    """Copy of the file with only the first `part` of its bytes."""
    data = path.read_bytes()
    short = path.with_name("cut_" + path.name)
    short.write_bytes(data[: int(len(data) * part)])
    return short


def noise_frames(count: int, width: int = 160, height: int = 120) -> list[NDArray[np.uint8]]:
    """Frames that do not compress, so that a part of the bytes is about that part of the frames."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def patches(seed: int = 0, rows: int = 4, columns: int = 6, cell: int = 16) -> NDArray[np.uint8]:
    """Flat patches of random colour, uint8 [rows * cell, columns * cell, 3]."""
    colours = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return np.kron(colours, np.ones((cell, cell, 1), np.uint8))


def centres(image: NDArray[np.uint8], cell: int = 16) -> NDArray[np.int64]:
    return image[cell // 2 :: cell, cell // 2 :: cell].astype(np.int64)
