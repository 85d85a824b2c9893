"""The bundle: a folder with everything an engine needs, and the checks made when it is loaded.

manifest.json          sizes, geometry, schedule, and the SHA-256 of every other file
*.onnx, *.plan         one graph, or one engine, per file
weights.bin            weights that the graphs share
weights.json           position of each weight in weights.bin
constants.safetensors  tensors computed once for all streams: modulation, prompt K/V, masks, identity
signature.json         of manifest.json; only in a bundle that was signed
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..atomic import Partial, check_length, replace_folder
from ..checks import check_path
from ..errors import (
    BundleCorruptError,
    BundleNotFoundError,
    BundleVersionError,
    ConfigError,
    LipStreamInternalError,
    OutputError,
)
from .keys import fingerprint, private_key
from .manifest import CONSTANTS, MANIFEST, REBUILD, SIGNATURE, Manifest
from .memory import check_memory
from .onnx_header import OnnxHeader, read_header
from .signature import check_signature, write_signature
from .validate import check_constants, check_graph, parse_manifest, plain

SHIPPED = Path(__file__).parents[1] / "bundles"
BESIDE = ("README.md", "LICENSE", "NOTICE")
"""Files that a bundle may hold without listing them in its manifest; hidden files are allowed, too."""
_T = TypeVar("_T")


class Bundle:
    """A bundle on disk whose manifest has been read and whose files have been checked.

    Attributes:
        path: the folder. manifest: its contents. signer: fingerprint of the key that signed it, None if unsigned.
    """

    def __init__(self, path: Path, manifest: Manifest, signer: str | None = None) -> None:
        self.path, self.manifest, self.signer = path, manifest, signer

    @classmethod
    def load(cls, source: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open the bundle in folder `source`, or the shipped one of that name ("tiny").

        Args:
            verify: compare the SHA-256 of every file with the manifest (about a second for each 2 GB).

        Raises:
            BundleNotFoundError: neither a folder with a manifest nor a shipped name.
            BundleVersionError: written in another version of the format.
            BundleCorruptError: a file is missing or differs from what the manifest says, or a signature is wrong.
            MissingExtraError: it is signed, and `lipstream[sign]` is not installed.
        """
        path = cls.find(source)
        return reading(path, lambda text: cls.parse(path, text, verify=verify))

    def __repr__(self) -> str:
        return f"<Bundle {self.path}>"

    @staticmethod
    def find(source: str | os.PathLike[str]) -> Path:
        """The folder of a bundle, given by path or by a shipped name. Raises BundleNotFoundError, ConfigError."""
        check_path("bundle", source)
        path = Path(source)
        try:
            if (path / MANIFEST).is_file():
                return path
        except (OSError, ValueError) as error:  # the name is too long or holds a null byte
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
    def parse(cls, path: Path, text: str, *, verify: bool, trusted: Collection[bytes] | None = None) -> Bundle:
        """Check and return the bundle in folder `path` whose manifest has the contents `text`.

        Args:
            trusted: public keys, 32 bytes each, of which one must have signed it, unless it is in the package.

        Raises:
            BundleUntrustedError: it is not signed by one of these keys. Also what `load` raises.
        """
        signer = check_signature(path, text.encode(), None if path.parent == SHIPPED else trusted)
        bundle = cls(path, parse_manifest(text, path / MANIFEST), signer)
        bundle.check(hashes=verify)
        return bundle

    def check(self, *, hashes: bool) -> None:
        """Compare the files with the manifest and with each other.

        Checks names and sizes, with `hashes` also SHA-256; that the folder holds no other files and no graph refers to
        any; that graphs and constants have the shapes given by the manifest, and graphs need memory in proportion.

        Raises:
            BundleCorruptError: a check failed.
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
                f"{self.path} holds {', '.join(extra[:5])}", expected="only the files of its manifest", fix=REBUILD
            )
        headers: dict[str, OnnxHeader] = {}
        try:
            for name in listed:
                if name.endswith(".onnx"):
                    try:
                        header = read_header(self.path / name)
                    except ValueError as error:
                        raise ValueError(f"{name} is not an ONNX graph: {error}") from error
                    if foreign := header.external - {*listed}:
                        raise ValueError(f"{name} has weights in {sorted(foreign)}, which the manifest does not list")
                    check_graph(self.manifest, name.removesuffix(".onnx"), header)
                    headers[name] = header
            if CONSTANTS in listed:
                check_constants(self.manifest, self.constants)
            for name, header in headers.items():
                constants = self.constants if CONSTANTS in listed else {}
                check_memory(self.manifest, constants, name.removesuffix(".onnx"), header, self.path / name)
        except (ValueError, OSError, RecursionError) as error:
            raise BundleCorruptError(f"{self.path}: {error}", fix=REBUILD) from error

    @property
    def _again(self) -> str:
        """The command that rebuilds this bundle."""
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
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise LipStreamInternalError(f"the manifest of {self.path} does not list {name}")
        return self.path / name


def sign(source: str | os.PathLike[str], key: Path) -> tuple[Path, str]:
    """Check a bundle and all its hashes, and sign its manifest with the private key in the file `key`.

    Returns:
        The file of the signature, which replaces an older one, and the fingerprint of the key.

    Raises:
        ConfigError: of the key; or the bundle is in the package, which is trusted as it is.
        OutputError: the folder cannot be written. MissingExtraError. Also what `Bundle.load` raises.
    """
    secret, path = private_key(key), Bundle.find(source)
    if path.parent == SHIPPED:
        raise ConfigError(f"{source} is in the package, which needs no signature", expected="a folder of your own")

    def signed(text: str) -> str:
        Bundle(path, parse_manifest(text, path / MANIFEST)).check(hashes=True)
        return fingerprint(write_signature(path, text.encode(), secret))

    return path / SIGNATURE, reading(path, signed)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unlisted(path: Path, manifest: Manifest) -> list[str]:
    """Files in the folder that the manifest does not list, except hidden files and those of `BESIDE`."""
    known = {MANIFEST, SIGNATURE, *manifest.files, *BESIDE}
    return sorted(name for name in os.listdir(path) if name not in known and not name.startswith("."))


_ATTEMPTS = 50


def reading(path: Path, read: Callable[[str], _T]) -> _T:
    """Return `read(text of the manifest)` for the bundle at `path`, even if it is replaced meanwhile.

    If the manifest has changed when `read` returns or fails, `read` is called again. A manifest holds the hashes of all
    files, so if it is unchanged, all files belonged to it.

    Raises:
        BundleCorruptError: the manifest cannot be read, or the bundle is replaced again and again. Also what `read`
            raises.
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
    raise BundleCorruptError(f"{path} is replaced faster than it can be read", fix="stop the process that writes to it")


