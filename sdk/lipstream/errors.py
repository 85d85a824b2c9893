"""All errors that users can get: one class for each different fix.

There are two base classes. A `LipStreamError` is a problem that the user can fix (input, configuration, environment):
its message says what was found, what was expected and what to do. A `LipStreamInternalError` is a bug in LipStream,
which never catches it.
"""

from __future__ import annotations


class LipStreamError(Exception):
    """Base of all errors that a user can fix.

    Attributes:
        code: stable identifier for logs and programs, e.g. ``"no_face"``.
        exit_code: exit status of the command line; a different one for each class.
        fix: what to do about it, a command where there is one.
    """

    code = "error"
    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", fix: str = "") -> None:
        self.found, self.expected, self.fix = found, expected, fix
        super().__init__(found)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n  ".join(lines)


class ConfigError(LipStreamError):
    """An option has a value that cannot work."""

    code, exit_code = "config", 3


class MissingExtraError(LipStreamError):
    """A command needs an optional part of LipStream that is not installed."""

    code, exit_code = "missing_extra", 4


class MediaOpenError(LipStreamError):
    """A media file is missing, unreadable or not a media file."""

    code, exit_code = "media_open", 10


class MediaTruncatedError(LipStreamError):
    """A media file ends, or is damaged, before the end that its header states."""

    code, exit_code = "media_truncated", 11


class NoVideoError(LipStreamError):
    """The source has no video stream, or one without frames."""

    code, exit_code = "no_video", 12


class NoAudioError(LipStreamError):
    """The source has no audio stream, or one without samples."""

    code, exit_code = "no_audio", 13


class AudioFormatError(LipStreamError):
    """Audio samples of a type, shape, rate or value (NaN) that cannot be used."""

    code, exit_code = "audio_format", 14


class AudioTooShortError(LipStreamError):
    """Audio shorter than one video frame (40 ms)."""

    code, exit_code = "audio_too_short", 15


class OutputError(LipStreamError):
    """The result cannot be written to the given path."""

    code, exit_code = "output", 16


class FaceNotFoundError(LipStreamError):
    """No usable face where one is needed. `frame` is the index of the source frame."""

    code, exit_code = "no_face", 20

    def __init__(self, found: str, *, frame: int, expected: str = "", fix: str = "") -> None:
        super().__init__(found, expected=expected, fix=fix)
        self.frame = frame


class QualityError(LipStreamError):
    """With `strict`: the result would have a warning, such as many frames without a face, or a damaged source.

    Also a student that tuning did not bring nearer to the person.
    """

    code, exit_code = "quality", 21


class FootageError(LipStreamError):
    """Videos do not show enough of one speaking person to tune or train a student by them."""

    code, exit_code = "footage", 22


class BundleNotFoundError(LipStreamError):
    """There is no bundle with that path or name."""

    code, exit_code = "bundle_not_found", 30


class BundleCorruptError(LipStreamError):
    """A file of the bundle is missing or differs from what the manifest says."""

    code, exit_code = "bundle_corrupt", 31


class BundleVersionError(LipStreamError):
    """The bundle was written for another version of the bundle format."""

    code, exit_code = "bundle_version", 32


class BundleUntrustedError(LipStreamError):
    """The bundle is not signed by one of the trusted keys."""

    code, exit_code = "bundle_untrusted", 44


class BackendError(LipStreamError):
    """A backend is unknown, not installed, or cannot run this bundle."""

    code, exit_code = "backend", 33


class CheckpointError(LipStreamError):
    """A checkpoint to export is missing, incomplete, or its weights do not fit its sizes."""

    code, exit_code = "checkpoint", 34


class PlanError(LipStreamError):
    """TensorRT plans were built for another TensorRT or another GPU."""

    code, exit_code = "plan", 37


class EngineBuildError(LipStreamError):
    """TensorRT cannot parse or build a graph."""

    code, exit_code = "engine_build", 38


class VerificationError(LipStreamError):
    """An engine does not compute what the model it was built from computes."""

    code, exit_code = "verification", 39


class GpuMemoryError(LipStreamError):
    """Not enough GPU memory for one more stream, or for the weights. Open streams continue."""

    code, exit_code = "gpu_memory", 42


class GpuError(LipStreamError):
    """CUDA reports that the GPU or its driver has failed; this process cannot use the GPU any more."""

    code, exit_code = "gpu", 43


class ForkError(LipStreamError):
    """An engine or session is used in a process other than the one that created it."""

    code, exit_code = "forked", 36

    @classmethod
    def found_in(cls, what: str) -> ForkError:
        return cls(
            f"{what} was created before this process was forked",
            expected="an engine loaded in the process that uses it: its threads do not survive a fork",
            fix="load the engine after the fork (gunicorn: in post_fork, without --preload; multiprocessing: 'spawn')",
        )


class ParityError(LipStreamError):
    """Exported graphs do not compute what the model they were exported from computes."""

    code, exit_code = "parity", 35


class BackpressureError(LipStreamError):
    """More audio was pushed than `max_pending` allows; iterate over the frames first."""

    code, exit_code = "backpressure", 40


class SessionClosedError(LipStreamError):
    """The session was closed, or an error has ended it."""

    code, exit_code = "session_closed", 41


class ProtocolError(LipStreamError):
    """A message is unknown, malformed, or not valid in this state. The session continues without it."""

    code, exit_code = "protocol", 50


class SlowClientError(LipStreamError):
    """A client does not read the data sent to it, or sends a request's body too slowly."""

    code, exit_code = "slow_client", 51


class UnknownReferenceError(LipStreamError):
    """A reference was never uploaded, or has been deleted."""

    code, exit_code = "unknown_reference", 52


class UploadTooLargeError(LipStreamError):
    """An upload is larger than the limit."""

    code, exit_code = "upload_too_large", 53


class UnavailableError(LipStreamError):
    """A server admits no session now. `label` is the reason in its metrics."""

    code, exit_code = "unavailable", 54

    def __init__(self, found: str, *, label: str, expected: str = "", fix: str = "") -> None:
        super().__init__(found, expected=expected, fix=fix)
        self.label = label


class TokenError(LipStreamError):
    """A server needs a token, and a request has none or a wrong one."""

    code, exit_code = "token", 55


class OriginError(LipStreamError):
    """A server does not admit pages of this origin."""

    code, exit_code = "origin", 56


class HostError(LipStreamError):
    """A request names a host that is not the server's."""

    code, exit_code = "host", 57


class RateError(LipStreamError):
    """A client sends more requests, or more wrong tokens, than a server answers."""

    code, exit_code = "rate", 58


class ScopeError(LipStreamError):
    """An API key is valid, but not for what is asked."""

    code, exit_code = "scope", 59


class LipStreamInternalError(Exception):
    """An invariant of LipStream itself is broken: please report it."""
