"""Evaluates one clip of one system: its own metrics, and the features for metrics over all clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from lipstream.media import VideoReader
from lipstream_models.mel import SAMPLES_PER_FRAME
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from .cases import Case, Image, pairs, same_shape, shift_between, thumbnails, to_size
from .faces import FaceTrack, Track, face_crop, mouth_area, squares, sync_crop, track_faces
from .media import loudness, read_sound
from .networks import WINDOW
from .statistics import correlation
from .syncnet import FRAMES, LipReader, SyncNet, embed_audio, score

MOMENTS = 8
"""Pictures of each clip on the page."""
LAGS = 5
"""Frames by which the mouth may be late or early when its opening is compared with the sound."""
_EVERY = 5  # frames between two computations of LPIPS and CSIM
_FACE = 224  # pixels of the face for LPIPS, FID and FVD
_FLAT = 99.0  # dB, the PSNR of equal pictures


@dataclass
class Verdict:
    """The result of evaluating a clip.

    Attributes:
        values: numbers by the names of `METRICS`; NaN or missing where one has no meaning.
        notes: sentences on the clip and its numbers.
        gap, reference_gap, sound: the lip gap and the loudness of the sound (0 to 1), frame by frame.
        ours, theirs: per network of "inception" and "i3d" the features, of the result and of the reference.
        pictures, reference_pictures: the face at some moments, JPEG. moments: the frames they are.
    """

    case: Case
    frames: int
    values: dict[str, float]
    notes: list[str]
    gap: Track
    reference_gap: Track
    sound: Track
    ours: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    theirs: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=list)
    reference_pictures: list[bytes] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)


def judge(case: Case, syncnet: SyncNet | None, networks: Mapping[str, Any]) -> Verdict:
    """Read both videos twice: once to align them and to track the faces, once to compare.

    Raises:
        LipStreamError: a file cannot be read.
    """
    small: list[NDArray[np.float32]] = []
    small_reference: list[NDArray[np.float32]] = []
    face = track_faces(thumbnails(VideoReader(case.result), small))
    reference_face = track_faces(thumbnails(VideoReader(case.reference), small_reference))
    shift = shift_between(small, small_reference)
    audio = read_sound(case.audio)
    frames = len(small)
    verdict = Verdict(case, frames, {}, [], face.gap, reference_face.gap, loudness(audio, frames))
    if shift:
        late = f"{abs(shift)} frames {'late' if shift > 0 else 'early'}"
        verdict.notes.append(f"the picture is {late} against the reference, which is compared with it accordingly")
    verdict.values["shift"] = float(shift)
    _mouth(verdict, audio)
    comparison = _Comparison(verdict, face, reference_face, syncnet, networks)
    comparison.run(shift)
    if syncnet is not None and comparison.lips is not None:
        _sync(verdict, syncnet, comparison.lips, audio)
    return verdict


def _mouth(verdict: Verdict, audio: NDArray[np.float32]) -> None:
    """The opening of the mouth against the loudness of the sound and against the reference's mouth."""
    unseen = int(np.isnan(verdict.gap).sum())
    if unseen:
        verdict.notes.append(f"no face in {unseen} of {verdict.frames} frames")
    if not verdict.sound.any():
        verdict.notes.append("the sound is silent")
    by_lag = {lag: correlation(verdict.gap, verdict.sound, lag) for lag in range(-LAGS, LAGS + 1)}
    known = {lag: r for lag, r in by_lag.items() if not np.isnan(r)}
    best = max(known, key=lambda lag: (known[lag], -abs(lag))) if known else 0
    verdict.values["opening_sound"] = by_lag[0]
    verdict.values["opening_sound_best"] = by_lag[best]
    verdict.values["opening_lag"] = float(best) if known else float("nan")
    verdict.values["opening_reference"] = correlation(verdict.gap, verdict.reference_gap)


