"""Signatures with a purpose, hybrid HPKE, and TLS that knows keys instead of names."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.crypto import hpke, tls
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import (
    SigningKey,
    format_public_key,
    parse_public_key,
    verify_signature,
)
from aigovtool.errors import MalformedError, VerificationError

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = SigningKey.from_seed(bytes(range(32)))
HPKE_KEY = hpke.HpkeKey()


def test_labels_are_all_different_and_hold_no_separator() -> None:
    values = [label.value for label in Label]
    assert len(set(values)) == len(values)
    assert not any(b"\0" in value for value in values)


@given(st.binary(max_size=200))
def test_signature_holds_for_its_purpose_and_no_other(payload: bytes) -> None:
    signature = KEY.sign(Label.RECEIPT, payload)
    verify_signature(KEY.public_key, Label.RECEIPT, payload, signature)
    with pytest.raises(VerificationError):
        verify_signature(KEY.public_key, Label.SETTLEMENT, payload, signature)
    with pytest.raises(VerificationError):
        verify_signature(KEY.public_key, Label.RECEIPT, payload + b"x", signature)


def test_label_and_payload_cannot_be_shifted_against_each_other() -> None:
    signature = KEY.sign(Label.RECEIPT, b"payload")
    with pytest.raises(VerificationError):
        verify_signature(KEY.public_key, Label.RECEIPT, b"\0payload", signature)


@pytest.mark.parametrize("length", [0, 63, 65])
def test_signature_of_a_wrong_length_is_untrue(length: int) -> None:
    with pytest.raises(VerificationError):
        verify_signature(KEY.public_key, Label.RECEIPT, b"payload", bytes(length))


@given(st.binary(min_size=32, max_size=32))
def test_public_key_text_round_trips(key: bytes) -> None:
    assert parse_public_key(format_public_key(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "rsa:" + "A" * 43,
        "ed25519:" + "A" * 42,
        "ed25519:" + "A" * 43 + "=",
        "ed25519:" + "A" * 42 + "B",  # same 32 bytes in a second spelling
        "ed25519:" + "é" * 43,
    ],
)
def test_public_key_text_has_one_spelling(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_public_key(text)


def test_hpke_opens_only_for_its_key_purpose_and_context() -> None:
    sealed = hpke.seal(HPKE_KEY.public_key, b"secret", Label.CONTENT_KEY_RELEASE, b"context")
    assert HPKE_KEY.open(sealed, Label.CONTENT_KEY_RELEASE, b"context") == b"secret"
    for key, label, context in (
        (hpke.HpkeKey(), Label.CONTENT_KEY_RELEASE, b"context"),
        (HPKE_KEY, Label.RECEIPT, b"context"),
        (HPKE_KEY, Label.CONTENT_KEY_RELEASE, b"contexT"),
    ):
        with pytest.raises(VerificationError):
            key.open(sealed, label, context)


def test_hpke_notices_any_changed_byte() -> None:
    sealed = hpke.seal(HPKE_KEY.public_key, b"secret", Label.CONTENT_KEY_RELEASE, b"")
    for position in range(0, len(sealed), 37):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(VerificationError):
            HPKE_KEY.open(bytes(changed), Label.CONTENT_KEY_RELEASE, b"")
    with pytest.raises(VerificationError):
        HPKE_KEY.open(sealed[:50], Label.CONTENT_KEY_RELEASE, b"")


@pytest.mark.parametrize("key", [b"", bytes(1215), b"\xff" * 1216])
def test_hpke_refuses_what_is_no_public_key(key: bytes) -> None:
    with pytest.raises(MalformedError):
        hpke.seal(key, b"secret", Label.CONTENT_KEY_RELEASE, b"")


def _received(identity: tls.TlsIdentity, anchor: bytes) -> tuple[bytes, bool]:
    """Send one request over TLS pinned to *anchor*; what the server read, and if it was sent."""
    here, there = socket.socketpair()
    read = bytearray()

    def serve() -> None:
        try:
            with tls.server_context(identity).wrap_socket(there, server_side=True) as server:
                read.extend(server.recv(100))
        except OSError:
            there.close()

    server = threading.Thread(target=serve)
    server.start()
    try:
        with tls.pinned_client_context(anchor).wrap_socket(here) as client:
            client.sendall(b"request")
        sent = True
    except ssl.SSLCertVerificationError:
        here.close()
        sent = False
    server.join(10)
    return bytes(read), sent


def test_pinned_enclave_gets_the_request() -> None:
    identity = tls.make_enclave_identity(now=datetime.now(UTC))
    assert _received(identity, identity.certificate_pem) == (b"request", True)


def test_another_enclave_key_gets_zero_bytes() -> None:
    now = datetime.now(UTC)
    genuine, other = tls.make_enclave_identity(now=now), tls.make_enclave_identity(now=now)
    assert _received(other, genuine.certificate_pem) == (b"", False)


def test_custodian_leaf_is_accepted_under_its_root_only() -> None:
    now = datetime.now(UTC)
    other = SigningKey.generate()
    root, other_root = (
        tls.make_custodian_root(KEY, now=now),
        tls.make_custodian_root(other, now=now),
    )
    identity = tls.make_custodian_identity(KEY, root, now=now)
    assert _received(identity, root) == (b"request", True)
    assert _received(identity, other_root) == (b"", False)


def test_root_holds_the_custodians_key() -> None:
    root = tls.make_custodian_root(KEY, now=NOW)
    assert tls.public_key_of_root(root) == KEY.public_key
    enclave = tls.make_enclave_identity(now=NOW)
    with pytest.raises(MalformedError):
        tls.public_key_of_root(enclave.certificate_pem)  # P-256
    with pytest.raises(MalformedError):
        tls.public_key_of_root(b"not a certificate")


def test_spki_digest_is_the_same_from_pem_and_der() -> None:
    identity = tls.make_enclave_identity(now=NOW)
    der = ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())
    assert tls.spki_sha256_of(identity.certificate_pem) == identity.spki_sha256
    assert tls.spki_sha256_of(der) == identity.spki_sha256


def test_unreadable_anchor_is_malformed() -> None:
    with pytest.raises(MalformedError):
        tls.pinned_client_context(b"\xff")
