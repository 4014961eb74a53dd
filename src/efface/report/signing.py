"""Signatures with a local Ed25519 key, in a DSSE envelope.

The envelope and its pre-authentication encoding follow the DSSE specification, version 1.0.2
(secure-systems-lab/dsse). Two things are stricter here: the file is in canonical form, and base64 has one
spelling only, so that no bit of the file can change unseen. The envelope carries the public key; that key
proves nothing about who signed, until it is compared with one that was received on another way.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from efface.errors import CheckFailed, RunError
from efface.run.digests import canonical, digest_bytes
from efface.run.files import write_bytes
from efface.run.home import read_secret, refuse_inside_run, write_secret
from efface.run.locks import locked

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def pae(payload_type: str, body: bytes) -> bytes:
    """The bytes that are signed: type and body with their lengths, so that neither can pass for the other."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the public key (DER, SubjectPublicKeyInfo), as `sha256:<hex>`."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return digest_bytes(der)


def make_key_pair(path: Path) -> Path:
    """Make a key pair: the private key at `path` (PKCS8 PEM, mode 0600), the public one at `<path>.pub`.

    Returns:
        The path of the public key.

    Raises:
        RunError: there is a file already, or the path lies inside a run folder.
    """
    target = refuse_inside_run(path, "the signing key")
    public = target.with_name(target.name + ".pub")
    with locked(target):
        for old in (target, public):
            if old.exists():
                raise RunError(f"{old} exists already", "a new path", "keys are never overwritten; choose another name")
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(target, pem)
        write_bytes(public, _pem(key.public_key()))
    return public


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        RunError: absent, readable by others, inside a run folder, under a passphrase, or no Ed25519 key.
    """
    target = refuse_inside_run(path, "the signing key")
    data = read_secret(target, "the signing key")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise RunError(f"{target} is protected by a passphrase", "an Ed25519 key in PEM form without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RunError(f"{target} is not a private key", "an Ed25519 key in PEM form (PKCS8)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RunError(f"{target} holds another kind of key", "an Ed25519 private key")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        RunError: absent, or no Ed25519 public key.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RunError(
            f"cannot read the public key {path} ({error.strerror or error})", None, "check the path"
        ) from error
    return _parse_public(data, str(path))


def _parse_public(data: bytes, where: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "give the file that ends in .pub" if b"PRIVATE KEY" in data else None
        raise RunError(f"{where} is not a public key", "an Ed25519 public key in PEM form", hint) from error
    if not isinstance(key, Ed25519PublicKey):
        raise RunError(f"{where} holds another kind of key", "an Ed25519 public key in PEM form")
    return key


def sign(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope over `payload` (an in-toto Statement), as the bytes of its file."""
    public = key.public_key()
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    entry = {"keyid": key_id(public), "public_key": _pem(public).decode("ascii"), "sig": _base64(signature)}
    return canonical({"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [entry]})


@dataclass(frozen=True)
class Signed:
    """A verified envelope: what was signed, by which key, and whether that key was the trusted one."""

    payload: bytes
    key_id: str
    trusted: bool


def verify(envelope: bytes, trusted: Ed25519PublicKey | None = None) -> Signed:
    """Check an envelope's form and signature.

    Args:
        envelope: the bytes of its file.
        trusted: the key that must have signed. Without it the embedded key is used, and `trusted` is False in
            the answer.

    Raises:
        CheckFailed: changed, signed by another key, or the signature does not fit.
    """
    try:
        body = json.loads(envelope.decode("utf-8"))
        if canonical(body) != envelope:
            raise CheckFailed("the envelope is not in canonical form: it was changed after it was signed")
        payload, name, sig, pem = _fields(body)
        public = _parse_public(pem.encode("ascii"), "the embedded key")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RunError) as error:
        raise CheckFailed(f"the envelope was changed after it was signed ({error})") from error
    if name != key_id(public) or pem != _pem(public).decode("ascii"):
        raise CheckFailed("the envelope's key id and its key do not belong together: it was changed")
    if trusted is not None and key_id(trusted) != name:
        raise CheckFailed(f"signed by the key {name}, not by the trusted key {key_id(trusted)}")
    try:
        public.verify(sig, pae(PAYLOAD_TYPE, payload))
    except InvalidSignature as error:
        raise CheckFailed("the signature does not fit the content: one of them was changed") from error
    return Signed(payload, name, trusted is not None)


def _fields(body: Any) -> tuple[bytes, str, bytes, str]:
    if set(body) != {"payload", "payloadType", "signatures"} or body["payloadType"] != PAYLOAD_TYPE:
        raise ValueError(f"expected the fields of a DSSE envelope of type {PAYLOAD_TYPE}")
    (entry,) = body["signatures"]
    if set(entry) != {"keyid", "public_key", "sig"}:
        raise ValueError("expected one signature with keyid, public_key and sig")
    return _unbase64(body["payload"]), entry["keyid"], _unbase64(entry["sig"]), entry["public_key"]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if _base64(data) != text:  # unused bits of the last letter
        raise ValueError("base64 with a second spelling")
    return data
