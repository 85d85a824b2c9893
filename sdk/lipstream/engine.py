"""The engine: a bundle on a backend, shared by any number of sessions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .backends.base import GRAPHS, Backend, Stream, load_backend
from .bundle import REBUILD, Bundle, Manifest
from .composite import Compositor
from .dub import DubResult, dub
from .errors import BundleCorruptError, ConfigError
from .face.track import Policy
from .reference import FaceOptions, LiveReference, PreparedReference, Reference, Source
from .session import LipSyncSession


class LipSyncEngine:
    """Immutable and thread-safe; make one with `load` and keep it.

        engine = LipSyncEngine.load("tiny")
        with engine.session("me.mp4") as session:
            session.push_audio(pcm, 24000)
            for frame in session:
                show(frame.image, frame.audio)
        engine.dub("in.mp4", "speech.wav", "out.mp4")

    Attributes:
        manifest: what the bundle says of itself.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.manifest: Manifest = bundle.manifest
        self._backend = backend
        self._compositor = Compositor(bundle.constants["mask.composite"])
        self._latent_mask = bundle.constants["mask.latent"]

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] = "tiny",
        *,
        backend: str = "onnxruntime",
        threads: int = 0,
        verify: bool = True,
    ) -> LipSyncEngine:
        """Load a bundle.

        Args:
            bundle: its folder, or the name of a shipped one ("tiny").
            backend: "onnxruntime", or another that is installed ("torch").
            threads: CPU threads for the graphs, 0 for all cores.
            verify: compare every file with the manifest's SHA-256 first.

        Raises:
            BundleNotFoundError, BundleVersionError, BundleCorruptError: of the bundle.
            BackendError: no such backend, or it cannot run the bundle.
            ConfigError: a negative number of threads.
        """
        if threads < 0:
            raise ConfigError(f"threads={threads}", expected="0 for all cores, or a number of threads")
        loaded = Bundle.load(bundle, verify=verify)
        graphs = {Path(name).stem for name in loaded.manifest.files}
        missing = [*({*GRAPHS} - graphs), *({"mask.composite", "mask.latent", "mask.pixel"} - {*loaded.constants})]
        if missing:
            raise BundleCorruptError(f"{loaded.path} has no {', '.join(sorted(missing))}", fix=REBUILD)
        return cls(loaded, load_backend(backend, loaded, threads=threads))

    def open_stream(self) -> Stream:
        """A bare stream on the backend: the graphs with their state, without reference, clock or compositing."""
        return self._backend.open_stream()

    def session(
        self,
        video: Source | PreparedReference,
        *,
        face_policy: Policy = "hold",
        face_at: tuple[float, float] | None = None,
        seed: int = 42,
        max_pending: float = 60.0,
        length: int | None = None,
    ) -> LipSyncSession:
        """Open a session that speaks through the face in `video`.

        Args:
            video: path of a video or picture, frames (uint8 [H, W, 3] RGB, 25 a second), or a prepared reference.
                It is played forwards and backwards for as long as there is audio.
            face_policy: for frames without the face: "hold" its last place, "bypass" the frame, or "raise".
            face_at: (x, y) in pixels near the wanted face of several; None for the largest.
            seed: of the noise; equal seeds, audio and video give equal frames.
            max_pending: seconds of audio that may wait in the session.
            length: frames that will be asked for, if known: a long video is then not kept for looping.

        Raises:
            FaceNotFoundError: no face in the first half minute of a video.
            MediaOpenError, NoVideoError, MediaTruncatedError, ConfigError: of the video or the options.
        """
        reference: Reference
        if isinstance(video, PreparedReference):
            if video.manifest != self.manifest:
                raise ConfigError("a reference prepared with another bundle", fix="prepare it with this engine")
            reference = video.play()
        else:
            faces = FaceOptions(face_policy, face_at)
            reference = LiveReference(video, self.manifest.geometry, faces, length=length)
        return LipSyncSession(
            self.manifest,
            self._backend.open_stream(),
            reference,
            self._compositor,
            self._latent_mask,
            seed=seed,
            max_pending=max_pending,
        )

    def prepare(
        self,
        video: Source,
        *,
        seconds: float = 20.0,
        face_policy: Policy = "hold",
        face_at: tuple[float, float] | None = None,
    ) -> PreparedReference:
        """Decode, track and encode the first `seconds` of `video` once, to be looped by any number of sessions.

        Sessions on it start at once and never touch the file. Raises as `session` does.
        """
        faces = FaceOptions(face_policy, face_at)
        return PreparedReference(video, self._backend.open_stream(), self.manifest, faces, seconds=seconds)

    def dub(
        self,
        video: str | os.PathLike[str],
        audio: str | os.PathLike[str] | None,
        output: str | os.PathLike[str],
        *,
        face_policy: Policy = "hold",
        face_at: tuple[float, float] | None = None,
        seed: int = 42,
        crf: int = 18,
        preset: str = "veryfast",
        lossless: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> DubResult:
        """The whole job on files: `video` speaks `audio`, written to `output`. See `lipstream.dub.dub`."""
        return dub(
            self,
            video,
            audio,
            output,
            face_policy=face_policy,
            face_at=face_at,
            seed=seed,
            crf=crf,
            preset=preset,
            lossless=lossless,
            progress=progress,
        )
