"""
The borrower's side of grants: what the custodian signed is kept on the disk, then counter-signed.

A kept notice proves, to anybody and without the custodian, that so many credits had been granted:
a lease that is refused for want of them was then withheld.

Rule 1: a notice is on the disk before it is counter-signed; one that cannot be kept is not.
Rule 2: two notices of one place are both kept. They convict the custodian.
Rule 3: what a notice is, the custodian's signature says; a file's name decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import AIGovToolError, ConfigurationError, Reason, VerificationError
from aigovtool.ids import LoanId, SessionId, sha256
from aigovtool.telemetry.logs import event
from aigovtool.wire.codec import Signed, decode, encode, open_signed, sign
from aigovtool.wire.control import GrantMade, GrantSeenBy
from aigovtool.wire.grants import GrantNotice, GrantSeen

FOLDER = "grants"  # beside the ciphertext in the enclave's cache
MAX_NOTICE_BYTES = 64 << 10

_log = logging.getLogger(__name__)


class GrantsKept:
    """
    Notices of one session's loan.

    Args:
        folder: of the enclave's cache; None keeps nothing, and counter-signs all the same: the
            custodian's record of it is the borrower's too, by the log.
    """

    def __init__(
        self,
        *,
        folder: Path | None,
        loan: LoanId,
        session: SessionId,
        key: SigningKey,
        custodian_key: bytes,
    ) -> None:
        self._folder = None if folder is None else folder / FOLDER / loan
        self._loan = loan
        self._session = session
        self._key = key
        self._custodian_key = custodian_key
        self._waiting: deque[Signed] = deque()
        self._come = asyncio.Event()

    def take(self, message: GrantMade) -> None:
        """A notice has come; `answer` deals with it."""
        self._waiting.append(message.notice)
        self._come.set()

    def forget(self) -> None:
        """The connection is lost: what was not answered will be told again."""
        self._waiting.clear()

    async def answer(self, send: Callable[[GrantSeenBy], Awaitable[None]]) -> None:
        """Keep and counter-sign what comes, until it is cancelled."""
        while True:
            await self._come.wait()
            self._come.clear()
            while self._waiting:
                try:
                    seen = await self.counter_sign(self._waiting.popleft())
                except AIGovToolError as error:
                    _log.error(
                        "a notice of a grant is not counter-signed: %s",
                        error,
                        extra=event("grant.not_kept"),
                    )
                else:
                    await send(seen)

    async def counter_sign(self, signed: Signed) -> GrantSeenBy:
        """
        Keep a notice, and return the counter-signature under it.

        Raises:
            MalformedError, VerificationError: not this custodian's, or about another loan.
            ConfigurationError: it cannot be kept.
        """
        notice = self._opened(signed)
        await asyncio.to_thread(self._keep, notice, signed)
        return GrantSeenBy(seen=self._seen(notice, signed))

    def _opened(self, signed: Signed) -> GrantNotice:
        notice = open_signed(
            signed, GrantNotice, public_key=self._custodian_key, label=Label.GRANT_NOTICE
        )
        if notice.loan != self._loan:
            raise VerificationError(
                "a notice about another loan", code="grant.loan", expected=self._loan
            )
        return notice

    def _seen(self, notice: GrantNotice, signed: Signed) -> Signed:
        seen = GrantSeen(
            loan=self._loan,
            session=self._session,
            number=notice.number,
            notice_sha256=sha256(signed.payload),
        )
        return sign(seen, self._key, Label.GRANT_SEEN)

    def _keep(self, notice: GrantNotice, signed: Signed) -> None:
        if self._folder is None:
            return
        name = f"{notice.place:08d}-{sha256(signed.payload).hex()[:16]}.json"
        path = self._folder / name
        temporary = path.with_suffix(".partial")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(encode(signed))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ConfigurationError(
                f"cannot keep the notice {path}", code="file", came=error.strerror
            ) from None


@dataclass(slots=True)
class Account:
    """What kept notices prove of a loan; `faults` are what they convict the custodian of."""

    loan: str
    notices: int = 0
    granted: int = 0
    faults: list[Reason] = field(default_factory=list)


def check_kept(folder: Path, custodian_key: bytes, *, said: int | None = None) -> list[Account]:
    """
    Read the notices that an enclave kept in its cache *folder*, and hold them against each other.

    Args:
        said: credits that the custodian says now it has granted to the (one) loan.

    Raises:
        ConfigurationError: there are no notices, or they cannot be read.
    """
    kept = _kept(folder)
    if not kept:
        raise ConfigurationError(
            f"no notices of grants are kept in {folder}", mend="name an enclave's --cache folder"
        )
    accounts = [_account(loan, paths, custodian_key) for loan, paths in kept.items()]
    if said is not None:
        if len(accounts) != 1:
            raise ConfigurationError("--said is of one loan", came=f"{len(accounts)} loans")
        if said < accounts[0].granted:
            accounts[0].faults.append(
                Reason(
                    code="grant.withheld",
                    message="the custodian has signed for more credits than it says it granted",
                    expected=f"{accounts[0].granted} or more",
                    came=str(said),
                )
            )
    return accounts


def _kept(folder: Path) -> dict[str, list[Path]]:
    try:
        return {
            loan.name: paths
            for loan in sorted((folder / FOLDER).iterdir())
            if (paths := sorted(loan.glob("*.json")))
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {folder}", code="file", came=error.strerror
        ) from None


def _account(loan: str, paths: list[Path], custodian_key: bytes) -> Account:
    account = Account(loan)
    notices: dict[int, GrantNotice] = {}
    for path in paths:
        try:
            signed = decode(path.read_bytes()[: MAX_NOTICE_BYTES + 1], Signed)
            notice = open_signed(
                signed, GrantNotice, public_key=custodian_key, label=Label.GRANT_NOTICE
            )
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {path}", code="file", came=error.strerror
            ) from None
        except AIGovToolError as error:
            account.faults.append(
                Reason(
                    code="grant.forged",
                    message=f"{path.name} is no notice of this custodian's",
                    came=str(error),
                )
            )
            continue
        other = notices.setdefault(notice.place, notice)
        if notice.loan != loan or other != notice:
            account.faults.append(
                Reason(
                    code="grant.equivocation" if notice.loan == loan else "grant.loan",
                    message=f"{path.name} is not the notice {notice.place} of this loan that is"
                    " kept beside it",
                )
            )
    account.notices = len(notices)
    account.granted = max((each.granted for each in notices.values()), default=0)
    account.faults += _sums(notices)
    return account


def _sums(notices: dict[int, GrantNotice]) -> list[Reason]:
    """Each notice must add to the one before it, where that is kept too."""
    faults = []
    for place, notice in sorted(notices.items()):
        before = notices.get(place - 1)
        if place != 1 and before is None:
            continue  # another enclave of the borrower's has it, or had it
        had = 0 if before is None else before.granted
        expected = had + (notice.credits if notice.consumer is None else 0)
        if notice.granted != expected:
            faults.append(
                Reason(
                    code="grant.sum",
                    message=f"the notice {place} does not add up with the one before it",
                    expected=f"{expected} credits granted",
                    came=str(notice.granted),
                )
            )
    return faults
