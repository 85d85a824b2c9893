"""Drawn people as sources of clips."""

from __future__ import annotations

import numpy as np

from ..data.clips import draw_clip
from .cut import Cut, Stretch, encoded_thumbnail
from .sample import members, picture_bytes, tensor_bytes, video_bytes
from .settings import FRAMES, Settings

_PREPARED = 5  # seeds [5, ...] are used here only


def draw_clip_of(number: int, settings: Settings) -> Cut:
    """The drawn clip with this number."""
    cut = Cut()

    def draw() -> dict[str, bytes]:
        rng = np.random.default_rng([_PREPARED, settings.seed, number])
        clip = draw_clip(rng, FRAMES, settings.size, settings.config.crop_box)
        about = {
            "source": f"drawn {number}",
            "start": 0,
            "student": settings.student,
            "measured": {},
            "same_moment": True,
        }
        target, reference = (video_bytes(x, settings.kind) for x in (clip.target, clip.reference))
        files = members(target, reference, picture_bytes(clip.identity), clip.audio, settings.kind, about)
        files["safetensors"] = tensor_bytes({"mouth": clip.mouth.stacked()})
        cut.stretches.append(Stretch(0, FRAMES, "", {}, encoded_thumbnail(clip.target[FRAMES // 2])))
        return files

    cut.samples = [(f"{0:07d}", draw)]
    return cut
