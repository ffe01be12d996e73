"""Whatever bytes come, the parsers of SEV-SNP read them or refuse them with our own errors."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp.endorsement_key import parse_endorsement_key
from aigovtool.attestation.snp.layout import (
    REPORT_BYTES,
    parse_certificate_table,
    parse_report,
)
from aigovtool.attestation.snp.product import Product, parse_tcb, product_of_cpuid
from aigovtool.attestation.snp.verify import verify
from aigovtool.errors import MalformedError, VerificationError
from tests.attestation.fake_vendors import FakeAmd
from tests.attestation.snp_nitro_vectors import Vector, load

NOW = datetime(2026, 3, 7, 2, tzinfo=UTC)


@cache
def corpus() -> list[Vector]:
    return load(Tee.SNP)


def reports() -> list[bytes]:
    return [vector.evidence.document("report") for vector in corpus()]


def endorsement_certificates() -> list[bytes]:
    return [
        document
        for vector in corpus()
        for name, document in vector.endorsements.documents.items()
        if name != "ca_chain"
    ]


@st.composite
def mutated(draw: st.DrawFn, documents: list[bytes]) -> bytes:
    """A document of the corpus with some bytes overwritten, cut out or put in."""
    data = bytearray(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["overwrite", "insert", "delete", "truncate"]))
        piece = draw(st.binary(max_size=8))
        if how == "overwrite":
            data[at : at + len(piece)] = piece
        elif how == "insert":
            data[at:at] = piece
        elif how == "delete":
            del data[at : at + len(piece)]
        else:
            del data[at:]
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutated(reports()), st.binary(max_size=64)))
def test_any_bytes_are_a_report_or_malformed(data: bytes) -> None:
    try:
        report = parse_report(data)
    except MalformedError:
        return
    assert len(data) == REPORT_BYTES
    assert report.signed == data[:0x2A0]
    assert (report.measurement, report.report_data) == (data[0x90:0xC0], data[0x50:0x90])


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutated(endorsement_certificates()), st.binary(max_size=64)))
@example(b"-----BEGIN CERTIFICATE-----AA-----END CERTIFICATE-----")
@example(b"-----BEGIN CERTIFICATE-----A-----END CERTIFICATE-----")
@example(b"-----BEGIN CERTIFICATE-----")
def test_any_bytes_are_an_endorsement_certificate_or_malformed(data: bytes) -> None:
    try:
        key = parse_endorsement_key(data)
    except MalformedError:
        return
    assert (key.hwid is None) != (key.csp_id is None)
    assert key.public_key.curve.name == "secp384r1"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_certificate_table_or_malformed(data: bytes) -> None:
    try:
        table = parse_certificate_table(data)
    except MalformedError:
        return
    assert all(document in data for document in table.values())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_documents_are_verified_or_refused(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(corpus()))
    documents = {
        name: data.draw(st.one_of(st.just(document), mutated([document])), label=name)
        for name, document in vector.endorsements.documents.items()
    }
    documents |= data.draw(st.fixed_dictionaries({}, optional={"crl": st.binary(max_size=64)}))
    report = data.draw(mutated([vector.evidence.document("report")]))
    try:
        claims = verify(
            Evidence(tee=Tee.SNP, documents={"report": report}),
            Endorsements(tee=Tee.SNP, documents=documents),
            now=vector.time,
        )
    except (MalformedError, VerificationError):
        return
    assert vector.authentic
    assert report == vector.evidence.document("report")
    assert claims.report_data == report[0x50:0x90]


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFFFFFF])
def test_an_unknown_version_is_not_guessed(version: int) -> None:
    report = reports()[0]
    with pytest.raises(MalformedError, match="unknown version"):
        parse_report(version.to_bytes(4, "little") + report[4:])


RESERVED_BYTES = {
    2: [0x04C, 0x04F, 0x188, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x29F, 0x330, 0x49F],
    3: [0x04C, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x207, 0x29F, 0x330, 0x49F],
    5: [0x04C, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F, 0x330, 0x49F],
}


@pytest.mark.parametrize(
    ("version", "offset"), [(v, at) for v, offsets in RESERVED_BYTES.items() for at in offsets]
)
def test_a_reserved_byte_is_refused_even_when_signed(version: int, offset: int) -> None:
    data = bytearray(AMD.report(version=version))
    data[offset] |= 1
    with pytest.raises(MalformedError) as caught:
        parse_report(bytes(data))
    assert caught.value.reasons[0].code == "snp.reserved"


AMD = FakeAmd()


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [
        (0x030, 4, "snp.unknown_value"),  # VMPL
        (0x030, 0xFFFFFFFF, "snp.unknown_value"),  # a report that the host asked for
        (0x034, 0, "snp.unknown_value"),  # signature algorithm
        (0x034, 2, "snp.unknown_value"),
        (0x048, 1 << 5, "snp.reserved"),
        (0x048, 2 << 2, "snp.unknown_value"),  # signing key
        (0x048, 7 << 2, "snp.unknown_value"),  # not signed at all
        (0x008, 0x1001F, "snp.reserved"),  # guest policy without its constant bit
        (0x00B, 0x04, "snp.reserved"),  # guest policy, bit 26
        (0x041, 0x01, "snp.reserved"),  # platform info, bit 8
    ],
)
def test_values_without_a_meaning(offset: int, value: int, code: str) -> None:
    data = bytearray(AMD.report())
    data[offset : offset + 4] = value.to_bytes(4, "little")
    with pytest.raises(MalformedError) as caught:
        parse_report(bytes(data))
    assert caught.value.reasons[0].code == code


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x10, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x1A, 0x02, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
        (0x19, 0x20, None),
        (0x1A, 0x12, None),
        (0x17, 0x01, None),
    ],
)
def test_product_lines_by_cpuid(family: int, model: int, product: Product | None) -> None:
    assert product_of_cpuid(family, model) is product


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(min_size=8, max_size=8), product=st.sampled_from(list(Product)))
def test_a_tcb_is_read_in_the_layout_of_its_product_line(raw: bytes, product: Product) -> None:
    turin = product is Product.TURIN
    if any(raw[4:7] if turin else raw[2:6]):
        with pytest.raises(MalformedError):
            parse_tcb(raw, product)
        return
    tcb = parse_tcb(raw, product)
    assert tcb.fmc == (raw[0] if turin else None)
    assert tcb.boot_loader == raw[1 if turin else 0]
    assert tcb.tee == raw[2 if turin else 1]
    assert tcb.snp == raw[3 if turin else 6]
    assert tcb.microcode == raw[7]
    assert ("fmc" in str(tcb)) == turin
