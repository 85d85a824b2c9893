"""Options for finding, tracking and compositing the face of a video."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..checks import check_path
from ..errors import ConfigError
from .tracking import FaceTracker, Policy, Tracker

Doubtful = Literal["paint", "bypass"]


@dataclass(frozen=True)
class FaceOptions:
    """How the face of a reference is found, cropped and composited.

    Attributes:
        policy: for frames without the face. "hold": use its last position; "bypass": keep the frame unchanged; "raise":
            FaceNotFoundError. Frames before the first face are bypassed, but for "raise".
        at: (x, y) in pixels near the wanted face in the first frame; None for the largest face.
        doubtful: for frames in which a generated mouth cannot be right, because something covers the mouth, or the face
            is drawn in flat colours. "paint": generate it in any case; "bypass": keep the frame unchanged.
        insightface: folder of InsightFace's models, to find faces exactly as the upstream system does. They are for
            non-commercial research only; None for the networks that LipStream ships.
        upstream: read video and sound, crop, composite and sample frames as the upstream system does, to compare with
            its output, and write as many; slower and of lower quality (docs/released.md has a table). For bundles of
            released weights. Files with sound of another rate than 16 kHz need `lipstream[upstream]`.
    """

    policy: Policy = "hold"
    at: tuple[float, float] | None = None
    doubtful: Doubtful = "paint"
    insightface: str | os.PathLike[str] | None = None
    upstream: bool = False

    def __post_init__(self) -> None:
        if self.doubtful not in get_args(Doubtful):
            raise ConfigError(f"doubtful={self.doubtful!r}", expected="'paint' or 'bypass'")
        if self.insightface is not None:
            check_path("insightface", self.insightface)
            object.__setattr__(self, "insightface", Path(self.insightface))  # so that equal folders compare equal

    def tracker(self) -> Tracker:
        """A tracker for one video.

        Raises:
            ConfigError: an option is not valid. MissingExtraError: insightface is not installed.
        """
        if self.insightface is None:
            return FaceTracker(self.policy, self.at, cuts=not self.upstream)
        from .insightface import InsightFaceTracker

        return InsightFaceTracker(self.insightface, self.policy, self.at, cuts=not self.upstream)
