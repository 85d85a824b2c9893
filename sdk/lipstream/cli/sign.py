"""`lipstream sign`: signatures of bundles, for `--trust`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .command import Command, Result, UsageError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder to sign; it gets signature.json")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--key", type=Path, metavar="KEY.pem", help="private key to sign with, Ed25519")
    which.add_argument(
        "--new-key",
        type=Path,
        metavar="KEY.pem",
        help="make a pair of keys: KEY.pem, to keep secret, and KEY.pem.pub, for --trust of those who run the bundle",
    )


def _run(args: argparse.Namespace) -> Result:
    from ..bundle import sign
    from ..bundle.keys import fingerprint, new_key

    if (args.bundle is None) != (args.key is None):
        raise UsageError(
            "lipstream sign without a bundle" if args.key else "a bundle to sign, and --new-key",
            fix="lipstream sign --new-key KEY.pem, then lipstream sign BUNDLE --key KEY.pem",
        )
    if args.new_key:
        public, key = new_key(args.new_key)
        args.written += [args.new_key, public]
        return Result(
            {"key": str(args.new_key), "public_key": str(public), "fingerprint": fingerprint(key)},
            f"{args.new_key}: the private key, without a password. Keep it secret.\n"
            f"{public}: the public key, for --trust\n  fingerprint {fingerprint(key)}",
        )
    file, signer = sign(args.bundle, args.key)
    args.written.append(file)
    return Result({"signature": str(file), "signed_by": signer}, f"{file}: signed by {signer}")


SIGN = Command(
    "sign",
    "sign a bundle",
    "Check a bundle and sign it, so that lipstream run --trust and lipstream serve --trust can tell who made it. Needs "
    "lipstream[sign].",
    _add_arguments,
    _run,
)
