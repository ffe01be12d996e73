"""Where a log is read from, a folder or a web server, and by whose key."""

from __future__ import annotations

import http.client
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from aigovtool.crypto.signing import format_public_key, parse_public_key
from aigovtool.crypto.tls import pinned_client_context
from aigovtool.errors import (
    ConfigurationError,
    MalformedError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from aigovtool.proof.logged import Log
from aigovtool.tlog.checkpoint import open_checkpoint
from aigovtool.tlog.note import MAX_NOTE_BYTES, NoteVerifier
from aigovtool.tlog.tiles import (
    CHECKPOINT_PATH,
    MAX_BUNDLE_BYTES,
    Tile,
    join_entries,
    split_entries,
)
from aigovtool.tlog.tree import HASH_BYTES
from aigovtool.wire.log import CERTIFICATE_NAME, LOG_PATH, MAX_CERTIFICATE_BYTES, open_certificate
from aigovtool.wire.ticket import Ticket

TIMEOUT_S = 30.0


class LogSource(ABC):
    """
    The files of one log. Nothing that it gives is believed: tiles are held against a signed root.

    A partial tile that is gone was replaced by the full one, of which it is the beginning.
    """

    def read(self, tile: Tile) -> bytes:
        """Return a tile's file; raises NotFoundError, UnavailableError or TooLargeError."""
        try:
            return self.file(tile.path, MAX_BUNDLE_BYTES)
        except NotFoundError:
            if not tile.partial:
                raise
        full = Tile(tile.level, tile.index)
        try:
            data = self.file(full.path, MAX_BUNDLE_BYTES)
        except NotFoundError:
            raise NotFoundError(f"{tile.path} is missing", code="log.missing") from None
        if tile.level is None:
            return join_entries(split_entries(full, data)[: tile.width])
        return data[: tile.width * HASH_BYTES]

    def checkpoint(self) -> bytes:
        """Return the signed checkpoint, unread; raises as `read`."""
        return self.file(CHECKPOINT_PATH, MAX_NOTE_BYTES)

    def certificate(self) -> bytes:
        """Return the custodian's certificate for the log's key, unread; raises as `read`."""
        return self.file(CERTIFICATE_NAME, MAX_CERTIFICATE_BYTES)

    @abstractmethod
    def file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of at most *max_bytes*; raises as `read`."""


class FolderSource(LogSource):
    """A log in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, path: str, max_bytes: int) -> bytes:
        try:
            with (self._folder / path).open("rb") as file:
                data = file.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"{self._folder / path} is missing", code="log.missing") from None
        except OSError as error:
            raise UnavailableError(
                f"{self._folder / path} cannot be read", code="log.unreadable", came=error.strerror
            ) from None
        return _bounded(data, path, max_bytes)


class WebSource(LogSource):
    """A log on a web server; what it serves needs no more trust than a folder's."""

    def __init__(self, url: str, *, token: str | None = None, anchor: bytes | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ConfigurationError(
                "not the address of a log", expected="https://HOST/…", came=ascii(url[:80])
            )
        self._url = url
        self._prefix = parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if parts.scheme == "http":
            self._connection = http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=TIMEOUT_S
            )
        else:
            context = (
                ssl.create_default_context() if anchor is None else pinned_client_context(anchor)
            )
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=TIMEOUT_S, context=context
            )

    def file(self, path: str, max_bytes: int) -> bytes:
        try:
            self._connection.request("GET", f"{self._prefix}/{path}", headers=self._headers)
            answer = self._connection.getresponse()
            data = answer.read(max_bytes + 1)
            if len(data) > max_bytes:
                self._connection.close()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise UnavailableError(
                f"no log answers at {self._url}", code="log.unreachable", came=type(error).__name__
            ) from None
        if answer.status == 404:
            raise NotFoundError(f"{self._url}/{path} is missing", code="log.missing")
        if answer.status in (401, 403):
            raise RefusedError(
                f"{self._url} does not show its log to us",
                code="log.refused",
                came=str(answer.status),
                mend="read it at another place, or with the loan's ticket (--ticket)",
            )
        if answer.status != 200:
            raise UnavailableError(
                f"{self._url}/{path} cannot be had", code="log.unreachable", came=str(answer.status)
            )
        return _bounded(data, path, max_bytes)


def _bounded(data: bytes, path: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise MalformedError(
            f"{path} is too large", code="log.tile", expected=f"at most {max_bytes} bytes"
        )
    return data


def source_of(where: str | None, ticket: Ticket | None) -> LogSource:
    """
    Return the log in a folder or at a URL; with neither, the one of the ticket's custodian.

    Raises:
        ConfigurationError: neither a folder, a URL nor a ticket was given.
    """
    if where is None:
        if ticket is None:
            raise ConfigurationError("which log?", mend="name a folder or URL, or give --ticket")
        return WebSource(
            f"https://{ticket.addresses[0]}{LOG_PATH}",
            token=ticket.token,
            anchor=ticket.custodian_certificate.encode(),
        )
    if "://" in where:
        return WebSource(where)
    if not Path(where).is_dir():
        raise ConfigurationError(f"{where} is not a folder", mend="name a folder or a URL")
    return FolderSource(Path(where))


def verifier_of(
    certificate: Callable[[], bytes] | None, *, key: str | None, custodian_key: str | None
) -> NoteVerifier:
    """
    Return by which key the log must be signed, as the reader was given it.

    Args:
        certificate: gives the custodian's certificate for its log's key, when it is needed.
        key: the log's own key.
        custodian_key: the key that certifies the log's.

    Raises:
        ConfigurationError: the reader was given no key.
        VerificationError: the certificate is not by that custodian.
    """
    if key is not None:
        return NoteVerifier.parse(key)
    if custodian_key is None or certificate is None:
        raise ConfigurationError(
            "by whose key?",
            expected="--key, or --custodian-key and the log's log-key.json",
            mend="the custodian's public key stands in every ticket and manifest",
        )
    certified = open_certificate(certificate(), parse_public_key(custodian_key))
    return NoteVerifier(certified.origin, certified.public_key)


def open_log(where: str, custodian_key: bytes) -> Log:
    """
    Open a log in a folder or at a URL, whose key *custodian_key* certified.

    Raises:
        ConfigurationError: no such folder.
        VerificationError: its key is not certified by that custodian, or signed no checkpoint.
        NotFoundError, UnavailableError: its files cannot be had.
    """
    source = source_of(where, None)
    verifier = verifier_of(
        source.certificate, key=None, custodian_key=format_public_key(custodian_key)
    )
    return Log(open_checkpoint(source.checkpoint(), verifier), source.read)
