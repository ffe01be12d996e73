"""The enclave's HTTP API over real TLS: who is served, who is refused, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl

from aigovtool.enclave.config import Limits
from aigovtool.ids import ConsumerId
from aigovtool.wire.budget import BudgetView
from aigovtool.wire.codec import decode
from aigovtool.wire.oip import ModelMetadata

from .conftest import INFER, RunningEnclave, query, running_enclave
from .custodian import Consumer, FakeCustodian

STRANGER = Consumer(ConsumerId("con_stranger"), "not-a-key-of-anybody")


async def remaining(enclave: RunningEnclave) -> int:
    _, view, _ = await enclave.get("/v1/budget", enclave.custodian.alice)
    return int(view["remaining"])


def is_problem(status: int, answer: dict, headers: object) -> bool:
    return (
        answer["status"] == status
        and answer["error"] == answer["detail"] != ""
        and headers["Content-Type"] == "application/problem+json"  # type: ignore[index]
    )


async def test_a_query_is_answered_charged_and_receipted(enclave: RunningEnclave) -> None:
    status, answer, headers = await enclave.infer(value=2.0)
    assert status == 200
    assert answer["outputs"][0]["data"] == [4.0, 4.0]
    assert (answer["model_name"], answer["model_version"]) == ("tiny", "1")
    assert headers["Aigovtool-Remaining"] == "9"
    assert headers["Aigovtool-Receipt"]


async def test_without_a_key_nobody_learns_anything(enclave: RunningEnclave) -> None:
    for path in ("/v2", "/v2/models/tiny", "/v2/repository/index", "/v1/budget"):
        for headers in ({}, {"Authorization": "Basic YTpi"}, STRANGER.authorization):
            async with enclave.http.get(path, headers=headers) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert b"tiny" not in await answer.read()
    status, answer_, headers_ = await enclave.infer(consumer=STRANGER)
    assert status == 401
    assert is_problem(401, answer_, headers_)
    assert await remaining(enclave) == 10


async def test_a_blocked_consumer_is_refused_and_uncharged(enclave: RunningEnclave) -> None:
    bob = enclave.custodian.add_consumer("bob")
    await enclave.custodian.set_roster()
    bob_served = (await enclave.infer(consumer=bob))[0]
    bob.blocked = True
    await enclave.custodian.set_roster()
    assert (bob_served, (await enclave.infer(consumer=bob))[0]) == (200, 403)
    assert await remaining(enclave) == 9


async def test_health_needs_no_key(enclave: RunningEnclave) -> None:
    assert (await enclave.get("/v2/health/live"))[:2] == (200, {"live": True})
    assert (await enclave.get("/v2/health/ready"))[:2] == (200, {"ready": True})


async def test_metadata(enclave: RunningEnclave) -> None:
    alice = enclave.custodian.alice
    status, answer, _ = await enclave.get("/v2/models/tiny/versions/1", alice)
    model = decode(json.dumps(answer), ModelMetadata)
    assert status == 200
    assert (model.inputs[0].datatype, model.inputs[0].shape) == ("FP32", (-1, 2))
    assert (await enclave.get("/v2", alice))[1]["name"] == "aigovtool-enclave"
    assert (await enclave.get("/v2/models/tiny/ready", alice))[1] == {"name": "tiny", "ready": True}
    (entry,) = (await enclave.get("/v2/repository/index", alice))[1]
    assert (entry["name"], entry["state"]) == ("tiny", "READY")


async def test_the_budget_view(enclave: RunningEnclave) -> None:
    await enclave.infer()
    status, answer, _ = await enclave.get("/v1/budget", enclave.custodian.alice)
    view = decode(json.dumps(answer), BudgetView)
    assert status == 200
    assert (view.state, view.remaining, view.own_budget, view.waiting) == ("active", 9, False, 0)
    assert 0 < view.lease_valid_s <= 5


async def test_what_is_not_here_is_404_and_uncharged(enclave: RunningEnclave) -> None:
    for path in (
        "/v2/models/other/infer",
        "/v2/models/tiny/versions/2/infer",
        "/v2/models/tiny/versions/1/nothing",
        "/v2/models/",
        "/nothing",
    ):
        async with enclave.http.post(
            path, data=json.dumps(query([[1, 1]])), headers=enclave.custodian.alice.authorization
        ) as answer:
            assert answer.status == 404, path
            assert is_problem(404, await answer.json(content_type=None), answer.headers)
    assert await remaining(enclave) == 10


async def test_a_wrong_method_is_405_with_the_right_one(enclave: RunningEnclave) -> None:
    async with enclave.http.delete(INFER) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    async with enclave.http.post("/v1/budget") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"inputs": [], "unknown": 1}',
    b"null",
    b"[" * 100_000,
]
UNFIT = [
    query([[1.0, 1.0]], name="z"),
    query([[1.0, 1.0]], datatype="FP64"),
    query([[1.0, 1.0]], datatype="NONSENSE"),
    query([[1.0, 1.0, 1.0]], shape=[1, 3]),
    query([1.0, 1.0], shape=[2]),
    query([[1.0]], shape=[1, 2]),
    query([["one", "one"]]),
    {"inputs": []},
    {"inputs": query([[1.0, 1.0]])["inputs"] * 2},
    query([[1.0, 1.0]]) | {"outputs": [{"name": "z"}]},
]


async def test_malformed_bodies_are_400_and_uncharged(enclave: RunningEnclave) -> None:
    for body in MALFORMED:
        status, answer, headers = await enclave.infer(body=body)
        assert status == 400, body[:20]
        assert is_problem(400, answer, headers)
        assert headers["Aigovtool-Remaining"] == "10"
        assert "Aigovtool-Receipt" not in headers


async def test_tensors_that_do_not_fit_are_422_and_uncharged(enclave: RunningEnclave) -> None:
    for body in UNFIT:
        status, answer, headers = await enclave.infer(body=body)
        assert status == 422, answer
        assert is_problem(422, answer, headers)
        assert headers["Aigovtool-Remaining"] == "10"
        assert "Aigovtool-Receipt" not in headers
    assert enclave.custodian.leased == 0


async def test_a_body_that_says_it_is_too_large_is_not_read(custodian: FakeCustodian) -> None:
    async with running_enclave(custodian, limits=Limits(max_body_bytes=1000)) as enclave:
        status, answer, headers = await enclave.infer(body=b"x" * 1001)
        assert status == 413
        assert is_problem(413, answer, headers)
        assert (await enclave.infer())[0] == 200


async def test_a_body_without_end_is_cut_at_the_limit(custodian: FakeCustodian) -> None:
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    async with running_enclave(custodian, limits=Limits(max_body_bytes=1 << 20)) as enclave:
        async with enclave.http.post(
            INFER, data=endless(), headers=custodian.alice.authorization
        ) as answer:
            assert answer.status == 413
        assert sent < 64 << 20
        assert await remaining(enclave) == 10


async def test_bodies_together_take_only_so_much_memory(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = custodian.max_lease = 100_000
    rows = query([[1.0, 1.0]] * 20_000)
    limits = Limits(max_bodies_bytes=len(json.dumps(rows)) + 1000)
    async with running_enclave(custodian, limits=limits) as enclave:
        answers = await asyncio.gather(*(enclave.infer(body=rows) for _ in range(4)))
        statuses = sorted(status for status, _, _ in answers)
        assert statuses[0] == 200
        assert set(statuses) <= {200, 503}
        assert (await enclave.infer(body=rows))[0] == 200  # the room was given back
        assert await remaining(enclave) == 100_000 - 20_000 * (statuses.count(200) + 1)


async def test_a_slow_body_is_not_waited_for(custodian: FakeCustodian) -> None:
    async with running_enclave(custodian, limits=Limits(body_time_s=0.2)) as enclave:
        reader, writer = await raw_connection(enclave)
        writer.write(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            f"Authorization: Bearer {custodian.alice.key}\r\n\r\nx".encode()
        )
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in head.lower()
        writer.close()
        assert await remaining(enclave) == 10


async def test_broken_http_is_a_problem_document(enclave: RunningEnclave) -> None:
    for attack in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n"):
        reader, writer = await raw_connection(enclave)
        writer.write(attack)
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400"), attack
        assert b'"kind":"malformed"' in answer
        writer.close()


async def test_a_head_without_end_is_cut(enclave: RunningEnclave) -> None:
    reader, writer = await raw_connection(enclave)
    writer.write(b"GET / HTTP/1.1\r\n")
    sent = 0
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while sent < 10_000 and not reader.at_eof():
            writer.write(b"x-%d: %s\r\n" % (sent, b"x" * 1000))
            await writer.drain()
            sent += 1
    assert sent < 10_000
    writer.close()
    assert (await enclave.get("/v2/health/live"))[0] == 200


async def test_more_connections_than_allowed_are_refused(custodian: FakeCustodian) -> None:
    async with running_enclave(custodian, limits=Limits(max_connections=3)) as enclave:
        held = [await raw_connection(enclave) for _ in range(4)]
        async with asyncio.timeout(30):
            answers = [await held[3][0].read()]
        assert answers[0].startswith(b"HTTP/1.1 503")
        for _, writer in held:
            writer.close()


async def test_binary_tensors_both_ways(enclave: RunningEnclave) -> None:
    import numpy as np

    from aigovtool.wire.oip import HEADER_LENGTH, decode_infer_response, encode_infer_request

    body = encode_infer_request({"x": np.array([[1, 2], [3, 4]], np.float32)}, binary=True)
    headers = enclave.custodian.alice.authorization | body.headers
    async with enclave.http.post(INFER, data=b"".join(body.chunks), headers=headers) as answer:
        assert answer.status == 200
        response = decode_infer_response(
            await answer.read(), header_length=int(answer.headers[HEADER_LENGTH])
        )
    assert response.outputs["y"].tolist() == [[2, 4], [6, 8]]


async def test_a_large_answer_is_whole(enclave: RunningEnclave) -> None:
    await enclave.custodian.grant(100_000)
    enclave.custodian.max_lease = 100_000
    rows = [[float(i), 0.0] for i in range(40_000)]
    status, answer, _ = await enclave.infer(body=query(rows))
    assert status == 200
    assert answer["outputs"][0]["data"][-2:] == [2 * 39_999.0, 0.0]


async def raw_connection(
    enclave: RunningEnclave,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    host, port = enclave.address.split(":")
    return await asyncio.open_connection(host, int(port), ssl=tls)
