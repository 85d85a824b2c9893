"""A natural English voice with phoneme times, from the package `hibari-tts`: its network runs on ONNX Runtime.

Other timbres come from the same voice: the pitch of its pulses, its formants (by playing faster or slower, at an
unchanged pace), and a whisper, whose pulses are replaced by noise of the same spectrum.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from lipstream.errors import MissingExtraError
from numpy.typing import NDArray

from ..speech import Phoneme, resample
from .packages import FIX

_RATE = 24_000
_LATE = 0.064  # seconds at 24 kHz: measured at p and b, the durations run this much behind the sound
_SILENT = -12.0  # logarithm of an amplitude that is not heard


def natural_available() -> bool:
    """Whether the voice is installed."""
    try:
        import hibari  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _voice() -> tuple[Any, Any, dict[int, str]]:
    """The voice, a session whose last output is the duration of each phoneme in frames, and its symbols by number.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        import onnx
        import onnxruntime
        from hibari import Hibari
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is not installed", expected="a natural voice", fix=FIX) from error
    voice = Hibari()
    model = onnx.load(voice.model_path)
    rounded = next(node.output[0] for node in model.graph.node if node.op_type == "Round")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(rounded))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return voice, session, {number: symbol for symbol, number in voice.vocab.items()}


def natural(
    text: str,
    rng: np.random.Generator,
    *,
    speed: float = 1.0,
    pitch: float = 1.0,
    formants: float = 1.0,
    whisper: bool = False,
) -> tuple[NDArray[np.float64], list[Phoneme]]:
    """Speak English `text`.

    Args:
        rng: of the noise in the sound.
        speed: 1 as trained. pitch: factor of the pitch. formants: factor of the formants; below 1 a larger head.

    Returns:
        float64 [n] at 16 kHz, and its phonemes in the alphabet of `misaki`.

    Raises:
        MissingExtraError: the package is not installed.
    """
    voice, session, symbols = _voice()
    from hibari import dsp

    rate = round(_RATE * formants / 40) * 40  # sound at this rate is resampled in whole steps
    sounds: list[NDArray[np.float32]] = []
    phonemes: list[Phoneme] = []
    at = 0.0
    for sentence in voice.phonemize(text):
        ids = voice.ids(sentence)
        feed = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed * _RATE / rate], np.float32)}
        *parts, durations = session.run(None, feed)
        harmonic, phase, noise, rest, rest_phase, tone = (part[0] for part in parts)
        if whisper:
            noise = np.maximum(noise, harmonic - 0.7)
            harmonic, rest = np.full_like(harmonic, _SILENT), np.full_like(rest, _SILENT)
        tone = np.asarray(tone * np.float32(pitch * _RATE / rate), np.float32)
        sound = dsp.synth(harmonic, phase, noise, rest, rest_phase, tone, rng)
        seconds = len(sound) / rate
        ends = at + np.cumsum(durations.ravel()) * (seconds / float(durations.sum()))
        starts = np.concatenate([[at], ends[:-1]])
        late = _LATE * _RATE / rate
        phonemes += [
            Phoneme(symbols.get(number, ""), float(start) - late, float(end) - late)
            for number, start, end in zip(ids, starts, ends, strict=True)
        ]
        sounds.append(sound)
        at += seconds
    return resample(np.concatenate(sounds), rate) if sounds else np.zeros(0), phonemes
