"""
The gRPC face of a server whose HTTP side does the work; the enclave and the proxy each have one.

Rule 1: who may ask is decided before the message is received. Each method is served as one whose
        request streams, which on the wire is the same, and reads its message when it wants it.
Rule 2: what HTTP answers in headers (receipts, what remains, when to retry) is trailing metadata.
Rule 3: a message that is compressed is refused by the library: nothing bounds what would come out.
Rule 4: no exception reaches the library, which would tell the peer its text.

grpcio is the extra ``grpc``; it is imported where a door is opened, and nowhere else.
Source: grpc/grpc, `doc/statuscodes.md` (codes), `include/grpc/impl/channel_arg_names.h` (options).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from aigovtool.crypto.tls import TlsIdentity
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    MalformedError,
    UnavailableError,
)
from aigovtool.wire.codec import decode
from aigovtool.wire.grpc.translate import (
    METHODS,
    SERVICE,
    HttpAnswer,
    HttpRequest,
    from_http,
    is_answer,
    to_http,
)
from aigovtool.wire.headers import PLACE, REASON, RECEIPT, REFUND, REMAINING, REPLAYED
from aigovtool.wire.problem import INTERNAL, Problem, headers_of, problem_of

MAX_CALLS: Final = 512  # at one time; a query that waits for credits is one
MAX_CALLS_EACH: Final = 256  # of one who asks
MAX_CONNECTIONS: Final = 1024
CONNECTION_LIFE_S: Final = 3600  # then a client connects anew, and who does not read is cut off
CONNECTION_GRACE_S: Final = 900  # for its calls; more than a query may wait and be computed
IDLE_S: Final = 300
MAX_METADATA_BYTES: Final = 32 << 10
HANDSHAKE_TIME_S: Final = 10
GRACE_S: Final = 3.0  # for answers to be written out when the door closes
ENVELOPE_BYTES: Final = 1 << 20  # of a message beyond its tensors

_KEYLESS = ("ServerLive", "ServerReady")  # which say nothing but that, and whose message is empty
_IDENTITY_ONLY = 1  # bit mask of message encodings: bit 0 is the identity
_TAKEN = frozenset(
    ("authorization", "idempotency-key", "prefer", "traceparent", REASON.lower())
)  # of the metadata
_GIVEN = frozenset(
    name.lower() for name in (RECEIPT, REFUND, REMAINING, REPLAYED, PLACE, "Retry-After")
)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,  # not RESOURCE_EXHAUSTED: it will never fit
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.FAILED_PRECONDITION,
    503: grpc.StatusCode.UNAVAILABLE,
}

_log = logging.getLogger(__name__)

Metadata = Mapping[str, str]


class Ask(Protocol):
    """The HTTP side. When it is cancelled, the client is gone."""

    async def __call__(self, request: HttpRequest, metadata: Metadata) -> HttpAnswer:
        """Answer; *metadata* are the headers that do not describe the body."""
        ...


class Door(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio has no types
    """
    The methods of the service.

    Args:
        ask: the HTTP side.
        admit: says who asks, by metadata; raises for somebody who may not.
        message_time_s: for a message to arrive.
    """

    def __init__(
        self, ask: Ask, *, admit: Callable[[Metadata], str], message_time_s: float
    ) -> None:
        self._ask = ask
        self._admit = admit
        self._message_time_s = message_time_s
        self._calls: Counter[str] = Counter()  # under way, by who asks
        self._handlers = {
            f"/{SERVICE}/{method}": grpc.stream_unary_rpc_method_handler(self._serving(method))
            for method in METHODS
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return what serves a method; None for those that are UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    def _serving(self, method: str) -> Callable[[Any, Any], Any]:
        async def serve(messages: AsyncIterator[bytes], context: Any) -> bytes:
            try:
                answer = await self._answer(method, messages, context)
                if is_answer(method, answer.status):
                    context.set_trailing_metadata(_told(answer.headers))
                    return from_http(method, answer)
                problem, told = decode(answer.body, Problem), _told(answer.headers)
            except AIGovToolError as error:
                problem = problem_of(error)
                told = _told({name.lower(): text for name, text in headers_of(error).items()})
            except Exception as error:  # noqa: BLE001 - Rule 4
                _log.error("a gRPC call could not be served: %s", type(error).__name__)
                problem, told = INTERNAL, ()
            code = _CODES.get(problem.status, grpc.StatusCode.UNKNOWN)
            return await context.abort(code, problem.error, told)  # type: ignore[no-any-return]

        return serve

    async def _answer(
        self, method: str, messages: AsyncIterator[bytes], context: Any
    ) -> HttpAnswer:
        given = {name: text for name, text in context.invocation_metadata() if name in _TAKEN}
        if method in _KEYLESS:
            return await self._ask(to_http(method, b""), given)
        with self._counted(self._admit(given)):
            return await self._ask(to_http(method, await self._message(messages)), given)

    @contextmanager
    def _counted(self, who: str) -> Iterator[None]:
        if self._calls[who] >= MAX_CALLS_EACH:
            raise UnavailableError(
                "too many calls at one time",
                code="queue.calls",
                came=f"{self._calls[who]} of yours",
                retry_after_s=1.0,
            )
        self._calls[who] += 1
        try:
            yield
        finally:
            self._calls[who] -= 1
            if not self._calls[who]:
                del self._calls[who]

    async def _message(self, messages: AsyncIterator[bytes]) -> bytes:
        try:
            async with asyncio.timeout(self._message_time_s):
                return await anext(messages)
        except StopAsyncIteration:
            raise MalformedError("the call has no message") from None
        except TimeoutError:
            raise UnavailableError(
                f"the message did not arrive within {self._message_time_s:g} s", code="body.time"
            ) from None


@asynccontextmanager
async def opened(
    door: Door, *, host: str, port: int, identity: TlsIdentity | None, max_message_bytes: int
) -> AsyncIterator[int]:
    """
    Serve *door* for the length of the block, and give the port.

    Args:
        identity: key and certificate; None for plain HTTP/2, on loopback.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    server = grpc.aio.server(
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.so_reuseport", 0),  # else another process could take half of the connections
            ("grpc.max_receive_message_length", max_message_bytes + ENVELOPE_BYTES),
            ("grpc.max_send_message_length", -1),  # a model's answer is as large as it is
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIME_S * 1000),
            ("grpc.max_connection_idle_ms", IDLE_S * 1000),
            ("grpc.max_connection_age_ms", CONNECTION_LIFE_S * 1000),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_S * 1000),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ],
    )
    server.add_generic_rpc_handlers((door,))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if identity is None:
            bound = server.add_insecure_port(address)
        else:
            pair = (identity.key_pem, identity.certificate_pem)
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        raise ConfigurationError(
            f"cannot listen on {address} for gRPC",
            mend="choose another address with --grpc-listen, or end what listens there",
        ) from None
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(GRACE_S)


def _told(headers: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    return tuple((name, text) for name, text in headers.items() if name in _GIVEN)