def _sync(verdict: Verdict, net: SyncNet, lips: LipReader, audio: NDArray[np.float32]) -> None:
    frames = min(verdict.frames, len(audio) // SAMPLES_PER_FRAME)
    if frames <= FRAMES or not verdict.sound.any() or np.isnan(verdict.gap).all():
        return
    read = lips.result()[: frames - FRAMES]
    said = embed_audio(net, audio[: frames * SAMPLES_PER_FRAME])[: len(read)]
    found = score(read, said)
    verdict.values.update(sync_c=found.confidence, sync_d=found.distance, sync_offset=float(found.offset))


class _Comparison:
    """Compares result and reference frame by frame, and averages."""

    def __init__(
        self,
        verdict: Verdict,
        face: FaceTrack,
        reference: FaceTrack,
        syncnet: SyncNet | None,
        networks: Mapping[str, Any],
    ) -> None:
        self.lips = LipReader(syncnet) if syncnet is not None else None
        self._syncnet, self._networks = syncnet, networks
        self._verdict, self._face, self._reference = verdict, face, reference
        self._squares, self._reference_squares = squares(face.boxes), squares(reference.boxes)
        self._sums: dict[str, list[float]] = {}
        self._window: list[tuple[Image, Image]] = []
        self._features: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}

    def run(self, shift: int) -> None:
        verdict = self._verdict
        first, end = max(shift, 0), min(verdict.frames, len(self._reference.gap) + shift)
        moments = {first + round((k + 0.5) * (end - first) / MOMENTS - 0.5) for k in range(MOMENTS)}
        comparable: bool | None = None
        for i, (result, j, reference) in enumerate(pairs(verdict.case, shift)):
            self._show_lips(i, result)
            if reference is None:
                continue
            if comparable is None:
                comparable = self._comparable(result, reference)
            if i in moments:
                self._keep(i, result, j, reference)
            if comparable:
                self._pixels(to_size(result, reference), reference, j)
                self._looks(i, result, j, reference)
        if end < verdict.frames:
            verdict.notes.append(f"the reference ends {verdict.frames - end} frames before the result")
        for name, values in self._sums.items():
            verdict.values[name] = float(np.mean(values))
        for name, features in self._features.items():
            verdict.ours[name], verdict.theirs[name] = (np.stack(x) for x in zip(*features, strict=True))

    def _comparable(self, result: Image, reference: Image) -> bool:
        sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in (result, reference)]
        if not same_shape(result, reference):
            self._verdict.notes.append(
                f"{sizes[0]} is no scaling of the reference's {sizes[1]}: pictures are not compared"
            )
            return False
        if result.shape != reference.shape:
            self._verdict.notes.append(f"brought from {sizes[0]} to the reference's {sizes[1]}")
        return True

    def _show_lips(self, i: int, frame: Image) -> None:
        """Pass a frame of the result to SyncNet; a grey picture if it shows no face."""
        if self.lips is None or self._syncnet is None:
            return
        square, matrix = self._squares[i], self._face.matrices[i]
        config = self._syncnet.config
        if np.isnan(square if config.crop is None else matrix).any():
            self.lips.push(np.full((config.size, config.size, 3), 110, np.uint8))
        else:
            self.lips.push(sync_crop(frame, config, square, matrix))

    def _pixels(self, result: Image, reference: Image, j: int) -> None:
        """SSIM (7 x 7 uniform windows, mean over the colours) and PSNR, of the frame, in the mouth, and around it."""
        error = np.square(result.astype(np.float32) - reference).mean(axis=2)
        _, similar = structural_similarity(  # type: ignore[no-untyped-call]
            result, reference, channel_axis=2, data_range=255, full=True
        )
        similar = similar.mean(axis=2)
        self._add("ssim", float(similar.mean()))
        self._add("psnr", psnr(error))
        matrix = self._reference.matrices[j]
        if np.isnan(matrix).any():
            return
        mouth = mouth_area(reference.shape, matrix)
        for where, area in (("mouth", mouth), ("outside", ~mouth)):
            if area.any():
                self._add(f"ssim_{where}", float(similar[area].mean()))
                self._add(f"psnr_{where}", psnr(error[area]))

    def _looks(self, i: int, result: Image, j: int, reference: Image) -> None:
        """Metrics of the face by networks."""
        networks = self._networks
        square, other = self._squares[i], self._reference_squares[j]
        if not networks or np.isnan(square).any() or np.isnan(other).any():
            return
        scale = result.shape[0] / reference.shape[0]
        ours, theirs = face_crop(result, other * scale, _FACE), face_crop(reference, other, _FACE)
        if "lpips" in networks and i % _EVERY == 0:
            self._add("lpips", networks["lpips"](ours, theirs))
        five, five_reference = self._face.five[i], self._reference.five[j]
        if "arcface" in networks and i % _EVERY == 0 and not np.isnan(five + five_reference).any():
            same = networks["arcface"](result, five) @ networks["arcface"](reference, five_reference)
            self._add("csim", float(same))
        if "inception" in networks:
            features = networks["inception"](ours), networks["inception"](theirs)
            self._features.setdefault("inception", []).append(features)
        if "i3d" in networks:
            self._window.append((ours, theirs))
            if len(self._window) == WINDOW:
                features = tuple(networks["i3d"](np.stack(x)) for x in zip(*self._window, strict=True))
                self._features.setdefault("i3d", []).append(features)
                self._window = []

    def _keep(self, i: int, result: Image, j: int, reference: Image) -> None:
        square, other = self._squares[i], self._reference_squares[j]
        if np.isnan(square).any() or np.isnan(other).any():
            return
        self._verdict.moments.append(i)
        self._verdict.pictures.append(_jpeg(face_crop(result, square, 160)))
        self._verdict.reference_pictures.append(_jpeg(face_crop(reference, other, 160)))

    def _add(self, name: str, value: float) -> None:
        self._sums.setdefault(name, []).append(value)


def psnr(squared_error: NDArray[np.float32]) -> float:
    """PSNR in dB from squared errors of 8-bit values; at most 99, for equal pictures."""
    mean = float(squared_error.mean())
    return min(_FLAT, 10 * float(np.log10(255.0**2 / mean))) if mean > 0 else _FLAT


def _jpeg(picture: Image) -> bytes:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return data.tobytes()
