"""
A stand-in enclave: a real TLS server on loopback that keeps every byte it was sent.

It holds real keys and shows real evidence of a simulated platform; what a test wants to be wrong it
says by a subclass or an argument, everything else is right. It runs on a thread of its own, so that
blocking clients and commands can be tested too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httptools
import numpy as np

from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.policy import Custodian, Policy
from aigovtool.crypto.hpke import PUBLIC_KEY_BYTES, HpkeKey
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import TlsIdentity, make_enclave_identity, server_context
from aigovtool.errors import AIGovToolError, BudgetExhaustedError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, sha256
from aigovtool.sealing.chunked import HEADER_BYTES, sealed_size
from aigovtool.sealing.interface import ClassificationOutput, ModelInterface, TensorInput
from aigovtool.sealing.manifest import (
    BodyEntry,
    FileEntry,
    ModelSignature,
    SealedManifest,
    TensorSpec,
    VerifiedManifest,
    sign_manifest,
    verify_manifest,
)
from aigovtool.simulation.measure import Measurement
from aigovtool.simulation.platform import SimulatedPlatform
from aigovtool.simulation.policy import simulated_policy
from aigovtool.wire.budget import BudgetView
from aigovtool.wire.codec import Signed, encode, sign
from aigovtool.wire.enrolment import (
    AttestationDocument,
    Documents,
    Keys,
    LedgerHead,
    SessionStatement,
)
from aigovtool.wire.headers import ATTESTATION_PATH, BUDGET_PATH, RECEIPT, REMAINING
from aigovtool.wire.oip import (
    HEADER_LENGTH,
    ModelMetadata,
    TensorSignature,
    decode_infer_request,
    encode_infer_response,
    parse_header_length,
)
from aigovtool.wire.problem import CONTENT_TYPE, headers_of, problem_of
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt, to_header

API_KEY = "consumer-key-of-these-tests"
LABELS = ("cat", "dog", "elk")
_MODEL = ModelMetadata(
    name="double",
    versions=("1",),
    platform="onnx",
    inputs=(TensorSignature(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSignature(name="y", datatype="FP32", shape=(-1, 3)),),
)


CODE = Measurement(mr_td=b"\x11" * 48, lines=())


@dataclass(frozen=True)
class Platform:
    """A simulated machine that runs some code."""

    machine: SimulatedPlatform
    mr_td: bytes = CODE.mr_td

    @classmethod
    def make(cls) -> Platform:
        return cls(SimulatedPlatform.in_memory(now=datetime.now(UTC)))

    def attest(self, data: bytes) -> tuple[Documents, Documents]:
        """Return evidence for report data, and endorsements."""
        endorsements = self.machine.endorsements(datetime.now(UTC))
        return (
            Documents(tee=Tee.SIMULATED, documents={QUOTE: self.machine.quote(self.mr_td, data)}),
            Documents(tee=Tee.SIMULATED, documents=dict(endorsements.documents)),
        )


@dataclass(frozen=True)
class World:
    """Who belongs together: custodian, loan, model, and what the consumer's manifest.toml says."""

    platform: Platform
    custodian: SigningKey
    loan: LoanId
    policy: Policy
    model: VerifiedManifest

    @classmethod
    def make(cls, platform: Platform) -> World:
        custodian = SigningKey.generate()
        loan = LoanId("loan_of_these_tests")
        return cls(
            platform=platform,
            custodian=custodian,
            loan=loan,
            policy=Policy(
                accept=(simulated_policy(platform.machine.root_sha256, CODE),),
                custodian=Custodian(public_key=custodian.public_key, loan=loan),
            ),
            model=signed_model(custodian),
        )


