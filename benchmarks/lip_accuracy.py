"""Do the lips of the result follow the new speech, and nothing else?

On drawn people: each of them, unseen in training, is drawn speaking A and dubbed with speech B: new sentences by a
random voice. The mouth opening in the result, frame by frame, is correlated (Pearson, at lag 0) with the drawing
rule's opening for B, and as a control with that for an unrelated speech C. The opening is measured in ways independent
of the model:

  lip_gap    the gap between the lips by FaceMesh, on the whole frame
  rest_diff  the difference of the mouth from the same moment drawn with the mouth closed
  lip_width  the distance of the mouth's corners by FaceMesh, against the rule's width

The value on the same person drawn speaking B is the ceiling of a measure; the value on the source, which speaks A, is
its baseline. The benchmark passes if the mean of lip_gap over people is at least 0.85 for B and at most 0.15 for C and
for A, and that of lip_width at least 0.3 for B.

With --video and --audio, on files: correlation of FaceMesh's lip gap in the result with the drawing rule's opening for
that audio and with its loudness, at lags of -3 to 3 frames (positive: the mouth is late); the same for another audio,
and for the source's mouth. Also sharpness and flicker of the mouth relative to the source. No criterion.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lipstream import LipSyncEngine
from lipstream.errors import ConfigError
from lipstream.media import FPS, FrameLoop, StreamResampler, VideoReader, read_audio
from lipstream.session.reference import Source
from lipstream_evaluate.faces import track_faces
from lipstream_evaluate.media import loudness
from lipstream_evaluate.statistics import correlation
from lipstream_models.mel import SAMPLES_PER_FRAME
from lipstream_training.data.clips import draw_video, evaluation_rng
from lipstream_training.data.mouth import MouthTrack, mouth_track
from lipstream_training.data.speech import SAMPLE_RATE, speech
from numpy.typing import NDArray
from tqdm import tqdm

from .common import duration, main, parser, positive, write
from .mouth_metrics import Frames, Track, distance_from_rest, look, summary

MATCHED, OTHER, WIDTH = 0.85, 0.15, 0.3
MEASURES = ("lip_gap", "rest_diff", "lip_width")
_FIRST_PERSON = 1000  # samples and previews use the first evaluation identities
_SPEECH = 3  # seeds [3, ...]: training draws from [0, ...], evaluation identities from [1, ...]

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One person, drawn three times in the same n frames: saying A, saying B, at rest. Frames uint8 [n, H, W, 3].

    Attributes:
        rest_lips: [n, 6, 2], see `draw_video`. speech: B, float32 at 16 kHz. said: the mouth by the rule, for each of
            "A", "B" and "C".
    """

    source: Frames
    target: Frames
    rest: Frames
    rest_lips: NDArray[np.float64]
    speech: Audio
    said: dict[str, MouthTrack]

    def measured(self, frames: Frames) -> dict[str, Track]:
        face = track_faces(frames)
        rest = distance_from_rest(frames, self.rest, self.rest_lips)
        return {"lip_gap": face.gap, "rest_diff": rest, "lip_width": face.width}


def draw_case(person: int, seconds: float) -> Case:
    a, b, c = (new_speech(seconds, np.random.default_rng([_SPEECH, person, i])) for i in range(3))
    frames = len(b) // SAMPLES_PER_FRAME

    def draw(said: Audio) -> tuple[Frames, NDArray[np.float64]]:
        pictures, _, lips = draw_video(evaluation_rng(_FIRST_PERSON + person), said)
        return pictures, lips

    rest, rest_lips = draw(np.zeros_like(b))
    said = {name: mouth_track(audio, frames) for name, audio in zip("ABC", (a, b, c), strict=True)}
    return Case(draw(a)[0], draw(b)[0], rest, rest_lips, b, said)


def new_speech(seconds: float, rng: np.random.Generator) -> Audio:
    """Clean speech of a random voice; drawn again if it is silent."""
    while not (clean := speech(seconds, rng).clean).any():
        pass
    return clean


