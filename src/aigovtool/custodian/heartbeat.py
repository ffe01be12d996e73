"""
Pings for control connections: for those that are silent, and for nobody else.

Rule 1: whoever was heard since the last look is alive, whatever it said. With thousands of enclaves
        connected, pings cost the custodian more than all else while nothing happens; an enclave
        in use reports more often than it would be pinged.
Rule 2: whoever has said what we have not read yet is not silent: its answer to a ping may lie
        behind a report that waits for the ledger.
Rule 3: who does not answer hears no farewell. TLS would wait half a minute for an answer to that,
        and the session's next connection would wait for the end of this one.

So a dead peer is known at the latest after two looks and the time for an answer, which is less than
`hub.TAKEOVER_WAIT_S`.
"""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LOOK_EVERY_S = 2.0
ANSWER_WITHIN_S = 3.0


class SparingWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which pings at each look and says farewell, with the rules above."""

    _heard = False

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)

    def send_keepalive_ping(self) -> None:
        if self._heard or self.read_paused:
            self._heard = False
            self.schedule_ping()
        else:
            super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self.read_paused:
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()
            self.transport.abort()
