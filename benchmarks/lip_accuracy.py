"""Do the lips of the result follow the new speech, and nothing else? How good is the picture around them?

People whose mouths are known, unseen in training, drawn and 3D, each shown speaking A, are dubbed with speech B by
another voice. Wanted is what the phonemes of B ask of the mouth of an average speaker.
C is unrelated speech. FaceMesh measures the lips, independently of the model:

  gap, width, rounding  correlation (Pearson, at lag 0) with what B asks; rounding: of the width, its sign changed;
                        _best: at the best lag within a frame; _other: with what C asks; _source: with what A asks
  closures              share of p, b, m in which the lips meet within one frame; _other: of those in C,
                        by chance; false_closures: share of the frames with a large opening in which they are together
  amplitude             standard deviation of gap and width over the source's own

and around the lips of the source, compared with it:

  sharpness             gradient energy over the source's
  grid                  energy across the borders of tokens over that beside them, over the source's: blocks, which
                        raise the sharpness, too
  flicker               change from frame to frame over the source's
  colour_step           at the edge of the compositing mask, 0 to 255
  identity              correlation of the picture of a closed mouth with the source's own
  paste                 sharpness of the true crop pasted back: the most that this crop size allows; paste_psnr, dB

_ceiling is the same of the person shown saying B.

The benchmark passes if the means over people of each kind are: gap at least 0.85, with other speech and the source's at
most 0.10; width at least 0.5; closures at least 0.8 and false ones at most 0.1; of 3D people rounding at least 0.5;
amplitude 0.7 to 1.3; sharpness at least 0.8 with a grid of at most 1.1; paste at least 0.9.

With --real, on clips of real people, each dubbed with two voices: correlation of the lip gap with the loudness of the
voice (at the best lag within two frames) at least 0.55, with that of other speech at most 0.12; the rest as above. And,
without a limit, with what its phonemes ask: loudness is not what lips follow. The mouth of an average speaker
correlates with the loudness of six such voices by 0.21 to 0.45.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lipstream import LipSyncEngine
from lipstream.bundle import Bundle
from lipstream.errors import ConfigError
from lipstream.face import crop
from lipstream.media import FPS
from lipstream_evaluate.media import RATE
from lipstream_evaluate.statistics import summary
from numpy.typing import NDArray
from tqdm import tqdm

from .common import duration, main, parser, positive, write
from .lips.dub import dub
from .lips.movement import Numbers, amplitude, closed_below, closing, following
from .lips.people import CASES, Case, other_speech
from .lips.picture import Area, look, paste
from .lips.real import clips, following_loudness, following_phonemes, read_clip, voices
from .lips.tracks import Frames, Image, Lips, track_lips

Limits = dict[str, tuple[float | None, float | None]]
"""Least and largest mean of a measure."""

PICTURE: Limits = {
    "amplitude_gap": (0.7, 1.3),
    "amplitude_width": (0.7, 1.3),
    "sharpness": (0.8, None),
    "grid": (None, 1.1),
    "paste": (0.9, None),
}
_PEOPLE: Limits = {
    "gap": (0.85, None),
    "gap_other": (None, 0.10),
    "gap_source": (None, 0.10),
    "width": (0.5, None),
    "closures": (0.8, None),
    "false_closures": (None, 0.1),
    **PICTURE,
}
LIMITS: dict[str, Limits] = {
    "drawn": _PEOPLE,
    "3d": {**_PEOPLE, "rounding": (0.5, None)},
    "real": {"gap": (0.55, None), "gap_other": (None, 0.12), **PICTURE},
}

CEILINGS = ("gap", "width", "rounding", "closures", "false_closures", *PICTURE, "flicker", "colour_step", "identity")
_OTHERS = 8  # other speech for real clips: a mean over several is less of a chance value
_FACE = (30.0, 100.0, 390.0, 540.0)  # of the canvas, in the contact sheet


def judge(case: Case, result: Frames, area: Area) -> Numbers:
    """All measures of one person."""
    lips = track_lips(case.source)

    def measured(frames: Frames) -> Numbers:
        found = track_lips(frames)
        followed = following(found, case.said) | closing(found.gap, case.said, closed_below(lips))
        return followed | compare(frames, case.source, found, lips, area)

    ceilings = {f"{name}_ceiling": value for name, value in measured(case.target).items() if name in CEILINGS}
    return measured(result) | paste(case.source, lips, area) | ceilings


def compare(result: Frames, source: Frames, found: Lips, lips: Lips, area: Area) -> Numbers:
    """The measures that need no knowledge of what is said, of a result in which `found` lips and a source's `lips`."""
    threshold = closed_below(lips)
    closed = (found.gap < threshold) & (lips.gap < threshold)
    lost = float((lips.seen & ~found.seen).mean())
    return amplitude(found, lips) | look(result, source, lips, closed, area) | {"faces_lost": lost}


def run_people(engine: LipSyncEngine, area: Area, args: argparse.Namespace) -> dict[str, Any]:
    """Results of each kind of people."""
    results: dict[str, Any] = {}
    rows: list[Image] = []
    for kind in CASES if args.kind == "both" else (args.kind,):
        people: list[Numbers] = []
        for person in tqdm(range(args.people), desc=f"{kind} people", unit="person", disable=None):
            case = CASES[kind](person, args.seconds)
            result = np.stack(list(dub(engine, case.source, case.speech, RATE)))
            people.append(judge(case, result, area))
            if args.sheet and person < 3:
                rows.append(sheet_row(case.said["B"].opening, [case.source, result, case.target]))
        results[kind] = verdict(people, LIMITS[kind]) | {"people": people}
        report(kind, results[kind]["means"], LIMITS[kind])
    save_sheet(args.sheet, rows)
    return results


