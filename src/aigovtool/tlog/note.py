"""
C2SP ``signed-note``: text and the Ed25519 signatures of named keys under it (type ``0x01``).

Rule 1: a note's text means nothing until a key that the reader was given has signed it.
Rule 2: signatures of unknown keys are ignored; one that names a known key and does not hold spoils
        the note.
Rule 3: a note key signs notes and nothing else: the format signs the text bare, with no label
        before it, so a key that also signed something else could be made to say either.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from aigovtool.errors import MalformedError, PromiseBrokenError, TooLargeError, VerificationError
from aigovtool.ids import sha256

MAX_NOTE_BYTES = 256 << 10  # 16 signatures of 5 kB, which every reader must accept, and to spare
MAX_SIGNATURES = 100
_ED25519 = b"\x01"
_PUBLIC_KEY_BYTES = 32
_DASH = "— "  # em dash (U+2014), space
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")
_VKEY = re.compile(r"(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """Who says to have signed; `signature` is without the four bytes of the key's id."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A note as it reads, judged by nobody yet."""

    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """A named Ed25519 public key; as text ``<name>+<key id>+<base64 of 01 and the key>``."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key)
        except ValueError:
            raise MalformedError("not an Ed25519 public key", code="log.key") from None

    @property
    def key_id(self) -> bytes:
        """The four bytes by which a signature names this key."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key)[:4]

    def __str__(self) -> str:
        key = base64.b64encode(_ED25519 + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> NoteVerifier:
        """Read what `str` wrote; raises MalformedError on anything else."""
        match = _VKEY.fullmatch(text)
        key = b"" if match is None else _base64(match["key"], "a log's key")
        if match is None or len(key) != 1 + _PUBLIC_KEY_BYTES or key[:1] != _ED25519:
            raise MalformedError(
                "not a log's key",
                code="log.key",
                expected="<name>+<8 hex digits>+<base64, Ed25519>",
            )
        verifier = cls(match["name"], key[1:])
        if str(verifier) != text:
            raise MalformedError(
                "a log's key does not have the id that it says",
                code="log.key",
                expected=verifier.key_id.hex(),
                came=match["id"],
            )
        return verifier

    def open(self, data: bytes) -> str:
        """
        Return the text of a note that this key has signed.

        Raises:
            MalformedError: not a note.
            VerificationError: not signed by this key, or altered since.
        """
        note = parse_note(data)
        mine = [
            each for each in note.signatures if (each.name, each.key_id) == (self.name, self.key_id)
        ]
        if not mine:
            raise VerificationError(
                "not signed by the log's key",
                code="log.key",
                expected=f"{self.name}+{self.key_id.hex()}",
                came=", ".join(f"{each.name}+{each.key_id.hex()}" for each in note.signatures),
            )
        key = Ed25519PublicKey.from_public_bytes(self.public_key)
        try:
            for each in mine:
                key.verify(each.signature, note.text.encode())
        except InvalidSignature:
            raise VerificationError(
                "the log's signature does not hold",
                code="log.signature",
                expected=f"signed by {self.name}+{self.key_id.hex()}",
            ) from None
        return note.text


class NoteKey:
    """A named Ed25519 private key for notes. Never printed; `seed` leaves only to be encrypted."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier = NoteVerifier(
            name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        )

    @classmethod
    def generate(cls, name: str) -> NoteKey:
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> NoteKey:
        """Load the 32 bytes that `seed` returned; raises MalformedError on another length."""
        try:
            return cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        except ValueError:
            raise MalformedError("not an Ed25519 seed") from None

    def seed(self) -> bytes:
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def sign(self, text: str) -> bytes:
        """
        Return the note of *text*, signed.

        Raises:
            PromiseBrokenError: *text* does not end in a line feed, or holds control characters.
        """
        if not text.endswith("\n") or _CONTROL.search(text):
            raise PromiseBrokenError("a note is lines of text without control characters")
        signature = self.verifier.key_id + self._key.sign(text.encode())
        line = f"{_DASH}{self.verifier.name} {base64.b64encode(signature).decode()}\n"
        return f"{text}\n{line}".encode()


def parse_note(data: bytes) -> Note:
    """
    Read a note and believe nothing of it.

    Raises:
        TooLargeError: longer than a note can sensibly be.
        MalformedError: not text, no signatures, or a signature line that is not one.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise TooLargeError("note too large", expected=f"at most {MAX_NOTE_BYTES} bytes")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise MalformedError("a note is not UTF-8", code="log.note") from None
    if _CONTROL.search(whole):
        raise MalformedError("a note holds control characters", code="log.note")
    text, blank, signatures = whole.rpartition("\n\n")
    lines = signatures.split("\n")
    if not blank or not text or lines.pop() != "" or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise MalformedError("not a signed note", code="log.note")
    return Note(text + "\n", tuple(_signature(line) for line in lines))


def _signature(line: str) -> NoteSignature:
    name, space, body = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise MalformedError("not a signature line of a note", code="log.note")
    _check_name(name)
    raw = _base64(body, "a note's signature")
    if len(raw) <= 4:
        raise MalformedError("a note's signature is too short", code="log.note")
    return NoteSignature(name, raw[:4], raw[4:])


def _check_name(name: str) -> None:
    if not name or "+" in name or any(each.isspace() or each < " " for each in name):
        raise MalformedError(
            "not the name of a note key", code="log.note", expected="no spaces and no '+'"
        )


def _base64(text: str, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{what} is not base64", code="log.note") from None
    if base64.b64encode(raw).decode() != text:  # two spellings would make two notes of one
        raise MalformedError(f"{what} is not canonical base64", code="log.note")
    return raw