def signed_model(custodian: SigningKey, *, version: str = "1") -> VerifiedManifest:
    """Return a manifest for a model that gives twice its input, scores of three labels."""
    (taken,), (given,) = _MODEL.inputs, _MODEL.outputs
    manifest = SealedManifest(
        manifest_version=1,
        name=_MODEL.name,
        version=version,
        format="onnx",
        files=(FileEntry(name="double.onnx", size=100, sha256="ab" * 32),),
        entry="double.onnx",
        body=BodyEntry(size=sealed_size(100), header="cd" * HEADER_BYTES, sha256="ef" * 32),
        signature=ModelSignature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=taken.shape),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=given.shape),),
        ),
        interface=ModelInterface(
            title="doubling",
            inputs=(TensorInput(name="x", datatype="FP32", shape=(-1, 3)),),
            outputs=(ClassificationOutput(name="y", labels=LABELS, softmax=False),),
        ),
        licence="",
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    signed = sign_manifest(manifest, custodian)
    return verify_manifest(signed, custodian.public_key)


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Session:
    """One attested run: keys, and the custodian's statement about them."""

    world: World
    identity: TlsIdentity = field(
        default_factory=lambda: make_enclave_identity(now=datetime.now(UTC))
    )
    signing: SigningKey = field(default_factory=SigningKey.generate)
    hpke_key: bytes = b"\7" * PUBLIC_KEY_BYTES
    id: SessionId = field(default=SessionId("sess_1"))

    @property
    def keys(self) -> EnclaveKeys:
        return EnclaveKeys(
            tls_spki_sha256=self.identity.spki_sha256,
            signing_key=self.signing.public_key,
            hpke_key=self.hpke_key,
        )

    def statement(self, **changes: Any) -> Signed:
        """The custodian's word on this session, with *changes* to its fields."""
        now = datetime.now(UTC)
        fields: dict[str, Any] = {
            "loan": self.world.loan,
            "session": self.id,
            "keys": wire_keys(self.keys),
            "model_digest": self.world.model.digest,
            "lease": LeaseId("lease_1"),
            "left": 5,
            "head": LedgerHead(incarnation=bytes(16), event=1, digest=bytes(32)),
            "issued": now,
            "expires": now + timedelta(seconds=60),
        }
        return sign(
            SessionStatement(**(fields | changes)), self.world.custodian, Label.SESSION_STATEMENT
        )

    def document(self, nonce: bytes) -> AttestationDocument:
        """An honest answer to *nonce*."""
        evidence, endorsements = self.world.platform.attest(
            report_data(
                AskedBy.CONSUMER,
                nonce=nonce,
                keys=self.keys,
                custodian_key=self.world.custodian.public_key,
                loan_id=self.world.loan,
            )
        )
        return AttestationDocument(
            nonce=nonce,
            keys=wire_keys(self.keys),
            custodian_key=self.world.custodian.public_key,
            loan=self.world.loan,
            evidence=evidence,
            endorsements=endorsements,
            manifest=self.world.model.signed,
            statement=self.statement(),
        )


def wire_keys(keys: EnclaveKeys) -> Keys:
    return Keys(
        tls_spki_sha256=keys.tls_spki_sha256, signing_key=keys.signing_key, hpke_key=keys.hpke_key
    )


