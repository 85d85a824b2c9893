"""The signature of a bundle: Ed25519 over the exact bytes of its manifest, which has the hashes of all other files.

signature.json  {"algorithm": "ed25519", "key": public key, 32 bytes, "signature": 64 bytes}, the two in base64

What is signed is `DOMAIN` and then the manifest, so that no signature made for another purpose fits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import write_file
from ..errors import BundleCorruptError, BundleUntrustedError, OutputError
from .keys import KEY_BYTES, fingerprint, read_small, require_cryptography
from .manifest import SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN = b"lipstream bundle manifest\n"
_ALGORITHM = "ed25519"
_SIGNATURE_BYTES = 64
_LARGEST_FILE = 4096


def write_signature(folder: Path, manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign the contents of a manifest; the folder's older signature is replaced.

    Returns:
        The public key, 32 bytes.

    Raises:
        OutputError: the folder cannot be written.
    """
    public = key.public_key().public_bytes_raw()
    fields = {"key": public, "signature": key.sign(DOMAIN + manifest)}
    texts = {name: base64.b64encode(value).decode() for name, value in fields.items()}
    file = folder / SIGNATURE
    try:
        write_file(file, (json.dumps({"algorithm": _ALGORITHM, **texts}, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error
    return public


def check_signature(folder: Path, manifest: bytes, trusted: Collection[bytes] | None = None) -> str | None:
    """Verify the signature of a manifest's contents, if there is one.

    Args:
        trusted: public keys, 32 bytes each, of which one must have signed it; None to accept any key, or none.

    Returns:
        The fingerprint of the key that signed it; None if it is not signed.

    Raises:
        BundleCorruptError: there is a signature, which is malformed or wrong.
        BundleUntrustedError: it is not signed by one of the keys. MissingExtraError: there is a signature, and the
            package `cryptography` is not installed.
    """
    wanted = f"signed by {' or '.join(sorted(map(fingerprint, trusted)))}" if trusted else ""
    try:
        text = read_small(folder / SIGNATURE, _LARGEST_FILE)
    except FileNotFoundError:
        if trusted is None:
            return None
        raise BundleUntrustedError(
            f"{folder} is not signed", expected=wanted, fix=f"lipstream sign {folder} --key KEY.pem, if it is yours"
        ) from None
    except (OSError, ValueError) as error:
        raise _wrong(folder, f"cannot be read: {error}") from error
    try:
        fields = json.loads(text)
        if {*fields} != {"algorithm", "key", "signature"} or fields["algorithm"] != _ALGORITHM:
            raise ValueError(f"it has {text[:80]!r}")
        key, signature = (base64.b64decode(fields[name], validate=True) for name in ("key", "signature"))
        if (len(key), len(signature)) != (KEY_BYTES, _SIGNATURE_BYTES):
            raise ValueError(f"a key of {len(key)} bytes and a signature of {len(signature)}")
    except (ValueError, TypeError, RecursionError) as error:
        raise _wrong(folder, f"is not a signature: {error}") from error
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, DOMAIN + manifest)
    except (InvalidSignature, ValueError) as error:  # ValueError: no point of the curve
        raise _wrong(folder, "is not of this manifest: one of the two was changed") from error
    if trusted is not None and key not in trusted:
        raise BundleUntrustedError(
            f"{folder} is signed by {fingerprint(key)}",
            expected=wanted,
            fix="trust the public key of that signer, too, if you know it to be theirs",
        )
    return fingerprint(key)


def _wrong(folder: Path, what: str) -> BundleCorruptError:
    return BundleCorruptError(
        f"{folder / SIGNATURE} {what}",
        expected="the signature of its manifest",
        fix=f"get the bundle again; if it is yours: lipstream sign {folder} --key KEY.pem",
    )
