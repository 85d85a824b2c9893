"""How well do a student's audio features tell the mouth, for voices that no encoder was trained on?

A linear map from the features of a frame to the mouth that its visemes ask for (opening, width, rounding, teeth,
closure, tongue) is fitted on voices that encoders are trained on, and read on unseen ones: natural voices with other
pitch and formants, other timbres of eSpeak NG, other sentences; clean, and recorded in random rooms with random
microphones. The figures are correlations over all frames of a voice, means over voices. The encoder runs as in a
stream, on the window of a chunk of 12 frames.

The row `rule` is the drawing rule, which reads the mouth from clean or recorded sound by loudness and formants, without
a fit. `rule's opening` is how far the encoder's opening agrees with it on clean sound.

The benchmark passes if each of opening 0.70, width 0.65, rounding 0.60, teeth 0.65 and closure 0.50 is reached.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from lipstream.errors import ConfigError
from lipstream_export.source import load_source
from lipstream_models import SpeechEncoder, SpeechPerceptron
from lipstream_models.mel import PAST_FRAMES, SAMPLES_AFTER, SAMPLES_PER_FRAME
from lipstream_training.audio_encoder import MOUTH, Spoken, speak
from lipstream_training.data.mouth import mouth_track
from numpy.typing import NDArray
from safetensors.torch import load_file
from tqdm import tqdm

from .common import main, parser, positive, write

TARGETS = {"opening": 0.70, "width": 0.65, "rounding": 0.60, "teeth": 0.65, "closure": 0.50}
CHUNK = 12
"""Video frames."""
SOUNDS = ("clean", "recorded")

Track = NDArray[np.float32]


def load(student: str) -> SpeechEncoder | SpeechPerceptron:
    """The audio encoder of a bundle, a checkpoint, or the file that `lipstream-train tiny` leaves of it.

    Raises:
        ConfigError: it is another one. And the errors of `load_source`.
    """
    if student.endswith(".safetensors"):
        encoder = SpeechEncoder()
        encoder.load_state_dict(load_file(student))
        return encoder.eval()
    found = load_source(Path(student)).speech
    if not isinstance(found, SpeechEncoder | SpeechPerceptron):
        raise ConfigError(f"the audio encoder of {student} is {type(found).__name__}", expected="one on mel spectra")
    return found


@torch.inference_mode()
def features(encoder: SpeechEncoder | SpeechPerceptron, sound: Track) -> Track:
    """Features [frames, 64] of `sound` as `Spoken` has it, chunk by chunk; a last chunk may be shorter."""
    first = PAST_FRAMES * SAMPLES_PER_FRAME
    end = len(sound) - SAMPLES_AFTER
    found = []
    for start in range(first, end, CHUNK * SAMPLES_PER_FRAME):
        stop = min(start + CHUNK * SAMPLES_PER_FRAME, end)
        window = sound[start - encoder.lookback : stop + encoder.lookahead]
        found.append(encoder(torch.from_numpy(window)).numpy())
    return np.concatenate(found)


def fit(x: Track, wanted: Track) -> NDArray[np.float64]:
    """The linear map [features + 1, values] from x [frames, features], with a little ridge."""
    x = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    return np.asarray(np.linalg.solve(x.T @ x + 1e-4 * len(x) * np.eye(x.shape[1]), x.T @ wanted))


def correlations(found: Track, wanted: Track) -> NDArray[np.float64]:
    """Of each column of [frames, values]; 0 where one does not move."""
    a, b = (x - x.mean(0, dtype=np.float64) for x in (found, wanted))
    return np.asarray((a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-9))


def rule(sound: Track, frames: int) -> Track:
    """The drawing rule's values in the order of `MOUTH`, [frames, 6]: what it has no value for is its nearest one."""
    track = mouth_track(sound, PAST_FRAMES + frames)[PAST_FRAMES:]
    return np.stack([track.opening, track.width, -track.width, track.teeth, -track.opening, track.tongue], axis=1)


def run(args: argparse.Namespace) -> bool:
    torch.set_num_threads(args.threads)
    encoder = load(args.student)

    def spoken(count: int, unseen: bool) -> list[Spoken]:
        numbers = tqdm(range(count), "unseen voices" if unseen else "voices", unit="voice", disable=None)
        return [speak(i, args.seconds, unseen=unseen) for i in numbers]

    seen = spoken(args.fitted, unseen=False)
    read = fit(
        np.concatenate([features(encoder, getattr(voice, sound)) for sound in SOUNDS for voice in seen]),
        np.concatenate([voice.mouth for _ in SOUNDS for voice in seen]),
    )
    rows: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    agreement = []
    for voice in spoken(args.voices, unseen=True):
        for sound in SOUNDS:
            waveform = getattr(voice, sound)
            x = features(encoder, waveform)
            mouth = (np.column_stack([x, np.ones(len(x))]) @ read).astype(np.float32)
            drawn = rule(waveform, len(mouth))
            rows["encoder", sound].append(correlations(mouth, voice.mouth))
            rows["rule", sound].append(correlations(drawn, voice.mouth))
            if sound == "clean":
                agreement.append(correlations(mouth[:, :1], drawn[:, :1])[0])
    means = {name: dict(zip(MOUTH, np.mean(x, 0).tolist(), strict=True)) for name, x in rows.items()}
    print(f"{args.voices} unseen voices, {args.seconds:g} s each: correlation with the visemes' mouth")
    print(f"{'':18}" + "".join(f"{name:>10}" for name in MOUTH))
    for name, values in means.items():
        print(f"{', '.join(name):18}" + "".join(f"{value:>10.3f}" for value in values.values()))
    print(f"rule's opening: {np.mean(agreement):.3f}")
    passed = all(means["encoder", sound][name] >= least for sound in SOUNDS for name, least in TARGETS.items())
    results = {
        "correlation": {", ".join(name): values for name, values in means.items()},
        "rules_opening": float(np.mean(agreement)),
        "passed": passed,
    }
    write(args.json, "audio_encoder", args, results)
    return passed


def build_parser() -> argparse.ArgumentParser:
    options = parser("audio_encoder", __doc__, bundle=False, least={"voices": 2, "fitted": 4, "seconds": 2.0})
    options.add_argument(
        "--student",
        default="tiny",
        metavar="NAME, FOLDER or FILE",
        help="bundle, checkpoint, or audio_encoder.safetensors of lipstream-train tiny (default: the bundle tiny)",
    )
    options.add_argument("--voices", type=positive, default=60, help="unseen ones (default 60)")
    options.add_argument("--fitted", type=positive, default=200, help="voices that the map is fitted on (default 200)")
    options.add_argument("--seconds", type=float, default=8.0, help="of each voice (default 8)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
