"""The bundle: a folder with everything an engine needs, its manifest, and the checks made when it is loaded.

manifest.json          sizes, geometry, schedule, and the SHA-256 of every other file
*.onnx, *.plan         one graph a file, or one engine
weights.bin            weights that the graphs share
weights.json           where in it each weight stands
constants.safetensors  what is computed once for all streams: modulation, prompt K/V, masks
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .bundle_check import check_constants, check_graph, check_manifest, plain
from .errors import BundleCorruptError, BundleNotFoundError, BundleVersionError, LipStreamInternalError, OutputError
from .onnx_header import read_header
from .partial import Partial
from .plans import Plans
from .replace_folder import replace_folder

SCHEMA = 2
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
SHIPPED = Path(__file__).parent / "bundles"
BESIDE = ("README.md", "LICENSE", "NOTICE")
"""Files that may lie in a bundle without being listed in its manifest, as hidden ones may."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class AudioGeometry:
    """How sound becomes features: all counts in samples at `sample_rate` (Hz)."""

    sample_rate: int
    samples_per_frame: int
    lookback: int
    lookahead: int
    features: int

    def window(self, frames: int) -> int:
        """Samples that are heard for `frames` video frames, their context included."""
        return self.lookback + frames * self.samples_per_frame + self.lookahead


@dataclass(frozen=True)
class Geometry:
    """Shapes of a stream.

    Attributes:
        crop_size, latent_size: (height, width) of the aligned crop, and of a latent frame.
        crop_box: (left, top, right, bottom) of the crop on the 420 x 560 alignment canvas.
        latent_channels: C. spatial: pixels of a latent's pixel. temporal: video frames of a latent frame (the
            stream's first stands for one).
        sequence: what the last C channels of the condition hold: "reference", the video as it is, or "masked".
        chunk_frames: latent frames of a chunk. window, sink: latent frames attended; the first of the stream kept.
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
        """Video frames that a stream's first chunk yields: its first latent frame stands for one."""
        return self.video_frames - self.temporal + 1


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        model: name, description and licence of the weights, number of parameters.
        t_list: times of the denoising passes, then 0 for the context pass.
        precision: of the graphs, e.g. "fp32".
        files: per file of the bundle its size in bytes and its SHA-256.
        plans: how the bundle's TensorRT plans were built; None where the graphs are ONNX.
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
        """Names of the graphs, be they ONNX or plans."""
        return {name.rpartition(".")[0] for name in self.files if name.endswith((".onnx", ".plan"))}

    @classmethod
    def parse(cls, text: str, where: Path) -> Manifest:
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
            manifest = cls(geometry=Geometry(**geometry), audio=audio, **data)
            check_manifest(manifest)
            return manifest
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise BundleCorruptError(f"{where}: {error}", fix=REBUILD) from error

    def fields(self) -> dict[str, Any]:
        """For JSON; `plans` only where there are any."""
        return {name: value for name, value in asdict(self).items() if name != "plans" or value is not None}

    def dump(self) -> str:
        return json.dumps(self.fields(), indent=2) + "\n"


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
        path = cls.find(source)
        return reading(path, lambda text: cls.parse(path, text, verify=verify))

    @staticmethod
    def find(source: str | os.PathLike[str]) -> Path:
        """The folder of a bundle, given by path or by a shipped name. Raises BundleNotFoundError."""
        path = Path(source)
        try:
            if (path / MANIFEST).is_file():
                return path
        except (OSError, ValueError) as error:  # too long a name, or a null byte in it
            raise BundleNotFoundError(f"no bundle at {str(path)[:200]!r}: {error}", fix="check the path") from error
        shipped = SHIPPED / str(source)
        if path.name == str(source) and (shipped / MANIFEST).is_file():
            return shipped
        names = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{MANIFEST}")))
        raise BundleNotFoundError(
            f"no bundle at {path}",
            expected=f"a folder with {MANIFEST}, or the name of a shipped bundle ({names})",
            fix="lipstream export --help",
        )

    @classmethod
    def parse(cls, path: Path, text: str, *, verify: bool) -> Bundle:
        """The bundle in folder `path` whose manifest reads `text`, checked. Raises as `load`."""
        bundle = cls(path, Manifest.parse(text, path / MANIFEST))
        bundle.check(hashes=verify)
        return bundle

    def check(self, *, hashes: bool) -> None:
        """Compare the files with the manifest and with each other.

        Names and sizes, with `hashes` their SHA-256 too; that nothing else lies in the folder and no graph names a
        file outside the manifest; that graphs and constants have the shapes that the manifest's sizes ask for.

        Raises:
            BundleCorruptError: what was found and what was expected.
        """
        listed = self.manifest.files
        for name, expected in listed.items():
            path = self.path / name
            if not path.is_file():
                raise BundleCorruptError(f"{path} is missing", expected="every file of the manifest", fix=self._again)
            found: dict[str, Any] = {"bytes": path.stat().st_size}
            if hashes and found["bytes"] == expected["bytes"]:
                found["sha256"] = sha256(path)
            if any(expected[key] != value for key, value in found.items()):
                raise BundleCorruptError(f"{path} has {found}", expected=f"{expected} (manifest)", fix=self._again)
        if extra := unlisted(self.path, self.manifest):
            raise BundleCorruptError(
                f"{self.path} holds {', '.join(extra[:5])}", expected="the files of its manifest alone", fix=REBUILD
            )
        try:
            for name in listed:
                if name.endswith(".onnx"):
                    try:
                        header = read_header(self.path / name)
                    except ValueError as error:
                        raise ValueError(f"{name} is no ONNX graph: {error}") from error
                    if foreign := header.external - {*listed}:
                        raise ValueError(f"{name} has weights in {sorted(foreign)}, which the manifest does not list")
                    check_graph(self.manifest, name.removesuffix(".onnx"), header)
            if CONSTANTS in listed:
                check_constants(self.manifest, self.constants)
        except (ValueError, OSError, RecursionError) as error:
            raise BundleCorruptError(f"{self.path}: {error}", fix=REBUILD) from error

    @property
    def _again(self) -> str:
        """The command that makes this bundle anew."""
        plans = self.manifest.plans
        return f"lipstream build BUNDLE --recipe {plans.recipe} -o {self.path}" if plans else REBUILD

    @cached_property
    def constants(self) -> dict[str, NDArray[np.float32]]:
        """Tensors computed once for all streams, by name."""
        try:
            return load_file(self.path / CONSTANTS)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleCorruptError(f"{self.path / CONSTANTS} cannot be read: {error}", fix=REBUILD) from error

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        if name not in self.manifest.files:
            raise LipStreamInternalError(f"the manifest of {self.path} names no {name}")
        return self.path / name


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unlisted(path: Path, manifest: Manifest) -> list[str]:
    """What lies in the folder beside the manifest and its files; hidden files and those of `BESIDE` do not count."""
    known = {MANIFEST, *manifest.files, *BESIDE}
    return sorted(name for name in os.listdir(path) if name not in known and not name.startswith("."))


