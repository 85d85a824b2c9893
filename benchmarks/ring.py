"""What the K/V ring saves: the same passes, with it and without.

Without K/V memory a causal DiT has to run every frame of the window through all its layers in every pass: the past
ones clean at t = 0, the chunk at its t, no frame attending to a later chunk. With the ring a pass runs only the chunk,
and one additional pass at t = 0 stores its K and V. Both run here with the same weights on PyTorch (eager), in one
process, in alternation.

exact   The last chunk for which the window still contains everything before it, (window - sink) latent frames: here
        both compute the same, and their velocities must agree to 1e-4 before any time counts.
steady  A chunk far into a stream, `window` latent frames. The cost is that of every later chunk; the results differ,
        because the ring's past K/V were computed when frames that have left the window were still there.

Per chunk the ring takes its denoising passes and the context pass, recomputing takes the denoising passes alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lipstream.backends.base import Array
from lipstream.bundle import Bundle
from lipstream.errors import ParityError
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import CausalDiT, RingGeometry, StudentConfig
from lipstream_models.dit import attention
from lipstream_models.parts import StudentParts
from lipstream_models.rope import rotate, spatial_angles, temporal_angles, token_angles
from torch import Tensor
from tqdm import tqdm

from .common import in_fresh_process, main, parser, positive, spread, write

TOLERANCE = 1e-4
WIDE = StudentConfig(
    dim=768, ffn_dim=3072, num_heads=6, num_layers=6, latent_size=(24, 24), text_dim=32, text_len=4, audio_dim=384
)
"""A student between tiny and 1.3b in width; its weights are random."""
WINDOWS = (7, 10, 13)


class WindowAttention:
    """Self-attention of all frames of a window at once, each frame over its own chunk and the chunks before it.

    Args:
        frames: absolute indices of the window's latent frames, ascending; whole chunks, but for the sink before them.
        positions: the temporal index that RoPE gives to each.
    """

    def __init__(self, config: StudentConfig, frames: list[int], positions: list[int]) -> None:
        angles = token_angles(
            temporal_angles(torch.tensor(positions), config.head_dim), spatial_angles(config.grid, config.head_dim)
        )
        self._cos, self._sin = (x.float().flatten(0, 1)[:, None] for x in (angles.cos(), angles.sin()))
        chunks = [frame // config.chunk_frames for frame in frames]
        starts = [i for i in range(len(chunks)) if i == 0 or chunks[i] != chunks[i - 1]]
        ends = [*starts[1:], len(chunks)]
        self._spans = [(a * config.tokens, b * config.tokens) for a, b in zip(starts, ends, strict=True)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (rotate(x, self._cos, self._sin) for x in (q, k))
        # Chunk by chunk instead of a mask, so that no masked value is computed.
        return torch.cat([attention(q[:, a:b], k[:, :b], v[:, :b]) for a, b in self._spans], dim=1)


class Stream:
    """Random latents, conditions and sound of a stream, and both ways to run a pass over its chunk `chunk`."""

    def __init__(self, student: CausalDiT, text: Tensor, chunk: int, seed: int = 0) -> None:
        self.student, self.chunk, c = student, chunk, student.config
        self._text_kv = [(k[:1], v[:1]) for k, v in student.text_kv(text[None])]
        rng = np.random.default_rng(seed)
        frames = c.chunk_frames * (chunk + 1)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, np.float32)

        self._clean = normal(c.latent_channels, frames, *c.latent_size)
        self._noisy = normal(c.latent_channels, c.chunk_frames, *c.latent_size)
        self._condition = normal(c.in_channels - c.latent_channels, frames, *c.latent_size)
        self._audio = normal(4 * frames, c.audio_dim)
        self._ring = TorchBackend(StudentParts(c, student, text)).open_steps()
        for past in range(chunk):
            self._ring.begin_chunk(past)
            self._ring.context(*self._of_chunk(self._clean, past))
        self._ring.begin_chunk(chunk)

    def _of_chunk(self, latent: Array, chunk: int) -> tuple[Array, Array, Array]:
        c = self.student.config.chunk_frames
        frames = slice(c * chunk, c * (chunk + 1))
        own = latent if latent.shape[1] == c else latent[:, frames]
        return own, self._condition[:, frames], self._audio[4 * frames.start : 4 * frames.stop]

    def ring(self, step: int) -> Array:
        """Velocity of the chunk, with the ring."""
        return self._ring.denoise(*self._of_chunk(self._noisy, self.chunk), step)

    def context(self) -> None:
        """The pass that stores the chunk's K and V in the ring."""
        self._ring.context(*self._of_chunk(self._clean, self.chunk))

    @torch.inference_mode()
    def recompute(self, step: int) -> Array:
        """Velocity of the chunk, computed only from the latents of the window."""
        config = self.student.config
        c, past = config.chunk_frames, config.chunk_frames * self.chunk
        position = RingGeometry(config.window, config.sink, c).at(self.chunk)
        sink, rolling = position.anchored, position.valid - position.anchored
        window = [*range(sink), *range(past + c - rolling, past + c)]
        attend = WindowAttention(config, window, [*(i + position.shift for i in range(sink)), *window[sink:]])
        latent = np.concatenate([self._clean[:, window[:-c]], self._noisy], axis=1)
        audio = self._audio.reshape(-1, 4, config.audio_dim)[window].reshape(-1, config.audio_dim)
        t = torch.zeros(1, len(window), dtype=torch.float64)
        t[:, -c:] = config.t_list[step]
        latent_, condition, audio_ = (torch.from_numpy(x)[None] for x in (latent, self._condition[:, window], audio))
        velocity = self.student(latent_, condition, audio_, t, self._text_kv, attend)
        return np.asarray(velocity[0, :, -c:].numpy())


