"""
Pushes from the ledger's threads to the control connections of this process.

Rule 1: `publish` may be called from any thread, never waits, and keeps the order.
Rule 2: a connection that cannot keep up is dropped: on its return it is told the state of things
        whole, so nothing is lost by it.
Rule 3: a session has one connection at a time. Another one waits until the first is dead; it is
        pinged, so that it is known within seconds. Two that live at once would be clones.
Rule 4: who goes without, or says that queries wait, is told of freed credits in turn, and only as
        many at once as there are credits: one credit does not make a thousand enclaves ask, and
        the quickest does not get every one. Whose turn it was goes to the end, asking or not.
Rule 5: with several processes on one ledger, pushes come by `told`. A process that is parted from
        the others hears nothing: it drops its connections and takes none, until it has joined.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from aigovtool.custodian.pushes import Push, announced
from aigovtool.errors import RefusedError, UnavailableError
from aigovtool.ids import LoanId, SessionId
from aigovtool.wire.control import CreditsFreed, FromCustodian

MAX_WAITING_PUSHES = 256
TURN_S = 0.05  # for those who were told of freed credits to ask, before the next are told
LAST_TURN_S = 1.0  # by then all are told
PAUSED_S = 1.0  # so late no timer of a running process goes off
TAKEOVER_WAIT_S = 8.0  # longer than a dead connection goes unnoticed, shorter than a peer waits


class ClonedError(RefusedError):
    """A session has two living connections: somebody copied a running enclave."""


class Connection:
    """What one control connection is to send; `None` closes it."""

    def __init__(self, session: SessionId, loan: LoanId) -> None:
        self.session = session
        self.loan = loan
        self.outgoing: asyncio.Queue[FromCustodian | None] = asyncio.Queue()
        self.gone = asyncio.Event()
        self._in_turn: FromCustodian | None = None

    def send(self, message: FromCustodian | None) -> None:
        """Queue a message, or the end; on the event loop only."""
        if self.outgoing.qsize() >= MAX_WAITING_PUSHES:
            message = None
        self.outgoing.put_nowait(message)

    def send_in(self, delay_s: float, message: FromCustodian) -> None:
        """Send a message later; if one is to be sent later already, this one takes its place."""
        if self._in_turn is None:
            asyncio.get_running_loop().call_later(delay_s, self._send_in_turn)
        self._in_turn = message

    def _send_in_turn(self) -> None:
        message, self._in_turn = self._in_turn, None
        if not self.gone.is_set():
            self.send(message)


class Hub:
    """The control connections of this process, and who watches the ledger."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[SessionId, Connection] = {}
        self._of_loan: dict[LoanId, dict[SessionId, Connection]] = {}
        self._without: dict[LoanId, dict[SessionId, None]] = {}  # in the order of Rule 4
        self._watchers: set[asyncio.Event] = set()
        self._joined = False
        self.pushed = 0  # messages, since the start

    def start(self) -> None:
        """Belong to the running event loop; until then pushes have nobody to go to."""
        self._loop = asyncio.get_running_loop()

    def publish(self, push: Push) -> None:
        """Send to whom the push is for; from any thread."""
        self._soon(lambda: self._deliver(push))

    def joined(self) -> None:
        """Let connections in; from any thread, as all of `store.base.Listener`."""
        self._joined = True

    def told(self, message: bytes) -> None:
        """Send what a decision of this process or another one announces."""
        self.publish(announced(message))

    def parted(self) -> None:
        """Drop every connection: what is announced now comes to nobody here (Rule 4)."""
        self._joined = False
        self._soon(self.close_all)

    def changed(self) -> None:
        """Wake whoever watches; from any thread."""
        if self._watchers:
            self._soon(self._wake)

    def _soon(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is connected
                self._loop.call_soon_threadsafe(call)

    def heard(self, connection: Connection, *, without: bool) -> None:
        """Note whether a session goes without what it waits for; on the event loop only."""
        waiting = self._without.setdefault(connection.loan, {})
        if without:
            waiting.setdefault(connection.session)
        else:
            waiting.pop(connection.session, None)

    def _deliver(self, push: Push) -> None:
        turns = self._turns(push) if isinstance(push.message, CreditsFreed) else {}
        for connection in list(self._of_loan.get(push.loan, {}).values()):
            if connection.session != push.but and push.only in (None, connection.session):
                if delay_s := turns.get(connection.session):
                    connection.send_in(delay_s, push.message)
                else:
                    connection.send(push.message)
                self.pushed += 1
                if push.ends:
                    connection.send(None)

    def _turns(self, push: Push) -> dict[SessionId, float]:
        """Take turns, and say after how many seconds whom to tell of freed credits (Rule 4)."""
        assert isinstance(push.message, CreditsFreed)
        at_once = max(1, push.message.left)
        waiting = self._without.get(push.loan, {})
        order = list(waiting)
        for session in order[:at_once]:
            del waiting[session]
            waiting[session] = None
        return {
            session: min(LAST_TURN_S, TURN_S * (number // at_once))
            for number, session in enumerate(order)
        }

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    @property
    def connected(self) -> int:
        """How many sessions are connected."""
        return len(self._connections)

    def send_all(self, message: FromCustodian) -> None:
        """Send to every session; on the event loop only."""
        for connection in list(self._connections.values()):
            connection.send(message)

    def close_all(self) -> None:
        """End every connection; on the event loop only."""
        for connection in list(self._connections.values()):
            connection.send(None)

    @contextlib.asynccontextmanager
    async def connection(self, session: SessionId, loan: LoanId) -> AsyncIterator[Connection]:
        """
        Be the connection of *session* for the length of the block.

        Raises:
            ClonedError: another one is alive, and answers: there are two of this session.
            UnavailableError: this process hears of nothing.
        """
        if not self._joined:
            raise UnavailableError(
                "this custodian is parted from its others", code="control.parted"
            )
        while self._connections.get(session) is not None:
            await self._wait_until_gone(session)
        mine = Connection(session, loan)
        self._connections[session] = mine
        self._of_loan.setdefault(loan, {})[session] = mine
        try:
            yield mine
        finally:
            del self._connections[session]
            del self._of_loan[loan][session]
            self._without.get(loan, {}).pop(session, None)
            mine.gone.set()

    async def _wait_until_gone(self, session: SessionId) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            async with asyncio.timeout(TAKEOVER_WAIT_S):
                while (other := self._connections.get(session)) is not None:
                    await other.gone.wait()
        except TimeoutError:
            if loop.time() - begun_s > TAKEOVER_WAIT_S + PAUSED_S:
                return  # this process was paused, and has not heard yet who died meanwhile
            raise ClonedError(
                "this session is connected already, from somewhere that answers",
                code="control.connected",
                mend="two that hold one session's keys are clones: enrol each by itself",
            ) from None

    @contextlib.contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """Lend an event that is set whenever the ledger has changed."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)
