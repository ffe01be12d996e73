"""Receipts are kept: by several at once, through crashes and full disks, and nothing but them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from aigovtool.attestation.policy import Policy, write_policy
from aigovtool.cli import main
from aigovtool.client import receipt_store
from aigovtool.client.receipt_store import ReceiptStore, default_folder, find_files, read_files
from aigovtool.client.receipts import VerifiedReceipt
from aigovtool.client.session import connect_async
from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.proof.receipts import check_receipts
from aigovtool.wire.receipt import to_header
from tests.channel.stand_in import API_KEY, Platform, Session, StandIn, World

X = np.array([[4711, 2, 3]], np.float32)
CANARIES = (b"4711", b"9422", X.tobytes(), (X * 2).tobytes())


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(Platform.make())


@pytest.fixture
def enclave(world: World) -> Iterator[StandIn]:
    with StandIn(Session(world), credits=50) as stand_in:
        yield stand_in


async def ask(enclave: StandIn, folder: Path, count: int = 1) -> list[VerifiedReceipt]:
    policy = enclave.session.world.policy
    async with await connect_async(
        enclave.address, manifest=policy, api_key=API_KEY, receipts=folder
    ) as client:
        return [(await client.infer({"x": X})).receipt for _ in range(count)]


def lines(folder: Path) -> list[bytes]:
    (path,) = find_files([folder])
    return path.read_bytes().splitlines()


async def test_each_receipt_is_kept_with_what_proves_it_years_later(
    enclave: StandIn, tmp_path: Path
) -> None:
    receipts = await ask(enclave, tmp_path / "a", 3)
    receipts += await ask(enclave, tmp_path / "a", 2)
    assert lines(tmp_path / "a") == [to_header(one.signed).encode() for one in receipts]
    kept, sessions = read_files(find_files([tmp_path / "a"]))
    checked = check_receipts(kept, sessions)
    assert not checked.findings
    assert (len(checked.genuine), len(checked.sessions)) == (5, 1)


async def test_only_the_owner_can_read_them_and_no_input_or_output_is_in_them(
    enclave: StandIn, tmp_path: Path
) -> None:
    await ask(enclave, tmp_path / "a", 2)
    for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            assert not any(canary in path.read_bytes() for canary in CANARIES)


async def test_a_torn_line_is_not_joined_by_the_next(enclave: StandIn, tmp_path: Path) -> None:
    await ask(enclave, tmp_path, 2)
    (path,) = find_files([tmp_path])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    (third,) = await ask(enclave, tmp_path)
    assert path.read_bytes() == whole[:-100] + b"\n" + to_header(third.signed).encode() + b"\n"
    kept, sessions = read_files([path])
    codes = [finding.code for finding in check_receipts(kept, sessions).findings]
    assert codes == ["receipt.unreadable", "receipt.gap"]


def keep_many(folder: Path, policy: Policy, verified: VerifiedReceipt, numbers: range) -> None:
    store = ReceiptStore(folder, manifest=policy)
    for number in numbers:
        signed = replace(verified).signed
        other = type(signed)(payload=signed.payload + b" " * number, signature=signed.signature)
        store.keep(replace(verified, signed=other))
    store.close()


async def test_several_processes_keep_into_one_file(enclave: StandIn, tmp_path: Path) -> None:
    (verified,) = await ask(enclave, tmp_path / "first")
    policy = enclave.session.world.policy
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(
            target=keep_many,
            args=(tmp_path / "a", policy, verified, range(start, start + 50)),
        )
        for start in (0, 50, 100)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    kept, sessions = read_files(find_files([tmp_path / "a"]))
    payload = verified.signed.payload
    assert sorted(len(one.signed.payload) - len(payload) for one in kept if one.signed) == list(
        range(150)
    )
    assert list(sessions) == [verified.receipt.session]
    assert not list((tmp_path / "a").rglob(".*")), "nothing half made is left"


async def test_a_full_disk_does_not_withhold_an_answer_that_was_charged(
    enclave: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (verified,) = await ask(enclave, tmp_path)
    before = lines(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(receipt_store, "_append", full)
    with caplog.at_level(logging.WARNING):
        assert len(await ask(enclave, tmp_path)) == 1
    assert "a receipt was not kept" in caplog.text
    with pytest.raises(UnavailableError):
        ReceiptStore(tmp_path, manifest=enclave.session.world.policy).keep(verified)
    assert lines(tmp_path) == before


async def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_charged(
    enclave: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError):
        await ask(enclave, tmp_path / "file")
    assert not enclave.asked


async def test_a_consumer_that_would_climb_out_of_the_folder_is_not_kept(
    enclave: StandIn, tmp_path: Path
) -> None:
    (verified,) = await ask(enclave, tmp_path / "first")
    store = ReceiptStore(tmp_path / "a", manifest=enclave.session.world.policy)
    for name in ("../../x", "", "a/b", ".", "x" * 101):
        said = type(verified.receipt)(
            **{
                field: getattr(verified.receipt, field)
                for field in verified.receipt.__struct_fields__
            }
            | {"consumer": ConsumerId(name)}
        )
        with pytest.raises(MalformedError):
            store.keep(replace(verified, receipt=said))
    assert not list((tmp_path / "a").iterdir())


def test_the_default_folder_is_the_users_state(tmp_path: Path) -> None:
    assert default_folder({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "aigovtool/receipts"
    ours = Path(os.environ["HOME"]) / ".local/state/aigovtool/receipts"
    assert default_folder({"XDG_STATE_HOME": "relative"}) == ours  # as the specification says


# --- the commands --------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["client", "receipts", *arguments], env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


async def test_the_command_checks_the_kept_receipts(
    enclave: StandIn, tmp_path: Path, world: World
) -> None:
    await ask(enclave, tmp_path / "r", 3)
    (tmp_path / "manifest.toml").write_text(write_policy(world.policy))
    with_manifest = ["--manifest", str(tmp_path / "manifest.toml")]
    for more in ([], with_manifest):
        code, text = run("check", "--receipts", str(tmp_path / "r"), *more)
        assert (code, "3 receipts, 3 credits: all in order" in text) == (0, True), text
    code, text = run("check", str(tmp_path / "r"), "--json")
    told = json.loads(text)
    assert (code, told["ok"], told["receipts"], told["findings"]) == (0, True, 3, [])
    (session,) = told["sessions"]
    assert (session["session"], session["simulated"]) == (enclave.session.id, True)


async def test_the_command_names_a_gap_and_ends_with_1(enclave: StandIn, tmp_path: Path) -> None:
    await ask(enclave, tmp_path, 3)
    (path,) = find_files([tmp_path])
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + third)
    code, text = run("check", str(path))
    assert code == 1
    assert "receipt.gap: receipt 3 of sess_1: 1 of this consumer's receipts before it is" in text
    code, text = run("check", str(path), "--json")
    assert (code, json.loads(text)["findings"][0]["code"]) == (1, "receipt.gap")


async def test_the_command_lists_them(enclave: StandIn, tmp_path: Path) -> None:
    await ask(enclave, tmp_path, 3)
    folder = ["--receipts", str(tmp_path)]
    for arguments in (folder, ["list", "--limit", "3", *folder]):
        code, text = run(*arguments)
        assert (code, text.count("sess_1")) == (0, 3)
    code, text = run("list", "--receipts", str(tmp_path), "--json", "--limit", "1")
    assert [one["receipt"]["number"] for one in json.loads(text)] == [3]


def test_nothing_to_check_is_misuse(tmp_path: Path) -> None:
    assert run("check", "--receipts", str(tmp_path / "none"))[0] == 2
    assert run("check", str(tmp_path))[0] == 2
    code, text = run("list", "--receipts", str(tmp_path / "none"))
    assert (code, "no receipts in" in text) == (0, True)
