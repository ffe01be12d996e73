"""
The enclave's side of every connection to the custodian: pinned TLS, bounded answers, typed errors.

Rule 1: the ticket's certificate is the only trust anchor, and its key must be the ticket's key.
Rule 2: what comes is bounded before it is read; no exception of aiohttp leaves this module.
Rule 3: a custodian may have several addresses, each with the ledger whole. Whenever one is of no
        use, the next attempt goes to the next.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from aigovtool.channel.plainly import why_it_failed
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, parse_public_key
from aigovtool.crypto.tls import pinned_client_context, public_key_of_root
from aigovtool.errors import (
    ConfigurationError,
    MalformedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import SessionId
from aigovtool.wire.codec import MAX_MESSAGE_BYTES, Message, Signed, decode, encode
from aigovtool.wire.control import (
    MAX_CONTROL_BYTES,
    ControlChallenge,
    FromCustodian,
    FromEnclave,
    Hello,
)
from aigovtool.wire.enrolment import Challenge, ChallengeRequest, EnrolRequest, Release
from aigovtool.wire.headers import BODY_PATH, CHALLENGE_PATH, CONTROL_PATH, ENROL_PATH
from aigovtool.wire.problem import error_of
from aigovtool.wire.ticket import Ticket

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0  # appraisal may visit a vendor
READ_TIMEOUT_S = 30.0  # between two pieces of a download
HEARTBEAT_S = 5.0  # a dead connection is noticed after one and a half of these
PIECE_BYTES = 1 << 20

T = TypeVar("T", bound=Message)


@dataclass(frozen=True, slots=True)
class Custodian:
    """Where the custodian is, and what proves that it is the one of the ticket."""

    addresses: tuple[str, ...]
    key: bytes
    tls: ssl.SSLContext

    @classmethod
    def of(cls, ticket: Ticket) -> Custodian:
        """
        Read the custodian of a ticket.

        Raises:
            ConfigurationError: the ticket's certificate is not for the ticket's key.
        """
        certificate = ticket.custodian_certificate.encode()
        try:
            key = parse_public_key(ticket.custodian_key)
            certified = public_key_of_root(certificate)
            tls = pinned_client_context(certificate)
        except MalformedError as error:
            raise ConfigurationError(
                f"the loan ticket is damaged: {error}", mend="ask the custodian for it again"
            ) from None
        if key != certified:
            raise ConfigurationError(
                "the loan ticket's certificate is not for the ticket's key",
                mend="ask the custodian for the ticket again, by another way",
            )
        return cls(ticket.addresses, key, tls)


class ControlSocket:
    """The control connection, message by message."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, message: FromEnclave | Hello) -> None:
        """Send one message; raises UnavailableError when the connection is gone."""
        try:
            await self._socket.send_str(encode(message).decode())
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from None

    async def receive(self, kind: Any) -> Any:
        """
        Return the next message of type *kind*.

        Raises:
            UnavailableError: the connection is gone.
            MalformedError: something else came.
        """
        try:
            frame = await self._socket.receive()
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from None
        if frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return decode(frame.data, kind, max_bytes=MAX_CONTROL_BYTES)
        raise _lost(frame.data if isinstance(frame.data, Exception) else None)

    async def hello(self, session: SessionId, key: SigningKey, statement: Signed) -> FromCustodian:
        """
        Say who is here, and return the custodian's first word: `Welcome` or `SessionEnded`.

        Args:
            statement: the newest that the custodian gave this session.
        """
        challenge: ControlChallenge = await self.receive(ControlChallenge)
        signature = key.sign(Label.CONTROL_HELLO, challenge.nonce + session.encode())
        await self.send(Hello(session=session, signature=signature, statement=statement))
        first: FromCustodian = await self.receive(FromCustodian)
        return first


