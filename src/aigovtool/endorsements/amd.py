"""
AMD's certificates for an SEV-SNP report: from the host, or from AMD's key distribution service.

Rule 1: what the host handed over with the report (the certificate table) is used when it was made
        for this report; hosts keep tables from before a firmware update, and the VCEK is then
        fetched.
Rule 2: a VLEK belongs to a cloud and is not published: it comes from the host or not at all.
Rule 3: a report of version 2 does not say its product line: Milan is asked for first, then Genoa.
Rule 4: a revocation list is fetched and not demanded; whether it must be there, a policy says.

Source: AMD 57230, VCEK and VLEK Certificate and KDS Interface Specification, section 4; AMD 56421
(GHCB) for the GUIDs of the certificate table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from urllib.parse import urlencode
from uuid import UUID

from aigovtool.attestation.evidence import Evidence
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.snp.endorsement_key import EndorsementKey, parse_endorsement_key
from aigovtool.attestation.snp.layout import (
    Report,
    SigningKey,
    parse_certificate_table,
    parse_report,
)
from aigovtool.attestation.snp.product import Product, parse_tcb, product_of_cpuid
from aigovtool.attestation.x509chain import load_certificates
from aigovtool.endorsements.fetch import Answer, Question, malformed
from aigovtool.endorsements.library import Documents, Item, Library
from aigovtool.endorsements.spans import contains, span_of
from aigovtool.errors import MalformedError, NotFoundError

KDS_URL = "https://kdsintf.amd.com"
LONGEST_CRL_AGE = timedelta(days=1)
VERSION_2_PRODUCTS = (Product.MILAN, Product.GENOA)

_TABLE = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): snp.VCEK,
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): snp.VLEK,
}
_ISSUERS = frozenset(  # the intermediate and the root
    {
        UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),
        UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdService:
    """
    Where AMD's certificates are had.

    Args:
        url: of AMD's service or a mirror of it, without a path.
    """

    url: str = KDS_URL


async def snp_documents(
    evidence: Evidence,
    have: Documents,
    *,
    service: AmdService,
    library: Library,
    now: datetime,
) -> dict[str, bytes]:
    """
    Return what a report needs beyond *have* and its own certificate table.

    Raises:
        MalformedError: the report or the table cannot be read.
        NotFoundError: a VLEK that did not come along, a report that hides its chip, or a chip that
            AMD does not know.
        UnavailableError: AMD's service cannot be had.
    """
    report = parse_report(evidence.document(snp.REPORT))
    table = evidence.documents.get(snp.CERTIFICATE_TABLE)
    handed_over = {} if table is None else parse_certificate_table(table)
    given = {name: handed_over[guid] for guid, name in _TABLE.items() if guid in handed_over}
    name = str(report.signing_key)
    documents: dict[str, bytes] = {}
    certificate = _usable(report, {**given, **have}.get(name), now)
    if certificate is None and report.signing_key is SigningKey.VLEK:
        raise NotFoundError(
            "the report is signed by a VLEK, whose certificate only the host has",
            code="endorsements.vlek",
            mend="ask the guest's kernel for the extended report, which brings it",
        )
    if certificate is None:
        documents |= await _fetch_vcek(report, service, library, now)
        certificate = parse_endorsement_key(documents[snp.VCEK])
    product = Product(_line(certificate.product_name))
    items = _issuer_items(report.signing_key, product, service)
    if handed_over.keys() >= _ISSUERS:
        items = [item for item in items if item.names != (snp.CA_CHAIN,)]
    return documents | await library.fill(items, have, now=now)


def _usable(report: Report, certificate: bytes | None, now: datetime) -> EndorsementKey | None:
    """Return the certificate, read, when it was made for *report* and is valid (rule 1)."""
    if certificate is None:
        return None
    try:
        key = parse_endorsement_key(certificate)
        product = Product(_line(key.product_name))
        fits = (
            key.kind is report.signing_key
            and (key.hwid is None or report.chip_id.startswith(key.hwid))
            and key.tcb(product) == parse_tcb(report.reported_tcb, product)
            and contains(span_of(str(report.signing_key), certificate), now)
        )
    except (MalformedError, ValueError):  # ValueError: a product line that we do not know
        return None
    return key if fits else None


async def _fetch_vcek(
    report: Report, service: AmdService, library: Library, now: datetime
) -> Documents:
    if not any(report.chip_id):
        raise NotFoundError(
            "the report hides its chip, so its certificate cannot be asked for",
            code="endorsements.chip_id",
            mend="let the host stop masking CHIP_ID, or hand over the certificate",
        )
    products = _products(report)
    for product in products:
        try:
            return await library.get(_vcek_item(report, product, service), now=now)
        except NotFoundError:
            continue
    raise NotFoundError(
        "AMD has no certificate for this chip and TCB",
        code="endorsements.not_found",
        expected=" or ".join(products) or "a product line with SEV-SNP",
        came=f"chip {report.chip_id.hex()}",
        mend="check that the machine is a production part with current firmware",
    )


def _products(report: Report) -> tuple[Product, ...]:
    if report.cpuid is None:
        return VERSION_2_PRODUCTS
    product = product_of_cpuid(report.cpuid[0], report.cpuid[1])
    return () if product is None else (product,)


def _vcek_item(report: Report, product: Product, service: AmdService) -> Item:
    tcb = parse_tcb(report.reported_tcb, product)
    levels = {} if tcb.fmc is None else {"fmcSPL": f"{tcb.fmc:02}"}
    levels |= {
        "blSPL": f"{tcb.boot_loader:02}",
        "teeSPL": f"{tcb.tee:02}",
        "snpSPL": f"{tcb.snp:02}",
        "ucodeSPL": f"{tcb.microcode:02}",
    }
    chip = report.chip_id[: snp.TURIN_HWID_BYTES] if product is Product.TURIN else report.chip_id
    return Item(
        question=Question(
            url=f"{service.url.rstrip('/')}/vcek/v1/{product}/{chip.hex()}?{urlencode(levels)}"
        ),
        read=partial(_read_vcek, product),
        names=(snp.VCEK,),
        longest_age=None,  # derived from chip and TCB: there is only one
    )


def _line(product_name: str) -> str:
    """Return the line of a product such as ``Milan-B0``."""
    return product_name.partition("-")[0]


def _issuer_items(kind: SigningKey, product: Product, service: AmdService) -> list[Item]:
    base = f"{service.url.rstrip('/')}/{kind}/v1/{product}"
    return [
        Item(
            question=Question(url=f"{base}/cert_chain"),
            read=_read_chain,
            names=(snp.CA_CHAIN,),
            longest_age=None,
        ),
        Item(
            question=Question(url=f"{base}/crl"),
            read=_read_crl,
            names=(snp.CRL,),
            longest_age=LONGEST_CRL_AGE,
            required=False,
        ),
    ]


def _read_vcek(product: Product, answer: Answer) -> dict[str, bytes]:
    name = parse_endorsement_key(answer.body).product_name
    if _line(name) != product:
        raise malformed(f"a certificate of a {product}", came=name[:64])
    return {snp.VCEK: answer.body}


def _read_chain(answer: Answer) -> dict[str, bytes]:
    load_certificates(answer.body, what="AMD's certificate chain")
    return {snp.CA_CHAIN: answer.body}


def _read_crl(answer: Answer) -> dict[str, bytes]:
    return {snp.CRL: answer.body}  # `Library` reads its span, and so that it is a CRL