def dub(engine: LipSyncEngine, reference: Source, audio: Audio, rate: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of `reference` saying `audio`, float32 [n] or [n, channels], as far as it has whole frames."""
    audio = audio[: len(audio) * FPS // rate * rate // FPS]
    with engine.session(reference) as session:
        for start in range(0, len(audio), rate):
            session.push_audio(audio[start : start + rate], rate)
            yield from (frame.image for frame in session)
        session.flush()
        yield from (frame.image for frame in session)


def judge(case: Case, result: Frames) -> dict[str, dict[str, float]]:
    """All correlations of one person, for each measure."""
    found, source, ceiling = (case.measured(frames) for frames in (result, case.source, case.target))

    def row(measure: str) -> dict[str, float]:
        a, b, c = (case.said[name].width if measure == "lip_width" else case.said[name].opening for name in "ABC")
        return {
            "matched": correlation(found[measure], b),
            "matched_best_of_3_lags": max(correlation(found[measure], b, lag) for lag in (-1, 0, 1)),
            "other_audio": correlation(found[measure], c),
            "source_speech": correlation(found[measure], a),
            "source_mouth": correlation(source[measure], b),
            "ceiling": correlation(ceiling[measure], b),
        }

    return {measure: row(measure) for measure in MEASURES}


def run_drawn(args: argparse.Namespace) -> bool:
    engine = LipSyncEngine.load(args.bundle, backend=args.backend, threads=args.threads)
    people: list[dict[str, dict[str, float]]] = []
    rows: list[NDArray[np.uint8]] = []
    for person in tqdm(range(args.people), desc="people", unit="person", disable=None):
        case = draw_case(person, args.seconds)
        result = np.stack(list(dub(engine, case.source, case.speech, SAMPLE_RATE)))
        people.append(judge(case, result))
        if args.sheet and len(rows) < 6:
            rows.append(sheet_row(case, result))
    means = {m: {key: summary([one[m][key] for one in people]) for key in people[0][m]} for m in MEASURES}
    gap = {key: float(mean["mean"]) for key, mean in means["lip_gap"].items()}  # type: ignore[arg-type]
    passed = gap["matched"] >= MATCHED and max(gap["other_audio"], gap["source_speech"]) <= OTHER
    passed = passed and float(means["lip_width"]["matched"]["mean"]) >= WIDTH  # type: ignore[arg-type]
    for measure in MEASURES:
        print(describe(measure, means[measure]))
    wanted = f"lip_gap: matched >= {MATCHED}, other_audio and source_speech <= {OTHER}; lip_width: matched >= {WIDTH}"
    wanted += f"; {args.people} people, {args.seconds:g} s each"
    print(f"{'PASS' if passed else 'FAIL'} ({wanted})")
    if args.sheet:
        save_picture(args.sheet, np.concatenate(rows))
    criteria = {"matched_at_least": MATCHED, "other_audio_at_most": OTHER, "width_at_least": WIDTH}
    write(args.json, "lip_accuracy", args, {"passed": passed, "criteria": criteria, "means": means, "people": people})
    return passed


def describe(measure: str, means: dict[str, Any]) -> str:
    parts = [f"{key} {m['mean']:.3f} [{m['ci95'][0]:.3f}, {m['ci95'][1]:.3f}]" for key, m in means.items()]
    return f"{measure}: " + ", ".join(parts)


def sheet_row(case: Case, result: Frames, columns: int = 8, size: int = 150) -> NDArray[np.uint8]:
    """One person: the source, the result and the same drawn saying B, at moments from a shut mouth to the widest."""
    opening = case.said["B"].opening
    order = np.argsort(opening, kind="stable")
    moments = order[np.linspace(0, len(order) - 1, columns).round().astype(int)]
    strips = []
    for frames in (case.source, result, case.target):
        pictures = [_face(frames[i], case.rest_lips[i], size) for i in moments]
        strips.append(np.concatenate(pictures, axis=1))
    label = np.full((18, columns * size, 3), 255, np.uint8)
    for column, i in enumerate(moments):
        text = f"opening {opening[i]:.2f}"
        cv2.putText(label, text, (column * size + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([label, *strips])


def _face(frame: NDArray[np.uint8], lips: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    side = 3.2 * float(np.hypot(*(lips[1] - lips[0])))
    x, y = (lips[0] + lips[1]) / 2 - (side / 2, 0.6 * side)
    matrix = np.array([[side / size, 0, x], [0, side / size, y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(frame, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(picture, np.uint8)


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix or ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def run_files(args: argparse.Namespace) -> bool:
    engine = LipSyncEngine.load(args.bundle, backend=args.backend, threads=args.threads)
    audio, rate = read_audio(args.audio)
    voice = at_model_rate(audio, rate)
    frames = len(audio) * FPS // rate
    if args.other_audio:
        other = at_model_rate(*read_audio(args.other_audio))
    else:
        other = new_speech(frames / 25, np.random.default_rng([_SPEECH, 0, 2]))
    dubbed = tqdm(dub(engine, args.video, audio, rate), total=frames, desc="dub", unit="frame", disable=None)
    found = look(dubbed, (picture.rgb for _, picture in FrameLoop(VideoReader(args.video), frames)))
    tracks = {"rule": rule_opening, "loudness": loudness}
    mouths = {
        "result": (found.gap, voice),
        "other_audio": (found.gap, other),
        "source_mouth": (found.source_gap, voice),
    }
    quiet = loudness(voice, frames) < 0.05 * loudness(voice, frames).max()
    results: dict[str, Any] = {
        "frames": frames,
        "frames_without_face": int(np.isnan(found.gap).sum()),
        "sharpness_against_source": found.sharpness,
        "flicker_against_source": found.unrest(np.ones(frames, bool)),
        "flicker_against_source_in_silence": found.unrest(quiet) if quiet.sum() > 5 else None,
        "gap_in_silence_over_gap_in_speech": float(np.nanmean(found.gap[quiet]) / np.nanmean(found.gap[~quiet]))
        if quiet.sum() > 5
        else None,
    }
    for key, value in results.items():
        print(f"{key}: {value if value is None else round(value, 3)}")
    for name, (gap, sound) in mouths.items():
        results[name] = {}
        for track, measure in tracks.items():
            wanted = measure(sound, frames)
            lags = {lag: correlation(gap, wanted, lag) for lag in range(-3, 4)}
            results[name][track] = {str(lag): r for lag, r in lags.items()}
            print(f"{name:12} {track:8} " + "  ".join(f"{lag:+d}: {r:.3f}" for lag, r in lags.items()))
    write(args.json, "lip_accuracy_files", args, results)
    return True


def at_model_rate(audio: Audio, rate: int) -> Audio:
    """Any audio -> mono at 16 kHz."""
    resampler = StreamResampler(rate, SAMPLE_RATE)
    return np.concatenate([resampler.push(audio), resampler.flush()])


def rule_opening(audio: Audio, frames: int) -> NDArray[np.float32]:
    return mouth_track(audio, frames).opening


def build_parser() -> argparse.ArgumentParser:
    options = parser("lip_accuracy", __doc__, least={"people": 1, "seconds": 2.0})
    options.add_argument("--backend", default="onnxruntime", help="onnxruntime (default) or another installed one")
    options.add_argument("--people", type=positive, default=12, help="drawn people (default 12)")
    options.add_argument("--seconds", type=duration, default=6.0, help="of speech for each of them (default 6)")
    options.add_argument("--sheet", type=Path, metavar="PNG", help="contact sheet: source, result, drawn target")
    options.add_argument("--video", type=Path, help="a real video in place of drawn people; needs --audio")
    options.add_argument("--audio", type=Path, help="the speech for --video")
    options.add_argument("--other-audio", type=Path, help="the control for --audio (default: synthesised sentences)")
    return options


def run(args: argparse.Namespace) -> bool:
    if bool(args.video) != bool(args.audio):
        raise ConfigError("--video and --audio go together", fix="give both, or none for drawn people")
    return run_files(args) if args.video else run_drawn(args)


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
