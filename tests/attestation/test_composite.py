"""CPU and GPU in one session: the recorded case, and parts that do not belong together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from aigovtool.attestation import composite
from aigovtool.attestation.composite import CompositePolicy, appraise, verify
from aigovtool.attestation.dcap.claims import TdxClaims
from aigovtool.attestation.dcap.policy import TdxPolicy
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nvidia.claims import Measurements
from aigovtool.attestation.nvidia.verify import CERTIFICATES, REPORT
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.errors import MalformedError, VerificationError
from tests.attestation.azure_nvidia_vectors import (
    SNP_STRICT,
    TDX_STRICT,
    Case,
    azure_parts,
    case_of,
    cases,
    composite_parts,
    free_but,
    nvidia_parts,
    strict_policy,
    with_document,
    without_document,
)
from tests.attestation.fake_vendors import NOW, FakeAmd

NVIDIA_STRICT = {
    "tee": "nvidia",
    "devices": "any",
    "platforms": "any",
    "products": "any",
    "drivers": "any",
    "vbios": "any",
    "modes": "any",
    "measurements": "match",
    "rims": "current",
    "device_revocation": "good",
    "rim_revocation": "good",
}
TABLE: dict[str, Any] = {
    "tee": "composite",
    "cpu": free_but(TdxPolicy, TDX_STRICT),
    "gpu": NVIDIA_STRICT,
}
STRICT = msgspec.convert(TABLE, CompositePolicy)
REASONS = {
    "GPU: VBIOS reference values missing": {"nvidia.rim_missing"},
    "GPU: revocation status unknown": {"nvidia.device_revocation", "nvidia.rim_revocation"},
}


@pytest.mark.parametrize("case", cases("composite"))
def test_recorded_case_gives_what_the_manifest_expects(case: Case) -> None:
    claims = verify(*composite_parts(case), now=case.now)
    expected = case.expected
    assert expected["authentic"]
    codes = {reason.code for reason in appraise(claims, STRICT)}
    assert ("reject" if codes else "accept") == expected["strict_policy"]
    assert codes == set().union(*(REASONS[reason] for reason in expected["reasons"]))
    cpu = {code for code in codes if not code.startswith("nvidia.")}
    assert ("reject" if cpu else "accept") == expected["quote_strict_policy"]
    assert isinstance(claims.cpu, TdxClaims)
    assert claims.cpu.platform.tcb_status == expected["tcb_status"]
    (device,) = claims.gpu.devices
    assert device.driver_rim is not None
    assert device.driver_rim.validity == expected["driver_rim_signature"]
    assert (device.mismatched, device.compared) == ((), 21)  # gpu_driver_measurements: match
    assert device.measurements is Measurements.MISSING


@pytest.mark.parametrize("case", cases("composite"))
def test_claims_are_the_fields_of_the_manifest(case: Case) -> None:
    claims, fields = verify(*composite_parts(case), now=case.now), case.fields
    assert claims.report_data == bytes.fromhex(fields["quote"]["report_data"])
    assert claims.gpu.report_data == bytes.fromhex(fields["gpu"]["nonce"])
    assert claims.measurement == fields["quote"]["mrtd"]
    assert claims.debug == fields["quote"]["debug"]
    assert claims.platform_id == claims.cpu.platform_id
    assert claims.commitment_to(claims.report_data) == claims.report_data
    assert claims.gpu.devices[0].driver_version == fields["gpu"]["devices"][0]["driver"]


@pytest.mark.parametrize("case", cases("composite"))
def test_a_driver_rim_with_a_bad_signature_is_refused(case: Case) -> None:
    evidence, endorsements = composite_parts(case)
    for name in case.vector["files"]["invalid_rims"]:
        bad = with_document(endorsements, "nvidia.rim.driver_rim.xml", case.file(name))
        with pytest.raises(VerificationError) as refused:
            verify(evidence, bad, now=case.now)
        assert refused.value.reasons[0].code == "nvidia.rim_signature"


def test_genuine_gpus_of_another_session_are_refused() -> None:
    case, other = case_of("composite/tdx-h100"), case_of("nvidia/h100-full")
    evidence, endorsements = composite_parts(case)
    gpu, _ = nvidia_parts(other)
    for name in (REPORT.format(number=0), CERTIFICATES.format(number=0)):
        evidence = with_document(evidence, f"nvidia.{name}", gpu.documents[name])
    with pytest.raises(VerificationError) as refused:
        verify(evidence, endorsements, now=case.now)
    assert refused.value.reasons[0].code == "composite.binding"


def test_the_genuine_quote_of_another_session_is_refused() -> None:
    case, other = case_of("composite/tdx-h100"), case_of("tdx/v4-event-log")
    evidence, endorsements = composite_parts(case)
    quote = other.file(other.vector["files"]["quote"])
    with pytest.raises(VerificationError):
        verify(with_document(evidence, "tdx.quote", quote), endorsements, now=case.now)


@pytest.mark.parametrize(
    ("add", "remove"),
    [
        ("snp.report", None),
        ("tpm2.quote", None),
        ("nothing", None),
        (None, "tdx.quote"),
        (None, "nvidia."),
        ("composite.tdx.quote", "tdx.quote"),
    ],
)
def test_evidence_without_exactly_one_cpu_and_one_gpu_part_is_malformed(
    add: str | None, remove: str | None
) -> None:
    case = case_of("composite/tdx-h100")
    evidence, endorsements = composite_parts(case)
    for name in evidence.documents:
        if remove is not None and name.startswith(remove):
            evidence = without_document(evidence, name)
    if add is not None:
        evidence = with_document(evidence, add, b"")
    with pytest.raises(MalformedError) as refused:
        verify(evidence, endorsements, now=case.now)
    assert refused.value.reasons[0].code == "composite.parts"


def test_nothing_is_malformed() -> None:
    empty = Evidence(tee=Tee.COMPOSITE, documents={})
    case = case_of("composite/tdx-h100")
    with pytest.raises(MalformedError):
        verify(empty, Endorsements(tee=Tee.COMPOSITE), now=case.now)


def test_an_endorsement_of_one_part_is_not_seen_by_the_other() -> None:
    case = case_of("composite/tdx-h100")
    evidence, endorsements = composite_parts(case)
    missing = without_document(endorsements, "tdx.tcb_info")
    missing = with_document(missing, "nvidia.tcb_info", endorsements.documents["tdx.tcb_info"])
    with pytest.raises(MalformedError):
        verify(evidence, missing, now=case.now)


@pytest.mark.parametrize("vector", ["azure-snp/genoa", "azure-tdx/ak-chain"])
def test_an_azure_vm_is_bound_by_the_end_of_its_tpm_nonce(
    vector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(vector)
    azure, azure_endorsements = azure_parts(case)
    evidence = Evidence(
        tee=Tee.COMPOSITE,
        documents={f"{azure.tee}.{name}": body for name, body in azure.documents.items()}
        | {"nvidia.any": b""},
    )
    endorsements = Endorsements(
        tee=Tee.COMPOSITE,
        documents={
            f"{azure.tee}.{name}": body for name, body in azure_endorsements.documents.items()
        },
    )
    recorded = case_of("composite/tdx-h100")
    gpu = verify(*composite_parts(recorded), now=recorded.now).gpu
    nonce = bytes.fromhex(case.fields["tpm_qualifying_data"])[-32:]
    for answered, accepted in ((nonce, True), (bytes(31) + b"\1", False)):
        claims = replace(gpu, report_data=answered)
        monkeypatch.setattr(
            composite.nvidia_verify, "verify", lambda *_, now, claims=claims: claims
        )
        if accepted:
            bound = verify(evidence, endorsements, now=case.now)
            assert bound.commitment_to(bytes(64)) == bound.cpu.commitment_to(bytes(64))
            policy = CompositePolicy(cpu=strict_policy(azure.tee), gpu=STRICT.gpu)
            assert {r.code.partition(".")[0] for r in appraise(bound, policy)} == {"nvidia"}
            assert "composite.cpu" in {r.code for r in appraise(bound, STRICT)}
        else:
            with pytest.raises(VerificationError):
                verify(evidence, endorsements, now=case.now)


def test_each_part_of_the_policy_refuses_what_it_should() -> None:
    case = case_of("composite/tdx-h100")
    claims = verify(*composite_parts(case), now=case.now)
    gpu = {
        **NVIDIA_STRICT,
        "measurements": "any",
        "device_revocation": "unknown-accepted",
        "rim_revocation": "unknown-accepted",
    }
    offline = msgspec.convert({**TABLE, "gpu": gpu}, CompositePolicy)
    assert appraise(claims, offline) == []
    table = free_but(TdxPolicy, {**TDX_STRICT, "mr_td": ["00" * 48]})
    other = msgspec.convert({**TABLE, "cpu": table, "gpu": gpu}, CompositePolicy)
    assert [reason.code for reason in appraise(claims, other)] == ["tdx.mr_td"]
    snp = msgspec.convert(
        {**TABLE, "cpu": free_but(SnpPolicy, SNP_STRICT), "gpu": gpu}, CompositePolicy
    )
    (reason,) = appraise(claims, snp)
    assert (reason.code, reason.expected, reason.came) == ("composite.cpu", "Snp", "Tdx")


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_policy_for_one_part_alone_is_an_error(kind: str) -> None:
    table = {name: value for name, value in TABLE.items() if name != kind}
    with pytest.raises(msgspec.ValidationError, match=kind):
        msgspec.convert(table, CompositePolicy)


def test_an_snp_report_takes_the_part_of_the_cpu() -> None:
    case = case_of("composite/tdx-h100")
    whole = verify(*composite_parts(case), now=case.now)
    amd = FakeAmd()
    snp = composite.snp_verify.verify(amd.evidence(), amd.endorsements(), now=NOW, roots=amd.roots)
    assert isinstance(snp, SnpClaims)
    policy = msgspec.convert({**TABLE, "cpu": free_but(SnpPolicy, SNP_STRICT)}, CompositePolicy)
    codes = {reason.code.partition(".")[0] for reason in appraise(replace(whole, cpu=snp), policy)}
    assert codes == {"nvidia"}
