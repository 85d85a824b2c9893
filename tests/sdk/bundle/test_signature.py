"""Bundles are signed with Ed25519, and with `trust` refused unless one of the given keys has signed them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from lipstream import LipSyncEngine
from lipstream.bundle import MANIFEST, SHIPPED, SIGNATURE, Bundle, sign, writing
from lipstream.bundle.keys import new_key, public_keys
from lipstream.cli import main
from lipstream.errors import (
    BundleCorruptError,
    BundleUntrustedError,
    ConfigError,
    LipStreamError,
    MissingExtraError,
    OutputError,
)
from lipstream.server.settings import Settings

DOMAIN = b"lipstream bundle manifest\n"  # as docs/security.md says


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public key is in the file of that name with .pub."""
    new_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def signed(copy: Path, key: Path) -> Path:
    sign(copy, key)
    return copy


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def another(folder: Path) -> Path:
    new_key(folder / "another.pem")
    return folder / "another.pem"


def load(bundle: Path | str, *trusted: Path | str) -> Bundle:
    """As `LipSyncEngine.load` does it, without the graphs."""
    path = Bundle.find(bundle)
    text = (path / MANIFEST).read_bytes().decode()
    return Bundle.parse(path, text, verify=True, trusted=public_keys(trusted) if trusted else None)


def test_only_a_file_is_added(copy: Path, tiny: Path, key: Path) -> None:
    sign(copy, key)
    assert {*os.listdir(copy)} == {*os.listdir(tiny), SIGNATURE}
    for file in tiny.iterdir():
        assert (copy / file.name).read_bytes() == file.read_bytes()