_ATTEMPTS = 50


def reading(path: Path, read: Callable[[str], _T]) -> _T:
    """What `read` makes of one whole bundle at `path`, though others may replace it meanwhile.

    `read` gets the manifest's text; where that has changed by the time it is done or fails, it is called again. Since
    a manifest holds the hashes of all files, an unchanged one means that the files were its own.

    Raises:
        BundleCorruptError: the manifest cannot be read, or the bundle is replaced all the time. And what `read` raises.
    """
    for _ in range(_ATTEMPTS):
        text = _manifest(path)
        try:
            result = read(text)
        except Exception:
            if _manifest(path) == text:
                raise
            continue
        if _manifest(path) == text:
            return result
    raise BundleCorruptError(f"{path} is replaced faster than it can be read", fix="stop what writes to it")


def _manifest(path: Path) -> str:
    try:
        return (path / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleCorruptError(f"{path / MANIFEST} cannot be read: {error}", fix=REBUILD) from error


@contextmanager
def writing(path: str | os.PathLike[str], manifest: Manifest) -> Iterator[Path]:
    """Write a bundle atomically: fill the folder this yields; it gets its manifest and takes the name `path` at last.

    A bundle of that name is replaced in one step; on an error nothing of the new one remains. Folders that a killed
    writer left beside it are removed.

    Raises:
        OutputError: the place cannot be written, or holds something that is not a bundle of ours and nothing else.
    """
    target = Path(path)
    _require_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Partial(target, folder=True)
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        folder = partial.path
        yield folder
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
        if odd := [name for name in files if not plain(name)]:
            raise LipStreamInternalError(f"{odd} are no names for files of a bundle")
        (folder / MANIFEST).write_text(Manifest(**{**vars(manifest), "files": files}).dump())
        _require_replaceable(target)
        try:
            replace_folder(folder, target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.remove()


def _require_replaceable(target: Path) -> None:
    """Raise OutputError unless `target` is free, an empty folder, or a bundle with nothing else in it."""
    if not target.exists() and not target.is_symlink():
        return
    refused = OutputError(
        f"{target} exists and is not a bundle", expected="no such folder, or a bundle", fix="choose another folder"
    )
    if target.is_symlink() or not target.is_dir():
        raise refused
    try:
        names = os.listdir(target)
        if not names:
            return
        manifest = Manifest.parse((target / MANIFEST).read_text(encoding="utf-8"), target / MANIFEST)
    except BundleVersionError as error:
        raise OutputError(
            f"{target} holds a bundle of another version", fix="delete it, or choose another folder"
        ) from error
    except (OSError, UnicodeDecodeError, BundleCorruptError) as error:
        raise refused from error
    if others := sorted({*names} - {MANIFEST, *manifest.files}):
        raise OutputError(
            f"{target} holds {', '.join(others[:5])} beside a bundle", fix="move that away, or choose another folder"
        )
