"""Ed25519 keys for bundles: made, read from PEM files, and named by their fingerprint.

Needs the package `cryptography` (`lipstream[sign]`), which is imported only where a signature or a key is handled.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, MissingExtraError, OutputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Trust = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One or more public keys: each the path of a PEM file, or its text."""
KEY_BYTES = 32
"""Length of an Ed25519 public key."""
NEW_KEY = "lipstream sign --new-key KEY.pem"
_LARGEST_FILE = 1 << 16
_DER_HEADER = bytes.fromhex("302a300506032b6570032100")  # of every Ed25519 public key (RFC 8410)
_BEGIN = "-----BEGIN "


def require_cryptography() -> None:
    """Raise MissingExtraError if the package `cryptography` is not installed."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"signatures of bundles need the module {error.name!r}, which is not installed",
            fix="pip install 'lipstream[sign]'",
        ) from error


def fingerprint(key: bytes) -> str:
    """SHA-256 of a public key of 32 bytes in DER, hexadecimal.

    It is what `openssl pkey -pubin -in KEY.pem.pub -outform DER | sha256sum` prints.
    """
    return hashlib.sha256(_DER_HEADER + key).hexdigest()


def public_keys(trust: Trust) -> frozenset[bytes]:
    """The Ed25519 public keys, 32 bytes each, of PEM files or their texts.

    Raises:
        ConfigError: none are given, a file cannot be read, or it is not one Ed25519 public key in PEM.
        MissingExtraError: the package `cryptography` is not installed.
    """
    sources = [trust] if isinstance(trust, str | os.PathLike) else trust
    if not isinstance(sources, Sequence) or not sources:
        raise ConfigError(f"trust={trust!r}", expected="one or more public keys: PEM files, or their texts")
    return frozenset(map(_public_key, sources))


def _public_key(source: object) -> bytes:
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"a key {source!r} in trust", expected="the path of a PEM file, or its text: str, os.PathLike"
        )
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if isinstance(source, str) and source.lstrip().startswith(_BEGIN):
        name, text = "the text of a key to trust", source.encode(errors="replace")
    else:
        name, text = str(source), _key_file(Path(source))
    expected = "one Ed25519 public key in PEM, which begins with -----BEGIN PUBLIC KEY-----"
    if b"PRIVATE KEY" in text:
        raise ConfigError(
            f"{name} is a private key, which only the signer needs", expected=expected, fix="give its public key: *.pub"
        )
    if text.count(_BEGIN.encode()) > 1:
        raise ConfigError(f"{name} has several keys", expected=expected, fix="give each on its own")
    try:
        key = load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{name} cannot be read as a public key", expected=expected, fix=NEW_KEY) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{name} is a key of another kind: {_kind(key)}", expected=expected, fix=NEW_KEY)
    return key.public_bytes_raw()


def private_key(file: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key of a PEM file (PKCS #8, without a password). Raises ConfigError, MissingExtraError."""
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _key_file(file)
    expected = "an Ed25519 private key in PEM (PKCS #8, without a password)"
    if b"PUBLIC KEY" in text:
        raise ConfigError(f"{file} is a public key", expected=expected, fix="give the private key of its pair")
    try:
        key = load_pem_private_key(text, password=None)
    except TypeError as error:  # what the library raises for one with a password
        raise ConfigError(
            f"{file} is protected by a password", expected=expected, fix=f"openssl pkey -in {file} -out KEY.pem"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file} cannot be read as a private key", expected=expected, fix=NEW_KEY) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{file} is a key of another kind: {_kind(key)}", expected=expected, fix=NEW_KEY)
    return key


def new_key(file: Path) -> tuple[Path, bytes]:
    """Write a new private key to `file`, readable by its user alone, and its public key to `file`.pub, both PEM.

    Returns:
        The file of the public key, and that key: 32 bytes.

    Raises:
        OutputError: one of the files exists, or cannot be written; neither is then left. MissingExtraError.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    public = file.with_name(f"{file.name}.pub")
    _create(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    try:
        _create(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    except OutputError:
        file.unlink(missing_ok=True)
        raise
    return public, key.public_key().public_bytes_raw()


def _create(file: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet. `atomic.write_file` would replace one: a key that is lost is lost."""
    try:
        with open(file, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as opened:
            try:
                opened.write(data)
                opened.flush()
            except BaseException:
                file.unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise OutputError(
            f"{file} exists", expected="a new file: keys are not replaced", fix="choose another"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise OutputError(f"{file} cannot be written: {error}", fix="choose another file") from error


def _key_file(file: Path) -> bytes:
    try:
        return read_small(file, _LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", expected="a key in PEM", fix=NEW_KEY) from error


def read_small(file: Path, most: int) -> bytes:
    """Contents of a regular file of at most `most` bytes; does not wait for the other end of a pipe.

    Raises:
        ValueError: it is larger, or no regular file. OSError: it cannot be read.
    """
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return data


def _kind(key: object) -> str:
    return type(key).__name__.replace("PublicKey", "").replace("PrivateKey", "").lstrip("_")