def test_openssl_verifies_the_raw_files(signed: Path, key: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("openssl is not installed")
    fields = json.loads((signed / SIGNATURE).read_bytes())
    message, signature = tmp_path / "message", tmp_path / "raw"
    signature.write_bytes(base64.b64decode(fields["signature"]))
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", public(key), "-rawin", "-in", message, "-sigfile", signature]
    for content, right in (
        (DOMAIN + (signed / MANIFEST).read_bytes(), True),
        ((signed / MANIFEST).read_bytes(), False),
    ):
        message.write_bytes(content)
        done = subprocess.run([openssl, *map(str, verify)], capture_output=True, text=True, check=False)
        assert ("Verified Successfully" in done.stdout) == right, done.stderr
    der = subprocess.run(
        [openssl, "pkey", "-pubin", "-in", str(public(key)), "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert hashlib.sha256(der).hexdigest() == load(signed).signer


def test_cryptography_verifies_the_raw_files(signed: Path, key: Path) -> None:
    pair = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(pair, ed25519.Ed25519PrivateKey)
    fields = json.loads((signed / SIGNATURE).read_bytes())
    assert base64.b64decode(fields["key"]) == pair.public_key().public_bytes_raw()
    pair.public_key().verify(base64.b64decode(fields["signature"]), DOMAIN + (signed / MANIFEST).read_bytes())


def test_a_signed_bundle_is_accepted_by_its_key(signed: Path, key: Path, tmp_path: Path) -> None:
    assert load(signed).signer == load(signed, public(key)).signer
    other = public(another(tmp_path))
    assert load(signed, other, public(key).read_text()).signer
    LipSyncEngine.load(signed, threads=1, trust=public(key))
    LipSyncEngine.load(signed, threads=1, trust=[other, str(public(key))])


def test_a_bundle_without_a_signature_is_refused(copy: Path, key: Path) -> None:
    with pytest.raises(BundleUntrustedError, match=r"is not signed\n.*expected: signed by [0-9a-f]{64}\n") as caught:
        LipSyncEngine.load(copy, trust=public(key))
    assert f"lipstream sign {copy} --key KEY.pem" in str(caught.value)
    assert load(copy).signer is None


def test_the_signer_that_is_not_trusted_is_named(signed: Path, tmp_path: Path) -> None:
    other = public(another(tmp_path))
    with pytest.raises(BundleUntrustedError, match=f"is signed by {load(signed).signer}") as caught:
        LipSyncEngine.load(signed, trust=other)
    (wanted,) = public_keys(other)
    assert wanted != base64.b64decode(json.loads((signed / SIGNATURE).read_text())["key"])
    assert "expected: signed by" in str(caught.value)


def test_the_bundle_in_the_package_is_always_accepted(
    key: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LipSyncEngine.load("tiny", threads=1, trust=public(key))
    with pytest.raises(ConfigError, match="is in the package"):
        sign("tiny", key)
    assert not (SHIPPED / "tiny" / SIGNATURE).exists()
    copy.rename(tmp_path / "tiny")  # a folder that is found in place of it is another bundle
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleUntrustedError, match="is not signed"):
        LipSyncEngine.load("tiny", trust=public(key))


def test_signing_again_replaces_the_signature(signed: Path, key: Path, tmp_path: Path) -> None:
    other = another(tmp_path)
    sign(signed, other)
    load(signed, public(other))
    with pytest.raises(BundleUntrustedError):
        load(signed, public(key))
    assert [name for name in os.listdir(signed) if "sign" in name or name.startswith(".")] == [SIGNATURE]


def test_a_wrong_signature_is_replaced_by_signing(signed: Path, key: Path) -> None:
    (signed / SIGNATURE).write_text("nonsense")
    sign(signed, key)
    load(signed, public(key))


def test_what_is_damaged_is_not_signed(copy: Path, key: Path) -> None:
    flip(copy / "weights.bin", 1000)
    with pytest.raises(BundleCorruptError, match=r"weights\.bin"):
        sign(copy, key)
    assert not (copy / SIGNATURE).exists()


def test_a_bundle_that_is_written_again_is_unsigned(signed: Path, key: Path) -> None:
    with writing(signed, Bundle.load(signed).manifest) as folder:
        (folder / "weights.bin").write_bytes(b"new")
    assert load(signed).signer is None


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, "denoiser.onnx", "weights.bin"])
def test_one_flipped_bit(signed: Path, key: Path, name: str, trusted: bool) -> None:
    size = (signed / name).stat().st_size
    for position in {0, size // 3, size // 2, size - 2}:
        flip(signed / name, position)
        with pytest.raises(BundleCorruptError, match=name if name.endswith((".onnx", ".bin")) else SIGNATURE):
            load(signed, *[public(key)] * trusted)
        flip(signed / name, position)
    load(signed, public(key))


def test_white_space_and_line_ends_of_the_manifest_are_signed(signed: Path) -> None:
    """The numbers are the same; the bytes are not."""
    whole = (signed / MANIFEST).read_bytes()
    for changed in (whole.replace(b"\n", b"\r\n"), whole + b"\n"):
        (signed / MANIFEST).write_bytes(changed)
        with pytest.raises(BundleCorruptError, match="is not of this manifest"):
            Bundle.load(signed)


def test_the_signature_of_another_bundle(signed: Path, key: Path, tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["model"]["description"] = "another"
    (other / MANIFEST).write_text(json.dumps(manifest))
    shutil.copy(signed / SIGNATURE, other / SIGNATURE)
    for trusted in ([], [public(key)]):
        with pytest.raises(BundleCorruptError, match="is not of this manifest"):
            load(other, *trusted)


def test_a_key_in_place_of_the_signers(signed: Path, tmp_path: Path) -> None:
    fields = json.loads((signed / SIGNATURE).read_text())
    (other,) = public_keys(public(another(tmp_path)))
    (signed / SIGNATURE).write_text(json.dumps({**fields, "key": base64.b64encode(other).decode()}))
    with pytest.raises(BundleCorruptError, match="is not of this manifest"):
        load(signed, public(tmp_path / "another.pem"))


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda whole: json.dumps({**json.loads(whole), **fields}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-20],
        lambda whole: b"\xff" * 100,
        lambda whole: b"[" * 4000,
        lambda whole: b"[]",
        lambda whole: b"null",
        lambda whole: b"{}",
        lambda whole: whole + b" " * 5000,
        changed(more=1),
        changed(algorithm="none"),
        changed(key=""),
        changed(key=None),
        changed(key=["AAAA"]),
        changed(key="é"),
        changed(signature=base64.b64encode(bytes(63)).decode()),
        changed(signature=base64.b64encode(bytes(64)).decode()),
        changed(key=base64.b64encode(b"\xff" * 32).decode()),
        changed(signature="!" * 88),
    ],
)
def test_a_malformed_signature(signed: Path, key: Path, damage: Callable[[bytes], bytes]) -> None:
    (signed / SIGNATURE).write_bytes(damage((signed / SIGNATURE).read_bytes()))
    for trusted in ([], [public(key)]):
        with pytest.raises(BundleCorruptError, match=SIGNATURE) as caught:
            load(signed, *trusted)
        assert "lipstream sign" in caught.value.fix
        assert len(caught.value.found) < 1000


def test_a_huge_signature_is_not_read(signed: Path) -> None:
    os.truncate(signed / SIGNATURE, 1 << 40)  # sparse
    with pytest.raises(BundleCorruptError, match="larger than 4096 bytes"):
        load(signed)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "link to a device", "link to itself"])
