"""Records inputs of the linear layers from real chunks of a dub, over all passes of the schedule."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from lipstream import LipSyncEngine, samples
from lipstream.backends import ChunkStream
from lipstream.backends.base import Array
from lipstream.backends.steps import Steps
from lipstream.bundle import CONSTANTS, Bundle, writing
from lipstream.errors import AudioTooShortError
from lipstream.media import AudioReader
from lipstream_models import CausalDiT
from lipstream_models.parts import StudentParts
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from ..bundle import manifest_of
from ..progress import Progress, unseen
from ..torch_backend import TorchBackend
from .fp8 import linear_layers
from .products import products_in_float32

Method = Literal["amax", "percentile"]
PERCENTILE = 0.9999
"""Of the inputs' absolute values, with the method "percentile": one in ten thousand is cut."""


@dataclass
class Passes:
    """The calls to one stream, in order, to be repeated on another model.

    Attributes:
        calls: (name, arguments) of `begin_chunk`, `denoise` and `context`.
        velocities: the result of each `denoise`.
    """

    calls: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    velocities: list[Array] = field(default_factory=list)

    def first(self, chunks: int) -> Passes:
        """The denoising of the first `chunks` chunks, and the context passes that it depends on."""
        begun = [i for i, (name, _) in enumerate(self.calls) if name == "begin_chunk"]
        calls = self.calls[: begun[chunks] if chunks < len(begun) else len(self.calls)]
        last = max(i for i, (name, _) in enumerate(calls) if name == "denoise")
        calls = calls[: last + 1]
        return Passes(calls, self.velocities[: sum(name == "denoise" for name, _ in calls)])

    def play(self, stream: Steps) -> list[Array]:
        """Make the same calls on `stream`; return its `denoise` outputs. Errors accumulate only through the ring."""
        found = [getattr(stream, name)(*arguments) for name, arguments in self.calls]
        return [x for (name, _), x in zip(self.calls, found, strict=True) if name == "denoise"]


class _Recorder:
    """Records the calls to a stream and passes them on."""

    def __init__(self, stream: Steps, passes: Passes) -> None:
        self._stream, self._passes = stream, passes

    def __getattr__(self, name: str) -> Callable[..., object]:
        call: Callable[..., object] = getattr(self._stream, name)
        if name not in ("begin_chunk", "denoise", "context"):
            return call

        def recorded(*arguments: object) -> object:
            self._passes.calls.append((name, arguments))
            result = call(*arguments)
            if isinstance(result, np.ndarray):
                self._passes.velocities.append(result)
            return result

        return recorded


class _RecordingBackend:
    reuses_streams = False
    encode_clip = None

    def __init__(self, backend: TorchBackend, passes: Passes) -> None:
        self._backend, self._passes = backend, passes

    def open_stream(self) -> ChunkStream:
        steps = cast(Steps, _Recorder(self._backend.open_steps(), self._passes))
        return self._backend.stepped(steps)


def record_passes(
    parts: StudentParts,
    chunks: int,
    *,
    video: Path = samples.FACE,
    audio: Path = samples.SPEECH,
    progress: Progress = unseen,
) -> Passes:
    """The passes of `chunks` chunks of a session on `video` and `audio` with the whole float32 model.

    Raises:
        MediaOpenError and other errors of a session. AudioTooShortError: the audio ends before `chunks` chunks.
    """
    passes = Passes()
    engine = LipSyncEngine(_masks_alone(parts), _RecordingBackend(TorchBackend(parts), passes))
    done = 0
    progress("calibration", done, chunks, "preparing the video")
    with engine.session(video) as session:
        reader = AudioReader(audio)
        for samples in reader:
            session.push_audio(samples, reader.info.rate)
            for _ in session:
                done = sum(name == "context" for name, _ in passes.calls)
                if done >= chunks:
                    break
            progress("calibration", done, chunks, f"chunk {done}")
            if done >= chunks:
                break
    if done < chunks:
        raise AudioTooShortError(
            f"{audio} is enough for {done} chunks",
            expected=f"{chunks} to calibrate with",
            fix="a smaller --chunks, or longer audio",
        )
    return passes


def _masks_alone(parts: StudentParts) -> Bundle:
    """A bundle of the masks of `parts` without graphs, for an engine whose backend has its own models."""
    masks = {f"mask.{name}": mask.contiguous().float() for name, mask in parts.masks.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks"
        with writing(path, manifest_of(parts)) as inside:
            (inside / CONSTANTS).write_bytes(safetensors(masks))
        return Bundle.load(path)  # it reads the constants before the folder is deleted


@contextmanager
def _inputs(student: CausalDiT, seen: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `seen` with the name and the input of every linear layer that may be FP8."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: seen(name, inputs[0].detach())

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in linear_layers(student).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Observer(nn.Module):
    """Replaces `FP8Operands`, and records the largest Q, K and V."""

    def __init__(self) -> None:
        super().__init__()
        self.amax = [0.0, 0.0, 0.0]

    def forward(self, *qkv: Tensor) -> tuple[Tensor, ...]:
        self.amax = [max(old, float(x.abs().max())) for old, x in zip(self.amax, qkv, strict=True)]
        return qkv


def largest_operands(parts: StudentParts, passes: Passes) -> list[list[float]]:
    """The largest Q, K and V of every layer's self-attention over all `passes`."""
    student = copy.deepcopy(parts.student)
    assert student
    observers = [_Observer() for _ in student.layers]
    for block, observer in zip(student.layers, observers, strict=True):
        block.self_attn.operands = observer
    with products_in_float32(student):
        passes.play(TorchBackend(replace(parts, student=student)).open_steps())
    last = len(observers) - 1
    return [observer.amax for i, observer in enumerate(observers) if i < last or any(observer.amax)]


def largest_inputs(parts: StudentParts, passes: Passes, method: Method = "amax") -> dict[str, float]:
    """The largest input of each linear layer over all `passes`, by name.

    With the method "percentile" it is the mean over the passes of their 99.99th percentiles: rare large inputs are cut,
    and the others get finer steps.
    """
    assert parts.student
    found: dict[str, list[float]] = {name: [] for name in linear_layers(parts.student)}

    def seen(name: str, x: Tensor) -> None:
        sizes = x.float().abs().flatten()
        if method == "percentile":
            rank = max(1, round(PERCENTILE * sizes.numel()))
            found[name].append(float(sizes.kthvalue(rank).values))
        else:
            found[name].append(float(sizes.max()))

    with _inputs(parts.student, seen), products_in_float32(parts.student):
        passes.play(TorchBackend(parts).open_steps())
    reduce = np.mean if method == "percentile" else np.max
    return {name: float(reduce(values)) for name, values in found.items() if values}
