"""Provenance of a dubbed file, read by C2PA's reader."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from lipstream import LipSyncEngine, provenance
from lipstream.atomic import Partial, write_files
from lipstream.bundle import MANIFEST, Bundle
from lipstream.cli import main
from lipstream.errors import BundleCorruptError, OutputError
from lipstream.media import VideoReader


def name(common: str) -> x509.Name:
    pairs = (NameOID.COMMON_NAME, common), (NameOID.ORGANIZATION_NAME, "A test")
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in pairs])


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A chain of two certificates, and the key of its leaf."""
    folder = tmp_path_factory.mktemp("pem")
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    today = datetime.datetime.now(datetime.UTC)

    def certificate(subject: str, public: Any, *, ca: bool) -> x509.Certificate:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        usage |= {"digital_signature": not ca, "key_cert_sign": ca, "crl_sign": ca, "decipher_only": False}
        made = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - datetime.timedelta(days=1))
            .not_valid_after(today + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        )
        if not ca:
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return made.sign(root_key, hashes.SHA256())

    chain = certificate("leaf", key.public_key(), ca=False), certificate("root", root_key.public_key(), ca=True)
    (folder / "chain.pem").write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(private)
    return folder / "chain.pem", folder / "key.pem"


def run(media: Path, output: Path, *options: object) -> int:
    paths = media / "talk.mp4", media / "speech.wav", "-o", output
    return main([str(x) for x in ("run", *paths, "--quiet", "--threads", 1, *options)])


def test_a_signed_file_says_that_it_is_generated(media: Path, tmp_path: Path, pem: tuple[Path, Path]) -> None:
    out = tmp_path / "out.mp4"
    assert run(media, out, "--sign", *pem) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with out.open("rb") as file, c2pa.Reader("video/mp4", file) as reader:
        found = json.loads(reader.json())
        assert reader.get_validation_state() == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    actions = next(a for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert actions[0]["digitalSourceType"] == provenance.SOURCE_TYPE
    dub = next(a for a in manifest["assertions"] if a["label"] == "org.lipstream.dub")["data"]
    for role, source in (("video", "talk.mp4"), ("audio", "speech.wav")):
        wanted = hashlib.sha256((media / source).read_bytes()).hexdigest()
        assert dub["sources"][role] == {"name": source, "sha256": wanted}
    assert sum(1 for _ in VideoReader(out)) == 16  # it still plays

    changed = bytearray(out.read_bytes())
    changed[changed.index(b"mdat") + 400] ^= 1
    out.write_bytes(changed)
    with out.open("rb") as file, c2pa.Reader("video/mp4", file) as reader:
        assert reader.get_validation_state() == "Invalid"


def test_without_a_signature_there_is_a_json_file(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    assert run(media, out) == 0
    found = json.loads((tmp_path / "out.mp4.provenance.json").read_text())
    assert found["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert found["digital_source_type"] == provenance.SOURCE_TYPE
    assert found["model"]["bundle"] == "tiny"
    assert str(media) not in json.dumps(found)
    assert run(media, tmp_path / "bare.mp4", "--no-sidecar") == 0
    assert not (tmp_path / "bare.mp4.provenance.json").exists()


@pytest.mark.parametrize("case", ["no such file", "no certificate", "no such kind"])
def test_invalid_keys_are_reported_before_the_dub(
    case: str, media: Path, tmp_path: Path, pem: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chain, key = pem
    out = tmp_path / ("out.mkv" if case == "no such kind" else "out.mp4")
    if case == "no such file":
        key = tmp_path / "nothing.pem"
    elif case == "no certificate":
        chain = media / "speech.wav"
    assert run(media, out, "--sign", chain, key) == 3
    assert not any(tmp_path.iterdir())
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["replaced", "written to", "deleted"])
def test_a_source_that_changes_during_the_dub_is_an_error(
    how: str, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the record would name another file than the one that was dubbed."""
    folder, speech = tmp_path / "out", tmp_path / "speech.wav"
    folder.mkdir()
    shutil.copy(media / "speech.wav", speech)
    hashed = provenance.Sources.hashes

    def change(self: provenance.Sources) -> dict[str, dict[str, str]]:
        if how == "replaced":
            shutil.copy(speech, tmp_path / "other.wav")
            (tmp_path / "other.wav").replace(speech)
        elif how == "written to":
            with speech.open("ab") as file:
                file.write(b"more")
        else:
            speech.unlink()
        return hashed(self)

    monkeypatch.setattr(provenance.Sources, "hashes", change)
    arguments = ("run", media / "talk.mp4", speech, "-o", folder / "out.mp4", "--quiet", "--threads", 1)
    assert main([str(x) for x in arguments]) == 10
    assert "has changed" in capsys.readouterr().err
    assert not any(folder.iterdir())


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_the_record_names_the_bundle_that_was_loaded(
    how: str, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have its place when the dub ends."""
    bundle, out = shutil.copytree(Bundle.find("tiny"), tmp_path / "mine"), tmp_path / "out.mp4"
    loaded = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    record = provenance.record

    def change(*arguments: Any) -> dict[str, Any]:
        if how == "changed":
            (bundle / MANIFEST).write_text("{}")
        else:
            shutil.rmtree(bundle)
        return record(*arguments)

    monkeypatch.setattr(provenance, "record", change)
    assert run(media, out, "--bundle", bundle) == 0
    found = json.loads(provenance.sidecar(out).read_text())
    assert found["model"] == {"bundle": "mine", "manifest_sha256": loaded}


def test_a_bundle_that_may_not_be_read_is_no_bug(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provenance, "sha256", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    assert run(media, tmp_path / "out.mp4") == BundleCorruptError.exit_code
    assert "manifest.json cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", ["signed", "beside"])
def test_no_moment_shows_a_result_that_is_not_labelled(
    labelled: str, media: Path, tmp_path: Path, pem: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name appears when label, sheet and record are there; a kill before leaves none of them."""
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    options = ("--sheet", sheet, *(("--sign", *pem) if labelled == "signed" else ()))
    seen: list[set[str]] = []
    rename = Partial.replace_target

    def replace_target(self: Partial) -> None:
        if self.target == out and labelled == "signed":
            with self.path.open("rb") as file, c2pa.Reader("video/mp4", file) as reader:
                assert reader.get_validation_state() == "Valid"
        rename(self)
        seen.append({path.name for path in tmp_path.iterdir() if not path.name.startswith(".")})

    monkeypatch.setattr(Partial, "replace_target", replace_target)
    assert run(media, out, *options) == 0
    assert "out.mp4" not in seen[-2]
    assert seen[-1] == {"out.mp4", "sheet.png"} | ({"out.mp4.provenance.json"} if labelled == "beside" else set())


def test_a_sheet_that_cannot_be_written_leaves_nothing(media: Path, tmp_path: Path) -> None:
    """Here the folder of the sheet disappears during the dub."""
    gone = tmp_path / "gone"
    gone.mkdir()
    engine = LipSyncEngine.load("tiny", threads=1)

    def finish(finished: Path, frames: int) -> None:
        gone.rmdir()
        write_files({tmp_path / "record.json": b"{}", gone / "sheet.png": b"picture"})

    with pytest.raises(OutputError, match=r"sheet\.png cannot be written"):
        engine.dub(media / "talk.mp4", media / "speech.wav", tmp_path / "out.mp4", finish=finish)
    assert not any(tmp_path.iterdir())
