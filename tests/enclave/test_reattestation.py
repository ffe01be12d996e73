"""The custodian asks again: what a running enclave answers, and what it does not."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Evidence
from aigovtool.enclave.reattestation import Reattestation
from aigovtool.errors import UnavailableError
from aigovtool.wire.control import Reattest, ReattestWanted

from .conftest import RunningEnclave
from .custodian import LOAN, REPORT_DATA, FakeAttester, FakeCustodian

KEYS = EnclaveKeys(tls_spki_sha256=bytes(32), signing_key=bytes(32), hpke_key=bytes(1216))
CUSTODIAN = bytes(range(32))


def wanted() -> ReattestWanted:
    return ReattestWanted(nonce=secrets.token_bytes(32), answer_within_s=120.0)


def bound(nonce: bytes) -> bytes:
    return report_data(
        AskedBy.CUSTODIAN, nonce=nonce, keys=KEYS, custodian_key=CUSTODIAN, loan_id=LOAN
    )


class Answers:
    """A `Reattestation` at work, and what it sent."""

    def __init__(self, attester: FakeAttester) -> None:
        self.part = Reattestation(attester=attester, keys=KEYS, custodian_key=CUSTODIAN, loan=LOAN)
        self.sent: asyncio.Queue[Reattest] = asyncio.Queue()
        self.task = asyncio.create_task(self.part.answer(self.sent.put))

    async def next(self) -> Reattest:
        async with asyncio.timeout(30):
            return await self.sent.get()

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


async def test_a_running_enclave_answers_with_evidence_for_the_nonce_and_serves_on(
    custodian: FakeCustodian, enclave: RunningEnclave
) -> None:
    asked = wanted()
    await custodian.push(asked)
    await custodian.until(lambda: any(isinstance(one, Reattest) for one in custodian.requests))
    (answer,) = (one for one in custodian.requests if isinstance(one, Reattest))
    (session,) = custodian.sessions.values()
    assert answer.nonce == asked.nonce
    assert answer.evidence.documents[REPORT_DATA] == report_data(
        AskedBy.CUSTODIAN,
        nonce=asked.nonce,
        keys=EnclaveKeys(
            tls_spki_sha256=session.keys.tls_spki_sha256,
            signing_key=session.keys.signing_key,
            hpke_key=session.keys.hpke_key,
        ),
        custodian_key=custodian.key.public_key,
        loan_id=LOAN,
    )
    assert (await enclave.infer())[0] == 200


async def test_a_platform_that_does_not_answer_now_is_asked_again() -> None:
    class Stubborn(FakeAttester):
        tries = 0

        def evidence(self, report_data: bytes) -> Evidence:
            self.tries += 1
            if self.tries < 3:
                raise UnavailableError("the platform is busy")
            return super().evidence(report_data)

    answers, asked = Answers(attester := Stubborn()), wanted()
    answers.part.want(asked)
    answer = await answers.next()
    assert (answer.nonce, attester.tries) == (asked.nonce, 3)
    await answers.end()


@pytest.mark.parametrize("lost", [False, True])
async def test_what_is_no_longer_wanted_is_not_sent(lost: bool) -> None:
    class Replaced(FakeAttester):
        def evidence(self, report_data: bytes) -> Evidence:
            if report_data == bound(first.nonce):
                loop.call_soon_threadsafe(replace)
            return super().evidence(report_data)

    def replace() -> None:
        if lost:
            answers.part.forget()
        answers.part.want(second)

    loop = asyncio.get_running_loop()
    first, second = wanted(), wanted()
    answers = Answers(Replaced())
    answers.part.want(first)
    answer = await answers.next()
    assert answer.nonce == second.nonce
    assert answer.evidence.documents[REPORT_DATA] == bound(second.nonce)
    await answers.end()
    assert answers.sent.empty()
