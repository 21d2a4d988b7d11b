"""Ed25519 signatures over a config's digests, with real keys; OpenSSL's too."""

import base64
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convergate.components.config import RunConfig, config_digests
from convergate.components.config.signature import SignatureError, generate_key, sign, verify
from convergate.components.errors import ExitCode, UserError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Parsed = Callable[..., RunConfig]
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
PLAIN = serialization.NoEncryption()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "release.pem")
    return tmp_path / "release.pem"


@pytest.fixture
def public(key: Path) -> Path:
    loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
    path = key.with_suffix(".pub")
    path.write_bytes(loaded.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return path


def covered(config: RunConfig) -> dict[str, Any]:
    return config_digests(config).model_dump()


def test_what_was_signed_verifies_under_either_key(parsed: Parsed, key: Path, public: Path) -> None:
    signature = sign(covered(parsed()), key)
    verify(covered(parsed()), signature, key)
    verify(covered(parsed()), signature, public)
    assert len(base64.b64decode(signature)) == 64
    assert signature.isascii()
    assert signature.isprintable()


@pytest.mark.parametrize(("path", "value"), [("schedule.lr0", 0.2), ("slo.min_runs", 6), ("evaluation.target", 0.5)])
def test_a_changed_config_does_not_verify(parsed: Parsed, key: Path, public: Path, path: str, value: Any) -> None:
    signature = sign(covered(parsed()), key)
    with pytest.raises(SignatureError, match=f"does not match under {public}: the signed thing was changed"):
        verify(covered(parsed({path: value})), signature, public)


def test_a_key_at_its_default_and_the_seed_need_no_new_signature(parsed: Parsed, key: Path) -> None:
    signature = sign(covered(parsed()), key)
    verify(covered(parsed({"seed": 5, "schedule.lr_min": 0.0, "checkpoint.keep_last": 9})), signature, key)


def test_another_key_does_not_verify(parsed: Parsed, key: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "other.pem")
    assert (tmp_path / "other.pem").read_bytes() != key.read_bytes()
    with pytest.raises(SignatureError, match="another key signed it") as caught:
        verify(covered(parsed()), sign(covered(parsed()), tmp_path / "other.pem"), key)
    assert caught.value.exit_code == ExitCode.NEGATIVE


@pytest.mark.parametrize("broken", ["", "!", "ä", "AAAA", "A" * 88, "good+1", "flipped"])
def test_a_broken_signature_does_not_verify(parsed: Parsed, key: Path, broken: str) -> None:
    good = sign(covered(parsed()), key)
    flipped = bytearray(base64.b64decode(good))
    flipped[10] ^= 1
    text = {"good+1": good + "A", "flipped": base64.b64encode(flipped).decode()}.get(broken, broken)
    with pytest.raises(SignatureError):
        verify(covered(parsed()), text, key)


def test_what_is_signed_is_canonical(key: Path) -> None:
    signature = sign({"b": 1.0, "a": [1, "é"]}, key)
    verify({"a": [1.0, "é"], "b": 1}, signature, key)
    with pytest.raises(SignatureError):
        verify({"a": ["é", 1], "b": 1}, signature, key)


def test_a_key_is_readable_by_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "release.pem"
    before = os.umask(0)
    try:
        generate_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    with pytest.raises(UserError, match="release.pem: exists, and a key is never overwritten →"):
        generate_key(path)
    assert path.read_bytes() == content


def test_a_public_key_cannot_sign(parsed: Parsed, public: Path) -> None:
    with pytest.raises(UserError, match="a public key cannot sign → give the private key"):
        sign(covered(parsed()), public)


def rsa_key() -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(PEM, PKCS8, PLAIN)


def locked_key() -> bytes:
    encryption = serialization.BestAvailableEncryption(b"secret")
    return Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, encryption)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not a PEM key → openssl genpkey -algorithm ed25519"),
        (lambda: b"\x00\xff binary", "not a PEM key"),
        (lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a PEM key"),
        (lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a PEM key"),
        (rsa_key, "not an Ed25519 key → openssl genpkey -algorithm ed25519"),
        (locked_key, "is protected by a password → openssl pkey"),
    ],
)
def test_a_file_that_is_no_key(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(make())
    for attempt in (lambda: sign({}, path), lambda: verify({}, "AAAA", path)):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory → openssl"):
        sign({}, tmp_path)
    with pytest.raises(UserError, match="none.pem: cannot be read: No such file or directory → openssl"):
        verify({}, "AAAA", tmp_path / "none.pem")


def test_openssl_makes_keys_and_verifies_signatures(parsed: Parsed, tmp_path: Path) -> None:
    private, public, message, signature = (tmp_path / name for name in ("key.pem", "key.pub", "message", "signature"))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    digests = config_digests(parsed())
    signature.write_bytes(base64.b64decode(sign(digests.model_dump(), private)))
    message.write_text(f'{{"policy":"{digests.policy}","training":"{digests.training}"}}')
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message]
    checked = subprocess.run([*command, "-sigfile", signature], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    message.write_text(message.read_text().replace("policy", "Policy"))
    assert subprocess.run([*command, "-sigfile", signature], capture_output=True, check=False).returncode != 0
