"""How many threads decoding, encoding and OpenCV may use: one number for the process."""

from __future__ import annotations

import cv2

_limit = 0


def limit_threads(threads: int) -> None:
    """At most `threads` for each file that is read or written from now on, and for OpenCV; 0 for their own choice.

    Applies to the whole process: OpenCV knows no other way.
    """
    global _limit
    _limit = threads
    if threads:
        cv2.setNumThreads(threads)


def codec_threads() -> int:
    """For `thread_count` of a codec: 0 lets FFmpeg choose."""
    return _limit
