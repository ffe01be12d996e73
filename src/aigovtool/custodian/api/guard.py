"""
Who may speak to the admin API.

1. The Host header names us: a page in the operator's browser that rebinds its own name to
   127.0.0.1 does not get in, not even to the login.
2. The token, or nothing: compared by hash, in constant time.
3. A browser's cross-site request is refused by its Origin, whatever credentials it carries along.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request

from aigovtool.custodian.api.http import tokens_of
from aigovtool.custodian.tokens import same_token
from aigovtool.errors import RefusedError, UnauthenticatedError


class Guard:
    """Lets in whoever bears the admin token."""

    def __init__(
        self, *, token_sha256: bytes, names: frozenset[str] | None, reader: bytes | None = None
    ) -> None:
        """
        Args:
            names: the hosts by which this API may be called, None for any (not loopback).
            reader: hash of a second token, for what is guarded here and nothing else.
        """
        self._tokens = tuple(one for one in (token_sha256, reader) if one is not None)
        self._names = names

    def check(self, request: Request) -> None:
        """
        Raises:
            RefusedError: called by another name, or from another site.
            UnauthenticatedError: no token, or another one.
        """
        self.check_name(request)
        if not self.admits(tokens_of(request)):
            raise UnauthenticatedError(
                "not the admin token", mend="it is in admin.token in the custodian's data folder"
            )

    def admits(self, offered: Sequence[str]) -> bool:
        """Whether one of the tokens that a request offers opens what is guarded."""
        return any(same_token(token, known) for token in offered for known in self._tokens)

    def check_name(self, request: Request) -> None:
        """Do steps 1 and 3, for what everybody may read; raises RefusedError."""
        host = request.headers.get("host", "")
        if not self._is_ours(host):
            raise RefusedError(
                "the admin API is not known by this name",
                code="admin.host",
                expected=" or ".join(sorted(self._names or ())),
                came=ascii(host[:80]),
            )
        origin = request.headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            raise RefusedError("a request from another site", code="admin.origin")

    def _is_ours(self, host: str) -> bool:
        if self._names is None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names


def _netloc(origin: str) -> str | None:
    """Return host and port of an Origin header; None when it cannot be read."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
