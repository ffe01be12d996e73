"""Each rule of `snp.verify`, broken alone under a fake AMD whose other bytes are all right."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.product import Product
from aigovtool.attestation.snp.verify import verify
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from tests.attestation.fake_vendors import AMD_ARC, DAY, NOW, FakeAmd, crl, der, pem

VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
OTHER = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")


@pytest.fixture(scope="module", params=list(Product))
def any_amd(request: pytest.FixtureRequest) -> FakeAmd:
    return FakeAmd(request.param)


@pytest.fixture(scope="module")
def amd() -> FakeAmd:
    return FakeAmd()


@pytest.fixture(scope="module")
def turin() -> FakeAmd:
    return FakeAmd(Product.TURIN)


def judge(
    amd: FakeAmd, evidence: Evidence | None = None, endorsements: Endorsements | None = None
) -> SnpClaims:
    return verify(
        evidence or amd.evidence(),
        endorsements or amd.endorsements(),
        now=NOW,
        roots=amd.roots,
    )


def refusal(
    amd: FakeAmd,
    evidence: Evidence | None = None,
    endorsements: Endorsements | None = None,
    error: type[AIGovToolError] = VerificationError,
) -> str:
    """Return the code of the refusal, which must be an *error*."""
    with pytest.raises(error) as caught:
        judge(amd, evidence, endorsements)
    return caught.value.reasons[0].code


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_version_on_every_product_line(any_amd: FakeAmd, version: int) -> None:
    claims = judge(any_amd, any_amd.evidence(any_amd.report(version=version)))
    assert claims.product is any_amd.product
    assert claims.report_version == version
    assert claims.reported_tcb.microcode == 0xD3
    assert claims.reported_tcb.snp == 8
    assert claims.reported_tcb.boot_loader == 3
    assert claims.reported_tcb.fmc == (1 if any_amd.product is Product.TURIN else None)
    assert (claims.launch_mitigations, claims.current_mitigations) == (
        (7, 3) if version == 5 else (None, None)
    )
    assert claims.chip_id == any_amd.hwid.ljust(64, b"\0").hex()


def test_a_fake_root_is_not_amds(any_amd: FakeAmd) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(any_amd.evidence(), any_amd.endorsements(), now=NOW)
    assert caught.value.reasons[0].code == "certificate.root"


def test_a_vlek_vouches_for_a_cloud_and_not_for_a_chip(any_amd: FakeAmd) -> None:
    evidence = any_amd.evidence(any_amd.report(vlek=True))
    endorsements = any_amd.endorsements(
        vcek=None,
        vlek=der(any_amd.endorsement_key(vlek=True)),
        ca_chain=pem(any_amd.asvk, any_amd.ark),
    )
    claims = judge(any_amd, evidence, endorsements)
    assert (claims.signing_key, claims.chip_id, claims.csp_id) == ("vlek", None, "cloud")
    assert claims.platform_id is None


def test_a_vlek_under_the_name_of_a_vcek(amd: FakeAmd) -> None:
    endorsements = amd.endorsements(
        vcek=der(amd.endorsement_key(vlek=True)), ca_chain=pem(amd.asvk, amd.ark)
    )
    assert refusal(amd, None, endorsements) == "snp.signing_key"


def test_a_vcek_under_the_name_of_a_vlek(amd: FakeAmd) -> None:
    evidence = amd.evidence(amd.report(vlek=True))
    endorsements = amd.endorsements(vlek=der(amd.endorsement_key()))
    assert refusal(amd, evidence, endorsements) == "snp.signing_key"


def test_a_vcek_issued_by_the_intermediate_for_vleks(amd: FakeAmd) -> None:
    vcek = amd.endorsement_key(issuer_name=amd.asvk_name)
    endorsements = amd.endorsements(vcek=der(vcek), ca_chain=pem(amd.asvk, amd.ark))
    assert refusal(amd, None, endorsements) == "snp.intermediate"


def test_a_vlek_issued_by_the_intermediate_for_vceks(amd: FakeAmd) -> None:
    vlek = amd.endorsement_key(vlek=True, issuer_name=amd.ask_name)
    evidence = amd.evidence(amd.report(vlek=True))
    assert refusal(amd, evidence, amd.endorsements(vlek=der(vlek))) == "snp.intermediate"


def test_a_certificate_that_the_root_itself_signed(amd: FakeAmd) -> None:
    rogue = FakeAmd(ark_key=amd.ark_key, ask_key=amd.ark_key, chip_key=amd.chip_key)
    endorsements = amd.endorsements(
        vcek=der(rogue.endorsement_key(issuer_name=amd.ark_name)), ca_chain=pem(amd.ark)
    )
    assert refusal(amd, None, endorsements) == "snp.intermediate"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"ca": False}, "certificate.constraints"),
        ({"ca": None}, "certificate.constraints"),
        ({"cert_sign": False}, "certificate.constraints"),
        ({"key_usage": False}, "certificate.constraints"),
        ({"not_after": NOW - DAY / 2}, "certificate.expired"),
        ({"not_before": NOW + DAY / 2}, "certificate.not_yet_valid"),
    ],
)
def test_an_intermediate_that_may_not_issue(amd: FakeAmd, wrong: dict[str, Any], code: str) -> None:
    bad = amd.intermediate(amd.ask_name, **wrong)
    assert refusal(amd, None, amd.endorsements(ca_chain=pem(bad, amd.ark))) == code


def test_an_intermediate_of_another_root(amd: FakeAmd) -> None:
    other = FakeAmd(ask_key=amd.ask_key)
    endorsements = amd.endorsements(ca_chain=pem(other.ask, amd.ark))
    assert refusal(amd, None, endorsements) == "certificate.signature"


def test_a_chain_without_the_issuer(amd: FakeAmd) -> None:
    for chain in (pem(amd.ark), pem(amd.ask), pem(amd.asvk, amd.ark)):
        assert refusal(amd, None, amd.endorsements(ca_chain=chain)) == "certificate.signature"


def test_a_vcek_of_a_forger_with_the_right_names(amd: FakeAmd) -> None:
    forger = FakeAmd(chip_key=amd.chip_key)
    endorsements = amd.endorsements(vcek=der(forger.endorsement_key()))
    assert refusal(amd, None, endorsements) == "certificate.signature"


def test_a_vcek_signed_with_another_hash(amd: FakeAmd) -> None:
    vcek = amd.endorsement_key(algorithm=hashes.SHA256())
    assert refusal(amd, None, amd.endorsements(vcek=der(vcek))) == "certificate.signature"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"not_after": NOW - DAY / 2}, "certificate.expired"),
        ({"not_before": NOW + DAY / 2}, "certificate.not_yet_valid"),
        ({"product_name": b"Genoa-B1"}, "snp.product"),
        ({"product_name": b"MilanX"}, "snp.product"),
        ({"change": {"4": bytes(64)}}, "snp.hwid"),
        ({"change": {"4": bytes(range(1, 9))}}, "snp.hwid"),
        ({"change": {"3.1": b"\x02\x01\x04"}}, "snp.tcb_binding"),
        ({"change": {"3.2": b"\x02\x01\x01"}}, "snp.tcb_binding"),
        ({"change": {"3.3": b"\x02\x01\x09"}}, "snp.tcb_binding"),
        ({"change": {"3.8": b"\x02\x01\x01"}}, "snp.tcb_binding"),
    ],
)
def test_a_vcek_that_was_not_made_for_this_report(
    amd: FakeAmd, wrong: dict[str, Any], code: str
) -> None:
    vcek = amd.endorsement_key(**wrong)
    assert refusal(amd, None, amd.endorsements(vcek=der(vcek))) == code


@pytest.mark.parametrize(
    "wrong",
    [
        {"change": {"5": b"\x16\x05cloud"}},  # a chip and a cloud
        {"without": ("4",)},  # neither
        {"without": ("2",)},
        {"without": ("3.3",)},
        {"change": {"3.3": b"\x02\x02\x01\x00"}},
        {"change": {"3.3": b"\x02\x01\xff"}},
        {"change": {"3.3": b"\x04\x01\x08"}},
        {"change": {"3.5": b"\x02\x01\x01"}},
        {"change": {"2": b"\x0c\x05Milan"}},
        {"critical": True},
        {"key": ec.generate_private_key(ec.SECP256R1())},
        {"key": rsa.generate_private_key(65537, 2048)},
    ],
)
def test_a_vcek_that_amd_would_not_write(amd: FakeAmd, wrong: dict[str, Any]) -> None:
    vcek = amd.endorsement_key(**wrong)
    code = refusal(amd, None, amd.endorsements(vcek=der(vcek)), MalformedError)
    assert code == "certificate.malformed"


def test_an_intermediate_without_an_rsa_key(amd: FakeAmd) -> None:
    other = FakeAmd(
        ark_key=amd.ark_key,
        ask_key=ec.generate_private_key(ec.SECP384R1()),
        chip_key=amd.chip_key,
    )
    vcek, chain = der(other.endorsement_key()), pem(other.ask, amd.ark)
    assert refusal(amd, None, amd.endorsements(vcek=vcek, ca_chain=chain)) == (
        "certificate.signature"
    )


def oid(text: str) -> bytes:
    return asn1.encode_der(x509.ObjectIdentifier(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (oid(AMD_ARC + "3.5"), oid(AMD_ARC + "3.1")),  # the boot loader twice
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),  # X.509 version 2
        (b"\x03\x82\x01\x01\x00", b"\x03\x82\x01\x01\x01"),  # a signature short of one bit
    ],
)
def test_a_vcek_changed_where_only_a_parser_can_tell(amd: FakeAmd, old: bytes, new: bytes) -> None:
    vcek = der(amd.endorsement_key())
    head, found, tail = vcek.rpartition(old)
    assert found
    changed = amd.endorsements(vcek=head + new + tail[:-1] + bytes([tail[-1] & 0xFE]))
    assert refusal(amd, None, changed, MalformedError) == "certificate.malformed"


def test_turins_extra_component_is_bound(turin: FakeAmd) -> None:
    vcek = turin.endorsement_key(change={"3.9": b"\x02\x01\x02"})
    assert refusal(turin, None, turin.endorsements(vcek=der(vcek))) == "snp.tcb_binding"
    vcek = turin.endorsement_key(without=("3.9",))
    endorsements = turin.endorsements(vcek=der(vcek))
    assert refusal(turin, None, endorsements, MalformedError) == "certificate.malformed"


def test_turins_chip_id_has_nothing_after_eight_bytes(turin: FakeAmd) -> None:
    longer = turin.evidence(turin.report(change={0x1A8: b"\x01"}))
    assert refusal(turin, longer) == "snp.hwid"
    padded = turin.endorsement_key(change={"4": turin.hwid.ljust(64, b"\0")})
    assert refusal(turin, None, turin.endorsements(vcek=der(padded))) == "snp.hwid"


def test_a_masked_chip_id_cannot_be_bound_to_a_vcek(amd: FakeAmd) -> None:
    assert refusal(amd, amd.evidence(amd.report(change={0x1A0: bytes(64)}))) == "snp.hwid"


@pytest.mark.parametrize("cpuid", [b"\x19\x11\x01", b"\x1a\x02\x01", b"\x17\x01\x01", bytes(3)])
def test_a_cpuid_of_another_product_line(amd: FakeAmd, cpuid: bytes) -> None:
    assert refusal(amd, amd.evidence(amd.report(change={0x188: cpuid}))) == "snp.product"


def test_a_tcb_in_another_product_lines_layout(amd: FakeAmd, turin: FakeAmd) -> None:
    for vendor, tcb in ((amd, "01030008000000d3"), (turin, "03000000000008d3")):
        for offset in (0x038, 0x180, 0x1E0, 0x1F0):
            report = vendor.report(change={offset: bytes.fromhex(tcb)})
            assert refusal(vendor, vendor.evidence(report), None, MalformedError) == "snp.reserved"


def test_a_report_signed_by_another_chip(amd: FakeAmd) -> None:
    other = FakeAmd(ark_key=amd.ark_key, ask_key=amd.ask_key)
    assert refusal(amd, amd.evidence(other.report())) == "snp.signature"


@pytest.mark.parametrize(
    "signature",
    [
        bytes(144),
        bytes(72) + (1).to_bytes(72, "little"),
        (1).to_bytes(72, "little") + bytes(72),
        b"\xff" * 144,
    ],
)
def test_signatures_outside_the_curves_order(amd: FakeAmd, signature: bytes) -> None:
    report = amd.report()
    forged = report[:0x2A0] + signature + report[0x330:]
    assert refusal(amd, amd.evidence(forged)) == "snp.signature"


def test_a_signature_in_the_wrong_byte_order(amd: FakeAmd) -> None:
    report = amd.report()
    swapped = report[0x2A0:0x2E8][::-1] + report[0x2E8:0x330][::-1]
    forged = report[:0x2A0] + swapped + report[0x330:]
    assert refusal(amd, amd.evidence(forged)) == "snp.signature"


class TestRevocation:
    def test_is_unknown_without_a_crl_and_checked_with_one(self, amd: FakeAmd) -> None:
        assert judge(amd).revocation == "unknown"
        with_crl = amd.endorsements(crl=amd.crl(revoked=(1, 2)))
        assert judge(amd, None, with_crl).revocation == "checked"

    def test_a_revoked_intermediate(self, amd: FakeAmd) -> None:
        endorsements = amd.endorsements(crl=amd.crl(revoked=(1, amd.ask.serial_number)))
        assert refusal(amd, None, endorsements) == "certificate.revoked"

    def test_a_crl_of_anybody_else(self, amd: FakeAmd) -> None:
        for forged in (
            crl(amd.ark_name, FakeAmd().ark_key),
            crl("ARK-Genoa", amd.ark_key),
            crl(amd.ask_name, amd.ask_key),
        ):
            assert refusal(amd, None, amd.endorsements(crl=forged)) == "crl.signature"

    @pytest.mark.parametrize(
        ("times", "code"),
        [
            ({"next_update": NOW - DAY / 2}, "crl.expired"),
            ({"last_update": NOW + DAY / 2}, "crl.not_yet_valid"),
        ],
    )
    def test_a_crl_that_is_not_current(
        self, amd: FakeAmd, times: dict[str, Any], code: str
    ) -> None:
        assert refusal(amd, None, amd.endorsements(crl=amd.crl(**times))) == code

    def test_a_crl_that_cannot_be_read(self, amd: FakeAmd) -> None:
        for data in (b"", b"\x30\x00", amd.crl()[:-1]):
            endorsements = amd.endorsements(crl=data)
            assert refusal(amd, None, endorsements, MalformedError) == "crl.malformed"


class TestCertificateTable:
    @staticmethod
    def table(entries: dict[UUID, bytes], *, end: bool = True) -> bytes:
        offset = 24 * (len(entries) + end)
        head, body = b"", b""
        for guid, document in entries.items():
            head += guid.bytes + (offset + len(body)).to_bytes(4, "little")
            head += len(document).to_bytes(4, "little")
            body += document
        return head + bytes(24 * end) + body

    def test_brings_all_certificates(self, amd: FakeAmd) -> None:
        table = self.table(
            {
                OTHER: b"whatever",
                VCEK: der(amd.endorsement_key()),
                ASK: der(amd.ask),
                ARK: der(amd.ark),
            }
        )
        evidence = amd.evidence(certificate_table=table + bytes(4096 - len(table)))
        nothing = amd.endorsements(vcek=None, ca_chain=None)
        assert judge(amd, evidence, nothing).product is Product.MILAN

    def test_brings_a_vlek(self, amd: FakeAmd) -> None:
        vlek = der(amd.endorsement_key(vlek=True))
        evidence = amd.evidence(amd.report(vlek=True), certificate_table=self.table({VLEK: vlek}))
        chain = amd.endorsements(vcek=None, ca_chain=pem(amd.asvk, amd.ark))
        assert judge(amd, evidence, chain).csp_id == "cloud"

    def test_does_not_replace_an_endorsement(self, amd: FakeAmd) -> None:
        evidence = amd.evidence(certificate_table=self.table({VCEK: b"not a certificate"}))
        assert judge(amd, evidence).product is Product.MILAN

    def test_is_verified_like_any_endorsement(self, amd: FakeAmd) -> None:
        forger = FakeAmd(chip_key=amd.chip_key)
        forged = self.table({VCEK: der(forger.endorsement_key())})
        evidence = amd.evidence(certificate_table=forged)
        assert refusal(amd, evidence, amd.endorsements(vcek=None)) == "certificate.signature"

    def test_without_a_needed_certificate(self, amd: FakeAmd) -> None:
        for entries in ({}, {ASK: der(amd.ask), ARK: der(amd.ark)}, {VCEK: der(amd.ask)}):
            evidence = amd.evidence(certificate_table=self.table(entries))
            nothing = amd.endorsements(vcek=None, ca_chain=None)
            code = refusal(amd, evidence, nothing, MalformedError)
            assert code in {"endorsement.missing", "certificate.malformed"}

    @pytest.mark.parametrize(
        "table",
        [
            b"",
            bytes(23),
            VCEK.bytes + bytes(7),
            VCEK.bytes + (0).to_bytes(4, "little") + (25).to_bytes(4, "little"),
            VCEK.bytes + b"\xff" * 8 + bytes(24),
            (VCEK.bytes + bytes(8)) * 2 + bytes(24),
            b"".join(UUID(int=i + 1).bytes + bytes(8) for i in range(17)) + bytes(24),
        ],
    )
    def test_that_cannot_be_read(self, amd: FakeAmd, table: bytes) -> None:
        evidence = amd.evidence(certificate_table=table)
        assert refusal(amd, evidence, None, MalformedError) == "snp.certificate_table"
