"""
A proxy on this machine that verifies the enclave, so that any HTTP client can be used as it is.

    curl, tritonclient, openai ──HTTP, loopback──▶ proxy ──judged and pinned TLS──▶ enclave

Rule 1: nothing is forwarded but to a judged enclave; one that is refused gets nothing (502).
Rule 2: bodies pass byte for byte, as they come, both ways, in bounded memory.
Rule 3: the proxy lends out its user's key, so it serves programs and not web pages: a Host that is
        a foreign name (DNS rebinding), and whatever a browser says a page asked for, are refused.
Rule 4: a receipt that comes with an answer is checked, and kept, before the answer is passed on;
        the answer to an inference has one, and it charges the price of what was sent (`pricing`).
Rule 5: an answer of a language model ends with all its receipts, and these add up (`settling`): its
        JSON is passed on after that, and a stream whose end does not hold ends with an error.
        It is never asked for compressed, so that its end can be read. What may have been charged is
        not repeated by OpenAI's clients, which are told so.

It adds the API key to requests that bring no Authorization of their own, and passes on the paths
``/v1`` and ``/v2`` only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec
import uvicorn

from aigovtool.channel.address import Address
from aigovtool.channel.connect import AttestedChannel
from aigovtool.channel.http1 import ConnectionLostError, Headers, Request, Response
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.client.events import event_of
from aigovtool.client.pricing import PassingQuery, is_query
from aigovtool.client.receipt_store import ReceiptStore
from aigovtool.client.receipts import check_price
from aigovtool.client.settling import (
    Settler,
    StreamedAnswer,
    header_receipts,
    is_stream,
    whole_answer,
)
from aigovtool.client.token_pricing import bill_in, is_token_query
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from aigovtool.wire.codec import encode
from aigovtool.wire.openai.answers import JSON_TYPE
from aigovtool.wire.openai.errors import encode_error
from aigovtool.wire.problem import CONTENT_TYPE, Problem, headers_of, problem_of

SILENCE_TIMEOUT_S = 600.0  # between two pieces of an answer; a slow model, or a wait for credits
SHUTDOWN_TIMEOUT_S = 5
DEFAULT_PORT = 8080
GRPC_PORT = 8001

SILENT = "channel.timeout"

_OK = 200
# OpenAI's clients repeat by themselves what failed with 5xx, unless they are told not to
_NO_RETRY = {"x-should-retry": "false"}
_PATHS = ("/v1", "/v2")
# RFC 9110 section 7.6.1, and what both sides make for themselves
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
     b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Proxy:
    """
    The ASGI application.

    Args:
        channel: to the enclave, judged already.
        api_key: added to requests without an Authorization; None adds nothing.
        name: under which it listens, beside ``localhost`` and every IP address.
        store: keeps the receipts of all who use the proxy.
    """

    def __init__(
        self, channel: AttestedChannel, *, api_key: str | None, name: str, store: ReceiptStore
    ) -> None:
        self._channel = channel
        self._store = store
        self._settler = Settler(channel, store)
        self._authorization = None if api_key is None else b"Bearer " + api_key.encode("ascii")
        self._names = frozenset((name.lower(), "localhost"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ConfigurationError("the proxy speaks HTTP only", came=scope["type"])
        exchange = _Exchange(receive, send, openai=is_under(scope["path"], _OPENAI_PATHS))
        try:
            self._admit(scope)
        except AIGovToolError as error:
            await exchange.refuse(error, problem_of(error))
            return
        forwarding = asyncio.create_task(self._forward(scope, exchange))
        watching = asyncio.create_task(exchange.wait_until_gone())
        try:
            await asyncio.wait((forwarding, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # a client that went away must not keep the enclave computing
            forwarding.cancel()
            watching.cancel()
            await asyncio.wait((forwarding, watching))
        if not forwarding.cancelled():
            forwarding.result()

    def _admit(self, scope: Scope) -> None:
        """Raise RefusedError for what is not a program on this machine asking for ``/v1, /v2``."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_mine(hosts[0]):
            raise RefusedError(
                "the Host header names somebody else",
                code="proxy.host",
                expected="localhost, or an IP address",
                came=repr(hosts)[:100],
                mend="ask for the proxy by the address that it listens on",
            )
        headers = dict(scope["headers"])
        if b"origin" in headers or headers.get(b"sec-fetch-site", b"none") != b"none":
            raise RefusedError(
                "a web page asked, and this proxy serves programs only",
                code="proxy.origin",
                mend="let the page's own server ask",
            )
        if not is_under(scope["path"], _PATHS):
            raise NotFoundError(
                "the proxy does not pass on this path",
                code="proxy.path",
                expected=" or ".join(f"{prefix}/…" for prefix in _PATHS),
            )

    def _is_mine(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if not name or not port.isdigit():
            name = host
        with suppress(ValueError):
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
            return True  # DNS can make a name lead here, never an address
        return name.lower() in self._names

    async def _forward(self, scope: Scope, exchange: _Exchange) -> None:
        forward = self._forward_plain
        if is_token_query(scope["method"], scope["path"]):
            forward = self._forward_to_language_model
        try:
            async with asyncio.timeout(SILENCE_TIMEOUT_S) as limit:
                await forward(scope, exchange, limit)
        except TimeoutError:
            late = UnavailableError("the enclave fell silent", code=SILENT)
            await exchange.refuse(late, problem_of(late))
        except AIGovToolError as error:
            problem = problem_of(error)
            if not isinstance(error, UnavailableError):
                problem = msgspec.structs.replace(problem, status=502, title="Enclave refused")
            await exchange.refuse(error, problem)

    async def _forward_plain(
        self, scope: Scope, exchange: _Exchange, limit: asyncio.Timeout
    ) -> None:
        headers = self._headers_of(scope)
        query = PassingQuery(headers) if is_query(scope["method"], scope["path"]) else None
        make = _maker(scope, headers, await exchange.take_body(scope, query))
        async with self._channel.exchange(make) as (enclave, response):
            await check_receipts(enclave, response, query, channel=self._channel, store=self._store)
            await exchange.pass_on(response, limit)

    async def _forward_to_language_model(
        self, scope: Scope, exchange: _Exchange, limit: asyncio.Timeout
    ) -> None:
        headers = tuple(one for one in self._headers_of(scope) if one[0] != b"accept-encoding")
        authorization = tuple(one for one in headers if one[0] == b"authorization")
        make = _maker(scope, headers, await exchange.take_body(scope, None))
        await self._settler.learn_price(authorization)
        streamed, whole = None, b""
        async with self._channel.exchange(make) as (enclave, response):
            first = await self._settler.begin(enclave, response)
            if first is None:
                await exchange.pass_on(response, limit)
                return
            if is_stream(response):
                streamed = StreamedAnswer(response)
                await exchange.pass_events(response, streamed, limit)
            else:
                whole = await whole_answer(response)
        charged = bill_in(whole) if streamed is None else streamed.charged
        await self._settler.settle(response, charged, first, enclave, authorization)
        if streamed is None:
            await exchange.pass_whole(response, whole)
        else:
            await exchange.pass_last(streamed)

    def _headers_of(self, scope: Scope) -> Headers:
        headers = _passed(scope["headers"], _NOT_FORWARDED)
        if self._authorization is not None and all(name != b"authorization" for name, _ in headers):
            headers.append((b"authorization", self._authorization))
        return tuple(headers)


async def check_receipts(
    enclave: VerifiedEnclave,
    response: Response,
    query: PassingQuery | None,
    *,
    channel: AttestedChannel,
    store: ReceiptStore,
) -> None:
    """Check and keep what came (Rule 4); raises as `receipt_of` and `check_price`."""
    answered = query is not None and response.status == _OK
    charge = await header_receipts(enclave, response, owed=answered, channel=channel, store=store)
    if answered and query is not None and charge is not None:
        check_price(charge.receipt, query.price(enclave.model.manifest))


class _Exchange:
    """
    One request of the proxy's client and the answer to it, in ASGI's terms.

    Args:
        openai: whether its client reads errors in OpenAI's shape, and not problem documents.
    """

    def __init__(self, receive: Receive, send: Send, *, openai: bool) -> None:
        self._receive = receive
        self._send = send
        self._openai = openai
        self._streams = False  # events, which an error can be one of
        self._taken = asyncio.Event()  # the request's body, to its end
        self._started = False

    async def take_body(
        self, scope: Scope, query: PassingQuery | None
    ) -> tuple[tuple[bytes, ...] | AsyncIterator[bytes], int | None]:
        """
        Return the request's body, whole if it came in one piece, and its length if known.

        Args:
            query: is shown the body as it passes.
        """
        first = await self._receive()
        if first["type"] == "http.disconnect":
            raise _gone()
        if not first.get("more_body"):
            self._taken.set()
            if query is not None:
                query.saw(first["body"])
            return (first["body"],), len(first["body"])
        length = next(
            (int(value) for name, value in scope["headers"] if name == b"content-length"), None
        )
        rest = self._rest(first["body"])
        return (rest if query is None else query.watched(rest)), length

    async def _rest(self, piece: bytes) -> AsyncIterator[bytes]:
        yield piece
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _gone()
            yield message["body"]
            if not message.get("more_body"):
                self._taken.set()
                return

    async def wait_until_gone(self) -> None:
        """Return when the client has hung up; meanwhile nobody else may receive."""
        await self._taken.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def pass_on(self, response: Response, limit: asyncio.Timeout) -> None:
        """Pass on the answer as it comes; every piece moves the *limit*."""
        await self._start(response.status, _passed(response.headers, _HOP_BY_HOP))
        async for piece in response.chunks():
            _move(limit)
            await self._give(piece)
        await self._end()

    async def pass_events(
        self, response: Response, streamed: StreamedAnswer, limit: asyncio.Timeout
    ) -> None:
        """Pass on each event before the bill as it comes; it moves the *limit*."""
        await self._start(
            response.status, _passed(response.headers, _HOP_BY_HOP | {b"content-length"})
        )
        self._streams = True
        async for event in streamed.events():
            _move(limit)
            await self._give(event.raw)

    async def pass_last(self, streamed: StreamedAnswer) -> None:
        """Pass on the end of a stream, which was settled."""
        await self._give(b"".join(event.raw for event in streamed.held))
        await self._end()

    async def pass_whole(self, response: Response, body: bytes) -> None:
        """Pass on an answer whose body was read."""
        await self._start(response.status, _passed(response.headers, _HOP_BY_HOP))
        await self._give(body)
        await self._end()

    async def refuse(self, error: AIGovToolError, problem: Problem) -> None:
        """
        Answer with *error*; events that have begun end with it, any other answer that has begun is
        left cut off.
        """
        if self._streams:
            await self._give(event_of(encode_error(error)[1]))
            await self._end()
        if self._started:
            return
        kind, body = CONTENT_TYPE, encode(problem)
        if self._openai:
            kind, body = JSON_TYPE, encode_error(error)[1]
        headers = {"Content-Type": kind, "Content-Length": str(len(body))} | headers_of(error)
        if self._openai and not _is_uncharged(error):
            headers |= _NO_RETRY
        await self._start(
            problem.status, [(name.encode(), value.encode()) for name, value in headers.items()]
        )
        await self._give(body)
        await self._end()

    async def _give(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


async def serve_proxy(
    channel: AttestedChannel,
    *,
    api_key: str | None,
    store: ReceiptStore,
    listen: Address,
    grpc_listen: Address | None = None,
    dangerously_beyond_loopback: bool,
    on_ready: Callable[[Address, Address | None], None],
) -> None:
    """
    Serve until the process is told to stop (SIGINT, SIGTERM).

    Args:
        grpc_listen: for the protocol over gRPC (`client.rpc`), or None.
        dangerously_beyond_loopback: whether *listen* may be reached from other machines, which can
            then use the API key, and send their inputs to here in the clear.
        on_ready: called with both addresses when it listens.

    Raises:
        ConfigurationError: *listen* cannot be listened on, or other machines could reach it.
    """
    listener = listen_on(listen, dangerously_beyond_loopback=dangerously_beyond_loopback)
    with listener:
        server = uvicorn.Server(
            uvicorn.Config(
                Proxy(channel, api_key=api_key, name=listen.host, store=store),
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_level="warning",
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            )
        )
        at = Address(host=listen.host, port=listener.getsockname()[1])
        if grpc_listen is None:
            on_ready(at, None)
            await server.serve(sockets=[listener])
            return
        from aigovtool.client.rpc import grpc_door  # needs an extra

        async with grpc_door(
            channel,
            api_key=api_key,
            store=store,
            listen=grpc_listen,
            dangerously_beyond_loopback=dangerously_beyond_loopback,
        ) as port:
            on_ready(at, Address(host=grpc_listen.host, port=port))
            await server.serve(sockets=[listener])


def listen_on(listen: Address, *, dangerously_beyond_loopback: bool) -> socket.socket:
    """Open the listening socket; raises ConfigurationError as `serve_proxy`."""
    family, where = resolve(listen, dangerously_beyond_loopback=dangerously_beyond_loopback)
    try:
        listener = socket.create_server(where, family=family)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}", came=error.strerror or type(error).__name__
        ) from None
    # Accepted sockets inherit it. asyncio sets it only where the socket says that it is TCP,
    # which these do not, and without it each answer waits 40 ms for a delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def resolve(
    listen: Address, *, dangerously_beyond_loopback: bool
) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return where *listen* is; raises ConfigurationError, also where others could reach it."""
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}", came=error.strerror or type(error).__name__
        ) from None
    if not dangerously_beyond_loopback:
        for *_, where in found:
            _require_loopback(listen, str(where[0]))
    family, *_, where = found[0]
    return family, where


def _require_loopback(listen: Address, where: str) -> None:
    if not ipaddress.ip_address(where.partition("%")[0]).is_loopback:
        raise ConfigurationError(
            f"{listen} can be reached from other machines, which could use the API key",
            code="proxy.loopback",
            expected="an address such as 127.0.0.1:8080",
            mend="listen on loopback; --dangerously-listen-beyond-loopback if you mean it",
        )


def _move(limit: asyncio.Timeout) -> None:
    """Something came: move the *limit*, which need not be exact, once a second at most."""
    at_s = asyncio.get_running_loop().time() + SILENCE_TIMEOUT_S
    if (limit.when() or 0.0) < at_s - 1.0:
        limit.reschedule(at_s)


def _is_uncharged(error: AIGovToolError) -> bool:
    """Say whether *error* kept a query from being sent, so that it can be sent again."""
    sent = isinstance(error, ConnectionLostError) or error.reasons[0].code == SILENT
    return isinstance(error, UnavailableError) and not sent


def is_under(path: str, prefixes: tuple[str, ...]) -> bool:
    """Say whether *path* is one of *prefixes* or lies under one."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def _maker(
    scope: Scope,
    headers: Headers,
    taken: tuple[tuple[bytes, ...] | AsyncIterator[bytes], int | None],
) -> Callable[[VerifiedEnclave], Request]:
    """Return what makes the request to the enclave of the proxy's own request."""
    body, length = taken

    def make(_: VerifiedEnclave) -> Request:
        return Request(
            # httptools cannot be told that an answer to HEAD has no body
            method=b"GET" if scope["method"] == "HEAD" else scope["method"].encode(),
            target=_target_of(scope),
            headers=headers,
            body=body,
            length=length,
        )

    return make


def _target_of(scope: Scope) -> bytes:
    query = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _passed(
    headers: list[tuple[bytes, bytes]], dropped: frozenset[bytes]
) -> list[tuple[bytes, bytes]]:
    """Return the headers that are for the other end, without those named by ``Connection``."""
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return [(name, value) for name, value in headers if name not in dropped and name not in named]


def _gone() -> UnavailableError:
    return UnavailableError("the client went away before its request was complete")
