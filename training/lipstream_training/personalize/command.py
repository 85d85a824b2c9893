"""The order of `lipstream personalize`: read the video, measure, tune, measure again, export."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from lipstream.atomic import check_target, write_file
from lipstream.bundle import require_replaceable
from lipstream.errors import ConfigError, FootageError, OutputError, QualityError
from lipstream.media import FPS, ensure_distinct
from lipstream_export.bundle import geometry
from lipstream_export.command import export
from lipstream_export.source import load_source
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import TAEHV
from lipstream_models.layers import round_to_bfloat16
from lipstream_models.parts import StudentParts
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..codec import DecoderRecipe, Frames, train_decoder
from ..diffusion import Latents, StudentRecipe
from .footage import Run, read_footage
from .identity import candidates
from .measure import Closeness, closeness, plain, sheet, table
from .stream import Sound, decode, frames_of, generate
from .student import latents_of, tune_student

LEAST = 20.0
"""Seconds of the face that are needed."""
CHUNKS = 3
"""Of a clip."""
ROLLOUTS = 60
"""Clips at most whose latents the student generates for the decoder's training."""
REPEATED = 30
"""Clips at least of the decoder's training; those of a short video come several times, with other noise."""
STUDENT = StudentRecipe(steps=0, batch=2, learning_rate=6e-4, probe=0.0, pictures=12)
STUDENT_SHARE = 0.6
"""Of the time for training, that of the student; the rest is the decoder's."""
STUDENT_STEPS, STEPS = (20, 1500), (40, 1500)
"""Least and most where the time decides."""
_SHOWN = 20 * FPS  # frames of the part held out that are measured
_CHOSEN = 4 * FPS  # frames of the part trained on, by which the identity is chosen
_EXPORT = 45.0  # seconds kept for it
_TRIAL = 6  # steps that are timed


@dataclass(frozen=True)
class Settings:
    """Options of `personalize`.

    Attributes:
        minutes: for all of it. steps, student_steps: of the decoder's and the student's training (0: leave it as
            it is); None: as the time allows.
        seed: of the training. With both steps given, equal seeds give equal bundles.
        face_at: pixel on or near the person's face. sheet: a PNG to write: true mouths, before and after.
        keep: write the bundle also where the part held out did not get better.
        least: seconds of the face that are needed.
    """

    minutes: float = 5.0
    steps: int | None = None
    student_steps: int | None = None
    seed: int = 0
    face_at: tuple[float, float] | None = None
    sheet: Path | None = None
    keep: bool = False
    least: float = LEAST

    def __post_init__(self) -> None:
        if not 0 < self.minutes < 24 * 60:
            raise ConfigError(f"minutes {self.minutes:g}", expected="more than 0, at most a day")
        if self.steps is not None and self.steps < 0:
            raise ConfigError(f"steps {self.steps}", expected="at least 0")
        if self.student_steps is not None and self.student_steps < 0:
            raise ConfigError(f"student steps {self.student_steps}", expected="at least 0")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed {self.seed}", expected="0 to 2**63 - 1")


