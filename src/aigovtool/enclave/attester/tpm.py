"""
The few TPM 2.0 commands that evidence needs, written to ``/dev/tpmrm0`` and read back.

    command   tag 2 | size 4 | command 4 | handles | authorisation | parameters
    response  tag 2 | size 4 | code 4 | parameters size 4, with sessions | parameters | sessions

Rule 1: every authorisation is the empty password, which is what cloud vTPMs are set up with. A TPM
        that wants another says so, and that is a matter of configuration.
Rule 2: what the TPM answers is read in full or not at all; what it says of itself is believed by
        nobody here, and judged by whoever gets the evidence.
Rule 3: "come back later" is told apart from "no": the former is worth another try.

Source: TCG Trusted Platform Module Library, revision 1.59, Part 1 (18, 19: structure, passwords),
Part 2 (6.6: response codes, 13.4: NV attributes), Part 3 (commands); Linux tpm(4), tpmrm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from aigovtool.attestation.reader import Reader
from aigovtool.attestation.tpm2.layout import DIGEST_BYTES, MAX_PCRS, Hash
from aigovtool.enclave.attester.kernel import door
from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError

TPM_RESOURCE_MANAGER = Path("/dev/tpmrm0")
MAX_RESPONSE_BYTES = 4096  # of the kernel's own buffer (TPM_BUFSIZE)
NV_CHUNK_BYTES = 512  # every TPM takes so much at once (TPM_PT_NV_BUFFER_MAX is at least this)
MAX_NV_BYTES = 16 << 10  # an HCL report has 2600, a certificate some 1600
PCRS_AT_ONCE = 8  # in one TPML_DIGEST

OWNER = 0x40000001
_HEADER_BYTES = 10
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_PASSWORD = 0x40000009
_EMPTY_PASSWORD = _PASSWORD.to_bytes(4) + bytes(2) + bytes(1) + bytes(2)  # no nonce, flags, HMAC
_ALG_NULL = 0x0010
_ALG_OF = {Hash.SHA1: 0x0004, Hash.SHA256: 0x000B, Hash.SHA384: 0x000C, Hash.SHA512: 0x000D}
_NV_OWNER_WRITE, _NV_OWNER_READ = 1 << 1, 1 << 17

_NV_DEFINE_SPACE, _NV_WRITE, _NV_READ, _NV_READ_PUBLIC = 0x12A, 0x137, 0x14E, 0x169
_QUOTE, _READ_PUBLIC, _PCR_READ = 0x158, 0x173, 0x17E

_SUCCESS = 0
_HANDLE_MISSING = 0x08B  # TPM_RC_HANDLE, whichever handle it is about
_BUSY = {
    0x908: "TPM_RC_YIELDED",
    0x90A: "TPM_RC_TESTING",
    0x920: "TPM_RC_NV_RATE",
    0x921: "TPM_RC_LOCKOUT",
    0x922: "TPM_RC_RETRY",
    0x923: "TPM_RC_NV_UNAVAILABLE",
}
_FORBIDDEN = {
    0x08E: "TPM_RC_AUTH_FAIL",
    0x0A2: "TPM_RC_BAD_AUTH",
    0x124: "TPM_RC_AUTH_TYPE",
    0x12F: "TPM_RC_AUTH_UNAVAILABLE",
    0x148: "TPM_RC_NV_LOCKED",
    0x149: "TPM_RC_NV_AUTHORIZATION",
}

T = TypeVar("T")

Transmit = Callable[[bytes], bytes]
"""Gives a command to the TPM and returns its response."""


class MissingHandleError(ConfigurationError):
    """The TPM has no such index or key."""

    code = "attester.tpm_handle"


def device(path: Path = TPM_RESOURCE_MANAGER) -> Transmit:
    """Return the way to the TPM behind *path*; its calls raise as `kernel.door` does."""

    def transmit(command: bytes) -> bytes:
        with door(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                written = os.write(descriptor, command)
                response = os.read(descriptor, MAX_RESPONSE_BYTES)
            finally:
                os.close(descriptor)
        if written != len(command):
            raise UnavailableError(
                f"{path} took {written} of {len(command)} bytes", code="attester.short_write"
            )
        return response

    return transmit


class Tpm:
    """
    A TPM, command by command.

    All methods raise UnavailableError when it is busy, fails or answers what cannot be read,
    MissingHandleError when it has no such index or key, and ConfigurationError when the empty
    password does not do.
    """

    def __init__(self, transmit: Transmit | None = None) -> None:
        self._transmit = transmit or device()

    def nv_size(self, index: int) -> int:
        """Return how many bytes the index holds (NV_ReadPublic)."""

        def read(reader: Reader) -> int:
            public = _reader(reader.sized(2))
            public.take(4 + 2 + 4)  # index, name algorithm, attributes
            public.sized(2)  # policy
            size = public.uint(2)
            public.end()
            return size

        return self._call(_NV_READ_PUBLIC, [index], read=read)

    def nv_read(self, index: int) -> bytes:
        """Return all that the index holds, with the owner's authorisation (NV_Read)."""
        size = self.nv_size(index)
        if size > MAX_NV_BYTES:
            raise UnavailableError(
                f"NV index {index:#x} is larger than anything expected there",
                code="attester.too_long",
                came=f"{size} bytes",
            )
        data = b""
        while len(data) < size:
            wanted = min(NV_CHUNK_BYTES, size - len(data))
            parameters = wanted.to_bytes(2) + len(data).to_bytes(2)
            part = self._call(
                _NV_READ, [OWNER, index], parameters, sessions=True, read=_sized_bytes
            )
            if len(part) != wanted:
                raise UnavailableError(
                    f"NV index {index:#x} was cut short",
                    code="attester.short_read",
                    came=f"{len(part)} of {wanted} bytes",
                )
            data += part
        return data

    def nv_write(self, index: int, data: bytes) -> None:
        """Write *data*, at most `NV_CHUNK_BYTES`, to the beginning of the index (NV_Write)."""
        parameters = _sized(data) + bytes(2)
        self._call(_NV_WRITE, [OWNER, index], parameters, sessions=True, read=Reader.end)

    def nv_define(self, index: int, size: int) -> None:
        """Make an index that the owner may read and write (NV_DefineSpace)."""
        public = (
            index.to_bytes(4)
            + _ALG_OF[Hash.SHA256].to_bytes(2)
            + (_NV_OWNER_WRITE | _NV_OWNER_READ).to_bytes(4)
            + bytes(2)  # no policy
            + size.to_bytes(2)
        )
        parameters = bytes(2) + _sized(public)  # an empty password of its own
        self._call(_NV_DEFINE_SPACE, [OWNER], parameters, sessions=True, read=Reader.end)

    def public_area(self, key: int) -> bytes:
        """Return the TPMT_PUBLIC of a key (ReadPublic)."""
        return self._call(_READ_PUBLIC, [key], read=_sized_bytes)

    def quote(self, key: int, qualifying_data: bytes, *, bank: Hash) -> tuple[bytes, bytes]:
        """Return TPMS_ATTEST over all PCRs of *bank*, and its TPMT_SIGNATURE (Quote)."""
        parameters = (
            _sized(qualifying_data) + _ALG_NULL.to_bytes(2) + _selection(bank, range(MAX_PCRS))
        )
        return self._call(
            _QUOTE,
            [key],
            parameters,
            sessions=True,
            read=lambda reader: (reader.sized(2), reader.take(reader.left)),
        )

    def pcrs(self, *, bank: Hash) -> list[bytes]:
        """Return the values of all PCRs of *bank* (PCR_Read, as often as it takes)."""
        values: list[bytes] = []
        while len(values) < MAX_PCRS:
            wanted = range(len(values), min(len(values) + PCRS_AT_ONCE, MAX_PCRS))
            selection = _selection(bank, wanted)

            def read(reader: Reader, selection: bytes = selection) -> tuple[bytes, list[bytes]]:
                reader.take(4)  # how often PCRs have changed: the quote's digest tells if they did
                selected = reader.take(len(selection))
                digests = [reader.sized(2) for _ in range(reader.uint(4))]
                reader.end()
                return selected, digests

            selected, digests = self._call(_PCR_READ, [], selection, read=read)
            sizes = {len(digest) for digest in digests}
            if (selected, len(digests), sizes) != (selection, len(wanted), {DIGEST_BYTES[bank]}):
                raise UnavailableError(
                    "the TPM gave other PCRs than it was asked for",
                    code="attester.short_read",
                    came=f"{len(digests)} values from PCR {len(values)} on",
                )
            values += digests
        return values

    def _call(
        self,
        code: int,
        handles: Sequence[int],
        parameters: bytes = b"",
        *,
        sessions: bool = False,
        read: Callable[[Reader], T],
    ) -> T:
        """Give one command, and return what *read* makes of its response's parameters."""
        body = b"".join(handle.to_bytes(4) for handle in handles)
        if sessions:
            body += len(_EMPTY_PASSWORD).to_bytes(4) + _EMPTY_PASSWORD
        body += parameters
        tag = _SESSIONS if sessions else _NO_SESSIONS
        size = _HEADER_BYTES + len(body)
        response = self._transmit(tag.to_bytes(2) + size.to_bytes(4) + code.to_bytes(4) + body)
        reader = _reader(response)
        try:
            tag = reader.uint(2)
            told_bytes, status = reader.uint(4), reader.uint(4)
            if told_bytes != len(response):
                raise reader.malformed(
                    "is cut short", came=f"{len(response)} of {told_bytes} bytes"
                )
            if status != _SUCCESS:
                raise _refusal(status, code)
            return read(_reader(reader.sized(4)) if tag == _SESSIONS else reader)
        except MalformedError as error:
            # nobody but the TPM wrote it, so another try is worth it
            raise UnavailableError(
                error.reasons[0].message, code="attester.short_read", came=error.reasons[0].came
            ) from None