class CustodianClient:
    """Requests to the custodian of a ticket; use as an async context manager."""

    def __init__(self, ticket: Ticket) -> None:
        self.custodian = Custodian.of(ticket)
        self._loan = ticket.loan
        self._authorization = {"Authorization": f"Bearer {ticket.token}"}
        self._http: aiohttp.ClientSession | None = None
        self._turn = 0  # of the addresses

    async def __aenter__(self) -> CustodianClient:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self.custodian.tls),
            headers=self._authorization,
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def challenge(self) -> Challenge:
        """Ask for a nonce; raises what the custodian answered, or UnavailableError."""
        return await self._post(CHALLENGE_PATH, ChallengeRequest(loan=self._loan), Challenge)

    async def enrol(self, request: EnrolRequest) -> Release:
        """
        Send evidence and receive the release.

        Raises:
            AppraisalError: with every reason for which the evidence was not accepted.
            LoanNotActiveError: the loan is stopped, expired or closed.
            UnauthenticatedError: the ticket's token is not (or no longer) valid.
            UnavailableError: not reached, or no answer.
        """
        return await self._post(ENROL_PATH, request, Release)

    async def body(self, digest: bytes, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """
        Yield the sealed body from *offset* to its end, in pieces.

        Args:
            digest: of the model, 32 bytes.
            size: bytes of the whole body, as the signed manifest says.

        Raises:
            UnavailableError: not reached, cut off, or a piece takes longer than `READ_TIMEOUT_S`.
            VerificationError: another size than the manifest's, or more bytes than were asked for.
        """
        path = BODY_PATH.format(digest=digest.hex())
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        )
        with self._reaching():
            async with self._session().get(
                self._url(path), headers=headers, timeout=timeout
            ) as answer:
                await _check_status(answer, (206,) if offset else (200,))
                if offset:
                    expected = f"bytes {offset}-{size - 1}/{size}"
                    if (came := answer.headers.get("Content-Range")) != expected:
                        raise _other_body("another range of the sealed body", expected, str(came))
                left = size - offset
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    left -= len(piece)
                    if left < 0:
                        raise _other_body("a longer sealed body", f"{size} bytes", "more")
                    yield piece

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[ControlSocket]:
        """Open the control connection; raises UnavailableError, or what the custodian answered."""
        with self._reaching():
            socket = await self._session().ws_connect(
                self._url(CONTROL_PATH), heartbeat=HEARTBEAT_S, max_msg_size=MAX_CONTROL_BYTES
            )
        try:
            with self._reaching():
                yield ControlSocket(socket)
        finally:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await socket.close()

    def _url(self, path: str) -> str:
        addresses = self.custodian.addresses
        return f"https://{addresses[self._turn % len(addresses)]}{path}"

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Let no exception of aiohttp out, and go elsewhere after a failure (Rule 3)."""
        try:
            with _translated():
                yield
        except UnavailableError:
            self._turn += 1
            raise

    def _session(self) -> aiohttp.ClientSession:
        assert self._http is not None, "used outside of its context"
        return self._http

    async def _post(self, path: str, message: Message, kind: type[T]) -> T:
        with self._reaching():
            async with self._session().post(
                self._url(path), data=encode(message), headers={"Content-Type": "application/json"}
            ) as answer:
                await _check_status(answer, (200, 201))
                return decode(await _read(answer, MAX_MESSAGE_BYTES), kind)


async def _check_status(answer: aiohttp.ClientResponse, good: tuple[int, ...]) -> None:
    if answer.status in good:
        return
    body = await _read(answer, MAX_MESSAGE_BYTES)
    after = answer.headers.get("Retry-After", "")
    raise error_of(answer.status, body, retry_after_s=float(after) if after.isdecimal() else None)


async def _read(answer: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """Read an answer that may be at most *limit_bytes* long; the decoder refuses a longer one."""
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > limit_bytes:
            raise MalformedError("the custodian's answer is too long")
    return bytes(body)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what aiohttp raises into our own errors."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError):
        raise VerificationError(
            "whoever answers at the custodian's address is not the ticket's custodian",
            code="custodian.tls",
            mend="check the address in the loan ticket, and who is in between",
        ) from None
    except aiohttp.WSServerHandshakeError as error:
        raise UnavailableError(f"the control connection was answered {error.status}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise _lost(error) from None


def _lost(error: BaseException | None) -> UnavailableError:
    return UnavailableError(
        "the custodian cannot be reached",
        code="custodian.unreachable",
        came=why_it_failed(error),
    )


def _other_body(what: str, expected: str, came: str) -> VerificationError:
    return VerificationError(
        f"the custodian sent {what} than the manifest names",
        code="custodian.body",
        expected=expected,
        came=came,
    )
