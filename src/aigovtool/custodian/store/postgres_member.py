"""
One process among those that serve a ledger in PostgreSQL.

Rule 1: it belongs by a connection of its own, which holds an advisory lock under its number and
        listens. When that connection is gone, for whatever reason, the lock is free, and everybody
        can see that what this process held is nobody's.
Rule 2: who was parted tells its listener at once, and joins again under another number: what was
        announced meanwhile it has not heard, and what rested on hearing it has to end.
Rule 3: its row's beat rises every second. Others give up who holds the lock and does not beat (a
        process that is stopped) by removing the row; who finds its row gone was parted.
Rule 4: what is announced is part of the transaction that announces it (``pg_notify``): it comes to
        all, in the order of commits, or was never decided. A message longer than a notification
        may be comes in parts.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import psycopg

from aigovtool.custodian.store import dialect, rows
from aigovtool.custodian.store.base import Listener
from aigovtool.custodian.store.postgres_connection import (
    LOCK_SPACE,
    TAKE_WRITE_LOCK,
    Connection,
    translated,
)
from aigovtool.custodian.store.queries import load_queries
from aigovtool.errors import AIGovToolError, PromiseBrokenError

CHANNEL = "aigovtool_pushes"
BEAT_EVERY_S = 1.0
LOOK_EVERY_S = 0.25  # whether it is to end
REJOIN_AFTER_S = 0.5
PART_CHARACTERS = 7900  # a notification holds less than 8000 bytes
_MORE, _LAST = "+", "."

_JOIN, _BEAT, _LEAVE = (
    dialect.query(load_queries()[name]) for name in ("join_replicas", "beat", "remove_replica")
)
_log = logging.getLogger(__name__)


def parts_of(message: bytes) -> Iterator[str]:
    """
    Yield what is notified for *message*.

    Each part begins with its index, since PostgreSQL drops a notification that is like another of
    its transaction, and with whether it is the last.
    """
    text = base64.b64encode(message).decode()
    count = max(1, -(-len(text) // PART_CHARACTERS))
    for index in range(count):
        sign = _LAST if index == count - 1 else _MORE
        begin = index * PART_CHARACTERS
        yield f"{index}{sign}{text[begin : begin + PART_CHARACTERS]}"


class Member:
    """
    Belongs from its making until `close`.

    Raises:
        UnavailableError: the database does not let this process join.
    """

    def __init__(self, connect: Callable[[], Connection], listener: Listener) -> None:
        self._connect = connect
        self._listener = listener
        self._number: int | None = None
        self._parts = ""
        self._ended = threading.Event()
        connection = self._join()
        self._thread = threading.Thread(
            target=self._belong, args=(connection,), name="replica", daemon=True
        )
        self._thread.start()

    @property
    def number(self) -> int | None:
        """Under which this process belongs now; None while it is parted."""
        return self._number

    def close(self) -> None:
        """Leave."""
        self._ended.set()
        self._thread.join()

    def _belong(self, connection: Connection) -> None:
        while True:
            try:
                with translated():
                    self._listen(connection)
                    self._leave(connection)
                return
            except AIGovToolError as error:
                _log.warning("parted from the ledger's other processes: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was: who relies on hearing must know
                _log.exception("parted from the ledger's other processes by our own fault")
            finally:
                self._number = None
                connection.close()
            self._listener.parted()
            rejoined = self._rejoin()
            if rejoined is None:
                return
            connection = rejoined

    def _rejoin(self) -> Connection | None:
        while not self._ended.wait(REJOIN_AFTER_S):
            with contextlib.suppress(AIGovToolError):  # `connect` has logged why
                return self._join()
        return None

    def _join(self) -> Connection:
        connection = self._connect()
        try:
            with translated(), connection.transaction():
                connection.execute(TAKE_WRITE_LOCK)
                row = connection.execute(
                    _JOIN, {"now_us": rows.to_us(datetime.now(UTC))}
                ).fetchone()
                assert row is not None
                number = int(row["number"])
                # before the row can be seen: who sees it without its lock would give it up
                connection.execute(f"SELECT pg_advisory_lock({LOCK_SPACE}, %s::int4)", (number,))
                connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        self._parts = ""
        self._number = number
        self._listener.joined()
        return connection

    def _listen(self, connection: Connection) -> None:
        """Hear what is announced, until the end; raises when the connection is lost."""
        beat_at_s = time.monotonic() + BEAT_EVERY_S
        while not self._ended.is_set():
            for notification in connection.notifies(timeout=LOOK_EVERY_S):
                self._take(notification.payload)
            if time.monotonic() >= beat_at_s:
                beat_at_s = time.monotonic() + BEAT_EVERY_S
                if connection.execute(_BEAT, {"replica": self._number}).rowcount != 1:
                    raise psycopg.OperationalError("given up by the others")

    def _leave(self, connection: Connection) -> None:
        connection.execute(_LEAVE, {"replica": self._number})

    def _take(self, part: str) -> None:
        index, sign, text = _read(part)
        if (index == 0) != (not self._parts):
            raise PromiseBrokenError("a part of an announcement is missing")
        self._parts += text
        if sign == _LAST:
            message, self._parts = base64.b64decode(self._parts), ""
            self._listener.told(message)


def _read(part: str) -> tuple[int, str, str]:
    for sign in (_LAST, _MORE):
        index, found, text = part.partition(sign)  # neither sign is in an index
        if found and index.isdecimal():
            return int(index), sign, text
    raise PromiseBrokenError("an announcement that cannot be read", came=ascii(part[:20]))
