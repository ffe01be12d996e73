"""Recorded SEV-SNP reports are judged as the manifest says, and only with what belongs to them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.policy import appraise
from aigovtool.attestation.snp.product import AMD_ROOTS, Product
from aigovtool.attestation.snp.verify import verify
from aigovtool.attestation.x509chain import fingerprint, load_certificates, verify_chain
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from tests.attestation.snp_nitro_vectors import (
    Vector,
    all_cases,
    load,
    one,
    snp_policy,
    time_of,
)
from tests.shared_data import shared

STRICT = snp_policy(debug="forbidden")
SECOND = timedelta(seconds=1)

# The manifest's reasons are for people; these are the codes they become here.
CODES = {
    "policy:debug": {"snp.debug"},
    "endorsement certificate missing": {"endorsement.missing"},
    "signature chain": {"certificate.signature", "snp.hwid", "snp.tcb_binding", "snp.signature"},
}

CASES = all_cases(Tee.SNP)
AUTHENTIC = [vector for vector in load(Tee.SNP) if vector.authentic]


def ids(items: list[Any]) -> list[str]:
    return [item[0] if isinstance(item, tuple) else item.id for item in items]


def check(vector: Vector, now: datetime) -> tuple[bool | None, list[str], SnpClaims | None]:
    """Return authentic, codes against it, and the claims."""
    try:
        claims = verify(vector.evidence, vector.endorsements, now=now)
    except (MalformedError, VerificationError) as error:
        codes = [reason.code for reason in error.reasons]
        return (None if "endorsement.missing" in codes else False), codes, None
    return True, [reason.code for reason in appraise(claims, STRICT)], claims


@pytest.mark.parametrize(("_", "vector", "case"), CASES, ids=ids(CASES))
def test_vector_is_judged_as_the_manifest_says(
    _: str, vector: Vector, case: dict[str, Any]
) -> None:
    authentic, codes, _claims = check(vector, time_of(case))
    expected = case["expected"]
    assert authentic is expected["authentic"]
    assert ("reject" if codes else "accept") == expected["strict_policy"]
    for reason in expected["reasons"]:
        key = reason if reason in CODES else reason.partition(":")[0]
        assert CODES[key] & set(codes), f"{reason} is not among {codes}"


@pytest.mark.parametrize("vector", AUTHENTIC, ids=ids(AUTHENTIC))
def test_claims_are_what_the_manifest_read(vector: Vector) -> None:
    claims = verify(vector.evidence, vector.endorsements, now=vector.time)
    fields = dict(vector.fields)
    policy = int(fields.pop("policy"), 16)
    platform = int(fields.pop("platform_info"), 16)
    tcb = fields.pop("reported_tcb")
    fields.pop("reported_tcb_raw")
    if "cpuid_fam_mod_step" in fields:
        family, model, _step = fields.pop("cpuid_fam_mod_step")
        assert (claims.product == "Turin") == (family == 26)
        assert model >> 4 == (1 if claims.product == "Genoa" else 0)
    guest = claims.guest_policy
    assert policy == (
        guest.abi_minor
        | guest.abi_major << 8
        | guest.smt << 16
        | 1 << 17
        | guest.migrate_ma << 18
        | guest.debug << 19
        | guest.single_socket << 20
        | guest.cxl << 21
        | guest.aes_256_xts << 22
        | guest.rapl_disabled << 23
        | guest.ciphertext_hiding << 24
        | guest.page_swap_disabled << 25
    )
    info = claims.platform_info
    assert platform == (
        info.smt
        | info.tsme << 1
        | info.ecc << 2
        | info.rapl_disabled << 3
        | info.ciphertext_hiding << 4
        | info.alias_check << 5
        | info.iommu_write_safe << 6
        | info.tio << 7
    )
    assert claims.reported_tcb.fmc == tcb.get("fmc")
    assert claims.reported_tcb.boot_loader == tcb["bl"]
    assert claims.reported_tcb.tee == tcb["tee"]
    assert claims.reported_tcb.snp == tcb["snp"]
    assert claims.reported_tcb.microcode == tcb["ucode"]
    assert fields == {
        "report_version": claims.report_version,
        "guest_svn": claims.guest_svn,
        "debug": claims.debug,
        "migrate_ma": guest.migrate_ma,
        "smt_allowed": guest.smt,
        "vmpl": claims.vmpl,
        "signing_key": claims.signing_key.upper(),
        "chip_id_masked": False,
        "measurement": claims.measurement,
        "report_data": claims.report_data.hex(),
        "host_data": claims.host_data,
        "id_key_digest": claims.id_key_digest,
        "chip_id": claims.chip_id or "00" * 64,
    }
    assert claims.platform_id == claims.chip_id
    assert (claims.csp_id is None) == (claims.signing_key == "vcek")
    assert claims.revocation == "unknown"
    assert claims.verified_at == vector.time


@pytest.mark.parametrize("vector", AUTHENTIC, ids=ids(AUTHENTIC))
def test_certificates_must_be_valid_at_the_stated_time(vector: Vector) -> None:
    opens, closes = (datetime.fromisoformat(edge) for edge in vector.cases[0]["window"])
    for now, expected in (
        (opens - SECOND, "certificate.not_yet_valid"),
        (opens, None),
        (closes, None),
        (closes + SECOND, "certificate.expired"),
        (datetime.fromisoformat("2060-01-01T00:00:00Z"), "certificate.expired"),
    ):
        authentic, codes, _claims = check(vector, now)
        assert authentic is (expected is None)
        if expected:
            assert codes == [expected]


def with_report(vector: Vector, report: bytes) -> Vector:
    return replace(vector, evidence=Evidence(tee=Tee.SNP, documents={"report": report}))


def with_endorsements(vector: Vector, documents: dict[str, bytes]) -> Vector:
    return replace(vector, endorsements=Endorsements(tee=Tee.SNP, documents=documents))


@pytest.mark.parametrize("vector", AUTHENTIC, ids=ids(AUTHENTIC))
@pytest.mark.parametrize("other", AUTHENTIC, ids=ids(AUTHENTIC))
def test_another_chips_certificates_do_not_vouch_for_a_report(
    vector: Vector, other: Vector
) -> None:
    if vector is other:
        return
    crossed = replace(vector, endorsements=other.endorsements)
    documents = other.endorsements.documents
    for now in (vector.time, other.time):
        authentic, _codes, claims = check(crossed, now)
        assert authentic is not True
        assert claims is None
    # Even with the right chain, and whatever the name under which the other certificate comes.
    key = documents.get("vcek") or documents["vlek"]
    chain = vector.endorsements.document("ca_chain")
    crossed = with_endorsements(vector, {"vcek": key, "vlek": key, "ca_chain": chain})
    assert check(crossed, other.time)[0] is False


@pytest.mark.parametrize("change", [b"", b"\0", b"\0" * 1183, b"\0" * 1185, b"\0" * 1184])
def test_bytes_that_are_no_report_are_malformed(change: bytes) -> None:
    vector = AUTHENTIC[0]
    with pytest.raises(MalformedError):
        verify(with_report(vector, change).evidence, vector.endorsements, now=vector.time)


def test_a_report_is_neither_cut_nor_padded() -> None:
    vector = AUTHENTIC[0]
    report = vector.evidence.document("report")
    for changed in (report[:-1], report + b"\0", report[1:]):
        with pytest.raises(MalformedError, match="wrong length"):
            verify(with_report(vector, changed).evidence, vector.endorsements, now=vector.time)


def test_no_certificate_is_told_apart_from_a_wrong_one() -> None:
    vector = one(Tee.SNP, "snp/milan-v3-vlek")
    chain = vector.endorsements.document("ca_chain")
    vcek_only = {"vcek": vector.endorsements.document("vlek"), "ca_chain": chain}
    authentic, codes, _claims = check(with_endorsements(vector, vcek_only), vector.time)
    assert (authentic, codes) == (None, ["endorsement.missing"])


def test_the_chain_may_come_in_any_order() -> None:
    vector = AUTHENTIC[0]
    chain = vector.endorsements.document("ca_chain")
    mark = b"-----BEGIN CERTIFICATE-----"
    first, second = (mark + part for part in chain.split(mark)[1:])
    changed = dict(vector.endorsements.documents) | {"ca_chain": second.rstrip() + b"\n" + first}
    assert check(with_endorsements(vector, changed), vector.time)[0] is True


def test_refusals_name_what_was_expected_and_what_came() -> None:
    vector, other = AUTHENTIC[0], AUTHENTIC[-1]
    chip = vector.evidence.document("report")[0x1A0:0x1E0].hex()
    with pytest.raises(VerificationError) as caught:
        verify(vector.evidence, one(Tee.SNP, "snp/milan-v2-debug").endorsements, now=other.time)
    assert isinstance(caught.value, AIGovToolError)
    reason = caught.value.reasons[0]
    assert (reason.code, reason.expected) == ("snp.hwid", chip)
    assert reason.came != chip


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("kind", ["ask", "asvk"])
def test_the_pins_are_amds_roots(product: Product, kind: str) -> None:
    path = shared("evidence", "roots", f"amd_{product.lower()}_{kind}_ark.pem")
    intermediate, root = load_certificates(path.read_bytes(), what=path.name)
    assert AMD_ROOTS[fingerprint(root)] is product
    now = intermediate.not_valid_before_utc
    verify_chain(
        [intermediate, root], root_fingerprints=frozenset(AMD_ROOTS), now=now, first_is_issuer=True
    )