def test_something_else_in_place_of_the_signature(signed: Path, key: Path, kind: str) -> None:
    file = signed / SIGNATURE
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"link to nothing": "gone", "link to a device": "/dev/zero"}.get(kind, SIGNATURE))
    with pytest.raises(LipStreamError) as caught:
        load(signed, public(key))
    assert isinstance(caught.value, BundleCorruptError | BundleUntrustedError)
    if kind in ("folder", "pipe", "link to a device"):  # which are not replaced by a file
        with pytest.raises(OutputError, match=SIGNATURE):
            sign(signed, key)
    else:
        sign(signed, key)
        assert not file.is_symlink()
        load(signed, public(key))


def test_a_link_to_a_signature_is_followed(signed: Path, key: Path, tmp_path: Path) -> None:
    """As in a cache of Hugging Face."""
    (signed / SIGNATURE).rename(tmp_path / "blob")
    (signed / SIGNATURE).symlink_to(tmp_path / "blob")
    load(signed, public(key))


def test_a_manifest_cannot_list_its_signature(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][SIGNATURE] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleCorruptError, match=f"lists {SIGNATURE}"):
        load(copy)


def test_trust_needs_the_hashes(signed: Path, key: Path) -> None:
    with pytest.raises(ConfigError, match="trust without verify"):
        LipSyncEngine.load(signed, trust=public(key), verify=False)


class TestKeys:
    def test_a_new_key_is_its_users_alone_and_replaces_nothing(self, key: Path, tmp_path: Path) -> None:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        before = key.read_bytes(), public(key).read_bytes()
        with pytest.raises(OutputError, match="exists"):
            new_key(key)
        assert (key.read_bytes(), public(key).read_bytes()) == before
        key.unlink()
        with pytest.raises(OutputError, match=r"\.pub exists"):  # and leaves no half of a pair
            new_key(key)
        assert not key.exists()
        (tmp_path / "link.pem").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="exists"):
            new_key(tmp_path / "link.pem")
        assert not (tmp_path / "elsewhere").exists()
        for place in (tmp_path / "none" / "key.pem", Path("a\0b"), tmp_path / ("x" * 300), tmp_path / ("x" * 253)):
            with pytest.raises(OutputError):
                new_key(place)
        assert not (tmp_path / ("x" * 253)).exists()

    def test_openssl_keys_work(self, copy: Path, tmp_path: Path) -> None:
        openssl = shutil.which("openssl")
        if not openssl:
            pytest.skip("openssl is not installed")
        pem, pub = str(tmp_path / "o.pem"), str(tmp_path / "o.pub")
        subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", pem], capture_output=True, check=True)
        subprocess.run([openssl, "pkey", "-in", pem, "-pubout", "-out", pub], capture_output=True, check=True)
        sign(copy, Path(pem))
        load(copy, Path(pub))

    @pytest.fixture
    def wrong(self, tmp_path: Path) -> dict[str, bytes]:
        pkcs8 = Encoding.PEM, PrivateFormat.PKCS8
        spki = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        large = rsa.generate_private_key(65537, 2048)
        curve = ec.generate_private_key(ec.SECP256R1())
        ours = ed25519.Ed25519PrivateKey.generate()
        return {
            "RSA": large.private_bytes(*pkcs8, NoEncryption()),
            "RSA pub": large.public_key().public_bytes(*spki),
            "EllipticCurve": curve.private_bytes(*pkcs8, NoEncryption()),
            "EllipticCurve pub": curve.public_key().public_bytes(*spki),
            "password": ours.private_bytes(*pkcs8, BestAvailableEncryption(b"secret")),
            "two": ours.public_key().public_bytes(*spki) * 2,
            "private": ours.private_bytes(*pkcs8, NoEncryption()),
            "public": ours.public_key().public_bytes(*spki),
            "nonsense": b"\xff\x00nonsense",
            "cut": ours.public_key().public_bytes(*spki)[:60],
            "empty": b"",
            "huge": b"x" * (1 << 17),
        }

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("RSA", "another kind: RSA"),
            ("EllipticCurve", "another kind: E"),
            ("password", "protected by a password"),
            ("public", "is a public key"),
            ("nonsense", "cannot be read as a private key"),
            ("empty", "cannot be read as a private key"),
            ("huge", "larger than"),
            ("none", "No such file"),
        ],
    )
    def test_wrong_keys_to_sign_with(
        self, copy: Path, tmp_path: Path, wrong: dict[str, bytes], name: str, said: str
    ) -> None:
        file = tmp_path / "wrong"
        if name in wrong:
            file.write_bytes(wrong[name])
        with pytest.raises(ConfigError, match=said):
            sign(copy, file)
        assert not (copy / SIGNATURE).exists()

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("RSA pub", "another kind: RSA"),
            ("EllipticCurve pub", "another kind: E"),
            ("private", "is a private key"),
            ("two", "several keys"),
            ("nonsense", "cannot be read as a public key"),
            ("cut", "cannot be read as a public key"),
            ("empty", "cannot be read as a public key"),
            ("huge", "larger than"),
            ("none", "No such file"),
        ],
    )
    def test_wrong_keys_to_trust(self, tmp_path: Path, wrong: dict[str, bytes], name: str, said: str) -> None:
        file = tmp_path / "wrong"
        if name in wrong:
            file.write_bytes(wrong[name])
        with pytest.raises(ConfigError, match=said):
            LipSyncEngine.load("tiny", trust=file)
        if wrong.get(name, b"").startswith(b"-----BEGIN"):
            with pytest.raises(ConfigError, match=said) as caught:
                LipSyncEngine.load("tiny", trust=wrong[name].decode())
            assert "BEGIN PRIVATE" not in str(caught.value)
            assert wrong[name].decode().split("\n")[1][20:40] not in str(caught.value)  # nothing of a secret is said

    @pytest.mark.parametrize("trust", [[], (), 5, [None], b"key", "a\0b", "-----BEGIN \udcff"])
    def test_what_is_no_key_at_all(self, trust: Any) -> None:
        with pytest.raises(ConfigError):
            LipSyncEngine.load("tiny", trust=trust)


