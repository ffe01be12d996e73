"""Answers of a language model through the proxy: as they come, and only if their receipts hold."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aigovtool.client.receipt_store import default_folder, find_files, read_files
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import BlockedError, LoanNotActiveError
from aigovtool.proof.receipts import check_receipts
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.headers import BUDGET_PATH, RECEIPT, REMAINING
from tests.channel.stand_in import Platform, Session, answer, other_session
from tests.client.talker import MODEL, STREAM, USED_UP, Gate, Talker, chunk, language_world, refused
from tests.client.test_proxy import Answer, Running

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
COST = 4 * 2 + 5 * 3  # of what `Talker` says


@pytest.fixture
def enclave() -> Iterator[Talker]:
    with Talker(Session(language_world(Platform.make()))) as talker:
        yield talker


@pytest.fixture
def proxy(enclave: Talker) -> Iterator[Running]:
    with Running(enclave) as running:
        yield running


def ask(proxy: Running, target: str = CHAT, **more: Any) -> Answer:
    return proxy.ask("POST", target, request(**more), {"Accept-Encoding": "gzip"})


def request(**more: Any) -> bytes:
    return msgspec.json.encode({"model": MODEL, "messages": [], **more})


def events(body: bytes) -> list[Any]:
    """Return the data of each event, decoded; what is not JSON as it is."""
    found = re.findall(rb"data: (.*)\n\n", body)
    return [one if one == b"[DONE]" else msgspec.json.decode(one) for one in found]


def kept() -> list[Any]:
    """Return the receipts that were kept, all of them genuine and without a gap."""
    files = find_files([default_folder()])
    checked = check_receipts(*read_files(files))
    assert not checked.findings
    return sorted(checked.genuine, key=lambda each: each.receipt.number)


@pytest.mark.parametrize("target", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_json_passes_byte_for_byte_and_its_receipts_are_kept(
    enclave: Talker, proxy: Running, target: str
) -> None:
    sent: list[bytes] = []
    honest = enclave.infer
    enclave.reply = lambda asked: sent.append(honest(asked)) or sent[-1]  # type: ignore[func-returns-value, arg-type]
    came = ask(proxy, target)
    assert came.status == 200
    assert sent[-1].endswith(came.body)
    assert came.headers[REMAINING.lower()] == str(enclave.credits)
    assert RECEIPT.lower() in came.headers
    cost = 8 if target == EMBEDDINGS else COST
    assert sum(each.receipt.cost for each in kept()) == cost == 10_000 - enclave.credits


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("target", [CHAT, COMPLETIONS])
def test_a_stream_passes_and_its_receipts_are_kept(
    enclave: Talker, proxy: Running, target: str, usage: bool
) -> None:
    more = {"stream_options": {"include_usage": True}} if usage else {}
    came = ask(proxy, target, stream=True, **more)
    *chunks, done = events(came.body)
    assert done == b"[DONE]"
    assert len(chunks) == 6 + usage
    assert len(chunks[-1]["aigovtool"]["receipts"]) == 4
    assert [each.receipt.cost for each in kept()] == [8, 6, 6, 3]


def test_events_come_one_by_one(enclave: Talker, proxy: Running) -> None:
    gate = Gate(enclave, 2)
    body = request(stream=True)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with proxy.send(head.encode() + body) as wire:
        got = read_until(wire, b'" "')
        assert b"day" not in got
        assert len(kept()) == 1  # the header's, before the first byte
        gate.open()
        got += read_until(wire, b"0\r\n\r\n")
    assert b"[DONE]" in got


def read_until(wire: socket.socket, end: bytes) -> bytes:
    got = b""
    while end not in got:
        piece = wire.recv(4096)
        assert piece, got
        got += piece
    return got


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_never_asked_for_compressed(
    enclave: Talker, proxy: Running, stream: bool
) -> None:
    ask(proxy, stream=stream)
    assert "accept-encoding" not in enclave.queries[-1].headers


def test_the_price_is_asked_for_once_and_again_when_it_changed(
    enclave: Talker, proxy: Running
) -> None:
    ask(proxy)
    ask(proxy, stream=True)
    assert [one.target for one in enclave.queries].count(BUDGET_PATH) == 1
    enclave.tokens = TokenPrice(input=5, output=7)
    assert ask(proxy).status == 200
    assert [one.target for one in enclave.queries].count(BUDGET_PATH) == 2


# --- ends that do not hold ------------------------------------------------------------------------


def without(end: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in end.items() if name != "aigovtool"}


def changed(change: Callable[[list[str]], list[str]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def spoil(end: dict[str, Any]) -> dict[str, Any]:
        bill = end["aigovtool"]
        return end | {"aigovtool": bill | {"receipts": change(bill["receipts"])}}

    return spoil


def no_list(end: dict[str, Any]) -> dict[str, Any]:
    return end | {"aigovtool": {"receipts": [7], "remaining": -1, "usage": {}}}


ATTACKS = {
    "none": (without, "receipt.missing"),
    "empty": (changed(lambda all: []), "receipt.unreadable"),
    "not receipts": (changed(lambda all: [all[0], "x"]), "malformed"),
    "no bill": (no_list, "receipt.unreadable"),
    "one left out": (changed(lambda all: [*all[:2], all[3]]), "receipt.price"),
    "one twice": (changed(lambda all: [*all, all[-1]]), "receipt.order"),
    "other order": (changed(lambda all: [all[0], all[2], all[1], all[3]]), "receipt.order"),
    "another first": (changed(lambda all: all[1:]), "receipt.order"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("stream", [True, False])
def test_an_end_that_does_not_hold(
    enclave: Talker, proxy: Running, attack: str, stream: bool
) -> None:
    enclave.spoil, code = ATTACKS[attack]
    came = ask(proxy, stream=stream, stream_options={"include_usage": True})
    if stream:
        told = events(came.body)
        assert b"[DONE]" not in told
        assert b'"aigovtool"' not in came.body
        assert [one["choices"][0]["delta"]["content"] for one in told[:5]] == enclave.words
        error = told[-1]["error"]
    else:
        assert came.status == 502
        assert b"Good" not in came.body
        error = came.json["error"]
    assert error["code"] == code
    assert sorted(error) == ["code", "message", "param", "type"]
    receipts, _ = read_files(find_files([default_folder()]))
    assert receipts  # the header's at the least


@pytest.mark.parametrize("stream", [True, False])
def test_a_dearer_answer_is_refused_and_its_receipts_are_kept(
    enclave: Talker, proxy: Running, stream: bool
) -> None:
    honest = enclave._output
    enclave._output = lambda: [*honest(), enclave.charge(3)]  # type: ignore[method-assign]
    came = ask(proxy, stream=stream, stream_options={"include_usage": True})
    error = events(came.body)[-1]["error"] if stream else came.json["error"]
    assert error["code"] == "receipt.price"
    assert f"expected {COST} credits" in error["message"]
    assert sum(each.receipt.cost for each in kept()) == COST + 3


def test_without_usage_receipts_are_of_whole_tokens(enclave: Talker, proxy: Running) -> None:
    honest = enclave._output
    enclave._output = lambda: [*honest(), enclave.charge(1)]  # type: ignore[method-assign]
    came = ask(proxy, stream=True)
    assert events(came.body)[-1]["error"]["code"] == "receipt.price"


@pytest.mark.parametrize("stream", [True, False])
def test_a_forged_receipt_of_the_end(enclave: Talker, proxy: Running, stream: bool) -> None:
    honest = enclave.receipt

    def forged(**changes: Any) -> str:
        return honest(key=SigningKey.generate() if enclave.receipts == 2 else None, **changes)

    enclave.receipt = forged  # type: ignore[method-assign]
    came = ask(proxy, stream=stream)
    error = events(came.body)[-1]["error"] if stream else came.json["error"]
    assert error["code"] == "signature"
    assert [each.receipt.cost for each in kept()] == [8, 6]  # those before it stand


@pytest.mark.parametrize("target", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_an_answer_without_a_receipt_in_its_header(
    enclave: Talker, proxy: Running, target: str
) -> None:
    enclave.reply = lambda asked: answer(b'{"choices":[]}')
    came = ask(proxy, target)
    assert came.status == 502
    assert came.headers["content-type"] == "application/json"
    assert came.json["error"]["code"] == "receipt.missing"


def test_a_stream_that_goes_on_after_its_bill(enclave: Talker, proxy: Running) -> None:
    honest = enclave.events

    def more(*given: Any) -> Iterator[bytes | int]:
        *all, done = honest(*given)
        yield from [*all, b'data: {"choices":[]}\n\n', done]

    enclave.events = more  # type: ignore[method-assign]
    assert events(ask(proxy, stream=True).body)[-1]["error"]["code"] == "receipt.late"


def test_an_event_without_end_is_not_held(enclave: Talker, proxy: Running) -> None:
    """Memory is bounded: of an event that is too long the answer is an error, not its bytes."""
    enclave.words = ["x" * (5 << 20)]
    came = ask(proxy, stream=True)
    assert events(came.body)[-1]["error"]["code"] == "too_large"
    assert len(came.body) < 1000


# --- cuts -----------------------------------------------------------------------------------------


def test_a_stream_that_was_cut_says_why_and_keeps_its_receipts(
    enclave: Talker, proxy: Running
) -> None:
    enclave.cut = LoanNotActiveError("the loan was stopped")
    told = events(ask(proxy, stream=True).body)
    assert told[-1]["error"]["code"] == "loan.not_active"
    assert told[-1]["usage"]["completion_tokens"] == 5
    assert b"[DONE]" not in told
    assert sum(each.receipt.cost for each in kept()) == COST


def test_a_connection_that_breaks_in_a_stream(enclave: Talker, proxy: Running) -> None:
    """The client sees an error and not an end."""

    async def abort(index: int) -> None:
        if index == 2:
            for transport in list(enclave.alive):
                transport.abort()

    enclave.pause = abort
    told = events(ask(proxy, stream=True).body)
    assert told[-1]["error"]["code"] == "channel.lost"
    assert len(kept()) == 1


def test_a_stream_that_ends_early(enclave: Talker, proxy: Running) -> None:
    honest = enclave.infer
    receipt = enclave.charge(8)
    enclave.reply = lambda asked: (
        honest(asked)
        if asked.method == "GET"
        else STREAM
        + f"{RECEIPT}: {receipt}\r\n\r\n".encode()
        + chunk(b"data: {}\n\n")
        + b"0\r\n\r\n"
    )
    told = events(ask(proxy, stream=True).body)
    assert told[0] == {}
    assert told[1]["error"]["code"] == "receipt.missing"


# --- errors ---------------------------------------------------------------------------------------


def test_errors_of_the_enclave_pass_unchanged(enclave: Talker, proxy: Running) -> None:
    enclave.refusal = USED_UP
    came = ask(proxy)
    assert (came.status, came.headers["retry-after"]) == (429, "7")
    assert refused(USED_UP).endswith(came.body)
    enclave.refusal = BlockedError("blocked")
    assert ask(proxy, stream=True).status == 403


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, "/v1/models", "/v1/models/x"])
def test_the_proxys_own_errors_are_in_openais_shape(
    enclave: Talker, proxy: Running, path: str
) -> None:
    came = proxy.ask("POST", path, b"{}", {"Origin": "https://evil.example"})
    assert came.status == 403
    assert came.json["error"]["code"] == "proxy.origin"
    enclave._stop_listening()
    gone = proxy.ask("POST", path, b"{}")
    enclave._listen()
    assert (gone.status, gone.headers["retry-after"]) == (503, "5")
    assert gone.json["error"]["code"] == "unavailable"


def test_a_restarted_enclave_is_judged_again(enclave: Talker, proxy: Running) -> None:
    assert ask(proxy, stream=True).status == 200
    enclave.restart(other_session(enclave.session))
    enclave.receipts, enclave.chain = 0, bytes(32)
    came = ask(proxy, stream=True)
    assert events(came.body)[-1] == b"[DONE]"


def test_no_word_is_kept(enclave: Talker, proxy: Running, state_home: Path) -> None:
    ask(proxy, stream=True)
    for path in state_home.rglob("*"):
        assert path.is_dir() or b"Good" not in path.read_bytes()
