"""NVIDIA reports: every recorded case, flipped RIMs and OCSP, forged devices, RIMs and OCSP."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nvidia import device as devices
from aigovtool.attestation.nvidia import rim as rims
from aigovtool.attestation.nvidia.claims import (
    DeviceClaims,
    Measurements,
    Mode,
    NvidiaClaims,
    RimClaims,
    gpu_nonce,
)
from aigovtool.attestation.nvidia.layout import parse_report
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.nvidia.policy import NvidiaPolicy, appraise
from aigovtool.attestation.nvidia.rim import Validity
from aigovtool.attestation.nvidia.verify import CERTIFICATES, OCSP_PREFIX, REPORT, verify
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from tests.attestation.azure_nvidia_vectors import (
    Case,
    case_of,
    cases,
    flips,
    nvidia_parts,
    with_document,
    without_document,
)
from tests.attestation.fake_nvidia import (
    FWID,
    MEASUREMENTS,
    NOW,
    OPAQUE,
    FakeNvidia,
    make,
    pem,
    swid,
    tcb_info,
)

# As the README of the recordings defines it, and without revocation.
STRICT = NvidiaPolicy(
    devices="any",
    platforms="any",
    products="any",
    drivers="any",
    vbios="any",
    modes="any",
    measurements="match",
    rims="current",
    device_revocation="good",
    rim_revocation="good",
)
OFFLINE = msgspec.structs.replace(
    STRICT, device_revocation="unknown-accepted", rim_revocation="unknown-accepted"
)
FREE = msgspec.structs.replace(OFFLINE, measurements="any", rims="any")
REASONS = {
    "reference values missing": "nvidia.rim_missing",
    "revocation: RIM OCSP responses not valid at this time": "nvidia.rim_revocation",
    "revocation: device OCSP responses not valid at this time": "nvidia.device_revocation",
    "RIM signer certificate expired": "nvidia.rim",
}


# --- recorded evidence ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("nvidia"))
def test_recorded_case_gives_what_the_manifest_expects(case: Case) -> None:
    claims = verify(*nvidia_parts(case), now=case.now)
    expected = case.expected
    assert expected["authentic"]
    codes = {reason.code for reason in appraise(claims, STRICT)}
    assert ("reject" if codes else "accept") == expected["strict_policy"]
    assert {REASONS[reason] for reason in expected["reasons"]} <= codes
    if "without_revocation" in expected:
        refused = appraise(claims, OFFLINE)
        assert ("reject" if refused else "accept") == expected["without_revocation"]
    for device in claims.devices:
        came = None if device.measurements is Measurements.MISSING else device.measurements
        assert came == expected["measurements"]
        if "compared_measurements" in expected:
            assert device.compared == expected["compared_measurements"]
        if "device_ocsp" in expected:
            assert device.revocation == expected["device_ocsp"]
        for rim in device.rims:
            assert rim.validity == expected["rim_signature"]
            if "rim_ocsp" in expected:
                assert rim.revocation == expected["rim_ocsp"]


@pytest.mark.parametrize("case", cases("nvidia"))
def test_claims_are_the_fields_of_the_manifest(case: Case) -> None:
    evidence, endorsements = nvidia_parts(case)
    claims = verify(evidence, endorsements, now=case.now)
    assert claims.report_data == bytes.fromhex(case.fields["nonce"])
    assert not claims.debug
    assert len(claims.devices) == len(case.fields["devices"])
    for number, (device, fields) in enumerate(
        zip(claims.devices, case.fields["devices"], strict=True)
    ):
        report = parse_report(evidence.documents[REPORT.format(number=number)])
        assert (device.driver_version or "") == fields["driver"]
        assert report.opaque[6].hex() == fields["vbios_raw"]
        assert len(report.measurements) == fields["measurement_blocks"]
        assert device.measurement == fields["measurement_record_sha256"]
        if fields["fwid_matches"] is not None:
            assert device.fwid_bound == fields["fwid_matches"]
        chain = x509.load_pem_x509_certificates(
            evidence.documents[CERTIFICATES.format(number=number)]
        )
        assert chain[0].subject.rfc4514_string() == fields["leaf"]
        assert device.product in fields["leaf"]


def test_each_chip_and_each_mode_is_told_apart() -> None:
    case = case_of("nvidia/h100-multi")
    claims = verify(*nvidia_parts(case), now=case.now)
    assert len({device.platform_id for device in claims.devices}) == 4
    assert claims.platform_id.count(",") == 3
    assert claims.measurement == claims.devices[0].measurement
    assert {device.mode for device in claims.devices} == {Mode.PROTECTED_PCIE}
    case = case_of("nvidia/h100-full")
    (device,) = verify(*nvidia_parts(case), now=case.now).devices
    assert (device.platform_id, device.product) == ("41431D480FE5E87274", "GH100")
    assert (device.mode, device.vbios_version) == (Mode.SINGLE, "96.00.9F.00.01")
    case = case_of("nvidia/nvswitch-ls10")
    (device,) = verify(*nvidia_parts(case), now=case.now).devices
    assert (device.is_switch, device.mode, device.driver_version) == (True, None, None)
    case = case_of("nvidia/blackwell-gb100")
    (device,) = verify(*nvidia_parts(case), now=case.now).devices
    assert (device.mode, device.product, device.fwid_bound) == (Mode.MULTI, "GB100", True)


@pytest.mark.parametrize("name", ["driver_rim.xml", "vbios_rim.xml"])
def test_any_flipped_bit_of_what_a_rim_signs_is_refused(name: str) -> None:
    case = case_of("nvidia/h100-full")
    body = case.file(name)
    genuine = rims.verify_rim(body, now=case.now)
    accepted = []
    for forged in flips(body, step=23):
        try:
            rim = rims.verify_rim(forged, now=case.now)
        except (VerificationError, MalformedError):
            continue
        assert rim == genuine
        accepted.append(forged)
    # Only what a canonical form does not have: white space in tags, quotes' kind, base64 folding.
    assert len(accepted) < 20


@pytest.mark.parametrize("name", ["gpu_certificate_l4.der", "gpu_driver_rim_l4.der"])
def test_any_flipped_bit_of_an_ocsp_response_never_makes_it_good(name: str) -> None:
    case = case_of("nvidia/h100-full", 0 if "certificate" in name else 1)
    evidence, endorsements = nvidia_parts(case)
    document = f"{OCSP_PREFIX}ocsp/{name}"
    genuine = verify(evidence, endorsements, now=case.now)
    for body in flips(endorsements.documents[document], step=29):
        try:
            claims = verify(evidence, with_document(endorsements, document, body), now=case.now)
        except (VerificationError, MalformedError):
            continue
        unknown = Revocation.UNKNOWN
        (device,) = claims.devices
        assert claims == genuine or unknown in (device.revocation, *_rim_revocations(device))


def test_a_report_under_the_chain_of_another_device_is_refused() -> None:
    case = case_of("nvidia/h100-multi")
    evidence, endorsements = nvidia_parts(case)
    first, second = (CERTIFICATES.format(number=number) for number in (0, 1))
    swapped = with_document(evidence, first, evidence.documents[second])
    with pytest.raises(VerificationError, match="not signed by the device's key"):
        verify(swapped, endorsements, now=case.now)


def test_one_gpu_that_answers_for_two_is_refused() -> None:
    case = case_of("nvidia/h100-multi")
    evidence, endorsements = nvidia_parts(case)
    for name in (REPORT, CERTIFICATES):
        again = evidence.documents[name.format(number=0)]
        evidence = with_document(evidence, name.format(number=3), again)
    with pytest.raises(VerificationError, match="each once"):
        verify(evidence, endorsements, now=case.now)


def test_a_report_for_an_older_nonce_among_the_others_is_refused() -> None:
    multi, full = case_of("nvidia/h100-multi"), case_of("nvidia/h100-full")
    evidence, endorsements = nvidia_parts(multi)
    old, _ = nvidia_parts(full)
    for name in (REPORT, CERTIFICATES):
        replayed = old.documents[name.format(number=0)]
        evidence = with_document(evidence, name.format(number=2), replayed)
    with pytest.raises(VerificationError, match="do not answer one nonce"):
        verify(evidence, endorsements, now=multi.now)


def test_a_rim_with_a_bad_signature_is_refused_whether_or_not_it_is_needed() -> None:
    bad = case_of("composite/tdx-h100").file("driver_rim_bad_signature.xml")
    for vector in ("nvidia/h100-full", "nvidia/nvswitch-ls10"):
        case = case_of(vector)
        evidence, endorsements = nvidia_parts(case)
        with pytest.raises(VerificationError) as refused:
            verify(evidence, with_document(endorsements, "rim.bad", bad), now=case.now)
        assert refused.value.reasons[0].code == "nvidia.rim_signature"


def test_a_genuine_rim_of_another_driver_gives_no_reference_values() -> None:
    case = case_of("nvidia/h100-full")
    evidence, endorsements = nvidia_parts(case)
    other = case_of("composite/tdx-h100").file("driver_rim.xml")
    endorsements = with_document(endorsements, "rim.driver_rim.xml", other)
    (device,) = verify(evidence, endorsements, now=case.now).devices
    assert (device.driver_rim, device.measurements) == (None, Measurements.MISSING)


@pytest.mark.parametrize("count", [0, 17])
def test_no_device_and_too_many_devices_are_malformed(count: int) -> None:
    documents = {REPORT.format(number=number): b"" for number in range(count)}
    with pytest.raises(MalformedError, match="no device, or too many"):
        verify(Evidence(tee=Tee.NVIDIA, documents=documents), Endorsements(tee=Tee.NVIDIA), now=NOW)


# --- an NVIDIA of our own ------------------------------------------------------------------------

FAKE = FakeNvidia()


@pytest.fixture(autouse=True)
def _both_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, root in (
        (devices, "DEVICE_ROOTS", FAKE.device_root),
        (rims, "RIM_ROOTS", FAKE.rim_root),
    ):
        pins = getattr(module, name) | {root.certificate.fingerprint(hashes.SHA256())}
        monkeypatch.setattr(module, name, pins)


def evidence_of(report: bytes, chain: bytes | None = None) -> Evidence:
    documents = {
        REPORT.format(number=0): report,
        CERTIFICATES.format(number=0): FAKE.chain() if chain is None else chain,
    }
    return Evidence(tee=Tee.NVIDIA, documents=documents)


def endorsements_of(**documents: bytes) -> Endorsements:
    named = {name.replace("_", ".", 1): body for name, body in documents.items()}
    return Endorsements(tee=Tee.NVIDIA, documents=named)


GOOD_RIMS = {"rim_driver": FAKE.driver_rim(), "rim_vbios": FAKE.vbios_rim()}


def judge(
    report: bytes, *, now: datetime = NOW, chain: bytes | None = None, **documents: bytes
) -> DeviceClaims:
    endorsements = endorsements_of(**documents)
    (device,) = verify(evidence_of(report, chain), endorsements, now=now).devices
    return device


def _rim_revocations(device: DeviceClaims) -> list[Revocation]:
    return [rim.revocation for rim in device.rims]


def test_a_healthy_gpu_matches() -> None:
    device = judge(FAKE.report(), **GOOD_RIMS)
    assert (device.measurements, device.compared) == (Measurements.MATCH, 30)
    assert (device.mode, device.fwid_bound, device.exempted) == (Mode.SINGLE, True, ())


def test_one_altered_measurement_is_a_mismatch_and_says_where() -> None:
    altered = FAKE.report(measurements={**MEASUREMENTS, 8: bytes(48)})
    device = judge(altered, **GOOD_RIMS)
    assert (device.measurements, device.mismatched) == (Measurements.MISMATCH, (7,))


def test_a_measurement_that_was_left_out_is_a_mismatch() -> None:
    fewer = {index: value for index, value in MEASUREMENTS.items() if index != 40}
    device = judge(FAKE.report(measurements=fewer), **GOOD_RIMS)
    assert (device.measurements, device.mismatched) == (Measurements.MISMATCH, (39,))


@pytest.mark.parametrize(("status", "exempted"), [(b"\x55", (35,)), (b"\xaa", ()), (b"", ())])
def test_the_video_decoders_measurement_counts_unless_it_is_disabled(
    status: bytes, exempted: tuple[int, ...]
) -> None:
    report = FAKE.report(
        measurements={**MEASUREMENTS, 36: bytes(48)}, opaque={**OPAQUE, 11: status}
    )
    device = judge(report, **GOOD_RIMS)
    assert device.exempted == exempted
    assert device.measurements is (Measurements.MATCH if exempted else Measurements.MISMATCH)


def test_any_of_the_alternatives_is_right_and_nothing_else() -> None:
    rim = FAKE.sign_rim(_swid({5: [bytes(48), MEASUREMENTS[6]]}))
    assert judge(FAKE.report(), rim_v=rim).mismatched == ()
    rim = FAKE.sign_rim(_swid({5: [bytes(48), MEASUREMENTS[7]]}))
    assert judge(FAKE.report(), rim_v=rim).mismatched == (5,)


def test_of_two_rims_for_one_version_the_board_matches_its_own() -> None:
    other_board = FAKE.sign_rim(_swid({5: [bytes(48)]}))
    device = judge(FAKE.report(), rim_a=other_board, **GOOD_RIMS)
    assert device.measurements is Measurements.MATCH


def test_rims_that_claim_the_same_measurement_are_refused() -> None:
    overlapping = FAKE.sign_rim(_swid({25: [MEASUREMENTS[26]]}))
    with pytest.raises(VerificationError) as refused:
        judge(FAKE.report(), rim_driver=GOOD_RIMS["rim_driver"], rim_v=overlapping)
    assert refused.value.reasons[0].code == "nvidia.rim_conflict"


def test_a_switch_needs_no_driver_rim() -> None:
    device = make("LS_10 A01 FSP BROM", FAKE.device_ca, serial_number="50BB")
    leaf = make("leaf", device, ca=False)
    opaque = {6: b"96.10.55.00.01"}
    report = FAKE.report(opaque=opaque, key=leaf.key)
    chain = pem(leaf, device, FAKE.device_ca, FAKE.device_root)
    rim = FAKE.sign_rim(_swid({5: [MEASUREMENTS[6]]}, version="96.10.55.00.01", product="LS10"))
    claims = judge(report, chain=chain, rim_bios=rim)
    assert (claims.is_switch, claims.measurements) == (True, Measurements.MATCH)
    assert (claims.fwid_bound, claims.mode) == (False, None)
    whole = _claims_of(claims)
    assert appraise(whole, msgspec.structs.replace(OFFLINE, drivers=("550.1",))) == []
    missing = judge(report, chain=chain)
    codes = [reason.code for reason in appraise(_claims_of(missing), OFFLINE)]
    assert codes == ["nvidia.rim_missing"]


@pytest.mark.parametrize(
    ("opaque", "mode"),
    [
        ({36: b"\1\0"}, Mode.MULTI),
        ({36: b"\2\0", 21: b"\x55"}, Mode.PROTECTED_PCIE),
        ({36: b"\7\0", 21: b"\x55"}, None),
        ({21: b"\xaa"}, Mode.PROTECTED_PCIE),
        ({21: b"\x55"}, Mode.SINGLE),
        ({}, None),
    ],
)
def test_modes(opaque: Mapping[int, bytes], mode: Mode | None) -> None:
    assert judge(FAKE.report(opaque=opaque)).mode is mode


def test_a_report_without_versions_finds_no_rim() -> None:
    device = judge(FAKE.report(opaque={}), **GOOD_RIMS)
    assert (device.driver_version, device.vbios_version) == (None, None)
    assert (device.rims, device.compared) == ((), 0)


@pytest.mark.parametrize("fwid", [bytes(48), bytes(range(48))])
def test_a_report_by_other_firmware_than_its_certificate_is_refused(fwid: bytes) -> None:
    with pytest.raises(VerificationError) as refused:
        judge(FAKE.report(opaque={**OPAQUE, 20: fwid}))
    assert refused.value.reasons[0].code == "nvidia.fwid"


def test_a_leaf_that_names_no_firmware_or_in_an_unknown_way_is_refused() -> None:
    odd = x509.UnrecognizedExtension(tcb_info(FWID).oid, b"odd")
    for extensions, error in (((), VerificationError), ((odd,), MalformedError)):
        leaf = make("leaf", FAKE.device, ca=False, extensions=extensions)
        chain = pem(leaf, FAKE.device, FAKE.device_ca, FAKE.device_root)
        with pytest.raises(error):
            judge(FAKE.report(key=leaf.key), chain=chain)


def test_devices_that_nvidia_did_not_make_are_refused() -> None:
    other = FakeNvidia()
    with pytest.raises(VerificationError) as refused:
        judge(other.report(), chain=other.chain())
    assert refused.value.reasons[0].code == "certificate.root"
    with pytest.raises(VerificationError):  # the pinned root at the end of another chain
        judge(
            other.report(), chain=pem(other.leaf, other.device, other.device_ca, FAKE.device_root)
        )


def test_chains_that_are_no_device_chains_are_malformed() -> None:
    leaf = make("leaf", FAKE.device_ca, ca=False, curve=ec.SECP256R1())
    nameless = make("nameless", FAKE.device_ca)
    under = make("leaf", nameless, ca=False)
    for key, chain in (
        (FAKE.leaf.key, b"no chain"),
        (FAKE.leaf.key, pem(FAKE.leaf, FAKE.device)),
        (FAKE.leaf.key, pem(leaf, FAKE.device_ca, FAKE.device_root)),
        (under.key, pem(under, nameless, FAKE.device_ca, FAKE.device_root)),
    ):
        with pytest.raises(MalformedError):
            judge(FAKE.report(opaque={}, key=key), chain=chain)


def test_the_nonce_of_a_session_is_the_end_of_what_its_cpu_commits_to() -> None:
    report_data = bytes(range(64))
    claims = verify(
        evidence_of(FAKE.report(nonce=gpu_nonce(report_data))), endorsements_of(), now=NOW
    )
    assert claims.report_data == claims.commitment_to(report_data) == report_data[32:]


# --- policy --------------------------------------------------------------------------------------


def _claims_of(*judged: DeviceClaims) -> NvidiaClaims:
    return NvidiaClaims(report_data=bytes(32), devices=judged, verified_at=NOW)


RIM = RimClaims(version="550.1", tag_id="tag", validity=Validity.VALID, revocation=Revocation.GOOD)
HEALTHY = DeviceClaims(
    platform_id="41AA",
    product="GH100",
    is_switch=False,
    driver_version="550.1",
    vbios_version="96.00.9F.00.01",
    mode=Mode.SINGLE,
    measurement="00" * 32,
    fwid_bound=True,
    driver_rim=RIM,
    vbios_rim=RIM,
    measurements=Measurements.MATCH,
    compared=33,
    mismatched=(),
    exempted=(),
    revocation=Revocation.GOOD,
)


@pytest.mark.parametrize(
    ("policy", "device", "codes"),
    [
        ({}, {}, []),
        ({"devices": 1}, {}, []),
        ({"devices": 2}, {}, ["nvidia.devices"]),
        ({"platforms": ("41AA",)}, {}, []),
        ({"platforms": ("41AB",)}, {}, ["nvidia.platform"]),
        ({"products": ()}, {}, ["nvidia.product"]),
        ({"drivers": ("550.2",)}, {}, ["nvidia.driver"]),
        ({"drivers": ("550.2",)}, {"driver_version": None}, ["nvidia.driver"]),
        ({"vbios": ("96.00.9F.00.02",)}, {}, ["nvidia.vbios"]),
        ({"modes": (Mode.SINGLE,)}, {}, []),
        ({"modes": (Mode.MULTI,)}, {}, ["nvidia.mode"]),
        ({"modes": (Mode.SINGLE,)}, {"mode": None}, ["nvidia.mode"]),
        ({"measurements": ("00" * 32,)}, {"measurements": Measurements.MISSING}, []),
        ({"measurements": ("11" * 32,)}, {}, ["nvidia.measurements"]),
        ({}, {"measurements": Measurements.MISMATCH, "mismatched": (7,)}, ["nvidia.measurements"]),
        ({"measurements": "any"}, {"measurements": Measurements.MISMATCH}, []),
        ({}, {"driver_rim": None}, ["nvidia.rim_missing"]),
        ({}, {"vbios_rim": None}, ["nvidia.rim_missing"]),
        ({}, {"driver_rim": None, "vbios_rim": None}, ["nvidia.rim_missing"] * 2),
        ({}, {"vbios_rim": replace(RIM, validity=Validity.EXPIRED)}, ["nvidia.rim"]),
        ({}, {"vbios_rim": replace(RIM, validity=Validity.NOT_YET_VALID)}, ["nvidia.rim"]),
        ({"rims": "any"}, {"vbios_rim": replace(RIM, validity=Validity.EXPIRED)}, []),
    ],
)
def test_each_field_of_the_policy_refuses_what_it_should(
    policy: dict[str, object], device: dict[str, object], codes: list[str]
) -> None:
    reasons = appraise(
        _claims_of(replace(HEALTHY, **device)), msgspec.structs.replace(STRICT, **policy)
    )
    assert [reason.code for reason in reasons] == codes
    assert all(reason.mend and reason.came for reason in reasons)


@pytest.mark.parametrize("known", list(Revocation))
def test_no_policy_accepts_what_is_revoked_and_each_says_whether_unknown_will_do(
    known: Revocation,
) -> None:
    revoked = known in (Revocation.REVOKED, Revocation.ON_HOLD)
    device = _claims_of(replace(HEALTHY, revocation=known))
    rim = _claims_of(replace(HEALTHY, driver_rim=replace(RIM, revocation=known)))
    for claims, field in ((device, "device_revocation"), (rim, "rim_revocation")):
        for demanded in ("good", "unknown-accepted"):
            policy = msgspec.structs.replace(STRICT, **{field: demanded})
            refused = revoked or (demanded == "good" and known is not Revocation.GOOD)
            codes = [reason.code for reason in appraise(claims, policy)]
            assert codes == ([f"nvidia.{field}"] if refused else [])


def test_one_device_that_does_not_satisfy_refuses_all() -> None:
    other = replace(HEALTHY, platform_id="41AB", product="GB100")
    policy = msgspec.structs.replace(STRICT, products=("GH100",))
    (reason,) = appraise(_claims_of(HEALTHY, other), policy)
    assert "41AB" in reason.message


TABLE = {
    "tee": "nvidia",
    "devices": 8,
    "platforms": "any",
    "products": ["GH100"],
    "drivers": "any",
    "vbios": "any",
    "modes": ["spt"],
    "measurements": "match",
    "rims": "current",
    "device_revocation": "good",
    "rim_revocation": "unknown-accepted",
}


def test_a_policy_reads_from_its_table() -> None:
    policy = msgspec.convert(TABLE, NvidiaPolicy)
    assert (policy.devices, policy.modes) == (8, (Mode.SINGLE,))


@pytest.mark.parametrize("field", sorted(set(TABLE) - {"tee"}))
def test_a_policy_with_a_field_left_out_is_an_error(field: str) -> None:
    table = {name: value for name, value in TABLE.items() if name != field}
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(table, NvidiaPolicy)


@pytest.mark.parametrize(
    "change",
    [
        {"devices": 0},
        {"devices": "all"},
        {"modes": ["cc"]},
        {"measurements": ["00"]},
        {"measurements": "ignored"},
        {"device_revocation": "any"},
        {"rim_revocation": "ignored"},
        {"rims": "expired"},
        {"surplus": "any"},
    ],
)
def test_a_policy_that_means_nothing_is_an_error(change: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**TABLE, **change}, NvidiaPolicy)


# --- layout --------------------------------------------------------------------------------------


def test_a_report_cut_short_or_with_a_tail_is_malformed() -> None:
    report = FAKE.report()
    parse_report(report)
    for size in range(0, len(report), 13):
        with pytest.raises(MalformedError):
            parse_report(report[:size])
    with pytest.raises(MalformedError, match="after its end"):
        parse_report(report + b"\0")


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 0x12),  # SPDM 1.2 signs something else
        (1, 0xE1),
        (2, 0x00),  # no signature asked for
        (3, 0x01),  # one measurement alone
        (36, 0x01),  # another slot
        (37, 0x12),
        (38, 0x7F),  # an error response
        (40, 0x01),
        (41, 41),  # more blocks than there are
        (41, 39),
        (45, 2),  # the same index twice
        (46, 2),  # not the DMTF's specification
        (47, 50),
        (50, 47),
    ],
)
def test_what_is_no_answer_for_all_measurements_is_malformed(at: int, value: int) -> None:
    report = bytearray(FAKE.report())
    report[at] = value
    with pytest.raises(MalformedError):
        parse_report(bytes(report))


def test_opaque_fields_twice_or_too_large_are_malformed() -> None:
    report = FAKE.report(opaque={3: b"1", 6: b"2"})
    twice = report.replace(b"\6\0\1\x002", b"\3\0\1\x002")
    with pytest.raises(MalformedError, match="twice"):
        parse_report(twice)
    with pytest.raises(MalformedError, match="too much opaque"):
        parse_report(FAKE.report(opaque={3: bytes(1021)}))


RECORDED = FAKE.report()


@st.composite
def damaged_reports(draw: st.DrawFn) -> bytes:
    report = bytearray(RECORDED)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(report) - 1))
        report[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(report)


@given(data=st.binary(max_size=200) | damaged_reports())
def test_only_our_errors_leave_the_parser(data: bytes) -> None:
    with contextlib.suppress(AIGovToolError):
        parse_report(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(report=damaged_reports(), chain=st.binary(max_size=80))
def test_only_our_errors_leave_the_verifier(report: bytes, chain: bytes) -> None:
    for body in (chain, FAKE.chain()):
        with contextlib.suppress(AIGovToolError):
            verify(evidence_of(report, body), endorsements_of(rim_x=chain), now=NOW)


def test_too_many_endorsements_are_malformed() -> None:
    many = {f"rim_{number}": b"" for number in range(33)}
    with pytest.raises(MalformedError, match="too many endorsements"):
        judge(FAKE.report(), **many)


def test_a_missing_document_is_malformed() -> None:
    evidence = evidence_of(FAKE.report())
    with pytest.raises(MalformedError, match=r"device\.0\.certificates"):
        verify(
            without_document(evidence, CERTIFICATES.format(number=0)), endorsements_of(), now=NOW
        )


def test_without_a_rim_lxml_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml.etree", None)
    assert judge(FAKE.report()).measurements is Measurements.MISSING


def _swid(
    values: Mapping[int, list[bytes]], *, version: str = "96.00.9F.00.01", product: str = "GH100"
) -> bytes:
    return swid(version=version, values=values, product=product)
