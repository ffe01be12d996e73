"""The proxy: raw requests in, and what the stand-in enclave saw of them."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import msgspec
import numpy as np
import pytest
import uvicorn

from aigovtool.attestation.policy import Policy
from aigovtool.channel.address import Address, parse_address
from aigovtool.channel.connect import open_channel
from aigovtool.client.proxy import Proxy, listen_on
from aigovtool.client.receipt_store import ReceiptStore, default_folder
from aigovtool.clock import SystemClock
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import BlockedError, ConfigurationError
from aigovtool.wire.headers import RECEIPT, REMAINING
from aigovtool.wire.oip import encode_infer_request
from tests.channel.stand_in import (
    API_KEY,
    Asked,
    Platform,
    Session,
    StandIn,
    World,
    answer,
    other_session,
)

REQUEST = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Enclave(Protocol):
    """What a proxy can be put before."""

    @property
    def address(self) -> str: ...

    @property
    def policy(self) -> Policy: ...


@dataclass
class Running:
    """A proxy on a thread of its own."""

    enclave: Enclave
    api_key: str | None = API_KEY
    name: str = "127.0.0.1"
    port: int = 0
    _ready: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._listener = listen_on(LOOPBACK, dangerously_beyond_loopback=False)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()

    async def _serve(self) -> None:
        policy = self.enclave.policy
        address = parse_address(self.enclave.address)
        channel = await open_channel(address, policy, clock=SystemClock())
        store = ReceiptStore(default_folder(), manifest=policy)
        app = Proxy(channel, api_key=self.api_key, name=self.name, store=store)
        config = uvicorn.Config(
            app, http="httptools", lifespan="off", log_level="critical", ws="none",
            server_header=False, date_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._ready.set()
        await self._server.serve(sockets=[self._listener])
        await channel.aclose()

    def send(self, data: bytes) -> socket.socket:
        wire = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        wire.sendall(data)
        return wire

    def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """Ask as curl does."""
        lines = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(body))}
        lines |= headers or {}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        with self.send(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body) as wire:
            return read_answer(wire, method)


def read_answer(wire: socket.socket, method: str = "GET") -> Answer:
    response = http.client.HTTPResponse(wire, method=method)
    response.begin()
    body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body)


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(Platform.make())


@pytest.fixture(scope="module")
def shared_enclave(world: World) -> Iterator[StandIn]:
    with StandIn(Session(world)) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def proxy(shared_enclave: StandIn) -> Iterator[Running]:
    """One proxy for all: uvicorn takes its time to end."""
    with Running(shared_enclave) as running:
        yield running


@pytest.fixture
def enclave(shared_enclave: StandIn, proxy: Running) -> StandIn:
    """The enclave behind the proxy, as new."""
    shared_enclave.drop_connections()
    shared_enclave.reply = shared_enclave.infer
    shared_enclave.credits = 5
    shared_enclave.received.clear()
    shared_enclave.asked.clear()
    return shared_enclave


# --- what passes ----------------------------------------------------------------------------------


def test_json_as_curl_sends_it(enclave: StandIn, proxy: Running) -> None:
    came = proxy.ask("POST", "/v2/models/double/infer?a=%2F", REQUEST, {"Accept": "*/*"})
    assert came.status == 200
    assert came.json["outputs"][0]["data"] == [2, 4, 6]
    assert came.headers[REMAINING.lower()] == "4"
    assert RECEIPT.lower() in came.headers
    (asked,) = enclave.asked
    assert asked.body == REQUEST
    assert asked.target == "/v2/models/double/infer?a=%2F"
    assert asked.headers["authorization"] == f"Bearer {API_KEY}"
    assert asked.headers["host"] == enclave.address
    assert asked.headers["accept"] == "*/*"


def test_binary_tensors(enclave: StandIn, proxy: Running) -> None:
    body = encode_infer_request({"x": np.ones((1, 3), np.float32)})
    came = proxy.ask("POST", "/v2/models/double/infer", b"".join(body.chunks), body.headers)
    assert came.status == 200
    assert np.frombuffer(came.body[-12:], np.float32).tolist() == [2, 2, 2]


def test_its_own_authorization_is_kept(enclave: StandIn, proxy: Running) -> None:
    proxy.ask("GET", "/v1/budget", headers={"Authorization": "Bearer mine"})
    assert enclave.asked[0].headers["authorization"] == "Bearer mine"
    assert API_KEY.encode() not in enclave.everything


def test_without_a_key_none_is_added(enclave: StandIn) -> None:
    with Running(enclave, api_key=None) as proxy:
        proxy.ask("GET", "/v1/budget")
    assert "authorization" not in enclave.queries[0].headers


def test_hop_by_hop_headers_stay(enclave: StandIn, proxy: Running) -> None:
    headers = {
        "Connection": "keep-alive, X-Private",
        "X-Private": "1",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Proxy-Authorization": "Basic c2VjcmV0",
        "Upgrade": "h2c",
        "X-Public": "1",
    }
    proxy.ask("GET", "/v1/budget", headers=headers)
    sent = enclave.asked[0].headers
    assert sent["x-public"] == "1"
    assert not {"connection", "x-private", "keep-alive", "te", "upgrade"} & set(sent)
    assert "proxy-authorization" not in sent


def test_bodies_pass_byte_for_byte(enclave: StandIn, proxy: Running) -> None:
    packed = gzip.compress(b"whatever" * 100, mtime=0)
    enclave.reply = lambda asked: answer(asked.body, 203, {"Content-Encoding": "gzip", "X": "y"})
    came = proxy.ask("PUT", "/v2/anything", packed, {"Content-Encoding": "gzip"})
    assert came.status == 203
    assert came.body == packed
    assert came.headers["content-encoding"] == "gzip"
    assert came.headers["x"] == "y"


def test_errors_of_the_enclave_pass_unchanged(enclave: StandIn, proxy: Running) -> None:
    enclave.reply = lambda asked: enclave.problem(BlockedError("blocked"))
    came = proxy.ask("POST", "/v2/models/double/infer", REQUEST)
    assert came.status == 403
    assert came.json["kind"] == "blocked"
    assert came.headers["content-type"] == "application/problem+json"


def test_head(enclave: StandIn, proxy: Running) -> None:
    came = proxy.ask("HEAD", "/v2/health/live")
    assert came.status == 200
    assert came.body == b""


def test_a_large_body_both_ways(enclave: StandIn, proxy: Running) -> None:
    large = np.random.default_rng(0).bytes(5 << 20)
    enclave.reply = lambda asked: answer(asked.body)
    assert proxy.ask("POST", "/v2/echo", large).body == large
    assert enclave.asked[0].headers["content-length"] == str(len(large))


def test_a_body_of_unknown_length(enclave: StandIn, proxy: Running) -> None:
    enclave.reply = lambda asked: answer(asked.body)
    head = f"POST /v2/echo HTTP/1.1\r\nHost: localhost:{proxy.port}\r\n"
    with proxy.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()) as wire:
        wire.sendall(b"3\r\nabc\r\n")
        wire.sendall(b"4\r\ndefg\r\n0\r\n\r\n")
        assert read_answer(wire).status == 200
    assert enclave.asked[0].body == b"abcdefg"


def test_an_answer_streams(enclave: StandIn, proxy: Running) -> None:
    """Server-sent events arrive one by one, not when all of them are there."""
    sent: list[asyncio.Transport] = []
    enclave.reply = lambda asked: (
        sent.extend(enclave.alive)  # type: ignore[func-returns-value]
        or b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n"
    )
    head = f"POST /v1/events HTTP/1.1\r\nHost: localhost:{proxy.port}\r\n"
    with proxy.send(f"{head}Content-Length: 2\r\n\r\n{{}}".encode()) as wire:
        got = b""
        while b"data: 1" not in got:
            got += wire.recv(4096)
        rest = b"8\r\ndata: 2\n\r\n0\r\n\r\n"
        enclave._loop.call_soon_threadsafe(sent[0].write, rest)
        while not got.endswith(b"0\r\n\r\n"):
            got += wire.recv(4096)
    assert b"text/event-stream" in got
    assert got.count(b"data: ") == 2


# --- what does not --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "127.0.0.1.nip.io"]
)
def test_dns_rebinding(enclave: StandIn, proxy: Running, host: str) -> None:
    came = proxy.ask("GET", "/v1/budget", headers={"Host": host})
    assert came.status == 403
    assert not enclave.received


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "[::1]:8080", "127.0.0.1", "10.0.0.1"]
)
def test_names_of_this_machine(enclave: StandIn, proxy: Running, host: str) -> None:
    assert proxy.ask("GET", "/v1/budget", headers={"Host": host}).status == 200


def test_two_hosts(enclave: StandIn, proxy: Running) -> None:
    with proxy.send(
        b"GET /v1/budget HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n"
    ) as wire:
        assert read_answer(wire).status in (400, 403)
    assert not enclave.received


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_web_pages_cannot_spend_the_budget(
    enclave: StandIn, proxy: Running, headers: dict[str, str]
) -> None:
    came = proxy.ask("POST", "/v2/models/double/infer", REQUEST, headers)
    assert came.status == 403
    assert came.json["reasons"][0]["code"] == "proxy.origin"
    assert not enclave.received


@pytest.mark.parametrize(
    "path", ["/", "/v3/x", "/v2x", "/.well-known/attestation?nonce=00", "/metrics", "/v1x/budget"]
)
def test_other_paths(enclave: StandIn, proxy: Running, path: str) -> None:
    assert proxy.ask("GET", path).status == 404
    assert not enclave.received


def test_forged_receipt(enclave: StandIn, proxy: Running) -> None:
    forged = enclave.receipt(key=SigningKey.generate())
    enclave.reply = lambda asked: answer(b"result", headers={RECEIPT: forged})
    came = proxy.ask("POST", "/v2/models/double/infer", REQUEST)
    assert came.status == 502
    assert b"result" not in came.body


def ask_for(proxy: Running, items: int, form: str) -> Answer:
    """Ask for a batch, in one of the forms that clients have."""
    x = np.ones((items, 3), np.float32)
    target = "/v2/models/double/infer"
    body = encode_infer_request({"x": x})
    binary = b"".join(body.chunks)
    data = msgspec.json.encode(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [items, 3], "data": x.tolist()}]}
    )
    match form:
        case "json":
            return proxy.ask("POST", target, data)
        case "versioned":
            return proxy.ask("POST", "/v2/models/double/versions/1/infer", data)
        case "binary":
            return proxy.ask("POST", target, binary, body.headers)
        case "gzip":
            return proxy.ask(
                "POST", target, gzip.compress(data, mtime=0), {"Content-Encoding": "gzip"}
            )
        case "deflate binary":
            headers = {k: v for k, v in body.headers.items() if k != "Content-Length"}
            packed = zlib.compress(binary)
            return proxy.ask("POST", target, packed, headers | {"Content-Encoding": "deflate"})
        case "pieces":
            head = f"POST {target} HTTP/1.1\r\nHost: localhost:{proxy.port}\r\n"
            with proxy.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()) as wire:
                for at in range(0, len(data), 40):
                    piece = data[at : at + 40]
                    wire.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                wire.sendall(b"0\r\n\r\n")
                return read_answer(wire)
    raise AssertionError(form)


FORMS = ["json", "versioned", "binary", "gzip", "deflate binary", "pieces"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("charged", [1, 2, 3])
def test_an_answer_that_was_charged_another_price_is_not_passed_on(
    enclave: StandIn, proxy: Running, form: str, charged: int
) -> None:
    """A batch of two costs two. The receipt is kept all the same: it is the proof of the other."""

    def serve(asked: Asked) -> bytes:
        enclave.price = charged
        try:
            return answer(b"result", headers={RECEIPT: enclave.receipt()})
        finally:
            enclave.price = 1

    enclave.reply = serve
    kept = enclave.receipts
    came = ask_for(proxy, 2, form)
    assert enclave.receipts == kept + 1
    if charged == 2:
        assert (came.status, came.body) == (200, b"result")
        return
    assert came.status == 502
    assert b"result" not in came.body
    assert came.json["reasons"][0]["code"] == "receipt.price"


def test_an_answer_without_a_receipt_is_not_passed_on(enclave: StandIn, proxy: Running) -> None:
    enclave.reply = lambda asked: answer(b"result")
    came = proxy.ask("POST", "/v2/models/double/infer", REQUEST)
    assert (came.status, came.json["reasons"][0]["code"]) == (502, "receipt.missing")
    assert b"result" not in came.body


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[1]", b'{"inputs":[]}', b'{"inputs":[{"name":"y","shape":[1,3]}]}',
        b'{"inputs":[{"name":"x","shape":[]}]}', b'{"inputs":[{"name":"x","shape":[0,3]}]}',
        b'{"inputs":[{"name":"x","shape":[-1,3]}]}', b"\xff", gzip.compress(REQUEST, mtime=0),
    ],
)  # fmt: skip
def test_a_charge_for_what_is_no_query_is_refused(
    enclave: StandIn, proxy: Running, body: bytes
) -> None:
    enclave.reply = lambda asked: answer(b"result", headers={RECEIPT: enclave.receipt()})
    came = proxy.ask("POST", "/v2/models/double/infer", body)
    assert (came.status, came.json["reasons"][0]["code"]) == (502, "receipt.price")


def test_a_restarted_enclave_is_judged_again(enclave: StandIn, proxy: Running) -> None:
    assert proxy.ask("POST", "/v2/models/double/infer", REQUEST).status == 200
    enclave.restart(other_session(enclave.session))
    assert proxy.ask("POST", "/v2/models/double/infer", REQUEST).status == 200


def test_a_refused_enclave_gets_nothing(world: World) -> None:
    changed = replace(world, platform=replace(world.platform, mr_td=b"\x44" * 48))
    with StandIn(Session(world)) as enclave, Running(enclave) as proxy:
        enclave.restart(other_session(replace(enclave.session, world=changed)))
        came = proxy.ask("POST", "/v2/models/double/infer", REQUEST)
    assert came.status == 502
    assert came.headers["content-type"] == "application/problem+json"
    assert "tdx.mr_td" in {reason["code"] for reason in came.json["reasons"]}
    assert not enclave.queries
    assert API_KEY.encode() not in enclave.everything


def test_an_enclave_that_is_gone(world: World) -> None:
    with StandIn(Session(world)) as enclave, Running(enclave) as proxy:
        enclave._stop_listening()
        came = proxy.ask("POST", "/v2/models/double/infer", REQUEST)
        enclave._listen()
    assert came.status == 503
    assert came.headers["retry-after"] == "5"


def test_an_answer_cut_off_is_not_passed_on_as_whole(enclave: StandIn, proxy: Running) -> None:
    def cut(asked: Asked) -> bytes:
        enclave._loop.call_later(0.05, lambda: [one.abort() for one in list(enclave.alive)])
        return b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"

    enclave.reply = cut
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        proxy.ask("GET", "/v2/x")


def test_a_client_that_hangs_up_frees_the_enclave(enclave: StandIn, proxy: Running) -> None:
    seen = threading.Event()
    enclave.reply = lambda asked: seen.set() or b""  # type: ignore[func-returns-value]
    head = f"POST /v2/x HTTP/1.1\r\nHost: localhost:{proxy.port}\r\nContent-Length: 2\r\n\r\n{{}}"
    wire = proxy.send(head.encode())
    assert seen.wait(30)
    assert enclave.alive
    wire.close()
    deadline = threading.Event()
    for _ in range(1500):
        if not enclave.alive:
            return
        deadline.wait(0.02)
    pytest.fail("the connection to the enclave is still open")


# --- where it listens -----------------------------------------------------------------------------


LOOPBACK = Address(host="127.0.0.1", port=0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_does_not_listen_beyond_loopback(host: str) -> None:
    beyond = Address(host=host, port=0)
    with pytest.raises(ConfigurationError, match="other machines"):
        listen_on(beyond, dangerously_beyond_loopback=False)


def test_beyond_loopback_when_one_means_it() -> None:
    with listen_on(Address(host="0.0.0.0", port=0), dangerously_beyond_loopback=True) as listener:
        assert listener.getsockname()[1] > 0


def test_a_port_that_is_taken() -> None:
    with listen_on(LOOPBACK, dangerously_beyond_loopback=False) as listener:
        taken = Address(host="127.0.0.1", port=listener.getsockname()[1])
        with pytest.raises(ConfigurationError, match="cannot listen"):
            listen_on(taken, dangerously_beyond_loopback=False)


def test_answers_do_not_wait_for_delayed_acks() -> None:
    with (
        listen_on(LOOPBACK, dangerously_beyond_loopback=False) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
