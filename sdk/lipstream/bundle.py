"""The bundle: a folder with everything an engine needs, its manifest, and the checks made when it is loaded.

manifest.json          sizes, geometry, schedule, and the SHA-256 of every other file
*.onnx                 one graph a file
weights.bin            weights that the graphs share
weights.json           where in it each weight stands
constants.safetensors  what is computed once for all streams: modulation, prompt K/V, masks
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .errors import BundleCorruptError, BundleNotFoundError, BundleVersionError, LipStreamInternalError, OutputError

SCHEMA = 1
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
SHIPPED = Path(__file__).parent / "bundles"


@dataclass(frozen=True)
class AudioGeometry:
    """How sound becomes features: all counts in samples at `sample_rate` (Hz)."""

    sample_rate: int
    samples_per_frame: int
    lookback: int
    lookahead: int
    features: int


@dataclass(frozen=True)
class Geometry:
    """Shapes of a stream.

    Attributes:
        fps: video frames a second.
        crop_size, latent_size: (height, width) of the aligned crop, and of a latent frame.
        latent_channels: C. temporal: video frames of a latent frame (the stream's first stands for one).
        chunk_frames: latent frames of a chunk. window, sink: latent frames attended; the first of the stream kept.
        tokens, num_heads, head_dim, num_layers: of the DiT.
    """

    fps: int
    crop_size: tuple[int, int]
    latent_size: tuple[int, int]
    latent_channels: int
    temporal: int
    chunk_frames: int
    window: int
    sink: int
    tokens: int
    num_heads: int
    head_dim: int
    num_layers: int

    @property
    def video_frames(self) -> int:
        """Video frames of a chunk (the first chunk yields ``temporal - 1`` fewer)."""
        return self.temporal * self.chunk_frames


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        model: name, description and licence of the weights, number of parameters.
        t_list: times of the denoising passes, then 0 for the context pass.
        precision: of the graphs, e.g. "fp32".
        files: per file of the bundle its size in bytes and its SHA-256.
    """

    model: dict[str, Any]
    geometry: Geometry
    audio: AudioGeometry
    t_list: tuple[float, ...]
    precision: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def parse(cls, text: str, where: Path) -> Manifest:
        try:
            data = json.loads(text)
            schema = data["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleCorruptError(f"{where} is not a manifest: {error}", fix=REBUILD) from error
        if schema != SCHEMA:
            raise BundleVersionError(
                f"{where} has bundle schema {schema}",
                expected=f"schema {SCHEMA}, which this LipStream reads",
                fix="pip install --upgrade lipstream" if isinstance(schema, int) and schema > SCHEMA else REBUILD,
            )
        try:
            geometry, audio = data.pop("geometry"), AudioGeometry(**data.pop("audio"))
            for name in ("crop_size", "latent_size"):
                geometry[name] = tuple(geometry[name])
            data["t_list"] = tuple(map(float, data["t_list"]))
            manifest = cls(geometry=Geometry(**geometry), audio=audio, **data)
            manifest.check()
            return manifest
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BundleCorruptError(f"{where} lacks or misnames a field: {error}", fix=REBUILD) from error

    def check(self) -> None:
        """ValueError where a size is no whole number or a file lacks its size or its hash."""
        g, a = self.geometry, self.audio
        if not isinstance(self.model, dict):
            raise ValueError(f"a model of {self.model!r}")
        for size in [*vars(g).values(), *g.crop_size, *g.latent_size, *vars(a).values()]:
            if not isinstance(size, int | tuple) or (isinstance(size, int) and size < 0):
                raise ValueError(f"a size of {size!r}")
        for name, file in self.files.items():
            if {"bytes": int, "sha256": str} != {key: type(value) for key, value in file.items()}:
                raise ValueError(f"the file {name} is {file!r}")

    def dump(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


REBUILD = "export the bundle again: lipstream export --help"


class Bundle:
    """A bundle on disk whose manifest has been read and whose files have been checked.

    Attributes:
        path: the folder. manifest: its contents.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def load(cls, source: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open the bundle in folder `source`, or the shipped one of that name ("tiny").

        Args:
            verify: compare the SHA-256 of every file with the manifest (about a second for each 2 GB).

        Raises:
            BundleNotFoundError: neither a folder with a manifest nor a shipped name.
            BundleVersionError: written in another version of the format.
            BundleCorruptError: a file is missing or differs from what the manifest says.
        """
        path = Path(source)
        if not (path / MANIFEST).is_file():
            shipped = SHIPPED / str(source)
            if path.name != str(source) or not (shipped / MANIFEST).is_file():
                names = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{MANIFEST}")))
                raise BundleNotFoundError(
                    f"no bundle at {path}",
                    expected=f"a folder with {MANIFEST}, or the name of a shipped bundle ({names})",
                    fix="lipstream export --help",
                )
            path = shipped
        try:
            text = (path / MANIFEST).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BundleCorruptError(f"{path / MANIFEST} cannot be read: {error}", fix=REBUILD) from error
        bundle = cls(path, Manifest.parse(text, path / MANIFEST))
        bundle.check(hashes=verify)
        return bundle

    def check(self, *, hashes: bool) -> None:
        """Compare the files with the manifest: sizes, and with `hashes` their SHA-256 too."""
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise BundleCorruptError(f"{path} is missing", expected="every file of the manifest", fix=REBUILD)
            found: dict[str, Any] = {"bytes": path.stat().st_size}
            if hashes and found["bytes"] == expected["bytes"]:
                found["sha256"] = sha256(path)
            if any(expected[key] != value for key, value in found.items()):
                raise BundleCorruptError(f"{path} has {found}", expected=f"{expected} (manifest)", fix=REBUILD)

    @cached_property
    def constants(self) -> dict[str, NDArray[np.float32]]:
        """Tensors computed once for all streams, by name."""
        try:
            return load_file(self.path / CONSTANTS)
        except (OSError, SafetensorError) as error:
            raise BundleCorruptError(f"{self.path / CONSTANTS} cannot be read: {error}", fix=REBUILD) from error

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        if name not in self.manifest.files:
            raise LipStreamInternalError(f"the manifest of {self.path} names no {name}")
        return self.path / name


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: str | os.PathLike[str], manifest: Manifest) -> Iterator[Path]:
    """Write a bundle atomically: fill the folder this yields; it gets its manifest and takes the name `path` at last.

    An existing bundle of that name is replaced; on an error nothing of the new one remains.

    Raises:
        OutputError: the place cannot be written, or holds something that is not a bundle.
    """
    target = Path(path)
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target} exists and is not a bundle", fix="choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        yield temporary
        files = {
            str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in sorted(temporary.rglob("*"))
            if file.is_file()
        }
        complete = Manifest(**{**vars(manifest), "files": files})
        (temporary / MANIFEST).write_text(complete.dump())
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
