"""Azure confidential VMs: every recorded case, forged paravisors and quotes."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigovtool.attestation.azure import layout
from aigovtool.attestation.azure.claims import PARAVISOR_WARNING, AzureSnpClaims
from aigovtool.attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy, appraise
from aigovtool.attestation.azure.verify import (
    HCL_REPORT,
    TPM_PCRS,
    TPM_QUOTE,
    TPM_SIGNATURE,
    verify,
)
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.attestation.tpm2.layout import Hash
from aigovtool.attestation.tpm2.verify import AK_CERTIFICATE, AK_INTERMEDIATES
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    PromiseBrokenError,
    VerificationError,
)
from tests.attestation.azure_nvidia_vectors import (
    GUEST,
    SNP_STRICT,
    Case,
    azure_parts,
    case_of,
    cases,
    flips,
    free_but,
    strict_policy,
    with_document,
    without_document,
)
from tests.attestation.fake_vendors import FakeAmd

REASONS = {"tcb:OutOfDate": "tcb.status", "attr:no-SEPT_VE_DISABLE": "tdx.sept_ve_disable"}

# --- recorded evidence ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("azure-snp", "azure-tdx"))
def test_recorded_case_gives_what_the_manifest_expects(case: Case) -> None:
    evidence, endorsements = azure_parts(case)
    claims = verify(evidence, endorsements, now=case.now)
    assert case.expected["authentic"]
    codes = {reason.code for reason in appraise(claims, strict_policy(evidence.tee))}
    assert ("reject" if codes else "accept") == case.expected["strict_policy"]
    assert codes == {REASONS[reason] for reason in case.expected["reasons"]}
    if "tcb_status" in case.expected:
        assert claims.hardware.platform.tcb_status == case.expected["tcb_status"]


@pytest.mark.parametrize("case", cases("azure-snp", "azure-tdx"))
def test_claims_are_the_fields_of_the_manifest(case: Case) -> None:
    evidence, endorsements = azure_parts(case)
    claims, fields = verify(evidence, endorsements, now=case.now), case.fields
    hardware = fields.get("snp") or fields["quote"]
    assert claims.hcl_version == fields["hcl_version"]
    assert isinstance(claims, AzureSnpClaims) == (fields["hcl_report_type"] == "SNP")
    assert claims.report_data == bytes.fromhex(fields["tpm_qualifying_data"])
    assert claims.user_data == bytes.fromhex(fields["user_data"])
    assert claims.measurement == hardware.get("measurement", hardware.get("mrtd"))
    assert claims.debug == hardware["debug"]
    assert claims.platform_id == hardware.get("chip_id", claims.platform_id)
    assert claims.hardware.report_data.hex() == hardware["report_data"]
    values = json.loads(case.file(case.vector["files"]["tpm_pcrs"]))
    assert [value.hex() for value in claims.pcrs[Hash.SHA256].values()] == values
    assert claims.ak_certified == ("ak_cert" in fields)
    assert claims.warnings == (PARAVISOR_WARNING,)


def test_on_tdx_only_the_tdreport_that_nobody_reads_can_be_flipped() -> None:
    case = case_of("azure-tdx/ak-chain")
    evidence, endorsements = azure_parts(case)
    genuine = verify(evidence, endorsements, now=case.now)
    body = evidence.documents[HCL_REPORT]
    for at, forged in enumerate(flips(body, step=31)):
        flipped = with_document(evidence, HCL_REPORT, forged)
        if 32 <= at * 31 < 32 + layout.HARDWARE_REPORT_BYTES:
            assert verify(flipped, endorsements, now=case.now) == genuine
        else:
            with pytest.raises((VerificationError, MalformedError)):
                verify(flipped, endorsements, now=case.now)
    for forged in flips(evidence.documents[QUOTE], step=499):
        if forged[:4890] == evidence.documents[QUOTE][:4890]:
            continue  # zeros after the quote and line ends of its PEM chain are not its content
        with pytest.raises((VerificationError, MalformedError)):
            verify(with_document(evidence, QUOTE, forged), endorsements, now=case.now)


@pytest.mark.parametrize("name", [HCL_REPORT, TPM_QUOTE, TPM_SIGNATURE, TPM_PCRS])
def test_parts_of_two_machines_make_no_evidence(name: str) -> None:
    milan, genoa = case_of("azure-snp/milan"), case_of("azure-snp/genoa")
    evidence, endorsements = azure_parts(milan)
    other, _ = azure_parts(genoa)
    mixed = with_document(evidence, name, other.documents[name])
    with pytest.raises(VerificationError):
        verify(mixed, endorsements, now=milan.now)


def test_the_vcek_of_another_chip_is_refused() -> None:
    milan, genoa = case_of("azure-snp/milan"), case_of("azure-snp/genoa")
    evidence, _ = azure_parts(milan)
    _, other = azure_parts(genoa)
    with pytest.raises(VerificationError):
        verify(evidence, other, now=milan.now)


def test_evidence_under_the_name_of_the_other_hardware_is_refused() -> None:
    for vector, tee in (("azure-snp/milan", Tee.AZURE_TDX), ("azure-tdx/preview", Tee.AZURE_SNP)):
        case = case_of(vector)
        evidence, endorsements = azure_parts(case)
        with pytest.raises(MalformedError) as refused:
            verify(replace(evidence, tee=tee), replace(endorsements, tee=tee), now=case.now)
        assert refused.value.reasons[0].code == "azure.hardware"


def test_the_ak_certificate_of_another_machine_is_refused() -> None:
    certified, case = case_of("azure-tdx/ak-chain"), case_of("azure-tdx/preview")
    evidence, endorsements = azure_parts(case)
    for name, file in ((AK_CERTIFICATE, "ak_cert"), (AK_INTERMEDIATES, "ak_intermediates")):
        body = certified.file(certified.vector["files"][file])
        endorsements = with_document(endorsements, name, body)
    with pytest.raises(VerificationError) as refused:
        verify(evidence, endorsements, now=case.now)
    assert refused.value.reasons[0].code == "tpm2.ak"


def test_an_ak_certificate_out_of_its_time_or_without_its_issuer_is_refused() -> None:
    case = case_of("azure-tdx/ak-chain")
    evidence, endorsements = azure_parts(case)
    orphan = without_document(endorsements, AK_INTERMEDIATES)
    with pytest.raises(VerificationError):
        verify(evidence, orphan, now=case.now)
    for body in flips(endorsements.documents[AK_CERTIFICATE], step=97):
        with pytest.raises((VerificationError, MalformedError)):
            verify(evidence, with_document(endorsements, AK_CERTIFICATE, body), now=case.now)


def test_without_pcr_values_or_certificate_nothing_is_claimed_of_them() -> None:
    case = case_of("azure-tdx/ak-chain")
    evidence, endorsements = azure_parts(case)
    endorsements = without_document(endorsements, AK_CERTIFICATE)
    claims = verify(without_document(evidence, TPM_PCRS), endorsements, now=case.now)
    assert (claims.pcrs, claims.ak_certified) == ({}, False)


# --- a paravisor of our own, on a chip of our own ------------------------------------------------

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AMD = FakeAmd()
AK = rsa.generate_private_key(65537, 2048)
PCR = bytes(range(32))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def runtime_json(**changes: Any) -> bytes:
    numbers = AK.public_key().public_numbers()
    document: dict[str, Any] = {
        "keys": [
            {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB"}
            | {"n": _base64url(numbers.n.to_bytes(256))},
            {"kid": "HCLEkPub", "kty": "EC", "crv": "P-256"},
        ],
        "vm-configuration": {
            "console-enabled": False,
            "secure-boot": True,
            "vmUniqueId": "ABC",
            "new-in-2030": [1],
        },
        "user-data": "00" * 64,
    }
    return json.dumps(document | changes).encode()


def hcl_report(
    runtime: bytes, hardware: bytes, *, kind: int = 2, fields: dict[int, int] | None = None
) -> bytes:
    size = len(runtime)
    words = [2, 32 + 1184 + 20 + size, 2, 0, 0, 0, 0, 20 + size, 1, kind, 1, size]
    for position, value in (fields or {}).items():
        words[position] = value
    packed = [word.to_bytes(4, "little") for word in words]
    return b"HCLA" + b"".join(packed[:7]) + hardware + b"".join(packed[7:]) + runtime + bytes(9)


def snp_report(runtime: bytes, *, vmpl: int = 0, tail: bytes = b"") -> bytes:
    digest = hashlib.sha256(runtime).digest() + tail.ljust(32, b"\0")
    return AMD.report(change={0x50: digest, 0x30: vmpl.to_bytes(4, "little")})


def tpm_quote(extra: bytes = b"nonce") -> bytes:
    return (
        b"\xffTCG\x80\x18" + b"\0\0" + len(extra).to_bytes(2) + extra + bytes(16) + b"\1" + bytes(8)
        + bytes.fromhex("00000001000b03100000") + b"\0\x20" + hashlib.sha256(PCR).digest()
    )  # fmt: skip


def azure_evidence(runtime: bytes | None = None, **documents: bytes) -> Evidence:
    runtime = runtime_json() if runtime is None else runtime
    quote = documents.get(TPM_QUOTE, tpm_quote())
    given = {
        HCL_REPORT: hcl_report(runtime, snp_report(runtime)),
        TPM_QUOTE: quote,
        TPM_SIGNATURE: AK.sign(quote, padding.PKCS1v15(), hashes.SHA256()),
        TPM_PCRS: json.dumps({"4": PCR.hex()}).encode(),
    }
    return Evidence(tee=Tee.AZURE_SNP, documents=given | documents)


ENDORSEMENTS = Endorsements(tee=Tee.AZURE_SNP, documents=AMD.endorsements().documents)


@pytest.fixture(autouse=True)
def _our_chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {**snp.AMD_ROOTS, **AMD.roots}
    monkeypatch.setattr(snp, "verify", functools.partial(snp.verify, roots=roots))


def judge(evidence: Evidence) -> AzureSnpClaims:
    claims = verify(evidence, ENDORSEMENTS, now=NOW)
    assert isinstance(claims, AzureSnpClaims)
    return claims


def test_a_healthy_vm() -> None:
    claims = judge(azure_evidence())
    assert (claims.vm_id, claims.secure_boot, claims.console) == ("abc", True, False)
    assert claims.pcrs == {Hash.SHA256: {4: PCR}}
    commitment = claims.commitment_to(bytes(64))
    assert commitment == hashlib.sha256(bytes(64)).digest()


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_a_guest_that_writes_its_own_hcl_report_is_refused(vmpl: int) -> None:
    runtime = runtime_json()
    forged = hcl_report(runtime, snp_report(runtime, vmpl=vmpl))
    with pytest.raises(VerificationError) as refused:
        judge(azure_evidence(**{HCL_REPORT: forged}))
    assert refused.value.reasons[0].code == "azure.vmpl"


def test_runtime_data_that_the_hardware_did_not_sign_is_refused() -> None:
    runtime = runtime_json()
    for forged in (
        hcl_report(runtime_json() + b" ", snp_report(runtime)),
        hcl_report(runtime, snp_report(runtime, tail=b"more")),
    ):
        with pytest.raises(VerificationError) as refused:
            judge(azure_evidence(**{HCL_REPORT: forged}))
        assert refused.value.reasons[0].code == "azure.runtime_data"


def test_a_quote_by_another_tpm_is_refused() -> None:
    other = rsa.generate_private_key(65537, 2048)
    signature = other.sign(tpm_quote(), padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(VerificationError, match="not signed by the attestation key"):
        judge(azure_evidence(**{TPM_SIGNATURE: signature}))


def test_what_the_guest_signs_with_the_ak_but_the_tpm_did_not_make_is_refused() -> None:
    with pytest.raises(MalformedError, match="TPM_GENERATED"):
        judge(azure_evidence(**{TPM_QUOTE: b"\0" + tpm_quote()[1:]}))


def test_forged_pcr_values_are_refused() -> None:
    forged = json.dumps({"4": "00" * 32}).encode()
    with pytest.raises(VerificationError, match="do not give the quoted digest"):
        judge(azure_evidence(**{TPM_PCRS: forged}))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 3),  # version
        (1, 2000),  # report size
        (2, 1),  # request type
        (3, 5),  # status
        (4, 1),  # reserved
        (6, 1),
        (7, 19),  # data size
        (8, 2),  # data version
        (9, 1),  # report type: VBS, which is no TEE
        (10, 2),  # hash
        (11, 4),  # runtime data size
        (11, 1 << 31),
    ],
)
def test_headers_that_do_not_agree_are_malformed(position: int, value: int) -> None:
    runtime = runtime_json()
    body = hcl_report(runtime, snp_report(runtime), fields={position: value})
    with pytest.raises(MalformedError):
        judge(azure_evidence(**{HCL_REPORT: body}))


def test_other_magic_bytes_after_the_end_and_short_reports_are_malformed() -> None:
    body = azure_evidence().documents[HCL_REPORT]
    for broken in (b"HCLB" + body[4:], body + b"\1", body[:1200], body[:20], b""):
        with pytest.raises(MalformedError):
            layout.parse_hcl_report(broken)


KEY = json.loads(runtime_json())["keys"][0]


@pytest.mark.parametrize(
    "runtime",
    [
        b"",
        b"[]",
        runtime_json(keys=[]),
        runtime_json(keys=[KEY, KEY]),
        runtime_json(keys=[{**KEY, "kty": "EC"}]),
        runtime_json(keys=[{**KEY, "n": "*"}]),
        runtime_json(keys=[{**KEY, "n": "\u00e9"}]),
        runtime_json(keys=[{**KEY, "n": None}]),
        runtime_json(keys=[{**KEY, "e": "Ag"}]),
        runtime_json(**{"user-data": "00"}),
        runtime_json(**{"user-data": "zz" * 64}),
        runtime_json(**{"vm-configuration": {}}),
        pytest.param(
            runtime_json()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep"
        ),
    ],
)
def test_runtime_data_without_what_it_must_hold_is_malformed(runtime: bytes) -> None:
    with pytest.raises(MalformedError):
        judge(azure_evidence(runtime))


def test_a_short_rsa_key_in_the_runtime_data_is_refused() -> None:
    numbers = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    short = {**KEY, "n": _base64url(numbers.n.to_bytes(128))}
    with pytest.raises(VerificationError, match="not accepted"):
        judge(azure_evidence(runtime_json(keys=[short])))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from([HCL_REPORT, TPM_QUOTE, TPM_SIGNATURE, TPM_PCRS]),
    at=st.integers(0, 4000),
    remove=st.integers(0, 3),
    insert=st.binary(max_size=3),
)
def test_only_our_errors_leave_the_verifier(name: str, at: int, remove: int, insert: bytes) -> None:
    body = RECORDED.documents[name]
    at %= len(body)
    damaged = body[:at] + insert + body[at + remove :]
    with contextlib.suppress(AIGovToolError):
        judge(with_document(RECORDED, name, damaged))


@given(data=st.binary(max_size=300), hcl=st.booleans())
def test_only_our_errors_leave_the_parsers(data: bytes, hcl: bool) -> None:
    with contextlib.suppress(AIGovToolError):
        (layout.parse_hcl_report if hcl else layout.parse_runtime_data)(data)


RECORDED = azure_evidence()


# --- policy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "change", "codes"),
    [
        ({}, {}, []),
        ({"vm_ids": ("abc",)}, {}, []),
        ({"vm_ids": ("abd",)}, {}, ["azure.vm_id"]),
        ({"secure_boot": "required"}, {}, []),
        ({"secure_boot": "required"}, {"secure_boot": False}, ["azure.secure_boot"]),
        ({"console": "refused"}, {}, []),
        ({"console": "refused"}, {"console": True}, ["azure.console"]),
        ({"attestation_key": "certified"}, {}, ["azure.ak"]),
        ({"attestation_key": "certified"}, {"ak_certified": True}, []),
        ({"pcrs": {"sha256:4": (PCR.hex(),)}}, {}, []),
        ({"pcrs": {"sha256:4": ("00" * 32,)}}, {}, ["azure.pcr"]),
        ({"pcrs": {"sha256:4": (PCR.hex(),)}}, {"pcrs": {}}, ["azure.pcr"]),
    ],
)
def test_each_field_of_the_policy_refuses_what_it_should(
    policy: dict[str, Any], change: dict[str, Any], codes: list[str]
) -> None:
    claims = replace(judge(azure_evidence()), **change)
    wanted = msgspec.structs.replace(strict_policy("azure-snp"), **policy)
    reasons = appraise(claims, wanted)
    assert [reason.code for reason in reasons] == codes
    assert all(reason.mend for reason in reasons)


def test_the_rules_for_the_hardware_hold_too() -> None:
    table = free_but(SnpPolicy, {**SNP_STRICT, "measurement": ["00" * 48]})
    hardware = msgspec.convert(table, SnpPolicy)
    policy = msgspec.structs.replace(strict_policy("azure-snp"), hardware=hardware)
    (reason,) = appraise(judge(azure_evidence()), policy)
    assert reason.code == "snp.measurement"


def test_claims_and_policy_of_different_hardware_are_a_broken_promise() -> None:
    with pytest.raises(PromiseBrokenError):
        appraise(judge(azure_evidence()), strict_policy("azure-tdx"))


@pytest.mark.parametrize("field", [*GUEST, "hardware"])
@pytest.mark.parametrize("kind", [AzureSnpPolicy, AzureTdxPolicy])
def test_a_policy_with_a_field_left_out_is_an_error(
    kind: type[AzureSnpPolicy] | type[AzureTdxPolicy], field: str
) -> None:
    tee = str(kind.__struct_config__.tag)
    table = msgspec.to_builtins(strict_policy(tee))
    assert msgspec.convert(table, kind) == strict_policy(tee)
    del table[field]
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(table, kind)


def test_a_field_left_out_of_the_hardware_table_is_an_error() -> None:
    table = msgspec.to_builtins(strict_policy("azure-snp"))
    del table["hardware"]["measurement"]
    with pytest.raises(msgspec.ValidationError, match="measurement"):
        msgspec.convert(table, AzureSnpPolicy)
