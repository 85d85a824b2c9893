"""What a camera and a codec do to a picture: colour, softness, noise, blocks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import av
import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Camera:
    """One camera and its settings, the same for a whole clip.

    Attributes:
        tone: uint8 [256, 1, 3] lookup table of each colour channel: gamma, contrast, colour cast.
        saturation: 0 grey .. 1 unchanged.
        blur: standard deviation in pixels.
        shrink: the sensor has this many times fewer pixels per side than the picture.
        noise: standard deviation in grey levels.
        quality: of JPEG, 0 for none.
    """

    tone: NDArray[np.uint8]
    saturation: float
    blur: float
    shrink: float
    noise: float
    quality: int

    @classmethod
    def random(cls, rng: np.random.Generator, harshness: float = 1.0) -> Camera:
        """A camera between clean (`harshness` 0) and cheap (1)."""
        grey = np.linspace(0, 1, 256)[:, None] * np.ones(3)
        gamma, contrast = np.exp(rng.normal(0, 0.16 * harshness)), 1 - harshness * max(0.0, rng.normal(0.02, 0.14))
        lift = rng.uniform(0, 1)
        tone = (grey**gamma - lift) * contrast + lift
        tone = tone * (1 + rng.normal(0, 0.04 * harshness, 3))
        return cls(
            tone=np.clip(np.round(tone * 255), 0, 255).astype(np.uint8)[:, None],
            saturation=float(1 - harshness * (rng.uniform(0, 0.6) if rng.random() < 0.6 else 0.0)),
            blur=float(harshness * rng.uniform(0, 0.7)),
            shrink=float(1 + harshness * (rng.uniform(0, 1.3) if rng.random() < 0.5 else 0.0)),
            noise=float(harshness * (rng.uniform(0, 2) if rng.random() < 0.7 else rng.uniform(2, 6))),
            quality=int(rng.integers(45, 96)) if rng.random() < 0.5 * harshness else 0,
        )

    def shoot(self, picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """`picture` uint8 [h, w, 3] RGB as this camera records it; the noise is from `rng`."""
        height, width = picture.shape[:2]
        image = cv2.LUT(picture, self.tone)
        if self.saturation < 1:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, self.saturation, grey, 1 - self.saturation, 0)
        if self.blur > 0.2:
            image = cv2.GaussianBlur(image, (0, 0), self.blur)
        if self.shrink > 1.05:
            small = (max(8, round(width / self.shrink)), max(8, round(height / self.shrink)))
            image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
        if self.noise > 0.2:
            grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(self.noise)
            image = np.clip(image + grain + np.float32(0.5), 0, 255).astype(np.uint8)
        if self.quality:
            encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
            return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
        return np.asarray(image, np.uint8)


@dataclass(frozen=True)
class Recording:
    """The losses of a clip between camera and file.

    Attributes:
        crf: of H.264, 0 for none; from about 37 on the picture is mostly blocks.
        interlaced: each frame is two fields, half a frame apart, shown as one.
    """

    crf: int = 0
    interlaced: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator) -> Recording:
        """Half of all clips are compressed; one in 25 is interlaced."""
        crf = int(rng.integers(18, 40))
        return cls(crf if rng.random() < 0.5 else 0, bool(rng.random() < 0.04))

    def milder(self) -> Recording:
        """The same with a better codec."""
        return replace(self, crf=self.crf and max(self.crf - 10, 16))

    def record(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """`frames`, each uint8 [h, w, 3] with even sides, as read back from the file: uint8 [n, h, w, 3]."""
        clip = np.stack(frames)
        if self.interlaced:
            woven = clip.copy()
            woven[1:, 1::2] = ((clip[1:, 1::2].astype(np.uint16) + clip[:-1, 1::2]) // 2).astype(np.uint8)
            clip = woven
        return _h264(clip, self.crf) if self.crf else clip


def _h264(clip: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", 25, options={"crf": str(crf), "preset": "ultrafast", "threads": "1"})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as source:
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    return np.asarray(frames, np.uint8)
