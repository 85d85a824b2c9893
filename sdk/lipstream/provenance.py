"""Provenance of a dubbed file: a signed C2PA manifest in the file, or a JSON file beside it.

In the IPTC's terms, a generated mouth in a filmed face is a composite with trained algorithmic media.
C2PA needs `lipstream[provenance]`. Both are made while the file has still its hidden name: a file that is there is
labelled.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .atomic import check_target
from .bundle import MANIFEST, Bundle, sha256
from .errors import BundleCorruptError, ConfigError, MediaOpenError, MissingExtraError, OutputError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
FORMATS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")


class Sources:
    """The input files of a dub, seen before it begins.

    Args:
        video, audio: their paths; `audio` None for the sound of the video.
    """

    def __init__(self, video: Path, audio: Path | None) -> None:
        self._paths = {"video": video} | ({"audio": audio} if audio is not None else {})
        self._seen = {role: _identity(path) for role, path in self._paths.items()}

    def hashes(self) -> dict[str, dict[str, str]]:
        """Name and SHA-256 of each, by "video" and "audio".

        Raises:
            MediaOpenError: one is not the file any more that it was, or has changed.
        """
        found = {}
        for role, path in self._paths.items():
            try:
                found[role] = {"name": path.name, "sha256": sha256(path)}
                same = _identity(path) == self._seen[role]
            except OSError:
                same = False
            if not same:
                raise MediaOpenError(f"{path} has changed while it was read", fix="run the command again")
        return found


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when a file is replaced or written to; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def model(bundle: str | os.PathLike[str]) -> dict[str, str]:
    """Name of a bundle's folder and SHA-256 of its manifest, as they are now.

    Raises:
        BundleNotFoundError: see `Bundle.find`. BundleCorruptError: the manifest cannot be read.
    """
    folder = Bundle.find(bundle)
    try:
        return {"bundle": folder.name, "manifest_sha256": sha256(folder / MANIFEST)}
    except OSError as error:
        raise BundleCorruptError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error


def record(model: dict[str, str], sources: Sources) -> dict[str, Any]:
    """The provenance record: program, model and sources, by name and SHA-256.

    Raises:
        MediaOpenError: see `Sources.hashes`.
    """
    return {
        "statement": "The mouth in this video is generated.",
        "digital_source_type": SOURCE_TYPE,
        "made_with": {"name": "LipStream", "version": version("lipstream")},
        "model": model,
        "sources": sources.hashes(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def sidecar(output: Path) -> Path:
    """Path of the JSON file for a dubbed file: OUT.mp4 -> OUT.mp4.provenance.json."""
    return output.with_name(f"{output.name}.provenance.json")


def check_sidecar(output: Path) -> None:
    """Raise OutputError if the JSON file cannot get its name; for use before the work."""
    try:
        check_target(sidecar(output))
    except OSError as error:
        raise OutputError(
            f"{sidecar(output).name} cannot be written: {error.strerror}",
            expected="room for .provenance.json in 255 bytes, and nothing else of that name",
            fix="choose a shorter name for the output, or --no-sidecar",
        ) from error


def sidecar_of(finished: Path, made: dict[str, Any]) -> bytes:
    """Content of the JSON file for a finished file: the record, and the file's SHA-256."""
    return (json.dumps({**made, "sha256": sha256(finished)}, indent=2) + "\n").encode()


class Signer:
    """Signs with a certificate chain (leaf first) and its private key, PEM files; tested before the dub begins.

    Raises:
        MissingExtraError: c2pa-python is not installed. ConfigError: the files cannot be read, or cannot sign; or the
            format of `output` cannot be signed.
    """

    def __init__(self, certificate: Path, key: Path, output: Path, algorithm: str = "es256") -> None:
        try:
            import c2pa
        except ImportError as error:
            raise MissingExtraError(
                f"signing needs the module {error.name!r}, which is not installed",
                fix="pip install 'lipstream[provenance]'",
            ) from error
        if output.suffix.lower() not in FORMATS:
            raise ConfigError(f"{output.suffix or output.name} cannot be signed", expected=", ".join(FORMATS))
        try:
            chain, secret = certificate.read_bytes(), key.read_bytes()
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}", expected="PEM files") from error
        self._format = FORMATS[output.suffix.lower()]
        try:
            # ta_url None: no time stamp is requested from a server.
            info = c2pa.C2paSignerInfo(algorithm.encode(), chain, secret, None)
            self._signer = c2pa.Signer.from_info(info)
            _, picture = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
            probe = io.BytesIO(picture.tobytes())  # errors in the key or the chain appear only when signing
            c2pa.Builder(json.dumps(_manifest("probe", "", {}))).sign(self._signer, "image/jpeg", probe, io.BytesIO())
        except Exception as error:  # the library's errors share no base class but Exception
            raise ConfigError(
                f"{certificate} and {key} cannot sign: {error}",
                expected=f"a certificate chain and the private key of its first certificate, for {algorithm}",
                fix="see https://opensource.contentauthenticity.org/docs/signing/prod-cert",
            ) from error

    def sign(self, finished: Path, title: str, made: dict[str, Any]) -> None:
        """Add a signed manifest to a finished file, in place, since its writer holds the lock of this very file.

        Args:
            title: the name that the file will have.

        Raises:
            OSError: the disk is full. ConfigError: the certificate is not one for signing media.
        """
        import c2pa

        manifest = _manifest(title, made["made_at"], made)
        with finished.open("r+b") as file, tempfile.TemporaryFile(dir=finished.parent) as signed:
            try:
                c2pa.Builder(json.dumps(manifest)).sign(self._signer, self._format, file, signed)
            except Exception as error:
                raise ConfigError(
                    f"{title} cannot be signed: {error}",
                    expected="a certificate with digitalSignature and emailProtection, chain included",
                ) from error
            signed.seek(0)
            file.seek(0)
            shutil.copyfileobj(signed, file, 1 << 20)
            file.truncate()


def _manifest(title: str, when: str, made: dict[str, Any]) -> dict[str, Any]:
    agent = {"name": "LipStream", "version": version("lipstream")}
    action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
    if when:
        action |= {"when": when, "description": made["statement"]}
    return {
        "claim_generator_info": [agent],
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": "org.lipstream.dub", "data": made},
        ],
    }
