"""The TensorRT backend on a double of the device: same frames as the ONNX Runtime backend, for any order of execution.

The double (tests/doubles) runs queued work as late as allowed and in a random valid order, and records conflicting
accesses. Planted faults show that it detects them. What needs a real GPU is in benchmarks/TO_MEASURE.md.
"""

from __future__ import annotations

import inspect
import json
import math
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import doubles
import numpy as np
import pytest
from doubles import cuda_runtime, kernels, trt
from doubles.device import Device, DeviceError, Work
from lipstream import LipSyncEngine, plugin
from lipstream.backends.base import ChunkInput, load_backend
from lipstream.bundle import MANIFEST, Bundle, sha256
from lipstream.bundle.plans import RINGS
from lipstream.errors import BackendError, GpuError, GpuMemoryError, LipStreamError, LipStreamInternalError, PlanError
from lipstream.session import Frame, LipSyncSession
from numpy_stream import assert_same_frames, noise
from toy_sessions import (
    FRAME,
    RATE,
    SIDE,
    Result,
    Script,
    export_toy,
    offline,
    result,
    session,
    short,
    talk,
    whole,
)

real_library = plugin.library


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def plans(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("plans")
    return {ring: doubles.write_plans(bundle, ring, folder / ring) for ring in RINGS}


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[str, Result]:
    scripts = {"whole": whole, "talk": talk, "short": short}
    return {name: script(offline(bundle, rounded=True)) for name, script in scripts.items()}


def run(plans: Bundle, seed: int, script: Script) -> tuple[Result, Device]:
    """With an odd seed the device composites."""
    device = Device(seed)
    with doubles.gpu(device) as backends:
        stream = backends.TensorRTBackend(plans).open_stream()
        with session(stream, plans, composites=bool(seed % 2)) as opened:
            return script(opened), device


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 4))])
def test_frames_are_those_of_onnxruntime_in_any_order_of_the_device(
    plans: dict[str, Bundle], expected: dict[str, Result], part: int
) -> None:
    for seed in range(50 * part, 50 * part + 50):
        name, script = [("talk", talk), ("whole", whole)][seed % 5 == 0]
        found, device = run(plans["function"], seed, script)
        assert not device.hazards
        found.same(expected[name])


@pytest.mark.slow
def test_plugin_engines_over_forty_chunks_in_fifty_orders(bundle: Bundle, plans: dict[str, Bundle]) -> None:
    """The same bits in every order; those of the native lowering and of ONNX Runtime but for rounding."""

    def script(opened: LipSyncSession) -> Result:
        return whole(opened, chunks=40)

    first, _ = run(plans["plugin"], 0, script)
    for other in (run(plans["native"], 0, script)[0], script(offline(bundle, rounded=True))):
        assert max(np.abs(a.astype(int) - b).max() for a, b in zip(first.crops, other.crops, strict=True)) <= 1
    for seed in range(1, 50):
        found, device = run(plans["plugin"], seed, script)
        assert not device.hazards
        found.same(first)


@pytest.mark.parametrize("ring", ["native", "plugin"])
def test_engines_with_the_ring_in_place_give_the_same_frames_but_for_rounding(
    plans: dict[str, Bundle], expected: dict[str, Result], ring: str
) -> None:
    first, _ = run(plans[ring], 0, talk)
    for seed in range(1, 20):
        found, device = run(plans[ring], seed, talk)
        assert not device.hazards
        found.same(first)
    whole_way, _ = run(plans[ring], 2, whole)
    for found, wanted in ((first, expected["talk"]), (whole_way, expected["whole"])):
        assert len(found.frames) == len(wanted.frames)
        levels = [np.abs(a.astype(int) - b) for a, b in zip(found.crops, wanted.crops, strict=True)]
        assert max(level.max() for level in levels) <= 1
        assert np.mean([level.mean() for level in levels]) < 0.01


Plant = Callable[[Any, pytest.MonkeyPatch], None]
"""Puts a fault into the backend's modules."""
FAULTS: dict[str, Plant] = {}


def fault(plant: Plant) -> Plant:
    FAULTS[plant.__name__] = plant
    return plant