def _reader(data: bytes) -> Reader:
    return Reader(data, what="TPM response", code="attester.short_read", byteorder="big")


def _sized_bytes(reader: Reader) -> bytes:
    return reader.sized(2)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def _selection(bank: Hash, indices: Sequence[int]) -> bytes:
    """Write a TPML_PCR_SELECTION of one bank."""
    bitmap = sum(1 << index for index in indices).to_bytes(MAX_PCRS // 8, "little")
    return (1).to_bytes(4) + _ALG_OF[bank].to_bytes(2) + bytes([len(bitmap)]) + bitmap


def _refusal(status: int, command: int) -> UnavailableError | ConfigurationError:
    """Say what a response code means to the caller (Part 2, 6.6.2: format-one codes, bit 7)."""
    # a format-one code says in bits 6 and 8 to 11 which handle, session or parameter it is about
    plain = status & 0x0BF if status & 0x080 else status
    where = f"{status:#05x} to command {command:#x}"
    if plain in _BUSY:
        return UnavailableError(
            "the TPM is busy", code="attester.busy", came=f"{_BUSY[plain]}, {where}"
        )
    if plain == _HANDLE_MISSING:
        return MissingHandleError("the TPM has no such index or key", came=where)
    if plain in _FORBIDDEN:
        return ConfigurationError(
            "the TPM does not take the empty password",
            code="attester.permission",
            came=f"{_FORBIDDEN[plain]}, {where}",
            mend="clear the owner's password of the vTPM",
        )
    return UnavailableError("the TPM refused a command", code="attester.tpm", came=where)