def measure(student: CausalDiT, text: Tensor, *, steady: bool, repeats: int) -> dict[str, Any]:
    """One chunk both ways, `repeats` times in turns; milliseconds of a pass and of a chunk, and their ratios.

    Raises:
        ParityError: `steady` is False, and the two do not compute the same.
    """
    config = student.config
    blocks = (config.window - config.sink) // config.chunk_frames
    steps = range(len(config.t_list) - 1)
    with torch.inference_mode():
        stream = Stream(student, text, chunk=2 * blocks + 2 if steady else blocks - 1)
        difference = max(relative_error(stream.recompute(step), stream.ring(step)) for step in steps)
    if not steady and not difference <= TOLERANCE:
        raise ParityError(f"ring and recomputation differ by {difference:.1e}", expected=f"at most {TOLERANCE:.0e}")
    rows = []
    for _ in range(repeats):
        ring = [seconds(stream.ring, step) for step in steps]
        again = [seconds(stream.recompute, step) for step in steps]
        rows.append((np.mean(ring), np.mean(again), sum(ring) + seconds(stream.context), sum(again)))
    ring_pass, recompute_pass, ring_chunk, recompute_chunk = 1000 * np.array(rows).T
    return {
        "latent_frames": config.window - (0 if steady else config.sink),
        "relative_difference": difference,
        "ring_pass_ms": spread(ring_pass),
        "recompute_pass_ms": spread(recompute_pass),
        "pass_ratio": spread(recompute_pass / ring_pass),
        "ring_chunk_ms": spread(ring_chunk),
        "recompute_chunk_ms": spread(recompute_chunk),
        "chunk_ratio": spread(recompute_chunk / ring_chunk),
    }


def seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def case(bundle: str | None, window: int, threads: int, repeats: int) -> dict[str, Any]:
    """Both measurements of the student in `bundle`, or of a random `WIDE` one, with another window."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if bundle is None:
        student = CausalDiT(replace(WIDE, window=window)).eval()
    else:
        parts = StudentParts.from_bundle(Bundle.load(bundle))
        assert parts.student, "the bundle has no denoiser"
        student = parts.student
        student.config = replace(parts.config, window=window)
    text = torch.randn(student.config.text_len, student.config.text_dim)
    return {
        name: measure(student, text, steady=steady, repeats=repeats)
        for name, steady in (("exact", False), ("steady", True))
    }


def run(args: argparse.Namespace) -> bool:
    models = {"bundle": args.bundle} | ({} if args.quick else {"wide": None})
    results: dict[str, Any] = {}
    cases = [(name, window) for name in models for window in args.windows]
    for name, window in tqdm(cases, desc="ring", unit="case", disable=None):
        repeats = args.repeats if models[name] else max(2, args.repeats // 4)
        found = in_fresh_process(case, models[name], window, args.threads, repeats)
        results[f"{name}, window {window}"] = found
        for kind, m in found.items():
            print(
                f"{name}, window {window}, {kind}: recomputing {m['latent_frames']} latent frames takes "
                f"{m['pass_ratio']['median']:.2f} times as long per pass "
                f"({m['recompute_pass_ms']['median']:.1f} ms, ring {m['ring_pass_ms']['median']:.1f} ms), "
                f"{m['chunk_ratio']['median']:.2f} times as long per chunk; "
                f"velocities differ by {m['relative_difference']:.1e}",
                flush=True,
            )
    write(args.json, "ring", args, results)
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("ring", __doc__, least={"windows": (7, 10), "repeats": 2})
    options.add_argument("--windows", type=positive, nargs="+", default=WINDOWS, help="default: 7 10 13")
    options.add_argument("--repeats", type=positive, default=40, help="of each case, wide ones a quarter (default 40)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
