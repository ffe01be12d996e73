"""The custodian dials nobody unless its operator says so; what it fetches is judged as all else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.policy import Policy
from aigovtool.attestation.verify import judge
from aigovtool.cli import main
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.appraisal import Appraised, Appraiser
from aigovtool.custodian.verdicts import Verdicts
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.wire.enrolment import Documents
from tests.custodian.house import EnclaveSide, House, house
from tests.custodian.ledgers import SetClock
from tests.endorsements.stand_in import recorded

EVIDENCE, COMPLETE, NOW = recorded("tdx/v4-up-to-date")
EMPTY = Documents(tee="tdx", documents={})


class Courier:
    """Has the recorded collateral, and takes its time."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock
        self.had: list[Endorsements] = []

    def complete(self, evidence: Evidence, have: Endorsements, *, now: object) -> Endorsements:
        assert evidence == EVIDENCE
        assert now == self._clock.now()
        self.had.append(have)
        self._clock.forward(5)
        return COMPLETE


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def made(tmp_path: Path, clock: SetClock) -> Iterator[House]:
    with house(tmp_path, clock=clock) as custodian:
        yield custodian


def appraise(made: House, courier: Courier | None, seen: list[Endorsements]) -> Appraised:
    """Appraise the recorded quote, sent without any endorsements."""

    def look(
        evidence: Evidence, endorsements: Endorsements, policy: Policy, **more: object
    ) -> AttestationResult:
        seen.append(endorsements)
        assert more["now"] == made.app.clock.now()  # not of before the courier's journey
        return judge(evidence, endorsements, policy, expected_report_data=bytes(64), now=NOW)

    key = SigningKey.generate()
    appraiser = Appraiser(
        ledger=made.app.ledger,
        judge=look,
        verdicts=Verdicts(key=key),
        custodian_key=key.public_key,
        courier=courier,
    )
    return appraiser.appraise(
        made.lent.loan.loan,
        nonce=bytes(32),
        keys=EnclaveSide.make().keys,
        evidence=Documents(tee="tdx", documents=dict(EVIDENCE.documents)),
        endorsements=EMPTY,
    )


def test_what_the_enclave_did_not_send_is_completed_before_it_is_judged(
    made: House, clock: SetClock
) -> None:
    courier, seen = Courier(clock), list[Endorsements]()

    verdict = appraise(made, courier, seen).verdict

    assert [had.documents for had in courier.had] == [{}]
    assert seen == [COMPLETE]
    # genuine now, and still made for somebody else: what was fetched opens no door
    assert isinstance(verdict, VerificationError)
    assert verdict.reasons[0].code == "binding"


def test_without_the_operators_word_the_enclaves_own_are_judged(made: House) -> None:
    seen = list[Endorsements]()
    with pytest.raises(MalformedError, match="without the document"):
        appraise(made, None, seen)
    assert [one.documents for one in seen] == [{}]


def test_a_pccs_alone_fetches_nothing_and_is_a_misuse(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    assert CliRunner().invoke(main, ["custodian", "init", "--data", data]).exit_code == 0
    done = CliRunner().invoke(
        main, ["custodian", "serve", "--data", data, "--pccs", "http://127.0.0.1:1"]
    )
    assert done.exit_code == 2
    assert "--fetch-endorsements" in done.stderr
