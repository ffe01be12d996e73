"""
One question to one address, over HTTP, once.

Rule 1: a vendor's address is not trusted to be the vendor: time and size are bounded, the body
        must be whole, and no redirect is followed, so nothing can send us elsewhere.
Rule 2: bodies are taken as they come. None is unpacked, so none can be a bomb.
Rule 3: what may succeed when asked again is an `UnavailableError`, and nothing else is.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from aigovtool.clock import Clock
from aigovtool.errors import (
    ConfigurationError,
    MalformedError,
    NotFoundError,
    RefusedError,
    TooLargeError,
    UnavailableError,
)

TIMEOUT_S = 15.0  # for all of one attempt; Intel and AMD answer within 2 s
CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 1 << 20  # the largest known answer, an NVIDIA RIM in base64, has some 300 kB
MAX_CONNECTIONS = 8
LONGEST_RETRY_AFTER_S = 24 * 3600.0  # whoever says more is not believed
NO_WAIT_ASKED_S = 0.0
_CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    What is asked, and how much of an answer is taken.

    Args:
        url: absolute.
        post: body of a POST; None asks with GET.
        content_type: of *post*.
        headers: names, in lower case, of the answer's headers that are part of what it says.
        max_bytes: of the body.
    """

    url: str
    post: bytes | None = None
    content_type: str | None = None
    headers: tuple[str, ...] = ()
    max_bytes: int = MAX_ANSWER_BYTES

    @property
    def key(self) -> str:
        """64 hex digits that name this question: those of the same key have the same answer."""
        digest = hashlib.sha256(self.url.encode())
        if self.post is not None:
            digest.update(b"\0" + self.post)
        return digest.hexdigest()

    @property
    def origin(self) -> str:
        """Scheme, host and port: whose patience is tried."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A body, and those headers that were asked for and came, by their names in lower case."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Transport(Protocol):
    """Whoever can ask."""

    async def ask(self, question: Question) -> Answer:
        """
        Return the answer.

        Raises:
            UnavailableError: no answer now; `retry_after_s` is what the other side asked for, or
                `NO_WAIT_ASKED_S`.
            NotFoundError: the other side does not know this.
            RefusedError: the other side does not answer us.
            TooLargeError: a longer body than was asked for.
            ConfigurationError: this is not the address of such a service.
        """
        ...


class HttpTransport:
    """Asks over *session*, which `http_session` makes."""

    def __init__(self, session: aiohttp.ClientSession, *, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    async def ask(self, question: Question) -> Answer:
        """Ask once; raises as `Transport.ask`."""
        headers = {} if question.content_type is None else {"Content-Type": question.content_type}
        try:
            async with self._session.request(
                "GET" if question.post is None else "POST",
                question.url,
                data=question.post,
                headers=headers,
                allow_redirects=False,
            ) as response:
                self._check_status(question, response)
                body = await _read(question, response)
                return Answer(
                    body=body,
                    headers={
                        name: response.headers[name]
                        for name in question.headers
                        if name in response.headers
                    },
                )
        except TimeoutError:
            raise _unavailable(question, "did not answer in time") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise ConfigurationError(
                "not the address of a service", code="endorsements.url", came=question.url
            ) from None
        except aiohttp.ClientPayloadError:
            raise _unavailable(question, "broke off its answer") from None
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            # aiohttp's text can carry what came; the class says enough
            raise _unavailable(question, f"cannot be reached ({type(error).__name__})") from None

    def _check_status(self, question: Question, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 200:
            return
        if 300 <= status < 400:
            raise ConfigurationError(
                f"{question.origin} redirects, and no redirect is followed",
                code="endorsements.redirect",
                came=f"status {status}",
                mend="set the address of the service itself",
            )
        if status == 429 or status >= 500:
            raise _unavailable(
                question,
                f"answered {status}",
                retry_after_s=retry_after_s(
                    response.headers.get("Retry-After"), now=self._clock.now()
                ),
            )
        if status in {400, 404, 410}:
            raise NotFoundError(
                f"{question.origin} does not know what was asked",
                code="endorsements.not_found",
                came=f"status {status} for {urlsplit(question.url).path}",
                mend="the platform may be too new, unregistered, or of another vendor's",
            )
        raise RefusedError(
            f"{question.origin} does not answer us",
            code="endorsements.refused",
            came=f"status {status}",
            mend="a PCCS or a proxy may want credentials; ask its operator",
        )


@asynccontextmanager
async def http_session(
    *, timeout_s: float = TIMEOUT_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
) -> AsyncIterator[aiohttp.ClientSession]:
    """Lend a session within this module's rules; TLS is verified by the system's authorities."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s, connect=connect_timeout_s),
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "aigovtool"},
        auto_decompress=False,
    ) as session:
        yield session


async def _read(question: Question, response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > question.max_bytes:
            raise TooLargeError(
                f"{question.origin} answers with too much",
                code="endorsements.size",
                expected=f"at most {question.max_bytes} bytes",
                came=f"more for {urlsplit(question.url).path}",
            )
    return bytes(body)


def retry_after_s(value: str | None, *, now: datetime) -> float:
    """
    Read a Retry-After header (RFC 9110, 10.2.3): seconds, or a date.

    Returns:
        Seconds from *now*, at most `LONGEST_RETRY_AFTER_S`; `NO_WAIT_ASKED_S` when it says none.
    """
    if value is None:
        return NO_WAIT_ASKED_S
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:9]), LONGEST_RETRY_AFTER_S)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return NO_WAIT_ASKED_S
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), NO_WAIT_ASKED_S), LONGEST_RETRY_AFTER_S)


def _unavailable(
    question: Question, problem: str, *, retry_after_s: float = NO_WAIT_ASKED_S
) -> UnavailableError:
    return UnavailableError(
        f"{question.origin} {problem}",
        code="endorsements.unavailable",
        came=urlsplit(question.url).path,
        mend="check this machine's way to the vendor, or verify with a bundle",
        retry_after_s=retry_after_s,
    )


Shape = Callable[[Answer], Mapping[str, bytes]]
"""Reads documents by name out of an answer; raises MalformedError when it has another shape."""


def malformed(what: str, *, expected: str | None = None, came: str | None = None) -> MalformedError:
    """Make (not raise) the error of an answer that is not what this service gives."""
    return MalformedError(
        f"the answer is not {what}",
        code="endorsements.shape",
        expected=expected,
        came=came,
        mend="check that the address is that of the vendor's service",
    )
