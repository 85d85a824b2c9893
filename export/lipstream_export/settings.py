"""Settings of `lipstream export` with their defaults. Imports no torch, because the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lipstream import samples
from lipstream.errors import ConfigError

LOOKBACK, LOOKAHEAD = 3.2, 0.08
"""Seconds of sound before and after each chunk of a stream in the input of wav2vec 2.0. docs/released.md
compares other windows."""
BUDGET = 0.02
"""Relative error of the velocity that FP8 may add: about the error of the model wholly in bfloat16, as released
(docs/precision.md)."""
Method = Literal["amax", "percentile"]


@dataclass(frozen=True)
class Calibration:
    """How FP8 is calibrated: on the passes of `chunks` chunks of a dub of `video` with `audio`.

    Attributes:
        method: how the largest input of a layer is measured: "amax", or "percentile", which cuts one value in ten
            thousand.
        budget: relative error of the velocity that FP8 may add; the layers that would exceed it stay in BF16.
        attention: self-attention in FP8, too (reasons against it: docs/precision.md).

    Raises:
        ConfigError: no chunk, an unknown method, or a negative budget.
    """

    video: Path = samples.FACE
    audio: Path = samples.SPEECH
    chunks: int = 6
    method: Method = "amax"
    budget: float = BUDGET
    attention: bool = False

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ConfigError(f"calibration on {self.chunks} chunks", expected="at least 1")
        if self.method not in get_args(Method):
            raise ConfigError(f"calibration by {self.method!r}", expected="amax or percentile")
        if not self.budget >= 0:
            raise ConfigError(f"a budget of {self.budget}", expected="a relative error, e.g. 0.01")
