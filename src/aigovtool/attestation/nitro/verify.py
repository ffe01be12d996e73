"""
Is this Nitro attestation document genuine? The document and time in; claims out.

1. A COSE_Sign1 message with ES384, and in it a document within AWS's limits.
2. Certificate ← cabundle, last to first ← AWS's root G1, which is pinned; all valid now.
3. The certificate's key is on P-384 and signed the message.
4. The hypervisor's clock stands within the life of its certificate, and not past now.

The certificates live for about three hours, which is why AWS says not to look for CRLs: there is
no revocation to know of, and old documents are refused by rule 2. The document brings its whole
chain, so there are no endorsements.

Source: AWS, ``aws-nitro-enclaves-nsm-api``, docs/attestation_process.md, section 3.2.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nitro.cose import parse_sign1, verify_sign1
from aigovtool.attestation.nitro.layout import parse_document
from aigovtool.attestation.x509chain import load_certificates, verify_chain
from aigovtool.errors import MalformedError, VerificationError

DOCUMENT = "document"  # evidence: COSE_Sign1 as the NSM device gave it

# SHA-256 of the DER of the root certificate "aws.nitro-enclaves" G1, as AWS's user guide prints it
# ("Verifying the root of trust", docs.aws.amazon.com/enclaves/latest/user/verify-root.html).
AWS_ROOTS = frozenset(
    {bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")}
)
CLOCK_SKEW = timedelta(minutes=5)  # between the hypervisor's clock and the verifier's


def verify(
    evidence: Evidence,
    endorsements: Endorsements,
    *,
    now: datetime,
    roots: frozenset[bytes] = AWS_ROOTS,
) -> NitroClaims:
    """
    Check a document and return its claims. Says nothing of whether they are acceptable.

    Args:
        evidence: `DOCUMENT`.
        endorsements: not used, as the document brings its chain; here so that every kind of TEE
            is verified by the same call.
        now: aware time at which every certificate must be valid.
        roots: SHA-256 of each root certificate that is accepted.

    Raises:
        MalformedError: the document is missing or cannot be read.
        VerificationError: any of the rules above is broken.
    """
    message = parse_sign1(evidence.document(DOCUMENT))  # 1
    document = parse_document(message.payload)
    chain = [_certificate(der) for der in (document.certificate, *reversed(document.cabundle))]
    verify_chain(chain, root_fingerprints=roots, now=now)  # 2
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationError("the document's certificate has no P-384 key", code="nitro.key")
    verify_sign1(message, key)  # 3
    timestamp = datetime.fromtimestamp(document.timestamp_ms / 1000, UTC)
    earliest = chain[0].not_valid_before_utc - CLOCK_SKEW  # 4
    latest = min(chain[0].not_valid_after_utc, now + CLOCK_SKEW)
    if not earliest <= timestamp <= latest:
        raise VerificationError(
            "the document's timestamp cannot be true",
            code="nitro.timestamp",
            expected=f"from {earliest.isoformat()} to {latest.isoformat()}",
            came=timestamp.isoformat(),
        )
    return NitroClaims(
        module_id=document.module_id,
        timestamp=timestamp,
        pcrs={index: digest.hex() for index, digest in document.pcrs.items()},
        user_data=document.user_data,
        nonce=document.nonce,
        public_key=document.public_key,
        verified_at=now,
    )


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return load_certificates(der, what="certificate")[0]
    except MalformedError as error:
        # The document is whole, so a certificate that does not parse any more has been altered.
        raise VerificationError(
            "a certificate of the document is corrupted", code="nitro.certificate"
        ) from error