class TestCommands:
    def run(self, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, Any, str]:
        status = main([*map(str, args), "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    def test_from_a_new_key_to_a_trusted_bundle(
        self, copy: Path, tmp_path: Path, media: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pem = tmp_path / "release.pem"
        status, made, _ = self.run(capsys, "sign", "--new-key", pem)
        assert status == 0
        assert made == {"key": str(pem), "public_key": f"{pem}.pub", "fingerprint": made["fingerprint"]}
        assert self.run(capsys, "inspect", copy)[1]["signed_by"] is None
        assert main(["inspect", str(copy)]) == 0
        assert "\n  not signed\n" in capsys.readouterr().out
        dub = ["run", media / "talk.mp4", "-o", tmp_path / "out.mp4", "--bundle", copy, "--threads", 1]
        status, answer, said = self.run(capsys, *dub, "--trust", f"{pem}.pub")
        assert status == BundleUntrustedError.exit_code
        assert answer["error"]["code"] == "bundle_untrusted"
        assert "is not signed" in said
        assert not (tmp_path / "out.mp4").exists()
        status, done, _ = self.run(capsys, "sign", copy, "--key", pem)
        assert (status, done) == (0, {"signature": str(copy / SIGNATURE), "signed_by": made["fingerprint"]})
        assert self.run(capsys, "inspect", copy)[1]["signed_by"] == made["fingerprint"]
        assert main(["inspect", str(copy)]) == 0
        assert f"\n  signed by {made['fingerprint']}\n" in capsys.readouterr().out
        other = public(another(tmp_path))
        status, made, _ = self.run(capsys, *dub, "--trust", other, "--trust", f"{pem}.pub")
        assert status == 0
        assert (tmp_path / "out.mp4").exists()

    @pytest.mark.parametrize("args", [[], ["copy"], ["--key", "k"], ["copy", "--new-key", "k"]])
    def test_wrong_usage(
        self, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        status, answer, _ = self.run(capsys, "sign", *args)
        assert (status, answer["error"]["code"]) == (2, "usage")
        assert not [*tmp_path.iterdir()]

    def test_a_server_takes_the_keys(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Settings] = []
        monkeypatch.setattr("lipstream.server.command.serve", seen.append)
        assert main(["serve"]) == main(["serve", "--trust", str(public(key)), "--trust", "b"]) == 0
        assert [settings.trust for settings in seen] == [(), (str(public(key)), "b")]


WITHOUT = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from lipstream.bundle import Bundle
from lipstream.bundle.keys import public_keys
from lipstream.cli import main
"""


def test_without_the_extra(copy: Path, key: Path) -> None:
    """An unsigned bundle loads; a signed one, a key to trust, and signing name the extra."""

    def python(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False)

    done = python(f"print(Bundle.load({str(copy)!r}).signer)")
    assert done.stdout == "None\n", done.stderr
    named = [f"['sign', {str(copy)!r}, '--key', {str(key)!r}]", f"['sign', '--new-key', {str(key) + 'x'!r}]"]
    sign(copy, key)
    for arguments in (*named, f"['inspect', {str(copy)!r}]"):
        done = python(f"sys.exit(main({arguments}))")
        assert done.returncode == MissingExtraError.exit_code, done.stderr
        assert "pip install 'lipstream[sign]'" in done.stderr
    done = python(f"public_keys({str(public(key))!r})")
    assert "MissingExtraError" in done.stderr
