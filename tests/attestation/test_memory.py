"""What verifications remember is true of bytes alone: never a time, never a refusal."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from aigovtool.attestation.x509chain import (
    MAX_CERTIFICATES_BYTES,
    REMEMBERED_LINKS,
    _check_link_remembering,
    fingerprint,
    load_certificates,
    verify_chain,
    verify_crl,
)
from aigovtool.errors import MalformedError, VerificationError
from tests.attestation.fake_vendors import DAY, NOW, certificate, crl, der

ROOT_KEY, CA_KEY, LEAF_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
ROOT = certificate("memory root", ROOT_KEY, "memory root", ROOT_KEY, ca=True)
CA = certificate("memory ca", CA_KEY, "memory root", ROOT_KEY, ca=True)
LEAF = certificate("memory leaf", LEAF_KEY, "memory ca", CA_KEY, ca=None, digital_signature=True)
PIN = frozenset({fingerprint(ROOT)})


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Each test begins as a new process does, whatever verified on this worker before it."""
    _check_link_remembering.cache_clear()


def judge(*chain: x509.Certificate, after: timedelta = timedelta()) -> None:
    verify_chain(chain, root_fingerprints=PIN, now=NOW + after)


def entries() -> int:
    return _check_link_remembering.cache_info().currsize


def test_a_chain_that_was_accepted_still_expires() -> None:
    judge(LEAF, CA, ROOT)

    with pytest.raises(VerificationError) as refused:
        judge(LEAF, CA, ROOT, after=10_000 * DAY)
    assert refused.value.reasons[0].code == "certificate.expired"
    judge(LEAF, CA, ROOT)


def test_a_list_that_was_accepted_still_expires() -> None:
    data = crl("memory root", ROOT_KEY)
    known = verify_crl(data, issuer=ROOT, now=NOW)

    with pytest.raises(VerificationError) as refused:
        verify_crl(data, issuer=ROOT, now=known.next_update + timedelta(seconds=1))
    assert refused.value.reasons[0].code == "crl.expired"


def test_certificates_of_machines_are_not_kept() -> None:
    judge(LEAF, CA, ROOT)
    before = _check_link_remembering.cache_info()

    judge(LEAF, CA, ROOT)

    after = _check_link_remembering.cache_info()
    assert (after.currsize, after.hits) == (before.currsize, before.hits + 2)  # CA and root alone


def test_a_refusal_is_judged_anew_and_not_kept() -> None:
    forged = certificate("memory ca", CA_KEY, "memory root", LEAF_KEY, ca=True)
    judge(LEAF, CA, ROOT)
    before = entries()

    for _ in range(2):
        with pytest.raises(VerificationError) as refused:
            judge(LEAF, forged, ROOT)
        assert refused.value.reasons[0].code == "certificate.signature"
    assert entries() == before


def test_a_stranger_under_a_genuine_root_is_not_kept() -> None:
    """Links are followed from the root down: nothing below a broken one is ever looked at."""
    stranger = certificate("memory ca", LEAF_KEY, "memory root", LEAF_KEY, ca=True)
    below = certificate("below", LEAF_KEY, "memory ca", LEAF_KEY, ca=True)

    with pytest.raises(VerificationError):
        judge(LEAF, below, stranger, ROOT)
    assert entries() == 1  # the pinned root, at this depth


def test_memory_is_bounded() -> None:
    assert _check_link_remembering.cache_info().maxsize == REMEMBERED_LINKS
    with pytest.raises(MalformedError, match="too large"):
        load_certificates(der(ROOT).ljust(MAX_CERTIFICATES_BYTES + 1, b"\0"), what="chain")