def answer(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None, *, length: bool = True
) -> bytes:
    """Write an HTTP answer."""
    lines = [f"HTTP/1.1 {status} Status"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class StandIn:
    """
    The server. It answers attestation, budget and inference; `reply` can be replaced.

    Args:
        session: whose keys and document it shows.
        credits: what is left; a query costs one.
        price: what receipts say that it cost.
    """

    def __init__(self, session: Session, *, credits: int = 5) -> None:
        self.session = session
        self.credits = credits
        self.price = 1
        self.receipts = 0
        self.chain = NO_RECEIPT_BEFORE
        self.asked: list[Asked] = []
        self.received: list[bytearray] = []  # by connection, after the handshake
        self.alive: set[asyncio.Transport] = set()  # after their handshake
        self.accepted: set[asyncio.Transport] = set()  # what TLS runs over, from the first moment
        self.handshakes: set[asyncio.Task[None]] = set()
        self.tell: Callable[[bytes], AttestationDocument | bytes] = self._honest
        self.reply: Callable[[Asked], bytes | AsyncIterator[bytes] | None] = self.infer
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._server: asyncio.Server | None = None

    # --- what was seen ----------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def policy(self) -> Policy:
        return self.session.world.policy

    @property
    def everything(self) -> bytes:
        return b"".join(self.received)

    @property
    def queries(self) -> list[Asked]:
        """All requests but those for the attestation document."""
        return [one for one in self.asked if not one.target.startswith(ATTESTATION_PATH)]

    # --- what is answered -------------------------------------------------------------------

    def _honest(self, nonce: bytes) -> AttestationDocument:
        return self.session.document(nonce)

    def answer_to(self, asked: Asked) -> bytes | AsyncIterator[bytes] | None:
        path, _, query = asked.target.partition("?")
        if path == ATTESTATION_PATH:
            told = self.tell(bytes.fromhex(query.removeprefix("nonce=")))
            return told if isinstance(told, bytes) else answer(encode(told))
        return self.reply(asked)

    def infer(self, asked: Asked) -> bytes | None:
        """Serve budget and inference as an enclave does."""
        if asked.target == BUDGET_PATH:
            return answer(encode(self.budget()), headers={REMAINING: str(self.credits)})
        if asked.method == "GET":
            return answer(b'{"live":true}')
        if self.credits == 0:
            return self.problem(self.exhausted())
        self.credits -= 1
        request = decode_infer_request(
            asked.body,
            header_length=parse_header_length(asked.headers.get(HEADER_LENGTH.lower())),
            model=_MODEL,
        )
        encoded = encode_infer_response(
            request, {"y": request.inputs["x"] * np.float32(2)}, model_name=_MODEL.name
        )
        headers = {k: v for k, v in encoded.headers.items() if k != "Content-Length"}
        headers |= {REMAINING: str(self.credits), RECEIPT: self.receipt()}
        return answer(b"".join(encoded.chunks), headers=headers)

    def budget(self) -> BudgetView:
        return BudgetView(
            loan=self.session.world.loan,
            consumer=ConsumerId("cons_1"),
            model="double",
            model_version="1",
            state="active",
            remaining=self.credits,
            own_budget=False,
            lease_remaining=self.credits,
            lease_valid_s=4.5,
            waiting=0,
        )

    def receipt(self, *, key: SigningKey | None = None, **changes: Any) -> str:
        self.receipts += 1
        fields: dict[str, Any] = {
            "loan": self.session.world.loan,
            "session": self.session.id,
            "lease": LeaseId("lease_1"),
            "consumer": ConsumerId("cons_1"),
            "model_digest": self.session.world.model.digest,
            "number": self.receipts,
            "previous": self.chain,
            "own_number": self.receipts,
            "own_previous": self.chain,
            "cost": self.price,
            "balance_before": self.credits + self.price,
            "balance_after": self.credits,
            "time": datetime.now(UTC),
        }
        signed = sign(Receipt(**(fields | changes)), key or self.session.signing, Label.RECEIPT)
        self.chain = sha256(signed.payload)
        return to_header(signed)

    @staticmethod
    def exhausted() -> AIGovToolError:
        return BudgetExhaustedError("the budget is used up", retry_after_s=1)

    @staticmethod
    def problem(error: AIGovToolError) -> bytes:
        told = problem_of(error)
        return answer(
            encode(told),
            told.status,
            {"Content-Type": CONTENT_TYPE, REMAINING: "0", **headers_of(error)},
        )

    # --- running ----------------------------------------------------------------------------

    def restart(self, session: Session) -> None:
        """Come back on the same port as another session; the old connections break."""
        self._stop_listening()
        self.session = session
        self._listen()

    def drop_connections(self) -> None:
        """Close every connection, as a server does with idle ones."""
        self._call(self._drop())

    async def _drop(self) -> None:
        handshakes = list(self.handshakes)
        for transport in list(self.accepted):
            transport.abort()
        await asyncio.gather(*handshakes, return_exceptions=True)

    def _listen(self) -> None:
        async def listen() -> asyncio.Server:
            return await self._loop.create_server(lambda: _Door(self), "127.0.0.1", self.port)

        self._server = self._call(listen())
        self.port = self._server.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        async def stop() -> None:
            assert self._server is not None
            self._server.close()
            await self._drop()
            await self._server.wait_closed()

        self._call(stop())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _run(self) -> None:
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_listening()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class _Door(asyncio.Protocol):
    """
    One connection up to the end of its TLS handshake.

    asyncio's own TLS server forgets a connection that is in its handshake when the loop ends; this
    one is known from its first moment, so that it can be closed.
    """

    def __init__(self, server: StandIn) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # what comes is for TLS, which starts in the task
        self._server.accepted.add(transport)
        task = asyncio.get_running_loop().create_task(self._shake_hands(transport))
        self._server.handshakes.add(task)
        task.add_done_callback(self._server.handshakes.discard)

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        wire = _Wire(self._server, transport)
        try:
            context = server_context(self._server.session.identity)
            secured = await asyncio.get_running_loop().start_tls(
                transport, wire, context, server_side=True
            )
        except OSError:  # the peer's judgement of us, or its end
            secured = None
        if secured is None:  # asyncio's word for a connection that was cut in the handshake
            transport.abort()
            self._server.accepted.discard(transport)
        else:
            wire.open(secured)


class _Wire(asyncio.Protocol):
    """One connection after its handshake: keeps the bytes, and answers whole requests."""

    def __init__(self, server: StandIn, below: asyncio.Transport) -> None:
        self._server = server
        self._below = below
        self._transport: asyncio.Transport | None = None
        self._bytes = bytearray()
        self._writing: asyncio.Task[None] | None = None
        self._new_request()

    def _new_request(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._body = b"", b""
        self._headers: dict[str, str] = {}

    def open(self, transport: asyncio.Transport) -> None:
        """Answer what has come already, and what will."""
        self._transport = transport
        self._server.alive.add(transport)
        self._server.received.append(self._bytes)
        self._parser.feed_data(bytes(self._bytes))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.accepted.discard(self._below)
        if self._writing is not None:
            self._writing.cancel()
        if self._transport is not None:
            self._server.alive.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        if self._transport is not None:
            self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("utf-8")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        asked = Asked(
            self._parser.get_method().decode(), self._target.decode(), self._headers, self._body
        )
        self._server.asked.append(asked)
        data = self._server.answer_to(asked)
        self._new_request()
        assert self._transport is not None
        if data is None:
            self._transport.abort()
        elif isinstance(data, bytes):
            self._transport.write(data)
        else:
            self._writing = asyncio.get_running_loop().create_task(self._write(data))

    async def _write(self, pieces: AsyncIterator[bytes]) -> None:
        assert self._transport is not None
        async for piece in pieces:
            if self._transport.is_closing():
                break
            self._transport.write(piece)


def other_session(session: Session) -> Session:
    """The same enclave after a restart: new keys, a new session."""
    return replace(
        session,
        identity=make_enclave_identity(now=datetime.now(UTC)),
        signing=SigningKey.generate(),
        hpke_key=HpkeKey().public_key,
        id=SessionId("sess_2"),
    )
