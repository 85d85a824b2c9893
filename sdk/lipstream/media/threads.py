"""Number of threads for decoding, encoding and OpenCV, in the whole process."""

from __future__ import annotations

import cv2

_limit = 0


def limit_threads(threads: int) -> None:
    """Limit the threads of OpenCV, and of each file opened from now on; 0 lets the libraries choose.

    Applies to the whole process, because OpenCV has no other setting.
    """
    global _limit
    _limit = threads
    if threads:
        cv2.setNumThreads(threads)


def codec_threads() -> int:
    """Value for a codec's `thread_count`; 0 lets FFmpeg choose."""
    return _limit


def may_overlap() -> bool:
    """Whether stages of a job may run at the same time: a limit of one thread is for all of them together."""
    return _limit != 1
