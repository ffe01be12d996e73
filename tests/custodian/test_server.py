"""The running custodian with real TLS and real connections: control, pushes, clones, the end."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import pinned_client_context
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.ids import ConsumerId, LeaseId, SessionId
from aigovtool.wire.codec import Signed, decode, encode, sign
from aigovtool.wire.control import (
    ControlChallenge,
    ExtractionSeen,
    FromCustodian,
    FromEnclave,
    GrantMade,
    Hello,
    LoanChanged,
    MoreDecided,
    MoreWanted,
    OutputElsewhere,
    OutputSeen,
    Report,
    ReportAnswer,
    RosterChanged,
    SessionEnded,
    Settlement,
    ShuttingDown,
    Stopped,
    StopProof,
    Want,
    Welcome,
)
from aigovtool.wire.enrolment import Challenge, Release
from aigovtool.wire.headers import CHALLENGE_PATH, CONTROL_PATH, ENROL_PATH
from tests.custodian.house import EnclaveSide, House, open_house

PUSH_LIMIT_S = 10.0  # an enclave that is told nothing reports later than that


class Peer:
    """The enclave's side of the doors, message by message."""

    def __init__(self, made: House, http: aiohttp.ClientSession) -> None:
        self.made = made
        self.http = http
        self.side = EnclaveSide.make()
        self.statement = Signed(payload=b"{}", signature=bytes(64))

    async def enrol(self) -> SessionId:
        loan = self.made.lent.loan.loan
        answer = await self.http.post(CHALLENGE_PATH, json={"loan": loan})
        nonce = decode(await answer.read(), Challenge).nonce
        evidence = self.made.evidence_for(nonce, self.side.keys)
        request = self.made.request(nonce, self.side.keys, evidence)
        answer = await self.http.post(ENROL_PATH, data=encode(request))
        assert answer.status == 200, await answer.text()
        release = decode(await answer.read(), Release)
        self.session, self.statement = release.session, release.statement
        return self.session

    async def hello(
        self, *, key: SigningKey | None = None, session: str | None = None
    ) -> FromCustodian:
        self.socket = await self.http.ws_connect(CONTROL_PATH)
        challenge = decode((await self.socket.receive()).data, ControlChallenge)
        named = session or self.session
        over = challenge.nonce + named.encode()
        signature = (key or self.side.signing).sign(Label.CONTROL_HELLO, over)
        await self.say(
            Hello(session=SessionId(named), signature=signature, statement=self.statement)
        )
        return await self.next()

    async def say(self, message: Hello | FromEnclave) -> None:
        await self.socket.send_str(encode(message).decode())

    async def next(self) -> FromCustodian:
        """The next message, but for notices of grants, which come when they come."""
        while True:
            frame = await asyncio.wait_for(self.socket.receive(), 10)
            assert frame.type is aiohttp.WSMsgType.TEXT, frame
            message: FromCustodian = decode(frame.data, FromCustodian)
            if not isinstance(message, GrantMade):
                return message

    async def next_of(self, kind: type) -> FromCustodian:
        while not isinstance(message := await self.next(), kind):
            pass
        return message

    async def closed(self) -> int | None:
        while (frame := await asyncio.wait_for(self.socket.receive(), 12)).type not in (
            aiohttp.WSMsgType.CLOSE,
            aiohttp.WSMsgType.CLOSED,
        ):
            pass
        return self.socket.close_code or frame.data

    def settlement(self, lease: LeaseId, uses: dict[ConsumerId, int]) -> Settlement:
        return Settlement(
            loan=self.made.lent.loan.loan,
            session=self.session,
            lease=lease,
            number=1,
            previous=bytes(32),
            used=sum(uses.values()),
            by_consumer=uses,
            receipts=0,
            receipt_chain=bytes(32),
        )


