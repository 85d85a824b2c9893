"""The clips that the tiny student is trained on: made once, on all cores, and kept on disk.

A share of them shows drawn people, the rest 3D people. An interrupted run continues with the clips that are missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.atomic import write_file
from lipstream_evaluate.processes import in_processes
from lipstream_models.config import StudentConfig
from lipstream_models.mel import LOOKAHEAD, LOOKBACK, PAST_FRAMES, SAMPLES_PER_FRAME
from numpy.typing import NDArray
from tqdm import tqdm

from .data.clips import draw_clip, training_rng
from .data.people3d.clips import render_clip

_BLOCK = 20  # clips between two saves


@dataclass(frozen=True)
class ClipSet:
    """N clips of V frames, S pixels a side.

    Attributes:
        target, reference: uint8 [N, V, S, S, 3]. identity: uint8 [N, S, S, 3].
        audio: float32 [N, samples], as `SpeechEncoder` takes them. mouth: float32 [N, V, 4].
    """

    target: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    identity: NDArray[np.uint8]
    audio: NDArray[np.float32]
    mouth: NDArray[np.float32]


def make_clips(
    folder: Path, config: StudentConfig, count: int, frames: int, drawn: float, *, first: int = 0
) -> ClipSet:
    """`count` clips of `frames` frames for a student of `config`, from `folder` where they are there already.

    Args:
        drawn: share of drawn people. first: number of the first clip; each number is another person and voice.

    Raises:
        MissingExtraError: a package for 3D people, or a synthesiser, is not installed.
    """
    size = config.crop_size[0]
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "target": ((frames, size, size, 3), np.uint8),
        "reference": ((frames, size, size, 3), np.uint8),
        "identity": ((size, size, 3), np.uint8),
        "audio": ((LOOKBACK + frames * SAMPLES_PER_FRAME + LOOKAHEAD,), np.float32),
        "mouth": ((frames, 4), np.float32),
    }
    numbers = f"{first}-{first + count - 1}" if first else str(count)
    kept = folder / f"clips-{numbers}x{frames}-{size}px-{round(100 * drawn)}drawn"
    kept.mkdir(parents=True, exist_ok=True)
    progress = kept / "done.json"
    done = int(json.loads(progress.read_text())) if progress.exists() else 0
    paths = {name: kept / f"{name}.npy" for name in shapes}
    if done < count:
        mode: Any = "r+" if done else "w+"
        arrays = {
            name: np.lib.format.open_memmap(paths[name], mode, dtype, (count, *shape))
            for name, (shape, dtype) in shapes.items()
        }
        jobs = [(first + i, frames, config, _is_drawn(first + i, drawn)) for i in range(done, count)]
        for i, clip in enumerate(tqdm(in_processes(_make, jobs), "clips", count, initial=done, unit="clip"), done):
            for name, array in arrays.items():
                array[i] = clip[name]
            if (i + 1) % _BLOCK == 0 or i + 1 == count:
                for array in arrays.values():
                    array.flush()
                write_file(progress, json.dumps(i + 1).encode())
    return ClipSet(**{name: np.load(path, mmap_mode="r") for name, path in paths.items()})


def _is_drawn(index: int, share: float) -> bool:
    """Whether clip `index` shows a drawn person: evenly spread."""
    return int((index + 1) * share) > int(index * share)


def _make(job: tuple[int, int, StudentConfig, bool]) -> dict[str, NDArray[Any]]:
    index, frames, config, drawn = job
    make = partial(draw_clip, phonemes=True) if drawn else render_clip
    clip = make(training_rng(index), frames, config.crop_size[0], config.crop_box)
    first = PAST_FRAMES * SAMPLES_PER_FRAME
    return {
        "target": clip.target,
        "reference": clip.reference,
        "identity": clip.identity,
        "audio": clip.audio[first - LOOKBACK : first + frames * SAMPLES_PER_FRAME + LOOKAHEAD],
        "mouth": clip.mouth.stacked(),
    }
