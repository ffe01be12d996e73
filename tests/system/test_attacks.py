"""
What a hostile consumer, borrower or neighbour does to real processes, and what it changes: nothing.

One stage serves all of it; each test compares the accounts before and after.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from aigovtool.demo.stage import Stage, free_port, tampered_copy
from aigovtool.demo.story import ASSETS
from aigovtool.wire.codec import encode
from aigovtool.wire.enrolment import ChallengeRequest, Documents, EnrolRequest, Keys
from aigovtool.wire.headers import BODY_PATH, CHALLENGE_PATH, CONTROL_PATH, ENROL_PATH
from aigovtool.wire.ticket import Ticket, read_ticket, to_toml
from tests.system.files import files_of

INFER = "/v2/models/digits/infer"
CANARY = np.float32(7313.1377)  # no settlement, key or digest holds it by chance four times over


class Relay:
    """A neighbour on the wire between enclave and custodian; it keeps what goes up."""

    def __init__(self, port: int) -> None:
        self.up = bytearray()
        self.port = free_port()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((near, far, self.up), (far, near, None)):
                    threading.Thread(target=_pass_on, args=pair, daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _pass_on(source: socket.socket, to: socket.socket, kept: bytearray | None) -> None:
    with contextlib.suppress(OSError), source, to:
        while data := source.recv(65536):
            if kept is not None:
                kept += data
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


@dataclass
class Scene:
    """A custodian, an enclave behind a relay, two consumers, and the bare means to attack them."""

    stage: Stage
    relay: Relay
    enclave: int
    alice: str
    bob: str

    @property
    def ticket(self) -> Ticket:
        return read_ticket(self.stage.data / "loan.toml")

    def account(self) -> dict[str, int]:
        """The accounts at rest: what is leased comes back when nobody asks."""
        begin = time.monotonic()
        while True:
            account = self.stage.custodian("loan", "list").json()[0]["account"]
            if not account["leased"]:
                return dict(account)
            assert time.monotonic() - begin < 60, account
            time.sleep(0.2)

    def ask(
        self, body: bytes, key: str, path: str = INFER, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.enclave, timeout=20, context=unverified()
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request("POST", path, body, {"Authorization": f"Bearer {key}", **named})
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def shout(self, words: bytes) -> bytes:
        """Send bytes to the enclave as they are, and return all that comes within a second."""
        came = b""
        with (
            socket.create_connection(("127.0.0.1", self.enclave), timeout=10) as plain,
            unverified().wrap_socket(plain) as secured,
        ):
            secured.sendall(words)
            secured.settimeout(1.0)
            with contextlib.suppress(OSError):
                while piece := secured.recv(65536):
                    came += piece
        return came


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def image(value: float = 0.0, batch: int = 1) -> bytes:
    tensor = {"name": "image", "shape": [batch, 8, 8], "datatype": "FP32"}
    return json.dumps({"inputs": [{**tensor, "data": [value] * (64 * batch)}]}).encode()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Stage(tmp_path_factory.mktemp("attacks") / "stage") as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"), "--num-requests", "10000",
            "--lease-duration", "1",
        )  # fmt: skip
        made = stage.custodian("consumer", "create", "--name", "bob")
        assert made.code == 0, made.stderr
        relay = Relay(stage.custodian_port)
        ticket = read_ticket(stage.data / "loan.toml")
        text = to_toml(ticket).replace(ticket.custodian, f"127.0.0.1:{relay.port}")
        diverted = stage.folder / "relayed.toml"
        diverted.write_text(text)
        _, port = stage.serve_enclave(ticket=diverted)
        alice = (stage.data / "consumer.key").read_text().strip()
        yield Scene(stage, relay, port, alice, made.json()["api_key"])
        relay.close()


def test_nothing_of_a_query_is_in_any_file_log_or_byte_to_the_custodian(scene: Scene) -> None:
    """I5: numbers, names, ids, broken bodies and answers, in every form in which they could lie."""
    key, word = scene.alice, "kanarienvogel"
    status, answer, _ = scene.ask(image(float(CANARY)), key)
    assert status == 200
    scores = np.array(json.loads(answer)["outputs"][0]["data"], np.float32)
    before = len(scene.relay.up)
    large = image(float(CANARY), batch=400)
    sent = 0
    for _ in range(8):
        assert scene.ask(large, key)[0] == 200
        sent += len(large)
    named = json.loads(image()) | {"id": word}
    assert scene.ask(json.dumps(named).encode(), key, User_Agent=word)[0] == 200
    named["inputs"][0]["name"] = word
    assert scene.ask(json.dumps(named).encode(), key)[0] == 422
    assert scene.ask(b'{"' + word.encode(), key)[0] == 400
    assert scene.ask(image(), key, f"/v2/models/{word}/infer?{word}")[0] == 404
    assert scene.ask(image(), f"agt-key_{word}")[0] == 401
    scene.account()  # settled: all that will be said of it has been said
    assert len(scene.relay.up) - before < sent / 20  # what is learnt does not grow with the query
    needles = {"the word": word.encode(), "the number": b"7313.137"}
    for name, array in (("input", np.full(4, CANARY, np.float32)), ("output", scores[:4])):
        for order in "<>":
            data = array.astype(f"{order}f4").tobytes()
            needles[f"{name} raw {order}"] = data
            needles[f"{name} hex {order}"] = data.hex().encode()
            for start in range(3):
                text = base64.b64encode(b"\0" * start + data)
                needles[f"{name} base64 {order} {start}"] = text[4 if start else 0 : -4]
        needles[f"{name} decimal"] = repr(float(array[0])).encode()
    assert len(json.dumps(float(scores[0]))) > 6
    files = files_of(scene.stage)
    logs = [path for path in files if path.suffix == ".log"]
    assert len(logs) >= 2
    places = {str(path): body for path, body in files.items()}
    places["to the custodian"] = bytes(scene.relay.up)
    places["events"] = scene.stage.custodian("events", "--limit", "10000").stdout.encode()
    found = [(what, where) for what, n in needles.items() for where, b in places.items() if n in b]
    assert found == []


def test_a_key_of_another_consumers_query_gives_no_answer_of_it(scene: Scene) -> None:
    before = scene.account()
    first = scene.ask(image(3.0), scene.alice, Idempotency_Key="same")
    again = scene.ask(image(3.0), scene.alice, Idempotency_Key="same")
    theirs = scene.ask(image(3.0), scene.bob, Idempotency_Key="same")
    other = scene.ask(image(4.0), scene.bob, Idempotency_Key="same")
    assert [first[0], again[0], theirs[0], other[0]] == [200, 200, 200, 422]
    receipt = "aigovtool-receipt"
    assert first[2][receipt] == again[2][receipt] != theirs[2][receipt]
    assert scene.account()["spent"] == before["spent"] + 2


def test_what_is_smuggled_pipelined_or_upgraded_is_charged_like_any_query(scene: Scene) -> None:
    before = scene.account()
    key = f"Authorization: Bearer {scene.alice}\r\n".encode()
    body = image()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
    sized = b"Content-Length: %d\r\n\r\n" % len(body)
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    whole = head + key + sized + body
    served = 0
    for words, most in (
        (whole * 3, 3),
        (head + key + b"Content-Length: 0\r\n\r\n" + whole, 1),
        (head + key + b"Content-Length: 4\r\n" + chunked + b"0\r\n\r\n" + whole, 0),
        (head + key + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + sized + body, 0),
        (head + sized + body + key + b"\r\n", 0),
        (
            head + chunked + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + key + b"\r\n",
            0,
        ),
    ):  # fmt: skip
        came = scene.shout(words)
        assert came.count(b"HTTP/1.1 200") <= most, words[:200]
        served += came.count(b"HTTP/1.1 200")
    assert served >= 3
    assert scene.account()["spent"] == before["spent"] + served


def test_a_flood_of_half_requests_does_not_keep_others_out(scene: Scene) -> None:
    before = scene.account()
    held = []
    for port in (scene.enclave, scene.stage.custodian_port):
        for _ in range(100):
            plain = socket.create_connection(("127.0.0.1", port), timeout=10)
            plain.sendall(b"\x16\x03\x01")  # the beginning of a handshake
            held.append(plain)
    assert scene.ask(image(), scene.alice)[0] == 200
    assert scene.account()["spent"] == before["spent"] + 1
    for each in held:
        each.close()


async def test_control_frames_of_anybody_else_end_their_connection_only(scene: Scene) -> None:
    before = scene.account()
    url = f"https://127.0.0.1:{scene.stage.custodian_port}"
    bearer = {"Authorization": f"Bearer {scene.ticket.token}"}
    session = scene.stage.custodian("session", "list").json()[0]["session"]
    hello = {"session": session, "signature": base64.b64encode(bytes(64)).decode()}
    frames: tuple[str | bytes, ...] = (
        json.dumps(hello),
        json.dumps(hello | {"session": "session_nobody"}),
        json.dumps({"type": "report", "number": 1, "settlements": [], "want": None}),
        "{", b"\xff" * 100, "x" * 5000, b"x" * (4 << 20), "[" * 4000,
    )  # fmt: skip
    async with aiohttp.ClientSession(
        url, connector=aiohttp.TCPConnector(ssl=unverified())
    ) as stranger:
        for headers in ({}, {"Authorization": "Bearer agt-ticket_x"}):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await stranger.ws_connect(CONTROL_PATH, headers=headers)
        for frame in frames:
            async with stranger.ws_connect(CONTROL_PATH, headers=bearer) as socket_:
                assert "nonce" in (await socket_.receive_json())
                with contextlib.suppress(ConnectionError):
                    send = socket_.send_str if isinstance(frame, str) else socket_.send_bytes
                    await send(frame)  # type: ignore[arg-type]
                async with asyncio.timeout(30):
                    said = [message async for message in socket_]
                assert all("welcome" not in str(one.data) for one in said), frame[:80]
    assert scene.ask(image(), scene.alice)[0] == 200
    states = {
        one["session"]: one["state"] for one in scene.stage.custodian("session", "list").json()
    }
    assert states[session] == "live"
    assert scene.account()["spent"] == before["spent"] + 1


async def test_evidence_of_the_genuine_enclave_gives_its_relayer_no_key(scene: Scene) -> None:
    """The enclave attests to anyone's nonce; that of the custodian's challenge is such a one."""
    ticket = scene.ticket
    custodian = f"https://127.0.0.1:{scene.stage.custodian_port}"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=unverified()),
        headers={"Authorization": f"Bearer {ticket.token}"},
    ) as relayer:

        async def post(path: str, message: bytes) -> tuple[int, dict]:
            async with relayer.post(custodian + path, data=message) as answer:
                return answer.status, await answer.json(content_type=None)

        _, challenge = await post(CHALLENGE_PATH, encode(ChallengeRequest(loan=ticket.loan)))
        nonce = base64.b64decode(challenge["nonce"])
        at = f"https://127.0.0.1:{scene.enclave}/.well-known/attestation?nonce={nonce.hex()}"
        async with relayer.get(at) as answer:
            document = await answer.json(content_type=None)

        def message(**keys: bytes) -> bytes:
            genuine = {k: base64.b64decode(v) for k, v in document["keys"].items()}
            parts = {
                part: Documents(
                    tee=document[part]["tee"],
                    documents={
                        k: base64.b64decode(v) for k, v in document[part]["documents"].items()
                    },
                )
                for part in ("evidence", "endorsements")
            }
            return encode(
                EnrolRequest(
                    loan=ticket.loan, nonce=nonce, keys=Keys(**genuine | keys),
                    software="relay", **parts,
                )
            )  # fmt: skip

        status, refused = await post(ENROL_PATH, message(signing_key=bytes(32)))
        assert (status, "sealed_secrets" in refused) == (403, False)
        status, refused = await post(ENROL_PATH, message())  # the nonce is used up
        assert (status, "sealed_secrets" in refused) == (403, False)
        async with relayer.get(custodian + BODY_PATH.format(digest="0" * 64)) as answer:
            assert answer.status == 404
        async with relayer.get(custodian + BODY_PATH.format(digest="..%2f..%2fmaster.key")) as it:
            assert it.status == 404


def test_an_enclave_with_one_line_changed_gets_no_key_and_says_why(
    scene: Scene, tmp_path: Path
) -> None:
    before = scene.account()
    sessions = len(scene.stage.custodian("session", "list").json())
    process, _ = scene.stage.serve_enclave(
        "tampered", environment=tampered_copy(tmp_path), wait=False
    )
    begin = time.monotonic()
    while process.alive() and "MRTD" not in process.output():
        assert time.monotonic() - begin < 60
        time.sleep(0.05)
    refused = process.output()
    process.kill()
    assert "MRTD is not an accepted one" in refused, refused
    assert len(scene.stage.custodian("session", "list").json()) == sessions
    assert not list((scene.stage.folder / "tampered-cache").glob("*"))
    assert scene.account() == before


def test_numbers_that_are_no_numbers_reach_no_account(scene: Scene) -> None:
    before = scene.account()
    tensor = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[%s],"data":[%s]}]}'
    zeros = b",".join([b"0"] * 64)
    for shape, data, statuses in (
        (b"1,8,8", zeros.replace(b"0", b"1e999"), {400, 422}),
        (b"1,8,8", zeros.replace(b"0", b"NaN"), {400}),
        (b"1e308,8,8", zeros, {400, 422}),
        (b"-1,8,8", zeros, {400, 422}),
        (b"9223372036854775807,8,8", zeros, {400, 413, 422}),
        (b"1,8,8,1", zeros, {422}),
    ):
        status, _, _ = scene.ask(tensor % (shape, data), scene.alice)
        assert status in statuses, (shape, status)
    for length in (b"+5", b"1_0", struct.pack("<Q", 5).hex().encode(), "٣".encode(), b"-1"):
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {scene.alice}\r\n"
        came = scene.shout(
            head.encode()
            + b"Inference-Header-Content-Length: %b\r\nContent-Length: 2\r\n\r\n{}" % length
        )
        assert came.startswith(b"HTTP/1.1 400"), length
    assert scene.account() == before
