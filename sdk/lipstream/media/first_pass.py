"""What an H.264 encoding leaves of pictures, without a file: the upstream system writes one, and encodes it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av

from .picture import Picture
from .pixel_format import PictureFormat
from .threads import codec_threads
from .video_codec import encoding


class FirstPass:
    """Encodes pictures and decodes them again, in order, some later than others.

    Args:
        format: of the pictures, with an even width and height. rate: frames per second. crf, preset: as of
            `VideoWriter`.
    """

    def __init__(self, format: PictureFormat, rate: Fraction, *, crf: int, preset: str) -> None:
        chosen = encoding("h264", ".mp4", format, None, crf=crf, preset=preset)
        self._format, self._step, self._count = chosen.format, 1 / rate, 0
        encoder: Any = av.CodecContext.create(chosen.encoder, "w")
        encoder.width, encoder.height, encoder.pix_fmt = format.width, format.height, self._format.name
        encoder.time_base, encoder.framerate, encoder.options = self._step, rate, chosen.options
        decoder: Any = av.CodecContext.create("h264", "r")
        for context in (encoder, decoder):
            context.thread_count, context.thread_type = codec_threads(), "AUTO"
        self._encoder, self._decoder = encoder, decoder

    def push(self, picture: Picture) -> Iterator[Picture]:
        """The pictures that are ready once `picture` is in."""
        with picture.converted(self._format).timed(self._count, self._step) as frame:
            packets = self._encoder.encode(frame)
        self._count += 1
        yield from self._decoded(packets)

    def flush(self) -> Iterator[Picture]:
        """The rest of them."""
        yield from self._decoded([*self._encoder.encode(None), None])

    def _decoded(self, packets: Sequence[Any]) -> Iterator[Picture]:
        for packet in packets:
            for frame in self._decoder.decode(packet):
                yield Picture(frame, self._format)
