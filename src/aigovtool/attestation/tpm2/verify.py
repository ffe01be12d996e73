"""
Is a set of TPM 2.0 quotes genuine?

1. The AK is an attestation key by its attributes, or this is no evidence at all.
2. Every quote is signed by the AK, over the exact bytes that were sent.
3. Every quote carries the same nonce (extraData) and was made since the same reset.
4. Where PCR values are given, they give the quoted digest.
5. Where an AK certificate is given, it leads to a pinned root. Without one the quotes prove only
   that *some* key signed them: `Tpm2Claims.certified` is then False, and a policy must say whether
   it accepts that.

The TPM of a virtual machine is software of the cloud provider, which is then trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.tpm2.certificate import verify_ak_certificate
from aigovtool.attestation.tpm2.layout import (
    MALFORMED,
    Hash,
    Quote,
    parse_public,
    parse_quote,
    parse_signature,
)
from aigovtool.attestation.tpm2.pcrs import check_pcr_digest, parse_pcr_values
from aigovtool.attestation.tpm2.signature import (
    PublicKey,
    attestation_key,
    spki_sha256,
    verify_signature,
)
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import sha256

AK_PUBLIC = "ak_public"  # evidence: TPMT_PUBLIC
QUOTE = "quote.{bank}.message"  # evidence: TPMS_ATTEST, one of each bank quoted
SIGNATURE = "quote.{bank}.signature"  # evidence: TPMT_SIGNATURE
PCRS = "quote.{bank}.pcrs"  # evidence, may be absent: JSON, index to hex
AK_CERTIFICATE = "ak_certificate"  # endorsements, may be absent: DER or PEM
AK_INTERMEDIATES = "ak_intermediates"  # endorsements, may be absent: PEM


@dataclass(frozen=True, slots=True, kw_only=True)
class Tpm2Claims:
    """
    What genuine TPM quotes say.

    Args:
        report_data: extraData of the quotes, as given to TPM2_Quote (at most 66 bytes; a TPM
            without SHA-512 takes 50): see `qualifying_data`.
        measurement: for people: digest of the quote over the strongest bank, in hex.
        platform_id: SHA-256 of the AK's SubjectPublicKeyInfo, in hex.
        debug: always False: a TPM has no such state.
        certified: the AK has a certificate from a pinned root.
        pcrs: values by bank, then index; only those covered by a quote.
        clock_safe: False when the TPM's clock may have run backwards.
        reset_count: reboots since the TPM was made or cleared.
        firmware_version: vendor's number.
    """

    report_data: bytes
    measurement: str
    platform_id: str
    debug: bool
    certified: bool
    pcrs: Mapping[Hash, Mapping[int, bytes]]
    clock_safe: bool
    reset_count: int
    firmware_version: int

    def commitment_to(self, report_data: bytes) -> bytes:
        """Return what `report_data` must be when the evidence commits to these 64 bytes."""
        return qualifying_data(report_data)


def qualifying_data(report_data: bytes) -> bytes:
    """
    Return the 32 bytes to give to TPM2_Quote for the 64 bytes that evidence must commit to.

    A TPM takes at most a hash with its algorithm (TPM2B_DATA), which on Azure is 50 bytes.
    """
    return sha256(report_data)


def verify(evidence: Evidence, endorsements: Endorsements, *, now: datetime) -> Tpm2Claims:
    """
    Check TPM 2.0 quotes and read their claims; the numbers are those of this module's rules.

    Raises:
        MalformedError: a document is missing or not of its layout, or there is no quote.
        VerificationError: a signature, a digest, the nonce or the AK certificate does not hold.
    """
    key = attestation_key(parse_public(evidence.document(AK_PUBLIC)))  # 1
    quotes: dict[Hash, Quote] = {}
    pcrs: dict[Hash, dict[int, bytes]] = {}
    for bank in Hash:
        if QUOTE.format(bank=bank) not in evidence.documents:
            continue
        quotes[bank], values = _verify_quote(evidence, bank, key)
        if values is not None:
            pcrs[bank] = values
    if not quotes:
        raise MalformedError(
            "TPM evidence without a quote", code=MALFORMED, expected=QUOTE.format(bank="sha256")
        )
    occasions = {(quote.extra_data, quote.reset_count) for quote in quotes.values()}
    if len(occasions) > 1:  # 3
        raise VerificationError(
            "the quotes were made for different nonces, or before and after a reset",
            code="tpm2.nonce",
            came=", ".join(sorted(f"{nonce.hex()} in boot {boot}" for nonce, boot in occasions)),
        )
    certificate = endorsements.documents.get(AK_CERTIFICATE)
    if certificate is not None:  # 5
        intermediates = endorsements.documents.get(AK_INTERMEDIATES)
        verify_ak_certificate(certificate, intermediates, key=key, now=now)
    strongest = quotes[max(quotes, key=list(Hash).index)]
    return Tpm2Claims(
        report_data=strongest.extra_data,
        measurement=strongest.pcr_digest.hex(),
        platform_id=spki_sha256(key).hex(),
        debug=False,
        certified=certificate is not None,
        pcrs=pcrs,
        clock_safe=strongest.clock_safe,
        reset_count=strongest.reset_count,
        firmware_version=strongest.firmware_version,
    )


def _verify_quote(
    evidence: Evidence, bank: Hash, key: PublicKey
) -> tuple[Quote, dict[int, bytes] | None]:
    message = evidence.document(QUOTE.format(bank=bank))
    signature = parse_signature(evidence.document(SIGNATURE.format(bank=bank)))
    verify_signature(key, signature, message)  # 2
    quote = parse_quote(message)
    if quote.bank is not bank:
        raise VerificationError(
            "a quote covers another PCR bank than its name says",
            code="tpm2.bank",
            expected=bank,
            came=quote.bank,
        )
    document = evidence.documents.get(PCRS.format(bank=bank))
    if document is None:
        return quote, None
    values = parse_pcr_values(document, bank)
    check_pcr_digest(quote, signature.hash, values)  # 4
    return quote, values
