"""Signatures: made and checked by our commands, by OpenSSL, and never right for a changed file or another key."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from artifact_examples import example_artifact, forge_ledger
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from dpmepf.artifacts.audit_command import main as audit
from dpmepf.artifacts.errors import ArtifactExistsError
from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.artifacts.signature import (
    SignatureError,
    load_signing_key,
    load_verifying_key,
    sign_file,
    signature_file,
    verify_file,
)
from dpmepf.shared.errors import UsageError

FOR_AUDITORS = Path(__file__).resolve().parents[2] / "docs" / "FOR_AUDITORS.md"


def write_keys(folder: Path, name: str, encryption: KeySerializationEncryption | None = None) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def no_passphrase() -> str:
    raise AssertionError("a passphrase was asked for")


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed artifact and the public key."""
    artifact = tmp_path / "artifact.h5"
    write_artifact(artifact, example_artifact())
    private, public = write_keys(tmp_path, "custodian")
    sign_file(artifact, load_signing_key(private, ask_passphrase=no_passphrase))
    return artifact, public


def run_audit(*arguments: object) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments])


def test_the_audit_names_the_key_of_a_signed_artifact(signed: tuple[Path, Path]) -> None:
    artifact, public = signed
    fingerprint = verify_file(artifact, load_verifying_key(public))
    result = run_audit(artifact, "--verify-key", public)
    assert result.exit_code == 0, result.output
    assert fingerprint in result.stdout
    assert "cannot be told" not in result.stdout
    assert json.loads(run_audit(artifact, "--verify-key", public, "--json").stdout)["signed_by"] == fingerprint
    assert "cannot be told" in run_audit(artifact).stdout
    assert json.loads(run_audit(artifact, "--json").stdout)["signed_by"] is None


@pytest.mark.parametrize("change", ["no signature", "another key", "forged ledger", "one bit", "longer", "empty"])
def test_what_was_not_signed_so_is_refused(change: str, signed: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, public = signed
    signature = signature_file(artifact)
    match change:
        case "no signature":
            signature.unlink()
        case "another key":
            _, public = write_keys(tmp_path, "other")
        case "forged ledger":
            forge_ledger(artifact, dataset_name="other")
        case "one bit":
            content = signature.read_bytes()
            signature.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "longer":
            signature.write_bytes(signature.read_bytes() + b"\n")
        case "empty":
            signature.write_bytes(b"")
    with pytest.raises(SignatureError):
        verify_file(artifact, load_verifying_key(public))
    result = run_audit(artifact, "--verify-key", public)
    assert result.exit_code == 1
    assert "sign" in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_checks_it_as_the_auditors_page_says(signed: tuple[Path, Path]) -> None:
    artifact, _ = signed
    (command,) = re.findall(r"^openssl pkeyutl .*$", FOR_AUDITORS.read_text("utf-8"), flags=re.MULTILINE)
    result = subprocess.run(command.split(), cwd=artifact.parent, capture_output=True, text=True, check=False)
    assert (result.returncode, "Success" in result.stdout) == (0, True), result.stderr
    forge_ledger(artifact, dataset_name="other")
    assert subprocess.run(command.split(), cwd=artifact.parent, capture_output=True, check=False).returncode != 0


def test_an_encrypted_key_asks_for_its_passphrase(tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "custodian", BestAvailableEncryption(b"secret"))
    load_signing_key(private, ask_passphrase=lambda: "secret")
    with pytest.raises(UsageError, match="holds no Ed25519 private key"):
        load_signing_key(private, ask_passphrase=lambda: "wrong")


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "custodian")
    other = tmp_path / "ecdsa.pem"
    key = generate_private_key(SECP256R1())
    other.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = tmp_path / "text.pem"
    text.write_text("no key")
    for path in (public, other, text, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            load_signing_key(path, ask_passphrase=no_passphrase)
    for path in (private, other, text, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            load_verifying_key(path)


def test_a_signature_is_not_replaced_unasked(signed: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = signed
    key = load_signing_key(tmp_path / "custodian.pem", ask_passphrase=no_passphrase)
    with pytest.raises(ArtifactExistsError):
        sign_file(artifact, key)
    sign_file(artifact, key, force=True)
