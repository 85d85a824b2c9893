"""How far are a live stream's audio features from those of the whole clip?

wav2vec 2.0 processes a whole clip: normalisation, group norm, positions and attention span the entire clip. A stream
uses a window around each chunk: `--lookback` before it, and a look-ahead, which adds latency. The benchmark prints the
distance of the features (norm of the difference over norm of the offline features, over all frames of all chunks) for
look-aheads of 0 to 320 ms: of all features, of the last hidden state only, and of all features in the first two
seconds. Files have the features of the whole clip; sound of more than two minutes is computed in windows that overlap.
How far these are from those of one pass is printed for --long seconds, the sample repeated.

The weights are --wav2vec's, a Hugging Face folder; by default random ones as transformers initialises them, of the size
of wav2vec2-base. Random attention is nearly uniform over frames, so these numbers include the effect of normalisation,
group norm and positions, but not that of trained long-range attention.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream import samples
from lipstream.backends.base import Array
from lipstream.media import FPS, read_audio
from lipstream.session.clip_features import ClipFeatures
from lipstream_models.mel import SAMPLE_RATE, SAMPLES_PER_FRAME
from lipstream_models.released.wav2vec import LiveWav2Vec, Wav2VecFeatures, load_wav2vec
from torch import Tensor
from tqdm import tqdm
from transformers import Wav2Vec2Config, Wav2Vec2Model

from .common import duration, main, parser, write

CHUNK = 12
"""Video frames."""
AHEAD = (0.0, 0.04, 0.08, 0.16, 0.32)
BACK = (0.8, 1.6, 3.2, 6.4)


def network(folder: Path | None) -> Any:
    if folder:
        return load_wav2vec(folder)
    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(attn_implementation="eager")).eval().requires_grad_(False)


@torch.inference_mode()
def streamed(encoder: LiveWav2Vec, waveform: Tensor) -> Tensor:
    """Features of all whole chunks, each audio through its window; before the start and after the end is silence."""
    size = CHUNK * SAMPLES_PER_FRAME
    padded = torch.nn.functional.pad(waveform, (encoder.lookback, encoder.lookahead))
    starts = range(0, waveform.shape[0] - size + 1, size)
    return torch.cat([encoder(padded[start : start + encoder.lookback + size + encoder.lookahead]) for start in starts])


@torch.inference_mode()
def windowed(model: Any, waveform: Tensor, frames: int) -> Tensor:
    """Features of the frames of a long clip, as a file has them."""

    def encode(part: Array, count: int) -> Array:
        found: Array = Wav2VecFeatures(model, len(part), count)(torch.from_numpy(part)).numpy()
        return found

    features = ClipFeatures(encode, [waveform.numpy()], SAMPLES_PER_FRAME)
    return torch.from_numpy(np.concatenate([features(first, CHUNK) for first in range(0, frames, CHUNK)])[:frames])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def run(args: argparse.Namespace) -> bool:
    torch.set_num_threads(args.threads)
    samples, rate = read_audio(args.audio)
    if rate != SAMPLE_RATE:
        raise SystemExit(f"{args.audio} has {rate} Hz, expected {SAMPLE_RATE}")
    waveform = torch.from_numpy(np.asarray(samples, np.float32).mean(axis=1))
    if args.quick:
        waveform = waveform[: 3 * CHUNK * SAMPLES_PER_FRAME]
    model = network(args.wav2vec)
    width = model.config.hidden_size
    with torch.inference_mode():
        frames = waveform.shape[0] // SAMPLES_PER_FRAME
        whole = Wav2VecFeatures(model, waveform.shape[0], frames)(waveform)
    plan = [(args.lookback, ahead) for ahead in AHEAD]
    plan += [(back, args.lookahead) for back in BACK if back != args.lookback]
    rows = []
    with tqdm(plan, desc="windows", unit="window", disable=None) as bar:
        for back, ahead in bar:
            encoder = LiveWav2Vec(model, lookback=back, lookahead=ahead)
            found = streamed(encoder, waveform)
            expected = whole[: found.shape[0]]
            row = {"lookback_s": back, "lookahead_s": ahead, "all": distance(found, expected)}
            row["last"] = distance(found[:, :width], expected[:, :width])
            row["start"] = distance(found[: 2 * FPS], expected[: 2 * FPS])
            rows.append(row)
    long = waveform.repeat(-(-round(args.long * SAMPLE_RATE) // len(waveform)))[: round(args.long * SAMPLE_RATE)]
    count = len(long) // SAMPLES_PER_FRAME
    with torch.inference_mode():
        one_pass = Wav2VecFeatures(model, len(long), count)(long)
    files = {"seconds": args.long, "all": distance(windowed(model, long, count), one_pass)}
    print(f"{frames / FPS:.1f} s of {args.audio.name}: distance from the offline features")
    print(f"{'back s':>7} {'ahead s':>8} {'all':>8} {'last':>8} {'first 2 s':>10}")
    for row in rows:
        sizes = f"{row['lookback_s']:>7} {row['lookahead_s']:>8}"
        print(f"{sizes} {row['all']:>8.3f} {row['last']:>8.3f} {row['start']:>10.3f}")
    print(f"windows of a file of {args.long:g} s: {files['all']:.3f}")
    write(args.json, "lookahead", args, {"rows": rows, "files": files})
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("lookahead", __doc__, bundle=False, least={"long": 12.0})
    options.add_argument(
        "--audio", type=Path, default=samples.SPEECH, help="speech, 16 kHz (default: the bundled sample)"
    )
    options.add_argument("--wav2vec", type=Path, metavar="FOLDER", help="wav2vec2-base-960h (default: random weights)")
    options.add_argument(
        "--lookback", type=float, default=3.2, help="seconds, used while the look-ahead varies (default 3.2)"
    )
    options.add_argument(
        "--lookahead", type=float, default=0.08, help="seconds, used while the look-back varies (default 0.08)"
    )
    options.add_argument(
        "--long", type=duration, default=200.0, help="seconds of a file that is computed in windows (default 200)"
    )
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
