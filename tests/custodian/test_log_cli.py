"""`aigovtool log` as a stranger runs it: it proves, it names what is wrong, and it exits so."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aigovtool.cli import main
from aigovtool.crypto.signing import SigningKey, format_public_key
from aigovtool.tlog.checkpoint import Checkpoint
from aigovtool.tlog.note import NoteKey
from tests.custodian.ledgers import Bench
from tests.custodian.test_logbook import Logged


@pytest.fixture
def log(ledger: Bench, tmp_path: Path) -> Logged:
    made = Logged(ledger, tmp_path / "log")
    made.events(300)
    made.book.run()
    return made


@pytest.fixture
def custodian_key(log: Logged) -> str:
    return format_public_key(log.bench.key.public_key)


def run(*arguments: str | Path) -> tuple[int, Any]:
    came = CliRunner().invoke(main, ["log", *map(str, arguments), "--json"])
    assert came.exception is None or isinstance(came.exception, SystemExit)
    return came.exit_code, json.loads(came.stdout)


def faults(*arguments: str | Path) -> list[str]:
    code, said = run("check", *arguments)
    assert (code, said["whole"]) == (1, False)
    return [each["code"] for each in said["faults"]]


def test_a_whole_log_is_proved_with_the_custodians_key_and_with_its_own(
    log: Logged, custodian_key: str
) -> None:
    code, said = run("check", log.folder, "--custodian-key", custodian_key)
    assert (code, said["whole"], said["size"], said["entries"]) == (0, True, 300, 300)
    assert said["kinds"] == {"test.event": 300}
    assert run("check", log.folder, "--key", said["key"])[0] == 0
    text = CliRunner().invoke(main, ["log", "check", str(log.folder), "--key", said["key"]])
    assert "whole: 300 entries come to the signed root" in text.stdout


def test_what_was_kept_is_held_against_what_is_shown(
    log: Logged, custodian_key: str, tmp_path: Path
) -> None:
    key, kept = ("--custodian-key", custodian_key), tmp_path / "kept"
    assert run("check", log.folder, *key, "--keep", kept)[0] == 0
    log.events(10)
    log.book.run()
    code, said = run("check", log.folder, *key, "--since", kept, "--keep", kept)
    assert (code, said["since"], said["size"]) == (0, 300, 310)
    # rolled back: an older checkpoint, still signed, is served again
    older = Checkpoint(
        log.key.verifier.name,
        0,
        bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ).sign(log.key)
    newest = (log.folder / "checkpoint").read_bytes()
    (log.folder / "checkpoint").write_bytes(older)
    assert faults(log.folder, *key, "--since", kept) == ["log.rollback"]
    (log.folder / "checkpoint").write_bytes(newest)
    # forked: the reader was shown another tree of an older size
    kept.write_bytes(Checkpoint(log.key.verifier.name, 5, bytes(32)).sign(log.key))
    before = kept.read_bytes()
    assert faults(log.folder, *key, "--since", kept, "--keep", kept) == ["log.fork"]
    assert kept.read_bytes() == before  # what accuses is not overwritten


def forge_entry(folder: Path) -> None:
    path = folder / "tile/entries/001.p/44"
    path.write_bytes(path.read_bytes().replace(b'"credits":256', b'"credits":999'))


def forge_tile(folder: Path) -> None:
    path = folder / "tile/0/000"
    path.write_bytes(bytes(32) + path.read_bytes()[32:])


def lose_tile(folder: Path) -> None:
    (folder / "tile/0/000").unlink()


@pytest.mark.parametrize(
    ("attack", "code", "says"),
    [
        (forge_entry, "log.entry", "entry 256 "),
        (forge_tile, "log.tile", "tile/0/000 "),
        (lose_tile, "log.missing", "tile/0/000 "),
    ],
)
def test_what_was_altered_is_named(
    log: Logged, custodian_key: str, attack: Callable[[Path], None], code: str, says: str
) -> None:
    attack(log.folder)
    _, said = run("check", log.folder, "--custodian-key", custodian_key)
    assert any(each["code"] == code and each["message"].startswith(says) for each in said["faults"])
    text = CliRunner().invoke(
        main, ["log", "check", str(log.folder), "--custodian-key", custodian_key]
    )
    assert text.exit_code == 1
    assert "NOT whole" in text.stdout


def test_a_log_under_another_key_is_refused(log: Logged, custodian_key: str) -> None:
    stranger = format_public_key(SigningKey.generate().public_key)
    code, said = run("check", log.folder, "--custodian-key", stranger)
    assert (code, said["error"]["kind"]) == (1, "untrue")
    other = NoteKey.generate(log.key.verifier.name)
    code, said = run("check", log.folder, "--key", str(other.verifier))
    assert (code, said["error"]["reasons"][0]["code"]) == (1, "log.key")
    assert run("check", log.folder)[0] == 2
    assert run("check", log.folder / "nowhere", "--custodian-key", custodian_key)[0] == 2
    assert run("check", "http://127.0.0.1:1", "--key", str(other.verifier))[0] == 3


def test_a_proof_is_made_and_holds_offline(log: Logged, custodian_key: str, tmp_path: Path) -> None:
    file = tmp_path / "one.tlog-proof"
    key = ("--custodian-key", custodian_key)
    code, said = run("prove", log.folder, *key, "--event", "261", "--out", file)
    assert (code, said["index"]) == (0, 260)
    assert run("prove", log.folder, *key, "--index", "260")[1]["proof"] == said["proof"]
    certificate = tmp_path / "kept.json"
    certificate.write_bytes((log.folder / "log-key.json").read_bytes())
    for path in log.files():
        (log.folder / path).unlink()  # nothing but the file, the key and its certificate is left
    code, said = run("verify-proof", file, *key, "--certificate", certificate)
    assert (code, said["entry"]["event"], said["event"]) == (0, 261, None)
    assert run("verify-proof", file, "--key", str(log.key.verifier))[0] == 0
    forged = tmp_path / "forged.tlog-proof"
    forged.write_text(file.read_text().replace("index 260", "index 259"))
    assert run("verify-proof", forged, "--key", str(log.key.verifier))[0] == 1
    assert run("verify-proof", tmp_path / "none", "--key", str(log.key.verifier))[0] == 2


def test_an_opening_shows_who_and_a_forged_one_does_not(log: Logged, tmp_path: Path) -> None:
    proof = log.book.proof(7)
    file = tmp_path / "seven.tlog-proof"
    file.write_bytes(proof.encode())
    code, said = run("verify-proof", file, "--key", str(log.key.verifier))
    assert (code, said["event"]["actor"]) == (0, "a person")
    text = CliRunner().invoke(
        main, ["log", "verify-proof", str(file), "--key", str(log.key.verifier)]
    )
    assert "opened: by a person" in text.stdout
    assert proof.extra is not None
    liar = proof.extra.replace(b'"salt":"', b'"salt":"AAAA')
    file.write_bytes(
        proof.encode().replace(
            b"extra " + base64.b64encode(proof.extra),
            b"extra " + base64.b64encode(liar),
        )
    )
    code, said = run("verify-proof", file, "--key", str(log.key.verifier))
    assert code in (1, 2)
    assert "error" in said


@pytest.fixture
def web(log: Logged) -> Iterator[str]:
    """Any web server will do, and is not believed."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(log.folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_log_is_checked_over_http_even_while_its_tiles_fill_up(
    log: Logged, web: str, custodian_key: str
) -> None:
    key = ("--custodian-key", custodian_key)
    assert run("check", web, *key)[1]["whole"] is True
    # the reader has the checkpoint of 300; by the time it asks, tile 1 is full and its parts gone
    old = (log.folder / "checkpoint").read_bytes()
    log.events(300)
    log.book.run()
    (log.folder / "checkpoint").write_bytes(old)
    code, said = run("check", web, *key)
    # what a tree of 300 has above level 0 is still there; tile 1 is read as part of the full one
    assert (code, said["size"]) == (0, 300)
