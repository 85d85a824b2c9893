"""One stream on the device: its memory, and the work of a chunk on three lanes.

    encode    crops, sound up | video encoder, audio encoder
    denoise                     tables, noise up | condition | pass | pass |          context pass
    decode                                      frames up                  | decoder | composite | frames down

Of a frame only what the mouth can touch goes up and comes down (compositing.py); without overlays pictures come down.
Pictures are uint8 on their way up and down, and become the codec's float32 on the device, and uint8 again.
Each lane waits only for its inputs. The host waits once, for the pictures. Buffers that one lane writes while another
may still read the previous chunk's data exist twice; chunks use them alternately (`side`).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bundle import IDENTITY
from ...errors import GpuError, LipStreamInternalError
from ...media.av_frame import Plane
from ..base import Array, Bytes, ChunkInput, ChunkStream, PendingChunk, Timed
from .compositing import FrameCompositor
from .cuda import Anything, DeviceMemory, Event, Lane, Layout, Pinned
from .engine import Engine, Task
from .resources import Resources
from .ring import EngineRing

SIDES = (0, 1)


class Workspace:
    """Device and host memory of one stream, and the tasks bound to it. Streams use it one after the other.

    Attributes:
        memory: on the device. inputs: addresses of the small inputs of a chunk. host: pinned arrays, a set for each
            side. small, found: pinned arrays of the small inputs, uploaded in one copy, and of the results,
            downloaded in one. results: addresses of these. encoded, denoised, shown, spent:
            events of each side: latents and features are ready; the clean latents are ready; the pictures are on the
            host; the context pass has read the encoders' outputs.
    """

    def __init__(self, resources: Resources) -> None:
        g, audio, engines = resources.manifest.geometry, resources.manifest.audio, resources.engines
        latent = (g.latent_channels, g.chunk_frames, *g.latent_size)
        steps = len(resources.manifest.t_list) - 1
        inputs = {f"noise.{step}": (latent, np.float32) for step in range(steps)} | EngineRing.tables(g)
        whole = Layout({name: _bytes(*of) for name, of in inputs.items()})
        pictures = ((g.video_frames, *g.crop_size, 3), np.uint8)
        results = {"pictures": pictures, "not_finite": ((1,), np.int32)}
        found = Layout({name: _bytes(*of) for name, of in results.items()})
        size = 4 * math.prod(latent)
        sizes = {
            "crops": _bytes(*pictures),
            "video_encoder.frames": engines["video_encoder"].tensors["frames"].bytes,
            "samples": engines["audio_encoder"].tensors["samples"].bytes,
            "condition": size // g.latent_channels * (3 * g.latent_channels + 1),
            "identity": size // g.chunk_frames,
            "inputs": whole.bytes,
            "x": size,
            "velocity": size,
            "video_decoder.frames": engines["video_decoder"].tensors["frames"].bytes,
            "results": found.bytes,
        }
        for side in SIDES:
            sizes |= {f"latents.{side}": 2 * size, f"clean.{side}": size}
            sizes[f"audio.{side}"] = 4 * g.video_frames * audio.features
            for name, engine in engines.items():
                memories = {key: x for key, x in engine.tensors.items() if key.startswith("memory.")}
                sizes |= {f"{name}.{key}.{side}": x.bytes for key, x in memories.items()}
        cuda = resources.cuda
        self.memory = DeviceMemory(cuda, sizes | EngineRing.sizes(g, engines["denoiser"], resources.in_place))
        self.inputs = {name: self.memory.at["inputs"] + offset for name, offset in whole.at.items()}
        self.results = {name: self.memory.at["results"] + offset for name, offset in found.at.items()}
        shapes = {
            "crops": pictures,
            "latents": ((2, *latent), np.float32),
            "samples": (engines["audio_encoder"].tensors["samples"].shape, np.float32),
        }
        self.host = [Pinned(cuda, shapes) for _ in SIDES]
        # One copy uploads all small inputs of a chunk, another downloads its results: these arrays have the same layout
        # as on the device.
        self.small = [Pinned(cuda, inputs) for _ in SIDES]
        self.found = [Pinned(cuda, results) for _ in SIDES]
        self.encoded, self.denoised, self.shown, self.spent = ([Event(cuda) for _ in SIDES] for _ in range(4))
        self.tasks: dict[tuple[Any, ...], Task] = {}
        self.compositor = FrameCompositor(resources)


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    size: int = np.dtype(dtype).itemsize
    return math.prod(shape) * size


class TensorRTStream(ChunkStream):
    """See `ChunkStream`."""

    ahead = True
    composites = True

    def __init__(self, resources: Resources, workspace: Workspace, give_back: Callable[[Workspace], None]) -> None:
        self._resources, self._workspace = resources, workspace
        self._manifest, self._geometry = resources.manifest, resources.manifest.geometry
        self._steps = len(self._manifest.t_list) - 1
        self._features = self._manifest.audio.features
        self._close = weakref.finalize(self, give_back, workspace)
        self._close.atexit = False
        self._codec_side = {"video_encoder": 0, "video_decoder": 0}
        self._pending: list[_Pending] = []
        at = workspace.memory.at
        self._ring = EngineRing(
            self._manifest, resources.engines["denoiser"], resources.in_place, resources.kernels, at
        )
        with resources.turn:
            encode = resources.encode
            for event in (*workspace.spent, *workspace.shown):  # of the stream that used the memory before
                encode.wait(event)
            encode.clear(workspace.memory)
            for event in workspace.encoded:
                encode.record(event)
            # The memory must be cleared before it is read.
            resources.denoise.wait(workspace.encoded[0])
            resources.decode.wait(workspace.encoded[0])

    def close(self) -> None:
        """Return the memory for the next stream."""
        if self._close.alive:
            self._workspace.compositor.forget()
        self._close()

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """See `ChunkStream`."""
        self._pending = [pending for pending in self._pending if not pending.done]
        if len(self._pending) > 1 or any(pending.side == chunk.number % 2 for pending in self._pending):
            raise LipStreamInternalError("a chunk is started before the pictures of the last but one are taken")
        try:
            with timed("reference"):
                self._stage(chunk)
            with timed("denoise"):
                self._create_contexts(chunk)
            with timed("denoise"), self._resources.turn:
                pending = self._put(chunk)
        except BaseException:
            self._close.detach()  # part of the chunk is enqueued: no other stream may use this memory
            with suppress(GpuError), self._resources.turn:  # no other session captures a lane now
                for lane in self._resources.lanes:
                    lane.synchronize()
            raise
        self._pending.append(pending)
        return pending

    def _stage(self, chunk: ChunkInput) -> None:
        """Copy the inputs to pinned memory."""
        side = chunk.number % 2
        host, small = self._workspace.host[side].at, self._workspace.small[side].at
        if chunk.latents is None:
            host["crops"][:] = chunk.crops
        else:
            host["latents"][:] = chunk.latents
        host["samples"][:] = chunk.samples
        for step, noise in enumerate(chunk.noises):
            small[f"noise.{step}"][:] = noise
        if chunk.overlays is not None:
            self._workspace.compositor.stage(side, chunk.overlays)
        self._ring.start(chunk.number)
        self._ring.fill(small)

    def _create_contexts(self, chunk: ChunkInput) -> None:
        """Create what `_put` will run and no earlier chunk did; other sessions may have the turn meanwhile."""
        side = chunk.number % 2
        if chunk.latents is None:
            self._codec_task("video_encoder", side, self._codec_side["video_encoder"])
        self._codec_task("audio_encoder", side)
        self._codec_task("video_decoder", side, self._codec_side["video_decoder"])
        for step in range(self._steps + 1):
            self._pass_task(side, step)

    def _put(self, chunk: ChunkInput) -> _Pending:
        """Enqueue the whole chunk on the lanes."""
        work, resources = self._workspace, self._resources
        at, side = work.memory.at, chunk.number % 2
        host, encode, denoise, decode = work.host[side].at, resources.encode, resources.denoise, resources.decode
        fresh: list[Task] = []
        codecs = dict(self._codec_side)

        encode.wait(work.spent[side])
        with encode.span("encode"):
            if chunk.latents is None:
                self._upload_crops(encode, host["crops"])
                self._run(fresh, "video_encoder", side, self._turn("video_encoder"))
            else:
                encode.upload(at[f"latents.{side}"], host["latents"])
            encode.upload(at["samples"], host["samples"])
            self._run(fresh, "audio_encoder", side)
            if chunk.missing:
                self._repeat_first(encode, f"audio.{side}", chunk.missing)
            if chunk.number == 0:
                self._keep_identity(encode, side)
        encode.record(work.encoded[side])

        denoise.wait(work.shown[side])  # the decoder of a dropped chunk may still read the clean latents
        with denoise.span("begin"):
            denoise.upload(at["inputs"], work.small[side].whole)
            self._ring.begin(denoise, work.inputs)
        denoise.wait(work.encoded[side])
        with denoise.span("condition"):
            self._assemble(denoise, side)
        for step in range(self._steps):
            with denoise.span(f"pass {step}"):
                self._pass(fresh, side, step)
                self._advance(denoise, side, step)
        denoise.record(work.denoised[side])

        decode.wait(work.denoised[side])
        with decode.span("decode"):
            self._run(fresh, "video_decoder", side, self._turn("video_decoder"))
        with decode.span("pictures"):
            self._pack(decode)
            if chunk.overlays is None:
                decode.download(work.found[side].whole, at["results"])
        if chunk.overlays is not None:
            with decode.span("composite"):
                self._composite(decode, side, chunk.missing)
        decode.record(work.shown[side])

        with denoise.span("context"):  # after the work that the pictures need
            self._pass(fresh, side, self._steps)
        denoise.record(work.spent[side])
        for task in fresh:  # the device has work by now: capturing does not delay it
            task.capture()
        return _Pending(self, side, chunk.missing, codecs)

    def _turn(self, codec: str) -> int:
        """Index of the codec memory to read now; it alternates between calls."""
        side = self._codec_side[codec]
        self._codec_side[codec] = 1 - side
        return side

    def _upload_crops(self, lane: Lane, crops: Bytes) -> None:
        """Copy crops to the device, and make them the video encoder's input."""
        at = self._workspace.memory.at
        lane.upload(at["crops"], crops)
        self._resources.kernels.unpack_pictures(
            at["video_encoder.frames"], at["crops"], picture_shape=crops.shape[:3], stream=int(lane.handle)
        )

    def _pack(self, lane: Lane) -> None:
        """Make the decoder's output uint8, and note whether all of it was finite."""
        g, work = self._geometry, self._workspace
        flag = work.results["not_finite"]
        lane.zero(flag, 4)
        self._resources.kernels.pack_pictures(
            work.results["pictures"],
            flag,
            work.memory.at["video_decoder.frames"],
            picture_shape=(g.video_frames, *g.crop_size),
            stream=int(lane.handle),
        )

    def _composite(self, lane: Lane, side: int, missing: int) -> None:
        """Place the pictures in their frames, and bring down what of these they touch."""
        g, work = self._geometry, self._workspace
        size = g.crop_size[0]
        first = work.results["pictures"] + missing * size * size * 3
        work.compositor.enqueue(side, lane, first, size)
        lane.download(work.found[side].at["not_finite"], work.results["not_finite"])

    def _repeat_first(self, lane: Lane, features: str, missing: int) -> None:
        """Fill the `missing` frames of features with the stream's first one."""
        address, row = self._workspace.memory.at[features], 4 * self._features
        for i in range(missing):
            lane.copy(address + i * row, address + missing * row, row)

    def _keep_identity(self, lane: Lane, side: int) -> None:
        """Store the identity, latents [C, h, w]: the bundle's or else the stream's first frame."""
        g, at = self._geometry, self._workspace.memory.at
        frame = 4 * math.prod(g.latent_size)
        if (identity := self._resources.constants.get(IDENTITY)) is not None:
            lane.copy(at["identity"], identity, g.latent_channels * frame)
            return
        lane.copy_rows(at["identity"], at[f"latents.{side}"], frame, g.chunk_frames * frame, g.latent_channels)

    def _assemble(self, lane: Lane, side: int) -> None:
        g, at, shape = self._geometry, self._workspace.memory.at, self._latent_shape
        plain = at[f"latents.{side}"]
        masked = plain + 4 * math.prod(shape)
        sequence = masked if g.sequence == "masked" else plain
        mask = self._resources.constants["mask.latent"]
        self._resources.kernels.assemble_condition(
            at["condition"], at["identity"], mask, masked, sequence, latent_shape=shape, stream=int(lane.handle)
        )

    def _advance(self, lane: Lane, side: int, step: int) -> None:
        """Compute the input of the next pass: see `lipstream.backends.sampler`."""
        at, times = self._workspace.memory.at, self._manifest.t_list
        last = step + 1 == self._steps
        self._resources.kernels.advance(
            at["x"],
            at[f"clean.{side}"],
            self._latent(step, side),
            at["velocity"],
            0 if last else self._workspace.inputs[f"noise.{step + 1}"],
            t=times[step],
            next_t=times[step + 1],
            count=math.prod(self._latent_shape),
            stream=int(lane.handle),
        )

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        g = self._geometry
        return (g.latent_channels, g.chunk_frames, *g.latent_size)

    def _latent(self, step: int, side: int) -> int:
        """Address of the latents of pass `step`: the noise, the result of the previous pass, or the clean latents."""
        work = self._workspace
        if step == self._steps:
            return work.memory.at[f"clean.{side}"]
        return work.memory.at["x"] if step else work.inputs["noise.0"]

    def _pass(self, fresh: list[Task], side: int, step: int) -> None:
        """Enqueue one run of the DiT; after the last step the context pass, whose velocity is not read."""
        self._launch(fresh, self._pass_task(side, step))

    def _pass_task(self, side: int, step: int) -> Task:
        """The task of pass `step` of the ring's chunk, created if no chunk has needed it yet."""
        work = self._workspace
        key = ("denoiser", side, step, *self._ring.key(step))
        if key not in work.tasks:
            at, constants = work.memory.at, self._resources.constants
            addresses = {
                "latent": self._latent(step, side),
                "condition": at["condition"],
                "audio": at[f"audio.{side}"],
                "velocity": at["velocity"],
                "modulation": constants[f"modulation.{step}"],
                **{name: address for name, address in constants.items() if name.startswith("text_")},
                **work.inputs,
                **self._ring.addresses(step),
            }
            shapes = self._ring.shapes()
            profile = self._resources.engines["denoiser"].profile("k.0", self._ring.position.valid) if shapes else 0
            work.tasks[key] = self._task("denoiser", addresses, profile, shapes)
        return work.tasks[key]

    def _run(self, fresh: list[Task], graph: str, side: int, turn: int = 0) -> None:
        """Enqueue one run of an encoder or the decoder."""
        self._launch(fresh, self._codec_task(graph, side, turn))

    def _codec_task(self, graph: str, side: int, turn: int = 0) -> Task:
        """The task of an encoder or the decoder, created if no chunk has needed it yet."""
        work = self._workspace
        key = (graph, side, turn)
        if key not in work.tasks:
            at = work.memory.at
            addresses = {
                "frames": at["video_encoder.frames" if graph == "video_encoder" else "video_decoder.frames"],
                "mask": self._resources.constants["mask.pixel"],
                "latents": at[f"latents.{side}"],
                "latent": at[f"clean.{side}"],
                "samples": at["samples"],
                "features": at[f"audio.{side}"],
            }
            for name in self._resources.engines[graph].tensors:
                if name.startswith("memory"):
                    half = turn if name.startswith("memory.") else 1 - turn
                    addresses[name] = at[f"{graph}.{name.replace('memory_out', 'memory')}.{half}"]
            work.tasks[key] = self._task(graph, addresses)
        return work.tasks[key]

    def _task(
        self,
        graph: str,
        addresses: Mapping[str, int],
        profile: int = 0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Task:
        resources = self._resources
        engine: Engine = resources.engines[graph]
        lane = resources.lane_of[graph]
        with resources.creating:
            return Task(engine, lane, addresses, resources.scratch[lane.name], profile=profile, shapes=shapes)

    def _launch(self, fresh: list[Task], task: Task) -> None:
        if not task.captured and task not in fresh:
            fresh.append(task)
        task.launch()

    def encode_video(self, crops: Bytes) -> Array:
        """See `ChunkStream`."""
        at, result = self._workspace.memory.at, np.empty((2, *self._latent_shape), np.float32)
        given, lane = np.ascontiguousarray(crops), self._resources.encode
        turn = self._turn("video_encoder")
        self._codec_task("video_encoder", 0, turn)  # before the turn, as in `start`
        with self._resources.turn:
            self._upload_crops(lane, given)
            self._run([], "video_encoder", 0, turn)
            lane.download(result, at["latents.0"])
            done = Event(self._resources.cuda)
            lane.record(done)
        done.wait()  # not for the lane, which another session may capture
        return result


@dataclass
class _Pending(PendingChunk):
    """See `PendingChunk`. Attributes: codec_side: of the stream before the chunk. done: taken, or dropped."""

    stream: TensorRTStream
    side: int
    missing: int
    codec_side: dict[str, int]
    done: bool = False

    def crops(self) -> Bytes:
        pictures: Bytes = self._found()["pictures"]
        return pictures[self.missing :]

    def patches(self) -> list[list[Plane] | None]:
        self._found()
        return self.stream._workspace.compositor.patches(self.side)

    def _found(self) -> Mapping[str, Anything]:
        """Wait for the chunk's results."""
        work = self.stream._workspace
        work.shown[self.side].wait()
        self.done = True
        found = work.found[self.side].at
        if found["not_finite"][0]:
            raise LipStreamInternalError("a generated picture is not finite")
        return found

    def drop(self) -> None:
        # No waiting: its replacement follows it on every lane and overwrites everything that it writes.
        self.stream._codec_side = self.codec_side
        self.done = True
