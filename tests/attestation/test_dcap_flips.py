"""A change to a signed byte, and any bytes at all, end in one of our errors, never in claims."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.attestation.dcap import collateral as names
from aigovtool.attestation.dcap.collateral import (
    documents_from_json,
    documents_to_json,
    read_qe_identity,
    read_tcb_info,
)
from aigovtool.attestation.dcap.eventlog import replay
from aigovtool.attestation.dcap.quote import parse_quote
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.policy import parse_policy, write_policy
from aigovtool.attestation.simulated import ROOT_CA
from aigovtool.attestation.verify import verify
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    MalformedError,
    VerificationError,
)
from tests.attestation.simulation import (
    NOW,
    changed,
    evidence_of,
    honest_evidence,
    platform,
    policy,
)

QUOTE = honest_evidence().document("quote")
ENDORSEMENTS = platform().endorsements(NOW)
SAMPLES = 150  # flips of a document; with all of them the suite would run for minutes
# Reworded PEM is the same certificate, so only DER and signed text are flipped bytewise.
SIGNED = (
    names.ROOT_CA_CRL,
    names.PCK_CRL,
    names.TCB_INFO,
    names.TCB_INFO_SIGNATURE,
    names.QE_IDENTITY,
    names.QE_IDENTITY_SIGNATURE,
    ROOT_CA,
)


def flips(body: bytes, seed: str) -> Iterator[bytes]:
    """Yield copies of *body* with one bit flipped, at places drawn by *seed*."""
    places = random.Random(seed).sample(range(len(body)), min(SAMPLES, len(body)))
    for place in places:
        altered = bytearray(body)
        altered[place] ^= 1 << (place % 8)
        yield bytes(altered)


def refuses(evidence: Evidence, **documents: bytes) -> None:
    with pytest.raises((MalformedError, VerificationError)):
        verify(evidence, changed(ENDORSEMENTS, **documents), now=NOW)


def test_what_is_flipped_below_is_accepted_as_it_is() -> None:
    assert verify(evidence_of(QUOTE), ENDORSEMENTS, now=NOW).measurement


def test_flipped_header_and_body() -> None:
    signed = parse_quote(QUOTE).signed
    for altered in flips(signed, "body"):
        refuses(evidence_of(altered + QUOTE[len(signed) :]))


def test_flipped_signature_section() -> None:
    """All of it up to the certificates: signatures, keys, the quoting enclave's report."""
    quote = parse_quote(QUOTE)
    assert quote.pck_chain_pem is not None
    start, end = len(quote.signed), QUOTE.index(quote.pck_chain_pem)
    for altered in flips(QUOTE[start:end], "section"):
        refuses(evidence_of(QUOTE[:start] + altered + QUOTE[end:]))


@pytest.mark.parametrize("name", SIGNED)
def test_flipped_endorsement(name: str) -> None:
    for altered in flips(ENDORSEMENTS.document(name), name):
        refuses(evidence_of(QUOTE), **{name: altered})


@pytest.mark.parametrize("step", [7])
def test_every_cut_quote_is_malformed(step: int) -> None:
    for length in range(0, len(QUOTE), step):
        with pytest.raises(MalformedError):
            parse_quote(QUOTE[:length])


@given(st.binary(max_size=2000))
def test_any_bytes_as_quote(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_quote(data)


@given(st.integers(0, len(QUOTE) - 1), st.binary(min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_overwritten_quotes(place: int, patch: bytes) -> None:
    altered = QUOTE[:place] + patch + QUOTE[place + len(patch) :]
    try:
        claims = verify(evidence_of(altered), ENDORSEMENTS, now=NOW)
    except AIGovToolError:
        return
    assert claims == verify(evidence_of(QUOTE), ENDORSEMENTS, now=NOW)


@given(st.sampled_from(sorted(ENDORSEMENTS.documents)), st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_endorsement(name: str, data: bytes) -> None:
    refuses(evidence_of(QUOTE), **{name: data})


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["version", "id", "tcbLevels", "tcb", "issueDate", "fmspc", "imr", "digest"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON_LIKE | st.binary(max_size=200))
@settings(deadline=None)
def test_any_document_as_intels(value: object) -> None:
    text = value if isinstance(value, bytes) else documents_text(value)
    for read in (read_tcb_info, read_qe_identity, documents_from_json):
        with pytest.raises(MalformedError):
            read(text)
    with contextlib.suppress(MalformedError):
        assert replay(text, [bytes(48)] * 4) == ()


def documents_text(value: object) -> bytes:
    return json.dumps(value).encode()


@given(st.text(max_size=300) | st.binary(max_size=300).map(repr))
@settings(deadline=None)
def test_any_text_as_policy(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_policy(text.encode("utf-8", "surrogatepass"))


POLICY = write_policy(policy())


@given(st.integers(0, len(POLICY) - 1), st.text(min_size=1, max_size=10))
@settings(deadline=None)
def test_overwritten_policies(place: int, patch: str) -> None:
    altered = POLICY[:place] + patch + POLICY[place + len(patch) :]
    try:
        parsed = parse_policy(altered.encode("utf-8", "surrogatepass"))
    except ConfigurationError:
        return
    assert parse_policy(write_policy(parsed).encode()) == parsed


def test_collateral_as_json_comes_back() -> None:
    documents = {name: ENDORSEMENTS.document(name) for name in names.REQUIRED_DOCUMENTS}

    assert documents_from_json(documents_to_json(documents).encode()) == documents


def test_evidence_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(MalformedError):
        parse_quote(bytes(1 << 17))
    with pytest.raises(MalformedError):
        Evidence(tee=Tee.TDX, documents={"quote": bytes(2 << 20)})
