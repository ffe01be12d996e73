"""Recorded SGX and TDX quotes: each comes to what was worked out for it, and to nothing else."""

from __future__ import annotations

import json

import pytest

from aigovtool.attestation.appraise import appraise
from aigovtool.attestation.dcap.claims import SgxClaims, TdxClaims
from aigovtool.attestation.evidence import Endorsements
from aigovtool.attestation.kinds import appraise_claims
from aigovtool.attestation.policy import Policy
from aigovtool.attestation.strict import strict_policy, strict_tdx
from aigovtool.attestation.verify import verify
from aigovtool.errors import AppraisalError, MalformedError, VerificationError
from tests.attestation.dcap_vectors import Case, case, cases

CASES = cases()
AUTHENTIC = [one for one in CASES if one.expected["authentic"]]
UNTRUE = [one for one in CASES if not one.expected["authentic"]]


def named(one: Case) -> str:
    return one.name


@pytest.mark.parametrize("one", AUTHENTIC, ids=named)
def test_state_of_the_platform(one: Case) -> None:
    claims = verify(one.evidence(), one.endorsements(), now=one.now)

    assert isinstance(claims, SgxClaims | TdxClaims)
    platform, expected = claims.platform, one.expected
    assert platform.tcb_status == expected["tcb_status"]
    assert list(platform.advisories) == expected["advisories"]
    date = platform.tcb_date and platform.tcb_date.date().isoformat()
    assert date == expected["tcb_date"]
    assert platform.tdx_module_status == expected["tdx_module_status"]
    assert platform.qe_status == expected["qe_status"]
    assert platform.tcb_evaluation_number == expected["tcb_evaluation_data_number"]
    window = [
        f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (platform.valid_from, platform.valid_until)
    ]
    assert window == one.case["window"]
    assert platform.fmspc.hex() == one.fields["fmspc"]
    assert list(platform.cpu_svn) == one.fields["pck_tcb_components"]
    assert platform.pce_svn == one.fields["pce_svn"]


@pytest.mark.parametrize("one", AUTHENTIC, ids=named)
def test_fields_of_the_report(one: Case) -> None:
    claims = verify(one.evidence(), one.endorsements(), now=one.now)

    fields = one.fields
    assert claims.report_data.hex() == fields["report_data"]
    if isinstance(claims, SgxClaims):
        report = claims.report
        assert claims.measurement == report.mr_enclave.hex() == fields["mrenclave"]
        assert report.mr_signer.hex() == fields["mrsigner"]
        assert (report.isv_prod_id, report.isv_svn) == (fields["isv_prod_id"], fields["isv_svn"])
        attributes = report.attributes_flags.to_bytes(8, "little")
        attributes += report.attributes_xfrm.to_bytes(8, "little")
        assert attributes.hex() == fields["attributes"]
        assert claims.debug == fields["debug"]
    else:
        assert isinstance(claims, TdxClaims)
        td = claims.report
        assert claims.measurement == td.mr_td.hex() == fields["mrtd"]
        assert [register.hex() for register in td.rt_mr] == [
            fields[f"rtmr{number}"] for number in range(4)
        ]
        assert td.mr_seam.hex() == fields["mrseam"]
        assert td.mr_config_id.hex() == fields["mrconfigid"]
        assert td.td_attributes.hex() == fields["td_attributes"]
        assert td.xfam.hex() == fields["xfam"]
        assert td.tee_tcb_svn.hex() == fields["tee_tcb_svn"]
        assert (claims.debug, claims.sept_ve_disable) == (
            fields["debug"],
            fields["sept_ve_disable"],
        )
        if "mrservicetd" in fields:
            assert td.mr_service_td is not None
            assert td.tee_tcb_svn2 is not None
            assert td.mr_service_td.hex() == fields["mrservicetd"]
            assert td.tee_tcb_svn2.hex() == fields["tee_tcb_svn2"]


@pytest.mark.parametrize("one", AUTHENTIC, ids=named)
def test_strict_policy(one: Case) -> None:
    claims = verify(one.evidence(), one.endorsements(), now=one.now)

    codes = {reason.code for reason in appraise_claims(claims, strict_policy(one.tee))}

    expected = set()
    for reason in one.expected["reasons"]:
        if reason.startswith("tcb:"):
            expected.add("tcb.status")
        elif reason == "attr:debug":
            expected.add(f"{one.tee}.debug")
        else:
            assert reason == "attr:no-SEPT_VE_DISABLE"
            expected.add("tdx.sept_ve_disable")
    assert codes == expected
    assert bool(codes) == (one.expected["strict_policy"] == "reject")


