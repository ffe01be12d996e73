"""
I6 with real processes: receipts kept and checked, statement made and checked, forgeries refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aigovtool.client.receipt_store import find_files
from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.app import open_custodian
from aigovtool.custodian.data import DataFolder
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.wire.codec import decode, encode, sign
from aigovtool.wire.control import Settlement
from aigovtool.wire.receipt import Receipt, from_header, to_header
from aigovtool.wire.statement import Statement, read_file
from aigovtool.wire.ticket import read_ticket

QUERIES = 6


@pytest.mark.slow
def test_everybody_can_prove_it_offline(tmp_path: Path) -> None:
    """One stage for all of it: real processes are slow to start."""
    with Stage(tmp_path) as stage:
        assert stage.init().code == 0
        custodian = stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", "100",
        )  # fmt: skip
        enclave, port = stage.serve_enclave()
        np_file = stage.folder / "digit.json"
        np_file.write_text(json.dumps({"image": [[[0.0] * 8] * 8]}))
        for _ in range(QUERIES):
            done = stage.run(*stage.client("query", port, "--input", str(np_file)))
            assert done.code == 0, done.stderr
        until_settled(stage, QUERIES)
        assert stage.custodian("grant", "5").code == 0
        until(lambda: sum(e["kind"] == "grant.seen" for e in stage.custodian("events").json()) == 2)
        loan = stage.custodian("loan", "list").json()[0]["loan"]
        assert stage.custodian("loan", "stop", loan, "--reason", "the end").code == 0
        until(lambda: "session.stop_proof" in kinds(stage))
        file = stage.folder / "statement.json"
        made = stage.custodian("statement", "--period", this_month(), "--output", str(file))
        assert made.code == 0, made.stderr
        assert made.json()["closing"]["spent"] == QUERIES
        enclave.terminate()
        custodian.terminate()

        # everybody else is gone: the rest needs the files alone
        grants_and_log_hold(stage)
        receipts = receipts_hold(stage)
        statement_holds(stage, file, receipts)
        forged_receipts_are_named(stage, receipts)
        forged_statements_are_named(stage, file, receipts)


def grants_and_log_hold(stage: Stage) -> None:
    """The notices kept prove 105 credits; the log is whole, and has the counter-signatures."""
    ticket = stage.data / "loan.toml"
    proves = ("enclave", "grants", "--cache", str(stage.folder / "enclave-cache"),
              "--ticket", str(ticket), "--json")  # fmt: skip
    told = stage.run(*proves).json()
    assert [(each["notices"], each["granted"]) for each in told["loans"]] == [(2, 105)]
    denied = stage.run(*proves, "--said", "100")
    assert (denied.code, denied.json()["loans"][0]["faults"][0]["code"]) == (1, "grant.withheld")
    key = read_ticket(ticket).custodian_key
    checked = stage.run(
        "log", "check", str(stage.data / "log"), "--custodian-key", key, "--json"
    ).json()
    assert (checked["whole"], checked["kinds"]["grant.seen"]) == (True, 2)


def receipts_hold(stage: Stage) -> Path:
    checked = stage.run("client", "receipts", "check", "--json")
    assert checked.code == 0, checked.stdout + checked.stderr
    told = checked.json()
    assert (told["ok"], told["receipts"], told["cost"]) == (True, QUERIES, QUERIES)
    listed = stage.run("client", "receipts", "list", "--json").json()
    assert [one["receipt"]["own_number"] for one in listed] == list(range(1, QUERIES + 1))
    (path,) = find_files([stage.folder / "state"])
    return path


def statement_holds(stage: Stage, file: Path, receipts: Path) -> None:
    for more in (
        ["--policy", str(stage.data / "manifest.toml")],
        ["--ticket", str(stage.data / "loan.toml")],
    ):
        log = ["--log", str(stage.data / "log")]
        verified = verify(stage, file, *more, *log, "--receipts", str(receipts))
        assert verified["ok"], verified["findings"]
        assert verified["logged"] > QUERIES
        assert (verified["grants"], verified["counter_signed"]) == (2, 2)
        assert verified["receipts"] == {"counted": QUERIES, "outside": 0}
        assert verified["sessions"][0]["attested"]
        assert "loan.stopped" in {line["kind"] for line in verified["decisions"]}
    told = stage.run(
        "statement", "verify", str(file), "--policy", str(stage.data / "manifest.toml")
    )
    assert (told.code, "all in order" in told.stdout) == (0, True)
    assert stage.run("statement", "verify", str(file)).code == 2  # whose must it be?
    late = stage.run(
        "statement", "verify", str(file), "--ticket", str(stage.data / "loan.toml"),
        "--as-of", "2090-01-01T00:00:00Z", "--json",
    )  # fmt: skip
    assert (late.code, found(late.json())) == (1, {"evidence.refused"})


def forged_receipts_are_named(stage: Stage, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    (path.parent / "copy").mkdir()
    (path.parent / "sessions").rename(path.parent / "copy" / "sessions")
    copy = path.parent / "copy" / path.name
    signed = from_header(lines[2].decode().strip())
    own = sign(
        msgspec.structs.replace(decode(signed.payload, Receipt), cost=5, balance_after=0),
        SigningKey.generate(),
        Label.RECEIPT,
    )
    forged = to_header(own).encode() + b"\n"
    for content, code in (
        ([*lines[:2], *lines[3:]], "receipt.gap"),
        ([*lines[:2], forged, *lines[3:]], "receipt.forged"),
        ([*lines, lines[0][:50]], "receipt.unreadable"),
    ):
        copy.write_bytes(b"".join(content))
        checked = stage.run("client", "receipts", "check", str(copy), "--json")
        assert (checked.code, code in found(checked.json())) == (1, True), checked.stdout
    copy.rename(copy.with_suffix(".other"))
    renamed = copy.with_name("consumer_somebody.receipts")
    renamed.write_bytes(b"".join(lines))
    checked = stage.run("client", "receipts", "check", str(renamed), "--json")
    assert (checked.code, found(checked.json())) == (1, {"receipt.foreign"})
    renamed.unlink()
    (path.parent / "copy" / "sessions").rename(path.parent / "sessions")


def forged_statements_are_named(stage: Stage, file: Path, receipts: Path) -> None:
    with open_custodian(
        DataFolder(stage.data), clock=SystemClock(), environ=stage.environment()
    ) as app:
        key = app.key

    def understated(said: Statement) -> Statement:
        closing = msgspec.structs.replace(
            said.closing, spent=said.closing.spent - 1, left=said.closing.left + 1
        )
        return msgspec.structs.replace(said, closing=closing)

    def dropped(said: Statement) -> Statement:
        lost, *others = [line for line in said.leases if used_of(line) > 0]
        left = tuple(line for line in said.leases if line.lease != lost.lease)
        assert len(left) >= len(others)
        return msgspec.structs.replace(said, leases=left)

    def unattested(said: Statement) -> Statement:
        session = said.sessions[0]
        keys = msgspec.structs.replace(session.keys, signing_key=key.public_key)
        other = msgspec.structs.replace(session, keys=keys)
        return msgspec.structs.replace(said, sessions=(other, *said.sessions[1:]))

    def backdated(said: Statement) -> Statement:
        return msgspec.structs.replace(said, issued=said.begin)

    for lie, code in (
        (understated, "statement.sum"),
        (dropped, "settlement.uncounted"),
        (unattested, "evidence.refused"),
        (backdated, "statement.time"),
    ):
        forged = stage.folder / f"{lie.__name__}.json"
        forged.write_bytes(resigned(file, key, lie))
        told = stage.run(
            "statement", "verify", str(forged), "--ticket", str(stage.data / "loan.toml"),
            "--receipts", str(receipts), "--json",
        )  # fmt: skip
        assert (told.code, code in found(told.json())) == (1, True), told.stdout
    forged = stage.folder / "another.json"
    forged.write_bytes(resigned(file, SigningKey.generate(), understated))
    told = stage.run("statement", "verify", str(forged), "--ticket", str(stage.data / "loan.toml"))
    assert (told.code, "signed by" in told.stderr) == (1, True)
    damaged = stage.folder / "damaged.json"
    damaged.write_bytes(file.read_bytes()[:-10])
    told = stage.run("statement", "verify", str(damaged), "--ticket", str(stage.data / "loan.toml"))
    assert told.code == 2


def resigned(file: Path, key: SigningKey, lie: Callable[[Statement], Statement]) -> bytes:
    opened = read_file(file.read_bytes())
    changed = lie(decode(opened.statement.payload, Statement))
    return encode(msgspec.structs.replace(opened, statement=sign(changed, key, Label.STATEMENT)))


def used_of(line: Any) -> int:
    return 0 if line.settlement is None else decode(line.settlement.signed.payload, Settlement).used


def verify(stage: Stage, file: Path, *more: str) -> Any:
    done = stage.run("statement", "verify", str(file), *more, "--json")
    assert done.code == 0, done.stdout + done.stderr
    return done.json()


def found(told: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in told["findings"]}


def kinds(stage: Stage) -> set[str]:
    return {event["kind"] for event in stage.custodian("events").json()}


def this_month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def until_settled(stage: Stage, spent: int) -> None:
    def settled() -> bool:
        account = stage.custodian("loan", "list").json()[0]["account"]
        return (account["leased"], account["spent"]) == (0, spent)

    until(settled)


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < limit_s
        time.sleep(0.2)
