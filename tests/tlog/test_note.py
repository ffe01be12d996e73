"""Notes and checkpoints: Go's and C2SP's own examples, and every way to forge one."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import AIGovToolError, MalformedError, PromiseBrokenError, VerificationError
from aigovtool.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from aigovtool.tlog.note import MAX_NOTE_BYTES, MAX_SIGNATURES, NoteKey, NoteVerifier, parse_note

# The example of golang.org/x/mod/sumdb/note
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_NOTE = (
    GO_TEXT + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKv"
    "qfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()
# The example of C2SP tlog-checkpoint; its key is not published with it
C2SP_CHECKPOINT = (
    b"example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    b"\xe2\x80\x94 example.com/behind-the-sofa "
    b"Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
KEY = NoteKey.from_seed("test.example/log", b"\x07" * 32)
OTHER = NoteKey.from_seed("test.example/log", b"\x08" * 32)
CHECKPOINT = Checkpoint("test.example/log", 7, b"\x09" * 32)


def test_gos_note_opens_with_gos_key() -> None:
    verifier = NoteVerifier.parse(GO_KEY)
    assert str(verifier) == GO_KEY
    assert verifier.open(GO_NOTE) == GO_TEXT


def test_the_specifications_checkpoint_reads() -> None:
    note = parse_note(C2SP_CHECKPOINT)
    checkpoint = parse_checkpoint(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == note.text
    assert note.signatures[0].name == checkpoint.origin
    assert len(note.signatures[0].signature) == 64


def test_what_we_sign_opens_and_only_with_our_key() -> None:
    signed = CHECKPOINT.sign(KEY)
    assert open_checkpoint(signed, KEY.verifier) == CHECKPOINT
    assert NoteKey.from_seed("test.example/log", KEY.seed()).verifier == KEY.verifier
    with pytest.raises(VerificationError, match="not signed by the log's key"):
        open_checkpoint(signed, OTHER.verifier)
    with pytest.raises(VerificationError, match="not signed by the log's key"):
        open_checkpoint(signed, NoteVerifier("elsewhere.example", KEY.verifier.public_key))


def test_a_checkpoint_of_another_log_under_the_same_key_is_refused() -> None:
    foreign = Checkpoint("test.example/other", 7, b"\x09" * 32).sign(KEY)
    with pytest.raises(VerificationError, match="another log"):
        open_checkpoint(foreign, KEY.verifier)


def test_every_changed_byte_of_a_signed_note_is_noticed() -> None:
    signed = CHECKPOINT.sign(KEY)
    for at in range(len(signed)):
        forged = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
        with pytest.raises((MalformedError, VerificationError)):
            open_checkpoint(forged, KEY.verifier)


def test_cosignatures_of_strangers_are_ignored_and_ours_must_hold() -> None:
    text = CHECKPOINT.text
    ours, theirs = KEY.sign(text), OTHER.sign(text)
    line = theirs.rpartition(b"\n\n")[2]
    assert open_checkpoint(ours + line, KEY.verifier) == CHECKPOINT
    assert open_checkpoint(theirs + ours.rpartition(b"\n\n")[2], KEY.verifier) == CHECKPOINT
    broken = KEY.verifier.key_id + bytes(64)
    spoiled = ours + f"— {KEY.verifier.name} {base64.b64encode(broken).decode()}\n".encode()
    with pytest.raises(VerificationError, match="does not hold"):
        open_checkpoint(spoiled, KEY.verifier)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\n\n",
        b"text only\n",
        b"text\n\n",
        b"text\n\n\n",
        b"text\n\nnot a signature\n",
        b"text\n\n- ascii dash AAAAAAA=\n",
        "text\n\n— name\n".encode(),
        "text\n\n— na+me AAAAAAA=\n".encode(),
        "text\n\n— name AAAAAA==\n".encode(),  # only an id
        "text\n\n— name AAAAAAB=\n".encode(),  # another spelling of the same bytes
        "text\n\n— name AAAAAAA=".encode(),  # no last line feed
        "text\r\n\n— name AAAAAAA=\n".encode(),
        b"\xff\n\n",
    ],
)
def test_what_is_no_note_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_note(bad)


def test_a_note_of_too_many_signatures_or_bytes_is_refused() -> None:
    line = "— name AAAAAAA=\n"
    assert len(parse_note(f"text\n\n{line * MAX_SIGNATURES}".encode()).signatures) >= 16
    for bad in (f"text\n\n{line * (MAX_SIGNATURES + 1)}".encode(), bytes(MAX_NOTE_BYTES + 1)):
        with pytest.raises(MalformedError):
            parse_note(bad)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n7\n",
        "\n7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
        "origin\n07\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
        "origin\n+7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
        "origin\n-7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
        "origin\n٧\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
        "origin\n9223372036854775808\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
        "origin\n7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQl=\n",  # not canonical
        "origin\n7\nCQkJ\n",
        "origin\n7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=",
        "origin\n7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_checkpoint(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        GO_KEY[:-1],
        GO_KEY.replace("c74f20a3", "c74f20a4"),
        GO_KEY.replace("c74f20a3", "C74F20A3"),
        GO_KEY.replace("+ARpc", "+Ahpc"),  # another algorithm
        " " + GO_KEY,
        GO_KEY.replace("PeterNeumann", "Peter Neumann"),
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        NoteVerifier.parse(text)


def test_a_text_that_would_not_read_back_is_not_signed() -> None:
    for text in ("no line feed", "", "tab\there\n", "\r\n"):
        with pytest.raises(PromiseBrokenError):
            KEY.sign(text)
    with pytest.raises(MalformedError):
        NoteKey.from_seed("a name", bytes(32))
    with pytest.raises(MalformedError):
        NoteKey.from_seed("name", bytes(31))


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_no_foreign_exception_leaves_the_parsers(data: bytes) -> None:
    for parse in (parse_note, KEY.verifier.open):
        with contextlib.suppress(AIGovToolError):
            parse(data)
    for read in (parse_checkpoint, NoteVerifier.parse):
        with contextlib.suppress(AIGovToolError):
            read(data.decode("utf-8", "replace"))
