"""What a validation shows beside the losses: how well generated lips follow the sound, and a picture of the clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lipstream.atomic import write_file
from lipstream_evaluate.faces import track_faces
from lipstream_evaluate.media import loudness
from lipstream_evaluate.statistics import correlation
from lipstream_evaluate.syncnet import SyncNet, mfcc
from lipstream_models import CausalDiT
from lipstream_models.mel import PAST_FRAMES, SAMPLES_PER_FRAME
from numpy.typing import NDArray
from torch import Tensor

from . import parallel
from .generate import generate
from .reward import sync_scores
from .stages import Networks
from .trainer import Data

_MOMENTS = 8
"""Frames of a clip in the picture."""
_WIDE = 192
"""Most pixels of a frame's width there."""
_SEEN = 256
"""Least pixels of a frame's width for the face's landmarks."""

Frames = NDArray[np.uint8]


class HeldOut:
    """Generates clips that are not trained on, with the same noise each time; measures and draws them.

    The measures are means over the clips: `sync_c` and `sync_d`, SyncNet's, or without SyncNet `opening`, the
    correlation of the gap between the lips with the loudness of the sound; and the same of the true clips, `true/...`.
    A measure that no clip has, as of faces that are not found, is left out.

    Args:
        stage: of the recipe; a teacher takes 50 steps. clips: of `data`.
        sound: float32 [samples] of a clip at 16 kHz, as stored in shards.
        decode: latents [B, C, F, h, w] -> video [B, V, 3, H, W] in [0, 1].
        folder: gets a picture for each validation, NNNNNNN.png: for each clip the true frames above the generated ones.
    """

    def __init__(
        self,
        networks: Networks,
        stage: str,
        data: Data,
        clips: Sequence[int],
        sound: Callable[[int], NDArray[np.float32]],
        decode: Callable[[Tensor], Tensor],
        folder: Path,
        syncnet: SyncNet | None = None,
    ) -> None:
        self._networks, self._stage, self._data, self._clips = networks, stage, data, clips
        self._sound, self._decode, self._folder, self._syncnet = sound, decode, folder, syncnet

    @torch.no_grad()
    def __call__(self, model: CausalDiT, iteration: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers and pictures (uint8 [H, W, 3]) by name. All ranks compute them; the first writes the file."""
        measures: dict[str, list[float]] = {}
        rows: list[Frames] = []
        for clip in self._clips:
            batch = self._data.batch((clip,)).to(self._networks.text.device)
            made = generate(self._networks, self._stage, model, batch, seed=clip)
            for prefix, latents in (("true/", batch.target), ("", made)):
                video = self._decode(latents)
                frames = (video[0] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
                begin = PAST_FRAMES * SAMPLES_PER_FRAME
                sound = self._sound(clip)[begin : begin + len(frames) * SAMPLES_PER_FRAME]
                for name, x in self._measured(video, frames, sound).items():
                    measures.setdefault(f"{prefix}{name}", []).append(x)
                rows.append(_row(frames))
        picture = np.concatenate(rows)
        if parallel.rank() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
            write_file(self._folder / f"{iteration:07d}.png", png)
        known = {name: [x for x in values if np.isfinite(x)] for name, values in measures.items()}
        numbers = {f"validation/{name}": float(np.mean(values)) for name, values in known.items() if values}
        return numbers, {"validation/clips": picture}

    def _measured(self, video: Tensor, frames: Frames, sound: NDArray[np.float32]) -> dict[str, float]:
        if self._syncnet is None:
            return {"opening": correlation(_gaps(frames), loudness(sound, len(frames)))}
        cepstra = torch.from_numpy(mfcc(sound))[None].to(video.device)
        (found,) = sync_scores(self._syncnet.to(video.device), video, cepstra)
        return {"sync_c": found.confidence, "sync_d": found.distance}


def _gaps(crops: Frames) -> NDArray[np.float64]:
    """The gap between the lips in each crop, float64 [n]; NaN where no face is found.

    A crop has no room around the face, which the detector expects: it gets a border.
    """
    height, width = crops.shape[1:3]
    factor = max(1.0, _SEEN / width)
    size = round(width * factor), round(height * factor)
    edge = size[0] // 3
    enlarged = (cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC) for crop in crops)
    framed = (cv2.copyMakeBorder(one, edge, edge, edge, edge, cv2.BORDER_REPLICATE) for one in enlarged)
    return track_faces(np.asarray(one, np.uint8) for one in framed).gap


def _row(frames: Frames) -> Frames:
    """Some of uint8 [n, H, W, 3] beside each other, made smaller where they are large."""
    moments = np.linspace(0, len(frames) - 1, _MOMENTS).round().astype(int)
    row = np.concatenate(list(frames[moments]), axis=1)
    factor = min(1.0, _WIDE / frames.shape[2])
    if factor == 1:
        return row
    size = _MOMENTS * _WIDE, round(frames.shape[1] * factor)
    return np.asarray(cv2.resize(row, size, interpolation=cv2.INTER_AREA), np.uint8)