def deaf(lane: str) -> Plant:
    """A lane that waits for no event."""

    def plant(modules: Any, patch: pytest.MonkeyPatch) -> None:
        wait = modules.cuda.Lane.wait
        patch.setattr(modules.cuda.Lane, "wait", lambda self, e: None if self.name == lane else wait(self, e))

    return plant


def shared(*names: str) -> Plant:
    """Parts of a workspace that are there once instead of twice."""

    def plant(modules: Any, patch: pytest.MonkeyPatch) -> None:
        init = modules.stream.Workspace.__init__

        def halved(self: Any, backend: Any) -> None:
            init(self, backend)
            for name in names:
                if name in ("host", "small", "found"):
                    getattr(self, name)[1] = getattr(self, name)[0]
                else:
                    self.memory.at[f"{name}.1"] = self.memory.at[f"{name}.0"]

        patch.setattr(modules.stream.Workspace, "__init__", halved)

    return plant


FAULTS["the denoise lane does not wait for the encoders"] = deaf("denoise")
FAULTS["the decode lane does not wait for the passes"] = deaf("decode")
FAULTS["the encode lane does not wait for the context pass"] = deaf("encode")
FAULTS["one buffer of latents"] = shared("latents")
FAULTS["one buffer of features"] = shared("audio")
FAULTS["one buffer of clean latents"] = shared("clean")
FAULTS["one set of pinned crops"] = shared("host")
FAULTS["one set of pinned pictures"] = shared("found")
FAULTS["one set of pinned tables and noise"] = shared("small")
FAULTS["the decoder's memory once"] = shared("video_decoder.memory.0")


@fault
def the_host_does_not_wait_for_the_pictures(modules: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules.cuda.Event, "wait", lambda self: None)


@fault
def the_pictures_event_is_recorded_before_the_copy(modules: Any, patch: pytest.MonkeyPatch) -> None:
    download = modules.cuda.Lane.download

    def early(self: Any, to: Any, address: int) -> None:
        self.cuda.call("cudaEventRecord", early.event.handle, self.handle)  # type: ignore[attr-defined]
        download(self, to, address)

    record = modules.cuda.Lane.record

    def noted(self: Any, event: Any) -> None:
        if self.name == "decode":
            early.event = event  # type: ignore[attr-defined]
            if getattr(early, "seen", None):
                return
            early.seen = True  # type: ignore[attr-defined]
        record(self, event)

    patch.setattr(modules.cuda.Lane, "download", early)
    patch.setattr(modules.cuda.Lane, "record", noted)
    early.event = modules.cuda.Event(modules.cuda.Cuda(modules.resources.runtime))  # type: ignore[attr-defined]


@fault
def one_scratch_for_all_lanes(modules: Any, patch: pytest.MonkeyPatch) -> None:
    task = modules.stream.TensorRTStream._task

    def common(self: Any, graph: str, addresses: Any, *more: Any) -> Any:
        self._resources.scratch = dict.fromkeys(self._resources.scratch, self._resources.scratch["encode"])
        return task(self, graph, addresses, *more)

    patch.setattr(modules.stream.TensorRTStream, "_task", common)