def personalize(video: Path, out: Path, source: Path, settings: Settings, *, quiet: bool = False) -> dict[str, Any]:
    """Write the student `source`, tuned to the person in `video`, as the bundle `out`.

    The last third of the person's frames is never trained on. The encoder does not change, so latents keep their
    meaning.

    Args:
        source: a float32 bundle (folder or shipped name), or a checkpoint.

    Returns:
        Ready for JSON; `describe` formats it as text.

    Raises:
        QualityError: the part held out did not get better, and `settings.keep` is not set; nothing is written.
        ConfigError: the source has no student or another decoder than TAEHV. And those of `read_footage`, of
            `load_source` and of `lipstream_export.command.export`.
    """
    began = time.monotonic()
    _check_output(video, out, settings.sheet)
    parts = load_source(source).with_constants()
    _check_parts(parts, source)
    keep = parts.masks["composite"].numpy()
    footage = read_footage(
        video, geometry(parts.config), keep, face_at=settings.face_at, least=settings.least, quiet=quiet
    )
    person = _Person(
        _clips(parts, footage.training, video),
        _shown(parts, footage.held_out, video),
        footage.sound,
        settings.seed,
        quiet,
    )
    true = np.concatenate([run.crops[: frames_of(parts, run)] for run in person.shown])
    clock = _Clock(began, 60 * settings.minutes - _EXPORT)

    latents, generating = clock.timed(person.generated, parts, person.shown)
    before, measuring = clock.timed(_decoded, parts, latents)
    progress = _Progress(parts, latents, closeness(parts, before, true), true)
    identity = _identity(parts, person, _shown(parts, footage.training, video, _CHOSEN))
    if identity is not parts.identity:
        known = replace(parts, identity=identity)
        progress.take("identity", known, person.generated(known, person.shown))
    order = _order(len(person.clips), settings.seed)
    data = latents_of(progress.parts, person.clips, person.sound)

    later = generating * (1 + ROLLOUTS * len(person.clips[0].crops) / len(true)) + 4 * measuring
    seconds = STUDENT_SHARE * (clock.remaining() - later)
    tuned, student_steps = _with_student(progress.parts, person, data, settings, seconds)
    if student_steps:
        progress.take("student", tuned, person.generated(tuned, person.shown))

    steps = 0
    if settings.steps != 0:
        truth = data.target[order], np.stack([person.clips[k].crops for k in order])
        rollouts = person.rollouts(progress.parts, order[:ROLLOUTS])
        seconds = clock.remaining() - 2 * measuring
        tuned, steps = _with_decoder(progress.parts, truth, rollouts, settings, seconds, quiet)
        progress.take("decoder", tuned, progress.latents)

    parts, found = progress.parts, progress.rows | {"after": progress.best}
    warnings = _verdict(found, settings.keep)
    measured = {name: plain(x) for name, x in found.items()}
    name = str(parts.model.get("name", "student")).removesuffix(SUFFIX) + SUFFIX
    named = replace(parts, model=parts.model | {"name": name, "personalised": measured})
    written = export(named, out, quiet=quiet)
    if settings.sheet:
        _write(settings.sheet, sheet(parts, [true, before, _decoded(parts, progress.latents)]))
    return {
        "bundle": str(out),
        "name": name,
        "face_seconds": round(footage.seconds, 1),
        "held_out_seconds": round(len(true) / FPS, 1),
        "held_out": measured,
        "clips": len(person.clips),
        "student_steps": student_steps,
        "steps": steps,
        "kept": progress.kept,
        "seconds": round(time.monotonic() - began, 1),
        "parity": written["parity"] and written["parity"]["worst"],
        "warnings": warnings,
    }


SUFFIX = ", personalised"


def describe(found: dict[str, Any]) -> str:
    """The result of `personalize` as text."""
    steps = {"identity": "", "student": f" ({found['student_steps']} steps)", "decoder": f" ({found['steps']} steps)"}
    kept = ", ".join(name + detail for name, detail in steps.items() if name in found["kept"]) or "nothing"
    rows = {name: Closeness(**measured) for name, measured in found["held_out"].items()}
    return (
        f"{found['bundle']}: {found['name']}, by {found['face_seconds']:.0f} s of the face\n"
        f"the person's own now: {kept}; {found['seconds']:.0f} s in all\n{table(rows)}"
    )


def decoder_recipe(parts: StudentParts) -> DecoderRecipe:
    """From a trained decoder on: a lower rate, and no critic, which is not of use within so few steps."""
    token = parts.config.patch[1]
    size = min(12, *parts.config.latent_size) // token * token
    return DecoderRecipe(size=size, token=token, learning_rate=1e-4, sharp_from=1.0)


