"""
The published format, alone: https://c2sp.org/chunked-encryption with SHA-512 and AES-GCM, which its
vectors call Cobblestone.

A message is ``salt (24) || commitment (32) || sealed chunks``. Every chunk holds 16 KiB of
plaintext and a 16-byte tag, except the last one, which is always shorter and so marks the end.

Rule 1: the commitment is checked before any chunk is opened: another key, salt or context ends
        there.
Rule 2: the position of a chunk is in its nonce, so chunks cannot change places.
Rule 3: a message without a short last chunk is truncated; nothing may follow the short chunk.
Rule 4: what did not authenticate never stays readable: `open_message` raises, and its caller wipes.

Memory is a few blocks for each worker, whatever the size of the message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time, hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from aigovtool.errors import MalformedError, VerificationError
from aigovtool.sealing.memory import wipe

CHUNK_BYTES = 16 * 1024
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
SALT_BYTES = 24
COMMITMENT_BYTES = 32
HEADER_BYTES = SALT_BYTES + COMMITMENT_BYTES
NONCE_BYTES = 12
MAX_CHUNKS = 1 << 38  # the specification's limit; past it AES-GCM's block cipher wears out

# A block is what one worker takes at a time: large enough that handing it over costs nothing,
# small enough that it is still in the processor's cache when it is opened.
BLOCK_CHUNKS = 32
BLOCK_BYTES = BLOCK_CHUNKS * CHUNK_BYTES
SEALED_BLOCK_BYTES = BLOCK_CHUNKS * SEALED_CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Aead:
    """An AEAD as the IANA registry names it, and its key size."""

    name: bytes
    key_bytes: int


AES_128_GCM = Aead(b"AEAD_AES_128_GCM", 16)  # the specification's choice; only read in tests
AES_256_GCM = Aead(b"AEAD_AES_256_GCM", 32)  # the product's choice

Destination = Callable[[int, int], AbstractContextManager[memoryview]]
"""Lends writable memory for the plaintext at (offset, size); called from several threads."""

Progress = Callable[[int], None]
"""Told how many bytes are done so far."""


class Source(Protocol):
    """Where bytes come from: any binary file, or a download made to look like one."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill *buffer* from its start; return how many bytes, 0 at the end."""
        ...


class MessageKey:
    """The AEAD key, base nonce and header of one message; it never shows the key."""

    __slots__ = ("_aead", "_base_nonce", "header")

    def __init__(
        self, input_key: bytes, context: bytes, salt: bytes, *, aead: Aead = AES_256_GCM
    ) -> None:
        """
        Derive them from *input_key* (uniformly random), *context* (any) and *salt* (24 bytes).

        Raises:
            MalformedError: key or salt of a wrong length.
        """
        for what, value, size in (
            ("content key", input_key, aead.key_bytes),
            ("salt", salt, SALT_BYTES),
        ):
            if len(value) != size:
                raise MalformedError(
                    f"{what} of a wrong length",
                    expected=f"{size} bytes",
                    came=f"{len(value)} bytes",
                )
        derived = bytearray(aead.key_bytes + NONCE_BYTES + COMMITMENT_BYTES)
        info = b"c2sp.org/chunked-encryption@v1+" + aead.name + b"\0" + salt + context
        HKDFExpand(hashes.SHA512(), len(derived), info).derive_into(input_key, derived)
        nonce_end = aead.key_bytes + NONCE_BYTES
        self._aead = AESGCM(memoryview(derived)[: aead.key_bytes])
        self._base_nonce = int.from_bytes(derived[aead.key_bytes : nonce_end], "big")
        self.header = salt + bytes(derived[nonce_end:])
        wipe(derived)

    @classmethod
    def from_header(
        cls, input_key: bytes, context: bytes, header: bytes, *, aead: Aead = AES_256_GCM
    ) -> MessageKey:
        """
        Derive them for a message that begins with *header* (56 bytes).

        Raises:
            MalformedError: a key of a wrong length.
            VerificationError: the header is cut short, or does not commit to this key and context.
        """
        if len(header) != HEADER_BYTES:
            raise _truncated("the sealed body ends inside its header")
        key = cls(input_key, context, header[:SALT_BYTES], aead=aead)
        if not constant_time.bytes_eq(key.header, header):
            raise VerificationError(
                "the sealed body does not commit to this key and context",
                code="sealing.commitment",
                mend="use the key that was made for this body, and the manifest that came with it",
            )
        return key

    def seal_run(
        self, first: int, plaintext: memoryview, sealed: memoryview, *, final: bool
    ) -> None:
        """
        Seal consecutive chunks from number *first* on; *sealed* has `sealed_run_size` bytes.

        With *final* the last chunk is the message's short one and may be empty; without it,
        *plaintext* is a whole number of chunks.
        """
        count = len(plaintext) // CHUNK_BYTES + final
        _check_counter(first + count)
        start = 0
        for index in range(first, first + count):
            at = start + (index - first) * TAG_BYTES
            self._aead.encrypt_into(
                (self._base_nonce ^ index).to_bytes(NONCE_BYTES, "big"),
                plaintext[start : start + CHUNK_BYTES],
                None,
                sealed[at : at + SEALED_CHUNK_BYTES],
            )
            start += CHUNK_BYTES

    def open_run(
        self, first: int, sealed: memoryview, plaintext: memoryview, *, final: bool
    ) -> None:
        """
        Open consecutive chunks from number *first* on; *plaintext* has `opened_run_size` bytes.

        Raises:
            VerificationError: a chunk is not what was sealed at its place. *plaintext* then holds
                bytes that nobody vouches for, and the caller wipes it.
        """
        count = len(sealed) // SEALED_CHUNK_BYTES + final
        _check_counter(first + count)
        start = 0
        for index in range(first, first + count):
            at = start + (index - first) * TAG_BYTES
            try:
                self._aead.decrypt_into(
                    (self._base_nonce ^ index).to_bytes(NONCE_BYTES, "big"),
                    sealed[at : at + SEALED_CHUNK_BYTES],
                    None,
                    plaintext[start : start + CHUNK_BYTES],
                )
            except InvalidTag:
                raise VerificationError(
                    f"chunk {index} of the sealed body does not authenticate",
                    code="sealing.chunk",
                    mend="fetch the sealed model again, from another mirror if need be",
                ) from None
            start += CHUNK_BYTES


