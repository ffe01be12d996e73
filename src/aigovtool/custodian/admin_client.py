"""
The admin API from the other side: what the commands use, blocking and without dependencies.

The token is read from a file and goes into one header; it is in no URL, argument or message.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from aigovtool.channel.plainly import why_it_failed
from aigovtool.custodian import files
from aigovtool.errors import ConfigurationError, MalformedError, TooLargeError, UnavailableError
from aigovtool.wire.codec import decode
from aigovtool.wire.problem import error_of

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 << 20

T = TypeVar("T")


class AdminClient:
    """
    Calls one custodian's admin API.

    Args:
        url: such as ``http://127.0.0.1:6000``.
        authority: PEM of whoever certified an ``https`` one, None for the machine's own list.
        timeout_s: for each answer to begin.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        authority: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ConfigurationError(
                "not the address of an admin API", expected="http://HOST:PORT", came=ascii(url[:80])
            )
        self._url = url
        self._host, self._port, self._scheme = parts.hostname, parts.port, parts.scheme
        self._token = token
        self._authority = authority
        self._timeout_s = timeout_s

    @classmethod
    def of(
        cls,
        url: str,
        token_file: Path,
        *,
        authority: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> AdminClient:
        """Call the API at *url* with the token in a file; raises ConfigurationError."""
        token = files.read_text(token_file, mend="name the custodian's admin.token").strip()
        return cls(url, token, authority=authority, timeout_s=timeout_s)

    def get(self, path: str, kind: type[T], **query: str | int | None) -> T:
        """
        Return what ``GET path`` answers, read as *kind*.

        Raises:
            UnavailableError: no custodian answers there.
            AIGovToolError: what it answered, as it was raised there.
        """
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", path + ("?" + urlencode(given) if given else ""), None, kind)

    def download(self, path: str, max_bytes: int, **query: str) -> bytes:
        """
        Return the bytes that ``GET path`` answers; raises as `get`.

        Raises:
            TooLargeError: more than *max_bytes*.
        """
        with self._answer("GET", f"{path}?{urlencode(query)}", None, None) as answer:
            data = answer.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TooLargeError("answer too large", expected=f"at most {max_bytes} bytes")
        return data

    def post(self, path: str, body: Any, kind: type[T], *, idempotency_key: str | None = None) -> T:
        """Return what ``POST path`` with a JSON body answers; raises as `get`."""
        return self._call("POST", path, body, kind, idempotency_key)

    def follow(self, path: str, kind: type[T]) -> Iterator[T]:
        """Yield the server-sent events of *path*, until the custodian ends them."""
        with self._answer("GET", path, None, None) as answer:
            while line := answer.readline(MAX_ANSWER_BYTES):
                if line.startswith(b"data: "):
                    yield decode(line[6:], kind, max_bytes=MAX_ANSWER_BYTES)

    def _call(self, method: str, path: str, body: Any, kind: type[T], key: str | None = None) -> T:
        with self._answer(method, path, body, key) as answer:
            return decode(answer.read(MAX_ANSWER_BYTES + 1), kind, max_bytes=MAX_ANSWER_BYTES)

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: Any, key: str | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        connection = self._connect()
        try:
            data = None if body is None else msgspec.json.encode(body)
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                after = answer.headers.get("Retry-After", "")
                raise error_of(
                    answer.status,
                    answer.read(MAX_ANSWER_BYTES),
                    retry_after_s=float(after) if after.isdecimal() else None,
                )
            yield answer
        except ssl.SSLCertVerificationError:
            raise UnavailableError(
                f"what answers at {self._url} is not certified by whom you trust",
                code="admin.certificate",
                mend="name the PEM that certifies it with --admin-ca",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"no custodian answers at {self._url}",
                code="admin.unreachable",
                came=why_it_failed(error),
                mend="start it with `aigovtool custodian serve`, or name another with --admin",
            ) from None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._scheme == "http":
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            context = ssl.create_default_context(
                cafile=None if self._authority is None else str(self._authority)
            )
        except (OSError, ssl.SSLError):
            raise MalformedError("the --admin-ca file is not a certificate in PEM") from None
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout_s, context=context
        )
