"""From phonemes to the mouth: what each sound asks of jaw, lips and tongue, and how neighbours share them.

Dominance after Cohen and Massaro: a sound asks for values of some articulators, each with a weight that falls off
before and after the sound; the mouth takes the weighted mean. On top of that, p b m must close the lips and f v must
bring the lower lip to the teeth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..mouth import MouthTrack
from ..speech import Phoneme

ARTICULATORS = ("jaw", "pucker", "funnel", "spread", "lower", "upper", "press", "tuck", "tongue")
"""jaw open; lips pursed, funnelled (sh), spread; lower lip down, upper lip up; lips pressed together; lower lip tucked
under the teeth; tongue up. All mostly 0..1."""

_JAW, _PUCKER, _FUNNEL, _SPREAD, _LOWER, _UPPER, _PRESS, _TUCK, _TONGUE = range(9)

_FPS, _STEPS = 25, 8  # the mouth is computed 8 times a frame and averaged, like a shutter

_REST = "rest"
_Wish = dict[str, tuple[float, float]]

# viseme: articulator value:weight. What a sound leaves out, its neighbours decide.
_TABLE = """
    p: jaw 0.05:2, press 1:6, pucker 0:0.3, spread 0:0.3, lower 0:4, upper 0:4, tuck 0:2
    f: jaw 0.07:2, tuck 1:6, press 0:3, upper 0.35:2, lower 0:2, pucker 0:0.5, spread 0.15:0.6
    w: jaw 0.1:2, pucker 1:4, funnel 0.25:2, spread 0:3, lower 0:1, upper 0:1
    u: jaw 0.16:2, pucker 0.85:3, funnel 0.35:2, spread 0:2
    o: jaw 0.34:2.5, pucker 0.45:2.5, funnel 0.5:2, spread 0:2
    a: jaw 0.72:3, spread 0.12:1, lower 0.25:1, upper 0.15:1, tongue 0:1
    ae: jaw 0.55:3, spread 0.4:1.5, lower 0.35:1, upper 0.3:1, tongue 0.1:1
    e: jaw 0.36:2.5, spread 0.5:1.5, lower 0.35:1, upper 0.25:1, tongue 0.25:1
    i: jaw 0.15:2.5, spread 0.95:2.5, lower 0.4:1.2, upper 0.3:1.2, pucker 0:2, tongue 0.5:1
    schwa: jaw 0.28:1.2, spread 0.15:0.5, lower 0.15:0.5, upper 0.1:0.5, tongue 0.25:0.5
    r: jaw 0.18:1.5, pucker 0.45:1.5, funnel 0.45:1.5, spread 0:1, tongue 0.3:1
    sh: jaw 0.09:2.5, funnel 0.75:2.5, pucker 0.25:1, lower 0.45:2, upper 0.4:2, tongue 0.3:1
    s: jaw 0.04:2.5, spread 0.45:1, lower 0.55:2, upper 0.3:2, tongue 0.4:1
    t: jaw 0.12:1.5, lower 0.3:0.6, upper 0.15:0.6, tongue 0.8:2
    th: jaw 0.16:2, lower 0.35:1.5, upper 0.2:1.5, tongue 1:3
    l: jaw 0.24:1.5, lower 0.25:0.6, upper 0.12:0.6, tongue 0.9:2.5
    k: jaw 0.2:0.8, lower 0.2:0.4, tongue 0.3:0.6
    h: jaw 0.22:0.3
    rest: jaw 0.02:1.5, press 0.12:0.8, pucker 0:0.6, funnel 0:0.8, spread 0:0.6, lower 0:1, upper 0:1, tuck 0:1
