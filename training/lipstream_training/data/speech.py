"""Speech to train on: random sentences, spoken by eSpeak NG, recorded in random rooms with random microphones.

The synthesiser is in the wheel ``espeakng-loader`` (extra ``[training]``): nothing is downloaded or installed on the
system.
"""

from __future__ import annotations

import _ctypes
import ctypes
from dataclasses import dataclass

import numpy as np
from lipstream.errors import MissingExtraError
from numpy.typing import NDArray

from .sentences import sentence

SAMPLE_RATE = 16_000
"""Samples per second of everything this module returns."""

ENGLISH = ("en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
OTHERS = ("de", "fr", "es", "it", "pt", "nl", "sv", "pl", "fi", "hi", "ru", "tr", "id", "sw", "ro", "cs", "hu", "cmn")
TIMBRES = (
    *(f"m{i}" for i in range(1, 9)),
    *(f"f{i}" for i in range(1, 6)),
    *("klatt", "klatt2", "klatt3", "klatt4", "croak", "whisper", "whisperf", "Annie", "Andy", "Michael", "Denis"),
    *("Lee", "adam", "anika", "linda", "steph", "grandma", "grandpa", "john", "paul", "travis", "belinda", "shelby"),
)


@dataclass(frozen=True)
class SpeechClip:
    """One stretch of speech, clean and recorded: synchronous arrays float32 [n] at 16 kHz in [-1, 1].

    Attributes:
        clean: what the mouth says; digital silence between phrases.
        recorded: the input of the model: `clean` through a room, a microphone and noise.
    """

    clean: NDArray[np.float32]
    recorded: NDArray[np.float32]


def synthesiser_available() -> bool:
    """Whether the wheel with eSpeak NG is installed."""
    try:
        import espeakng_loader  # noqa: F401
    except ImportError:
        return False
    return True


def speech(seconds: float, rng: np.random.Generator) -> SpeechClip:
    """Random sentences by a random voice, exactly `seconds` long; one time in 25 only noise.

    Raises:
        MissingExtraError: the synthesiser is not installed.
    """
    samples = round(seconds * SAMPLE_RATE)
    if rng.random() < 0.04:
        return SpeechClip(clean=np.zeros(samples, np.float32), recorded=hush(samples, rng))
    clean = _utterances(samples, rng)
    return SpeechClip(clean=clean, recorded=degrade(clean, rng))


def degrade(clean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """`clean` as a microphone might record it: reverberation, equalisation, band limit, noise, gain.

    A fifth of all draws get only a gain. No step shifts the direct sound in time.

    Args:
        clean: float32 [n], 16 kHz.
    """
    recorded = clean.astype(np.float64)
    if rng.random() > 0.2:
        if rng.random() < 0.35:
            recorded = _reverberate(recorded, rng)
        recorded = _equalise(recorded, rng)
        if rng.random() < 0.75:
            recorded = recorded + _noise(len(recorded), rng) * (_rms(recorded) * 10 ** (-rng.uniform(8, 40) / 20))
    peak = max(float(np.abs(recorded).max(initial=0.0)), 1e-6)
    gain = 10 ** (rng.uniform(-18, 8) / 20)
    return np.clip(recorded * min(gain, 0.99 / peak), -1, 1).astype(np.float32)


def hush(samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of a room where nobody speaks, float32 [samples], -75..-30 dBFS."""
    return np.clip(_noise(samples, rng) * 10 ** (rng.uniform(-75, -30) / 20), -1, 1).astype(np.float32)


def level(said: NDArray[np.float64], rng: np.random.Generator) -> float:
    """The factor that brings speech to a random level of -27..-18 dBFS, pauses not counted."""
    return float(10 ** (rng.uniform(-27, -18) / 20) / max(_rms(said[np.abs(said) > 1e-3]), 1e-4))


def _utterances(samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Sentences of one voice and the silences between them, cut at a random place to `samples`."""
    base = ENGLISH if rng.random() < 0.7 else OTHERS
    voice = base[rng.integers(len(base))]
    if rng.random() < 0.9:
        voice += "+" + TIMBRES[rng.integers(len(TIMBRES))]
    rate, pitch, pitch_range = rng.integers(115, 235), rng.integers(10, 90), rng.integers(20, 95)
    start = int(rng.integers(0, SAMPLE_RATE))  # clips begin in the middle of a sentence
    pieces: list[NDArray[np.float64]] = []
    length = 0
    while length < start + samples:
        said = espeak(" ".join(sentence(rng) for _ in range(2)), voice, int(rate), int(pitch), int(pitch_range))
        gain = level(said, rng)
        pause = rng.uniform(0.05, 1.3) if rng.random() < 0.45 else 0.0
        pieces += [said * gain, np.zeros(int(pause * SAMPLE_RATE))]
        length += len(pieces[-2]) + len(pieces[-1])
    track = np.concatenate(pieces)[start : start + samples]
    return np.clip(track, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Phoneme:
    """One sound of speech: its symbol (IPA, with marks of stress and length), start and end in seconds."""

    symbol: str
    start: float
    end: float


def espeak(text: str, voice: str, rate: int = 170, pitch: int = 50, pitch_range: int = 50) -> NDArray[np.float64]:
    """`espeak_phonemes` without the phonemes."""
    return espeak_phonemes(text, voice, rate, pitch, pitch_range)[0]


class _Event(ctypes.Structure):
    """What eSpeak NG reports with its sound; only phonemes are read."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_END_OF_EVENTS, _PHONEME = 0, 7
_PLOSIVES = ("p", "b", "t", "d", "k", "g", "ɡ", "c", "q", "ʈ", "ɖ")
_CLOSURE = 0.07  # seconds


def espeak_phonemes(
    text: str, voice: str, rate: int = 170, pitch: int = 50, pitch_range: int = 50
) -> tuple[NDArray[np.float64], list[Phoneme]]:
    """Speak `text`; the same arguments always give the same samples.

    The library keeps state between utterances, so a new copy is loaded for each (about 10 ms). For the same reason it
    must not run in two threads at once; several processes are possible.

    Args:
        voice: eSpeak NG voice, optionally with a timbre: ``"en-us+f3"``. ``"en-us"`` replaces an unknown one.
        rate: words per minute.
        pitch, pitch_range: 0..99.

    Returns:
        float64 [n] at 16 kHz in [-1, 1], and its phonemes; a pause is a phoneme with an empty symbol.

    Raises:
        MissingExtraError: the synthesiser is not installed.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise MissingExtraError(
            "espeakng-loader is not installed", expected="a speech synthesiser", fix='pip install "lipstream[training]"'
        ) from error

    chunks: list[NDArray[np.int16]] = []
    starts: list[tuple[float, str]] = []

    def receive(samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events and events[i].type != _END_OF_EVENTS:
            if events[i].type == _PHONEME:
                starts.append((events[i].milliseconds / 1000, events[i].name.decode(errors="ignore")))
            i += 1
        return 0

    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    callback = signature(receive)  # must outlive the synthesis
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        synchronous, characters, utf8 = 2, 1, 1
        phoneme_events, ipa, no_exit = 1, 2, 0x8000
        options = phoneme_events | ipa | no_exit
        rate_in = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), options)
        if rate_in <= 0:
            raise MissingExtraError("eSpeak NG did not start", fix="pip install --force-reinstall espeakng-loader")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            library.espeak_SetVoiceByName(b"en-us")
        for parameter, value in ((1, rate), (3, pitch), (4, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(1)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, len(data), 0, characters, 0, utf8, None, None)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    if not chunks:
        return np.zeros(0), []
    sound = np.concatenate(chunks) / 32768.0
    ends = [start for start, _ in starts[1:]] + [len(sound) / rate_in]
    phonemes = [Phoneme(symbol, start, end) for (start, symbol), end in zip(starts, ends, strict=True)]
    return resample(sound, rate_in), _with_closures(phonemes)


def _with_closures(phonemes: list[Phoneme]) -> list[Phoneme]:
    """Plosives begun at their closure: eSpeak NG reports them where they burst, `_CLOSURE` later (measured)."""
    result: list[Phoneme] = []
    for phoneme in phonemes:
        before = result[-1] if result else None
        if before and phoneme.symbol[:1] in _PLOSIVES:
            start = max(phoneme.start - _CLOSURE, (before.start + before.end) / 2)
            result[-1] = Phoneme(before.symbol, before.start, start)
            phoneme = Phoneme(phoneme.symbol, start, phoneme.end)
        result.append(phoneme)
    return result


def resample(audio: NDArray[np.floating], rate: int) -> NDArray[np.float64]:
    """float [n] at `rate` -> float64 [n * 16000 / rate] at 16 kHz, by cutting the spectrum (no delay)."""
    step = rate // np.gcd(rate, SAMPLE_RATE)
    padded = np.pad(audio, (0, -len(audio) % step))
    length = len(padded) * SAMPLE_RATE // rate
    return np.asarray(np.fft.irfft(np.fft.rfft(padded)[: length // 2 + 1], length) * (length / max(len(padded), 1)))


def _rms(audio: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(audio)))) if len(audio) else 0.0


def _spectral(audio: NDArray[np.float64], gain: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.fft.irfft(np.fft.rfft(audio) * gain, len(audio)))


def _equalise(audio: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random frequency response of a few dB, zero phase, half the time with a cheap microphone's band."""
    hertz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    knots = np.array([0, 120, 300, 700, 1500, 3000, 5000, 8000])
    gain = 10 ** (np.interp(hertz, knots, rng.normal(0, rng.uniform(0, 5), len(knots))) / 20)
    if rng.random() < 0.5:
        low, high = rng.uniform(40, 300), rng.uniform(3300, 8000)
        gain *= 1 / np.sqrt((1 + (low / np.maximum(hertz, 1)) ** 4) * (1 + (hertz / high) ** 8))
    return _spectral(audio, gain)


def _reverberate(audio: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A small room: the direct sound and an exponentially decaying tail of 0.1-0.45 s."""
    decay = rng.uniform(0.1, 0.45)
    tail = int(decay * SAMPLE_RATE)
    response = rng.normal(size=tail) * np.exp(-6.9 * np.arange(tail) / tail) * rng.uniform(0.005, 0.04)
    response[0] = 1.0
    size = len(audio) + tail
    return np.asarray(np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[: len(audio)])


def _noise(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unit-RMS noise with a power law between white and brown, sometimes a hum, sometimes swelling."""
    hertz = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 20.0)
    noise = _spectral(rng.normal(size=samples), hertz ** -rng.uniform(0, 1))
    seconds = np.arange(samples) / SAMPLE_RATE
    if rng.random() < 0.2:
        hum = rng.choice([50.0, 60.0, 100.0, 120.0])
        noise = noise / max(_rms(noise), 1e-9) + rng.uniform(0.3, 1.5) * np.sin(2 * np.pi * hum * seconds)
    if rng.random() < 0.3:
        noise = noise * (1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.1, 2) * seconds + rng.uniform(0, 6.3)))
    return noise / max(_rms(noise), 1e-9)
