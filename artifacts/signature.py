"""Signatures: who made an artifact. Ed25519 (RFC 8032) over the file's bytes, 64 bytes in a file beside it.

Nothing of ours is needed to check one:

    openssl pkeyutl -verify -pubin -inkey custodian.pub.pem -rawin -in artifact.h5 -sigfile artifact.h5.sig

The privacy guarantee does not rest on signatures. They tell that the holder of a key stands behind a file, which is the
only way to tell a consistent forgery.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from dpmepf.artifacts.atomic_file import check_writable_target, write_atomically
from dpmepf.artifacts.errors import ArtifactExistsError
from dpmepf.shared.errors import DpmepfError, UsageError

_LARGEST_KEY = 10_000  # bytes
_SIGNATURE_BYTES = 64


class SignatureError(DpmepfError):
    """An artifact that is not signed, or not by the key that was asked for."""


def load_signing_key(path: Path, *, ask_passphrase: Callable[[], str]) -> Ed25519PrivateKey:
    """Read a PEM file with an Ed25519 private key, as `openssl genpkey -algorithm ed25519` writes it.

    Args:
        path: the file.
        ask_passphrase: called if the key is encrypted.

    Raises:
        UsageError: there is no such file, or no such key in it, or the passphrase is wrong.
    """
    content = _read_key(path)
    try:
        try:
            key = load_pem_private_key(content, password=None)
        except TypeError:  # encrypted
            key = load_pem_private_key(content, password=ask_passphrase().encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{path} holds no Ed25519 private key in PEM form that this passphrase opens: openssl genpkey -algorithm "
            "ed25519 -out custodian.pem makes one"
        )
    return key


def load_verifying_key(path: Path) -> Ed25519PublicKey:
    """Read a PEM file with an Ed25519 public key, as `openssl pkey -pubout` writes it.

    Raises:
        UsageError: there is no such file, or no such key in it.
    """
    try:
        key = load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{path} holds no Ed25519 public key in PEM form: openssl pkey -in custodian.pem -pubout gives that of the "
            "private key custodian.pem"
        )
    return key


def signature_file(artifact: Path) -> Path:
    """Where the signature of the artifact at `artifact` lies."""
    return artifact.with_name(artifact.name + ".sig")


def check_signature_target(artifact: Path, *, force: bool) -> None:
    """Refuse, before there is an artifact, what `sign_file` would refuse, or would replace that is no signature.

    Raises:
        ArtifactExistsError, ArtifactWriteError: as `check_writable_target`.
    """
    target = signature_file(artifact)
    check_writable_target(target, force=force)
    if target.exists() and not _is_signature(target):
        raise ArtifactExistsError(f"{target} exists and is no signature: choose another --output")


def _is_signature(path: Path) -> bool:
    return path.is_file() and path.stat().st_size in (0, _SIGNATURE_BYTES)


def sign_file(artifact: Path, key: Ed25519PrivateKey, *, force: bool = False) -> Path:
    """Write the signature of the file at `artifact` beside it, and return its path.

    Raises:
        ArtifactExistsError, ArtifactWriteError: as `write_atomically`.
    """
    target = signature_file(artifact)
    write_atomically(target, key.sign(artifact.read_bytes()), force=force)
    return target


def remove_old_signature(artifact: Path) -> None:
    """Delete the signature beside an unsigned file that took the place of a signed one, which it does not belong to.

    What is no signature stays, for it is somebody's; so does one that cannot be deleted, which fails to verify.
    """
    with contextlib.suppress(OSError):
        if _is_signature(signature_file(artifact)):
            signature_file(artifact).unlink()


def verify_file(artifact: Path, key: Ed25519PublicKey) -> str:
    """Check the signature beside the file at `artifact`; return the key's fingerprint.

    Raises:
        SignatureError: there is none, or it is not that of this file by this key.
    """
    beside = signature_file(artifact)
    try:
        with beside.open("rb") as file:
            signature = file.read(_SIGNATURE_BYTES + 1)
    except OSError:
        raise SignatureError(f"{artifact} is not signed: {beside} is not there; ask its custodian for it") from None
    try:
        key.verify(signature, artifact.read_bytes())
    except InvalidSignature:
        raise SignatureError(
            f"{beside} is not the signature of {artifact} by the key {fingerprint(key)}: the file was changed, or "
            "signed by another key; ask its custodian"
        ) from None
    return fingerprint(key)


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's DER form, in hexadecimal: for comparing by telephone."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read ({error.strerror}): name a PEM file") from None