@pytest.mark.parametrize("one", UNTRUE, ids=named)
def test_untrue_evidence_is_refused(one: Case) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(one.evidence(), one.endorsements(), now=one.now)

    code = caught.value.reasons[0].code
    in_time = {"crl.expired", "crl.not_yet_valid"}
    assert (code in in_time) == one.expected["reasons"][0].startswith("collateral")


def test_platform_below_every_level_is_not_merely_out_of_date() -> None:
    one = case("tdx/v5-tcb-not-supported")

    claims = verify(one.evidence(), one.endorsements(), now=one.now)

    assert isinstance(claims, TdxClaims)
    assert claims.platform.tcb_status == "TCBNotSupported"
    assert claims.platform.short == ("SGX component 8 (OS/VMM, SEAMLDR ACM): 3 < 5",)
    with pytest.raises(AppraisalError, match="SEAMLDR ACM"):
        appraise(claims, Policy(accept=(strict_tdx(),), custodian=None))


def test_quotes_are_not_judged_by_the_collateral_of_another_platform() -> None:
    for mine in AUTHENTIC:
        for other in AUTHENTIC:
            same_platform = mine.fields["fmspc"] == other.fields["fmspc"] and mine.tee is other.tee
            if mine is other or same_platform:
                continue
            with pytest.raises(VerificationError):
                verify(
                    mine.evidence(),
                    Endorsements(tee=mine.tee, documents=other.endorsements().documents),
                    now=other.now,
                )


def test_a_quote_without_collateral_cannot_be_checked() -> None:
    one = case("tdx/v4-up-to-date")

    with pytest.raises(MalformedError) as caught:
        verify(one.evidence(), Endorsements(tee=one.tee), now=one.now)

    assert caught.value.reasons[0].code == "endorsement.missing"


@pytest.mark.parametrize("zeros", [0, 1, 100])
def test_zeros_after_the_quote_are_padding(zeros: int) -> None:
    one = case("tdx/v4-up-to-date")

    claims = verify(one.evidence(quote=one.quote + bytes(zeros)), one.endorsements(), now=one.now)

    assert claims.measurement == one.fields["mrtd"]


def test_anything_else_after_the_quote_is_refused() -> None:
    one = case("tdx/v4-up-to-date")

    with pytest.raises(MalformedError, match="other than zeros"):
        verify(one.evidence(quote=one.quote + bytes(9) + b"x"), one.endorsements(), now=one.now)


class TestEventLog:
    one = case("tdx/v4-event-log")

    def test_replay_names_what_the_guest_extended(self) -> None:
        claims = verify(self.one.evidence(), self.one.endorsements(), now=self.one.now)

        assert isinstance(claims, TdxClaims)
        assert claims.events is not None
        named = {event.name: event.payload for event in claims.events if event.name}
        assert named["compose-hash"] == bytes.fromhex(
            next(entry["event_payload"] for entry in self.log() if entry["event"] == "compose-hash")
        )

    def log(self) -> list[dict[str, object]]:
        log: list[dict[str, object]] = json.loads((self.one.folder / "event_log.json").read_text())
        return log

    def refuse(self, log: list[dict[str, object]]) -> str:
        evidence = self.one.evidence(event_log=json.dumps(log).encode())
        with pytest.raises(VerificationError) as caught:
            verify(evidence, self.one.endorsements(), now=self.one.now)
        return caught.value.reasons[0].code

    def test_a_missing_event_is_seen(self) -> None:
        assert self.refuse(self.log()[:-1]) == "tdx.event_log"

    def test_a_changed_order_is_seen(self) -> None:
        log = self.log()
        log[0], log[1] = log[1], log[0]
        assert self.refuse(log) == "tdx.event_log"

    def test_a_changed_payload_is_seen(self) -> None:
        log = self.log()
        next(entry for entry in log if entry["event"] == "app-id")["event_payload"] = "00"
        assert self.refuse(log) == "tdx.event_log.event"

    def test_an_unreadable_log_is_malformed(self) -> None:
        with pytest.raises(MalformedError, match="event log"):
            verify(
                self.one.evidence(event_log=b'[{"imr": 4}]'),
                self.one.endorsements(),
                now=self.one.now,
            )
