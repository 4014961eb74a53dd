"""Signatures: the published encoding, one spelling of every byte, keys that are not overwritten."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from efface.errors import CheckFailed, RunError
from efface.report.signing import (
    PAYLOAD_TYPE,
    key_id,
    load_private_key,
    load_public_key,
    make_key_pair,
    pae,
    sign,
    verify,
)
from efface.run.digests import canonical

PAYLOAD = b'{"_type":"t"}'


def test_encoding_is_the_published_one() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_pair_is_made_saved_and_used(tmp_path: Path) -> None:
    public = make_key_pair(tmp_path / "signing.key")
    assert public == tmp_path / "signing.key.pub"
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in (tmp_path / "signing.key").read_bytes()
    assert b"PRIVATE" not in public.read_bytes()
    envelope = sign(PAYLOAD, load_private_key(tmp_path / "signing.key"))
    trusted = load_public_key(public)
    signed = verify(envelope, trusted)
    assert (signed.payload, signed.key_id, signed.trusted) == (PAYLOAD, key_id(trusted), True)
    assert verify(envelope).trusted is False
    body = json.loads(envelope)
    assert body["payloadType"] == "application/vnd.in-toto+json" == PAYLOAD_TYPE


def test_no_bit_of_the_envelope_can_change() -> None:
    envelope = sign(PAYLOAD, Ed25519PrivateKey.generate())
    for position in range(len(envelope)):
        changed = bytearray(envelope)
        changed[position] ^= 1 << random.Random(position).randrange(8)
        with pytest.raises(CheckFailed):
            verify(bytes(changed))


def test_another_key_and_another_payload_fail() -> None:
    mine, theirs = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    with pytest.raises(CheckFailed, match="not by the trusted key"):
        verify(sign(PAYLOAD, theirs), mine.public_key())
    body, other = json.loads(sign(PAYLOAD, mine)), json.loads(sign(b"other", mine))
    body["payload"] = other["payload"]
    with pytest.raises(CheckFailed, match="does not fit"):
        verify(canonical(body))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"signatures":[]}'])
def test_garbage_fails_the_check(data: bytes) -> None:
    with pytest.raises(CheckFailed):
        verify(data)


def test_a_second_signature_or_an_unknown_field_fails() -> None:
    body = json.loads(sign(PAYLOAD, Ed25519PrivateKey.generate()))
    for wrong in ({**body, "signatures": body["signatures"] * 2}, {**body, "more": 1}):
        with pytest.raises(CheckFailed, match="changed after it was signed"):
            verify(canonical(wrong))


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_key_pair(tmp_path / "signing.key")
    before = (tmp_path / "signing.key").read_bytes()
    with pytest.raises(RunError, match="exists already"):
        make_key_pair(tmp_path / "signing.key")
    assert (tmp_path / "signing.key").read_bytes() == before


def test_bad_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the signing key is not at"):
        load_private_key(tmp_path / "absent")
    with pytest.raises(RunError, match="cannot read the public key"):
        load_public_key(tmp_path / "absent")
    make_key_pair(tmp_path / "good.key")
    with pytest.raises(RunError, match=r"give the file that ends in \.pub"):
        load_public_key(tmp_path / "good.key")
    (tmp_path / "good.key").chmod(0o640)
    with pytest.raises(RunError, match="can be read by others"):
        load_private_key(tmp_path / "good.key")
    cases = {
        "garbage": b"not a key",
        "encrypted": Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        ),
        "elliptic": ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    words = {"garbage": "not a private key", "encrypted": "passphrase", "elliptic": "another kind of key"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
        with pytest.raises(RunError, match=words[name]):
            load_private_key(tmp_path / name)


def test_key_inside_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="inside the run folder"):
        make_key_pair(tmp_path / "signing.key")