def run_real(engine: LipSyncEngine, area: Area, args: argparse.Namespace) -> dict[str, Any]:
    """Results of all clips."""
    spoken = voices(args.seconds)
    videos = clips(args.real)
    rows: list[Image] = []
    if not videos:
        raise ConfigError(f"no video in {', '.join(map(str, args.real))}", fix="give files, or folders with videos")
    others = other_speech(args.seconds, _OTHERS)
    found: dict[str, dict[str, Numbers]] = {video.name: {} for video in videos}
    cases = [(video, name) for video in videos for name in spoken]
    for video, name in tqdm(cases, desc="clips", unit="dub", disable=None):
        voice, unrelated = spoken[name].clean, [other.clean for other in others]
        source, order = read_clip(video, len(voice) * FPS // RATE)
        result = np.stack(list(dub(engine, video, voice, RATE)))
        lips, ours = track_lips(source[: max(order) + 1])[order], track_lips(result)  # tracked once, as in a session
        followed = following_phonemes(ours.gap, spoken[name], others)
        followed |= following_loudness(ours.gap, voice, unrelated)
        found[video.name][name] = followed | compare(result, source, ours, lips, area) | paste(source, lips, area)
        if args.sheet and len(rows) < 6:
            rows.append(sheet_row(np.nan_to_num(ours.gap), [source, result]))
    dubs = [numbers for clip in found.values() for numbers in clip.values()]
    results = verdict(dubs, LIMITS["real"]) | {"clips": found}
    report("real", results["means"], LIMITS["real"])
    save_sheet(args.sheet, rows)
    return {"real": results}


def verdict(each: list[Numbers], limits: Limits) -> dict[str, Any]:
    """The means over people or clips, and which limits they miss."""
    means = {name: summary([numbers[name] for numbers in each]) for name in each[0]}
    missed = [name for name, limit in limits.items() if not within(means[name]["mean"], limit)]
    return {"limits": limits, "missed": missed, "means": means}


def within(mean: float | None, limits: tuple[float | None, float | None]) -> bool:
    """Whether a mean is known and keeps both limits."""
    least, most = limits
    return mean is not None and (least is None or mean >= least) and (most is None or mean <= most)


def report(kind: str, means: dict[str, Any], limits: Limits) -> None:
    """Print one line for each measure."""
    for name, found in means.items():
        if found["mean"] is None:
            print(f"{kind:6} {name:22} -")
            continue
        low, high = found["ci95"] or (found["min"], found["max"])
        held = "" if name not in limits else "ok" if within(found["mean"], limits[name]) else "MISSED"
        numbers = f"{found['mean']:7.3f} [{low:.3f}, {high:.3f}], {found['min']:.3f} to {found['max']:.3f}"
        print(f"{kind:6} {name:22} {numbers} {held}".rstrip())


def sheet_row(opening: NDArray[np.floating], videos: list[Frames], columns: int = 8, size: int = 150) -> Image:
    """The same moments of all videos below each other, from a shut mouth to the widest."""
    order = np.argsort(opening, kind="stable")
    moments = order[np.linspace(0, len(order) - 1, columns).round().astype(int)]
    matrices = track_lips(videos[0]).matrices
    strips = [np.concatenate([_face(frames[i], matrices[i], size) for i in moments], axis=1) for frames in videos]
    label = np.full((18, columns * size, 3), 255, np.uint8)
    for column, i in enumerate(moments):
        text = f"opening {opening[i]:.2f}"
        cv2.putText(label, text, (column * size + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([label, *strips])


def _face(frame: Image, matrix: NDArray[np.float64], size: int) -> Image:
    if np.isnan(matrix).any():
        return np.full((size, size, 3), 127, np.uint8)
    return crop(frame, matrix, size, _FACE)


def save_sheet(path: Path | None, rows: list[Image]) -> None:
    """Write the contact sheet, if a `path` is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
        path.write_bytes(cv2.imencode(path.suffix or ".png", picture)[1].tobytes())


def build_parser() -> argparse.ArgumentParser:
    options = parser("lip_accuracy", __doc__, least={"people": 1, "seconds": 2.0})
    options.add_argument("--backend", default="onnxruntime", help="onnxruntime (default) or another installed one")
    options.add_argument("--kind", choices=(*CASES, "both"), default="both", help="of people (default both)")
    options.add_argument("--people", type=positive, default=12, help="of each kind (default 12)")
    options.add_argument("--seconds", type=duration, default=6.0, help="of speech for each of them (default 6)")
    options.add_argument("--real", type=Path, nargs="+", metavar="PATH", help="real videos, or folders of them")
    options.add_argument(
        "--sheet", type=Path, metavar="PNG", help="contact sheet: source, result, and B as it should be"
    )
    return options


def run(args: argparse.Namespace) -> bool:
    engine = LipSyncEngine.load(args.bundle, backend=args.backend, threads=args.threads)
    area = Area.of(Bundle.load(args.bundle))
    results = run_real(engine, area, args) if args.real else run_people(engine, area, args)
    missed = {kind: found["missed"] for kind, found in results.items() if found["missed"]}
    print("PASS" if not missed else "FAIL: " + "; ".join(f"{kind}: {', '.join(x)}" for kind, x in missed.items()))
    write(args.json, "lip_accuracy", args, {"passed": not missed, "kinds": results})
    return not missed


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
