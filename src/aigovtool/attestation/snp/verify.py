"""
Is this SEV-SNP report genuine? Report, AMD's certificates and time in; claims out.

1. The report has the layout of its version, and nothing reserved is set.
2. Its flags say which kind of key signed it, and a certificate of that kind is given.
3. ARK → ASK (for a VCEK) or ASVK (for a VLEK), the ARK pinned, both valid now; the ARK fixes the
   product line, and the CPUID of the report, when there is one, is of that line.
4. The VCEK or VLEK is signed by that intermediate, and valid now.
5. It was made for this report: same product line, same chip, same reported TCB.
6. It signed the report: ECDSA P-384 with SHA-384.
7. A CRL, when given, is the ARK's, is current, and does not revoke the intermediate.

A VCEK itself cannot be on AMD's CRL, as all have the serial number 0: an old one is refused by a
policy's minimum TCB instead.

Source: AMD 56860 revision 1.58 (report), AMD 57230 (certificates).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.endorsement_key import (
    EndorsementKey,
    parse_endorsement_key,
    verify_signed_by,
)
from aigovtool.attestation.snp.layout import (
    CHIP_ID_BYTES,
    Report,
    SigningKey,
    parse_certificate_table,
    parse_report,
)
from aigovtool.attestation.snp.product import AMD_ROOTS, Product, parse_tcb, product_of_cpuid
from aigovtool.attestation.x509chain import (
    check_validity,
    common_name,
    fingerprint,
    load_certificates,
    name_of,
    verify_chain,
    verify_crl,
)
from aigovtool.errors import MalformedError, VerificationError

REPORT = "report"  # evidence: 1184 bytes
CERTIFICATE_TABLE = "certificate_table"  # evidence, optional: as the extended report brought it
VCEK = "vcek"  # endorsement: DER or PEM
VLEK = "vlek"  # endorsement: DER or PEM
CA_CHAIN = "ca_chain"  # endorsement: PEM, ASK or ASVK, and ARK
CRL = "crl"  # endorsement, optional: DER, of the ARK

TURIN_HWID_BYTES = 8

_ASK, _ARK = "ask", "ark"
_IN_TABLE = {  # AMD 56421; the same GUID stands for an ASK and an ASVK
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): VCEK,
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): VLEK,
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): _ASK,
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): _ARK,
}


def verify(
    evidence: Evidence,
    endorsements: Endorsements,
    *,
    now: datetime,
    roots: Mapping[bytes, Product] = AMD_ROOTS,
) -> SnpClaims:
    """
    Check a report and return its claims. Says nothing of whether they are acceptable.

    Args:
        evidence: `REPORT`, and optionally `CERTIFICATE_TABLE`.
        endorsements: `VCEK` or `VLEK`, `CA_CHAIN`, and optionally `CRL`; the first three may come
            in the certificate table instead.
        now: aware time at which every certificate must be valid.
        roots: SHA-256 of each root certificate that is accepted, and the line it stands for.

    Raises:
        MalformedError: a document is missing (code ``endorsement.missing``) or cannot be read.
        VerificationError: any of the rules above is broken.
    """
    report = parse_report(evidence.document(REPORT))  # 1
    documents = _documents(evidence, endorsements)
    key = parse_endorsement_key(_get(documents, str(report.signing_key)))  # 2
    if key.kind is not report.signing_key:
        raise VerificationError(
            "the certificate is not of the kind of key that signed the report",
            code="snp.signing_key",
            expected=report.signing_key,
            came=key.kind,
        )
    intermediate, root = _chain(documents, key)  # 3
    verify_chain(
        [intermediate, root], root_fingerprints=frozenset(roots), now=now, first_is_issuer=True
    )
    product = roots[fingerprint(root)]
    verify_signed_by(key, intermediate)  # 4
    check_validity(
        key.not_before, key.not_after, now=now, what=f"the {key.kind.upper()} certificate"
    )
    _check_binding(report, key, intermediate, product)  # 3 and 5
    _check_signature(report, key.public_key)  # 6
    revocation: Literal["checked", "unknown"] = "unknown"
    if CRL in documents:  # 7
        _check_not_revoked(verify_crl(documents[CRL], issuer=root, now=now).revoked, intermediate)
        revocation = "checked"
    return SnpClaims(
        product=product,
        report_version=report.version,
        report_data=report.report_data,
        measurement=report.measurement.hex(),
        host_data=report.host_data.hex(),
        id_key_digest=report.id_key_digest.hex(),
        author_key_digest=report.author_key_digest.hex(),
        family_id=report.family_id.hex(),
        image_id=report.image_id.hex(),
        guest_svn=report.guest_svn,
        guest_policy=report.policy,
        platform_info=report.platform_info,
        vmpl=report.vmpl,
        current_tcb=parse_tcb(report.current_tcb, product),
        reported_tcb=parse_tcb(report.reported_tcb, product),
        committed_tcb=parse_tcb(report.committed_tcb, product),
        launch_tcb=parse_tcb(report.launch_tcb, product),
        current_firmware=report.current_firmware,
        committed_firmware=report.committed_firmware,
        launch_mitigations=report.launch_mitigations,
        current_mitigations=report.current_mitigations,
        signing_key=report.signing_key,
        chip_id=report.chip_id.hex() if any(report.chip_id) else None,
        csp_id=key.csp_id,
        revocation=revocation,
        verified_at=now,
    )


def _documents(evidence: Evidence, endorsements: Endorsements) -> dict[str, bytes]:
    """Return what was given by name; an endorsement goes before the same one in the table."""
    documents: dict[str, bytes] = {}
    table = evidence.documents.get(CERTIFICATE_TABLE)
    if table is not None:
        for guid, certificate in parse_certificate_table(table).items():
            if guid in _IN_TABLE:
                documents[_IN_TABLE[guid]] = certificate
    return documents | dict(endorsements.documents)


def _get(documents: Mapping[str, bytes], name: str) -> bytes:
    try:
        return documents[name]
    except KeyError:
        raise MalformedError(
            f"no {name} certificate came with the SEV-SNP report",
            code="endorsement.missing",
            came=", ".join(sorted(documents)) or "no document",
            mend="fetch it from AMD's key distribution service, or from the host",
        ) from None


def _chain(
    documents: Mapping[str, bytes], key: EndorsementKey
) -> tuple[x509.Certificate, x509.Certificate]:
    """Pick the issuer of *key* and the root out of what was given, in whatever order it came."""
    if CA_CHAIN in documents:
        given = load_certificates(documents[CA_CHAIN], what=CA_CHAIN)
    else:
        given = [
            certificate
            for name in (_ASK, _ARK)
            for certificate in load_certificates(_get(documents, name), what=name)
        ]
    intermediate = next((c for c in given if c.subject.public_bytes() == key.issuer), None)
    root = next((c for c in given if intermediate and c.subject == intermediate.issuer), None)
    if intermediate is None or root is None:
        raise VerificationError(
            f"the chain does not hold the issuers of the {key.kind.upper()} certificate",
            code="certificate.signature",
            came=", ".join(name_of(certificate) for certificate in given),
        )
    return intermediate, root


def _check_binding(
    report: Report, key: EndorsementKey, intermediate: x509.Certificate, product: Product
) -> None:
    """Rules 3 and 5: everything that says which machine this is says the same."""
    issuer = f"SEV-VLEK-{product}" if key.kind is SigningKey.VLEK else f"SEV-{product}"
    _same("snp.intermediate", "the issuer", issuer, common_name(intermediate))
    _same("snp.product", "the product line", product, key.product_name.partition("-")[0])
    if report.cpuid is not None:
        cpuid_product = product_of_cpuid(report.cpuid[0], report.cpuid[1])
        _same("snp.product", "the product line", product, cpuid_product or "an unknown CPUID")
    if key.hwid is not None:
        # A Turin chip is named by 8 bytes, and the rest of the field is then zero.
        size = TURIN_HWID_BYTES if product is Product.TURIN else CHIP_ID_BYTES
        chip_id = report.chip_id if any(report.chip_id[size:]) else report.chip_id[:size]
        _same("snp.hwid", "the chip", chip_id.hex(), key.hwid.hex())
    reported = parse_tcb(report.reported_tcb, product)
    _same("snp.tcb_binding", "the TCB", str(reported), str(key.tcb(product)))


def _same(code: str, what: str, expected: str, came: str) -> None:
    if expected != came:
        raise VerificationError(
            f"report and certificates do not agree on {what}",
            code=code,
            expected=expected,
            came=came,
        )


def _check_signature(report: Report, public_key: ec.EllipticCurvePublicKey) -> None:
    signature = encode_dss_signature(report.r, report.s)
    try:
        public_key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise VerificationError(
            "the report is not signed by the certified key", code="snp.signature"
        ) from None


def _check_not_revoked(revoked: frozenset[int], intermediate: x509.Certificate) -> None:
    if intermediate.serial_number in revoked:
        raise VerificationError(
            f"{name_of(intermediate)} has been revoked by AMD", code="certificate.revoked"
        )
