"""The engine: a bundle on a backend, shared by any number of sessions."""

from __future__ import annotations

import os
import statistics
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.base import GRAPHS, Backend, ChunkInput, ChunkStream, Stream, cores, load_backend
from .backends.pipelined import OverlappedChunks, Retractable
from .backends.stepped import SteppedChunks
from .bundle import REBUILD, Bundle, Manifest, reading
from .errors import BundleCorruptError, ConfigError, ForkError
from .face.compositing import Compositor
from .face.tracking import Policy
from .face.upstream import OriginalCompositor, check_geometry
from .media import limit_threads
from .metrics import Metrics, NoMetrics
from .session import LOG, Idle, LipSyncSession
from .session.reference import LOOP_BYTES, FaceOptions, LiveReference, PreparedReference, Reference, Source

if TYPE_CHECKING:
    from .dub import DubResult

MOST_THREADS = 1024


class LipSyncEngine:
    """Immutable and thread-safe; make one with `load` and keep it.

        engine = LipSyncEngine.load("tiny")
        with engine.session("me.mp4") as session:
            session.push_audio(pcm, 24000)
            for frame in session:
                show(frame.image, frame.audio)
        engine.dub("in.mp4", "speech.wav", "out.mp4")

    Load the engine in the process that uses it: it does not survive a fork.

    Attributes:
        manifest: what the bundle says of itself.
    """

    def __init__(self, bundle: Bundle, backend: Backend, metrics: Metrics | None = None) -> None:
        self.manifest: Manifest = bundle.manifest
        self._backend, self._metrics = backend, metrics or NoMetrics()
        self._keep_mask = bundle.constants["mask.composite"]
        self._compositor = Compositor(self._keep_mask, box=bundle.manifest.geometry.crop_box)
        self._latent_mask = bundle.constants["mask.latent"]
        self._process = os.getpid()
        # For the chunks of sessions that are iterated on an event loop; its threads start when they are needed.
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="lipstream")
        weakref.finalize(self, self._pool.shutdown, wait=False)

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] = "tiny",
        *,
        backend: str | None = None,
        threads: int = 0,
        verify: bool = True,
        provider: str | None = None,
        metrics: Metrics | None = None,
    ) -> LipSyncEngine:
        """Load a bundle.

        Args:
            bundle: its folder, or the name of a shipped one ("tiny").
            backend: by default the one that the bundle is for: "tensorrt" if `lipstream build` wrote it, else
                "onnxruntime"; or another that is installed ("torch").
            threads: CPU threads, 0 for the default: as many as pay for one chunk, at most the cores of this process.
                A number given here also limits, for the whole process, decoding, encoding and OpenCV.
            verify: compare every file with the manifest's SHA-256 first.
            provider: of backend "onnxruntime": "cpu" (the default), "cuda" or "tensorrt" (`lipstream[gpu]`).
            metrics: told what the engine and its sessions count and measure.

        Raises:
            BundleNotFoundError, BundleVersionError, BundleCorruptError: of the bundle.
            BackendError: no such backend, or it cannot run the bundle. PlanError, GpuMemoryError: of TensorRT plans.
            ConfigError: a number of threads that cannot be.
        """
        if not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
            raise ConfigError(f"threads={threads!r}", expected=f"0 for the default, or 1 to {MOST_THREADS} threads")
        path = Bundle.find(bundle)

        def load(text: str) -> LipSyncEngine:
            loaded = Bundle.parse(path, text, verify=verify)
            missing = [
                *({*GRAPHS} - loaded.manifest.graphs),
                *({"mask.composite", "mask.latent", "mask.pixel"} - {*loaded.constants}),
            ]
            if missing:
                raise BundleCorruptError(f"{loaded.path} has no {', '.join(sorted(missing))}", fix=REBUILD)
            options = {} if provider is None else {"provider": provider}
            name = backend or ("tensorrt" if loaded.manifest.plans else "onnxruntime")
            return cls(loaded, load_backend(name, loaded, threads=threads, **options), metrics)

        if threads:
            limit_threads(threads)
        return reading(path, load)

    def open_stream(self) -> Stream:
        """A bare stream on the backend: the graphs with their state, without reference, clock or compositing."""
        self._check_process()
        return self._backend.open_stream()

    def session(
        self,
        video: Source | PreparedReference,
        *,
        face_policy: Policy | None = None,
        face_at: tuple[float, float] | None = None,
        insightface: str | os.PathLike[str] | None = None,
        compat: bool = False,
        seed: int = 42,
        max_pending: float = 60.0,
        idle: Idle | None = None,
        length: int | None = None,
        loop_bytes: int = LOOP_BYTES,
    ) -> LipSyncSession:
        """Open a session that speaks through the face in `video`.

        Args:
            video: path of a video or picture, frames (uint8 [H, W, 3] RGB, 25 a second), or a prepared reference.
                It is played forwards and backwards for as long as there is audio.
            face_policy: for frames without the face: "hold" its last place (the default), "bypass" the frame, or
                "raise". Frames before the first face are bypassed. Of a prepared reference, what it was prepared with.
            face_at: (x, y) in pixels near the wanted face of several; None for the largest.
            insightface: folder of InsightFace's models, to find faces exactly as the released system does. They are for
                non-commercial research only; by default LipStream's own networks do it.
            compat: crop, paste and take the video's frames as the released system does, to compare with its pictures;
                slower and not as good (`lipstream.face.upstream`). For bundles of released weights.
            seed: of the noise; equal seeds, audio and video give equal frames.
            max_pending: seconds of audio that may wait in the session.
            idle: what is shown where there is no audio: "closed", the face with its mouth at rest, generated like
                speech; "reference", the video untouched, which costs next to nothing. None: iterating ends, or waits.
            length: frames that will be asked for, if known: a long video is then not kept for looping.
            loop_bytes: of temporary disk that a looped video's frames may take; a longer video is turned round there.

        Raises:
            FaceNotFoundError: no face in the first half minute of a video.
            MediaOpenError, NoVideoError, MediaTruncatedError, ConfigError: of the video or the options.
        """
        self._check_process()
        reference: Reference
        if isinstance(video, PreparedReference):
            if video.manifest != self.manifest:
                raise ConfigError("a reference prepared with another bundle", fix="prepare it with this engine")
            given = FaceOptions(
                face_policy or video.faces.policy,
                video.faces.at if face_at is None else face_at,
                video.faces.insightface if insightface is None else Path(insightface),
                video.faces.compat or compat,
            )
            if given != video.faces:
                raise ConfigError(
                    f"{given} for a reference prepared with {video.faces}",
                    fix="give face_policy, face_at, insightface and compat to prepare()",
                )
            reference = video.play()
        else:
            if length is not None and (not isinstance(length, int) or length < 1):
                raise ConfigError(f"length={length!r}", expected="a number of frames, at least 1, or None")
            given = self._faces(face_policy or "hold", face_at, insightface, compat)
            reference = LiveReference(video, self.manifest.geometry, given, length=length, loop_bytes=loop_bytes)
        with ExitStack() as undo:
            undo.callback(reference.close)
            chunks = self._open_chunks()
            undo.callback(chunks.close)
            compositor = OriginalCompositor(self._keep_mask) if given.compat else self._compositor
            session = LipSyncSession(
                self.manifest,
                chunks,
                reference,
                compositor,
                self._pool,
                seed=seed,
                max_pending=max_pending,
                idle=idle,
                metrics=self._metrics,
            )
            undo.pop_all()
        self._metrics.count("sessions_opened")
        LOG.debug("session opened, idle=%s", idle)
        return session

    def warmup(self, chunks: int = 6) -> float:
        """Run a stream of `chunks` chunks on nothing, so that the first session finds everything loaded and warm.

        Returns:
            Seconds that a chunk takes once it is: the median of the second half. 12 frames are shown for 0.48 s.
        """
        self._check_process()
        m, g = self.manifest, self.manifest.geometry
        stream = self._open_chunks()
        samples = np.zeros(m.audio.window(g.video_frames), np.float32)
        crops = np.zeros((g.video_frames, 3, *g.crop_size), np.float32)
        noise = np.zeros((g.latent_channels, g.chunk_frames, *g.latent_size), np.float32)
        seconds = []
        try:
            for number in range(max(2, chunks)):
                begun = time.perf_counter()
                chunk = ChunkInput(number, crops, None, samples, [noise] * (len(m.t_list) - 1), 0)
                stream.start(chunk, lambda stage: nullcontext()).pictures()
                seconds.append(time.perf_counter() - begun)
        finally:
            stream.close()
        found = statistics.median(seconds[len(seconds) // 2 :])
        LOG.info("warm: a chunk takes %.3f s", found)
        return found

    def _open_chunks(self) -> ChunkStream:
        stream = self._backend.open_stream()
        if isinstance(stream, ChunkStream):
            return stream
        if isinstance(stream, Retractable) and stream.overlaps:
            return OverlappedChunks(self.manifest, stream, self._latent_mask)
        return SteppedChunks(self.manifest, stream, self._latent_mask)

    def prepare(
        self,
        video: Source,
        *,
        seconds: float = 20.0,
        face_policy: Policy = "hold",
        face_at: tuple[float, float] | None = None,
        insightface: str | os.PathLike[str] | None = None,
        compat: bool = False,
        loop_bytes: int = LOOP_BYTES,
    ) -> PreparedReference:
        """Decode, track and encode the first `seconds` of `video` once, to be looped by any number of sessions.

        Sessions on it start at once and never touch the file. Its frames take at most `loop_bytes` of temporary disk;
        a video that needs more is cut. Raises as `session` does.
        """
        self._check_process()
        faces = self._faces(face_policy, face_at, insightface, compat)
        stream = self._backend.open_stream()
        return PreparedReference(video, stream, self.manifest, faces, seconds=seconds, max_bytes=loop_bytes)

    def dub(
        self,
        video: str | os.PathLike[str],
        audio: str | os.PathLike[str] | None,
        output: str | os.PathLike[str],
        **options: Any,
    ) -> DubResult:
        """The whole job on files: `video` speaks `audio`, written to `output`. Options as `lipstream.dub.dub` has."""
        from .dub import dub  # a client of the engine

        return dub(self, video, audio, output, **options)

    def _faces(
        self,
        policy: Policy,
        at: tuple[float, float] | None,
        insightface: str | os.PathLike[str] | None,
        compat: bool,
    ) -> FaceOptions:
        if compat:
            check_geometry(self.manifest.geometry.crop_box, self.manifest.geometry.crop_size)
        return FaceOptions(policy, at, None if insightface is None else Path(insightface), compat)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError.found_in("the engine")