@dataclass(frozen=True)
class _Person:
    """Clips to train on, and runs that are measured."""

    clips: list[Run]
    shown: list[Run]
    sound: Sound
    seed: int
    quiet: bool

    def generated(self, parts: StudentParts, runs: list[Run]) -> list[Tensor]:
        """Latents of `runs`, each a separate stream."""
        backend = TorchBackend(parts)
        streams = tqdm(runs, "streams", unit="run", disable=self.quiet or None)
        return [generate(backend, run, self.sound, seed=self.seed) for run in streams]

    def rollouts(self, parts: StudentParts, order: NDArray[np.int64]) -> Tensor:
        """Latents [N, C, F, h, w] of the clips `order`, each time with other noise."""
        backend = TorchBackend(parts)
        rows = tqdm(order, "rollouts", unit="clip", disable=self.quiet or None)
        made = [generate(backend, self.clips[k], self.sound, seed=self.seed + i) for i, k in enumerate(rows)]
        return torch.stack(made)


class _Progress:
    """The best parts so far, by the part held out.

    Attributes:
        parts, latents, best: of these parts. rows: all that was measured, in order. kept: the steps that helped.
    """

    def __init__(self, parts: StudentParts, latents: list[Tensor], before: Closeness, true: Frames) -> None:
        self.parts, self.latents, self.best = parts, latents, before
        self.rows, self.kept, self._true = {"before": before}, list[str](), true

    def take(self, name: str, parts: StudentParts, latents: list[Tensor]) -> None:
        """Measure `parts`, which generated `latents`, and keep them if they are better."""
        self.rows[name] = found = closeness(parts, _decoded(parts, latents), self._true)
        if found.better_than(self.best):
            self.parts, self.latents, self.best = parts, latents, found
            self.kept.append(name)


def _identity(parts: StudentParts, person: _Person, runs: list[Run]) -> Tensor | None:
    """That of `parts` (None: the first frame of each run) or the one of `candidates` that gets nearest to `runs`."""
    true = np.concatenate([run.crops[: frames_of(parts, run)] for run in runs])

    def distance(identity: Tensor | None) -> float:
        latents = person.generated(replace(parts, identity=identity), runs)
        return closeness(parts, _decoded(parts, latents), true).distance

    return min([parts.identity, *candidates(parts, person.clips)], key=distance)


def _with_student(
    parts: StudentParts, person: _Person, data: Latents, settings: Settings, seconds: float
) -> tuple[StudentParts, int]:
    """`parts` with the student tuned for about `seconds`, and the number of steps."""
    tune = partial(tune_student, parts, data, seed=settings.seed)
    steps = settings.student_steps
    if steps is None:
        steps = _affordable(tune, STUDENT, seconds, STUDENT_STEPS)
    if not steps:
        return parts, 0
    with _bar("student", steps, person.quiet) as progress:
        return tune(replace(STUDENT, steps=steps), progress=progress), steps


def _with_decoder(
    parts: StudentParts, truth: tuple[Tensor, Frames], rollouts: Tensor, settings: Settings, seconds: float, quiet: bool
) -> tuple[StudentParts, int]:
    """`parts` with the decoder tuned for about `seconds`, and the number of steps.

    Args:
        truth: latents and pictures of the clips; `rollouts` are latents of the first of them.
    """
    latents, frames = truth

    def tune(recipe: DecoderRecipe, *, progress: Callable[[float], None]) -> TAEHV:
        taehv = copy.deepcopy(parts.taehv)
        assert taehv
        taehv.decoder.requires_grad_(True)
        return train_decoder(taehv, frames, latents, rollouts, recipe, seed=settings.seed, progress=progress)

    recipe = decoder_recipe(parts)
    steps = settings.steps or _affordable(tune, recipe, seconds, STEPS)
    with _bar("decoder", steps, quiet) as progress:
        taehv = tune(replace(recipe, steps=steps), progress=progress)
    round_to_bfloat16(taehv.decoder)
    return replace(parts, taehv=taehv), steps


_Recipe = TypeVar("_Recipe", StudentRecipe, DecoderRecipe)


