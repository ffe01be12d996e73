"""TCB levels: which one is reached, what is short, and that two verifiers agree on it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from aigovtool.attestation.dcap import collateral as names
from aigovtool.attestation.dcap.chain import verify_pck_chain
from aigovtool.attestation.dcap.collateral import (
    Component,
    IdentityLevel,
    IdentityTcb,
    PlatformLevel,
    PlatformTcb,
    TcbInfo,
    TdxModule,
    TdxModuleIdentity,
)
from aigovtool.attestation.dcap.quote import TdReport, parse_quote
from aigovtool.attestation.dcap.second_opinion import ask_second_verifier
from aigovtool.attestation.dcap.tcb import (
    PlatformSvns,
    TcbStatus,
    TcbVerdict,
    check_tdx_module,
    judge_tcb,
)
from aigovtool.attestation.dcap.verify import INTEL_ROOT_SHA256
from aigovtool.attestation.evidence import Endorsements, Tee
from aigovtool.attestation.simulated import SimulatedClaims
from aigovtool.attestation.verify import verify
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.simulation.authority import make_authority
from aigovtool.simulation.documents import sign_p256
from aigovtool.simulation.platform import SimulatedPlatform
from tests.attestation.dcap_vectors import case
from tests.attestation.simulation import MEASUREMENT, NOW, REPORT_DATA, evidence_of

AUTHORITY = make_authority(now=NOW)
PLATFORM = SimulatedPlatform(AUTHORITY)
STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


def endorsements(*, tcb_info: dict[str, object], qe_identity: dict[str, object]) -> Endorsements:
    """Return honest collateral with other signed texts, properly signed."""
    documents = dict(PLATFORM.make_endorsements(NOW).documents)
    for name, changed in ((names.TCB_INFO, tcb_info), (names.QE_IDENTITY, qe_identity)):
        text = json.dumps({**json.loads(documents[name]), **changed}).encode()
        documents[name] = text
        documents[f"{name}_signature"] = sign_p256(AUTHORITY.tcb_signing.key, text)
    return Endorsements(tee=Tee.SIMULATED, documents=documents)


def claims_under(collateral: Endorsements) -> SimulatedClaims:
    quote = PLATFORM.quote(MEASUREMENT.mr_td, REPORT_DATA)
    claims = verify(evidence_of(quote), collateral, now=NOW)
    assert isinstance(claims, SimulatedClaims)
    return claims


def levels(name: str, status: str, advisory: str) -> dict[str, object]:
    (level,) = json.loads(PLATFORM.make_endorsements(NOW).document(name))["tcbLevels"]
    return {"tcbLevels": [{**level, "tcbStatus": status, "advisoryIDs": [advisory]}]}


@pytest.mark.parametrize("platform", STATUSES)
@pytest.mark.parametrize("quoting_enclave", ["UpToDate", "OutOfDate", "Revoked"])
def test_two_verifiers_come_to_the_same_status(platform: str, quoting_enclave: str) -> None:
    """dcap-qvl judges each of these as well: a difference would be a VerificationError."""
    claims = claims_under(
        endorsements(
            tcb_info=levels(names.TCB_INFO, platform, "SA-1"),
            qe_identity=levels(names.QE_IDENTITY, quoting_enclave, "SA-2"),
        )
    ).td.platform

    assert claims.advisories == ("SA-1", "SA-2")
    assert claims.qe_status == quoting_enclave
    if "Revoked" in (platform, quoting_enclave):
        assert claims.tcb_status == "Revoked"
    elif quoting_enclave == "UpToDate":
        assert claims.tcb_status == platform
    else:
        needs = "ConfigurationNeeded" if "Configuration" in platform else ""
        assert claims.tcb_status == f"OutOfDate{needs}"


def module(signer: str, attributes: str) -> dict[str, str]:
    return {"mrsigner": signer, "attributes": attributes, "attributesMask": "FF" * 8}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"fmspc": "00906EA10000"}, "dcap.collateral.other"),
        ({"pceId": "0001"}, "dcap.collateral.other"),
        ({"id": "SGX"}, "dcap.collateral.other"),
        ({"tdxModule": None}, "dcap.tdx_module.none"),
        (
            {
                "tdxModule": {
                    "mrsigner": "11" * 48,
                    "attributes": "00" * 8,
                    "attributesMask": "FF" * 8,
                }
            },
            "dcap.tdx_module",
        ),
        (
            {
                "tdxModule": {
                    "mrsigner": "00" * 48,
                    "attributes": "01" + "00" * 7,
                    "attributesMask": "FF" * 8,
                }
            },
            "dcap.tdx_module",
        ),
    ],
)
def test_tcb_info_of_something_else(changed: dict[str, object], code: str) -> None:
    with pytest.raises(VerificationError) as caught:
        claims_under(endorsements(tcb_info=changed, qe_identity={}))

    assert caught.value.reasons[0].code == code


@pytest.mark.parametrize("version", [1, 2, 4])
def test_unsupported_versions_never_fall_through(version: int) -> None:
    """Version 2 knows no TDX; what is not version 2 or 3 is not read at all."""
    with pytest.raises(MalformedError):
        claims_under(endorsements(tcb_info={"version": version}, qe_identity={}))
    with pytest.raises(MalformedError, match="unsupported collateral"):
        claims_under(endorsements(tcb_info={}, qe_identity={"version": version + 2}))


NEWER_LEVEL = {
    "tcb": {"isvsvn": 5},
    "tcbDate": "2026-01-01T00:00:00Z",
    "tcbStatus": "UpToDate",
}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"id": "QE"}, "dcap.collateral.other"),
        ({"isvprodid": 3}, "dcap.quoting_enclave"),
        ({"miscselect": "01000000"}, "dcap.quoting_enclave"),
        ({"attributes": "10" + "00" * 15}, "dcap.quoting_enclave"),
        (
            {
                "tcbLevels": [
                    {
                        "tcb": {"isvsvn": 5},
                        "tcbDate": "2026-01-01T00:00:00Z",
                        "tcbStatus": "UpToDate",
                    }
                ]
            },
            "dcap.quoting_enclave.svn",
        ),
    ],
)
def test_qe_identity_of_something_else(changed: dict[str, object], code: str) -> None:
    with pytest.raises(VerificationError) as caught:
        claims_under(endorsements(tcb_info={}, qe_identity=changed))

    assert caught.value.reasons[0].code == code


def test_below_every_level_is_not_supported() -> None:
    (level,) = json.loads(PLATFORM.make_endorsements(NOW).document(names.TCB_INFO))["tcbLevels"]
    level["tcb"]["pcesvn"] = 2

    platform = claims_under(
        endorsements(tcb_info={"tcbLevels": [level]}, qe_identity={})
    ).td.platform

    assert platform.tcb_status is TcbStatus.NOT_SUPPORTED
    assert platform.tcb_date is None
    assert platform.short == ("PCE: 1 < 2",)


class TestTd15:
    """TD 1.5, whose module at launch and module now are judged apart (rules 2 and 4)."""

    date = datetime(2025, 1, 1, tzinfo=UTC)

    def info(self, status: str = "UpToDate") -> TcbInfo:
        zeros = tuple(Component(svn=0) for _ in range(16))
        old_module = (Component(svn=9), Component(svn=9), *zeros[2:])
        tcb = PlatformTcb(sgxtcbcomponents=zeros, pcesvn=0, tdxtcbcomponents=old_module)
        identity = TdxModuleIdentity(
            id="TDX_01",
            mrsigner="00" * 48,
            attributes="00" * 8,
            attributes_mask="FF" * 8,
            tcb_levels=(self.level(6, "UpToDate"), self.level(4, "OutOfDate", "SA-3")),
        )
        return TcbInfo(
            id="TDX",
            issue_date=self.date,
            next_update=self.date,
            fmspc="00" * 6,
            pce_id="0000",
            tcb_type=0,
            tcb_evaluation_data_number=1,
            tcb_levels=(PlatformLevel(tcb=tcb, tcb_date=self.date, status=status),),  # type: ignore[arg-type]
            tdx_module=TdxModule(mrsigner="00" * 48, attributes="00" * 8, attributes_mask="FF" * 8),
            tdx_module_identities=(identity,),
        )

    def level(self, svn: int, status: str, *advisories: str) -> IdentityLevel:
        return IdentityLevel(
            tcb=IdentityTcb(isvsvn=svn),
            tcb_date=self.date,
            status=status,  # type: ignore[arg-type]
            advisories=advisories,
        )

    def judge(
        self, launch: int, now: int | None, *, qe: str = "UpToDate", status: str = "UpToDate"
    ) -> TcbVerdict:
        svns = PlatformSvns(
            cpu_svn=bytes(16),
            pce_svn=0,
            tee_tcb_svn=bytes([launch, 1]) + bytes(14),
            tee_tcb_svn2=None if now is None else bytes([now, 1]) + bytes(14),
        )
        return judge_tcb(self.info(status), self.level(4, qe), svns)

    def test_module_with_an_identity_passes_over_its_components(self) -> None:
        verdict = self.judge(6, 6)

        assert (verdict.status, verdict.module_status) == ("UpToDate", "UpToDate")
        assert verdict.short == ()

    def test_old_module_now_replaced(self) -> None:
        verdict = self.judge(4, 6)

        assert (verdict.status, verdict.module_status) == ("TDRelaunchAdvised", "OutOfDate")
        assert verdict.advisories == ("SA-3",)
        assert verdict.short == ("TDX module TDX_01: 4 < 6",)

    def test_old_module_now_replaced_on_a_platform_to_configure(self) -> None:
        verdict = self.judge(4, 6, status="ConfigurationNeeded")

        assert verdict.status == "TDRelaunchAdvisedConfigurationNeeded"

    @pytest.mark.parametrize(("launch", "now"), [(4, 4), (4, 5), (4, None)])
    def test_old_module_still_there(self, launch: int, now: int | None) -> None:
        assert self.judge(launch, now).status == "OutOfDate"

    def test_relaunch_does_not_help_an_old_quoting_enclave(self) -> None:
        assert self.judge(4, 6, qe="OutOfDate").status == "OutOfDate"

    def test_module_below_every_level(self) -> None:
        assert self.judge(3, 3).status == "TCBNotSupported"

    def test_module_without_an_identity(self) -> None:
        svns = PlatformSvns(
            cpu_svn=bytes(16), pce_svn=0, tee_tcb_svn=bytes([9, 7]) + bytes(14), tee_tcb_svn2=None
        )

        with pytest.raises(VerificationError, match="no identity for this TDX module"):
            judge_tcb(self.info(), self.level(4, "UpToDate"), svns)

    def test_module_of_another_signer(self) -> None:
        report = parse_quote(case("tdx/v5-up-to-date").quote).report
        assert isinstance(report, TdReport)
        foreign = replace(report, tee_tcb_svn=bytes([6, 1]) + bytes(14), mr_signer_seam=b"\1" * 48)

        with pytest.raises(VerificationError) as caught:
            check_tdx_module(self.info(), foreign)

        assert caught.value.reasons[0].code == "dcap.tdx_module"


@pytest.mark.parametrize(
    ("svn", "reached", "superseded"),
    [(3, 3, 3), (2, 2, 3), (1, 1, 2)],
    ids=["the newest", "the one before", "an older one"],
)
def test_a_level_is_superseded_by_the_next_younger_one(
    svn: int, reached: int, superseded: int
) -> None:
    # two levels of one date, as Intel has them for a mitigation that software may lack
    rows = ((3, 3), (2, 3), (2, 2), (1, 1))
    levels = tuple(
        PlatformLevel(
            tcb=PlatformTcb(
                sgxtcbcomponents=(Component(svn=number),) * 16,
                pcesvn=number if day == number else number + 1,
                tdxtcbcomponents=None,
            ),
            tcb_date=datetime(2025, 1, day, tzinfo=UTC),
            status="UpToDate" if number == 3 else "OutOfDate",
        )
        for number, day in rows
    )
    info = TcbInfo(
        id="SGX",
        issue_date=TestTd15.date,
        next_update=TestTd15.date,
        fmspc="00" * 6,
        pce_id="0000",
        tcb_type=0,
        tcb_evaluation_data_number=1,
        tcb_levels=levels,
    )
    qe = IdentityLevel(
        tcb=IdentityTcb(isvsvn=1), tcb_date=TestTd15.date, status="UpToDate", advisories=()
    )
    svns = PlatformSvns(cpu_svn=bytes([svn] * 16), pce_svn=svn, tee_tcb_svn=None, tee_tcb_svn2=None)
    verdict = judge_tcb(info, qe, svns)
    assert verdict.tcb_date == datetime(2025, 1, reached, tzinfo=UTC)
    assert verdict.superseded == datetime(2025, 1, superseded, tzinfo=UTC)


class TestSecondVerifier:
    """It may refuse only what our own claims explain."""

    def ask(self, name: str, *, status: TcbStatus, report_of: str | None = None) -> None:
        one = case(name)
        quote = parse_quote(one.quote)
        assert quote.pck_chain_pem is not None
        chain = verify_pck_chain(quote.pck_chain_pem, root_sha256=INTEL_ROOT_SHA256, now=one.now)
        report = parse_quote(case(report_of).quote).report if report_of else quote.report
        verdict = TcbVerdict(
            status=status,
            platform_status=status,
            tcb_date=None,
            superseded=None,
            module_status=None,
            qe_status=TcbStatus.UP_TO_DATE,
            advisories=(),
            short=(),
        )
        ask_second_verifier(
            one.quote,
            one.endorsements(),
            chain=chain,
            issuer_chains={},
            report=report,
            verdict=verdict,
            now=one.now,
        )

    def test_agrees(self) -> None:
        self.ask("tdx/v4-up-to-date", status=TcbStatus.UP_TO_DATE)

    def test_its_refusal_of_debug_is_explained_by_debug(self) -> None:
        self.ask("tdx/v4-debug", status=TcbStatus.UP_TO_DATE)

    def test_its_refusal_of_debug_is_not_explained_by_another_report(self) -> None:
        with pytest.raises(VerificationError) as caught:
            self.ask("tdx/v4-debug", status=TcbStatus.UP_TO_DATE, report_of="tdx/v4-up-to-date")
        assert caught.value.reasons[0].came == "Debug mode is enabled"

    def test_no_level_is_explained_only_by_no_level(self) -> None:
        self.ask("tdx/v5-tcb-not-supported", status=TcbStatus.NOT_SUPPORTED)
        with pytest.raises(VerificationError):
            self.ask("tdx/v5-tcb-not-supported", status=TcbStatus.UP_TO_DATE)

    def test_another_status_is_refused(self) -> None:
        with pytest.raises(VerificationError, match="different states"):
            self.ask("tdx/v4-out-of-date", status=TcbStatus.UP_TO_DATE)

    def test_other_advisories_are_refused(self) -> None:
        with pytest.raises(VerificationError, match="different states"):
            self.ask("tdx/v4-out-of-date", status=TcbStatus.OUT_OF_DATE)
