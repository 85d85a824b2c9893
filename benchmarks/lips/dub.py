"""The result whose lips are judged."""

from __future__ import annotations

from collections.abc import Iterator

from lipstream import LipSyncEngine
from lipstream.media import FPS
from lipstream.session.reference import Source

from .people import Audio
from .tracks import Image


def dub(engine: LipSyncEngine, reference: Source, audio: Audio, rate: int) -> Iterator[Image]:
    """The frames of `reference` saying `audio`, float32 [n] or [n, channels], as far as it has whole frames."""
    audio = audio[: len(audio) * FPS // rate * rate // FPS]
    with engine.session(reference) as session:
        for start in range(0, len(audio), rate):
            session.push_audio(audio[start : start + rate], rate)
            yield from (frame.image for frame in session)
        session.flush()
        yield from (frame.image for frame in session)