@pytest.fixture
async def doors(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_house(tmp_path) as (made, doors):
        tls = pinned_client_context(made.app.identity.certificate_pem)
        async with aiohttp.ClientSession(
            f"https://{doors.enclave_address}",
            connector=aiohttp.TCPConnector(ssl=tls),
            headers={"Authorization": f"Bearer {made.ticket.token}"},
        ) as http:
            yield made, http


async def off(call):  # type: ignore[no-untyped-def]
    return await asyncio.to_thread(call)


def consumer_of(made: House) -> ConsumerId:
    with made.app.ledger.read() as tx:
        return tx.consumers_of_loan(made.lent.loan.loan)[0].consumer


async def test_a_session_leases_settles_and_hears_of_everything(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    peer, loan, consumer = Peer(made, http), made.lent.loan.loan, consumer_of(made)
    await peer.enrol()
    welcome = await peer.hello()
    assert isinstance(welcome, Welcome)
    assert (welcome.state, welcome.left) == ("active", 100)
    await peer.say(Report(number=1, want=Want(credits=10, by_consumer={})))
    answer = await peer.next()
    assert isinstance(answer, ReportAnswer)
    assert answer.lease is not None
    signed = sign(
        peer.settlement(answer.lease.lease, {consumer: 4}), peer.side.signing, Label.SETTLEMENT
    )
    await peer.say(Report(number=2, settlements=(signed,)))
    answer = await peer.next()
    assert isinstance(answer, ReportAnswer)
    assert answer.left == 96

    begin = time.monotonic()
    await off(lambda: made.app.loans.block(consumer, reason="x", actor="test"))
    roster = await peer.next_of(RosterChanged)
    assert isinstance(roster, RosterChanged)
    assert roster.roster[0].blocked
    await off(lambda: made.app.loans.unblock(consumer, actor="test"))
    await peer.say(MoreWanted(consumer=consumer, credits=5, reason="more"))
    with made.app.hub.watch() as changed:
        while not (requests := await off(lambda: open_requests(made))):
            await changed.wait()
            changed.clear()
    await off(lambda: made.app.grants.deny(requests[0], actor="test", reason="no"))
    told = await peer.next_of(MoreDecided)
    assert isinstance(told, MoreDecided)
    assert told.reason == "no"
    await off(lambda: made.app.loans.stop(loan, reason="over", actor="test"))
    assert await peer.next_of(LoanChanged) == LoanChanged(state="stopped", reason="over")
    assert time.monotonic() - begin < 5 * PUSH_LIMIT_S

    proof = StopProof(
        loan=loan,
        session=peer.session,
        receipts=4,
        receipt_chain=bytes(32),
        cancelled=0,
        reason="stopped",
        wiped=made.app.clock.now(),
    )
    await peer.say(Stopped(proof=sign(proof, peer.side.signing, Label.STOP_PROOF)))
    assert await peer.closed() == 1000
    assert "session.stop_proof" in made.events()


async def test_what_enclaves_say_of_extraction_is_kept_and_answered(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    consumer = consumer_of(made)
    first, second = Peer(made, http), Peer(made, http)
    day = (made.app.clock.now() - datetime(1970, 1, 1, tzinfo=UTC)).days
    for peer, watch, tokens in ((first, "1" * 32, 40), (second, "2" * 32, 2)):
        await peer.enrol()
        assert isinstance(await peer.hello(), Welcome)
        seen = OutputSeen(watch=watch, day=day, tokens={consumer: tokens}, all=True)
        await peer.say(seen)
        told = await peer.next_of(OutputElsewhere)
        assert isinstance(told, OutputElsewhere)
    assert (told.tokens, told.sharers) == ({consumer: 40}, 2)
    await second.say(ExtractionSeen(consumer=consumer, day=day, kind="queries", count=9))
    await second.say(Report(number=1, want=Want(credits=1, by_consumer={})))
    await second.next_of(ReportAnswer)
    assert made.events().count("extraction.alarm") == 1
    stranger = ConsumerId("consumer_of_nobody")
    await second.say(OutputSeen(watch="2" * 32, day=day, tokens={stranger: 1}))
    assert isinstance(await second.next_of(SessionEnded), SessionEnded)


def open_requests(made: House):  # type: ignore[no-untyped-def]
    with made.app.ledger.read() as tx:
        return [one.request for one in tx.requests_of_loan(made.lent.loan.loan, 10)]


async def test_a_stop_reaches_the_enclave_at_once(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    peer = Peer(made, http)
    await peer.enrol()
    await peer.hello()
    begin = time.monotonic()
    await off(lambda: made.app.loans.stop(made.lent.loan.loan, reason="", actor="test"))
    await peer.next_of(LoanChanged)
    assert time.monotonic() - begin < PUSH_LIMIT_S


async def test_whoever_does_not_hold_the_sessions_key_is_told_nothing(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    peer = Peer(made, http)
    await peer.enrol()
    for more in ({"key": SigningKey.generate()}, {"session": "session_none"}):
        refused = await peer.hello(**more)
        assert isinstance(refused, SessionEnded)
        assert await peer.closed() == 1008
    assert isinstance(await peer.hello(), Welcome)  # the real one is not hurt


async def test_two_living_connections_of_a_session_are_clones_and_end_it(
    doors,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setattr("aigovtool.custodian.hub.TAKEOVER_WAIT_S", 0.2)
    made, http = doors
    peer = Peer(made, http)
    await peer.enrol()
    assert isinstance(await peer.hello(), Welcome)
    clone = Peer(made, http)
    clone.side, clone.session, clone.statement = peer.side, peer.session, peer.statement
    assert isinstance(await clone.hello(), SessionEnded)
    assert isinstance(await peer.next(), SessionEnded)
    assert "session.cloned" in made.events()
    again = Peer(made, http)
    again.side, again.session, again.statement = peer.side, peer.session, peer.statement
    await peer.socket.close()
    assert isinstance(await again.hello(), SessionEnded)


async def test_a_connection_that_died_is_taken_over(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    peer = Peer(made, http)
    await peer.enrol()
    assert isinstance(await peer.hello(), Welcome)
    again = Peer(made, http)
    again.side, again.session, again.statement = peer.side, peer.session, peer.statement
    await peer.socket.close()
    assert isinstance(await again.hello(), Welcome)
    assert "session.cloned" not in made.events()


async def test_a_report_that_no_enclave_sends_ends_the_session(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    peer = Peer(made, http)
    await peer.enrol()
    await peer.hello()
    await peer.say(Report(number=7))
    assert isinstance(await peer.next(), SessionEnded)
    await peer.closed()
    assert "report.refused" in made.events()
    with made.app.ledger.read() as tx:
        session = tx.session(peer.session)
    assert session is not None
    assert session.state is SessionState.ENDED
    assert isinstance(await peer.hello(), SessionEnded)  # and stays ended


@pytest.mark.parametrize("text", ["{}", "not json", '{"type":"report"}', '{"type":"welcome"}'])
async def test_what_is_no_message_ends_the_connection(doors, text: str) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    peer = Peer(made, http)
    await peer.enrol()
    await peer.hello()
    await peer.socket.send_str(text)
    assert await peer.closed() == 1008
    assert isinstance(await peer.hello(), Welcome)  # the session itself goes on


async def test_a_wrong_anchor_gets_no_byte(doors) -> None:  # type: ignore[no-untyped-def]
    made, http = doors
    from aigovtool.crypto.tls import make_custodian_root

    stranger = make_custodian_root(SigningKey.generate(), now=made.app.clock.now())
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await http.post(CHALLENGE_PATH, ssl=pinned_client_context(stranger))


async def test_the_end_is_told_and_settlements_are_taken(tmp_path: Path) -> None:
    async with open_house(tmp_path) as (made, open_doors):
        tls = pinned_client_context(made.app.identity.certificate_pem)
        http = aiohttp.ClientSession(
            f"https://{open_doors.enclave_address}",
            connector=aiohttp.TCPConnector(ssl=tls),
            headers={"Authorization": f"Bearer {made.ticket.token}"},
        )
        peer = Peer(made, http)
        await peer.enrol()
        await peer.hello()
        await peer.say(Report(number=1, want=Want(credits=10, by_consumer={})))
        answer = await peer.next()
        assert isinstance(answer, ReportAnswer)
        assert answer.lease is not None
        consumer, lease = consumer_of(made), answer.lease.lease

        async def give_back() -> int | None:
            assert isinstance(await peer.next_of(ShuttingDown), ShuttingDown)
            signed = sign(
                peer.settlement(lease, {consumer: 3}), peer.side.signing, Label.SETTLEMENT
            )
            want = Want(credits=10, by_consumer={})
            await peer.say(Report(number=2, settlements=(signed,), want=want))
            answer = await peer.next_of(ReportAnswer)
            assert isinstance(answer, ReportAnswer)
            assert answer.lease is None
            return await peer.closed()

        ending = asyncio.create_task(give_back())
        folder = made.app.folder
    await ending
    await http.close()
    from aigovtool.custodian.store.sqlite import SqliteStore

    store = SqliteStore.open(folder.ledger)
    with store.read() as tx:
        account = tx.loans()[0].account
    store.close()
    assert (account.left, account.leased, account.spent) == (97, 0, 3)