def _affordable(train: Callable[..., object], recipe: _Recipe, seconds: float, bounds: tuple[int, int]) -> int:
    """Steps of `train` that take about `seconds`, within `bounds`, by a trial of a few."""
    times: list[float] = []
    train(replace(recipe, steps=_TRIAL), progress=lambda loss: times.append(time.monotonic()))
    step = (times[-1] - times[1]) / (len(times) - 2)  # without the first, which is slower
    return int(min(max(seconds / step, bounds[0]), bounds[1]))


_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Clock:
    """A budget of `seconds` that began at `began`, by the monotonic clock."""

    def __init__(self, began: float, seconds: float) -> None:
        self._end = began + seconds

    def remaining(self) -> float:
        return self._end - time.monotonic()

    @staticmethod
    def timed(call: Callable[_P, _R], *args: _P.args, **options: _P.kwargs) -> tuple[_R, float]:
        """What `call` returns, and the seconds that it took."""
        began = time.monotonic()
        return call(*args, **options), time.monotonic() - began


@contextmanager
def _bar(name: str, steps: int, quiet: bool) -> Iterator[Callable[[float], None]]:
    """The progress callback of a training."""
    with tqdm(total=steps, desc=name, unit="step", disable=quiet or None) as bar:

        def progress(loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()

        yield progress


def _decoded(parts: StudentParts, latents: list[Tensor]) -> Frames:
    assert parts.taehv
    return np.concatenate([decode(parts.taehv, x) for x in latents])


def _order(clips: int, seed: int) -> NDArray[np.int64]:
    """All clips in a random order, those of a short video several times."""
    mixed = np.random.default_rng(seed).permutation(clips)
    return np.tile(mixed, -(-REPEATED // clips))


def _clips(parts: StudentParts, runs: list[Run], video: Path) -> list[Run]:
    config = parts.config
    frames = config.temporal * (CHUNKS * config.chunk_frames - 1) + 1
    clips = [clip for run in runs for clip in run.clips(frames)]
    if not clips:
        raise _torn(video, frames)
    return clips


def _shown(parts: StudentParts, runs: list[Run], video: Path, left: int = _SHOWN) -> list[Run]:
    """Those of `runs` that are measured: of a whole chunk at least, up to `left` frames of them."""
    shown = []
    for run in runs:
        run = Run(run.start, run.crops[:left])
        if frames := frames_of(parts, run):
            shown.append(run)
            left -= frames
    if not shown:
        raise _torn(video, parts.config.temporal * parts.config.chunk_frames)
    return shown


def _torn(video: Path, frames: int) -> FootageError:
    return FootageError(
        f"{video} never shows the face for {frames} frames in a row",
        expected="longer stretches",
        fix="give a video in which the face is seen without interruption",
    )


def _verdict(found: dict[str, Closeness], keep: bool) -> list[str]:
    if found["after"].better_than(found["before"]):
        return []
    text = f"the part held out did not get better\n{table(found)}"
    if keep:
        return [text]
    raise QualityError(
        text,
        expected="a smaller error, or a sharpness nearer to 1, and no more blocks",
        fix="give a longer video or more --minutes; or write the bundle all the same: --keep",
    )


def _check_parts(parts: StudentParts, source: Path) -> None:
    if not (parts.student and parts.speech):
        raise ConfigError(f"{source} has no student or no audio encoder", expected="a whole student")
    if parts.decoder != "taehv" or not parts.taehv:
        raise ConfigError(
            f"{source} decodes by the Wan VAE", expected="TAEHV", fix="export it with --decoder taehv first"
        )


def _check_output(video: Path, out: Path, sheet: Path | None) -> None:
    ensure_distinct(out, video)
    require_replaceable(out)  # now, not when the work is done
    if sheet:
        ensure_distinct(sheet, video, out)
        expected = "the name of a PNG file in a folder that exists"
        try:
            check_target(sheet)
        except OSError as error:
            raise OutputError(f"{sheet} cannot be written: {error.strerror}", expected=expected) from error
        if not sheet.parent.is_dir():
            raise OutputError(f"{sheet} cannot be written", expected=expected)


def _write(path: Path, data: bytes) -> None:
    try:
        write_file(path, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", fix="choose another place") from error