def sealed_size(plaintext_size: int) -> int:
    """Return the size of the whole message, header included, for *plaintext_size* bytes."""
    return HEADER_BYTES + plaintext_size + (plaintext_size // CHUNK_BYTES + 1) * TAG_BYTES


def opened_run_size(size: int, *, final: bool) -> int:
    """
    Return how many bytes of plaintext *size* bytes of sealed chunks hold.

    Raises:
        VerificationError: the message's last chunk is missing, or shorter than its tag.
    """
    whole, rest = divmod(size, SEALED_CHUNK_BYTES)
    if not final:
        return whole * CHUNK_BYTES
    if rest < TAG_BYTES:
        raise _truncated("the sealed body ends without its short last chunk")
    return whole * CHUNK_BYTES + rest - TAG_BYTES


def fill(source: Source, buffer: memoryview) -> int:
    """Read from *source* until *buffer* is full or the source ends; return how many bytes."""
    filled = 0
    while filled < len(buffer):
        count = source.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def seal_message(key: MessageKey, source: Source, write: Callable[[memoryview], object]) -> None:
    """Seal everything that *source* gives; *write* gets the header, then block after block."""
    write(memoryview(key.header))
    plaintext = memoryview(bytearray(BLOCK_BYTES))
    sealed = memoryview(bytearray(SEALED_BLOCK_BYTES))
    first = 0
    final = False
    try:
        while not final:
            size = fill(source, plaintext)
            final = size < BLOCK_BYTES
            run = sealed[: sealed_size(size) - HEADER_BYTES] if final else sealed
            key.seal_run(first, plaintext[:size], run, final=final)
            write(run)
            first += BLOCK_CHUNKS
    finally:
        wipe(plaintext)


def open_message(key: MessageKey, source: Source, destination: Destination, *, workers: int) -> int:
    """
    Open all chunks that *source* gives, its header already read; return the plaintext's size.

    Blocks are opened by *workers* threads while the next ones are read. When this raises, the
    threads have ended, and the destination holds a partial plaintext, which the caller must wipe.

    Raises:
        VerificationError: altered, reordered, truncated, or followed by more bytes.
    """
    buffers = [memoryview(bytearray(SEALED_BLOCK_BYTES)) for _ in range(workers + 1)]
    pending: deque[Future[None]] = deque()

    def open_block(first: int, sealed: memoryview, size: int, final: bool) -> None:
        with destination(first * CHUNK_BYTES, size) as plaintext:
            key.open_run(first, sealed, plaintext, final=final)

    with ThreadPoolExecutor(workers, thread_name_prefix="unseal") as pool:
        first = opened = 0
        final = False
        while not final:
            if len(pending) == len(buffers):
                pending.popleft().result()  # its buffer is the next one to fill
            buffer = buffers[(first // BLOCK_CHUNKS) % len(buffers)]
            size = fill(source, buffer)
            final = size < SEALED_BLOCK_BYTES
            plaintext_size = opened_run_size(size, final=final)
            pending.append(pool.submit(open_block, first, buffer[:size], plaintext_size, final))
            first += BLOCK_CHUNKS
            opened += plaintext_size
        for block in pending:
            block.result()
    return opened


def _check_counter(chunks: int) -> None:
    if chunks > MAX_CHUNKS:
        raise MalformedError(
            "a message of too many chunks", expected=f"at most {MAX_CHUNKS}", came=str(chunks)
        )


def _truncated(message: str) -> VerificationError:
    return VerificationError(
        message,
        code="sealing.truncated",
        mend="fetch the sealed model again; a copy was cut short",
    )
