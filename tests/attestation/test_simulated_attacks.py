"""Every way in which simulated evidence, properly signed or not, must not pass."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from aigovtool.attestation.dcap import collateral as names
from aigovtool.attestation.dcap.collateral import documents_from_json
from aigovtool.attestation.dcap.quote import parse_quote
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy
from aigovtool.attestation.simulated import ROOT_CA, WARNING, SimulatedClaims, SimulatedPolicy
from aigovtool.errors import AppraisalError, MalformedError, VerificationError
from aigovtool.simulation.platform import COLLATERAL_LIFE
from tests.attestation.dcap_vectors import case
from tests.attestation.simulation import (
    MEASUREMENT,
    NOW,
    REPORT_DATA,
    changed,
    evidence_of,
    honest_evidence,
    judged,
    platform,
    policy,
)


def alternative(**fields: object) -> Policy:
    """Return the honest policy with some fields changed."""
    honest = policy().accept[0]
    assert isinstance(honest, SimulatedPolicy)
    return Policy(accept=(replace(honest, **fields),), custodian=None)


def codes(error: pytest.ExceptionInfo[AppraisalError]) -> set[str]:
    return {reason.code for reason in error.value.reasons}


def test_honest_evidence_is_accepted_and_said_to_protect_nothing() -> None:
    result = judged()

    assert result.simulated
    assert result.tee is Tee.SIMULATED
    assert WARNING in result.warnings
    assert result.measurement == MEASUREMENT.mr_td.hex()
    assert result.tcb_status == "UpToDate"
    assert result.valid_until == NOW + COLLATERAL_LIFE
    assert isinstance(result.claims, SimulatedClaims)
    assert result.claims.root_sha256 == platform().root_sha256


def test_other_code() -> None:
    quote = platform().quote(bytes(48), REPORT_DATA)

    with pytest.raises(AppraisalError) as caught:
        judged(evidence=evidence_of(quote))

    assert codes(caught) == {"tdx.mr_td"}
    assert caught.value.reasons[0].expected == MEASUREMENT.mr_td.hex()
    assert caught.value.reasons[0].came == "00" * 48
    assert caught.value.reasons[0].mend


def test_other_root() -> None:
    other = platform("somebody else's")
    evidence = evidence_of(other.quote(MEASUREMENT.mr_td, REPORT_DATA))

    with pytest.raises(AppraisalError) as caught:
        judged(evidence=evidence, endorsements=other.endorsements(NOW))

    assert codes(caught) == {"simulated.root"}


def test_quote_of_another_platform_with_our_collateral() -> None:
    evidence = evidence_of(platform("another").quote(MEASUREMENT.mr_td, REPORT_DATA))

    with pytest.raises(VerificationError) as caught:
        judged(evidence=evidence)

    assert caught.value.reasons[0].code == "certificate.root"


def test_our_quote_with_the_collateral_of_another_platform_under_our_root() -> None:
    theirs = platform("another").endorsements(NOW)

    with pytest.raises(VerificationError):
        judged(endorsements=changed(theirs, **{ROOT_CA: platform().root_der}))


@pytest.mark.parametrize("name", names.REQUIRED_DOCUMENTS)
def test_each_document_of_another_platform(name: str) -> None:
    # A minute apart, as unsigned texts of one minute would be the same for every simulation.
    theirs = platform("another").make_endorsements(NOW - timedelta(minutes=1)).document(name)

    with pytest.raises(VerificationError):
        judged(endorsements=changed(platform().endorsements(NOW), **{name: theirs}))


@pytest.mark.parametrize("name", [*names.REQUIRED_DOCUMENTS, ROOT_CA])
def test_each_document_missing(name: str) -> None:
    documents = dict(platform().endorsements(NOW).documents)
    del documents[name]

    with pytest.raises(MalformedError, match=name):
        judged(endorsements=Endorsements(tee=Tee.SIMULATED, documents=documents))


def test_other_report_data() -> None:
    other = bytes(64)

    with pytest.raises(VerificationError) as caught:
        judged(report_data=other)

    assert caught.value.reasons[0].code == "binding"
    assert caught.value.reasons[0].expected == other.hex()


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_is_never_padded_or_cut(size: int) -> None:
    with pytest.raises(MalformedError):
        judged(report_data=REPORT_DATA.ljust(size, b"\0")[:size])
    with pytest.raises(MalformedError):
        platform().quote(MEASUREMENT.mr_td, REPORT_DATA.ljust(size, b"\0")[:size])


def test_revoked_platform() -> None:
    with pytest.raises(VerificationError) as caught:
        judged(endorsements=platform().make_endorsements(NOW, revoke_pck=True))

    assert caught.value.reasons[0].code == "dcap.revoked"


def test_revoked_pck_authority() -> None:
    with pytest.raises(VerificationError) as caught:
        judged(endorsements=platform().make_endorsements(NOW, revoke_pck_ca=True))

    assert caught.value.reasons[0].code == "dcap.revoked"


def test_lists_are_not_interchangeable() -> None:
    honest = platform().endorsements(NOW)
    revoking = platform().make_endorsements(NOW, revoke_pck=True)
    hidden = changed(revoking, **{names.PCK_CRL: honest.document(names.ROOT_CA_CRL)})

    with pytest.raises(VerificationError) as caught:
        judged(endorsements=hidden)

    assert caught.value.reasons[0].code == "crl.signature"


def test_out_of_date_platform() -> None:
    endorsements = platform().make_endorsements(NOW, newest_svn=2)

    with pytest.raises(AppraisalError) as caught:
        judged(endorsements=endorsements)

    assert codes(caught) == {"tcb.status"}
    assert caught.value.reasons[0].came == "OutOfDate"
    assert "SGX component 1: 1 < 2" in caught.value.reasons[0].message


class TestGracePeriod:
    """The TCB level is of 2026-01-01, and the platform has been out of date since."""

    endorsements = staticmethod(lambda now=NOW: platform().make_endorsements(now, newest_svn=2))

    def test_accepts_until_it_ends(self) -> None:
        result = judged(endorsements=self.endorsements(), accept=alternative(tcb_grace_days=152))

        assert result.tcb_status == "OutOfDate"
        assert result.valid_until is not None
        assert result.valid_until.isoformat() == "2026-06-02T00:00:00+00:00"
        assert any("2026-06-02" in warning for warning in result.warnings)

    def test_refuses_after_it(self) -> None:
        with pytest.raises(AppraisalError) as caught:
            judged(endorsements=self.endorsements(), accept=alternative(tcb_grace_days=150))

        assert codes(caught) == {"tcb.status"}

    def test_does_not_help_a_refused_advisory(self) -> None:
        lenient = alternative(tcb_grace_days=999, advisories_refused=("SIMULATED-SA-00001",))
        with pytest.raises(AppraisalError) as caught:
            judged(endorsements=self.endorsements(), accept=lenient)

        assert codes(caught) == {"tcb.advisory"}

    def test_does_not_make_up_for_a_status_that_was_never_accepted(self) -> None:
        only = alternative(tcb_grace_days=999, tcb_statuses=(TcbStatus.SW_HARDENING_NEEDED,))
        with pytest.raises(AppraisalError) as caught:
            judged(endorsements=self.endorsements(), accept=only)

        assert codes(caught) == {"tcb.status"}


def test_debug() -> None:
    evidence = evidence_of(platform().quote(MEASUREMENT.mr_td, REPORT_DATA, debug=True))

    with pytest.raises(AppraisalError) as caught:
        judged(evidence=evidence)

    assert codes(caught) == {"tdx.debug"}
    result = judged(evidence=evidence, accept=alternative(debug=True))
    assert any("debug" in warning for warning in result.warnings)


def test_every_reason_is_told_at_once() -> None:
    evidence = evidence_of(platform().quote(bytes(48), REPORT_DATA, debug=True))
    endorsements = platform().make_endorsements(NOW, newest_svn=2)

    with pytest.raises(AppraisalError) as caught:
        judged(evidence=evidence, endorsements=endorsements)

    assert codes(caught) == {"tdx.mr_td", "tdx.debug", "tcb.status"}


def test_quoting_enclave_that_nobody_stands_for() -> None:
    evidence = evidence_of(platform().quote(MEASUREMENT.mr_td, REPORT_DATA, qe_mr_signer=bytes(32)))

    with pytest.raises(VerificationError) as caught:
        judged(evidence=evidence)

    assert caught.value.reasons[0].code == "dcap.quoting_enclave"


def test_quoting_enclave_of_another_identity() -> None:
    with pytest.raises(VerificationError) as caught:
        judged(endorsements=platform().make_endorsements(NOW, qe_mr_signer=bytes(32)))

    assert caught.value.reasons[0].code == "dcap.quoting_enclave"


def test_expired_collateral() -> None:
    endorsements = platform().make_endorsements(NOW - timedelta(days=8))

    with pytest.raises(VerificationError) as caught:
        judged(endorsements=endorsements)

    assert caught.value.reasons[0].code == "crl.expired"


@pytest.mark.parametrize("late", [names.TCB_INFO, names.QE_IDENTITY])
def test_each_signed_text_expires_on_its_own(late: str) -> None:
    old = platform().make_endorsements(NOW - timedelta(days=8))
    documents = {name: old.document(name) for name in (late, f"{late}_signature")}

    with pytest.raises(VerificationError) as caught:
        judged(endorsements=changed(platform().endorsements(NOW), **documents))

    assert caught.value.reasons[0].code == "dcap.collateral.expired"


def test_collateral_from_the_future() -> None:
    with pytest.raises(VerificationError) as caught:
        judged(endorsements=platform().make_endorsements(NOW + timedelta(days=1)))

    assert caught.value.reasons[0].code == "crl.not_yet_valid"


def test_after_the_certificates_expired() -> None:
    later = NOW + timedelta(days=11 * 365)

    with pytest.raises(VerificationError) as caught:
        judged(endorsements=platform().make_endorsements(later), now=later)

    assert caught.value.reasons[0].code == "certificate.expired"


def test_time_without_a_zone() -> None:
    with pytest.raises(MalformedError):
        judged(now=NOW.replace(tzinfo=None))


def test_real_quote_is_not_simulated() -> None:
    real = case("tdx/v4-up-to-date")
    chain = parse_quote(real.quote).pck_chain_pem
    assert chain is not None
    root = x509.load_pem_x509_certificates(chain)[-1].public_bytes(Encoding.DER)
    collateral = documents_from_json((real.folder / "collateral.json").read_bytes())

    with pytest.raises(VerificationError) as caught:
        judged(
            evidence=evidence_of(real.quote),
            endorsements=Endorsements(tee=Tee.SIMULATED, documents={**collateral, ROOT_CA: root}),
            now=real.now,
        )

    assert caught.value.reasons[0].code == "simulated.root"


def test_simulated_quote_is_not_tdx() -> None:
    evidence = Evidence(tee=Tee.TDX, documents=honest_evidence().documents)
    endorsements = Endorsements(tee=Tee.TDX, documents=platform().endorsements(NOW).documents)

    with pytest.raises(VerificationError) as caught:
        judged(evidence=evidence, endorsements=endorsements)

    assert caught.value.reasons[0].code == "certificate.root"


def test_evidence_and_endorsements_of_different_kinds() -> None:
    with pytest.raises(MalformedError):
        judged(endorsements=Endorsements(tee=Tee.TDX))


def reversed_pem(chain: bytes) -> bytes:
    certificates = x509.load_pem_x509_certificates(chain)
    return b"".join(one.public_bytes(Encoding.PEM) for one in reversed(certificates))


def test_chains_in_another_order_are_the_same_chains() -> None:
    honest = platform().endorsements(NOW)
    reordered = {
        name: reversed_pem(honest.document(name))
        for name in (
            names.TCB_INFO_ISSUER_CHAIN,
            names.QE_IDENTITY_ISSUER_CHAIN,
            names.PCK_CRL_ISSUER_CHAIN,
        )
    }
    quote = honest_evidence().document("quote")
    chain = parse_quote(quote).pck_chain_pem
    assert chain is not None

    result = judged(
        evidence=evidence_of(quote.replace(chain, reversed_pem(chain))),
        endorsements=changed(honest, **reordered),
    )

    assert result.tcb_status == "UpToDate"


class TestQuoteThatNamesItsPlatform:
    """Certification data of type 3 carries no chain: it must come beside the quote."""

    def evidence(self) -> Evidence:
        quote = honest_evidence().document("quote")
        chain = parse_quote(quote).pck_chain_pem
        assert chain is not None
        carried = b"\x05\x00" + len(chain).to_bytes(4, "little")
        return evidence_of(quote.replace(carried, b"\x03\x00" + carried[2:]))

    def test_without_a_chain(self) -> None:
        with pytest.raises(MalformedError, match="pck_certificate_chain"):
            judged(evidence=self.evidence())

    def test_with_its_chain(self) -> None:
        chain = parse_quote(honest_evidence().document("quote")).pck_chain_pem
        assert chain is not None
        beside = changed(platform().endorsements(NOW), **{names.PCK_CERTIFICATE_CHAIN: chain})

        assert judged(evidence=self.evidence(), endorsements=beside).tcb_status == "UpToDate"

    def test_with_the_chain_of_another_platform(self) -> None:
        other = platform("another")
        chain = parse_quote(other.quote(MEASUREMENT.mr_td, REPORT_DATA)).pck_chain_pem
        assert chain is not None
        beside = changed(platform().endorsements(NOW), **{names.PCK_CERTIFICATE_CHAIN: chain})

        with pytest.raises(VerificationError):
            judged(evidence=self.evidence(), endorsements=beside)
