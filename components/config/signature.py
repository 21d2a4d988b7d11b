"""Ed25519 signatures (RFC 8032) over canonical JSON: of a config's digests, and of decisions.

A key file is PEM: a private key signs, a public key (or the private one) verifies.
"""

import base64
import os
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import ConvergateError, UserError


class SignatureError(ConvergateError):
    """A signature does not match what it is said to sign."""


def generate_key(path: Path) -> None:
    """Write a new private key, readable by its owner alone.

    Raises:
        UserError: when the file exists; a key is never overwritten.
    """
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(pem)
    except FileExistsError as error:
        raise UserError(f"{path}: exists, and a key is never overwritten → another name for the new key") from error


def sign(value: Any, key_file: Path) -> str:
    """The base64 signature over the canonical JSON of `value`.

    Raises:
        UserError: when the file is no Ed25519 private key, or needs a password.
    """
    key = _load(key_file)
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{key_file}: a public key cannot sign → give the private key")
    return base64.b64encode(key.sign(rfc8785.dumps(value))).decode()


def verify(value: Any, signature: str, key_file: Path) -> None:
    """Check a signature over the canonical JSON of `value`.

    Raises:
        SignatureError: when it does not match.
        UserError: when the file is no Ed25519 key.
    """
    key = _load(key_file)
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    try:
        public.verify(base64.b64decode(signature, validate=True), rfc8785.dumps(value))
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            f"the signature does not match under {key_file}: the signed thing was changed, or another key signed it"
        ) from error


def _load(key_file: Path) -> Ed25519PrivateKey | Ed25519PublicKey:
    try:
        pem = key_file.read_bytes()
    except OSError as error:
        raise UserError(f"{key_file}: cannot be read: {error.strerror} → openssl genpkey -algorithm ed25519") from error
    try:
        key = (
            serialization.load_pem_private_key(pem, password=None)
            if b"PRIVATE" in pem
            else serialization.load_pem_public_key(pem)
        )
    except TypeError as error:
        raise UserError(f"{key_file}: is protected by a password → openssl pkey -in {key_file} -out FILE") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{key_file}: not a PEM key → openssl genpkey -algorithm ed25519") from error
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise UserError(f"{key_file}: not an Ed25519 key → openssl genpkey -algorithm ed25519")
    return key
