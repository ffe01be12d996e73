"""
C2SP ``tlog-checkpoint``: the signed size and root of a log.

Rule 1: the origin is the name of the key that must have signed: a checkpoint of one log is never
        read as one of another.
Rule 2: numbers and hashes have one spelling.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from aigovtool.errors import MalformedError, VerificationError
from aigovtool.tlog.note import NoteKey, NoteVerifier
from aigovtool.tlog.tree import HASH_BYTES, MAX_SIZE

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """
    A log at one size.

    Args:
        origin: which log.
        size: its entries.
        root: RFC 6962 root hash over them, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, key: NoteKey) -> bytes:
        """Return it as a signed note."""
        return key.sign(self.text)


def parse_decimal(text: str, what: str) -> int:
    """Read a number without sign or leading zeroes, below 2**63; raises MalformedError."""
    if _DECIMAL.fullmatch(text) is None or int(text) >= MAX_SIZE:
        raise MalformedError(f"{what} is not a decimal number", code="log.number")
    return int(text)


def parse_hash(text: str, what: str) -> bytes:
    """Read a 32-byte hash in canonical base64; raises MalformedError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != HASH_BYTES or base64.b64encode(raw).decode() != text:
        raise MalformedError(f"{what} is not a SHA-256 in base64", code="log.hash")
    return raw


def parse_checkpoint(text: str) -> Checkpoint:
    """
    Read the text of a checkpoint.

    Raises:
        MalformedError: not three lines or more, a bad number or hash, or an empty extension line.
    """
    lines = text.split("\n")
    if lines.pop() != "" or len(lines) < 3 or not all(lines):
        raise MalformedError(
            "not a checkpoint", code="log.checkpoint", expected="origin, size and root on lines"
        )
    origin, size, root, *_ = lines
    return Checkpoint(origin, parse_decimal(size, "a log's size"), parse_hash(root, "a log's root"))


def open_checkpoint(data: bytes, verifier: NoteVerifier) -> Checkpoint:
    """
    Return the checkpoint that *verifier*'s log has signed.

    Raises:
        MalformedError: not a checkpoint.
        VerificationError: of another log, or not signed by its key.
    """
    checkpoint = parse_checkpoint(verifier.open(data))
    if checkpoint.origin != verifier.name:
        raise VerificationError(
            "a checkpoint of another log",
            code="log.origin",
            expected=verifier.name,
            came=checkpoint.origin,
        )
    return checkpoint
