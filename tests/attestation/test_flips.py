"""
For every recorded vector: a flipped byte is refused, and so is another chip's certificate.

Here some bytes of each document are flipped; ``make flips`` flips them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import cbor2
import pytest

from aigovtool.attestation.dcap.quote import parse_quote
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.verify import verify
from aigovtool.errors import MalformedError, VerificationError
from tests.attestation.flips import REFUSED, Target, campaign, targets

SAMPLES = 30  # of each document
TARGETS = targets()
_SECTION_HEAD_BYTES = 4 + 64 + 64  # length, signature, key


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.vector.id)
def test_a_flipped_byte_is_refused(target: Target) -> None:
    counts = campaign(target, SAMPLES)

    assert counts[REFUSED] > 0.5 * counts.total()


def with_pck_chain(quote: bytes, pem: bytes) -> bytes:
    """Return *quote* with another certificate chain, all lengths put right."""
    parsed = parse_quote(quote)
    assert parsed.pck_chain_pem is not None
    at = quote.index(parsed.pck_chain_pem)
    size = int.from_bytes(quote[at - 4 : at], "little")
    lengths = [len(parsed.signed), at - 4]
    if parsed.version >= 4:
        lengths.append(len(parsed.signed) + _SECTION_HEAD_BYTES + 2)
    altered = bytearray(quote[:at] + pem + quote[at + size :])
    for place in lengths:
        old = int.from_bytes(quote[place : place + 4], "little")
        altered[place : place + 4] = (old + len(pem) - size).to_bytes(4, "little")
    return bytes(altered)


def with_certificates_of(document: bytes, other: bytes) -> bytes:
    """Return a Nitro document that carries the certificates of another one."""
    protected, unprotected, payload, signature = cbor2.loads(document)
    fields, others = cbor2.loads(payload), cbor2.loads(cbor2.loads(other)[2])
    fields |= {name: others[name] for name in ("certificate", "cabundle")}
    return cbor2.dumps([protected, unprotected, cbor2.dumps(fields), signature])


def plain_name(document: str) -> str:
    """Return a document's name without the part of a composite that it belongs to."""
    return document.removeprefix("tdx.").removeprefix("nvidia.")


def of_another_chip(name: str, body: bytes, other: dict[str, bytes]) -> Iterator[bytes]:
    """Yield *body* with the certificates that *other* has in the same place."""
    if name == "quote" and "quote" in other:
        mine, theirs = (parse_quote(one).pck_chain_pem for one in (body, other["quote"]))
        assert mine is not None
        assert theirs is not None
        if mine.strip() != theirs.strip():  # else two quotes of one machine
            yield with_pck_chain(body, theirs)
    elif name == "document" and "document" in other:
        yield with_certificates_of(body, other["document"])
    elif name in ("vcek", "vlek"):
        yield from (other[key] for key in ("vcek", "vlek") if key in other)
    elif name in ("device.0.certificates", "ak_public") and name in other:
        yield other[name]


def paired(mine: Target, other: Target) -> Iterator[Target]:
    """Yield *mine* with each certificate that *other* has in the same place."""
    theirs = {plain_name(name.partition("/")[2]): body for name, body in other.documents()}
    for part in ("evidence", "endorsements"):
        documents = getattr(mine, part).documents
        for name, body in documents.items():
            for changed in of_another_chip(plain_name(name), body, theirs):
                if changed != body:
                    merged = {**documents, name: changed}
                    yield replace(mine, **{part: replace(getattr(mine, part), documents=merged)})


@pytest.mark.parametrize("mine", TARGETS, ids=lambda target: target.vector.id)
def test_another_chips_certificates_are_refused(mine: Target) -> None:
    assert mine.verify().measurement
    tried = 0
    for other in TARGETS:
        for pair in paired(mine, other):
            with pytest.raises((MalformedError, VerificationError)):
                pair.verify()
            tried += 1

    lonely = mine.evidence.tee in (Tee.TPM2,)  # one vector of the kind: no other chip to try
    assert tried or lonely


def test_the_helper_that_changes_chains_leaves_a_quote_whole() -> None:
    target = next(one for one in TARGETS if one.vector.id == "tdx/v5-up-to-date")
    quote = target.evidence.document("quote")
    pem = parse_quote(quote).pck_chain_pem
    assert pem is not None

    longer = with_pck_chain(quote, pem + b"\n" * 9)

    evidence = Evidence(tee=Tee.TDX, documents={"quote": longer})
    now = target.case.verification_time
    assert verify(evidence, target.endorsements, now=now) == target.verify()
