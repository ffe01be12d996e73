"""
Intel TDX by the older device ``/dev/tdx_guest``: a TD report by ioctl, a quote by vsock.

1. ``TDX_CMD_GET_REPORT0`` gives the 1024-byte TD report over our report data.
2. The quote generation service on the host (vsock, port 4050) turns it into a quote.

The host sees the report and can refuse, and no more: the quote is judged by whoever gets it.

Source: Linux include/uapi/linux/tdx-guest.h; Intel DCAP, QuoteGeneration/quote_wrapper.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import MAX_EVIDENCE_BYTES, Evidence, Tee
from aigovtool.enclave.attester.by_kernel import KernelAttester
from aigovtool.enclave.attester.kernel import Kernel
from aigovtool.errors import UnavailableError

TDX_GUEST = Path("/dev/tdx_guest")
TDX_CMD_GET_REPORT0 = 0xC4405401  # _IOWR('T', 1, struct tdx_report_req), 64 + 1024 bytes
REPORT_DATA_BYTES = 64
TD_REPORT_BYTES = 1024
QGS_PORT = 4050
QGS_TIMEOUT_S = 30.0
_GET_QUOTE_REQUEST, _GET_QUOTE_RESPONSE = 0, 1
_HEADER = struct.Struct("<HHIII")  # major, minor, type, size, error
_LENGTH = struct.Struct(">I")  # before each message on the wire


class Connection(Protocol):
    """What is needed of a stream socket."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


def connect_to_host() -> Connection:
    """Connect to the quote generation service; raises OSError."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.settimeout(QGS_TIMEOUT_S)
    connection.connect((socket.VMADDR_CID_HOST, QGS_PORT))
    return connection


class TdxGuestAttester(KernelAttester):
    """Evidence from ``/dev/tdx_guest``; tests put a stand-in for the host's service, too."""

    tee = Tee.TDX
    default_path = TDX_GUEST

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        path: Path | None = None,
        connect: Callable[[], Connection] = connect_to_host,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(kernel=kernel, path=path, sleep=sleep)
        self._connect = connect

    def describe(self) -> str:
        return f"tdx by {self._path} and the host's quote service"

    def _ask(self, report_data: bytes) -> Evidence:
        argument = bytearray(report_data + bytes(TD_REPORT_BYTES))
        self._kernel.ioctl(self._path, TDX_CMD_GET_REPORT0, argument)
        quote = self._quote(bytes(argument[REPORT_DATA_BYTES:]))
        return Evidence(tee=self.tee, documents={QUOTE: quote})

    def _quote(self, report: bytes) -> bytes:
        body = struct.pack("<II", len(report), 0) + report
        header = _HEADER.pack(1, 0, _GET_QUOTE_REQUEST, _HEADER.size + len(body), 0)
        message = header + body
        try:
            connection = self._connect()
            try:
                connection.sendall(_LENGTH.pack(len(message)) + message)
                (size,) = _LENGTH.unpack(_read_exactly(connection, _LENGTH.size))
                if not _HEADER.size + 8 <= size <= MAX_EVIDENCE_BYTES:
                    raise _bad_answer(f"{size} bytes")
                answer = _read_exactly(connection, size)
            finally:
                connection.close()
        except OSError as error:
            raise UnavailableError(
                "the host's quote generation service cannot be reached",
                code="attester.qgs",
                came=error.strerror or type(error).__name__,
                mend=f"start it on the host, on vsock port {QGS_PORT}",
            ) from None
        _, _, kind, told_size, error_code = _HEADER.unpack_from(answer)
        if kind != _GET_QUOTE_RESPONSE or told_size != size or error_code != 0:
            raise _bad_answer(f"type {kind}, error {error_code:#x}")
        id_size, quote_size = struct.unpack_from("<II", answer, _HEADER.size)
        quote = answer[_HEADER.size + 8 + id_size :]
        if not quote or len(quote) != quote_size:
            raise _bad_answer(f"a quote of {len(quote)} bytes, said to be {quote_size}")
        return quote


def _read_exactly(connection: Connection, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise _bad_answer(f"{len(data)} of {size} bytes")
        data += part
    return bytes(data)


def _bad_answer(came: str) -> UnavailableError:
    return UnavailableError(
        "the host's quote generation service gave no quote", code="attester.qgs", came=came
    )
