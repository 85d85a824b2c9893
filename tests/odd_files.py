"""Odd files of real users, each with the outcome that it must have; `python tests/odd_files.py FOLDER` writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from lipstream.errors import LipStreamError, MediaOpenError
from numpy.typing import NDArray
from PIL import Image

Frames = list[NDArray[np.uint8]]
Sound = NDArray[np.float32]
RATE = 16_000
_PORTRAIT = Path(__file__).parent / "sdk/face/data/portrait.jpg"


@dataclass(frozen=True)
class OddFile:
    """A video or picture to be dubbed, and what must come of it.

    Attributes:
        write: writes it to the path given.
        own_sound: the job takes the file's own sound, else speech of as many `frames`.
        frames, size: of the result, (width, height). bypassed: frames left as they are, at least and at most.
        warning, note: part of the only one; "" for none. error: raised in place of a result.
        loud, quiet: spans of the result's sound, in seconds, with speech and without.
    """

    name: str
    write: Callable[[Path], None]
    own_sound: bool = False
    frames: int = 15
    size: tuple[int, int] = (288, 288)
    bypassed: tuple[int, int] = (0, 0)
    warning: str = ""
    note: str = ""
    error: type[LipStreamError] | None = None
    loud: tuple[float, float] | None = None
    quiet: tuple[float, float] | None = None


def portrait() -> NDArray[np.uint8]:
    """uint8 [288, 288, 3] RGB, one face."""
    bgr = cv2.imread(str(_PORTRAIT))
    assert bgr is not None
    return np.ascontiguousarray(bgr[..., ::-1])


def still(count: int = 15) -> Frames:
    return [portrait()] * count


def speech(seconds: float) -> Sound:
    """A buzz in syllables, float32 [n] at 16 kHz."""
    t = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12))
    return (0.2 * buzz * np.clip(np.sin(2 * np.pi * 3 * t) + 0.3, 0, 1)).astype(np.float32)


def dissolve(last: NDArray[np.uint8]) -> Frames:
    """The face for 8 frames, 16 in which it turns into `last`, and 20 of that."""
    shares = [*[0.0] * 8, *(k / 16 for k in range(16)), *[1.0] * 20]
    return [np.asarray((1 - share) * portrait() + share * last, np.uint8) for share in shares]


def slide() -> NDArray[np.uint8]:
    image = np.full((288, 288, 3), 240, np.uint8)
    for row in range(40, 280, 40):
        cv2.putText(image, "profit and loss", (20, row), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (30, 30, 70), 2)
    return image


def panned() -> Frames:
    """The camera turns away from the face to a wall."""
    wide = np.concatenate([portrait(), np.full((288, 600, 3), 120, np.uint8)], axis=1)
    wide[:, 288:] += np.random.default_rng(0).integers(0, 9, (288, 600, 3), np.uint8)
    return [wide[:, k : k + 288] for k in (*[0] * 8, *range(0, 384, 12), *[384] * 8)]


def moved_tile() -> Frames:
    """A video call whose tile jumps from the left to the right."""
    call = np.full((288, 900, 3), 60, np.uint8)
    left, right = call.copy(), call.copy()
    left[:, :288], right[:, 500:788] = portrait(), portrait()
    return [left] * 8 + [right] * 12


def covered(shape: Callable[[NDArray[np.uint8], int], object], colour: tuple[int, int, int]) -> Frames:
    """Something rises in front of the mouth, and stays there for 12 frames."""
    frames = still(6)
    for height in (*range(140, 0, -14), *[0] * 12):
        image = portrait()
        mask = np.zeros((288, 288), np.uint8)
        shape(mask, height)
        image[mask > 0] = np.clip(
            np.array(colour) + np.random.default_rng(1).normal(0, 6, (int((mask > 0).sum()), 3)), 0, 255
        )
        frames.append(image)
    return frames


def hand(mask: NDArray[np.uint8], below: int) -> None:
    cv2.ellipse(mask, (145, 155 + below), (48, 32), 0, 0, 360, 255, -1)


def microphone(mask: NDArray[np.uint8], below: int) -> None:
    cv2.circle(mask, (145, 150 + below), 22, 255, -1)
    cv2.rectangle(mask, (137, 150 + below), (153, 288), 255, -1)


def smiley() -> NDArray[np.uint8]:
    image = np.full((288, 288, 3), 200, np.uint8)
    cv2.ellipse(image, (144, 144), (90, 115), 0, 0, 360, (206, 214, 242), -1)
    cv2.ellipse(image, (144, 144), (90, 115), 0, 0, 360, (0, 0, 0), 3)
    for x in (105, 183):
        cv2.ellipse(image, (x, 110), (16, 12), 0, 0, 360, (255, 255, 255), -1)
        cv2.circle(image, (x, 110), 6, (0, 0, 0), -1)
        cv2.ellipse(image, (x, 90), (20, 7), 0, 180, 360, (40, 20, 0), 4)
    cv2.line(image, (144, 125), (138, 158), (0, 0, 0), 3)
    cv2.line(image, (138, 158), (150, 160), (0, 0, 0), 3)
    cv2.ellipse(image, (144, 190), (40, 16), 0, 0, 180, (150, 0, 0), -1)
    return image


def picture(orientation: int | None = None, *, alpha: bool = False) -> Callable[[Path], None]:
    """The portrait, stored so that EXIF `orientation` makes it upright; or with a transparent left half."""

    def write(path: Path) -> None:
        image = Image.fromarray(portrait()[:, 20:276])
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
            undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions, each other's inverse
            if orientation > 1:
                image = image.transpose(Image.Transpose(undo[orientation]))
        if alpha:
            image.putalpha(Image.fromarray(np.repeat(np.array([[0] * 64 + [255] * 192], np.uint8), 288, axis=0)))
        image.save(path, quality=95, **({"exif": exif} if orientation else {}))

    return write


def video(
    frames: Callable[[], Sequence[NDArray[np.uint8]]] = still,
    *,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    tracks: Sequence[tuple[Sound, Sequence[float], bool]] = (),
    starts: float = 0.0,
) -> Callable[[Path], None]:
    """`frames` at 25 a second.

    Args:
        tracks: of sound: float32 [n] or [n, channels]; times at which its thirds begin; whether it is the default one.
        starts: time of the first picture, seconds.
    """

    def write(path: Path) -> None:
        pictures = frames()
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, 25, options=options or {})
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = pixels
            stream.codec_context.time_base = Fraction(1, 1000)
            sounds = []
            for samples, _, default in tracks:
                layout = "mono" if samples.ndim == 1 else "stereo"
                sound = out.add_stream("pcm_s16le", rate=RATE, layout=layout)
                sound.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
                sounds.append(sound)
            for k, image in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                frame.pts, frame.time_base = round(1000 * starts) + 40 * k, Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            for sound, (samples, times, _) in zip(sounds, tracks, strict=True):
                third = len(samples) // len(times)
                for start, k in zip(times, range(0, len(samples), third), strict=False):
                    pcm = np.ascontiguousarray((samples[k : k + third] * 32767).astype("<i2")).reshape(1, -1)
                    piece = av.AudioFrame.from_ndarray(pcm, "s16", sound.layout.name)
                    piece.sample_rate, piece.pts, piece.time_base = RATE, round(start * RATE), Fraction(1, RATE)
                    out.mux(sound.encode(piece))

    return write


def unknown_first_track(path: Path) -> None:
    """Two tracks, the first of a codec that nobody knows, marked as default."""
    video(tracks=[(speech(0.6), [0.0], True), (speech(0.6), [0.0], False)])(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"A_PCM/INT/LIT", b"A_PCM/XYZ/LIT", 1))


def two_sizes(path: Path) -> None:
    """The second half is wider than the first."""
    wide = np.pad(portrait(), ((0, 0), (72, 72), (0, 0)))
    parts = []
    for part in (still(8), [wide] * 8):
        piece = path.with_suffix(".part.h264")
        video(lambda part=part: part, options={"bf": "0"})(piece)  # type: ignore[misc]
        parts.append(piece.read_bytes())
        piece.unlink()
    path.write_bytes(b"".join(parts))


ODD_FILES = [
    *(OddFile(f"exif{n}.jpg", picture(n), size=(256, 288)) for n in (1, 2, 3, 4, 5, 6, 7, 8)),
    *(OddFile(f"exif6.{kind}", picture(6), size=(256, 288)) for kind in ("avif", "png", "webp", "tiff")),
    OddFile("cutout.png", picture(alpha=True), size=(256, 288), warning="alpha"),
    OddFile(
        "default_second.mkv",
        video(tracks=[(0 * speech(0.6), [0.0], False), (speech(0.6), [0.0], True)]),
        own_sound=True,
        note="track 2 of 2",
        loud=(0.0, 0.15),
    ),
    OddFile("unknown_first.mkv", unknown_first_track, own_sound=True, note="track 2 of 2", loud=(0.0, 0.15)),
    OddFile(
        "hole.mkv",
        video(lambda: still(70), tracks=[(speech(1.5), [0.0, 0.5, 2.2], True)]),
        own_sound=True,
        frames=68,
        loud=(2.2, 2.35),
        quiet=(1.1, 2.1),
    ),
    OddFile(
        "sound_first.mkv",
        video(tracks=[(speech(1.2), [0.0], True)], starts=0.6),
        own_sound=True,
        frames=30,
        note="0.60 s earlier",
        loud=(0.0, 0.15),
    ),
    OddFile(
        "sound_later.mkv",
        video(lambda: still(30), tracks=[(speech(0.6), [0.6], True)]),
        own_sound=True,
        frames=30,
        note="0.60 s after the picture",
        loud=(0.6, 0.75),
        quiet=(0.0, 0.55),
    ),
    OddFile("interlaced.mp4", video(options={"x264-params": "tff=1:interlaced=1"}), note="deinterlaced"),
    OddFile("two_sizes.h264", two_sizes, warning="432x288"),
    OddFile("ten_bits.mkv", video(pixels="yuv420p10le")),
    OddFile("alpha.mov", video(codec="prores_ks", pixels="yuva444p10le"), warning="12 bits a sample become 10"),
    OddFile(
        "to_slide.mp4",
        video(lambda: dissolve(slide())),
        frames=44,
        bypassed=(18, 30),
        warning="unchanged",
        note="last place",
    ),
    OddFile("to_black.mp4", video(lambda: dissolve(slide() * 0)), frames=44, bypassed=(18, 30), warning="unchanged"),
    OddFile("panned.mp4", video(panned), frames=48, bypassed=(12, 34), warning="unchanged"),
    OddFile("moved_tile.mp4", video(moved_tile), frames=20, size=(900, 288), bypassed=(0, 1)),
    OddFile("hand.mp4", video(lambda: covered(hand, (212, 168, 143))), frames=28, warning="cover the mouth"),
    OddFile("microphone.mp4", video(lambda: covered(microphone, (40, 40, 45))), frames=28, warning="cover the mouth"),
    OddFile("smiley.png", lambda path: Image.fromarray(smiley()).save(path), warning="flat colours"),
    OddFile("no_face.mp4", video(lambda: [np.full((96, 128, 3), 90, np.uint8)] * 15), error=LipStreamError),
    OddFile("text.mp4", lambda path: path.write_text("words " * 500) and None, error=MediaOpenError),
]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for odd in ODD_FILES:
        odd.write(folder / odd.name)
        print(folder / odd.name)
