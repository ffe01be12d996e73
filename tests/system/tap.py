"""
A relay between enclave and custodian that reads all of it: it has the custodian's own key.

Only a test can have that: it takes the key out of the custodian's ledger with the master key.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from datetime import UTC, datetime

from aigovtool.crypto.tls import make_custodian_identity, pinned_client_context, server_context
from aigovtool.custodian import vault
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.demo.stage import free_port

_END_OF_HEAD = b"\r\n\r\n"


class Tap:
    """Listens on `port`; what comes in the clear from each connection is kept in `_up`."""

    def __init__(self, folder: DataFolder, *, to_port: int) -> None:
        """Read the custodian's key out of *folder*, before it serves."""
        store = SqliteStore.open(folder.ledger)
        try:
            with store.read() as tx:
                row = tx.custodian()
        finally:
            store.close()
        assert row is not None
        keeper = vault.Vault(vault.read_master_key(folder.master_key, {}))
        identity = make_custodian_identity(
            keeper.signing_key(row), row.certificate_pem, now=datetime.now(UTC)
        )
        self._server = server_context(identity)
        self._client = pinned_client_context(row.certificate_pem)
        self._to_port = to_port
        self._up: list[bytearray] = []
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def said(self) -> list[bytes]:
        """Return all that was said to the custodian, connection by connection, unmasked."""
        return [unmasked(bytes(up)) for up in self._up]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near:
            plain = socket.create_connection(("127.0.0.1", self._to_port))
            with (
                plain,
                self._client.wrap_socket(plain) as far,
                self._server.wrap_socket(near, server_side=True) as secured,
            ):
                kept = bytearray()
                self._up.append(kept)
                back = threading.Thread(target=_pass_on, args=(far, secured, None), daemon=True)
                back.start()
                _pass_on(secured, far, kept)
                back.join()


def _pass_on(source: socket.socket, to: socket.socket, kept: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if kept is not None:
                kept += data
            to.sendall(data)
    for one in (source, to):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def unmasked(stream: bytes) -> bytes:
    """Return *stream* with the frames of a WebSocket in it, if it became one, in the clear."""
    head, found, rest = stream.partition(_END_OF_HEAD)
    if not found or b"upgrade: websocket" not in head.lower():
        return stream
    frames = [head + found]
    while len(rest) >= 6:  # RFC 6455 section 5.2; a client's frames are all masked
        size, at = rest[1] & 0x7F, 2
        if size == 126:
            (size,), at = struct.unpack(">H", rest[2:4]), 4
        elif size == 127:
            (size,), at = struct.unpack(">Q", rest[2:10]), 10
        assert rest[1] & 0x80
        mask, body = rest[at : at + 4], rest[at + 4 : at + 4 + size]
        frames.append(bytes(byte ^ mask[index % 4] for index, byte in enumerate(body)))
        rest = rest[at + 4 + size :]
    return b"\n".join(frames)