"""


def _read_table() -> dict[str, _Wish]:
    """Visemes with values and weights of articulators."""
    visemes: dict[str, _Wish] = {}
    for line in _TABLE.strip().splitlines():
        viseme, wishes = line.strip().split(": ")
        wish: _Wish = {}
        for part in wishes.split(", "):
            articulator, numbers = part.split()
            value, weight = numbers.split(":")
            wish[articulator] = float(value), float(weight)
        if viseme != _REST:  # only labials bring the lips together, whatever else a sound leaves open
            wish.setdefault("press", (0.0, 3.5))
            wish.setdefault("tuck", (0.0, 3.5))
        visemes[viseme] = wish
    return visemes


_VISEMES = _read_table()
VISEMES = tuple(_VISEMES)
"""Names of the visemes; `p` also stands for b and m, and so on. "rest" is silence."""

_SYMBOLS = {
    "p": "pbmɓʙ",
    "f": "fvɱʋɸβ",
    "w": "wʍɥ",
    "u": "uʊyɯʉøœʏ",
    "o": "oɔɒɤ",
    "a": "aɑʌɐ",
    "ae": "æ",
    "e": "eɛɜ",
    "i": "iɪjɨᵻ",
    "schwa": "əɚᵊɘɵ",
    "r": "ɹrɾʁɻ",
    "sh": "ʃʒʧʤɕʑʂʐ",
    "s": "szʦʣ",
    "t": "tdnɲʈɖɳ",
    "th": "θð",
    "l": "lɫʎɭɬ",
    "k": "kɡgŋxɣqcɟçʝχ",
    "h": "hʔɦ",
}
_VISEME_OF = {symbol: viseme for viseme, symbols in _SYMBOLS.items() for symbol in symbols}
_DIPHTHONGS = {"I": "ai", "W": "au", "A": "ei", "O": "ou", "Y": "oi", "Q": "ou"}  # one letter each in misaki
_MARKS = "ˈˌːʰʲ̩̃ "

_REACH = {
    "jaw": (0.06, 0.06),
    "pucker": (0.13, 0.09),
    "funnel": (0.10, 0.08),
    "spread": (0.10, 0.08),
    "press": (0.045, 0.035),
    "tuck": (0.05, 0.04),
}
"""Seconds that an articulator moves ahead of its sound, and lags behind it; the others: 0.06."""


@dataclass(frozen=True)
class Segment:
    """A stretch of one viseme; seconds."""

    viseme: str
    start: float
    end: float

    def later(self, seconds: float) -> Segment:
        return Segment(self.viseme, self.start + seconds, self.end + seconds)


@dataclass(frozen=True)
class Manner:
    """How a person speaks: factors of the articulators, and habits.

    Attributes:
        jaw, rounding, spread, lips: factors. slow: inertia. lopsided: -1..1. smile: 0..1, always there.
    """

    jaw: float = 1.0
    rounding: float = 1.0
    spread: float = 1.0
    lips: float = 1.0
    slow: float = 1.1
    lopsided: float = 0.0
    smile: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Manner:
        return cls(
            jaw=rng.uniform(0.75, 1.3),
            rounding=rng.uniform(0.8, 1.15),
            spread=rng.uniform(0.7, 1.3),
            lips=rng.uniform(0.5, 1.4),
            slow=rng.uniform(0.8, 1.4),
            lopsided=rng.normal(0, 0.12),
            smile=max(0.0, rng.normal(0, 0.12)),
        )


@dataclass(frozen=True)
class VisemeTrack:
    """The mouth in each frame, 25 a second.

    Attributes:
        articulators: float32 [frames, 9], see `ARTICULATORS`.
    """

    articulators: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.articulators)

    def __getitem__(self, frames: slice) -> VisemeTrack:
        return VisemeTrack(self.articulators[frames])

    @cached_property
    def opening(self) -> NDArray[np.float32]:
        """Gap between the lips, float32 [frames], 0 closed .. 1 wide open (0.3 of the distance of the eyes' corners).

        The weights here and in `width` are fitted to the rendered mesh.
        """
        y = self.articulators
        gap = y[:, _JAW] + 0.12 * (y[:, _LOWER] + y[:, _UPPER]) + 0.39 * y[:, _FUNNEL]
        return np.asarray(np.clip(gap * (1 - y[:, _PRESS]) - 0.12 * y[:, _PRESS], 0, 1), np.float32)

    @cached_property
    def width(self) -> NDArray[np.float32]:
        """Distance of the corners of the mouth, float32 [frames], -1 rounded .. 1 spread, 0 at rest."""
        y = self.articulators
        wide = y[:, _SPREAD] + 0.6 * y[:, _TUCK] - 0.67 * y[:, _PUCKER] - 0.31 * y[:, _FUNNEL]
        return np.asarray(np.clip(wide - 0.44 * y[:, _JAW] - 0.28 * y[:, _UPPER], -1, 1), np.float32)

    @cached_property
    def rounding(self) -> NDArray[np.float32]:
        """How far the lips are pursed or funnelled, float32 [frames], 0..1."""
        y = self.articulators
        return np.asarray(np.clip(y[:, _PUCKER] + 0.6 * y[:, _FUNNEL], 0, 1), np.float32)

    @property
    def teeth(self) -> NDArray[np.float32]:
        """Retraction of the lips from the teeth, float32 [frames], 0..1."""
        y = self.articulators
        shown = 0.8 * np.maximum(y[:, _LOWER], y[:, _UPPER]) * (1 - y[:, _PRESS])
        return np.asarray(np.clip(np.maximum(1.5 * shown, 0.7 * y[:, _TUCK]), 0, 1), np.float32)

    @property
    def closure(self) -> NDArray[np.float32]:
        """Contact of the lips with each other (p b m) or the teeth (f v), float32 [frames], 0..1."""
        return np.asarray(self.articulators[:, [_PRESS, _TUCK]].max(1), np.float32)

    @property
    def tongue(self) -> NDArray[np.float32]:
        """Height of the tongue, float32 [frames], 0..1."""
        return self.articulators[:, _TONGUE]

    @property
    def mouth(self) -> MouthTrack:
        """The four values that drawn people have, on their scale."""
        return MouthTrack(self.opening, self.width, self.teeth, np.clip(self.tongue, 0, 1))

    def units(self, frame: int, manner: Manner) -> dict[str, float]:
        """Face units of one frame, for `Person.shape`."""
        jaw, pucker, funnel, spread, lower, upper, press, tuck, _tongue = (float(x) for x in self.articulators[frame])
        apart = 1 - press
        units = {
            "jawOpen": 0.02 + jaw * (1 - 0.8 * press),
            "mouthPucker": 0.85 * pucker * (1 - 0.5 * press),
            "mouthFunnel": 0.75 * funnel * apart,
            "mouthStretch": 0.40 * spread,
            "mouthPress": 0.35 * press,
            "mouthRollLower": 0.22 * press + 0.75 * tuck,
            "mouthRollUpper": 0.22 * press,
            "mouthShrugLower": 0.15 * press,
            "mouthDimple": 0.15 * spread,
            "noseSneer": 0.12 * upper,
        }
        for side, share in (("Left", 1 + manner.lopsided), ("Right", 1 - manner.lopsided)):
            units["mouthSmile" + side] = (0.22 * spread + manner.smile) * share
            units["mouthUpperUp" + side] = (0.75 * upper * apart + 0.55 * tuck) * share
            units["mouthLowerDown" + side] = 0.95 * lower * apart * (1 - tuck) * share
        return units


def rest_track(frames: int) -> VisemeTrack:
    """A mouth at rest."""
    return VisemeTrack(np.zeros((frames, len(ARTICULATORS)), np.float32))


def segments(phonemes: Sequence[Phoneme], *, misaki: bool) -> list[Segment]:
    """Visemes of phonemes; `misaki`: capital letters are diphthongs. Marks of stress lengthen what stands before."""
    result: list[Segment] = []
    for phoneme in phonemes:
        symbol = _DIPHTHONGS.get(phoneme.symbol, phoneme.symbol) if misaki else phoneme.symbol
        visemes = [_VISEME_OF[letter] for letter in symbol if letter in _VISEME_OF]
        length = phoneme.end - phoneme.start
        if not visemes and not symbol.strip(_MARKS + ".,;:!?—…\"“”()'") and length > (0.12 if misaki else 0.09):
            visemes = [_REST]
        if not visemes:
            if result:
                result[-1] = Segment(result[-1].viseme, result[-1].start, max(result[-1].end, phoneme.end))
            continue
        step = length / len(visemes)
        result += [
            Segment(viseme, phoneme.start + i * step, phoneme.start + (i + 1) * step)
            for i, viseme in enumerate(visemes)
        ]
    return result


def viseme_track(spoken: Sequence[Segment], frames: int, manner: Manner) -> VisemeTrack:
    """The mouth of someone who says `spoken`; second 0 begins frame 0."""
    time = (np.arange(frames * _STEPS) + 0.5) / (_FPS * _STEPS)
    total = np.zeros((len(time), len(ARTICULATORS)))
    weights = np.full_like(total, 0.12)  # of the rest, where every articulator is 0
    near = [segment for segment in spoken if segment.end > -0.5 and segment.start < frames / _FPS + 0.5]
    for segment in near:
        middle, half = (segment.start + segment.end) / 2, (segment.end - segment.start) / 2
        first, last = np.searchsorted(time, (segment.start - 0.4, segment.end + 0.4))
        offset = time[first:last] - middle
        outside = np.maximum(0, np.abs(offset) - half)
        presence = min(1.0, 0.45 + 2 * half / 0.09)  # short sounds ask for less
        for name, (value, dominance) in _VISEMES[segment.viseme].items():
            ahead, after = _REACH.get(name, (0.06, 0.06))
            weight = dominance * presence * np.exp(-((outside / np.where(offset < 0, ahead, after) * 1.6) ** 1.5))
            column = ARTICULATORS.index(name)
            total[first:last, column] += weight * value
            weights[first:last, column] += weight
    y = total / weights
    y *= (manner.jaw, manner.rounding, manner.rounding, manner.spread, manner.lips, manner.lips, 1, 1, 1)
    if len(y):
        inertia = np.exp(-np.abs(np.arange(-8, 9)) / (2.6 * manner.slow))  # 13 ms
        inertia /= inertia.sum()
        y = np.stack([np.convolve(np.pad(column, 8, "edge"), inertia, "valid") for column in y.T], 1)
    for segment in near:
        if segment.viseme in ("p", "f"):
            _close(y, time, segment)
    return VisemeTrack(y.reshape(frames, _STEPS, -1).mean(1).astype(np.float32))


def _close(y: NDArray[np.float64], time: NDArray[np.float64], segment: Segment) -> None:
    """Contact for 48 ms at least, whatever the neighbours ask for."""
    middle = (segment.start + segment.end) / 2
    half = max((segment.end - segment.start) / 2 - 0.012, 0.024)
    contact = np.clip(1 - (np.abs(time - middle) - half) / 0.035, 0, 1)
    contact = contact * contact * (3 - 2 * contact)
    labial = segment.viseme == "p"
    at = _PRESS if labial else _TUCK
    y[:, at] = np.maximum(y[:, at], contact)
    for other in (_JAW, _LOWER, _UPPER, _TUCK) if labial else (_LOWER, _PRESS):
        y[:, other] *= 1 - contact * (0.85 if other == _JAW else 0.92)