def _manifest(path: Path) -> str:
    try:
        return (path / MANIFEST).read_bytes().decode()  # without changed line ends: a signature is of the bytes
    except (OSError, UnicodeDecodeError) as error:
        raise BundleCorruptError(f"{path / MANIFEST} cannot be read: {error}", fix=REBUILD) from error


@contextmanager
def writing(path: str | os.PathLike[str], manifest: Manifest) -> Iterator[Path]:
    """Write a bundle atomically: yield a folder to fill, then add the manifest and rename the folder to `path`.

    An existing bundle is replaced in one step; after an error nothing of the new one remains. Folders that a killed
    writer left are removed.

    Raises:
        OutputError: `path` cannot be written, or is neither free nor a bundle without other files.
    """
    target = Path(path)
    require_replaceable(target)
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
            raise LipStreamInternalError(f"{odd} are not valid names of files in a bundle")
        (folder / MANIFEST).write_text(Manifest(**{**vars(manifest), "files": files}).dump())
        require_replaceable(target)
        try:
            replace_folder(folder, target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.remove()


def require_replaceable(target: Path) -> None:
    """Raise OutputError unless `target` is free, an empty folder, or a bundle without other files."""
    try:
        check_length(target)
        above = next(parent for parent in target.absolute().parents if parent.exists())
    except (OSError, ValueError) as error:  # a name that is too long, a null byte
        raise OutputError(f"{str(target)[:200]!r} cannot be written: {error}", fix="choose another folder") from error
    if not above.is_dir():
        raise OutputError(f"{above} is not a folder", expected="a path in a folder", fix="choose another folder")
    if not target.exists() and not target.is_symlink():
        return
    refused = OutputError(
        f"{target} exists and is not a bundle", expected="a path that is free, or a bundle", fix="choose another folder"
    )
    if target.is_symlink() or not target.is_dir():
        raise refused
    try:
        names = os.listdir(target)
        if not names:
            return
        manifest = parse_manifest((target / MANIFEST).read_text(encoding="utf-8"), target / MANIFEST)
    except BundleVersionError as error:
        raise OutputError(
            f"{target} holds a bundle of another version", fix="delete it, or choose another folder"
        ) from error
    except (OSError, UnicodeDecodeError, BundleCorruptError) as error:
        raise refused from error
    if others := sorted({*names} - {MANIFEST, SIGNATURE, *manifest.files}):
        raise OutputError(
            f"{target} holds {', '.join(others[:5])} beside a bundle", fix="move that away, or choose another folder"
        )
