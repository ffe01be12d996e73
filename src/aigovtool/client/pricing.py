"""
What a query must cost, read from its own bytes as they pass through the proxy.

Rule 1: the price is that of the custodian's signed manifest for the shapes that were sent, never
        what an answer says of itself.
Rule 2: bytes are kept only as far as the JSON object that names the shapes can reach, by the same
        limits as the enclave's own; what cannot be read has no price, and its answer is refused.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator

import msgspec

from aigovtool.channel.http1 import Headers
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from aigovtool.sealing.batch import batch_of, items_in
from aigovtool.sealing.manifest import SealedManifest
from aigovtool.wire.oip import DEFAULT_LIMITS, HEADER_LENGTH, parse_header_length

_PATH = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer/?\Z")
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()


class _Tensor(msgspec.Struct):
    name: str
    shape: tuple[int, ...]


class _Query(msgspec.Struct):
    """Only what a price needs: the enclave reads the rest, and refuses what it does not know."""

    inputs: tuple[_Tensor, ...]


def is_query(method: str, path: str) -> bool:
    """Say whether a request asks for an inference that is paid by its shapes."""
    return method == "POST" and _PATH.match(path) is not None


class PassingQuery:
    """A query whose bytes pass; raises MalformedError when its headers contradict themselves."""

    def __init__(self, headers: Headers) -> None:
        named = dict(headers)
        self._json_bytes = parse_header_length(named.get(_HEADER_LENGTH))
        self._encoding = named.get(b"content-encoding", b"identity").strip().lower()
        self._kept = bytearray()
        plain = self._encoding not in _WINDOW
        self._limit = DEFAULT_LIMITS.max_json_bytes if plain else DEFAULT_LIMITS.max_body_bytes
        if plain and self._json_bytes is not None:
            self._limit = min(self._limit, self._json_bytes)

    def saw(self, piece: bytes | memoryview) -> None:
        """Take note of the next piece of the body."""
        if (room := self._limit - len(self._kept)) > 0:
            self._kept += piece[:room]

    async def watched(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield *body* as it comes, and take note of it."""
        async for piece in body:
            self.saw(piece)
            yield piece

    def price(self, manifest: SealedManifest) -> int:
        """Return what the query costs; raises VerificationError when that cannot be told."""
        if (batch := batch_of(manifest)) is None:
            return 1
        try:
            query = msgspec.json.decode(self._json(), type=_Query)
            return items_in(batch, {one.name: one.shape for one in query.inputs})
        except (AIGovToolError, msgspec.MsgspecError, zlib.error, LookupError, ValueError):
            raise VerificationError(
                "the query was charged, and what it should cost cannot be told",
                code="receipt.price",
                expected="a request of the Open Inference Protocol that names the shapes it holds",
            ) from None

    def _json(self) -> memoryview:
        limit = DEFAULT_LIMITS.max_json_bytes
        if (window := _WINDOW.get(self._encoding)) is None:
            plain: bytes | bytearray = self._kept
        else:
            plain = zlib.decompressobj(window).decompress(self._kept, self._json_bytes or limit)
        if self._json_bytes is not None and len(plain) < self._json_bytes:
            raise MalformedError("the body is shorter than its header says")
        return memoryview(plain)[: self._json_bytes]