@fault
def a_buffer_of_half_the_size(modules: Any, patch: pytest.MonkeyPatch) -> None:
    init = modules.cuda.DeviceMemory.__init__
    half = {"condition": 2}
    patch.setattr(
        modules.cuda.DeviceMemory,
        "__init__",
        lambda self, cuda, sizes: init(self, cuda, {k: size // half.get(k, 1) for k, size in sizes.items()}),
    )


@fault
def the_host_waits_while_capturing(modules: Any, patch: pytest.MonkeyPatch) -> None:
    enqueue = modules.engine.Task._enqueue

    def waiting(self: Any) -> None:
        enqueue(self)
        self._lane.synchronize()

    patch.setattr(modules.engine.Task, "_enqueue", waiting)


@fault
def memory_is_allocated_while_capturing(modules: Any, patch: pytest.MonkeyPatch) -> None:
    enqueue = modules.engine.Task._enqueue

    def allocating(self: Any) -> None:
        self._lane.cuda.call("cudaMalloc", 256)
        enqueue(self)

    patch.setattr(modules.engine.Task, "_enqueue", allocating)


@fault
def a_graph_is_captured_without_a_direct_run(modules: Any, patch: pytest.MonkeyPatch) -> None:
    def launch(self: Any) -> None:
        if not self.captured:
            self._bind()
            self.capture()
        self._lane.launch(self._graph)

    patch.setattr(modules.engine.Task, "launch", launch)


@fault
def an_address_changes_behind_a_captured_graph(modules: Any, patch: pytest.MonkeyPatch) -> None:
    capture = modules.engine.Task.capture

    def moved(self: Any) -> None:
        capture(self)
        name, address = next(iter(self._context._addresses.items()))
        self._context.set_tensor_address(name, address)

    patch.setattr(modules.engine.Task, "capture", moved)


@fault
def the_ring_is_read_and_written_at_one_place(modules: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules.ring.EngineRing, "_side", lambda self, step: 0)


@fault
def a_chunk_that_is_started_again_keeps_the_sink_again(modules: Any, patch: pytest.MonkeyPatch) -> None:
    begin = modules.ring.EngineRing.begin

    def forgetful(self: Any, lane: Any, inputs: Any) -> None:
        self._begun = -1
        begin(self, lane, inputs)

    patch.setattr(modules.ring.EngineRing, "begin", forgetful)


@fault
def a_dropped_chunk_leaves_its_codec_memory(modules: Any, patch: pytest.MonkeyPatch) -> None:
    def drop(self: Any) -> None:
        self.done = True

    patch.setattr(modules.stream._Pending, "drop", drop)


@fault
def the_context_pass_is_left_out(modules: Any, patch: pytest.MonkeyPatch) -> None:
    one_pass = modules.stream.TensorRTStream._pass

    def without(self: Any, fresh: Any, side: int, step: int) -> None:
        if step < self._steps:
            one_pass(self, fresh, side, step)

    patch.setattr(modules.stream.TensorRTStream, "_pass", without)


@fault
def a_stream_begins_with_what_another_left(modules: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules.cuda.Lane, "clear", lambda self, memory: None)


@fault
def patches_come_down_from_before_they_are_blended(modules: Any, patch: pytest.MonkeyPatch) -> None:
    enqueue = modules.compositing.FrameCompositor.enqueue

    def early(self: Any, side: int, lane: Any, *more: Any) -> None:
        enqueue(self, side, lane, *more)
        staged = self._staged[side]
        lane.upload(self._memory.device.at["samples"], staged.samples)
        lane.download(staged.results, self._memory.device.at["samples"])

    patch.setattr(modules.compositing.FrameCompositor, "enqueue", early)


@fault
def one_set_of_pinned_patches(modules: Any, patch: pytest.MonkeyPatch) -> None:
    init = modules.compositing._Memory.__init__

    def once(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self.host[1] = self.host[0]

    patch.setattr(modules.compositing._Memory, "__init__", once)


@fault
def the_first_chunk_counts_repeated_crops(modules: Any, patch: pytest.MonkeyPatch) -> None:
    composite = modules.stream.TensorRTStream._composite
    patch.setattr(
        modules.stream.TensorRTStream, "_composite", lambda self, lane, side, _: composite(self, lane, side, 0)
    )


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(
    plans: dict[str, Bundle], expected: dict[str, Result], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(24):
        device = Device(seed)
        with doubles.gpu(device) as backends, monkeypatch.context() as patch:
            FAULTS[name](backends, patch)
            try:
                backend = backends.TensorRTBackend(plans["function"])
                for name_of, script in (("talk", talk), ("short", short)):
                    with session(backend.open_stream(), plans["function"], composites=bool(seed % 2)) as opened:
                        script(opened).same(expected[name_of])
                assert not device.hazards
            except (AssertionError, LipStreamError, LipStreamInternalError, DeviceError):
                return
    pytest.fail("nothing showed")


@pytest.mark.parametrize("composites", [False, True])
def test_cost_of_a_chunk_in_steady_state(plans: dict[str, Bundle], composites: bool) -> None:
    """One wait, no allocation, and no copies but those of frames, crops, sound and tables."""
    g = plans["native"].manifest.geometry
    for ring in RINGS:
        device = Device(0)
        with (
            doubles.gpu(device) as backends,
            session(backends.TensorRTBackend(plans[ring]).open_stream(), plans[ring], composites=composites) as opened,
        ):
            opened.push_audio(noise(30 * g.video_frames * FRAME), RATE)
            frames = iter(opened)
            for _ in range(g.first_frames + 12 * g.video_frames):
                next(frames)
            before = device.counts.copy()
            for _ in range(10 * g.video_frames):
                next(frames)
            spent = device.counts - before
        assert spent["waits"] == 10
        assert spent["allocations"] == 0
        # Crops, sound, and the small inputs in one; what overlays need in one, and the frames' samples.
        assert spent["cudaMemcpyHostToDevice"] == (50 if composites else 30)
        assert spent["cudaMemcpyDeviceToHost"] == (20 if composites else 10)  # pictures, or a flag and samples
        each = g.video_frames * 10
        kernels_of = {"colour_offset": each, "corrected_part": each, "render": each, "blend": 3 * each}
        assert {name: spent[name] for name in kernels_of} == {
            name: count if composites else 0 for name, count in kernels_of.items()
        }
        up, down = (spent[f"cudaMemcpy{way}, bytes"] / 10 for way in ("HostToDevice", "DeviceToHost"))
        crops = g.video_frames * SIDE * SIDE * 3
        noises = 2 * g.latent_channels * g.chunk_frames * math.prod(g.latent_size)
        numbers = plans[ring].manifest.audio.window(g.video_frames) + noises
        tables = 10 * 256  # each is small, and begins at a multiple of 256 bytes
        samples = crops  # the toy's frames are as large as its crops, and all of a frame can be touched
        if composites:
            assert samples < down <= samples + 3 * g.video_frames * 256 + 256
        else:
            assert crops + 4 * numbers < up <= crops + 4 * numbers + tables
            assert crops < down <= crops + 2 * 256  # and whether they are finite
        assert spent["cudaMemcpyDeviceToDevice"] == 0
        assert spent["graphs"] == 60  # all six runs of engines
        assert (spent["ring_keep"], spent["ring_anchor"]) == (0, 10)  # the sink of all layers in one launch
        assert spent["runs"] == 0


def test_pictures_that_are_not_finite_are_refused(plans: dict[str, Bundle], expected: dict[str, Result]) -> None:
    """One value of one chunk. Neither the chunk that replaces it nor the next stream on its memory is refused."""
    device, bundle = Device(0), plans["function"]
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(bundle)
        pack, left = backend.resources.kernels.pack_pictures, [3]

        def poisoned(bytes: int, not_finite: int, planes: int, **sizes: Any) -> None:
            def poison(_: Any) -> None:
                device.view(planes, 400).view(np.float32)[99] = np.nan

            left[0] -= 1
            if left[0] == 0:
                device.put(sizes["stream"], Work("fault", lambda: None, poison))
            pack(bytes, not_finite, planes, **sizes)

        backend.resources.kernels.pack_pictures = poisoned
        opened = session(backend.open_stream(), bundle)
        with opened, pytest.raises(LipStreamInternalError, match="not finite"):
            whole(opened)
        with session(backend.open_stream(), bundle) as opened:
            short(opened).same(expected["short"])
        g, audio = bundle.manifest.geometry, bundle.manifest.audio
        crops = np.zeros((g.video_frames, *g.crop_size, 3), np.uint8)
        noises = [np.zeros((g.latent_channels, g.chunk_frames, *g.latent_size), np.float32)] * 2
        chunk = ChunkInput(0, crops, None, np.zeros(audio.window(g.video_frames), np.float32), noises, 0)
        left[0] = 1
        stream = backend.open_stream()
        stream.start(chunk, lambda stage: nullcontext()).drop()
        assert stream.start(chunk, lambda stage: nullcontext()).crops().shape == crops.shape
        assert left[0] == -1


def test_two_sessions_in_turn_do_not_touch_each_other(
    bundle: Bundle, plans: dict[str, Bundle], expected: dict[str, Result]
) -> None:
    other = short(offline(bundle, seed=5, pictures=1, rounded=True))
    for seed in range(10):
        device = Device(seed)
        with doubles.gpu(device) as backends:
            backend = backends.TensorRTBackend(plans["function"])
            a = session(backend.open_stream(), bundle)
            b = session(backend.open_stream(), bundle, seed=5, pictures=1)
            for opened in (a, b):
                opened.push_audio(noise(141 * FRAME), RATE)
                opened.flush()
            pairs = list(zip(a, b, strict=True))
            a.close()
            b.close()
        assert not device.hazards
        result(a, [pair[0] for pair in pairs]).same(expected["short"])
        result(b, [pair[1] for pair in pairs]).same(other)


def test_sessions_in_separate_threads(plans: dict[str, Bundle], expected: dict[str, Result]) -> None:
    device = Device(4)
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(plans["function"])

        def speak(_: int) -> Result:
            with session(backend.open_stream(), plans["function"]) as opened:
                return short(opened)

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(speak, range(8)):
                found.same(expected["short"])
    assert not device.hazards


def test_a_closed_session_leaves_its_memory_to_the_next(plans: dict[str, Bundle], expected: dict[str, Result]) -> None:
    for seed in range(10):
        device = Device(seed)
        with doubles.gpu(device) as backends:
            backend = backends.TensorRTBackend(plans["function"])
            with session(backend.open_stream(), plans["function"]) as opened:
                opened.push_audio(noise(80 * FRAME, seed=9), RATE)
                for _, _frame in zip(range(30), opened, strict=False):  # a chunk is running when it closes
                    pass
            used = device.used
            with session(backend.open_stream(), plans["function"]) as opened:
                assert device.used == used
                short(opened).same(expected["short"])
        assert not device.hazards


@pytest.mark.parametrize("ring", ["function", "native"])
def test_warm_sessions_create_nothing(plans: dict[str, Bundle], ring: str) -> None:
    """Three at once, one of them with interrupts, give the frames of a cold backend, by captured graphs alone."""
    scripts = (short, talk, short)
    cold = {script: run(plans[ring], 5, script)[0] for script in {*scripts}}
    device = Device(6)
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(plans[ring])
        assert LipSyncEngine(plans[ring], backend).warmup(sessions=3) > 0
        before = device.counts.copy()
        streams = [backend.open_stream() for _ in scripts]

        def speak(number: int) -> Result:
            with session(streams[number], plans[ring]) as opened:
                return scripts[number](opened)

        with ThreadPoolExecutor(3) as pool:
            for script, found in zip(scripts, pool.map(speak, range(3)), strict=True):
                found.same(cold[script])
        spent = device.counts - before
        assert spent["graphs"] > 0
        created = ("allocations", "contexts", "captures", "runs")
        assert {name: spent[name] for name in created} == dict.fromkeys(created, 0)
        streams += [backend.open_stream() for _ in scripts]
        assert device.counts["allocations"] == before["allocations"]
        streams.append(backend.open_stream())  # a fourth is not warm: the counts can show it
        assert device.counts["allocations"] > before["allocations"]
    assert not device.hazards


def test_contexts_are_created_before_a_session_takes_the_turn(
    plans: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def created(ring: str, seed: int) -> list[bool]:
        """For each context, whether the turn was held when it was created."""
        held: list[bool] = []
        with doubles.gpu(Device(seed)) as backends, monkeypatch.context() as patch:
            backend = backends.TensorRTBackend(plans[ring])
            create = trt.ICudaEngine.create_execution_context

            def noted(self: Any, strategy: Any) -> Any:
                held.append(backend.resources.turn._held)
                return create(self, strategy)

            patch.setattr(trt.ICudaEngine, "create_execution_context", noted)
            if seed:
                patch.setattr(backends.stream.TensorRTStream, "_create_contexts", lambda self, chunk: None)
            with session(backend.open_stream(), plans[ring]) as opened:
                short(opened)
            g, stream = plans[ring].manifest.geometry, backend.open_stream()
            for _ in range(2):
                stream.encode_video(np.zeros((g.video_frames, *g.crop_size, 3), np.uint8))
        return held

    for ring in plans:
        assert len(created(ring, 0)) >= 12
        assert not any(created(ring, 0))
        assert any(created(ring, 1))  # a planted fault


def test_warmup_says_how_many_sessions_fit(plans: dict[str, Bundle], expected: dict[str, Result]) -> None:
    device = Device(7)
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(plans["function"])
        used = device.used
        backend.open_stream().close()
        device.limit = device.used + (device.used - used) * 3 // 2
        with pytest.raises(GpuMemoryError, match="memory for 2 sessions, not for 4") as error:
            LipSyncEngine(plans["function"], backend).warmup(sessions=4)
        assert "--max-sessions 2" in error.value.fix
        with session(backend.open_stream(), plans["function"]) as opened:
            short(opened).same(expected["short"])


def test_all_memory_is_freed_with_the_engine(plans: dict[str, Bundle]) -> None:
    device = Device(1)
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(plans["function"])
        weights = device.used - sum(
            memory.bytes for memory in (*backend.resources.scratch.values(), backend.resources._constants)
        )
        with session(backend.open_stream(), plans["function"]) as opened:
            whole(opened, 3)
        del backend, opened
        import gc

        gc.collect()
        assert device.used == weights  # the double's engines are never freed
        assert not device.pinned
        assert not device.events
        assert not device.graphs
        assert not device.streams


def test_out_of_memory_does_not_end_other_streams(plans: dict[str, Bundle], expected: dict[str, Result]) -> None:
    device = Device(2)
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(plans["function"])
        with session(backend.open_stream(), plans["function"]) as opened:
            opened.push_audio(noise(141 * FRAME), RATE)
            opened.flush()
            frames = iter(opened)
            found = [next(frames)]
            device.limit = device.used
            with pytest.raises(GpuMemoryError, match="has too little free memory") as error:
                backend.open_stream()
            assert "close a session" in error.value.fix
            result(opened, found + list(frames)).same(expected["short"])
        assert backend.open_stream()  # in the memory of the closed one


def test_a_failing_device_is_named_and_ends_the_session(plans: dict[str, Bundle]) -> None:
    device = Device(3)
    with doubles.gpu(device) as backends:
        backend = backends.TensorRTBackend(plans["function"])
        with session(backend.open_stream(), plans["function"]) as opened:
            opened.push_audio(noise(141 * FRAME), RATE)
            backend.resources.cuda.api.cudaGraphLaunch = lambda *_: (
                cuda_runtime.cudaError_t.cudaErrorIllegalAddress,
                None,
            )
            with pytest.raises(GpuError, match="cudaGraphLaunch returned cudaErrorIllegalAddress"):
                list(opened)
        assert not backend._free  # memory in which work may still be running is not reused


def test_the_engine_runs_on_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped bundle, a video and a voice: `LipSyncEngine.load(..., backend="tensorrt")` as applications do."""
    video = Path(inspect.getfile(LipSyncEngine)).parent / "sample"
    source = next(path for path in sorted(video.iterdir()) if path.suffix in (".mp4", ".mkv", ".webm"))
    doubles.write_plans(Bundle.load("tiny"), "function", tmp_path / "plans")
    sound = noise(2 * RATE, seed=1)

    def speak(engine: LipSyncEngine) -> list[Frame]:
        with engine.session(source) as opened:
            opened.push_audio(sound, RATE)
            opened.flush()
            return list(opened)

    with monkeypatch.context() as patch:
        patch.setattr("lipstream.backends.stepped._Finished.crops", lambda self: kernels.rounded(self.found))
        wanted = speak(LipSyncEngine.load("tiny", threads=1))
    device = Device(11)
    with doubles.gpu(device):
        engine = LipSyncEngine.load(tmp_path / "plans")  # the backend that its bundle is for
        assert_same_frames(speak(engine), wanted)
        prepared = engine.prepare(source, seconds=1)
        with engine.session(prepared) as a:
            a.push_audio(sound, RATE)
            assert len(list(a)) > 30
        del engine, prepared, a
    assert not device.hazards


def test_the_timeline_of_a_chunk(plans: dict[str, Bundle], tmp_path: Path) -> None:
    """Encode, denoise and decode overlap; the pictures leave before the context pass is done."""
    with doubles.gpu(Device(0)) as backends:
        backend = backends.TensorRTBackend(plans["native"])
        with session(backend.open_stream(), plans["native"]) as opened:
            opened.push_audio(noise(30 * 12 * FRAME), RATE)
            frames = iter(opened)
            for _ in range(9 + 8 * 12):
                next(frames)
            trace = backend.trace()
            for _ in range(4 * 12):
                next(frames)
            spans = trace.spans()
            trace.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events} == {"encode", "denoise", "decode"}
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    of = {name: [(begin, end) for _, n, begin, end in spans if n == name] for name in ("encode", "context", "pictures")}
    for chunk in range(2):
        assert of["pictures"][chunk][1] < of["context"][chunk][1]
    passes = [(begin, end) for lane, _, begin, end in spans if lane == "denoise"]
    overlap = [e for e in of["encode"] if any(begin < e[1] and e[0] < end for begin, end in passes)]
    assert overlap


def test_invalid_bundles_are_rejected(bundle: Bundle, plans: dict[str, Bundle], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"needs the module '(tensorrt|cuda)'") as error:
        load_backend("tensorrt", plans["native"])
    assert "lipstream[tensorrt]" in error.value.fix
    with doubles.gpu(Device()) as backends:
        with pytest.raises(BackendError, match="holds ONNX graphs, not TensorRT plans") as error:
            load_backend("tensorrt", bundle)
        assert "lipstream build" in error.value.fix
        with pytest.raises(BackendError, match="TensorRT plans, not ONNX graphs") as error:
            load_backend("onnxruntime", plans["native"])
        assert "tensorrt" in error.value.fix
        for change, message in (
            ({"tensorrt": "11.1.0.1"}, r"built with TensorRT 11\.1\.0\.1, this is TensorRT 11\.4"),
            ({"ring": "function"}, "does not write the ring where its recipe says"),
        ):
            copy = shutil.copytree(plans["native"].path, tmp_path / next(iter(change)))
            manifest = json.loads((copy / MANIFEST).read_text())
            manifest["plans"] |= change
            (copy / MANIFEST).write_text(json.dumps(manifest))
            with pytest.raises(PlanError, match=message):
                backends.TensorRTBackend(Bundle.load(copy))


def test_the_plugin_must_be_there_and_of_this_version(
    plans: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    with doubles.gpu(Device()) as backends:
        registry = sys.modules["tensorrt"].get_plugin_registry()
        backends.TensorRTBackend(plans["native"])
        assert not registry.all_creators
        registry.libraries[str(doubles.LIBRARY)] = (plugin.NAME, "1", plugin.NAMESPACE)
        with pytest.raises(BackendError, match=r"does not give TensorRT .* version 2") as error:
            backends.TensorRTBackend(plans["plugin"])
        assert "reinstall" in error.value.fix
    with doubles.gpu(Device()) as backends:
        backends.TensorRTBackend(plans["plugin"])
        backends.TensorRTBackend(plans["plugin"])  # loads it no second time, which TensorRT refuses
    with doubles.gpu(Device()) as backends, monkeypatch.context() as patch:
        patch.setattr(plugin, "library", real_library)
        patch.setattr(plugin, "LIBRARY", "absent.so")
        with pytest.raises(BackendError, match=r"plugin is missing: .*absent\.so") as error:
            backends.TensorRTBackend(plans["plugin"])
        assert 'ring = "native"' in error.value.fix


def test_an_engine_that_does_not_write_the_ring_in_place_is_refused(plans: dict[str, Bundle], tmp_path: Path) -> None:
    """As one that was built without the flag that makes TensorRT ask the plugin for aliases."""
    copy = shutil.copytree(plans["plugin"].path, tmp_path / "plans")
    plan = copy / "denoiser.plan"
    plan.write_bytes(plan.read_bytes().replace(b'"in_place": true,', b'"in_place":false,'))
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["denoiser.plan"]["sha256"] = sha256(plan)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with doubles.gpu(Device()) as backends, pytest.raises(PlanError, match="does not write the ring where"):
        backends.TensorRTBackend(Bundle.load(copy))


def test_the_lock_is_granted_in_the_order_of_requests() -> None:
    with doubles.gpu(Device()) as backends:
        lock, order = backends.resources.FairLock(), []

        def take(number: int) -> None:
            with lock:
                order.append(number)

        threads = [threading.Thread(target=take, args=(i,)) for i in range(20)]
        with lock:
            for number, thread in enumerate(threads):
                thread.start()
                while len(lock._waiting) < number + 1:
                    pass
        for thread in threads:
            thread.join()
    assert order == [*range(20)]
