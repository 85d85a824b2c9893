"""The manifest of a bundle: sizes of a stream, times of its passes, and the size and SHA-256 of every other file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BundleCorruptError, BundleVersionError
from .plans import Plans

SCHEMA = 3
MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
CONSTANTS = "constants.safetensors"
IDENTITY = "identity"
"""Optional constant, latents [C, 1, h, w] of one frame: the identity of every stream, in place of its first frame."""
CLIP_ENCODER = "clip_encoder"
"""Graph of an optional file: audio features of a whole clip, for audio encoders that attend to all of it."""
CLIP_FRAMES = 3000
"""Video frames of the longest clip that it takes, two minutes."""
CANVAS_WIDTH, CANVAS_HEIGHT = 420, 560
"""Pixels of the canvas on which faces are aligned; `Geometry.crop_box` is a rectangle on it."""
REBUILD = "export the bundle again: lipstream export --help"


@dataclass(frozen=True)
class AudioGeometry:
    """Geometry of the audio encoder: all counts in samples at `sample_rate` (Hz)."""

    sample_rate: int
    samples_per_frame: int
    lookback: int
    lookahead: int
    features: int

    def window(self, frames: int) -> int:
        """Samples that the audio encoder takes for `frames` video frames, context included."""
        return self.lookback + frames * self.samples_per_frame + self.lookahead


@dataclass(frozen=True)
class Geometry:
    """Shapes of a stream.

    Attributes:
        crop_size, latent_size: (height, width) of the aligned crop, and of a latent frame.
        crop_box: (left, top, right, bottom) of the crop on the 420 x 560 alignment canvas.
        latent_channels: C. spatial: pixels per latent pixel, in each direction. temporal: video frames per latent frame
            (the first latent frame of a stream holds one).
        sequence: what the last C channels of the condition hold: "reference", the video as it is, or "masked".
        chunk_frames: latent frames of a chunk. window: latent frames attended. sink: of these, the first frames of the
            stream, which are always kept.
        tokens, num_heads, head_dim, num_layers: of the DiT.
    """

    crop_size: tuple[int, int]
    crop_box: tuple[float, float, float, float]
    latent_size: tuple[int, int]
    latent_channels: int
    spatial: int
    temporal: int
    sequence: str
    chunk_frames: int
    window: int
    sink: int
    tokens: int
    num_heads: int
    head_dim: int
    num_layers: int

    @property
    def video_frames(self) -> int:
        """Video frames of a chunk."""
        return self.temporal * self.chunk_frames

    @property
    def first_frames(self) -> int:
        """Video frames that a stream's first chunk yields: its first latent frame holds one."""
        return self.video_frames - self.temporal + 1


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        model: name, description and licence of the weights, number of parameters.
        t_list: times of the denoising passes, then 0 for the context pass.
        precision: of the graphs, e.g. "fp32".
        files: size in bytes and SHA-256 of each other file of the bundle.
        plans: how the bundle's TensorRT plans were built; None if the graphs are ONNX.
    """

    model: dict[str, Any]
    geometry: Geometry
    audio: AudioGeometry
    t_list: tuple[float, ...]
    precision: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA
    plans: Plans | None = None

    @property
    def graphs(self) -> set[str]:
        """Names of the graphs of a stream, ONNX or plans."""
        return {name.rpartition(".")[0] for name in self.files if name.endswith((".onnx", ".plan"))} - {CLIP_ENCODER}

    @property
    def encodes_clips(self) -> bool:
        """Whether there is a graph `CLIP_ENCODER`."""
        return f"{CLIP_ENCODER}.onnx" in self.files

    @classmethod
    def parse(cls, text: str, where: Path) -> Manifest:
        """Read the contents of the file `where`; `validate.parse_manifest` also checks the numbers.

        Raises:
            BundleVersionError: written in another version of the format. BundleCorruptError: not a manifest.
        """
        try:
            data = json.loads(text)
            schema = data["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleCorruptError(f"{where} is not a manifest: {error}", fix=REBUILD) from error
        if schema != SCHEMA:
            raise BundleVersionError(
                f"{where} has bundle schema {schema}",
                expected=f"schema {SCHEMA}, which this LipStream reads",
                fix="pip install --upgrade lipstream" if isinstance(schema, int) and schema > SCHEMA else REBUILD,
            )
        try:
            geometry, audio = data.pop("geometry"), AudioGeometry(**data.pop("audio"))
            for name in ("crop_size", "latent_size", "crop_box"):
                geometry[name] = tuple(geometry[name])
            data["t_list"] = tuple(data["t_list"])
            if data.get("plans") is not None:
                data["plans"] = Plans(**data["plans"])
            return cls(geometry=Geometry(**geometry), audio=audio, **data)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise BundleCorruptError(f"{where}: {error}", fix=REBUILD) from error

    def fields(self) -> dict[str, Any]:
        """As JSON values; `plans` only if there are any."""
        return {name: value for name, value in asdict(self).items() if name != "plans" or value is not None}

    def dump(self) -> str:
        return json.dumps(self.fields(), indent=2) + "\n"
