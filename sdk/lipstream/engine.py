"""The engine: a bundle on a backend, shared by any number of sessions."""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from .backends import Backend, ChunkInput, ChunkStream, load_backend
from .backends.base import GRAPHS, Array, cores
from .bundle import REBUILD, Bundle, Manifest, Trust, public_keys, reading
from .checks import check_callable, check_count, check_number, check_type
from .dub import DubResult, dub
from .errors import BundleCorruptError, ConfigError, ForkError, GpuMemoryError
from .face import FaceOptions, FacePipeline, FaceTracker, LipStreamFacePipeline, UpstreamFacePipeline
from .media import FPS, VideoReader, limit_threads
from .media.librosa import librosa_blocks
from .media.picture import Rgb
from .media.resample import resampled_blocks
from .media.video_codec import VideoCodec
from .metrics import Metrics, NoMetrics
from .session import Frame, Idle, LipSyncSession, PreparedReference
from .session.clip_features import ClipFeatures
from .session.noise import NoiseOption, noise_of
from .session.reference import LOOP_BYTES, LiveReference, Reference, Source
from .shutdown import check_running, working

LOG = logging.getLogger("lipstream")
MOST_THREADS = 1024


class LipSyncEngine:
    """A loaded bundle on a backend. Immutable and thread-safe: create it with `load` once and share it.

        engine = LipSyncEngine.load("tiny")
        with engine.session("me.mp4") as session:
            session.push_audio(pcm, 24000)
            for frame in session:
                show(frame.image, frame.audio)
        engine.dub("in.mp4", "speech.wav", "out.mp4")

    Load the engine in the process that uses it: it does not survive a fork.

    Attributes:
        manifest: of the bundle. backend: runs its graphs.
    """

    def __init__(self, bundle: Bundle, backend: Backend, metrics: Metrics | None = None) -> None:
        self.manifest: Manifest = bundle.manifest
        self.backend, self._metrics = backend, metrics or NoMetrics()
        self._keep_mask = bundle.constants["mask.composite"]
        self._face = LipStreamFacePipeline(bundle.manifest.geometry, self._keep_mask)
        self._process = os.getpid()
        # Generates the chunks of sessions that are iterated with `async for`; threads start on demand. Sessions hold it
        # and may outlive the engine; its threads end when it is collected.
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="lipstream")

    def __repr__(self) -> str:
        return f"<LipSyncEngine {self.manifest.model.get('name', '')!r} on {type(self.backend).__name__}>"

    @classmethod
    @working()
    def load(
        cls,
        bundle: str | os.PathLike[str] = "tiny",
        *,
        backend: str | None = None,
        threads: int = 0,
        verify: bool = True,
        provider: str | None = None,
        metrics: Metrics | None = None,
        trust: Trust | None = None,
    ) -> LipSyncEngine:
        """Load a bundle.

        Args:
            bundle: its folder, or the name of a shipped one ("tiny").
            backend: name of an installed backend. The default is "tensorrt" for a bundle that `lipstream build` wrote,
                else "onnxruntime"; another one is "torch".
            threads: CPU threads. 0 is the default: as many as speed up one chunk, at most the cores of this process.
                Any other number also limits decoding, encoding and OpenCV in the whole process.
            verify: compare every file with the manifest's SHA-256 first.
            provider: of backend "onnxruntime": "cpu" (the default), "cuda" or "tensorrt" (`lipstream[gpu]`).
            metrics: receives what the engine and its sessions count and measure.
            trust: public keys, PEM files or their texts, of which one must have signed the bundle (`lipstream sign`).
                A shipped bundle is always accepted. None is the default: any bundle is, if a signature that it may
                have is right.

        Raises:
            BundleNotFoundError, BundleVersionError, BundleCorruptError: of the bundle.
            BundleUntrustedError: it is not signed by one of the keys.
            MissingExtraError: it is signed, or `trust` is given, and `lipstream[sign]` is not installed.
            BackendError: no such backend, or it cannot run the bundle. PlanError, GpuMemoryError: of TensorRT plans.
            ConfigError: an argument has another type, or the number of threads is out of range.
        """
        if not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
            raise ConfigError(f"threads={threads!r}", expected=f"0 for the default, or 1 to {MOST_THREADS} threads")
        for option, value in (("backend", backend), ("provider", provider)):
            if value is not None:
                check_type(option, value, str)
        for method in ("count", "observe"):
            if metrics is not None:
                check_callable(f"metrics.{method}", getattr(metrics, method, None))
        if trust is not None and not verify:
            raise ConfigError(
                "trust without verify", expected="verify=True: what is signed are the hashes of the files"
            )
        trusted = None if trust is None else public_keys(trust)
        path = Bundle.find(bundle)

        def load(text: str) -> LipSyncEngine:
            loaded = Bundle.parse(path, text, verify=verify, trusted=trusted)
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

    @working()
    def session(
        self,
        video: Source | PreparedReference,
        *,
        face: FaceOptions | None = None,
        seed: int = 42,
        noise: NoiseOption = None,
        max_pending: float = 60.0,
        idle: Idle | None = None,
        sample_rate: int | None = None,
        channels: int = 1,
        length: int | None = None,
        loop_bytes: int = LOOP_BYTES,
    ) -> LipSyncSession:
        """Open a session that lip-syncs the face in `video`.

        Args:
            video: path of a video or picture, frames (uint8 [H, W, 3] RGB, 25 a second), or a prepared reference.
                It is played forwards and backwards for as long as there is audio. Arrays are not copied: each is read
                when its frame is needed, so do not change them while the session is open.
            face: how the face is found and composited; None for the defaults, or the options of a prepared reference.
            seed: of the noise; equal seeds, audio and video give equal frames.
            noise: None: a function of `seed` and the chunk. "torch": as the released script draws it on a CPU, which
                depends on `length`. Or a function: number of a chunk -> unit noise float32 [C, c, h, w] of each pass.
            max_pending: seconds of pushed audio that may be pending in the session.
            idle: frames where there is no audio: "closed" generates the face with its mouth at rest; "reference" shows
                the unchanged video and costs almost nothing. None: iterating ends.
            sample_rate: Hz of the audio that will be pushed, for `push_audio` without a rate, and of the silence of
                idle frames before the first push. None: that silence has the model's rate.
            channels: 1 to 8, of that silence, and of bytes that are pushed.
            length: number of frames that will be taken, if known; a long video is then not stored for looping.
            loop_bytes: limit of temporary disk for the frames of a looped video; playback of a longer video reverses
                where it is reached.

        Raises:
            FaceNotFoundError: no face in the first 30 seconds of a video.
            MediaOpenError, NoVideoError, MediaTruncatedError, ConfigError: of the video or the options.
            AudioFormatError: of `sample_rate` or `channels`.
        """
        return self._session(
            video,
            face=face,
            seed=seed,
            noise=noise,
            max_pending=max_pending,
            idle=idle,
            sample_rate=sample_rate,
            channels=channels,
            length=length,
            loop_bytes=loop_bytes,
        )

    def _session(
        self,
        video: Source | PreparedReference,
        *,
        face: FaceOptions | None,
        seed: int,
        noise: NoiseOption,
        length: int | None,
        loop_bytes: int = LOOP_BYTES,
        latent_frames: int | None = None,
        **options: Any,
    ) -> LipSyncSession:
        """See `session`.

        Args:
            latent_frames: of the clip, for the noise of torch; None: those of `length`.
            options: of `LipSyncSession`.
        """
        self._check_process()
        _check_face(face)
        _check_loop_bytes(loop_bytes)
        if length is not None:
            check_count("length", length, least=1, expected="a number of frames, at least 1, or None")
        if length is not None and latent_frames is None:
            latent_frames = -(-(length - 1) // self.manifest.geometry.temporal) + 1
        reference: Reference
        if isinstance(video, PreparedReference):
            if video.manifest != self.manifest:
                raise ConfigError("a reference prepared with another bundle", fix="prepare it with this engine")
            if face not in (None, video.face):
                raise ConfigError(f"{face} for a reference prepared with {video.face}", fix="pass it to prepare()")
            pipeline = self._pipeline(video.face)
            reference = video.play()
        else:
            face = face or FaceOptions()
            pipeline = self._pipeline(face)
            reference = LiveReference(
                video, self.manifest.geometry, face, pipeline, length=length, loop_bytes=loop_bytes
            )
        with ExitStack() as undo:
            undo.callback(reference.close)
            noises = noise_of(noise, self.manifest, seed, latent_frames)
            stream = self.backend.open_stream()
            undo.callback(stream.close)
            session = LipSyncSession(
                self.manifest,
                stream,
                reference,
                pipeline,
                self._pool,
                noise=noises,
                metrics=self._metrics,
                **options,
            )
            undo.pop_all()
        self._metrics.count("sessions_opened")
        LOG.debug("session opened, idle=%s", options.get("idle"))
        return session

    @working()
    def warmup(self, chunks: int = 6, *, sessions: int = 1) -> float:
        """Run `chunks` chunks of zeros, so that the first sessions start on a warm engine.

        Args:
            chunks: of each session. 6 run everything that a session runs; fewer leave some of it to sessions.
            sessions: how many sessions at once will start warm. On TensorRT each has memory, execution contexts and
                captured graphs of its own, which are made here and kept. Other backends keep nothing of a closed
                session, so one is run whatever the number.

        Returns:
            Seconds per chunk of one session when warm: the median of the second half. A chunk of 12 frames plays for
            0.48 s.

        Raises:
            ConfigError: `chunks` or `sessions` is no whole number, or below 1.
            GpuMemoryError: not enough memory for so many sessions; it says for how many.
        """
        self._check_process()
        check_count("chunks", chunks, least=1, expected="a number of chunks, 1 or more")
        check_count("sessions", sessions, least=1, expected="a number of sessions, 1 or more")
        FaceTracker().warmup()
        with ExitStack() as opened:
            streams: list[ChunkStream] = []
            for number in range(sessions if self.backend.reuses_streams else 1):
                try:
                    streams.append(self.backend.open_stream())
                except GpuMemoryError as error:
                    if not number:
                        raise
                    raise GpuMemoryError(
                        f"the GPU has memory for {number} sessions, not for {sessions}",
                        expected="memory for all sessions that are to be warm",
                        fix=f"sessions={number} (lipstream serve --max-sessions {number}), or {error.fix}",
                    ) from error
                opened.callback(streams[-1].close)
            found = statistics.median(second for stream in streams for second in self._warm(stream, chunks))
        LOG.info("warm for %d sessions: a chunk takes %.3f s", len(streams), found)
        return found

    def _warm(self, stream: ChunkStream, chunks: int) -> list[float]:
        """Run chunks of zeros on a stream; seconds of each of the second half."""
        m, g = self.manifest, self.manifest.geometry
        samples = np.zeros(m.audio.window(g.video_frames), np.float32)
        crops = np.zeros((g.video_frames, *g.crop_size, 3), np.uint8)
        noise = np.zeros((g.latent_channels, g.chunk_frames, *g.latent_size), np.float32)
        seconds = []
        for number in range(max(2, chunks)):
            check_running()
            begun = time.perf_counter()
            chunk = ChunkInput(number, crops, None, samples, [noise] * (len(m.t_list) - 1), 0)
            stream.start(chunk, lambda stage: nullcontext()).crops()
            seconds.append(time.perf_counter() - begun)
        return seconds[len(seconds) // 2 :]

    def capacity(
        self, reference: PreparedReference, *, share: float = 0.75, use: Callable[[Frame], object] | None = None
    ) -> int:
        """Measure how many sessions this machine can run in real time, from one session at full speed.

        Args:
            share: share of the machine to use, above 0, up to 1.
            use: called with each frame, for work such as encoding that every session does; its time counts.

        Returns:
            At least 1.

        Raises:
            ConfigError: of an argument.
        """
        check_type("reference", reference, PreparedReference)
        check_number("share", share, most=1, expected="a share of the machine, above 0, up to 1")
        if use is not None:
            check_callable("use", use)
        self.warmup()
        chunk = self.manifest.geometry.video_frames
        with self.session(reference, idle="closed") as session:
            frames = iter(session)
            begun = 0.0
            for number, frame in enumerate(itertools.islice(frames, 7 * chunk)):
                if number == 3 * chunk:  # warm, and the window full
                    begun = time.perf_counter()
                if use:
                    use(frame)
            rate = 4 * chunk / (time.perf_counter() - begun)
        return max(1, int(share * rate / FPS))

    @working()
    def prepare(
        self,
        video: Source,
        *,
        seconds: float = 20.0,
        face: FaceOptions | None = None,
        loop_bytes: int = LOOP_BYTES,
    ) -> PreparedReference:
        """Decode, track and encode the first `seconds` of `video` once, to be looped by any number of sessions.

        Sessions on it start at once and do not read the file. Its frames take at most `loop_bytes` of temporary disk;
        a video that needs more is cut. Raises what `session` raises.
        """
        self._check_process()
        _check_face(face)
        _check_loop_bytes(loop_bytes)
        face = face or FaceOptions()
        pipeline = self._pipeline(face)
        stream = self.backend.open_stream()
        try:
            return PreparedReference(
                video, stream, self.manifest, face, pipeline, seconds=seconds, max_bytes=loop_bytes
            )
        finally:
            stream.close()

    @working()
    def dub(
        self,
        video: str | os.PathLike[str],
        audio: str | os.PathLike[str] | None,
        output: str | os.PathLike[str],
        *,
        face: FaceOptions | None = None,
        seed: int = 42,
        noise: NoiseOption = None,
        codec: VideoCodec | None = None,
        crf: int = 18,
        preset: str = "veryfast",
        first_crf: int | None = None,
        lossless: bool = False,
        background: Rgb = (0, 0, 0),
        strict: bool = False,
        progress: Callable[[int, int], None] | None = None,
        finish: Callable[[Path, int], None] | None = None,
        sandbox: bool = False,
    ) -> DubResult:
        """Make the face in `video` speak `audio`, and write it to `output`.

        An audio encoder that attends to a whole clip, as that of released weights does, gets the whole sound (in
        windows of two minutes where it is longer), and not a window around each chunk as in a session.

        Args:
            audio, output, codec, crf, preset, first_crf, lossless, background, strict, progress, finish, sandbox:
                see `lipstream.dub.dub`.
            face, seed, noise: see `session`.

        Raises:
            What `session` and `lipstream.dub.dub` raise.
        """

        _check_face(face)

        m, upstream = self.manifest, face is not None and face.upstream

        def open_session(
            source: VideoReader, frames: int, sound: Callable[[], Iterator[Array]], rate: int
        ) -> LipSyncSession:
            features = None
            if encode := self.backend.encode_clip:
                resampled = (librosa_blocks if upstream else resampled_blocks)(sound(), rate, m.audio.sample_rate)
                features = ClipFeatures(encode, resampled, m.audio.samples_per_frame, least=frames if upstream else 0)
            return self._session(
                source,
                face=face,
                seed=seed,
                noise=noise,
                length=frames + m.geometry.video_frames,  # one chunk may be started beyond the end
                latent_frames=-(-(frames - 1) // m.geometry.temporal) + 1,
                features=features,
            )

        return dub(
            open_session,
            video,
            audio,
            output,
            codec=codec,
            crf=crf,
            preset=preset,
            first_crf=first_crf,
            lossless=lossless,
            background=background,
            strict=strict,
            progress=progress,
            finish=finish,
            sandbox=sandbox,
            upstream=upstream,
        )

    def _pipeline(self, face: FaceOptions) -> FacePipeline:
        return UpstreamFacePipeline(self.manifest.geometry, self._keep_mask) if face.upstream else self._face

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError.found_in("the engine")


def _check_face(face: object) -> None:
    if face is not None:
        check_type("face", face, FaceOptions)


def _check_loop_bytes(loop_bytes: object) -> None:
    check_count("loop_bytes", loop_bytes, least=1, expected="bytes of temporary disk, 1 or more")
