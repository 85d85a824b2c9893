"""The sample files shipped with LipStream: a video of a 3D person speaking, and other speech."""

from __future__ import annotations

from pathlib import Path

FACE = Path(__file__).parent / "sample" / "face.mp4"
"""H.264 with sound, 384 x 320, 25 frames a second."""
SPEECH = Path(__file__).parent / "sample" / "speech.wav"
