"""
The proxy's gRPC door, so that gRPC clients can be used as they are.

    tritonclient.grpc ──HTTP/2, loopback──▶ proxy ──judged and pinned TLS──▶ enclave

Rule 1: what is forwarded goes by HTTP over the judged channel, as all that the proxy forwards does:
        the enclave's own gRPC door is not used, and need not be open.
Rule 2: receipts are checked, priced and kept as the proxy does it for HTTP.

A web page cannot ask here: browsers do not speak HTTP/2 without TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aigovtool.channel.address import Address
from aigovtool.channel.connect import AttestedChannel
from aigovtool.channel.grpc_door import Door, Metadata, opened
from aigovtool.channel.http1 import Request
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.client.pricing import PassingQuery, is_query
from aigovtool.client.proxy import check_receipts, resolve
from aigovtool.client.receipt_store import ReceiptStore
from aigovtool.errors import AIGovToolError, RefusedError, UnavailableError
from aigovtool.wire.grpc.translate import HttpAnswer, HttpRequest
from aigovtool.wire.oip import DEFAULT_LIMITS

SILENCE_TIMEOUT_S = 600.0  # until an answer begins; a slow model, or a wait for credits


@asynccontextmanager
async def grpc_door(
    channel: AttestedChannel,
    *,
    api_key: str | None,
    store: ReceiptStore,
    listen: Address,
    dangerously_beyond_loopback: bool,
) -> AsyncIterator[int]:
    """
    Serve gRPC for the length of the block, and give the port; the arguments are `serve_proxy`'s.

    Raises:
        ConfigurationError: *listen* cannot be listened on, or other machines could reach it.
    """
    _, where = resolve(listen, dangerously_beyond_loopback=dangerously_beyond_loopback)
    forwarding = Forwarding(channel, api_key=api_key, store=store)
    door = Door(forwarding, admit=forwarding.admit, message_time_s=SILENCE_TIMEOUT_S)
    async with opened(
        door,
        host=str(where[0]),
        port=listen.port,
        identity=None,
        max_message_bytes=DEFAULT_LIMITS.max_body_bytes,
    ) as port:
        yield port


class Forwarding:
    """
    Asks the enclave behind *channel*.

    Args:
        api_key: added to calls without an authorization; None adds nothing.
        store: keeps the receipts of all who use the proxy.
    """

    def __init__(
        self, channel: AttestedChannel, *, api_key: str | None, store: ReceiptStore
    ) -> None:
        self._channel = channel
        self._store = store
        self._own = {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    def admit(self, metadata: Metadata) -> str:
        """Return by whose key is asked; everybody on this machine may, and the enclave decides."""
        return metadata.get("authorization", "")

    async def __call__(self, request: HttpRequest, metadata: Metadata) -> HttpAnswer:
        named = [*(self._own | dict(metadata)).items(), *request.headers]
        headers = tuple((k.encode(), v.encode("latin-1", "replace")) for k, v in named)
        query = None
        if is_query(request.method, request.path):
            query = PassingQuery(headers)
            query.saw(request.body)

        def make(_: VerifiedEnclave) -> Request:
            return Request(
                method=request.method.encode(),
                target=request.path.encode("ascii"),
                headers=headers,
                body=(request.body,) if request.body else (),
            )

        try:
            async with (
                asyncio.timeout(SILENCE_TIMEOUT_S),
                self._channel.exchange(make) as (enclave, response),
            ):
                await check_receipts(
                    enclave, response, query, channel=self._channel, store=self._store
                )
                return HttpAnswer(
                    status=response.status,
                    headers={k.decode(): v.decode("latin-1") for k, v in response.headers},
                    body=await response.read(max_bytes=DEFAULT_LIMITS.max_body_bytes),
                )
        except TimeoutError:
            raise UnavailableError("the enclave fell silent", code="channel.timeout") from None
        except UnavailableError:
            raise
        except AIGovToolError as error:
            raise RefusedError(
                f"the proxy refuses the enclave: {error}", code="proxy.enclave"
            ) from None
