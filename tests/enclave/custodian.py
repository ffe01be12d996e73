"""
A custodian for the enclave's tests: real TLS, real messages, a count in memory, faults on demand.

It stands for the authority, not for the product's custodian: it judges nothing but the binding.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aiohttp import WSMsgType, web

from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.crypto.hpke import seal
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, format_public_key, verify_signature
from aigovtool.crypto.tls import (
    make_custodian_identity,
    make_custodian_root,
    server_context,
)
from aigovtool.errors import AIGovToolError, LoanNotActiveError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, new_id, sha256
from aigovtool.wire.codec import Message, Signed, decode, encode, open_signed, sign
from aigovtool.wire.control import (
    NO_SETTLEMENT_BEFORE,
    ControlChallenge,
    CreditsFreed,
    FromEnclave,
    Hello,
    Lease,
    LoanChanged,
    ModelReplaced,
    MoreDecided,
    MoreWanted,
    OutputElsewhere,
    OutputSeen,
    Report,
    ReportAnswer,
    RosterChanged,
    SessionEnded,
    Settlement,
    Stopped,
    StopProof,
    Welcome,
)
from aigovtool.wire.enrolment import (
    Challenge,
    EnrolRequest,
    Keys,
    LedgerHead,
    Release,
    RosterEntry,
    Secrets,
    SessionStatement,
    Terms,
    TokenPrice,
)
from aigovtool.wire.extraction import NO_EXTRACTION_LIMITS
from aigovtool.wire.headers import BODY_PATH, CHALLENGE_PATH, CONTROL_PATH, ENROL_PATH
from aigovtool.wire.limits import NO_LIMITS, Limits
from aigovtool.wire.problem import problem_of
from aigovtool.wire.ticket import Ticket

from .models import Sealed

LOAN = LoanId("loan_test")
REPORT_DATA = "report_data"  # the one document of the fake evidence


class FakeAttester:
    """Evidence that says what it was told; the fake authority believes it."""

    tee = Tee.SIMULATED

    def describe(self) -> str:
        return "a fake for tests"

    def evidence(self, report_data: bytes) -> Evidence:
        return Evidence(tee=self.tee, documents={REPORT_DATA: report_data})

    def endorsements(self) -> Endorsements:
        return Endorsements(tee=self.tee)


@dataclass
class Consumer:
    """A consumer of the fake loan; `budget` is None without one of its own."""

    id: ConsumerId
    key: str
    blocked: bool = False
    expires_in_s: float | None = None  # from when it is said
    budget: int | None = None
    limits: Limits = NO_LIMITS

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass
class Enrolled:
    """A session, and what the custodian decided on its reports."""

    id: SessionId
    keys: Keys
    answers: dict[int, tuple[Report, ReportAnswer]] = field(default_factory=dict)
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    settlements: list[Settlement] = field(default_factory=list)
    settlement_chain: bytes = NO_SETTLEMENT_BEFORE
    ended: bool = False


class FakeCustodian:
    """Serves one loan of one model."""

    def __init__(self, key: SigningKey, model: Sealed, *, budget: int, loan: LoanId = LOAN) -> None:
        self.loan = loan
        self.key = key
        self.model = model
        self.retire_after_s = 3600.0
        self.bodies = {model.verified.digest.hex(): model.body}
        self.body_gate: asyncio.Event | None = None  # downloads begin when it is set
        self.granted = self.left = budget
        self.spent = 0
        self.state, self.state_reason = "active", ""
        self.lease_duration_s = 5.0
        self.tokens = TokenPrice()
        self.wipe_after_s = 3600.0
        self.extraction = NO_EXTRACTION_LIMITS
        self.evictable = False
        self.max_lease = 1000
        self.least_lease = 0
        self.consumers: dict[ConsumerId, Consumer] = {}
        self.sessions: dict[SessionId, Enrolled] = {}
        self.proofs: list[StopProof] = []
        self.wanted: list[MoreWanted] = []
        self.decided: tuple[MoreDecided, ...] = ()  # told to whoever connects
        self.requests: list[FromEnclave] = []
        self.raw: list[str] = []  # all that enclaves said, as it came
        self.nonces: set[bytes] = set()
        self.accepts = True  # control connections
        self.before_answer: Callable[[Report], Awaitable[None]] | None = None
        self.body_limit: int | None = None  # bytes after which a download is cut, once
        self.body_offsets: list[int] = []
        self.body_override: bytes | None = None
        self.sockets: dict[SessionId, web.WebSocketResponse] = {}
        self.changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._root = make_custodian_root(key, now=datetime.now(UTC))
        self.add_consumer("alice")

    # --- what tests do --------------------------------------------------------------------------

    def add_consumer(self, name: str, *, budget: int | None = None) -> Consumer:
        consumer = Consumer(ConsumerId(f"con_{name}"), secrets.token_hex(16), budget=budget)
        self.consumers[consumer.id] = consumer
        return consumer

    @property
    def alice(self) -> Consumer:
        return self.consumers[ConsumerId("con_alice")]

    @property
    def ticket(self) -> Ticket:
        return Ticket(
            version=1,
            loan=self.loan,
            custodian=f"127.0.0.1:{self._port}",
            custodian_key=format_public_key(self.key.public_key),
            custodian_certificate=self._root.decode(),
            token="token",
        )

    async def push(self, message: Message) -> None:
        for socket in list(self.sockets.values()):
            await socket.send_str(encode(message).decode())

    async def set_state(self, state: str, reason: str = "") -> None:
        self.state, self.state_reason = state, reason
        await self.push(LoanChanged(state=state, reason=reason))

    async def set_roster(self) -> None:
        await self.push(RosterChanged(roster=self._roster()))

    def replace(self, model: Sealed) -> None:
        """Lend another model, and tell nobody."""
        self.model = model
        self.bodies[model.verified.digest.hex()] = model.body

    async def push_replaced(self, model: Sealed) -> None:
        self.replace(model)
        digest = model.verified.digest
        await self.push(ModelReplaced(model_digest=digest, retire_after_s=self.retire_after_s))

    async def grant(self, credits: int) -> None:
        self.granted += credits
        self.left += credits
        await self.push(CreditsFreed(left=self.left))

    async def cut(self) -> None:
        """Cut every control connection, and take no new one."""
        self.accepts = False
        for socket in list(self.sockets.values()):
            await socket.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the custodian sees is so."""
        async with self.changed, asyncio.timeout(30):
            await self.changed.wait_for(condition)

    @property
    def settlements(self) -> list[Settlement]:
        return [one for session in self.sessions.values() for one in session.settlements]

    @property
    def leased(self) -> int:
        return sum(
            lease.credits for session in self.sessions.values() for lease in session.leases.values()
        )

    def check(self) -> None:
        """I1, as this custodian sees it."""
        assert self.granted == self.left + self.spent + self.leased
        assert min(self.left, self.spent) >= 0

    # --- serving --------------------------------------------------------------------------------

    async def __aenter__(self) -> FakeCustodian:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_post(CHALLENGE_PATH, self._challenge)
        app.router.add_post(ENROL_PATH, self._enrol)
        app.router.add_get(BODY_PATH, self._body)
        app.router.add_get(CONTROL_PATH, self._control)
        identity = make_custodian_identity(self.key, self._root, now=datetime.now(UTC))
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        await self._listen(server_context(identity))
        return self

    async def _listen(self, tls: ssl.SSLContext) -> None:
        assert self._runner is not None
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        for socket in list(self.sockets.values()):
            await socket.close()
        await self._runner.cleanup()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _challenge(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer token"
        if self.state != "active":
            return _problem(LoanNotActiveError(f"the loan is {self.state}", came=self.state))
        nonce = secrets.token_bytes(32)
        self.nonces.add(nonce)
        return _json(Challenge(nonce=nonce, valid_s=30.0))

    async def _enrol(self, http: web.Request) -> web.Response:
        request = decode(await http.read(), EnrolRequest)
        self.nonces.remove(request.nonce)
        bound = report_data(
            AskedBy.CUSTODIAN,
            nonce=request.nonce,
            keys=EnclaveKeys(
                tls_spki_sha256=request.keys.tls_spki_sha256,
                signing_key=request.keys.signing_key,
                hpke_key=request.keys.hpke_key,
            ),
            custodian_key=self.key.public_key,
            loan_id=self.loan,
        )
        assert any(bound in document for document in request.evidence.documents.values())
        session = Enrolled(SessionId(new_id("ses")), request.keys)
        self.sessions[session.id] = session
        secret = encode(Secrets(content_key=self.model.content_key))
        return _json(
            Release(
                session=session.id,
                sealed_secrets=seal(
                    request.keys.hpke_key, secret, Label.CONTENT_KEY_RELEASE, bound
                ),
                manifest=self.model.verified.signed,
                statement=self._statement(session, None),
                terms=self._terms(),
            )
        )

    async def _body(self, request: web.Request) -> web.StreamResponse:
        if self.body_gate is not None:
            await self.body_gate.wait()
        body = self.body_override or self.bodies[request.match_info["digest"]].read_bytes()
        offset = 0
        headers = {}
        if (wanted := request.headers.get("Range")) is not None:
            offset = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {offset}-{len(body) - 1}/{len(body)}"
        self.body_offsets.append(offset)
        answer = web.StreamResponse(status=206 if offset else 200, headers=headers)
        answer.content_length = len(body) - offset
        await answer.prepare(request)
        cut, self.body_limit = self.body_limit, None
        await answer.write(body[offset:] if cut is None else body[offset : offset + cut])
        if cut is not None and request.transport is not None:
            await asyncio.sleep(0.05)  # let what was written go out before the connection breaks
            request.transport.close()
        return answer

    async def _control(self, request: web.Request) -> web.StreamResponse:
        if not self.accepts:
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        nonce = secrets.token_bytes(32)
        await socket.send_str(encode(ControlChallenge(nonce=nonce)).decode())
        hello = decode(await socket.receive_str(), Hello)
        session = self.sessions.get(hello.session)
        if session is None or session.ended:
            await socket.send_str(encode(SessionEnded(reason="not known")).decode())
            await socket.close()
            return socket
        verify_signature(
            session.keys.signing_key,
            Label.CONTROL_HELLO,
            nonce + hello.session.encode(),
            hello.signature,
        )
        self.sockets[session.id] = socket
        welcome = Welcome(
            state=self.state,
            state_reason=self.state_reason,
            terms=self._terms(),
            roster=self._roster(),
            left=self.left,
            model_digest=self.model.verified.digest,
            retire_after_s=self.retire_after_s,
            decided=self.decided,
        )
        await socket.send_str(encode(welcome).decode())
        await self._notify()
        try:
            async for frame in socket:
                if frame.type is WSMsgType.TEXT:
                    self.raw.append(frame.data)
                    await self._take(session, socket, decode(frame.data, FromEnclave))
        finally:
            if self.sockets.get(session.id) is socket:
                del self.sockets[session.id]
            await self._notify()
        return socket

    async def _take(
        self, session: Enrolled, socket: web.WebSocketResponse, message: FromEnclave
    ) -> None:
        self.requests.append(message)
        await self._notify()
        match message:
            case Report():
                if self.before_answer is not None:
                    await self.before_answer(message)
                answer = self._answer(session, message)
                if not socket.closed:
                    await socket.send_str(encode(answer).decode())
            case OutputSeen():
                elsewhere = OutputElsewhere(day=message.day, tokens={}, sharers=1)
                if not socket.closed:
                    await socket.send_str(encode(elsewhere).decode())
            case MoreWanted():
                self.wanted.append(message)
            case Stopped():
                self.proofs.append(
                    open_signed(
                        message.proof,
                        StopProof,
                        public_key=session.keys.signing_key,
                        label=Label.STOP_PROOF,
                    )
                )
                session.ended = True
        await self._notify()

    # --- the count ------------------------------------------------------------------------------

    def _answer(self, session: Enrolled, report: Report) -> ReportAnswer:
        if report.number in session.answers:
            before, answer = session.answers[report.number]
            assert before == report, "another report under a number that was answered"
            return answer
        assert report.number == len(session.answers) + 1
        settled = []
        for signed in report.settlements:
            settlement = open_signed(
                signed,
                Settlement,
                public_key=session.keys.signing_key,
                label=Label.SETTLEMENT,
            )
            place = (len(session.settlements) + 1, session.settlement_chain)
            assert (settlement.number, settlement.previous) == place
            session.settlement_chain = sha256(signed.payload)
            self._settle(session, settlement)
            settled.append(settlement.lease)
        lease = None
        if report.want is not None and self.state == "active":
            lease = self._lease(session, report)
        self.check()
        answer = ReportAnswer(
            number=report.number,
            settled=tuple(settled),
            lease=lease,
            left=self.left,
            leased_elsewhere=0,
            consumer_left={
                one.id: one.budget for one in self.consumers.values() if one.budget is not None
            },
            largest_lease=self.max_lease,
            statement=self._statement(session, lease),
        )
        session.answers[report.number] = (report, answer)
        return answer

    def _settle(self, session: Enrolled, settlement: Settlement) -> None:
        lease = session.leases.pop(settlement.lease)
        assert 0 <= settlement.used == sum(settlement.by_consumer.values()) <= lease.credits
        session.settlements.append(settlement)
        self.spent += settlement.used
        self.left += lease.credits - settlement.used
        for consumer, cap in lease.caps.items():
            used = settlement.by_consumer.get(consumer, 0)
            assert used <= cap
            budget = self.consumers[consumer].budget
            assert budget is not None
            self.consumers[consumer].budget = budget + cap - used

    def _lease(self, session: Enrolled, report: Report) -> Lease | None:
        assert report.want is not None
        caps: dict[ConsumerId, int] = {}
        for name, asked in report.want.by_consumer.items():
            budget = self.consumers[name].budget
            if budget is not None and (cap := min(asked, budget)):
                caps[name] = cap
                self.consumers[name].budget = budget - cap
        wanted = max(report.want.credits, self.least_lease)
        credits = min(wanted, self.left, self.max_lease)
        if credits == 0:
            return None
        self.left -= credits
        lease = Lease(
            lease=LeaseId(new_id("lease")),
            credits=credits,
            caps=caps,
            duration_s=self.lease_duration_s,
        )
        session.leases[lease.lease] = lease
        return lease

    def _statement(self, session: Enrolled, lease: Lease | None) -> Signed:
        now = datetime.now(UTC)
        statement = SessionStatement(
            loan=self.loan,
            session=session.id,
            keys=session.keys,
            model_digest=self.model.verified.digest,
            lease=None if lease is None else lease.lease,
            left=self.left,
            head=LedgerHead(incarnation=bytes(16), event=1, digest=bytes(32)),
            issued=now,
            expires=now + timedelta(minutes=2),
        )
        return sign(statement, self.key, Label.SESSION_STATEMENT)

    def _terms(self) -> Terms:
        return Terms(
            lease_duration_s=self.lease_duration_s,
            wipe_after_s=self.wipe_after_s,
            expires=None,
            tokens=self.tokens,
            extraction=self.extraction,
            evictable=self.evictable,
        )

    def _roster(self) -> tuple[RosterEntry, ...]:
        return tuple(
            RosterEntry(
                consumer=one.id,
                api_key_sha256=sha256(one.key.encode()),
                blocked=one.blocked,
                expires_in_s=one.expires_in_s,
                budgeted=one.budget is not None,
                left=one.budget,
                limits=one.limits,
            )
            for one in self.consumers.values()
        )


def _json(message: Message) -> web.Response:
    return web.Response(body=encode(message), content_type="application/json")


def _problem(error: AIGovToolError) -> web.Response:
    problem = problem_of(error)
    return web.Response(
        status=problem.status, body=encode(problem), content_type="application/problem+json"
    )
